"""The loading of one table inside the group's transaction: what tables with and without a key have in common."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from replicator.apply import merge
from replicator.apply.control import label_enums
from replicator.apply.dependent import run_ddl
from replicator.apply.job import Incoming, Job, Session
from replicator.apply.ownership import claim_target
from replicator.apply.rekey import clear_rows, unfit_rows
from replicator.apply.sequence import Fed, find_sequences
from replicator.apply.target import (
    check_apart,
    describe_target,
    find_triggers,
    fit_reading,
    plan_target,
    read_in_full,
    record_columns,
)
from replicator.batch import Figures, Totals
from replicator.catalog import is_referenced, read_relation
from replicator.errors import DataRefused, PassingError, SafetyStop
from replicator.relation import Relation
from replicator.selection import format_table_name
from replicator.strategy import FULL

SMALL_DELETE_ROWS = 1000


@dataclass
class TableLoad(ABC):
    """The loading of one table inside the group's transaction; how changes are told apart is the subclass's."""

    session: Session
    incoming: Incoming
    attempts: int
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        self.job = self.incoming.job
        self.reading = self.incoming.reading
        self.started_at = datetime.now(UTC)
        self.target_name = format_table_name(*self.job.target)
        number = self.job.batch_id
        self.staging, self.keys = f"replicator_staging_{number}", f"replicator_keys_{number}"
        self.filled_directly = False
        self.staged = 0
        self.has_staging = False
        self.proved: Sequence[int] = ()
        self.audited = self.reading.load_type == FULL or self.reading.audit
        self.sequences: list[Fed] = []

    def _run(self, statement: sql.Composed) -> int:
        return self.session.connection.execute(statement).rowcount

    def _count(self, statement: sql.Composed) -> int:
        row = self.session.connection.execute(statement).fetchone()
        return int(row["rows"]) if row else 0

    def _total(self, statement: sql.Composed) -> Totals:
        row = self.session.connection.execute(statement).fetchone()
        return Totals(row["rows"], int(row["digest"])) if row else Totals()

    def _totals(self, statement: sql.Composed) -> dict[int, Totals]:
        rows = self.session.connection.execute(statement).fetchall()
        return {row["bucket"]: Totals(row["rows"], int(row["digest"])) for row in rows}

    def prepare(self) -> None:
        """Fence, run the DDL that the source's columns ask for, and learn the target's shape."""
        control = self.session.control
        control.fence(self.job.record)
        if not control.lock_table(self.job.table):
            raise PassingError(
                f"{self.job.table} is held by another command",
                why="its table lock is taken",
                hint="it is tried again by itself",
                id="table_locked",
                sqlstate="55P03",
                table=self.job.table,
            )
        with self.figures.phase("prepare"):
            check_apart(self.session.connection, self.job, is_source=self.session.is_source)
            claim_target(control, self.job)
            evolution, existing, types = plan_target(self.session.connection, self.job, rebuilds=self.session.rebuilds)
            self.evolution = evolution
            if evolution.empties and existing is not None:
                self._empty(existing)
            ddl = (*evolution.before, *evolution.reindexes)
            run_ddl(self.session.connection, self.job, existing, ddl)
            if ddl or existing is None:
                existing = read_relation(self.session.connection, *self.job.target)
            if existing is None:
                raise DataRefused(f"the target of {self.job.table} went away", table=self.job.table)
            self.relation = existing
            self.triggers = [] if evolution.creates else find_triggers(self.session.connection, self.job, existing)
            self.target, self.shape = describe_target(
                self.session.connection, self.job, existing, types, evolution, self.session.digest
            )
            self.reading = fit_reading(self.reading, self.job, evolution, existing)
            self.audited = self.audited or self.reading.load_type == FULL
            self.recorded = record_columns(self.job, existing, types, evolution)
            if self.job.settings.sync_sequences:
                spellings = {column.name: column.spelling for column in self.target.columns}
                self.sequences = find_sequences(self.session.connection, self.job.table, existing, spellings)

    def _read_all(self, reason: str) -> None:
        """Read the table in full after all."""
        if self.reading.load_type != FULL:
            self.reading = read_in_full(self.reading, reason)
        self.audited = True

    def stage(self) -> None:
        """Bring what may have changed into staging, or straight into a table that is empty."""
        if self.evolution.replaces:
            self._clear()
        is_empty = self.evolution.creates or not self._has_rows()
        # COPY has no way to say "no columns" to a table that has some of its own.
        if self.reading.load_type == FULL and is_empty and self.target.columns and self._may_fill_directly:
            self._fill_directly()
        else:
            self._stage_changes()

    @property
    def _may_fill_directly(self) -> bool:
        return True

    @abstractmethod
    def _stage_changes(self) -> None:
        """Bring what may have changed into staging."""

    @abstractmethod
    def write(self) -> None:
        """Insert and update what was staged."""

    @abstractmethod
    def remove(self) -> None:
        """Delete what the source no longer has."""

    @abstractmethod
    def audit(self) -> None:
        """Find and repair what the reading could not see."""

    def _empty(self, existing: Relation) -> None:
        """Delete every row ahead of the DDL, under the stops: the source has as many, less those that are gone."""
        table = sql.Identifier(existing.schema, existing.name)
        if not self.session.replica and is_referenced(self.session.connection, existing.oid):
            raise unfit_rows(self.job, "a foreign key refers to them", clear_rows(table))
        here = self._count(sql.SQL("SELECT count(*) AS rows FROM {}").format(table))
        there = self.incoming.source.count_rows()
        self._check_source_has_rows(there, here)
        self._check_deletes(max(0, here - there), here)
        self.figures.rows_deleted += self._run(sql.SQL("DELETE FROM {}").format(table))

    def _clear(self) -> None:
        """Delete every row, under the stops: the source has as many, less those that are gone from it."""
        connection, oid = self.session.connection, self.relation.oid
        if not self.session.replica and is_referenced(connection, oid):
            raise unfit_rows(self.job, "a foreign key refers to them", clear_rows(self.target.table))
        with self.figures.phase("delete"):
            here = self._count(merge.sum_target(self.target, sql.SQL("0")))
            there = self.incoming.source.sum_rows(self.shape, by_row=False).rows
            self._check_source_has_rows(there, here)
            self._check_deletes(max(0, here - there), here)
            self.figures.rows_deleted += self._run(sql.SQL("DELETE FROM {}").format(self.target.table))

    def _has_rows(self) -> bool:
        return self.session.connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(self.target.table)).rowcount > 0

    def _fill_directly(self) -> None:
        names = [column.name for column in self.target.columns]
        into = merge.copy_into(self.target.table, names, binary=self.shape.binary, freeze=self.evolution.creates)
        with self.figures.phase("copy"):
            rows = self._copy(into, self.incoming.source.read_all(self.shape))
        self.figures.rows_extracted = self.figures.rows_inserted = rows
        self.filled_directly = True
        if self.triggers:
            self._compare_all()
        with self.figures.phase("index"):
            for ddl in self.evolution.after:
                self._index(ddl)

    def _compare_all(self) -> None:
        """Raise DataRefused unless the target's rows are the source's."""
        there = self.incoming.source.sum_rows(self.shape, by_row=True)
        here = self._total(merge.sum_target(self.target, merge.hash_row(self.target, "t", self.shape.digest)))
        if there != here:
            raise self._interference()

    def _interference(self) -> DataRefused:
        target = sql.Identifier(*self.job.target).as_string()
        mends = [f"alter table {target} disable trigger {sql.Identifier(name).as_string()}" for name in self.triggers]
        return DataRefused(
            f"a trigger of the target changed or dropped rows of {self.job.table}",
            why=f"what was written is not what is there; before each row: {', '.join(self.triggers)}",
            hint="; ".join(mends),
            id="target_trigger",
            table=self.job.table,
        )

    def _index(self, ddl: sql.Composed) -> None:
        try:
            self._run(ddl)
        except psycopg.errors.UniqueViolation as error:
            raise key_not_unique(self.job, error.sqlstate) from error

    def _copy_to_staging(self, name: str, pieces: Iterator[bytes], *, marks: Sequence[str] = ()) -> int:
        """Copy into a staging table, which is made only once there is a row for it; return the rows."""
        columns = [column.name for column in self.target.columns]
        return self._copy_to_new(name, columns, pieces, marks=marks)

    def _copy_to_new(
        self, name: str, columns: Sequence[str], pieces: Iterator[bytes], *, marks: Sequence[str] = ()
    ) -> int:
        with self.figures.phase("copy"):
            first = next(pieces, None)
            if first is None:
                return 0
            self._run(merge.create_staging(self.target, name, columns, marks))
            into = merge.copy_into(merge.staging_name(name), [*columns, *marks], binary=self.shape.binary)
            rows = self._copy(into, _chain(first, pieces))
        if name == self.staging:
            self.figures.rows_extracted += rows
        return rows

    def _copy(self, into: sql.Composed, pieces: Iterator[bytes]) -> int:
        with self.session.connection.cursor() as cursor:
            with cursor.copy(into) as copy:
                for piece in pieces:
                    copy.write(piece)
                    self.figures.bytes_copied += len(piece)
            return cursor.rowcount

    def _ensure_staging(self) -> None:
        if self.staged == 0 and not self.has_staging:
            self._run(merge.create_staging(self.target, self.staging, [c.name for c in self.target.columns]))
            self.has_staging = True

    def _check_source_has_rows(self, there: int, here: int) -> None:
        is_allowed = here <= self.session.allowed_deletes or self.job.settings.max_delete_fraction >= 1.0
        if there == 0 and not is_allowed:
            raise SafetyStop(
                f"{self.job.table} is empty in the source, {here} rows are in the target",
                why=self._explain_allowance() or "an emptied or wrong source would empty the target",
                hint=self._hint_at_deletes(here, "set max_delete_fraction = 1.0"),
                id="source_empty",
                table=self.job.table,
            )

    def _check_deletes(self, gone: int, here: int) -> None:
        fraction = self.job.settings.max_delete_fraction
        if fraction < 1.0 and gone > max(SMALL_DELETE_ROWS, fraction * here, self.session.allowed_deletes):
            raise SafetyStop(
                f"{gone} of {here} rows of {self.job.table} would be deleted",
                why=self._explain_allowance() or f"max_delete_fraction is {fraction:g}",
                hint=self._hint_at_deletes(gone, "raise max_delete_fraction (1.0 switches the stop off)"),
                id="too_many_deletes",
                table=self.job.table,
            )

    def _explain_allowance(self) -> str:
        """Return that the run's allowance is too small; nothing where it has none."""
        allowed = self.session.allowed_deletes
        return f"--allow-deletes {allowed} does not cover them" if allowed else ""

    def _hint_at_deletes(self, gone: int, setting: str) -> str:
        command = f"replicator sync {shlex.quote(self.job.table)} --allow-deletes {gone}"
        return f"if it is right: {command}; or {setting} for the table"

    def finish(self) -> None:
        """Write position and record, in the same transaction as the data."""
        self.session.control.save_batch(
            self.job.record,
            self.job.batch_id,
            target=self.target_name,
            guarantee=self.job.choice.guarantee,
            fingerprint=self.job.fingerprint,
            reading=self.reading,
            facts=self.incoming.facts,
            figures=self.figures,
            columns=self.recorded,
            enum_labels=label_enums(self.job.mapping.relation),
            source_oid=self.job.mapping.relation.oid,
            created=self.evolution.creates,
            audited=self.audited,
            started_at=self.started_at,
            attempts=self.attempts,
        )
        self.session.control.save_proof(self.job.table, self.proved, self.incoming.facts.clock)


def key_not_unique(job: Job, sqlstate: str | None = None) -> DataRefused:
    """Return the error of a configured key that names two rows of the source."""
    return DataRefused(
        f"the key ({', '.join(job.mapping.key)}) of {job.table} is not unique in the source",
        why="two rows would be one row of the target",
        hint="configure another key for the table",
        id="key_not_unique",
        sqlstate=sqlstate,
        table=job.table,
    )


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
