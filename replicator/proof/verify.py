"""Proves a copy right: both sides' rows are compared by hashes in one snapshot of each, and those that differ named.

A table that a listener keeps is compared once its stream has passed the source's snapshot (`stream_verify`).
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar
from uuid import UUID

from replicator.apply.comparison import Pace
from replicator.apply.control import Control
from replicator.apply.job import Job, Session
from replicator.apply.keyed import KeyedLoad
from replicator.apply.repair import RepairLoad
from replicator.apply.stream_control import StreamControl
from replicator.capture.pull import Reader
from replicator.config.settings import Settings
from replicator.db import closing, translated
from replicator.digest import SLOTS
from replicator.errors import EXIT_DIFFERENT, EXIT_OK, EXIT_PARTIAL, PassingError, ReplicatorError, choose_exit_code
from replicator.monitor.facts import has_stream
from replicator.monitor.operation import Operation
from replicator.proof.judgement import Look, judge, not_synced, still
from replicator.proof.streamed_look import StreamedLook
from replicator.proof.streamed_repair import repair_streamed
from replicator.proof.verdict import Verdict
from replicator.reading import Reading, is_audit_due
from replicator.relation import LOGGED, PARTITIONED, TABLE, Relation
from replicator.strategy import FULL, audits_every_time
from replicator.sync.inventory import Chosen, Inventory, require_tables, take_inventory
from replicator.sync.pipeline import Pipeline, default_jobs
from replicator.sync.preparation import check_home, decide_job, find_home, prepare_jobs, unknown_record
from replicator.sync.round import Round, gave_way
from replicator.sync.run import ProgressHook, Run, RunResult

MOST_NAMED = 100_000
"""How many rows of a table are named; more are counted. Beside a listener all are: they are looked at once more."""


@dataclass
class VerifyResult:
    """What a verification found. rows: those of `etl_control` that repairs left."""

    verdicts: list[Verdict]
    errors: dict[str, ReplicatorError] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    execution_id: UUID | None = None

    @property
    def exit_code(self) -> int:
        """Return 7 when differences are left, what the tables' errors ask for, or 6 for a table that is undecided.

        Single rows that are being changed at every look are no reason: each change brings them anew.
        """
        if any(verdict.mismatched and not verdict.is_repaired for verdict in self.verdicts):
            return EXIT_DIFFERENT
        if self.errors:
            return choose_exit_code(self.errors.values(), some_landed=bool(self.verdicts))
        return EXIT_PARTIAL if any(verdict.is_undecided for verdict in self.verdicts) else EXIT_OK


def verify(
    settings: Settings,
    target_conninfo: str,
    *,
    tables: Sequence[str] = (),
    repair: bool = False,
    look: Look | None = None,
    jobs: int | None = None,
    triggered_by: str = "manual",
    execution_id: UUID | None = None,
    progress: ProgressHook | None = None,
    stop: threading.Event | None = None,
) -> VerifyResult:
    """Compare tables, all by default; repair: repair those that differ, and nothing but the rows that do.

    jobs: tables at a time. Raises our errors when not even a list of tables could be made.
    """
    stop = stop or threading.Event()
    look = look or Look()
    run = Run(
        settings,
        target_conninfo,
        full=False,
        jobs=jobs or default_jobs(),
        progress=progress,
        stop=stop,
        path="verify",
        execution_id=execution_id,
    )
    with ExitStack() as stack:
        pipeline = VerifyPipeline(run, stack, look)
        verdicts = pipeline.look_at(tables)
    result = VerifyResult([verdicts[table] for table in sorted(verdicts)], dict(run.errors))
    uneven = [verdict for verdict in result.verdicts if not verdict.equal]
    if repair and uneven and not stop.is_set():
        _repair(settings, target_conninfo, result, uneven, pipeline.streamed, triggered_by, run)
    _note_left(run, result.verdicts)
    return result


def _note_left(run: Run, verdicts: Sequence[Verdict]) -> None:
    """Note for metrics and alerts how many rows differ by now; a target that went away leaves the result as it is."""
    if not verdicts:
        return
    with suppress(ReplicatorError), run.open_control() as control, translated("target"):
        operation = Operation(control.connection, control.schema, control.pipeline)
        for verdict in verdicts:
            operation.save_mismatch(verdict.table, 0 if verdict.equal else verdict.mismatched)


def _repair(
    settings: Settings,
    target_conninfo: str,
    result: VerifyResult,
    uneven: Sequence[Verdict],
    streamed: set[str],
    triggered_by: str,
    look: Run,
) -> None:
    pulled = [verdict for verdict in uneven if verdict.table not in streamed]
    followed = [verdict for verdict in uneven if verdict.table in streamed and verdict.mismatched]
    run = Run(settings, target_conninfo, full=False, jobs=look.jobs, stop=look.stop, path="repair")
    result.execution_id = run.execution_id
    if pulled:
        with ExitStack() as stack:
            done = Pipeline(run, stack, RepairRound).execute([verdict.table for verdict in pulled], triggered_by)
        note_repairs(result, pulled, done)
    if followed:
        done = repair_streamed(run, followed, triggered_by)
        note_repairs(result, followed, done)


def audit_streamed(
    settings: Settings,
    target_conninfo: str,
    result: RunResult,
    *,
    jobs: int | None = None,
    triggered_by: str = "manual",
    stop: threading.Event | None = None,
) -> None:
    """Verify, and repair, the tables that a sync left to the listener; the result gets what that adds.

    Those under a million rows every time, larger ones as often as `audit_every` says.
    """
    skipped = [row["table_name"] for row in result.rows if row["status"] == "skipped"]
    if not skipped:
        return
    run = Run(settings, target_conninfo, full=False, jobs=1)
    with run.open_control() as control, closing(run.access.open()) as source:
        with translated("target"):
            streamed = read_streamed(control)
            records = control.read_records()
        with translated("source"):
            chosen = [table for table in take_inventory(source, settings).tables if table.table in skipped]
            known = prepare_jobs(
                source, chosen, records, mask_key=run.access.mask_key, lenient=True, target=control.connection
            )
    now = datetime.now(UTC)
    due = [table for table, job in known.items() if table in streamed and is_verification_due(job, now)]
    if not due:
        return
    found = verify(settings, target_conninfo, tables=due, repair=True, jobs=jobs, triggered_by=triggered_by, stop=stop)
    result.rows += found.rows
    result.errors |= found.errors


def is_verification_due(job: Job, now: datetime) -> bool:
    """Say whether a table that the listener keeps is to be verified by a nightly sync."""
    proved = job.record.state.verified_through
    if proved is None or audits_every_time(job.mapping.relation):
        return True
    return is_audit_due(replace(job.record.state, audited_at=proved), now, job.settings.audit_every)


def note_repairs(result: VerifyResult, verdicts: Sequence[Verdict], done: RunResult) -> None:
    """Put into the verdicts what a repair did."""
    rows = {row["table_name"]: row for row in done.rows}
    result.rows += done.rows
    result.errors |= done.errors
    for verdict in verdicts:
        row = rows.get(verdict.table)
        if row is None or row["status"] != "success":
            continue
        verdict.repaired = row["rows_inserted"] + row["rows_updated"] + row["rows_deleted"]
        verdict.is_repaired = not row["rows_quarantined"]


def list_streamed(run: Run, tables: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return which of the tables, all by default, a live listener keeps, and which others there are."""
    with run.open_control() as control, translated("target"):
        if not control.exists() or control.list_pending():
            return [], list(tables)
        streamed = read_streamed(control)
    if not streamed:
        return [], list(tables)
    with closing(run.access.open()) as source, translated("source"):
        inventory = take_inventory(source, run.settings, tables)
    names = [chosen.table for chosen in inventory.tables] + sorted(inventory.missing)
    return [name for name in names if name in streamed], [name for name in names if name not in streamed]


def read_streamed(control: Control) -> set[str]:
    """Return the tables that a listener keeps which is at work."""
    streams = StreamControl(control.connection, control.schema, control.pipeline)
    state = streams.read_state()
    if state is None or state.position is None or not streams.is_listening():
        return set()
    return set(streams.read_tables())


def can_stream(relation: Relation) -> bool:
    """Say whether a relation is of a kind that a publication takes."""
    return relation.kind in (TABLE, PARTITIONED) and relation.persistence == LOGGED


class RepairRound(Round):
    """A round in which tables with a key are compared, whatever their position says, and mended."""

    keyed_load: ClassVar[type[KeyedLoad]] = RepairLoad

    def _decide(self, job: Job) -> Reading:
        reading = decide_job(job, self.snapshot.facts, self.observations, full=False)
        if reading.load_type == FULL:
            return reading
        return replace(reading, since_xid=None, since_mark=None, audit=True, slots=tuple(range(SLOTS)))


class VerifyPipeline(Pipeline):
    """The rounds of a verification, which claims nothing and leaves no batch."""

    def __init__(self, run: Run, stack: ExitStack, look: Look) -> None:
        super().__init__(run, stack)
        self.look = look
        self.verdicts: dict[str, Verdict] = {}
        self.streamed: set[str] = set()
        self.leaves_uncopied = False

    def look_at(self, tables: Sequence[str]) -> dict[str, Verdict]:
        """Return the verdicts by table; the errors of those that have none are the run's."""
        control, inventory = self.patience.attempts()(self._open, tables)
        self.patience.renew()
        for table, error in inventory.missing.items():
            self.run.fail(table, error)
        self._retry_rounds(control, inventory.tables)
        return self.verdicts

    def _open(self, tables: Sequence[str]) -> tuple[Control, Inventory]:
        run = self.run
        with ExitStack() as opened:
            control = opened.enter_context(run.open_control())
            with translated("target"):
                if not control.exists() or control.list_pending():
                    raise not_synced()
                self._read_records(control)
            opened.callback(run.close_watcher)
            run.open_watcher()
            check_home(run.watcher, control.connection, find_home(run.records.values()))
            with translated("source"):
                inventory = take_inventory(run.watcher, run.settings, tables)
            require_tables(inventory)
            with translated("target"):
                self.leaves_uncopied = not tables and has_stream(control)
            for chosen in inventory.tables:
                run.records.setdefault(chosen.table, unknown_record(chosen.table))
            self.stack.enter_context(opened.pop_all())
        return control, inventory

    def _read_records(self, control: Control) -> None:
        self.run.records |= control.read_records()
        self.streamed = read_streamed(control)

    def _resume(self, holder: list[Control], left: list[Chosen]) -> list[Chosen]:
        self._reconnect(holder)
        with translated("target"):
            self._read_records(holder[0])
        return left

    def _make_round(self, control: Control, pending: list[Chosen]) -> Round:
        return VerifyRound(self.run, control, pending, self)


class VerifyRound(Round):
    """One snapshot of the source, and the tables that are compared in it."""

    def __init__(self, run: Run, control: Control, pending: list[Chosen], pipeline: VerifyPipeline) -> None:
        super().__init__(run, control, pending)
        self.pipeline = pipeline

    def _queue_jobs(self, jobs: list[Job]) -> None:
        """Put every job in a group of its own, the biggest first; nothing of the target is touched."""
        jobs = self._leave_uncopied(jobs)
        self.bytes_there = sum(job.mapping.relation.heap_bytes for job in jobs)
        self.bytes_read: dict[str, int] = {}
        self.queue.extend([job] for job in sorted(jobs, key=lambda job: self._rank([job])))

    def _leave_uncopied(self, jobs: list[Job]) -> list[Job]:
        """Return the jobs without those that a listener cannot copy and no sync has: there is nothing to compare.

        Where nothing else is compared they stay: a verification of no tables would look like a success.
        """
        if not self.pipeline.leaves_uncopied:
            return jobs
        copied = [job for job in jobs if job.record.state.snapshot_at is not None or can_stream(job.mapping.relation)]
        if not copied:
            return jobs
        names = {job.table for job in copied}
        for job in jobs:
            if job.table not in names:
                hint = f"replicator sync {shlex.quote(job.table)}"
                reason = "the listener cannot copy it, and no sync has"
                self.run.log.warning("table_left_out", table=job.table, path=self.run.path, reason=reason, hint=hint)
        with self.mutex:
            gone = {job.table for job in jobs} - names
            self.left = [chosen for chosen in self.left if chosen.table not in gone]
        return copied

    def _load(self, group: Sequence[Job], reader: Reader, session: Session) -> None:
        run, (job,) = self.run, group
        run.started.setdefault(job.table, datetime.now(UTC))
        run.attempts[job.table] = run.attempts.get(job.table, 0) + 1
        if not reader.try_lock(job.mapping.relation) or self.given_way.is_set():
            raise gave_way(job.table)
        with translated("target", job.table):
            verdict = self._judge(job, reader, session)
            if verdict.equal:
                session.control.save_proof(job.table, range(SLOTS), self.snapshot.facts.clock)
        self.pipeline.verdicts[job.table] = verdict
        run.log.info(
            "table_verified",
            table=job.table,
            path=run.path,
            equal=verdict.equal,
            rows_source=verdict.rows_source,
            rows_target=verdict.rows_target,
            rows_mismatched=verdict.mismatched,
            rows_undecided=len(verdict.undecided),
            duration_seconds=round((datetime.now(UTC) - run.started[job.table]).total_seconds(), 3),
        )
        self._tell(job.table, job.mapping.relation.heap_bytes, 0)
        with self.mutex:
            self.left = [chosen for chosen in self.left if chosen.table != job.table]

    def _tell(self, table: str, done: int, _all: int) -> None:
        """Tell how many bytes of all tables have been read."""
        with self.mutex:
            self.bytes_read[table] = max(done, self.bytes_read.get(table, 0))
            done = sum(self.bytes_read.values())
        self.run.progress(table, min(done, self.bytes_there), self.bytes_there)

    def _judge(self, job: Job, reader: Reader, session: Session) -> Verdict:
        pace = Pace(self.pipeline.look.bytes_per_s, partial(self._tell, job.table), self.run.stop)
        # Asked anew for each table: a listener may have begun since the run did.
        self.pipeline.streamed |= read_streamed(session.control)
        if job.table not in self.pipeline.streamed:
            with still(session):
                self._check_not_ahead(session, job)
                return judge(job, reader, session, self.pipeline.look, pace, MOST_NAMED)
        streamed = StreamedLook(self.run, session, job, self.pipeline.look)
        return streamed.judge(reader, self.end_of_wal, pace)

    def _check_not_ahead(self, session: Session, job: Job) -> None:
        """Raise PassingError when a sync has brought a younger snapshot meanwhile: it would look like differences."""
        snapshot_at = session.control.read_snapshot_time(job.table)
        if snapshot_at is None:
            raise not_synced(job.table)
        if snapshot_at > self.snapshot.facts.clock:
            raise PassingError(
                f"{job.table} was synced in the meantime",
                why="its rows are younger than the snapshot they would be compared with",
                hint="it is compared again by itself",
                id="snapshot_outdated",
                table=job.table,
            )
