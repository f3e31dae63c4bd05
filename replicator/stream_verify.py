"""Compares and mends a table while a listener keeps it, without pausing the stream.

A snapshot of the source and a position of the stream never correspond: a commit may be delivered while its transaction
is still invisible to snapshots, and the target is a little behind any snapshot. So a row that differs is looked at
again: in a snapshot that sees every transaction which was open after the target was read, against a target that has
passed that snapshot. A row that was the same on both sides at both looks, and different between them, cannot have been
changed in between: the target is wrong. A row that moved is looked at once more, and `undecided` if it always does.

To mend, the listener's row in the control schema is locked, so that nothing of the stream lands; a row is written only
if the source still has it as it was found, in a snapshot that sees all that the stream has brought. So no reader of the
target sees a row go back in time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from replicator.apply import difference, merge
from replicator.apply.comparison import Finding, Pace
from replicator.apply.difference import DIFFERENT, EXTRA, Key
from replicator.apply.job import Job, Session
from replicator.apply.stream_control import ListenerState, StreamControl
from replicator.apply.target import take_replica_role
from replicator.batch import Figures
from replicator.capture.copyout import copy_out
from replicator.capture.lookup import TRANSACTION_OPEN, FreshReader, match_keys, read_open_xids
from replicator.capture.pull import Reader, read_system_identifier
from replicator.capture.source_state import read_end_of_wal
from replicator.db import Connection, closing, translate, translated
from replicator.errors import OperatorError, PassingError, ReplicatorError, unexpected
from replicator.inventory import take_inventory
from replicator.judgement import Look, TargetTable, judge, open_target_table, still
from replicator.position import Lsn
from replicator.preparation import choose_digest, prepare_jobs
from replicator.reading import INCREMENTAL
from replicator.rules import name_output
from replicator.run import Run, RunResult
from replicator.strategy import FULL
from replicator.stream_table import spell_key
from replicator.verdict import Verdict

LOOKS = 5
_POLL_S = 0.05
_STALLED_S = 60.0
_OPEN_LIMIT_S = 10.0
"""How long a transaction that is open on the source is waited for; a longer one leaves what differs undecided."""
_HOLD_LIMIT_S = 3.0
"""The same while the stream is kept from landing."""
_CHUNK_KEYS = 2000


class StreamedLook:
    """The verification of one table that a listener keeps."""

    def __init__(self, run: Run, session: Session, job: Job, system_identifier: str, look: Look) -> None:
        self.run, self.session, self.job = run, session, job
        self.system_identifier, self.look = system_identifier, look
        self.control = StreamControl(session.connection, session.control.schema, session.control.pipeline)

    def judge(self, reader: Reader, high: Lsn, pace: Pace) -> Verdict:
        """Compare the table. reader: in a snapshot taken before the source's WAL had reached `high`."""
        self._wait_for(high)
        with still(self.session):
            verdict = judge(self.job, reader, self.session, self.system_identifier, self.look, pace)
        if verdict.equal:
            return verdict
        with closing(self.run.access.open()) as watcher:
            fresh = FreshReader(self.run.access, self.run.stop)
            try:
                if self.job.mapping.key:
                    self._settle_keys(verdict, fresh, watcher)
                else:
                    self._settle_rows(verdict, fresh, watcher)
            finally:
                fresh.close()
        return verdict

    def _wait_for(self, high: Lsn) -> None:
        """Wait until the stream has passed a position. Raises PassingError when it stands still or has ended."""
        last, since = None, time.monotonic()
        while True:
            state = self.control.read_state()
            table = self.control.read_tables().get(self.job.table)
            position = _position(state)
            if table is not None and position is not None and max(position, table.origin.since) >= high:
                return
            if position != last:
                last, since = position, time.monotonic()
            if not self.control.is_listening() or time.monotonic() - since > _STALLED_S:
                raise PassingError(
                    f"the listener does not come up to the snapshot of {self.job.table}",
                    why="it has stopped, or its position does not move",
                    mend="replicator status; without a listener the table is compared as any other",
                    id="listener_behind",
                    table=self.job.table,
                )
            if self.run.stop.wait(_POLL_S):
                raise PassingError("the run was stopped", why="a signal asked the process to end", id="interrupted")

    def _look_again(self, fresh: FreshReader, watcher: Connection) -> Verdict | None:
        """Compare once more, in a snapshot that sees all that the target holds by now; None where none can be had."""
        try:
            with translated("source", self.job.table):
                fresh.begin(self.job.mapping, read_open_xids(watcher), _OPEN_LIMIT_S)
                high = read_end_of_wal(watcher)
        except PassingError as error:
            if error.id != TRANSACTION_OPEN:
                raise
            return None
        self._wait_for(high)
        try:
            with still(self.session):
                return judge(self.job, fresh, self.session, self.system_identifier, self.look)
        finally:
            fresh.end()

    def _settle_keys(self, verdict: Verdict, fresh: FreshReader, watcher: Connection) -> None:
        doubtful = {finding.key: finding for finding in verdict.findings}
        confirmed: dict[Key, Finding] = {}
        for _ in range(LOOKS):
            again = self._look_again(fresh, watcher)
            if again is None:
                break
            seen = {finding.key: finding for finding in again.findings}
            verdict.rows_source, verdict.rows_target = again.rows_source, again.rows_target
            moved = {}
            for key in doubtful.keys() & seen.keys():
                if is_same(doubtful[key], seen[key]):
                    confirmed[key] = seen[key]
                else:
                    moved[key] = seen[key]
            # What differs for the first time now is as doubtful as the rest was at first.
            moved |= {key: finding for key, finding in seen.items() if key not in doubtful and key not in confirmed}
            doubtful = moved
            if not doubtful:
                break
        verdict.findings = [confirmed[key] for key in sorted(confirmed, key=str)]
        verdict.undecided = sorted(doubtful, key=str)

    def _settle_rows(self, verdict: Verdict, fresh: FreshReader, watcher: Connection) -> None:
        """Look again at a table without a key, as a whole."""
        before = verdict
        for _ in range(LOOKS):
            again = self._look_again(fresh, watcher)
            if again is None:
                break
            verdict.rows_source, verdict.rows_target = again.rows_source, again.rows_target
            verdict.missing_rows, verdict.extra_rows = again.missing_rows, again.extra_rows
            if again.equal or again.digests == before.digests:
                return
            before = again
        verdict.missing_rows = verdict.extra_rows = 0
        verdict.is_undecided = True


def is_same(one: Finding, other: Finding) -> bool:
    """Say whether two looks found the same two rows."""
    return (one.kind, one.theirs, one.ours) == (other.kind, other.theirs, other.ours)


def _position(state: ListenerState | None) -> Lsn | None:
    return None if state is None else state.position


def repair_streamed(run: Run, verdicts: Sequence[Verdict], triggered_by: str) -> RunResult:
    """Mend the rows that verdicts name, in tables that a listener keeps; a row of `etl_control` for each table.

    A table without a key is marked to be read again by the listener. Errors are recorded table by table.
    """
    with run.open_control() as control, closing(run.access.open()) as source:
        with translated("target"):
            control.take_lock("run", run.lock_wait_s)
            control.connection.execute(
                "SELECT set_config('lock_timeout', %s, false)", [f"{max(1, int(run.lock_wait_s * 1000))}ms"]
            )
            replica = take_replica_role(control.connection)
        session = Session(control.connection, control, choose_digest(source, control.connection), replica)
        with translated("source"):
            tables = take_inventory(source, run.settings, [verdict.table for verdict in verdicts]).tables
            jobs = prepare_jobs(source, tables, control.read_records(), mask_key=run.access.mask_key)
            identifier = read_system_identifier(source)
        with translated("target"):
            run.batch_ids = control.start_batches(
                run.execution_id, [verdict.table for verdict in verdicts], path=run.path, triggered_by=triggered_by
            )
        for verdict in verdicts:
            try:
                _Repair(run, session, source, jobs[verdict.table], identifier, verdict).execute()
            except ReplicatorError as error:
                run.fail(verdict.table, error)
            except psycopg.Error as error:
                run.fail(verdict.table, translate(error, side="target", table=verdict.table))
            except Exception as error:  # noqa: BLE001  # one table's fault is not the others'
                run.fail(verdict.table, unexpected(error))
        with translated("target"):
            rows = control.read_batches(run.execution_id)
    return RunResult(run.execution_id, rows, run.errors)


class _Repair:
    """The repair of one streamed table."""

    def __init__(
        self, run: Run, session: Session, source: Connection, job: Job, system_identifier: str, verdict: Verdict
    ) -> None:
        self.run, self.session, self.source, self.job = run, session, source, job
        self.system_identifier, self.verdict = system_identifier, verdict
        self.streams = StreamControl(session.connection, session.control.schema, session.control.pipeline)
        self.figures = Figures()
        self.started_at = datetime.now(UTC)

    def execute(self) -> None:
        """Mend the findings, some at a time."""
        if not self.job.mapping.key:
            self._leave_to_listener()
        findings = self.verdict.findings
        if findings:
            fresh = FreshReader(self.run.access, self.run.stop)
            try:
                spellings = spell_key(self.source, self.job)
                for start in range(0, len(findings), _CHUNK_KEYS):
                    self._mend(findings[start : start + _CHUNK_KEYS], fresh, spellings)
            finally:
                fresh.close()
        else:
            self._record()
        self.run.log.info(
            "table_repaired", table=self.job.table, path=self.run.path, rows_undecided=len(self.verdict.undecided),
            **self.figures.counts(),
        )  # fmt: skip

    def _leave_to_listener(self) -> None:
        self.streams.mark_stale(self.job.table)
        raise OperatorError(
            f"{self.job.table} has no key, and a listener keeps it",
            why="its rows can only be exchanged as a whole, at a point of the stream",
            mend="it is marked to be read again: restart the listener",
            id="listener_rereads",
            table=self.job.table,
        )

    def _mend(self, findings: Sequence[Finding], fresh: FreshReader, spellings: Sequence[str]) -> None:
        """Write one chunk in one transaction, with nothing of the stream landing meanwhile."""
        connection, control = self.session.connection, self.session.control
        moved: list[Key] = []
        with connection.transaction():
            # In the listener's own order: its row, then the table.
            self.streams.hold()
            control.wait_for_table(self.job.table)
            table = open_target_table(self.session, self.job, self.system_identifier)
            with translated("source", self.job.table):
                try:
                    fresh.begin(self.job.mapping, read_open_xids(self.source), _HOLD_LIMIT_S)
                except PassingError as error:
                    if error.id != TRANSACTION_OPEN:
                        raise
                    moved = [finding.key for finding in findings]
                else:
                    moved = self._write(findings, table, fresh, spellings)
                    fresh.end()
            self._record()
        self.verdict.undecided += moved
        self.verdict.findings = [finding for finding in self.verdict.findings if finding.key not in set(moved)]

    def _record(self) -> None:
        load_type = FULL if self.run.path == "resync" else INCREMENTAL
        self.session.control.finish_repair(
            self.run.batch_ids[self.job.table], self.started_at, self.figures, load_type=load_type
        )

    def _write(
        self, findings: Sequence[Finding], table: TargetTable, fresh: FreshReader, spellings: Sequence[str]
    ) -> list[Key]:
        """Write the findings that the source still has as they were found; return the keys of the others."""
        connection, target = self.session.connection, table.target
        staging = f"replicator_repair_{self.run.batch_ids[self.job.table]}"
        names = [column.name for column in target.columns]
        connection.execute(merge.create_staging(target, staging, names))
        self._stage(findings, table, fresh, spellings, staging)
        hashes = {
            tuple(row["key"]): row["theirs"]
            for row in connection.execute(difference.hash_staged(target, staging, table.shape.digest))
        }
        kept = [finding for finding in findings if hashes.get(finding.key) == finding.theirs]
        written = [finding for finding in kept if finding.kind != EXTRA]
        gone = [finding.key for finding in kept if finding.kind == EXTRA]
        if gone:
            self.figures.rows_deleted += connection.execute(difference.delete_keys(target, gone)).rowcount
        if written:
            connection.execute(difference.keep_staged(target, staging, [finding.key for finding in written]))
            self._upsert(written, table, staging)
        connection.execute(merge.drop_staging(staging))
        done = {finding.key for finding in kept}
        return [finding.key for finding in findings if finding.key not in done]

    def _upsert(self, written: Iterable[Finding], table: TargetTable, staging: str) -> None:
        rows = self.session.connection.execute(merge.upsert(table.target, staging)).rowcount
        updated = sum(finding.kind == DIFFERENT for finding in written)
        self.figures.rows_updated += min(updated, rows)
        self.figures.rows_inserted += max(0, rows - updated)
        self.figures.rows_extracted += rows

    def _stage(
        self,
        findings: Sequence[Finding],
        table: TargetTable,
        fresh: FreshReader,
        spellings: Sequence[str],
        staging: str,
    ) -> None:
        mapping, shape = self.job.mapping, table.shape
        keys = [tuple(None if text is None else text.encode() for text in finding.key) for finding in findings]
        outputs = [name_output(output) for output in mapping.outputs if output.name in shape.spellings]
        query = sql.SQL("COPY ({}) TO STDOUT ({})").format(
            mapping.select(outputs, match_keys(mapping, spellings, keys)),
            sql.SQL("FORMAT binary" if shape.binary else "FORMAT text"),
        )
        into = merge.copy_into(
            merge.staging_name(staging), [column.name for column in table.target.columns], binary=shape.binary
        )
        with self.session.connection.cursor() as cursor, cursor.copy(into) as copy:
            for piece in copy_out(fresh.connection, query, binary=shape.binary):
                copy.write(piece)
                self.figures.bytes_copied += len(piece)
