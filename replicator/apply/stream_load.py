"""The one transaction in which changes of the stream reach the target, with the position that they lead to.

Order inside it: fence, DDL that a new shape asks for, every table's changes, `etl_control`, position, COMMIT. A batch
that ends inside a transaction of the source leaves it open, so a transaction of any size lands whole or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import zip_longest
from uuid import UUID

import psycopg

from replicator.apply.change_load import ChangeLoad, LiveTable, key_cells, make_load
from replicator.apply.control import Control
from replicator.apply.job import Job
from replicator.apply.sequence import Fed, move_sequences
from replicator.apply.staging import Staging
from replicator.apply.stream_control import StreamControl
from replicator.apply.target import describe_target, find_triggers, order_by_foreign_keys, plan_target, record_columns
from replicator.batch import Figures
from replicator.catalog import read_relation
from replicator.changes import Changes, KeyText, RowFinder, Segment, halve, split_gone
from replicator.db import TAKEN, Connection, translated
from replicator.digest import Digest
from replicator.errors import DataRefused
from replicator.fold import GONE, UNKNOWN, KeyedFold
from replicator.position import Lsn

_CAREFUL_BATCHES = 200
"""Where one batch had to be brought in anew, with savepoints, the next may have to as well."""


@dataclass
class Landed:
    """What a COMMIT brought: the position that may be confirmed, and the figures by table.

    corrected: by table, how many rows the target refused as the stream had them, and took as they are now.
    """

    position: Lsn
    transactions: int
    figures: dict[str, Figures] = field(default_factory=dict)
    corrected: Counter[str] = field(default_factory=Counter)


class StreamLoader:
    """Loads changes of the stream on one connection. replica: triggers and foreign keys do not fire in it.

    binary: cells come in the binary format of their types. refused_key: of the row that made the last load fail, as the
    bytes that came; None when it was not a row, or one without a key.
    """

    def __init__(
        self,
        connection: Connection,
        control: StreamControl,
        table_control: Control,
        finder: RowFinder,
        execution_id: UUID,
        *,
        replica: bool,
        digest: Digest,
        binary: bool,
    ) -> None:
        self.connection, self.control, self.table_control, self.finder = connection, control, table_control, finder
        self.execution_id, self.replica, self.digest, self.binary = execution_id, replica, digest, binary
        self.staging = Staging(connection)
        self._shapes: dict[tuple[str, int], Job] = {}
        self._live: dict[str, LiveTable] = {}
        self._sequences: dict[str, tuple[Fed, ...]] = {}
        self._figures: dict[str, Figures] = {}
        self._corrected: Counter[str] = Counter()
        self._locked: set[str] = set()
        self.refused_key: KeyText | None = None
        self._started_at: datetime | None = None
        self._order: list[str] | None = None
        self._position: Lsn | None = None
        self._careful = True
        self._careful_batches = 0

    def introduce(self, job: Job, version: int) -> None:
        """Tell of a table's shape ahead of its first changes; its DDL runs with them. From any thread."""
        self._shapes[job.table, version] = job

    def follow_sequences(self, table: str, sequences: tuple[Fed, ...]) -> None:
        """Tell of a table's sequences. Each batch moves those that cost it no scan."""
        if sequences:
            self._sequences[table] = sequences

    def move_sequences(self) -> None:
        """Move every sequence past what is there, in a transaction of its own."""
        if self._sequences:
            with translating(), self.connection.transaction():
                move_sequences(self.connection, [fed for group in self._sequences.values() for fed in group])

    def _move_cheap_sequences(self) -> None:
        """Move the sequences of the tables that got rows, where an index knows the highest value."""
        grown = [table for table, figures in self._figures.items() if figures.rows_inserted or figures.rows_updated]
        fed = [one for table in grown for one in self._sequences.get(table, ()) if one.is_indexed]
        move_sequences(self.connection, fed)

    @property
    def is_open(self) -> bool:
        """Say whether a transaction waits for its rest."""
        return self._started_at is not None

    def load(self, changes: Changes) -> Landed | None:
        """Bring changes in, and COMMIT unless the last transaction is still open; then return None.

        Raises our errors, with nothing changed.
        """
        self.refused_key = None
        is_whole = not (self.is_open or changes.is_open)
        # A savepoint is a way to the server and back; it takes a refused row, or two rows that trade a unique value.
        self._careful_batches = max(self._careful_batches - 1, 0)
        careful = not is_whole or self._careful_batches > 0 or self._may_quarantine(changes)
        try:
            try:
                self._bring(changes, careful=careful)
            except DataRefused:
                if careful:
                    raise
                self.abandon()
                self._careful_batches = _CAREFUL_BATCHES
                self._bring(changes, careful=True)
        except BaseException:
            self.abandon()
            raise
        if changes.is_open:
            return None
        assert changes.position is not None
        landed = Landed(changes.position, changes.transactions, self._figures, self._corrected)
        self._settle(committed=True)
        return landed

    def _may_quarantine(self, changes: Changes) -> bool:
        return any(
            self._shapes[table, segment.version].settings.on_row_error == "quarantine"
            for table, segments in changes.segments.items()
            for segment in segments
        )

    def _bring(self, changes: Changes, *, careful: bool) -> None:
        """Bring changes in, and COMMIT unless the last transaction is still open.

        careful: in savepoints, so that a refused row can be looked for, and unique values traded.
        """
        # Also what has no table to name: a savepoint, or the look at foreign keys.
        with translating():
            self._begin()
            self._position, self._careful = changes.position, careful
            self._apply_segments(changes)
            if changes.is_open:
                return
            assert changes.position is not None
            self._finish(changes, changes.position)
            self.connection.execute("COMMIT")

    def abandon(self) -> None:
        """Roll back what is open, if anything is."""
        with suppress(psycopg.Error):
            if self._started_at is not None and not self.connection.closed:
                self.connection.execute("ROLLBACK")
        self._settle(committed=False)

    def _settle(self, *, committed: bool) -> None:
        self.staging.settle(committed=committed)
        self.control.settle(committed=committed)
        if not committed:
            self._live.clear()
            self._order = None
        self._started_at = None
        self._figures = {}
        self._corrected = Counter()
        self._locked = set()

    def _begin(self) -> None:
        if self._started_at is not None:
            return
        self._started_at = datetime.now(UTC)
        with translating():
            with self.connection.pipeline():
                self.connection.execute("BEGIN")
                self.control.fence()
            self.staging.trim()

    def _apply_segments(self, changes: Changes) -> None:
        """Apply the segments in waves: what precedes a table's new shape lands before what follows it."""
        for wave in zip_longest(*changes.segments.values()):
            pairs = zip(changes.segments, wave, strict=True)
            self._apply_wave([(table, segment) for table, segment in pairs if segment is not None])

    def _apply_wave(self, wave: Sequence[tuple[str, Segment]]) -> None:
        loads = self._in_order([(table, self._open_load(table, segment)) for table, segment in wave])
        groups = [[pair] for pair in loads] if self.replica else [loads]
        for group in groups:
            if self._careful:
                self._apply_or_sieve(group)
            else:
                self._apply_group(group)

    def _apply_group(self, group: Sequence[tuple[str, ChangeLoad]]) -> None:
        """Bring tables in; without the replica role foreign keys decide the order in which they are written."""
        for table, load in group:
            with translating(table):
                load.stage()
        with translating(group[0][0] if len(group) == 1 else None):
            self._land([load for _, load in group], spare=not self.replica)

    def _apply_or_sieve(self, group: Sequence[tuple[str, ChangeLoad]]) -> None:
        """Bring tables in; if a row is refused, bring in all others and look again at that one."""
        before = [replace(load.figures) for _, load in group]
        if self._attempt(lambda: self._apply_group(group)) is None:
            return
        for (_, load), counted in zip(group, before, strict=True):
            load.figures.restore(counted)
        parts = [(table, load, *split_gone(load.segment)) for table, load in group]
        if self.replica:
            for table, load, gone, written in parts:
                self._sieve(table, load, gone)
                self._sieve(table, load, written)
            return
        for table, load, _, written in parts:
            self._sieve(table, load, written)
        for table, load, gone, _ in reversed(parts):
            self._sieve(table, load, gone)

    def _sieve(self, table: str, load: ChangeLoad, segment: Segment | None) -> None:
        """Bring in what the target takes of a segment, by halves, and look again at each row that it refuses."""
        if segment is None:
            return
        error = self._try_part(table, load, segment)
        if error is None:
            return
        halves = halve(segment)
        if halves is not None:
            for half in halves:
                self._sieve(table, load, half)
            return
        if not isinstance(segment.fold, KeyedFold) or not segment.fold.rows:
            raise error
        self._look_again(table, load, segment, error)

    def _look_again(self, table: str, load: ChangeLoad, segment: Segment, error: DataRefused) -> None:
        """Bring in a refused row as the source has it now; one that is refused like that too is put aside, or stops.

        What the WAL holds of it nobody can correct, what the source holds its owner can.
        """
        assert isinstance(segment.fold, KeyedFold)
        ((key, row),) = segment.fold.rows.items()
        if row is not GONE and row is not UNKNOWN:
            again = self._try_part(table, load, Segment(segment.version, KeyedFold({key: UNKNOWN})))
            if again is None:
                self._corrected[table] += 1
                return
            error = again
        if not load.quarantines:
            self.refused_key = key_cells(key)
            raise error
        with translating(table):
            self.control.quarantine(table, key_cells(key), self._position, error)
        load.figures.rows_quarantined += 1

    def _try_part(self, table: str, load: ChangeLoad, segment: Segment) -> DataRefused | None:
        """Bring a part of a load in; return the error of a row that was refused, with all of the part undone."""
        counted = replace(load.figures)
        part = self._make_load(table, segment)
        error = self._attempt(lambda: self._apply_group([(table, part)]))
        if error is not None:
            load.figures.restore(counted)
        return error

    def _attempt(self, act: Callable[[], None]) -> DataRefused | None:
        """Do something in a savepoint; return the error of a refused row, with all of it undone."""
        mark = self.staging.mark()
        try:
            with self.connection.transaction():
                act()
        except DataRefused as error:
            self.staging.rewind(mark)
            return error
        return None

    def _land(self, loads: list[ChangeLoad], *, spare: bool) -> None:
        """Write and delete; where rows trade unique values, take them out first and put them in after."""
        if not self._careful:
            self._write_first(loads) if spare else self._remove_first(loads)
            return
        before = [replace(load.figures) for load in loads]
        with suppress(*TAKEN), self.connection.transaction():
            self._write_first(loads) if spare else self._remove_first(loads)
            return
        for load, counted in zip(loads, before, strict=True):
            load.figures.restore(counted)
        with self.connection.transaction():
            self._remove_first(loads, trades=self.replica)

    @staticmethod
    def _write_first(loads: list[ChangeLoad]) -> None:
        for load in reversed(loads):
            load.clear()
        for load in loads:
            load.write()
        for load in reversed(loads):
            load.remove(spare=True)

    @staticmethod
    def _remove_first(loads: list[ChangeLoad], *, trades: bool = False) -> None:
        for load in reversed(loads):
            load.clear()
            load.remove(spare=False)
        for load in loads:
            if trades:
                load.exchange()
            else:
                load.write()

    def _open_load(self, table: str, segment: Segment) -> ChangeLoad:
        self.lock_table(table)
        load = self._make_load(table, segment)
        load.figures.rows_extracted += segment.count
        if load.quarantines:
            with translating(table):
                self._set_waiting_aside(table, segment, load)
        return load

    def _make_load(self, table: str, segment: Segment) -> ChangeLoad:
        with translating(table):
            live = self.open_table(table, segment.version)
        figures = self._figures.setdefault(table, Figures())
        return make_load(self.connection, self.staging, live, segment, figures, self.finder)

    def _set_waiting_aside(self, table: str, segment: Segment, load: ChangeLoad) -> None:
        """Let changes of keys in quarantine wait behind them: the row is read again when it is retried."""
        assert isinstance(segment.fold, KeyedFold)
        waiting = self.control.read_waiting_keys(table)
        for key in [key for key in segment.fold.rows if key_cells(key) in waiting]:
            del segment.fold.rows[key]
            self.control.touch_waiting(table, key_cells(key), self._position)
            load.figures.rows_quarantined += 1

    def lock_table(self, table: str) -> None:
        """Take the table's lock until the transaction ends: a sync that is at it has to finish first."""
        if table not in self._locked:
            with translating(table):
                self.table_control.wait_for_table(table)
            self._locked.add(table)

    def open_table(self, table: str, version: int) -> LiveTable:
        """Return the table in this shape, after the DDL that lets the target take it."""
        live = self._live.get(table)
        if live is None or live.version != version:
            live = self._fit(self._shapes[table, version], version)
            self._live[table] = live
            self._order = None
        return live

    def _fit(self, job: Job, version: int) -> LiveTable:
        evolution, existing, types = plan_target(self.connection, job)
        if evolution.before or evolution.after or existing is None:
            for ddl in (*evolution.before, *evolution.after):
                self.connection.execute(ddl)
            existing = read_relation(self.connection, *job.target)
        if existing is None:
            raise DataRefused(f"the target of {job.table} went away", table=job.table)
        find_triggers(self.connection, job, existing)
        target, _ = describe_target(self.connection, job, existing, types, evolution, self.digest)
        self.table_control.save_shape(job.record.table, record_columns(job, types, evolution), job.mapping.relation)
        return LiveTable(job, version, target, self.binary)

    def _in_order(self, loads: list[tuple[str, ChangeLoad]]) -> list[tuple[str, ChangeLoad]]:
        """Return the loads with parents ahead of their children."""
        if self.replica:
            return loads
        if self._order is None or any(table not in self._order for table, _ in loads):
            jobs = [live.job for live in self._live.values()]
            groups = order_by_foreign_keys(self.connection, jobs)
            self._order = [job.table for group in groups for job in group]
        places = {table: place for place, table in enumerate(self._order)}
        return sorted(loads, key=lambda pair: places[pair[0]])

    def figures_of(self, table: str) -> Figures:
        """Return the figures of a table in this transaction."""
        return self._figures.setdefault(table, Figures())

    def _finish(self, changes: Changes, position: Lsn) -> None:
        assert self._started_at is not None
        with translating():
            with self.connection.pipeline():
                for table, figures in self._figures.items():
                    self.control.add_figures(
                        self.execution_id, table, figures, started_at=self._started_at, lsn=position,
                        fresh_at=changes.committed_at,
                    )  # fmt: skip
                for table in changes.stale:
                    self.control.mark_stale(table)
                for table, definition in changes.joined.items():
                    self.control.join_table(table, position, definition)
                self.control.save_position(position, changes.fresh_at, changes.repair_xid)
            self._move_cheap_sequences()


def translating(table: str | None = None) -> AbstractContextManager[None]:
    """Turn the target's errors inside the block into ours."""
    return translated("target", table)
