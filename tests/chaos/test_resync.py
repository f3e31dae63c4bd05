"""resync under live changes and under kill -9: whoever reads the target sees whole rows, and never fewer of them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

import psycopg

from tests.chaos.scale import SCALE
from tests.pair import Pair
from tests.wait import wait_until

ROWS = round(40_000 * SCALE)
RESYNCS = 3
KILLS = round(12 * SCALE)
LONGEST_READ_S = 0.5

SOURCE = f"""
create table t (id int primary key, version int not null, note text);
insert into t select n, 1, repeat('n', 80) from generate_series(1, {ROWS}) n;
"""
TARGET = """
create view public.look as select id, version from public.t;
create table public.child (id int primary key references public.t (id) on delete cascade);
insert into public.child select id from public.t where id % 10 = 0;
comment on table public.t is 'kept';
grant select on public.t to public;
"""


class Readers:
    """Look at the target every 5 ms through the table, a view and a child, and in one transaction that stays open."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.stop = threading.Event()
        self.complaints: list[str] = []
        self.looks, self.longest_s = 0, 0.0
        self._threads = [threading.Thread(target=self._watch), threading.Thread(target=self._hold)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        oldest = 0
        try:
            with self.pair.target_server.connect(self.pair.target_db) as session:
                while not self.stop.wait(0.005):
                    started = time.monotonic()
                    row = session.execute(
                        "select count(*), min(version), (select count(*) from public.look),"
                        " (select count(*) from public.child) from public.t"
                    ).fetchone()
                    assert row is not None
                    self.longest_s = max(self.longest_s, time.monotonic() - started)
                    self.looks += 1
                    if row[0] != ROWS or row[2] != ROWS or row[3] != ROWS // 10:
                        self.complaints.append(f"counts {row}")
                    if row[1] < oldest:
                        self.complaints.append(f"version {row[1]} after {oldest}")
                    oldest = max(oldest, row[1])
        except psycopg.Error as error:
            self.complaints.append(repr(error))

    def _hold(self) -> None:
        query = "select count(*), sum(version), min(version) from public.t"
        try:
            with self.pair.target_server.connect(self.pair.target_db) as session:
                while not self.stop.is_set():
                    with session.transaction():
                        session.execute("set transaction isolation level repeatable read")
                        first = session.execute(query).fetchone()
                        until = time.monotonic() + 1.0
                        while time.monotonic() < until and not self.stop.wait(0.02):
                            if (now := session.execute(query).fetchone()) != first:
                                self.complaints.append(f"repeatable read: {first} became {now}")
        except psycopg.Error as error:
            self.complaints.append(repr(error))


def prepare(pair: Pair) -> None:
    pair.source.execute(SOURCE)
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.as_writer.execute(TARGET)


def read_definition(pair: Pair) -> Sequence[object]:
    return pair.target.execute(
        "select c.oid, c.relowner, c.relacl::text, obj_description(c.oid),"
        " (select array_agg(conname::text order by 1) from pg_constraint where conrelid = c.oid or confrelid = c.oid)"
        " from pg_class c where c.oid = 'public.t'::regclass"
    ).fetchall()


def test_readers_never_see_a_resync_under_live_changes(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    prepare(pair)
    before = read_definition(pair)
    stop = threading.Event()

    def write() -> None:
        with pair.source_server.connect(pair.source_db) as session:
            while not stop.wait(0.01):
                session.execute("update t set version = version + 1")

    writer = threading.Thread(target=write)
    with Readers(pair) as readers:
        writer.start()
        for _ in range(RESYNCS):
            pair.target.execute("update public.t set note = 'damaged' where id % 100 = 1")
            pair.run("resync", "--yes")
        stop.set()
        writer.join()
        pair.run("resync", "--yes")
        wait_until(lambda: readers.looks > 10, what="the readers look")
    assert readers.complaints == [], readers.complaints[:5]
    record_property(
        "measured",
        f"resync: {RESYNCS + 1} of {ROWS:,} rows under updates, {readers.looks} looks,"
        f" the longest {readers.longest_s * 1000:.0f} ms",
    )
    assert readers.longest_s < LONGEST_READ_S
    pair.assert_equal("public.t")
    assert read_definition(pair) == before


def test_a_killed_resync_leaves_the_table_as_it_was_and_nothing_behind(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    record_property("measured", f"resync kill seed: {seed}")
    dice = random.Random(seed)
    prepare(pair)
    started = time.monotonic()
    pair.run("resync", "--yes")
    whole_s = time.monotonic() - started
    landed = 0
    with Readers(pair) as readers:
        for number in range(KILLS):
            pair.source.execute("update t set version = version + 1")
            running = pair.popen("resync", "--yes")
            time.sleep(whole_s * (0.2 + 0.8 * dice.random()))
            running.kill()
            (versions,) = pair.target.execute("select count(distinct version) from public.t").fetchone() or ()
            assert versions == 1, (seed, number)
            (version,) = pair.target.execute("select max(version) from public.t").fetchone() or ()
            landed += version == number + 2
        pair.run("resync", "--yes")
    assert readers.complaints == [], (seed, readers.complaints[:5])
    pair.assert_equal("public.t")
    assert not pair.control_rows(status="running")
    left = pair.target.execute(
        "select relname from pg_class where relname like 'replicator%' and relkind = 'r'"
    ).fetchall()
    assert left == []
    assert pair.source.execute(
        "select count(*) from pg_replication_slots where database = current_database()"
    ).fetchone() == (0,)
    record_property("measured", f"resync: {KILLS} killed, {landed} of them after their COMMIT")
