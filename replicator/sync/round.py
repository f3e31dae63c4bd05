"""One snapshot of the source, and the tables that are read in it by several workers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar

import psycopg

from replicator.apply.control import Control
from replicator.apply.job import Incoming, Job, Session
from replicator.apply.keyed import KeyedLoad
from replicator.apply.loader import load_group
from replicator.apply.stream_control import ListenerState, StreamControl, overtaken
from replicator.apply.target import order_by_foreign_keys, prepare_enums, prepare_schemas, take_replica_role
from replicator.batch import Figures
from replicator.capture.history import await_flush, settle_history
from replicator.capture.pull import (
    LOCKS_SHORT,
    Reader,
    Snapshot,
    TableReader,
    count_conflicts,
    is_standby,
    locks_short,
    observe,
    read_system_identifier,
    take_snapshot,
)
from replicator.capture.source_state import read_end_of_wal, read_slot
from replicator.catalog import find_relations, read_relations
from replicator.continuity import Standing, judge_standing
from replicator.db import CONFLICT, Connection, connect, recovery_conflict, translate, translated
from replicator.errors import LimitReached, OperatorError, PassingError, ReplicatorError, StreamedError, unexpected
from replicator.patience import FAILOVER, as_passing
from replicator.pooler import server_pid
from replicator.reading import Observation, Reading, distrust_stream
from replicator.strategy import FULL, WATERMARK, XMIN
from replicator.sync.identity import is_same_database
from replicator.sync.inventory import Chosen
from replicator.sync.preparation import choose_digest, decide_job, find_home, prepare_job, went_away
from replicator.sync.rights import find_read_gaps, find_write_gap
from replicator.sync.run import Run

LOCK_ATTEMPTS = 3
CONFLICT_ATTEMPTS = 3
"""How often a table is read whose read its standby cancels: it would do so for ever."""
_WATCH_EVERY_S = 0.5


@dataclass
class Round:
    """One snapshot and the tables read in it."""

    run: Run
    control: Control
    pending: list[Chosen]
    left: list[Chosen] = field(default_factory=list)
    passing: PassingError | None = None
    keyed_load: ClassVar[type[KeyedLoad]] = KeyedLoad

    def execute(self) -> None:
        run = self.run
        self.left = list(self.pending)
        if run.most_locked is not None and len(self.pending) > run.most_locked:
            # The others keep their turn for the next round.
            self.passing = locks_short()
            self.pending = self.pending[: run.most_locked]
        self.queue: deque[list[Job]] = deque()
        self.mutex = threading.Lock()
        self.given_way = threading.Event()
        self.active, self.shares_coordinator = 0, False
        self.readers: list[Reader] = []
        self.connections: list[Connection] = []
        with translated("source"):
            own = [server_pid(run.watcher)]
            identifier = read_system_identifier(run.watcher)
            run.early.insert(0, observe(run.watcher, own))
            on_standby = is_standby(run.watcher)
            self.conflicts = count_conflicts(run.watcher) if on_standby else 0
        kept = self.control.read_observations(identifier)
        self.home = find_home(self.control.read_records().values())
        streams = StreamControl(self.control.connection, self.control.schema, self.control.pipeline)
        state = streams.read_state()
        self.listener_epoch = 0 if state is None else state.epoch
        self.streamed = set() if state is None else set(streams.read_tables())
        self.snapshot = self._take_snapshot([(c.schema, c.name, c.kind) for c in self.pending])
        try:
            with translated("source"):
                self.end_of_wal = read_end_of_wal(run.watcher)
                self._settle_history()
            self.standing = self._judge_stream(state)
            self._plan(kept, on_standby)
            self._work()
        finally:
            self.snapshot.close()
        run.early.insert(0, self.snapshot.observation)
        if WATERMARK in run.strategies.values():
            self.control.record_observations(identifier, run.early)

    def _take_snapshot(self, relations: list[tuple[str, str, str]]) -> Snapshot:
        return take_snapshot(self.run.access, self.run.watcher, relations)

    def _settle_history(self) -> None:
        """Make sure that what the snapshot sees is on the source's disk, and find out which reads still count there."""
        known = {text for record in self.run.records.values() if (text := record.state.marker)}
        facts, self.lost_markers = settle_history(self.run.watcher, self.snapshot.facts, known)
        self.snapshot.facts = facts
        if not facts.is_standby and not await_flush(self.run.watcher, facts.lsn):
            self.run.log.warning(
                "source_not_flushed",
                path=self.run.path,
                lsn=str(facts.lsn),
                reason="what was read is not on the source's disk yet: after a crash of it the next run reads all",
            )

    def _judge_stream(self, state: ListenerState | None) -> Standing:
        """Judge whether the source has what a stream brought, which is none of the tables' own reads."""
        if state is None or state.position is None:
            return Standing.PROVEN
        with translated("source"):
            slot = read_slot(self.run.watcher, self.run.settings.slot_name)
        return judge_standing(state.position, self.end_of_wal, None if slot is None else slot.confirmed)

    def _decide(self, job: Job) -> Reading:
        facts, full = self.snapshot.facts, self.run.full
        reading = decide_job(job, facts, self.observations, full=full, home=self.home, lost_markers=self.lost_markers)
        return distrust_stream(reading, self.standing) if job.table in self.streamed else reading

    def _ahead(self, session: Session, incoming: Incoming) -> None:
        """Raise StreamedError or PassingError where a listener has the table: this snapshot may be older than its rows.

        With the table's lock held, so that no batch of the stream lands in between.
        """
        control = StreamControl(session.connection, session.control.schema, session.control.pipeline)
        if incoming.job.table not in control.read_tables():
            return
        state = control.read_state()
        if control.is_listening():
            raise StreamedError(incoming.job.table)
        if state is not None and state.epoch != self.listener_epoch:
            raise overtaken(incoming.job.table)

    def _also(self, session: Session, incoming: Incoming) -> None:
        """Let the stream pass over what this read brought: else the rows would go back in time, or come twice."""
        control = StreamControl(session.connection, session.control.schema, session.control.pipeline)
        if reads_exactly(incoming.reading) and incoming.job.table in control.read_tables():
            control.save_seen(incoming.job.table, self.snapshot.facts.snapshot, self.end_of_wal, self.listener_epoch)

    def _plan(self, kept: list[Observation], on_standby: bool) -> None:
        """Compile every table's job in the snapshot; tables that cannot be read fail here."""
        run, snapshot = self.run, self.snapshot
        self.observations = [snapshot.observation, *run.early, *kept]
        by_name = {(c.schema, c.name): c for c in self.pending}
        self._lock_fewer([error for error in snapshot.failures.values() if error.id == LOCKS_SHORT])
        for name, error in self._name_grants(snapshot.failures).items():
            chosen = by_name.pop(name)
            run.attempts[chosen.table] = run.attempts.get(chosen.table, 0) + 1
            self._settle(chosen, error)
        with translated("source"):
            found = find_relations(snapshot.connection, by_name)
            relations = read_relations(snapshot.connection, found.values())
        self.digest = choose_digest(run.watcher, self.control.connection)
        self.is_source = is_same_database(run.watcher, self.control.connection)
        self.relations = relations
        jobs: list[Job] = []
        for name, chosen in by_name.items():
            try:
                if name not in found:
                    raise went_away(chosen.table)
                job = prepare_job(
                    run.watcher,
                    relations[found[name]],
                    chosen,
                    run.records[chosen.table],
                    run.batch_ids.get(chosen.table, 0),
                    on_standby=on_standby,
                    mask_key=run.access.mask_key,
                    target=self.control.connection,
                )
                run.strategies[chosen.table] = job.choice.strategy
                jobs.append(job)
            except ReplicatorError as error:
                self._settle(chosen, error)
        self._queue_jobs(jobs)

    def _lock_fewer(self, short: Sequence[ReplicatorError]) -> None:
        """Take note of how many tables a round may lock at a time, from the next one on."""
        if short:
            self.run.most_locked = max(1, len(self.pending) - len(short))

    def _await_locks(self, error: ReplicatorError) -> ReplicatorError:
        """Return the transient error of a table for whose locks there is no room while others are locked too."""
        if error.sqlstate != "53200" or error.id != "limit_reached" or len(self.pending) < 2:
            return error
        with self.mutex:
            self.run.most_locked = max(1, min(self.run.most_locked or len(self.pending), len(self.pending) // 2))
        return locks_short(error.table)

    def _name_grants(self, failures: dict[tuple[str, str], ReplicatorError]) -> dict[tuple[str, str], ReplicatorError]:
        """Return the failures, those for want of a right with the GRANT in SQL."""
        denied = [name for name, error in failures.items() if error.sqlstate == "42501"]
        if not denied:
            return failures
        with translated("source"):
            found = find_relations(self.run.watcher, denied)
            gaps = find_read_gaps(self.run.watcher, found.values())
        return failures | {name: gaps[oid] for name, oid in found.items() if oid in gaps}

    def _queue_jobs(self, jobs: list[Job]) -> None:
        """Put the jobs in groups that load together, the biggest first, and bring enums up to date."""
        with translated("target"):
            prepare_schemas(self.control.connection, jobs)
        jobs = [job for job in jobs if self._prepare_enums(job)]
        with translated("target"):
            can_replicate = take_replica_role(self.control.connection)
            groups = [[job] for job in jobs] if can_replicate else order_by_foreign_keys(self.control.connection, jobs)
        groups.sort(key=self._rank)
        self.queue.extend(groups)

    def _rank(self, group: Sequence[Job]) -> tuple[int, int]:
        """Return a group's place: the biggest comes first, but on a standby, which one session reads, it comes last.

        The older the snapshot is, the likelier is a conflict with the standby's replay, and it ends all that is left.
        """
        size = sum(job.mapping.relation.heap_bytes for job in group)
        if not self.snapshot.facts.is_standby:
            return 0, -size
        return max(self.run.conflicts[job.table] for job in group), size

    def _prepare_enums(self, job: Job) -> bool:
        try:
            with translated("target", job.table):
                prepare_enums(self.control.connection, job)
        except ReplicatorError as error:
            self._settle_group([job], error)
            return False
        return True

    def _work(self) -> None:
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(done,), name="watch", daemon=True)
        watch.start()
        self._share_out()
        done.set()
        watch.join()

    def _share_out(self) -> None:
        """Load what is queued, several groups at a time."""
        self._run_workers(1 if self.snapshot.facts.is_standby else self.run.jobs)

    def _run_workers(self, most: int) -> None:
        count = self.active = min(most, len(self.queue))
        workers = [threading.Thread(target=self._load_groups, name=f"load-{n}", daemon=True) for n in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _watch(self, done: threading.Event) -> None:
        """Give way to whoever waits longer than max_hold for a table we read, and end reads when the run is stopped."""
        max_hold_s = self.run.settings.source.max_hold.total_seconds()
        members = {m.oid: oid for oid, relation in self.relations.items() for m in relation.members}
        members |= {oid: oid for oid in self.relations}
        coordinator = server_pid(self.snapshot.connection)
        first_seen: dict[int, float] = {}
        while not done.wait(_WATCH_EVERY_S):
            if self.run.stop.is_set():
                self._cancel()
                continue
            try:
                blockers = self.snapshot.find_blocked({coordinator, *(reader.pid for reader in list(self.readers))})
            except psycopg.Error:
                return
            now = time.monotonic()
            first_seen = {oid: first_seen.get(oid, now) for oid in blockers}
            late = [oid for oid, since in first_seen.items() if now - since >= max_hold_s]
            if late:
                self._give_way(set().union(*(blockers[oid] for oid in late)))
                self._move_to_end({members[oid] for oid in late if oid in members})

    def _give_way(self, pids: set[int]) -> None:
        """End the coordinator and the readers that are in the way, idle ones too."""
        self.given_way.set()
        with suppress(psycopg.Error):
            self.snapshot.end_sessions(pids)

    def _cancel(self) -> None:
        """End what runs, on both sides."""
        for reader in list(self.readers):
            with suppress(psycopg.Error):
                reader.cancel()
        for connection in list(self.connections):
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=5.0)

    def _move_to_end(self, oids: set[int]) -> None:
        late = {self.relations[oid].schema + "\0" + self.relations[oid].name for oid in oids}
        with self.mutex:
            self.left.sort(key=lambda chosen: chosen.schema + "\0" + chosen.name in late)

    def _next_group(self) -> list[Job] | None:
        with self.mutex:
            is_over = self.given_way.is_set() or self.run.stop.is_set() or self.passing_connection_lost()
            if self.queue and not is_over and not self._has_lost_coordinator():
                return self.queue.popleft()
            self.active -= 1
            return None

    def _has_lost_coordinator(self) -> bool:
        """Say whether the session is gone that reads all tables, where one does."""
        return (self.snapshot.facts.is_standby or self.shares_coordinator) and self.snapshot.connection.closed

    def _steps_back(self, group: list[Job]) -> bool:
        """Say whether a worker that found no connection to spare leaves its group to the others: never the last."""
        with self.mutex:
            if self.active < 2:
                return False
            self.active -= 1
            self.queue.appendleft(group)
        self.run.log.warning("worker_withdrawn", path=self.run.path, reason="no connection to spare")
        return True

    def passing_connection_lost(self) -> bool:
        """Say whether a connection broke in this round: the other tables then wait for the next one."""
        return self.passing is not None and self.passing.sqlstate is None

    def _load_groups(self) -> None:
        """Work through the queue with one reader and one session."""
        reader: Reader | None = None
        session: Session | None = None
        try:
            while group := self._next_group():
                try:
                    if session is None or session.connection.closed:
                        session = self._open_session()
                    reader = reader or self._open_reader()
                    self._load(group, reader, session)
                except LimitReached as error:
                    if self._steps_back(group):
                        return
                    self._get_by(group, error, lacks_reader=session is not None and reader is None)
                except psycopg.Error as error:
                    self._settle_group(group, self._name_target_grant(group, translate(error, side="target")))
                except ReplicatorError as error:
                    named = self._name_target_grant(group, self._name_conflict(group, error))
                    self._settle_group(group, named)
                    self._drop_reader(reader)
                    reader = None
                except Exception as error:  # noqa: BLE001  # a thread has nobody above it; the table's row tells
                    self._settle_group(group, unexpected(error))
        finally:
            if reader is not None:
                reader.close()
            if session is not None:
                session.connection.close()

    def _get_by(self, group: list[Job], error: LimitReached, *, lacks_reader: bool) -> None:
        """Let the coordinator read by itself, as on a standby, where the last worker finds no connection to spare."""
        if not lacks_reader or self.shares_coordinator:
            self._settle_group(group, error)
            return
        self.shares_coordinator = True
        with self.mutex:
            self.queue.appendleft(group)

    def _name_target_grant(self, group: Sequence[Job], error: ReplicatorError) -> ReplicatorError:
        """Return the error, with the GRANT in SQL where the target's role lacks one."""
        jobs = [job for job in group if error.table in (None, job.table)]
        if error.sqlstate != "42501" or error.id != "grant_missing" or len(jobs) != 1:
            return error
        with suppress(ReplicatorError, psycopg.Error), closing(self._open_session().connection) as connection:
            return find_write_gap(connection, jobs[0]) or error
        return error

    def _name_conflict(self, group: Sequence[Job], error: ReplicatorError) -> ReplicatorError:
        """Return the error, or the conflict that ended an idle session of a standby: that is told to nobody else."""
        if not self.snapshot.facts.is_standby or error.id != "connection_lost":
            return error
        with suppress(psycopg.Error):
            if count_conflicts(self.run.watcher) > self.conflicts:
                return recovery_conflict(group[0].table, "the standby ended the session that reads")
        return error

    def _open_reader(self) -> Reader:
        reader = Reader(self.snapshot, shares_coordinator=self.shares_coordinator)
        self.readers.append(reader)
        return reader

    def _drop_reader(self, reader: Reader | None) -> None:
        """Close a reader: a COPY that was cut short, or a failed statement, ends its transaction."""
        if reader is not None:
            self.readers.remove(reader)
            reader.close()
        if self.snapshot.facts.is_standby or self.shares_coordinator:
            self.passing = self.passing or snapshot_ended()

    def _open_session(self) -> Session:
        connection = connect(self.run.target_conninfo, side="target", timeout_s=self.run.timeout_s)
        self.connections.append(connection)
        # Whoever holds a target table for longer than this keeps it from one run, not the run from all.
        wait_ms = int(self.run.lock_wait_s * 1000)
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{max(1, wait_ms)}ms"])
        replica = take_replica_role(connection)
        return Session(
            connection,
            Control(connection, self.control.schema, self.control.pipeline),
            self.digest,
            replica,
            rebuilds=self.run.path == "resync",
            is_source=self.is_source,
            allowed_deletes=self.run.allowed_deletes,
        )

    def _load(self, group: Sequence[Job], reader: Reader, session: Session) -> None:
        run = self.run
        incoming = []
        for job in group:
            run.started.setdefault(job.table, datetime.now(UTC))
            run.attempts[job.table] = run.attempts.get(job.table, 0) + 1
            reading = self._decide(job)
            source = TableReader(reader, job.mapping, reading, job.table)
            incoming.append(Incoming(job, reading, self.snapshot.facts, source))
            # Only in this order: while nobody had given way, the coordinator's lock reached up to the reader's own.
            if not reader.try_lock(job.mapping.relation) or self.given_way.is_set():
                raise gave_way(job.table)
        attempts = max(run.attempts[job.table] for job in group)
        figures = load_group(
            session, incoming, attempts=attempts, ahead=self._ahead, also=self._also, keyed=self._make_load
        )
        for one, counted in zip(incoming, figures, strict=True):
            self._land(one, counted)

    def _make_load(self, session: Session, incoming: Incoming, attempts: int) -> KeyedLoad:
        return self.keyed_load(session, incoming, attempts)

    def _land(self, incoming: Incoming, figures: Figures) -> None:
        job, run = incoming.job, self.run
        run.log.info(
            "table_synced",
            table=job.table,
            path=run.path,
            load_type=incoming.reading.load_type,
            strategy=incoming.reading.strategy,
            reason=incoming.reading.reason or None,
            duration_seconds=round((datetime.now(UTC) - run.started[job.table]).total_seconds(), 3),
            lsn=str(incoming.facts.lsn),
            **figures.counts(),
        )
        with self.mutex:
            self.left = [chosen for chosen in self.left if chosen.table != job.table]
            self._tell_landed(job.table)

    def _tell_landed(self, table: str) -> None:
        """Tell how many tables are done. With the mutex held."""
        self.run.progress(table, len(self.run.records) - len(self.left), len(self.run.records))

    def _settle_group(self, group: Sequence[Job], error: ReplicatorError) -> None:
        error = self._await_locks(error)
        tables = {job.table for job in group}
        for chosen in [chosen for chosen in self.left if chosen.table in tables]:
            self._settle(chosen, error)

    def _settle(self, chosen: Chosen, error: ReplicatorError) -> None:
        """Keep a table pending after a passing error, or record its failure."""
        if isinstance(error, OperatorError) and error.id in FAILOVER and self.run.has_written:
            error = as_passing(error)
        gave_up_read = error.sqlstate == "57014" and (self.given_way.is_set() or self.run.stop.is_set())
        is_passing = isinstance(error, PassingError) or gave_up_read or self.given_way.is_set()
        if error.sqlstate == "55P03":
            is_passing = self.run.attempts.get(chosen.table, 0) < LOCK_ATTEMPTS
        if error.id == CONFLICT:
            self.run.conflicts[chosen.table] += 1
            if self.run.conflicts[chosen.table] >= CONFLICT_ATTEMPTS:
                is_passing, error = False, give_up(error)
        if is_passing:
            if isinstance(error, PassingError) and not self.given_way.is_set():
                self.passing = error
            return
        with self.mutex:
            self.left = [other for other in self.left if other.table != chosen.table]
        if isinstance(error, StreamedError):
            self.run.skip(chosen.table, error.message)
        else:
            self.run.fail(chosen.table, error)


def reads_exactly(reading: Reading) -> bool:
    """Say whether a table equals the snapshot afterwards, whatever its stamps say."""
    return reading.load_type == FULL or reading.strategy == XMIN or reading.audit


def gave_way(table: str | None = None) -> PassingError:
    """Return the passing error of a table whose read was given up for somebody who waits for a lock."""
    return PassingError(
        "a read was given up",
        why="somebody waits for a stronger lock on a table that was to be read",
        hint="it is tried again by itself",
        id="gave_way",
        sqlstate="55P03",
        table=table,
    )


def give_up(error: ReplicatorError) -> OperatorError:
    """Return the error of a table that a standby has let nobody read, however often it was tried."""
    return OperatorError(
        error.what, why=f"{error.why}; tried {CONFLICT_ATTEMPTS} times", hint=error.hint, id=error.id,
        sqlstate=error.sqlstate, table=error.table,
    )  # fmt: skip


def snapshot_ended() -> PassingError:
    """Return the passing error of the tables of a standby that were to be read after one whose read failed."""
    return PassingError(
        "the snapshot ended with the read that failed",
        why="one session reads all tables",
        hint="the others are read in a new snapshot, by itself",
        id="snapshot_ended",
    )
