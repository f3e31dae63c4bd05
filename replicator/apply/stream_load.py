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
from replicator.apply.control import Control, label_enums
from replicator.apply.job import Job, explain_kept_rows
from replicator.apply.sequence import Fed, move_sequences
from replicator.apply.staging import Staging
from replicator.apply.stream_control import StreamControl
from replicator.apply.target import (
    FittedTarget,
    describe_target,
    has_rewritten_columns,
    order_by_foreign_keys,
    plan_target,
    record_columns,
    refuse_rules,
)
from replicator.apply.target_catalog import TargetCatalog, read_target_catalog
from replicator.batch import Figures
from replicator.catalog import RowChangers, list_row_changers, read_relation
from replicator.cell import is_text
from replicator.changes import Changes, KeyText, RowFinder, Segment, halve, split_gone
from replicator.db import TAKEN, Connection, translated
from replicator.digest import Digest
from replicator.errors import DataRefused, OperatorError, PassingError
from replicator.fold import GONE, UNKNOWN, KeyedFold
from replicator.position import Lsn
from replicator.relation import Relation
from replicator.strategy import stream_guarantee

TARGET_CHANGED = "target_changed"
"""The id of the error of a table whose target is not what it was when the session began."""
_CAREFUL_BATCHES = 200
"""Where one batch had to be brought in anew, with savepoints, the next may have to as well."""


@dataclass
class Landed:
    """What a COMMIT brought: the position that may be confirmed, and the figures by table.

    corrected: by table, how many rows the target refused as the stream had them, and took as they are now.
    committed_at: when the source committed the last of it; None where nothing was.
    """

    position: Lsn
    transactions: int
    figures: dict[str, Figures] = field(default_factory=dict)
    corrected: Counter[str] = field(default_factory=Counter)
    committed_at: datetime | None = None


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
        self._guarantees: dict[str, str] = {}
        self._live: dict[str, LiveTable] = {}
        self._fitted: dict[tuple[str, int], FittedTarget] = {}
        self._left_out: set[tuple[str, int]] = set()
        # By OID of the target: what was found in it that changes rows; None in one without.
        self._changers: dict[int, RowChangers | None] = {}
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

    def introduce(self, job: Job, version: int, fitted: FittedTarget | None = None) -> None:
        """Tell of a table's shape ahead of its first changes; its DDL runs with them. From any thread.

        fitted: the target, if it was looked at just now, and takes this shape as it is.
        """
        self._shapes[job.table, version] = job
        if fitted is not None:
            self._fitted[job.table, version] = fitted
        self._guarantees[job.table] = stream_guarantee(job.mapping, job.settings)

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
        except OperatorError as error:
            before = self._live.get(error.table or "")
            self.abandon()
            if before is not None and self._has_changed(before):
                why = f"somebody altered it there; SQLSTATE {error.sqlstate}"
                raise _target_altered(error.table, why, error.sqlstate) from error
            raise
        except BaseException:
            self.abandon()
            raise
        if changes.is_open:
            return None
        assert changes.position is not None
        landed = Landed(changes.position, changes.transactions, self._figures, self._corrected, changes.committed_at)
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

    def leave_out(self, table: str) -> None:
        """Take nothing more of a table in the shapes that it has had; it is read again, in another one."""
        self._left_out |= {one for one in self._shapes if one[0] == table}

    def spell_refused_key(self, table: str) -> KeyText | None:
        """Return the text of the refused row's key; None when there is no such row, or it has no key."""
        if self.refused_key is None or not self.binary:
            return self.refused_key
        job = next(job for (name, _), job in self._shapes.items() if name == table)
        with translating(table):
            relation = read_relation(self.connection, *job.target)
        if relation is None:
            return None
        oids = [relation.by_name[name].type_oid for name in job.mapping.key]
        return tuple(
            None if cell is None else self._spell(cell, oid) for cell, oid in zip(self.refused_key, oids, strict=True)
        )

    def _spell(self, cell: bytes, type_oid: int) -> bytes | None:
        """Return the text of one cell that came in its type's binary format."""
        told = self.connection.pgconn.exec_params(b"SELECT $1::text", [cell], param_types=[type_oid], param_formats=[1])
        return told.get_value(0, 0) if told.ntuples else None

    def _has_changed(self, live: LiveTable) -> bool:
        """Say whether a target is not what it was any more. It was looked at when the session began."""
        with suppress(psycopg.Error):
            try:
                evolution, existing, types = plan_target(self.connection, live.job)
                if existing is None or evolution.before:
                    return True
                now, _ = describe_target(self.connection, live.job, existing, types, evolution, self.digest)
            except OperatorError:
                return True
            return now != live.target
        return False

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
            # What went wrong may be that a target is not what it was: all are looked at again.
            self._live.clear()
            self._fitted.clear()
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
            there = [(table, segment) for table, segment in pairs if segment is not None]
            self._apply_wave([pair for pair in there if (pair[0], pair[1].version) not in self._left_out])

    def _apply_wave(self, wave: Sequence[tuple[str, Segment]]) -> None:
        self._lock_tables([table for table, _ in wave])
        self._fit_tables([(table, segment.version) for table, segment in wave])
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
        if row is GONE and not all(map(is_text, key_cells(key))):
            # The target never had it: it cannot hold such a key.
            return
        if row is not GONE and row is not UNKNOWN:
            again = self._try_part(table, load, Segment(segment.version, KeyedFold({key: UNKNOWN})))
            if again is None:
                self._corrected[table] += 1
                return
            error = again
        if not load.quarantines:
            self.refused_key = key_cells(key)
            raise explain_kept_rows(error, load.live.job, error.__cause__)
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
        load = self._make_load(table, segment)
        load.figures.rows_extracted += segment.count
        if load.quarantines:
            with translating(table):
                self._set_waiting_aside(table, segment, load)
        return load

    def _make_load(self, table: str, segment: Segment) -> ChangeLoad:
        live = self._live[table]
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

    def _lock_tables(self, tables: Sequence[str]) -> None:
        """Take the tables' locks until the transaction ends: a sync that is at one has to finish first."""
        wanted = [table for table in tables if table not in self._locked]
        if not wanted:
            return
        with translating():
            taken = self.table_control.try_tables(wanted)
        for table in taken:
            with translating(table):
                self.table_control.wait_for_table(table)
        self._locked.update(wanted)

    def _fit_tables(self, wanted: Sequence[tuple[str, int]]) -> None:
        """Let targets take the shapes that come; those that the start did not look at are looked at in one go."""
        new = [one for one in wanted if (live := self._live.get(one[0])) is None or live.version != one[1]]
        if not new:
            return
        self._order = None
        fitted = {one: self._fitted[one] for one in new if one in self._fitted}
        unknown = [one for one in new if one not in fitted]
        if unknown:
            with translating(unknown[0][0] if len(unknown) == 1 else None):
                catalog = read_target_catalog(self.connection, [self._shapes[one] for one in unknown])
            for one in unknown:
                with translating(one[0]):
                    fitted[one] = self._fit(self._shapes[one], catalog)
        self._look_for_changers(
            [fitted[one].relation for one in unknown],
            [one.relation for one in [*fitted.values(), *list(self._fitted.values())]],
        )
        for (table, version), target in fitted.items():
            with translating(table):
                self._open(self._shapes[table, version], version, target, self._changers[target.relation.oid])

    def _look_for_changers(self, anew: Sequence[Relation], once: Sequence[Relation]) -> None:
        """Find what changes rows on their way into targets: in some now, in others unless that was done before."""
        wanted = {one.oid: one for one in (*anew, *(one for one in once if one.oid not in self._changers))}
        if wanted:
            with translating():
                found = list_row_changers(self.connection, wanted.values())
            self._changers.update({oid: found.get(oid) for oid in wanted})

    def _fit(self, job: Job, catalog: TargetCatalog) -> FittedTarget:
        evolution, existing, types = plan_target(self.connection, job, catalog=catalog)
        if existing is None or evolution.adds or evolution.retypes or has_rewritten_columns(job, existing):
            raise _target_altered(job.table, "a column was dropped, made anew or given another type there")
        ddl = (*evolution.before, *evolution.reindexes, *evolution.after)
        if ddl:
            for statement in ddl:
                self.connection.execute(statement)
            existing = read_relation(self.connection, *job.target)
        if existing is None:
            raise DataRefused(f"the target of {job.table} went away", table=job.table)
        known = catalog if existing is catalog.relations.get(job.target) else None
        target, _ = describe_target(self.connection, job, existing, types, evolution, self.digest, catalog=known)
        return FittedTarget(existing, target, record_columns(job, existing, types, evolution))

    def _open(self, job: Job, version: int, fitted: FittedTarget, changers: RowChangers | None) -> None:
        """Begin to write a table in this shape, and record its columns if they are others than before."""
        refuse_rules(job, changers.rules if changers else ())
        record, relation = job.record, job.mapping.relation
        recorded = (record.columns, record.source_oid, record.enum_labels)
        if recorded != (fitted.columns, relation.oid, label_enums(relation)):
            self.table_control.save_shape(record.table, fitted.columns, relation)
        self._live[job.table] = LiveTable(job, version, fitted.target, self.binary)

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

    def _finish(self, changes: Changes, position: Lsn) -> None:
        assert self._started_at is not None
        with translating():
            with self.connection.pipeline():
                self.control.add_figures(
                    self.execution_id, self._figures, guarantees=self._guarantees, started_at=self._started_at,
                    lsn=position, fresh_at=changes.committed_at,
                )  # fmt: skip
                for table in changes.stale:
                    self.control.mark_stale(table)
                for table, definition in changes.joined.items():
                    self.control.join_table(table, position, definition)
                self.control.save_position(position, changes.fresh_at, changes.repair_xid, changes.last_commit)
            self._move_cheap_sequences()


def _target_altered(table: str | None, why: str, sqlstate: str | None = None) -> PassingError:
    return PassingError(
        f"the target of {table} changed while the listener ran",
        why=why,
        hint="nothing: the table is looked at again, and read again where that is needed",
        id=TARGET_CHANGED,
        sqlstate=sqlstate,
        table=table,
    )


def translating(table: str | None = None) -> AbstractContextManager[None]:
    """Turn the target's errors inside the block into ours."""
    return translated("target", table)
