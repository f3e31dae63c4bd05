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
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from replicator.apply import difference, merge
from replicator.apply.comparison import Finding, Pace, has_room
from replicator.apply.difference import DIFFERENT, EXTRA, Key
from replicator.apply.job import Job, Session
from replicator.apply.stream_control import ListenerState, StreamControl
from replicator.apply.target import take_replica_role
from replicator.batch import VERSION, Figures
from replicator.capture.copyout import copy_out
from replicator.capture.lookup import TRANSACTION_OPEN, FreshReader, match_keys, read_open_writers
from replicator.capture.pull import Reader, name_version, read_system_identifier
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
from replicator.verdict import Verdict, order_key

LOOKS = 5
_POLL_S = 0.05
_STALLED_S = 60.0
_OPEN_LIMIT_S = 10.0
"""How long a transaction that is open on the source is waited for; a longer one leaves what differs undecided."""
_HOLD_LIMIT_S = 3.0
"""The same while the stream is kept from landing."""
_CHUNK_KEYS = 2000
_REREAD_LIMIT_S = 120.0
"""How long the listener may take to read a table without key again."""


@dataclass(frozen=True, slots=True)
class SecondLook:
    """What another look found. settled: the keys that count although a transaction is open; None where all do."""

    verdict: Verdict
    settled: set[Key] | None

    def counts(self, key: Key) -> bool:
        """Say whether what the look found of a row can be relied on."""
        return self.settled is None or key in self.settled


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
            verdict = judge(self.job, reader, self.session, self.system_identifier, self.look, pace, with_version=True)
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

    def _look_again(self, fresh: FreshReader, watcher: Connection) -> SecondLook:
        """Compare once more, in a snapshot that sees all that the target holds by now.

        Where a transaction that has written to the table stays open, only rows that nobody is changing count.
        """
        relation = self.job.mapping.relation
        with translated("source", self.job.table):
            is_whole = begin_after(fresh, self.job, read_open_writers(watcher, relation), _OPEN_LIMIT_S)
            high = read_end_of_wal(watcher)
        self._wait_for(high)
        try:
            with still(self.session):
                verdict = judge(self.job, fresh, self.session, self.system_identifier, self.look, with_version=True)
            if is_whole or not verdict.findings:
                return SecondLook(verdict, None if is_whole else set())
            return SecondLook(verdict, self._find_settled(verdict, fresh, watcher))
        finally:
            fresh.end()

    def _find_settled(self, verdict: Verdict, fresh: FreshReader, watcher: Connection) -> set[Key]:
        """Return the keys of findings whose row of the source no open transaction has touched."""
        settled: set[Key] = set()
        spellings = spell_key(watcher, self.job)
        findings = [finding for finding in verdict.findings if finding.kind != EXTRA]
        for start in range(0, len(findings), _CHUNK_KEYS):
            chunk = findings[start : start + _CHUNK_KEYS]
            with still(self.session):
                table = open_target_table(self.session, self.job, self.system_identifier)
                staging = f"replicator_settled_{self.job.mapping.relation.oid}"
                stage_keys(self.session, self.job, table, fresh, spellings, staging, chunk, only_settled=True)
                staged = read_staged(self.session, table, staging)
                settled |= {finding.key for finding in chunk if is_unmoved(finding, staged)}
        return settled

    def _settle_keys(self, verdict: Verdict, fresh: FreshReader, watcher: Connection) -> None:
        doubtful = {finding.key: finding for finding in verdict.findings}
        confirmed: dict[Key, Finding] = {}
        for _ in range(LOOKS):
            second = self._look_again(fresh, watcher)
            again = second.verdict
            seen = {finding.key: finding for finding in again.findings}
            verdict.rows_source, verdict.rows_target = again.rows_source, again.rows_target
            moved = {}
            for key in doubtful.keys() & seen.keys():
                if is_same(doubtful[key], seen[key]) and second.counts(key):
                    confirmed[key] = seen[key]
                else:
                    moved[key] = seen[key]
            # What differs for the first time now is as doubtful as the rest was at first.
            moved |= {key: finding for key, finding in seen.items() if key not in doubtful and key not in confirmed}
            doubtful = moved
            if not doubtful or second.settled is not None:
                break
        verdict.findings = [confirmed[key] for key in sorted(confirmed, key=order_key)]
        verdict.undecided = sorted(doubtful, key=order_key)

    def _settle_rows(self, verdict: Verdict, fresh: FreshReader, watcher: Connection) -> None:
        """Look again at a table without a key, as a whole."""
        before = verdict
        for _ in range(LOOKS):
            second = self._look_again(fresh, watcher)
            again = second.verdict
            verdict.rows_source, verdict.rows_target = again.rows_source, again.rows_target
            verdict.missing_rows, verdict.extra_rows = again.missing_rows, again.extra_rows
            if again.equal or (again.digests == before.digests and second.settled is None):
                return
            if second.settled is not None:
                break
            before = again
        verdict.missing_rows = verdict.extra_rows = 0
        verdict.is_undecided = True


def is_same(one: Finding, other: Finding) -> bool:
    """Say whether two looks found the same two row versions: content alone may have changed and changed back."""
    return (one.kind, one.theirs, one.ours, one.versions) == (other.kind, other.theirs, other.ours, other.versions)


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
        # Tables without a key last: they give the run's lock back.
        for verdict in sorted(verdicts, key=lambda verdict: not jobs[verdict.table].mapping.key):
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
            self._record()
            return
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
                return
        raise OperatorError(
            f"{name} has no key, and the listener has not read it again yet",
            why="its rows can only be exchanged as a whole, at a point of the stream",
            mend="nothing: the listener does it as soon as it can; replicator verify shows whether it has",
            id="listener_rereads",
            table=name,
        )

    def _mend(self, findings: Sequence[Finding], fresh: FreshReader, spellings: Sequence[str]) -> None:
        """Write one chunk in one transaction, with nothing of the stream landing meanwhile."""
        connection, control = self.session.connection, self.session.control
        with connection.transaction():
            # In the listener's own order: its row, then the table.
            self.streams.hold()
            control.wait_for_table(self.job.table)
            table = open_target_table(self.session, self.job, self.system_identifier)
            with translated("source", self.job.table):
                writers = read_open_writers(self.source, self.job.mapping.relation)
                is_whole = begin_after(fresh, self.job, writers, _HOLD_LIMIT_S)
                moved = self._write(findings, table, fresh, spellings, only_settled=not is_whole)
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
        self,
        findings: Sequence[Finding],
        table: TargetTable,
        fresh: FreshReader,
        spellings: Sequence[str],
        *,
        only_settled: bool,
    ) -> list[Key]:
        """Write the findings that the source still has as they were found; return the keys of the others.

        only_settled: leave alone what an open transaction may have changed.
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


def begin_after(fresh: FreshReader, job: Job, xids: Iterable[int], limit_s: float) -> bool:
    """Begin a read that sees these transactions; False when one is open still after `limit_s`: then in any snapshot."""
    try:
        fresh.begin(job.mapping, xids, limit_s)
    except PassingError as error:
        if error.id != TRANSACTION_OPEN:
            raise
        fresh.begin(job.mapping, (), limit_s)
        return False
    return True


def read_staged(session: Session, table: TargetTable, staging: str) -> dict[Key, tuple[int, int]]:
    """Return hash and version of the staged rows by key."""
    query = difference.hash_staged(table.target, staging, table.shape.digest, with_version=has_room(table.target))
    return {tuple(row["key"]): (row["theirs"], row["version"]) for row in session.connection.execute(query)}


def is_unmoved(finding: Finding, staged: dict[Key, tuple[int, int]]) -> bool:
    """Say whether the source still has a row as it was found, or still lacks it."""
    if finding.theirs is None:
        return finding.key not in staged
    return staged.get(finding.key) == (finding.theirs, finding.versions[0])


def stage_keys(
    session: Session,
    job: Job,
    table: TargetTable,
    fresh: FreshReader,
    spellings: Sequence[str],
    staging: str,
    findings: Iterable[Finding],
    *,
    only_settled: bool,
) -> None:
    """Bring the source's rows with the findings' keys into a new staging table.

    spellings: the source's types of the key. only_settled: rows that no transaction has changed or locked.
    """
    mapping, shape = job.mapping, table.shape
    names = [column.name for column in table.target.columns]
    numbers = [VERSION] if has_room(table.target) else []
    session.connection.execute(merge.create_staging(table.target, staging, names, numbers=numbers))
    keys = [tuple(None if text is None else text.encode() for text in finding.key) for finding in findings]
    outputs: list[sql.Composable] = [
        name_output(output) for output in mapping.outputs if output.name in shape.spellings
    ]
    if numbers:
        outputs.append(name_version())
    settled = sql.SQL("xmax = '0'::xid") if only_settled else None
    query = sql.SQL("COPY ({}) TO STDOUT ({})").format(
        mapping.select(outputs, match_keys(mapping, spellings, keys), settled),
        sql.SQL("FORMAT binary" if shape.binary else "FORMAT text"),
    )
    into = merge.copy_into(merge.staging_name(staging), [*names, *numbers], binary=shape.binary)
    with session.connection.cursor() as cursor, cursor.copy(into) as copy:
        for piece in copy_out(fresh.connection, query, binary=shape.binary):
            copy.write(piece)
