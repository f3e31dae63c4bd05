"""resync under live changes and under kill -9: whoever reads the target sees whole rows, and never fewer of them."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from tests.chaos.scale import SCALE
from tests.pair import Pair
from tests.wait import wait_until

ROWS = round(40_000 * SCALE)
RESYNCS = 3
KILLS = round(12 * SCALE)
LONGEST_READ_S = 0.5

LOOK_ROWS = 2_000
SLICE_ROWS = min(ROWS, 50_000)
RESYNC = ("resync", "--yes", "--jobs", "2")

# Loose pages make the heap large enough to be read in ranges; every update is one transaction over all rows.
SOURCE = f"""
create table t (id int primary key, version int not null, note text) with (fillfactor = {min(100, round(10 * SCALE))});
insert into t select n, 1, repeat('n', 160) from generate_series(1, {ROWS}) n;
"""
TARGET = """
create view public.look as select id, version from public.t;
create table public.child (id int primary key references public.t (id) on delete cascade);
insert into public.child select id from public.t where id % 10 = 0;
comment on table public.t is 'kept';
grant select on public.t to public;
analyze;
"""

LOOK = """
select count(*), min(version), max(version),
       (select count(*) from public.look where id between %(first)s and %(last)s),
       (select min(version) from public.look where id between %(first)s and %(last)s),
       (select count(*) from public.child where id between %(first)s and %(last)s)
from public.t where id between %(first)s and %(last)s
"""
SLICE = (
    "select count(*), min(version), max(version), sum(version) from public.t where id between %(first)s and %(last)s"
)


class Readers:
    """Look at the target through the table, a view and a child, and in one transaction that stays open.

    Every 5 ms a look at some thousand rows, in turn all over the table: whoever empties it for a moment, or a part of
    it, or mixes two versions, is seen. In the open transaction all rows are counted in slices, then counted again: that
    is one snapshot, so the slices are as good as one count, and none of them takes long by itself.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.stop = threading.Event()
        self.complaints: list[str] = []
        self.looks, self.counts, self.longest_s = 0, 0, 0.0
        self._threads = [threading.Thread(target=self._watch), threading.Thread(target=self._hold)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def take_longest_s(self) -> float:
        """Return how long the longest read took since this was last asked."""
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[TupleRow]]:
        try:
            with self.pair.target_server.connect(self.pair.target_db) as session:
                yield session
        except psycopg.Error as error:
            self.complaints.append(repr(error))

    def _read(
        self, session: psycopg.Connection[TupleRow], query: LiteralString, parameters: dict[str, int]
    ) -> TupleRow:
        started = time.monotonic()
        row = session.execute(query, parameters).fetchone()
        self.longest_s = max(self.longest_s, time.monotonic() - started)
        assert row is not None
        return row

    def _watch(self) -> None:
        oldest = 0
        firsts = itertools.cycle(range(1, ROWS, LOOK_ROWS))
        with self._session() as session:
            while not self.stop.wait(0.005):
                first = next(firsts)
                rows = min(LOOK_ROWS, ROWS + 1 - first)
                row = self._read(session, LOOK, {"first": first, "last": first + rows - 1})
                self.looks += 1
                if (row[0], row[3], row[5]) != (rows, rows, rows // 10):
                    self.complaints.append(f"counts {row} from {first}")
                elif not row[1] == row[2] == row[4]:
                    self.complaints.append(f"versions {row} from {first}")
                elif row[1] < oldest:
                    self.complaints.append(f"version {row[1]} after {oldest}")
                oldest = max(oldest, row[1] or 0)

    def _hold(self) -> None:
        with self._session() as session:
            while not self.stop.is_set():
                with session.transaction():
                    session.execute("set transaction isolation level repeatable read")
                    before = list(self._count(session))
                    self.stop.wait(1.0)
                    after = list(self._count(session))
                if before[: len(after)] != after[: len(before)]:
                    self.complaints.append(f"repeatable read: {before} became {after}")
                if len(before) == len(range(1, ROWS, SLICE_ROWS)):
                    self.counts += 1
                    versions = {version for row in before for version in row[1:3]}
                    if sum(row[0] for row in before) != ROWS or len(versions) != 1:
                        self.complaints.append(f"repeatable read: {before}")

    def _count(self, session: psycopg.Connection[TupleRow]) -> Iterator[TupleRow]:
        """Yield the figures of slice after slice, until the readers are to end."""
        for first in range(1, ROWS, SLICE_ROWS):
            if self.stop.is_set():
                return
            yield self._read(session, SLICE, {"first": first, "last": first + SLICE_ROWS - 1})


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
        wait_until(lambda: readers.looks > 200 and readers.counts, what="the readers look, and there is no resync")
        without_s, looks = readers.take_longest_s(), readers.looks
        for _ in range(RESYNCS):
            pair.target.execute("update public.t set note = 'damaged' where id % 100 = 1")
            pair.run(*RESYNC, timeout_s=600.0)
        stop.set()
        writer.join()
        pair.run(*RESYNC, timeout_s=600.0)
        longest_s = readers.take_longest_s()
    assert readers.complaints == [], readers.complaints[:5]
    record_property(
        "measured",
        f"resync: {RESYNCS + 1} of {ROWS:,} rows under updates, {readers.looks - looks} looks and {readers.counts}"
        f" counts, the longest read {longest_s * 1000:.0f} ms; without a resync {without_s * 1000:.0f} ms in {looks}",
    )
    assert longest_s < LONGEST_READ_S
    pair.assert_equal("public.t")
    assert read_definition(pair) == before


def test_a_killed_resync_leaves_the_table_as_it_was_and_nothing_behind(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    seed = random.SystemRandom().getrandbits(32)
    record_property("measured", f"resync kill seed: {seed}")
    dice = random.Random(seed)
    prepare(pair)
    pair.source.execute("update t set version = version + 1")
    started = time.monotonic()
    pair.run(*RESYNC)
    whole_s = time.monotonic() - started
    landed = 0
    with Readers(pair) as readers:
        for number in range(KILLS):
            pair.source.execute("update t set version = version + 1")
            running = pair.popen(*RESYNC)
            time.sleep(whole_s * (0.2 + 1.1 * dice.random()))
            running.kill()
            (versions,) = pair.target.execute("select count(distinct version) from public.t").fetchone() or ()
            assert versions == 1, (seed, number)
            (version,) = pair.target.execute("select max(version) from public.t").fetchone() or ()
            landed += version == number + 3
        pair.run(*RESYNC)
    assert readers.complaints == [], (seed, readers.complaints[:5])
    pair.assert_equal("public.t")
    assert not pair.control_rows(status="running")
    left = pair.target.execute(
        "select relname from pg_class where relname ~ '^(replicator|shadow)' and relkind = 'r'"
    ).fetchall()
    assert left == []
    assert pair.source.execute(
        "select count(*) from pg_replication_slots where database = current_database()"
    ).fetchone() == (0,)
    record_property("measured", f"resync: {KILLS} killed, {landed} of them after their COMMIT")
