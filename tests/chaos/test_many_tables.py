"""Many tables under load, seven of them odd in seven ways: the others go on, and each odd one returns when it is fixed.

REPLICATOR_CHAOS_SCALE=10 makes it 300 tables.
"""

from __future__ import annotations

import random
import shlex
import threading
import time

from psycopg import sql

from tests.chaos.scale import SCALE
from tests.pair import Pair
from tests.streaming import listening, wait_until_equal
from tests.wait import wait_until

TABLES = max(10, int(30 * SCALE))
MOST_LAG_S = 5.0
"""What a test may bear beside others; alone and on an idle machine it is below 2."""


class Writer:
    """Changes the sound tables in turn, and measures how far the target is behind one of them."""

    def __init__(self, pair: Pair, tables: list[str]) -> None:
        self.pair, self.tables = pair, tables
        self.worst_s = self.last_s = 0.0
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=one, daemon=True) for one in (self._write, self._watch)]

    def __enter__(self) -> Writer:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(30)

    def _write(self) -> None:
        chance = random.Random(7)
        with self.pair.source_server.connect(self.pair.source_db) as session:
            while not self.stopped.wait(0.01):
                session.execute("update beat set at = clock_timestamp()")
                update = "update {} set n = n + 1 where id = 1"
                session.execute(sql.SQL(update).format(sql.Identifier(chance.choice(self.tables))))

    def _watch(self) -> None:
        query = "select extract(epoch from clock_timestamp() - at) from beat"
        with self.pair.target_server.connect(self.pair.target_db) as session:
            while not self.stopped.wait(0.05):
                row = session.execute(query).fetchone()
                assert row is not None
                self.last_s = float(row[0])
                self.worst_s = max(self.worst_s, self.last_s)


def read_hints(pair: Pair) -> dict[str, tuple[str, str]]:
    query = "select table_name, error_id, error_hint from replicator.parked_table"
    return {name.removeprefix("public."): (id_, hint or "") for name, id_, hint in pair.target.execute(query)}


def test_seven_odd_tables_keep_none_of_the_others_back(streamed: Pair) -> None:
    """S30, S39: identity, grant, publication, row security, a view in the way, a narrowed column, a refused row."""
    names = [f"t{n}" for n in range(TABLES)]
    sound, odd = names[7:], names[:7]
    for name in names:
        streamed.source.execute(
            sql.SQL("create table {0} (id int primary key, n int); insert into {0} values (1, 0), (2, 0)").format(
                sql.Identifier(name)
            )
        )
    streamed.source.execute("create table beat (at timestamptz primary key); insert into beat values (now())")
    streamed.publish(*(name for name in [*names, "beat"] if name != "t2"))
    streamed.source.execute(
        sql.SQL(
            "alter table t0 replica identity nothing; revoke select on t1 from {0};"
            "alter table t3 enable row level security"
        ).format(sql.Identifier(streamed.reader))
    )
    streamed.as_writer.execute("create view t4 as select 1 as id")
    streamed.write_config()
    begun = time.monotonic()
    with listening(streamed) as running:
        took_s = time.monotonic() - begun
        with Writer(streamed, sound) as writer:
            wait_until(
                lambda: {"t0", "t1", "t2", "t3", "t4"} <= read_hints(streamed).keys(), 60, what="five are parked"
            )
            # The first row is as old as the copy.
            wait_until(lambda: 0 < writer.last_s < 1, what="the stream has caught up with its copy")
            writer.worst_s = 0.0
            streamed.source.execute("alter table t5 alter n type smallint; update t5 set n = 7")
            streamed.target.execute("alter table t6 add constraint small check (n < 5)")
            streamed.source.execute("update t6 set n = 9 where id = 2")
            wait_until(lambda: read_hints(streamed).keys() == set(odd), 60, what="seven are parked")
            hints = read_hints(streamed)
            assert {name: hints[name][0] for name in odd} == {
                "t0": "identity_missing",
                "t1": "grant_missing",
                "t2": "publication_missing",
                "t3": "row_security",
                "t4": "target_not_table",
                "t5": "schema_drift",
                "t6": "target_refused_row",
            }
            for name in ("t0", "t1", "t2"):
                fix_at_source(streamed, name, hints[name][1])
            streamed.source.execute("alter table t3 disable row level security")
            streamed.as_writer.execute("drop view t4")
            streamed.run(*shlex.split(hints["t5"][1])[1:])
            wait_until_returned(streamed, "t5")
            streamed.target.execute("alter table t6 drop constraint small")
            for name in odd:
                wait_until_returned(streamed, name)
                streamed.source.execute(sql.SQL("update {} set n = 3 where id = 1").format(sql.Identifier(name)))
        wait_until_equal(streamed, *names)
        print(f"{TABLES} tables live after {took_s:.1f} s; the others were {writer.worst_s:.2f} s behind at most")
        assert writer.worst_s < MOST_LAG_S
        # One more: the search for the refused row takes its batch in smaller pieces.
        assert running.stderr.count("run_started") == 1


def fix_at_source(pair: Pair, table: str, hint: str) -> None:
    """Run the hint as the owner, and see the table return."""
    pair.source.execute(sql.SQL(hint.removeprefix("as their owner: ").split("; or ")[0]))
    wait_until_returned(pair, table)


def wait_until_returned(pair: Pair, table: str) -> None:
    query = "select from replicator.stream_table where table_name = %s and not is_stale"

    def has_returned() -> bool:
        return pair.target.execute(query, [f"public.{table}"]).rowcount == 1 and table not in read_hints(pair)

    wait_until(has_returned, 60, what=f"{table} has returned")
