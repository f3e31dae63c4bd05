"""One key looked at on both sides, with all that lies between them. It reads, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from replicator.apply.control import Control
from replicator.apply.evolve import Evolution
from replicator.apply.job import Job
from replicator.apply.merge import DELETED_AT
from replicator.apply.stream_control import ListenerState, StreamControl
from replicator.apply.target import find_equality, fit_reading, plan_job_enums, plan_target, spell_columns
from replicator.apply.types import resolve_types
from replicator.capture.pull import Access, set_up_read, take_snapshot
from replicator.catalog import format_types, read_relation
from replicator.config.settings import Settings
from replicator.db import Connection, translated
from replicator.errors import DataRefused, ReplicatorError, UsageError
from replicator.reading import INCREMENTAL, Reading
from replicator.relation import Relation
from replicator.rules import MASK_KEY_SETTING, Output
from replicator.selection import format_table_name
from replicator.statement import statement
from replicator.strategy import WATERMARK, XMIN, audits_by_xmin, reads_by_xmin
from replicator.sync.inventory import Chosen, read_table_argument, take_inventory
from replicator.sync.planning import forbid_writing
from replicator.sync.preparation import decide_job, prepare_jobs
from replicator.why.reason import SETTLED, Difference, Reason, Sighting, SourceRow, Stream, TargetRow, find_reason
from replicator.why.row_query import KeyCell, find_source_row, find_target_row, map_key, try_cell

Row = dict[str, Any]
BATCHES = 5
# A change of a live stream is in the target within moments; one that stays away longer is not on its way.
_ON_ITS_WAY_S = 2.0
_LOOK_AGAIN_S = 0.2
_UNWRITABLE = frozenset({"22P05", "22021"})


@dataclass
class Answer:
    """What `why` has to tell. key: as given, in key order; batches: of the table, newest first."""

    table: str
    target: str
    key: list[str]
    key_columns: tuple[str, ...]
    seen: Sighting
    reason: Reason
    job: Job
    batches: list[Row] = field(default_factory=list)


def inquire(
    settings: Settings, access: Access, source: Connection, target: Connection, table: str, key: Sequence[str]
) -> Answer:
    """Look at one key of a table.

    source, target: sessions outside any transaction; they cannot write from here on. Raises UsageError for a table
    that is not configured, has no key, or whose key this cannot be.
    """
    inquiry = _Inquiry(settings, access, source, target)
    chosen = inquiry.choose(table)
    inquiry.prepare(chosen)
    cells = inquiry.read_key(key)
    deadline = time.monotonic() + _ON_ITS_WAY_S
    while True:
        seen = inquiry.look(cells)
        reason = find_reason(seen)
        if reason.verdict in SETTLED or not seen.stream.is_live or time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_AGAIN_S)
    job = inquiry.job
    columns = tuple(output.source.name for output in job.mapping.key_outputs)
    return Answer(
        job.table, format_table_name(*job.target), list(key), columns, seen, reason, job, inquiry.read_batches()
    )


class _Inquiry:
    """The two sessions, and what is known of the table."""

    def __init__(self, settings: Settings, access: Access, source: Connection, target: Connection) -> None:
        self.settings, self.access, self.source, self.target = settings, access.narrow(source), source, target
        self.control = Control(target, settings.target.control_schema, settings.pipeline)
        self.streams = StreamControl(target, settings.target.control_schema, settings.pipeline)
        wait = sql.SQL("SET lock_timeout = {}").format(sql.Literal(f"{access.lock_timeout_s * 1000:.0f}ms"))
        with translated("target"):
            forbid_writing(target)
            target.execute(wait)
            self.has_control = self.control.exists()
            self.has_streams = self.has_control and not self.control.list_pending()
        with translated("source"):
            forbid_writing(source)
            source.execute(wait)
            if access.mask_key is not None:
                source.execute(statement("session.set"), {"name": MASK_KEY_SETTING, "value": access.mask_key.hex()})

    def choose(self, table: str) -> Chosen:
        """Return the table of the configuration. Raises UsageError, or what the source lacks of it."""
        with translated("source"):
            inventory = take_inventory(self.source, self.settings, [table])
        for error in inventory.missing.values():
            raise error
        assert inventory.tables, read_table_argument(table)
        return inventory.tables[0]

    def prepare(self, chosen: Chosen) -> None:
        """Compile the table's rules and look at its target. Raises UsageError for a table without a key."""
        with translated("target", chosen.table):
            records = self.control.read_records() if self.has_control else {}
        with translated("source", chosen.table):
            jobs = prepare_jobs(self.source, [chosen], records, mask_key=self.access.mask_key)
        self.job = job = jobs[chosen.table]
        if not job.mapping.key:
            raise UsageError(
                f"{job.table} has no key",
                why="its rows are compared as a multiset: none of them is another's counterpart",
                hint="configure a key for the table, or compare it whole: replicator verify",
                table=job.table,
            )
        with translated("target", chosen.table):
            self.existing = read_relation(self.target, *job.target)
            self.evolution: Evolution | None = None
            self.problem = self._find_problem()
            self._fit_columns()
        self.reading = self._decide()

    def _find_problem(self) -> ReplicatorError | None:
        """Return what would stop the next sync at the target."""
        try:
            enums = plan_job_enums(self.target, self.job)
            self.evolution, _, _ = plan_target(self.target, self.job, enums)
        except ReplicatorError as error:
            return error
        return None

    def _fit_columns(self) -> None:
        """Sort the outputs into those that the target has, with the casts to its types, and those that it lacks."""
        job = self.job
        self.outputs: list[Output] = list(job.mapping.outputs)
        self.casts: dict[str, str] = {}
        self.lacking: tuple[str, ...] = ()
        self.current: dict[str, str] = {}
        if self.existing is None:
            return
        self.current = spell_columns(self.target, self.existing)
        types = resolve_types(self.target, job.mapping.outputs, job.mapping.relation.types)
        self.outputs = [
            o for o in job.mapping.outputs if o.name in self.current and not self.existing.by_name[o.name].generated
        ]
        if job.settings.on_schema_change != "ignore":
            self.lacking = tuple(o.name for o in job.mapping.outputs if o.name not in self.current)
        self.casts = {
            o.name: self.current[o.name]
            for o in self.outputs
            if self.current[o.name] != types[o.name].spelling and self.current[o.name] != "text"
        }

    def _decide(self) -> Reading | None:
        """Return what the next sync would read; None, with the problem noted, where it would stop."""
        try:
            with translated("source"):
                snapshot = take_snapshot(self.access, self.source, [])
            snapshot.close()
            with translated("target"):
                kept = self.control.read_observations(snapshot.facts.system_identifier) if self.has_control else []
            reading = decide_job(self.job, snapshot.facts, [snapshot.observation, *kept], full=False)
        except ReplicatorError as error:
            self.problem = self.problem or error
            return None
        return reading if self.evolution is None else fit_reading(reading, self.job, self.evolution, self.existing)

    def read_key(self, key: Sequence[str]) -> list[KeyCell]:
        """Let the source read the key's texts. Raises UsageError, which does not repeat them."""
        mapping = self.job.mapping
        columns = [output.source for output in mapping.key_outputs]
        names = [column.name for column in columns]
        if len(key) != len(columns):
            raise UsageError(
                f"the key of {self.job.table} has {len(columns)} values, {len(key)} were given",
                why=f"its columns are {', '.join(names)}, in this order",
                hint=f"replicator why '{self.job.table}' {' '.join(name.upper() for name in names)}",
                table=self.job.table,
            )
        with translated("source", self.job.table):
            spellings = format_types(self.source, [(column.type_oid, -1) for column in columns])
        equality = find_equality(mapping.relation, names)
        return [
            self._read_cell(KeyCell(name, text, spelling, same), place)
            for place, (name, text, spelling, same) in enumerate(zip(names, key, spellings, equality, strict=True), 1)
        ]

    def _read_cell(self, cell: KeyCell, place: int) -> KeyCell:
        try:
            self.source.execute(try_cell(cell))
        except psycopg.errors.UndefinedFunction:
            if cell.equality is None:
                raise
            return self._read_cell(KeyCell(cell.column, cell.text, cell.spelling, None), place)
        except psycopg.Error as error:
            if error.sqlstate is None or self.source.closed:
                raise
            what = f"is no {cell.spelling}"
            if error.sqlstate in _UNWRITABLE:
                what = "has a character that the source's encoding lacks"
            raise UsageError(
                f"value {place} of the key {what}",
                why=f"column {cell.column} has that type (SQLSTATE {error.sqlstate})",
                hint="write it as PostgreSQL would",
                sqlstate=error.sqlstate,
                table=self.job.table,
            ) from None
        return cell

    def look(self, cells: Sequence[KeyCell]) -> Sighting:
        """Look at the row on both sides, and at what waits for it."""
        job = self.job
        seen = Sighting(
            table=job.table,
            state=job.record.state,
            deletes=job.settings.deletes,
            audit_every=job.settings.audit_every,
            target_exists=self.existing is not None,
            lacking=self.lacking,
            reading=self.reading,
            problem=self.problem,
        )
        with translated("target", job.table):
            state = self._look_at_stream(seen)
        with translated("source", job.table):
            self._look_at_source(seen, cells, self._mark_by(state) if seen.stream.holds else self.reading)
        with translated("target", job.table):
            self._look_at_target(seen)
            self._look_at_control(seen)
        return seen

    def _look_at_stream(self, seen: Sighting) -> ListenerState | None:
        state = self.streams.read_state() if self.has_streams else None
        if state is not None and state.position is not None:
            holds = self.job.table in self.streams.read_tables()
            is_live = self.streams.is_listening()
            seen.stream = Stream(holds, is_live, str(state.position), state.fresh_at)
        return state

    def _mark_by(self, state: ListenerState | None) -> Reading | None:
        """Return the reading of what the listener may not have brought yet."""
        if state is None or state.repair_xid is None or not reads_by_xmin(self.job.mapping.relation):
            return None
        return Reading(INCREMENTAL, XMIN, state.repair_xid, None, False, None, "")

    def _look_at_source(self, seen: Sighting, cells: Sequence[KeyCell], reading: Reading | None) -> None:
        mapping, audited = self.job.mapping, self.job.record.state.audit_xid_position
        audit = None
        if audited is not None and audits_by_xmin(mapping, self.job.settings):
            audit = Reading(INCREMENTAL, WATERMARK, audited, None, True, None, "")
        query = find_source_row(mapping, cells, self.outputs, self.casts, reading, audit)
        try:
            with self.source.transaction(), translated("source", self.job.table):
                set_up_read(self.source, self.access)
                rows = self.source.execute(query).fetchall()
        except DataRefused as error:
            seen.refusal, seen.target_key = error, self._map_key(cells)
            return
        seen.rows_source = len(rows)
        if not rows:
            seen.target_key = self._map_key(cells)
            return
        row = rows[0]
        seen.target_key = tuple(row[str(-1 - n)] for n in range(len(cells)))
        seen.source = SourceRow(
            key=seen.target_key,
            values={output.name: row[str(n)] for n, output in enumerate(self.outputs)},
            satisfies=row["satisfies"],
            is_young=row["is_young"],
            is_due=row["is_due"],
            is_unaudited=row["is_unaudited"],
        )

    def _map_key(self, cells: Sequence[KeyCell]) -> tuple[str | None, ...] | None:
        """Return what the rules make of the key; None where a mask asks for other columns of the row."""
        try:
            row = self.source.execute(map_key(self.job.mapping, cells)).fetchone()
        except psycopg.errors.UndefinedColumn:
            return None
        assert row is not None
        return tuple(row[str(n)] for n in range(len(cells)))

    def _look_at_target(self, seen: Sighting) -> None:
        key = self.job.mapping.key
        if self.existing is None or seen.target_key is None or not set(key) <= self.current.keys():
            return
        # Without their modifiers: a cast to varchar(3) would cut a longer text, and find another row.
        bases = [self.existing.find_base(self.existing.by_name[name])[0] for name in key]
        spellings = format_types(self.target, [(oid, -1) for oid in bases])
        equality = find_equality(self.existing, key)
        cells = [
            KeyCell(name, text, spelling, same)
            for name, text, spelling, same in zip(key, seen.target_key, spellings, equality, strict=True)
            if text is not None
        ]
        if len(cells) < len(key):
            return
        soft = self.job.settings.deletes == "soft" and DELETED_AT in self.current
        names = [output.name for output in self.outputs]
        rows = self._find_target_rows(self.existing, cells, names, [DELETED_AT] if soft else [])
        seen.rows_target = len(rows)
        if rows:
            values = {name: rows[0][str(n)] for n, name in enumerate(names)}
            seen.target = TargetRow(values, rows[0][str(len(names))] if soft else None)
            if seen.source is not None:
                seen.differences = self._compare(seen.source.values, values)

    def _find_target_rows(
        self, existing: Relation, cells: list[KeyCell], names: list[str], extra: list[str]
    ) -> list[Row]:
        table = sql.Identifier(existing.schema, existing.name)
        try:
            return self.target.execute(find_target_row(table, cells, names, extra)).fetchall()
        except psycopg.errors.UndefinedFunction:
            plain = [KeyCell(cell.column, cell.text, cell.spelling, None) for cell in cells]
            return self.target.execute(find_target_row(table, plain, names, extra)).fetchall()

    def _compare(self, source: dict[str, str | None], target: dict[str, str | None]) -> list[Difference]:
        return [
            Difference(o.name, o.source.name, source[o.name], target[o.name])
            for o in self.outputs
            if source[o.name] != target[o.name]
        ]

    def _look_at_control(self, seen: Sighting) -> None:
        if not self.has_control:
            return
        seen.last_batch = self.control.read_last_batches().get(self.job.table)
        if self.has_streams and seen.target_key is not None:
            for row in self.streams.read_quarantine():
                if row["table_name"] == self.job.table and tuple(row["key"]) == seen.target_key:
                    seen.quarantined = row
            for refused in self.streams.read_refused():
                if (refused["table_name"], tuple(refused["key"] or ())) == (self.job.table, seen.target_key):
                    seen.refused = refused

    def read_batches(self) -> list[Row]:
        """Return the table's last batches, newest first."""
        with translated("target"):
            return self.control.read_history(self.job.table, BATCHES) if self.has_control else []
