"""What the next sync would do, table by table, found out by reading alone.

Both sessions are read-only: whatever is called from here could not write if it tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import sql

from replicator.apply.control import Control, TableRecord, list_landed
from replicator.apply.evolve import Evolution
from replicator.apply.job import Job
from replicator.apply.ownership import share_target
from replicator.apply.sequence import Fed, find_sequences, list_left
from replicator.apply.target import (
    check_apart,
    find_triggers,
    fit_reading,
    list_unwritable,
    plan_job_enums,
    plan_target,
    spell_columns,
    take_replica_role,
    write_enum_ddl,
)
from replicator.apply.types import EnumChange, Resolved
from replicator.capture.history import find_lost_markers
from replicator.capture.pull import Access, count_prepared, is_standby, observe, since_mark, since_xid, take_snapshot
from replicator.catalog import find_relations, read_relations
from replicator.config.settings import Settings
from replicator.db import Connection, translated
from replicator.errors import PreflightError, ReplicatorError
from replicator.pooler import server_pid
from replicator.reading import Observation, Reading, SnapshotFacts
from replicator.relation import Relation
from replicator.strategy import FULL, XMIN, watermark_slack
from replicator.sync.identity import is_same_database
from replicator.sync.inventory import Chosen, find_vanished, take_inventory
from replicator.sync.preparation import check_home, decide_job, find_home, prepare_job, unknown_record
from replicator.sync.rights import TargetRights, find_read_gaps
from replicator.trust import Trust, choose_reference

# Rows of a heap up to this size are counted: a scan of that many cached bytes takes a fraction of a second.
COUNTED_HEAP_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a read costs.

    rows, data_bytes: what would travel, None where only the scan itself could tell. scan_bytes: the heap, None for
    what is no heap.
    """

    rows: int | None
    data_bytes: int | None
    scan_bytes: int | None


@dataclass
class TablePlan:
    """What would happen to one table, as far as it could be found out; error: what would stop it.

    spellings: of the target's column types as they stand. left_sequences: those that `sync_sequences` cannot move.
    trust: None without a watermark.
    """

    table: str
    chosen: Chosen | None = None
    relation: Relation | None = None
    job: Job | None = None
    reading: Reading | None = None
    existing: Relation | None = None
    types: dict[str, Resolved] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)
    ddl: tuple[str, ...] = ()
    left_sequences: tuple[Fed, ...] = ()
    trust: Trust | None = None
    estimate: Estimate | None = None
    error: ReplicatorError | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The tables in order of their names, those that the source lacks last, and the moment they were looked at.

    idle_patterns: those that no table matches. vanished: known tables that a pattern finds no longer.
    """

    tables: tuple[TablePlan, ...]
    facts: SnapshotFacts
    observation: Observation
    idle_patterns: tuple[str, ...]
    vanished: tuple[str, ...]


def forbid_writing(connection: Connection) -> None:
    """Make every transaction of the session read-only from here on."""
    connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")


def make_plan(
    settings: Settings,
    access: Access,
    source: Connection,
    target: Connection,
    names: Sequence[str] = (),
    *,
    deep: bool = False,
) -> Plan:
    """Return the plan of the next sync of every table, or of those named.

    source, target: sessions outside any transaction. deep: look at every row version, however many there are. Raises
    our errors when not even a list of tables can be made.
    """
    planner = _Planner(settings, access, source, target, deep=deep)
    with translated("source"):
        inventory = take_inventory(source, settings, names)
    tables = [planner.plan_table(chosen) for chosen in planner.look_at(inventory.tables)]
    tables += [TablePlan(table, error=error) for table, error in sorted(inventory.missing.items())]
    gone = [] if names else find_vanished(settings, inventory, list_landed(planner.records))
    return Plan(tuple(tables), planner.facts, planner.observations[0], inventory.idle_patterns, tuple(gone))


class _Planner:
    """The two sessions, and what is the same for all tables."""

    def __init__(
        self, settings: Settings, access: Access, source: Connection, target: Connection, *, deep: bool
    ) -> None:
        self.access, self.source, self.target, self.deep = access.narrow(source), source, target, deep
        with translated("source"):
            forbid_writing(source)
            source.execute("SET row_security = off")
            source.execute(
                sql.SQL("SET lock_timeout = {}").format(sql.Literal(f"{access.lock_timeout_s * 1000:.0f}ms"))
            )
            self.on_standby = is_standby(source)
            early = observe(source, [server_pid(source)])
        snapshot = take_snapshot(access, source, [])
        # No table was locked, so nothing is read in this snapshot: only its numbers are wanted.
        snapshot.close()
        self.facts = snapshot.facts
        self.control = control = Control(target, settings.target.control_schema, settings.pipeline)
        with translated("target"):
            forbid_writing(target)
            # As in a session that loads: which triggers and rules fire depends on it.
            take_replica_role(target)
            is_made = control.exists()
            control.list_pending()
            self.records: Mapping[str, TableRecord] = control.read_records() if is_made else {}
            kept = control.read_observations(self.facts.system_identifier) if is_made else []
            self.rights = TargetRights(target)
        self.observations = [snapshot.observation, early, *kept]
        self.home = find_home(self.records.values())
        check_home(source, target, self.home)
        with translated("source"):
            markers = {record.state.marker for record in self.records.values()} - {""}
            self.lost_markers = find_lost_markers(source, markers)
        self.told: set[str] = set()
        self.is_source = is_same_database(source, target)

    def look_at(self, tables: Sequence[Chosen]) -> Sequence[Chosen]:
        """Read the catalog of all tables at once, and return them."""
        with translated("source"):
            self.found = find_relations(self.source, [(chosen.schema, chosen.name) for chosen in tables])
            self.relations = read_relations(self.source, self.found.values())
            self.gaps = find_read_gaps(self.source, self.found.values())
        with translated("target"):
            odd = list_unwritable(self.target, ["".join(chosen.target) for chosen in tables])
            self.owners = self.control.find_owners(
                chosen.target for chosen in tables if "".join(chosen.target) not in odd
            )
        return tables

    def plan_table(self, chosen: Chosen) -> TablePlan:
        """Return one table's plan; what stops it becomes its error."""
        plan = TablePlan(chosen.table, chosen)
        try:
            with translated("source", chosen.table):
                job = self._prepare(plan, chosen)
            with translated("target", chosen.table):
                self._fit_target(plan, job)
            with translated("source", chosen.table):
                plan.estimate = self._estimate(job, plan.reading)
                plan.trust = self._judge_watermark(job)
        except ReplicatorError as error:
            plan.error = error
        return plan

    def _prepare(self, plan: TablePlan, chosen: Chosen) -> Job:
        oid = self.found.get((chosen.schema, chosen.name))
        if oid is None or oid not in self.relations:
            raise PreflightError(
                f"{chosen.table} went away", why="it was there a moment ago", id="table_missing", table=chosen.table
            )
        plan.relation = self.relations[oid]
        if oid in self.gaps:
            raise self.gaps[oid]
        plan.job = job = prepare_job(
            self.source,
            plan.relation,
            chosen,
            self.records.get(chosen.table, unknown_record(chosen.table)),
            0,
            on_standby=self.on_standby,
            mask_key=self.access.mask_key,
            target=self.target,
        )
        plan.reading = decide_job(
            job, self.facts, self.observations, full=False, home=self.home, lost_markers=self.lost_markers
        )
        return job

    def _fit_target(self, plan: TablePlan, job: Job) -> None:
        check_apart(self.target, job, is_source=self.is_source)
        if job.target in self.owners:
            raise share_target(self.control, job, self.owners[job.target])
        enums = plan_job_enums(self.target, job)
        evolution, plan.existing, plan.types = plan_target(self.target, job, enums)
        if plan.existing is not None:
            find_triggers(self.target, job, plan.existing)
            plan.spellings = spell_columns(self.target, plan.existing)
        assert plan.reading is not None
        plan.reading = fit_reading(plan.reading, job, evolution, plan.existing)
        plan.ddl = self._write_ddl(enums, evolution)
        gap = self.rights.find_table_gap(job.table, job.target, evolution, plan.existing, enums)
        if gap is not None:
            raise gap
        if plan.existing is not None and job.settings.sync_sequences:
            plan.left_sequences = tuple(list_left(self._find_sequences(plan, job, plan.existing)))

    def _find_sequences(self, plan: TablePlan, job: Job, existing: Relation) -> list[Fed]:
        names = {output.name for output in job.mapping.outputs}
        copied = {name: spelling for name, spelling in plan.spellings.items() if name in names}
        return find_sequences(self.target, job.table, existing, copied)

    def _write_ddl(self, enums: Sequence[EnumChange], evolution: Evolution) -> tuple[str, ...]:
        """Return the DDL as text; what an earlier table has said already (a schema, an enum) is not said again."""
        statements = [*write_enum_ddl(self.target, enums), *evolution.before, *evolution.reindexes, *evolution.after]
        texts = [text for ddl in statements if (text := ddl.as_string(self.target)) not in self.told]
        self.told.update(texts)
        return tuple(texts)

    def _estimate(self, job: Job, reading: Reading | None) -> Estimate:
        """Count rows where that is quick, else let the source's planner guess; it refuses what it would not read."""
        assert reading is not None
        mapping, relation = job.mapping, job.mapping.relation
        condition = None if reading.load_type == FULL else _select_changes(job, reading)
        planned_rows, width_bytes = self._explain(mapping.select_rows(condition))
        rows: int | None = planned_rows
        if relation.is_heap and relation.heap_bytes <= COUNTED_HEAP_BYTES:
            rows = self._count(mapping.select([sql.SQL("count(*) AS rows")], condition))
        elif condition is not None and reading.strategy == XMIN:
            # No statistics tell how many rows are young.
            rows = None
        data_bytes = None if rows is None else rows * width_bytes
        return Estimate(rows, data_bytes, relation.heap_bytes if relation.is_heap else None)

    def _judge_watermark(self, job: Job) -> Trust | None:
        """Count the row versions written since the last sync, and those of them that it would not tell apart."""
        mapping, state = job.mapping, job.record.state
        if mapping.watermark is None:
            return None
        column, slack = mapping.watermark.name, watermark_slack(mapping, job.settings)
        reference = choose_reference(mapping, state, self.facts, job.fingerprint, self.observations, slack)
        if isinstance(reference, str):
            return Trust(column, unknown=reference)
        assert state.snapshot_at is not None
        if count_prepared(self.source, state.snapshot_at):
            # Of whatever database: the snapshot's oldest transaction is then older than any observation tells.
            return Trust(column, unknown="a prepared transaction of that time has not ended")
        if not self.deep and mapping.relation.heap_bytes > COUNTED_HEAP_BYTES:
            return Trust(column, unknown="that takes a scan of the whole table: replicator check --deep")
        counts = sql.SQL(
            "count(*) AS row_versions, count(*) FILTER (WHERE NOT ({})) AS unmoved,"
            " count(*) FILTER (WHERE {} IS NULL) AS unstamped"
        ).format(since_mark(mapping, reference), sql.Identifier(column))
        row = self.source.execute(mapping.select([counts], since_xid(reference))).fetchone()
        assert row is not None
        return Trust(column, state.snapshot_at, **row)

    def _count(self, query: sql.Composed) -> int:
        row = self.source.execute(query).fetchone()
        return int(row["rows"]) if row else 0

    def _explain(self, query: sql.Composed) -> tuple[int, int]:
        row = self.source.execute(sql.SQL("EXPLAIN (FORMAT JSON) {}").format(query)).fetchone()
        assert row is not None
        top = row["QUERY PLAN"][0]["Plan"]
        return int(top["Plan Rows"]), int(top["Plan Width"])


def _select_changes(job: Job, reading: Reading) -> sql.Composable:
    if reading.strategy == XMIN:
        return since_xid(reading)
    due = since_mark(job.mapping, reading)
    return due if reading.since_xid is None else sql.SQL("({}) OR ({})").format(due, since_xid(reading))
