"""Compares a table while a listener keeps it, without pausing the stream.

A snapshot of the source and a position of the stream never correspond: a commit may be delivered while its transaction
is still invisible to snapshots, and the target is a little behind any snapshot. So a row that differs is looked at
again: in a snapshot that sees every transaction which had written to the table and was open when the target was read,
against a target that has passed that snapshot. Where both looks found the same two row versions, nothing happened to
the row in between: the target is wrong. A row that moved is looked at once more, and `undecided` if it always does.
The rows of a table without a key have no names: `exact_look` compares it as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replicator.apply import difference, merge
from replicator.apply.comparison import Finding, Pace, has_room
from replicator.apply.difference import EXTRA, Key
from replicator.apply.job import Job, Session
from replicator.apply.stream_control import ListenerState, StreamControl
from replicator.batch import VERSION
from replicator.capture.copyout import copy_out
from replicator.capture.lookup import TRANSACTION_OPEN, FreshReader, match_keys, read_open_writers
from replicator.capture.pull import Reader, name_version
from replicator.capture.source_state import read_end_of_wal, send_heartbeat
from replicator.db import Connection, closing, translated
from replicator.errors import PassingError, ReplicatorError
from replicator.position import Lsn
from replicator.proof.exact_look import UNDECIDABLE, ExactLook
from replicator.proof.judgement import Look, TargetTable, judge, open_target_table, still
from replicator.proof.verdict import Verdict, order_key
from replicator.rules import name_output
from replicator.stream.table import spell_key
from replicator.sync.run import Run

LOOKS = 5
_POLL_S = 0.05
_STALLED_S = 60.0
_IDLE_S = 0.5
_OPEN_LIMIT_S = 10.0
"""How long a transaction that is open on the source is waited for; a longer one leaves what differs undecided."""
CHUNK_KEYS = 2000
_EXACT_LOOKS, _EXACT_PAUSE_S = 2, 1.0


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

    def __init__(self, run: Run, session: Session, job: Job, look: Look) -> None:
        self.run, self.session, self.job = run, session, job
        self.look = look
        self.control = StreamControl(session.connection, session.control.schema, session.control.pipeline)

    def judge(self, reader: Reader, high: Lsn, pace: Pace) -> Verdict:
        """Compare the table. reader: in a snapshot taken before the source's WAL had reached `high`."""
        self._wait_for(high)
        with still(self.session):
            verdict = judge(self.job, reader, self.session, self.look, pace, with_version=True)
        if verdict.equal:
            return verdict
        with closing(self.run.access.open()) as watcher:
            fresh = FreshReader(self.run.access.narrow(watcher), self.run.stop)
            try:
                if self.job.mapping.key:
                    self._settle_keys(verdict, fresh, watcher)
                else:
                    self._decide_rows(verdict, fresh, watcher)
            finally:
                fresh.close()
        return verdict

    def _wait_for(self, high: Lsn) -> None:
        wait_for_position(self.run, self.control, self.job.table, high)

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
                verdict = judge(self.job, fresh, self.session, self.look, with_version=True)
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
        for start in range(0, len(findings), CHUNK_KEYS):
            chunk = findings[start : start + CHUNK_KEYS]
            with still(self.session):
                table = open_target_table(self.session, self.job)
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

    def _decide_rows(self, verdict: Verdict, fresh: FreshReader, watcher: Connection) -> None:
        """Look again at a table without a key, as a whole: exactly, or until nothing of it moves between two looks."""
        exact = self._compare_exactly(watcher)
        if exact is not None:
            verdict.rows_source, verdict.rows_target, verdict.digests = (
                exact.rows_source,
                exact.rows_target,
                exact.digests,
            )
            verdict.missing_rows, verdict.extra_rows = exact.missing_rows, exact.extra_rows
            return
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

    def _compare_exactly(self, watcher: Connection) -> Verdict | None:
        """Compare both sides as of one position of the stream; None where that cannot be had."""
        exact = ExactLook(self.run, self.session, self.job)
        for _ in range(_EXACT_LOOKS):
            try:
                with exact.open(watcher) as point:
                    self._wait_for(point.begins)
                    with still(self.session):
                        return exact.compare(point)
            except PassingError as error:
                if error.id != UNDECIDABLE:
                    raise
                self.run.log.info("look_undecided", table=self.job.table, path=self.run.path, reason=error.why)
                if self.run.stop.wait(_EXACT_PAUSE_S):
                    return None
        return None


def wait_for_position(run: Run, control: StreamControl, name: str, high: Lsn) -> None:
    """Wait until the stream has passed a position. Raises PassingError when it stands still or has ended."""
    last, since, has_sent = None, time.monotonic(), False
    while True:
        state = control.read_state()
        table = control.read_tables().get(name)
        position = _position(state)
        if table is None:
            raise PassingError(
                f"the listener has left {name} out",
                why="it is parked, or was dropped, since the run began",
                hint="replicator status tells the reason; the run can be made again",
                id="table_left",
                table=name,
            )
        if position is not None and max(position, table.origin.since) >= high:
            return
        if position != last:
            last, since = position, time.monotonic()
        if not has_sent and time.monotonic() - since > _IDLE_S:
            has_sent = True
            _send_heartbeat(run)
        if not control.is_listening() or time.monotonic() - since > _STALLED_S:
            raise PassingError(
                f"the listener does not come up to the snapshot of {name}",
                why="it has stopped, or its position does not move",
                hint="replicator status; without a listener the table is compared as any other",
                id="listener_behind",
                table=name,
            )
        if run.stop.wait(_POLL_S):
            raise PassingError("the run was stopped", why="a signal asked the process to end", id="interrupted")


def _send_heartbeat(run: Run) -> None:
    """Commit on the source, if the role may: it sends only what is flushed, and when idle flushes every 15 seconds.

    What an open transaction has written would be waited for that long.
    """
    if not run.settings.listen.heartbeat:
        return
    with suppress(psycopg.Error, ReplicatorError), closing(run.access.open()) as connection:
        send_heartbeat(connection)


def is_same(one: Finding, other: Finding) -> bool:
    """Say whether two looks found the same two row versions: content alone may have changed and changed back."""
    return (one.kind, one.theirs, one.ours, one.versions) == (other.kind, other.theirs, other.ours, other.versions)


def _position(state: ListenerState | None) -> Lsn | None:
    return None if state is None else state.position


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
