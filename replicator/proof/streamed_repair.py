"""Mends rows of a table while a listener keeps it, without pausing the stream.

The listener's row in the control schema is locked, so that nothing of the stream lands; a row is written only if the
source still has it as it was found, in a snapshot that sees all that the stream has brought. So no reader of the target
sees a row go back in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import psycopg

from replicator.apply import difference, merge
from replicator.apply.comparison import Finding
from replicator.apply.difference import DIFFERENT, EXTRA, Key
from replicator.apply.job import Job, Session
from replicator.apply.sieve import MOST_REFUSED_ROWS, too_many
from replicator.apply.staging import Staging
from replicator.apply.stream_control import StreamControl
from replicator.apply.target import take_replica_role
from replicator.apply.upsert import upsert_rows
from replicator.batch import Figures
from replicator.capture.lookup import FreshReader, read_open_writers
from replicator.changes import KeyText
from replicator.db import TAKEN_STATES, Connection, closing, translate, translated
from replicator.errors import DataRefused, OperatorError, ReplicatorError, unexpected
from replicator.proof.exact_look import UNDECIDABLE, ExactLook, Point
from replicator.proof.judgement import TargetTable, open_target_table
from replicator.proof.streamed_look import (
    CHUNK_KEYS,
    begin_after,
    is_unmoved,
    read_staged,
    stage_keys,
    wait_for_position,
)
from replicator.proof.verdict import Verdict
from replicator.reading import INCREMENTAL
from replicator.strategy import FULL
from replicator.stream.table import spell_key
from replicator.sync.identity import is_same_database
from replicator.sync.inventory import take_inventory
from replicator.sync.preparation import choose_digest, prepare_jobs
from replicator.sync.run import Run, RunResult

_POLL_S = 0.05
_HOLD_LIMIT_S = 3.0
"""How long a transaction that is open on the source is waited for while the stream is kept from landing."""
_REREAD_LIMIT_S = 120.0
"""How long the listener may take to read a table without key again."""
_MOST_BATCHES = 20
_CANCELED = "57014"


def repair_streamed(run: Run, verdicts: Sequence[Verdict], triggered_by: str) -> RunResult:
    """Mend the rows that verdicts name, in tables that a listener keeps; a row of `etl_control` for each table.

    A table without a key is brought to a point of the stream as a whole; where none is to be had, it is marked to be
    read again by the listener. Errors are recorded table by table.
    """
    with run.open_control() as control, closing(run.access.open()) as source:
        with translated("target"):
            control.take_lock("run", run.lock_wait_s)
            control.connection.execute(
                "SELECT set_config('lock_timeout', %s, false)", [f"{max(1, int(run.lock_wait_s * 1000))}ms"]
            )
            replica = take_replica_role(control.connection)
        session = Session(
            control.connection,
            control,
            choose_digest(source, control.connection),
            replica,
            is_source=is_same_database(source, control.connection),
        )
        with translated("source"):
            tables = take_inventory(source, run.settings, [verdict.table for verdict in verdicts]).tables
            jobs = prepare_jobs(
                source, tables, control.read_records(), mask_key=run.access.mask_key, target=control.connection
            )
        with translated("target"):
            run.batch_ids = control.start_batches(
                run.execution_id, [verdict.table for verdict in verdicts], path=run.path, triggered_by=triggered_by
            )
        # Tables without a key last: they give the run's lock back.
        for verdict in sorted(verdicts, key=lambda verdict: not jobs[verdict.table].mapping.key):
            try:
                _Repair(run, session, source, jobs[verdict.table], verdict).execute()
            except ReplicatorError as error:
                run.fail(verdict.table, error)
            except psycopg.Error as error:
                run.fail(verdict.table, translate(error, side="target", table=verdict.table))
            except Exception as error:  # noqa: BLE001  # one table's fault is not the others'
                run.fail(verdict.table, unexpected(error))
        with translated("target"):
            rows = control.read_batches(run.execution_id)
    return RunResult(run.execution_id, rows, run.errors)


_Write = Callable[[Sequence[Finding], bool], list[Key]]
"""Writes findings, after deleting them first if that is asked for; returns the keys of those that moved."""


class _Repair:
    """The repair of one streamed table."""

    def __init__(self, run: Run, session: Session, source: Connection, job: Job, verdict: Verdict) -> None:
        self.run, self.session, self.source, self.job = run, session, source, job
        self.verdict = verdict
        self.streams = StreamControl(session.connection, session.control.schema, session.control.pipeline)
        self.quarantines = job.settings.on_row_error == "quarantine"
        self.figures = Figures()
        self.refused = 0
        self.started_at = datetime.now(UTC)

    def execute(self) -> None:
        """Mend the findings, some at a time."""
        if not self.job.mapping.key:
            self._repair_rows()
            return
        findings = self.verdict.findings
        if findings:
            fresh = FreshReader(self.run.access.narrow(self.source), self.run.stop)
            try:
                spellings = spell_key(self.source, self.job)
                for start in range(0, len(findings), CHUNK_KEYS):
                    self._repair(findings[start : start + CHUNK_KEYS], fresh, spellings)
            finally:
                fresh.close()
        else:
            self._record()
        self.run.log.info(
            "table_repaired", table=self.job.table, path=self.run.path, rows_undecided=len(self.verdict.undecided),
            **self.figures.counts(),
        )  # fmt: skip

    def _repair_rows(self) -> None:
        """Write what differs in a table without a key, at a point of the stream; where that fails the listener does."""
        exact = ExactLook(self.run, self.session, self.job)
        try:
            with exact.open(self.source) as point, self.session.connection.transaction():
                self._exchange(exact, point)
                self._record()
        except ReplicatorError as error:
            if error.id != UNDECIDABLE and error.sqlstate != _CANCELED:
                raise
            self.figures = Figures()
            self.run.log.info("reread_needed", table=self.job.table, path=self.run.path, reason=error.why)
            self._leave_to_listener()
            self._record()
        self.run.log.info("table_repaired", table=self.job.table, path=self.run.path, **self.figures.counts())

    def _exchange(self, exact: ExactLook, point: Point) -> None:
        """Stage the source's rows, hold the stream, bring them to where it stands, and write the difference."""
        connection, job = self.session.connection, self.job
        wait_for_position(self.run, self.streams, job.table, point.begins)
        with translated("target", job.table):
            table = open_target_table(self.session, job)
            staging = exact.stage_source(point, table)
            self.streams.hold()
            self.session.control.wait_for_table(job.table)
            most_s = self.run.settings.source.max_hold.total_seconds()
            connection.execute("SELECT set_config('statement_timeout', %s, true)", [f"{int(most_s * 1000)}ms"])
            changes = exact.read_changes(point, exact.read_position(), most_s)
            exact.apply(point, changes, table, staging, Staging(connection))
            if job.settings.deletes != "ignore":
                self.figures.rows_deleted += connection.execute(merge.delete_plain(table.target, staging)).rowcount
            self.figures.rows_inserted += connection.execute(merge.insert_plain(table.target, staging)).rowcount
        self.figures.rows_extracted = self.figures.rows_inserted

    def _leave_to_listener(self) -> None:
        """Let the listener read the table again: its rows have no names, and only the stream knows its own points."""
        name = self.job.table
        self.streams.mark_stale(name)
        # The listener reads as a run does, and would wait for this one.
        self.session.control.release_lock("run")
        self.run.log.info("reread_asked_for", table=name, path=self.run.path)
        began = time.monotonic()
        while not self.run.stop.wait(_POLL_S) and time.monotonic() - began < _REREAD_LIMIT_S:
            table = self.streams.read_tables().get(name)
            if table is not None and not table.is_stale:
                self._count_reread()
                return
        raise OperatorError(
            f"{name} has no key, and the listener has not read it again yet",
            why="its rows can only be exchanged as a whole, at a point of the stream",
            hint="nothing: the listener does it as soon as it can; replicator verify shows whether it has",
            id="listener_rereads",
            table=name,
        )

    def _count_reread(self) -> None:
        """Take over what the listener wrote when it read the table again."""
        own = self.run.batch_ids[self.job.table]
        for row in self.session.control.read_history(self.job.table, _MOST_BATCHES):
            if row["batch_id"] > own and row["load_type"] == FULL and row["status"] == "success":
                self.figures.rows_inserted += row["rows_inserted"]
                self.figures.rows_updated += row["rows_updated"]
                self.figures.rows_deleted += row["rows_deleted"]

    def _repair(self, findings: Sequence[Finding], fresh: FreshReader, spellings: Sequence[str]) -> None:
        """Write one chunk in one transaction, with nothing of the stream landing meanwhile."""
        connection, control = self.session.connection, self.session.control
        with connection.transaction():
            # In the listener's own order: its row, then the table.
            self.streams.hold()
            control.wait_for_table(self.job.table)
            table = open_target_table(self.session, self.job)
            left = self._leave_waiting(findings)
            with translated("source", self.job.table):
                writers = read_open_writers(self.source, self.job.mapping.relation)
                is_whole = begin_after(fresh, self.job, writers, _HOLD_LIMIT_S)
                write = partial(self._write, table, fresh, spellings, not is_whole)
                moved = self._sift(left, write)
                fresh.end()
            self._record()
        self.verdict.undecided += moved
        self.verdict.findings = [finding for finding in self.verdict.findings if finding.key not in set(moved)]

    def _leave_waiting(self, findings: Sequence[Finding]) -> list[Finding]:
        """Return the findings whose row is not in quarantine: there it is tried again when it is asked for."""
        if not self.quarantines:
            return list(findings)
        waiting = self.streams.read_waiting_keys(self.job.table)
        left = [finding for finding in findings if _as_cells(finding.key) not in waiting]
        self.figures.rows_quarantined += len(findings) - len(left)
        return left

    def _sift(self, findings: Sequence[Finding], write: _Write) -> list[Key]:
        """Write findings, by halves where the target refuses a row that may go into quarantine.

        Returns the keys of those that the source has otherwise by now.
        """
        if not findings:
            return []
        try:
            return self._try(findings, write)
        except DataRefused as error:
            if not self.quarantines:
                raise
            if self.refused >= MOST_REFUSED_ROWS:
                raise too_many(self.job.table, error) from error
            if len(findings) == 1:
                self.streams.quarantine(self.job.table, _as_cells(findings[0].key), None, error)
                self.refused += 1
                self.figures.rows_quarantined += 1
                return []
        middle = len(findings) // 2
        return [*self._sift(findings[:middle], write), *self._sift(findings[middle:], write)]

    def _try(self, findings: Sequence[Finding], write: _Write) -> list[Key]:
        """Write findings; where they trade unique values, once more with all of them taken out first."""
        try:
            return self._in_savepoint(partial(write, findings, False))
        except DataRefused as error:
            if error.sqlstate not in TAKEN_STATES or len(findings) == 1:
                raise
        return self._in_savepoint(partial(write, findings, True))

    def _in_savepoint(self, write: Callable[[], list[Key]]) -> list[Key]:
        counted = replace(self.figures)
        try:
            with self.session.connection.transaction():
                return write()
        except DataRefused:
            self.figures.restore(counted)
            raise

    def _record(self) -> None:
        load_type = FULL if self.run.path == "resync" else INCREMENTAL
        self.session.control.finish_repair(
            self.run.batch_ids[self.job.table], self.started_at, self.figures, load_type=load_type
        )

    def _write(
        self,
        table: TargetTable,
        fresh: FreshReader,
        spellings: Sequence[str],
        only_settled: bool,
        findings: Sequence[Finding],
        makes_way: bool,
    ) -> list[Key]:
        """Write the findings that the source still has as they were found; return the keys of the others.

        only_settled: leave alone what an open transaction may have changed. makes_way: delete what is written first.
        """
        connection, target = self.session.connection, table.target
        staging = f"replicator_repair_{self.run.batch_ids[self.job.table]}"
        stage_keys(self.session, self.job, table, fresh, spellings, staging, findings, only_settled=only_settled)
        staged = read_staged(self.session, table, staging)
        kept = [
            finding
            for finding in findings
            if is_unmoved(finding, staged) and not (only_settled and finding.kind == EXTRA)
        ]
        written = [finding for finding in kept if finding.kind != EXTRA]
        gone = [finding.key for finding in kept if finding.kind == EXTRA]
        with translated("target", self.job.table):
            if gone:
                self.figures.rows_deleted += connection.execute(difference.delete_keys(target, gone)).rowcount
            if makes_way:
                connection.execute(difference.delete_keys(target, [finding.key for finding in written]))
            if written:
                connection.execute(difference.keep_staged(target, staging, [finding.key for finding in written]))
                self._upsert(written, table, staging)
            connection.execute(merge.drop_staging(staging))
        done = {finding.key for finding in kept}
        return [finding.key for finding in findings if finding.key not in done]

    def _upsert(self, written: Iterable[Finding], table: TargetTable, staging: str) -> None:
        rows, _ = upsert_rows(self.session.connection, self.job, table.target, staging)
        updated = sum(finding.kind == DIFFERENT for finding in written)
        self.figures.rows_updated += min(updated, rows)
        self.figures.rows_inserted += max(0, rows - updated)
        self.figures.rows_extracted += rows


def _as_cells(key: Key) -> KeyText:
    return tuple(None if text is None else text.encode() for text in key)
