"""Rounds in which large tables are read by many sessions at once, range of pages by range of pages, in one snapshot.

    coordinator ── exports the snapshot ──┬── reader ── COPY range ──► session ─┐
                                          ├── reader ── COPY range ──► session ─┼─► shadow ──► one transaction ──► table
                                          └── reader ── COPY range ──► session ─┘

Large tables come first, one after the other with all jobs, then the others side by side.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from typing import ClassVar

import psycopg
from psycopg import sql

from replicator.apply.job import Incoming, Job, Session
from replicator.apply.keyed import KeyedLoad
from replicator.apply.shadow import Filled, Filling, ShadowLoad, drop_shadows
from replicator.capture.pull import TableReader
from replicator.db import Connection, closing
from replicator.errors import LimitReached
from replicator.page_range import Pages, divide_pages
from replicator.sync.round import Round, gave_way

_OLDEST_RANGES = 140000
"""Before PostgreSQL 14 each range would scan the whole heap."""


class ExchangeRound(Round):
    """A round in which tables with a key are read in ranges, if their heaps come to `least_bytes` and jobs are free."""

    least_bytes: ClassVar[int] = 64 << 20
    range_bytes: ClassVar[int] = 16 << 20

    def _queue_jobs(self, jobs: list[Job]) -> None:
        self.ranges = {job.table: self._divide(job) for job in jobs if self._is_large(job)}
        self.ranges_read: Counter[str] = Counter()
        super()._queue_jobs(jobs)

    def _is_large(self, job: Job) -> bool:
        relation = job.mapping.relation
        return (
            bool(job.mapping.key)
            and relation.is_heap
            and relation.heap_bytes >= self.least_bytes
            and self.run.jobs > 1
            and not self.snapshot.facts.is_standby
            and self.run.watcher.info.server_version >= _OLDEST_RANGES
        )

    def _divide(self, job: Job) -> list[Pages]:
        return divide_pages((member.heap_bytes for member in job.mapping.relation.members), self.range_bytes)

    def _share_out(self) -> None:
        queued = list(self.queue)
        large = [group for group in queued if any(job.table in self.ranges for job in group)]
        self.queue = deque(large)
        self._run_workers(1)
        if large:
            # What a failed load left. If it cannot be dropped now, the next run drops it.
            with suppress(psycopg.Error):
                drop_shadows(self.control)
        self.queue.extend(group for group in queued if group not in large)
        super()._share_out()

    def _make_load(self, session: Session, incoming: Incoming, attempts: int) -> KeyedLoad:
        if incoming.job.table not in self.ranges:
            return super()._make_load(session, incoming, attempts)
        return ShadowLoad(session, incoming, attempts, fill=self._fill)

    def _fill(self, filling: Filling) -> Filled:
        """Make a shadow and fill it by all jobs. Raises the first error of any of them, once all have ended."""
        ranges = deque(self.ranges[filling.incoming.job.table])
        with closing(self._open_session().connection) as connection:
            filling.make_shadow(connection)
        # Where the coordinator reads by itself, one worker has its session.
        count = 1 if self.shares_coordinator else min(self.run.jobs, len(ranges))
        failed = threading.Event()
        with ThreadPoolExecutor(count, thread_name_prefix="range") as workers:
            filled = [workers.submit(self._copy_ranges, filling, ranges, failed) for _ in range(count)]
        if errors := [error for one in filled if (error := one.exception())]:
            raise errors[0]
        if ranges and not any(one.result().rows_read for one in filled) and not self.given_way.is_set():
            # Nobody found two connections to spare: this says so, or the next round finds them.
            self._open_reader().close()
        if ranges:
            raise gave_way(filling.incoming.job.table)
        return sum((one.result() for one in filled), Filled())

    def _copy_ranges(self, filling: Filling, ranges: deque[Pages], failed: threading.Event) -> Filled:
        """Copy ranges until none is left, another worker failed, or the round is to end.

        Where no connection is to spare the others copy them.
        """
        filled, table = Filled(), filling.incoming.job.table
        try:
            with ExitStack() as stack, suppress(LimitReached):
                source = self._open_source(stack, filling.incoming)
                session = stack.enter_context(closing(self._open_session().connection))
                while not failed.is_set() and (pages := self._take(ranges)) is not None:
                    filled += _copy(source.read_pages(filling.shape, pages), session, filling.into)
                    self._tell_range(table)
        except BaseException:
            failed.set()
            raise
        return filled

    def _open_source(self, stack: ExitStack, incoming: Incoming) -> TableReader:
        reader = self._open_reader()
        stack.callback(reader.close)
        # As for every reader: while nobody had given way, the coordinator's lock reached up to its own.
        if not reader.try_lock(incoming.job.mapping.relation) or self.given_way.is_set():
            raise gave_way(incoming.job.table)
        return TableReader(reader, incoming.job.mapping, incoming.reading, incoming.job.table)

    def _take(self, ranges: deque[Pages]) -> Pages | None:
        with self.mutex:
            return ranges.popleft() if ranges and not (self.given_way.is_set() or self.run.stop.is_set()) else None

    def _tell_range(self, table: str) -> None:
        with self.mutex:
            self.ranges_read[table] += 1
            self._tell_parts(table)

    def _tell_landed(self, table: str) -> None:
        self.ranges_read[table] = len(self.ranges.get(table, ()))
        self._tell_parts(table)

    def _tell_parts(self, table: str) -> None:
        """Tell how many parts are done: ranges that are read, and tables that have landed."""
        landed = len(self.run.records) - len(self.left)
        parts = len(self.run.records) + sum(len(ranges) for ranges in self.ranges.values())
        self.run.progress(table, landed + self.ranges_read.total(), parts)


class _Counted:
    """The pieces of a COPY that is under way; `rows` once they have all been taken."""

    def __init__(self, pieces: Generator[bytes, None, int]) -> None:
        self._pieces, self.rows = pieces, 0

    def __iter__(self) -> Iterator[bytes]:
        self.rows = yield from self._pieces


def _copy(pieces: Generator[bytes, None, int], connection: Connection, into: sql.Composed) -> Filled:
    first = next(pieces, None)
    if first is None:
        return Filled()
    rest, copied_bytes = _Counted(pieces), 0
    with connection.cursor() as cursor:
        with cursor.copy(into) as copy:
            for piece in chain((first,), rest):
                copy.write(piece)
                copied_bytes += len(piece)
        return Filled(rest.rows, cursor.rowcount, copied_bytes)
