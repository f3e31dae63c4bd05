"""The listener: finds out where it stands, copies what is missing, follows the stream; again after every passing error.

Each session begins from the position in the target, so whatever an earlier one had in hand when it ended is read
again: an answer to COMMIT that was lost needs no other care.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum

import psycopg

from replicator.apply.control import Control
from replicator.apply.job import Job
from replicator.apply.stream_control import ListenerState, StreamControl, StreamTable
from replicator.apply.stream_load import Landed, StreamLoader
from replicator.apply.target import take_replica_role
from replicator.capture.collector import Collector
from replicator.capture.intake import Intake
from replicator.capture.lookup import Delivered, Lookup
from replicator.capture.pgoutput import Relation as RelationMessage
from replicator.capture.publication import (
    check_identity,
    ensure_publication,
    plan_table,
    read_identities,
    read_memberships,
    read_published,
)
from replicator.capture.pull import read_system_identifier
from replicator.capture.source_state import (
    SlotFacts,
    check_slot,
    check_source,
    drop_slot,
    read_end_of_wal,
    read_slot,
    read_timeline,
)
from replicator.capture.walsender import NewSlot, WalSender
from replicator.db import Connection, closing, connect, translated
from replicator.errors import (
    ConfigError,
    LockHeldError,
    OperatorError,
    PassingError,
    PreflightError,
    ReplicatorError,
    SafetyStop,
)
from replicator.inventory import Chosen, require_tables, take_inventory
from replicator.log import get_logger
from replicator.patience import Patience
from replicator.position import Lsn
from replicator.preparation import choose_digest, open_access, prepare_jobs
from replicator.reading import SnapshotFacts
from replicator.relation import KIND_NAMES, LOGGED, PARTITIONED, TABLE
from replicator.run import Run
from replicator.settings import Settings
from replicator.slot_copy import SlotRound, copy_in_slot
from replicator.stream import LoadingThread, Stream, Until, Watch
from replicator.stream_definition import define
from replicator.stream_table import VERSION, StreamedTable, make_streamed, spell_key

COPY_SUFFIX = "_copy"
_REPAIR = "replicator listen --repair-gap"


class Outcome(Enum):
    """How a session ended."""

    DONE = "done"
    AGAIN = "again"


@dataclass
class ListenResult:
    """What a bounded listener did. position: all before it is in the target and confirmed."""

    execution_id: uuid.UUID
    position: Lsn | None = None
    transactions: int = 0
    rows: dict[str, int] = field(default_factory=dict)


class Listener:
    """Follows a source until it is stopped, or up to a point.

    until_caught_up: end once all that was committed before the start is in the target; until_lsn: the same of a
    position. repair_gap: where the slot cannot go on from the target's position, pull what is missing.
    """

    def __init__(
        self,
        settings: Settings,
        target_conninfo: str,
        *,
        until_caught_up: bool = False,
        until_lsn: Lsn | None = None,
        repair_gap: bool = False,
        jobs: int = 2,
        stop: threading.Event | None = None,
    ) -> None:
        self.settings, self.target_conninfo, self.jobs = settings, target_conninfo, jobs
        self.until_caught_up, self.repair_gap = until_caught_up, repair_gap
        self.until = Until(until_lsn)
        self.stop = stop or threading.Event()
        self.access = open_access(settings)
        self.result = ListenResult(uuid.uuid4())
        self.log = get_logger().bind(run_id=str(self.result.execution_id))
        self.is_bounded = until_caught_up or until_lsn is not None
        self.patience = Patience(self.stop, self.log, limit_s=None if self.is_bounded else math.inf)
        self.is_connected = False
        self.has_lost_publication = False

    def run(self) -> ListenResult:
        """Listen. Raises what only an operator can mend; passing errors are borne, for ever unless bounded."""
        self.log.info("run_started", path="listen", triggered_by="listener")
        try:
            for attempt in self.patience.attempts():
                with attempt:
                    while self._run_session() is Outcome.AGAIN and not self.stop.is_set():
                        pass
        except PassingError:
            # Asked to end amid a retry: what was in hand is unconfirmed, and the source sends it again.
            if not self.stop.is_set():
                raise
        if self.stop.is_set() and self.is_bounded:
            raise _stopped_early()
        self.log.info(
            "run_finished",
            path="listen",
            lsn=None if self.result.position is None else str(self.result.position),
            transactions=self.result.transactions,
        )
        return self.result

    def _run_session(self) -> Outcome:
        with ExitStack() as stack:
            session = _Session(self, stack)
            try:
                return session.run()
            except OperatorError as error:
                if self.repair_gap and is_publication_lost(error) and not self.has_lost_publication:
                    # The WAL holds changes of a time without the publication: no stream passes by those.
                    self.has_lost_publication = True
                    return Outcome.AGAIN
                session.record_failure(error)
                raise


def is_publication_lost(error: OperatorError) -> bool:
    """Say whether the stream, not the catalog, lacks the publication."""
    return error.id == "publication_missing" and not isinstance(error, PreflightError)


def _stopped_early() -> OperatorError:
    return OperatorError(
        "the listener was stopped before it reached its end",
        why="a signal asked the process to end",
        mend="nothing is lost: run it again",
        id="interrupted",
    )


class _Session:
    """One life of the listener's connections."""

    def __init__(self, listener: Listener, stack: ExitStack) -> None:
        self.listener, self.stack = listener, stack
        self.settings, self.access, self.log = listener.settings, listener.access, listener.log
        self.stop = listener.stop
        self.timeout_s = self.settings.source.connect_timeout.total_seconds()
        self.control: Control | None = None
        self.stream_control: StreamControl | None = None
        self.tables: dict[str, StreamedTable] = {}
        self.memberships: dict[int, str] = {}

    def run(self) -> Outcome:
        """Connect, find out where the stream stands, make up for what is missing, follow it."""
        first = not self.listener.is_connected
        control, streams, state = self._open_target(first=first)
        self._open_source(first=first)
        self.listener.is_connected = True
        with translated("source"):
            self.version = check_source(self.watcher)
            if self.listener.until_caught_up and self.listener.until.lsn is None:
                self.listener.until.lsn = read_end_of_wal(self.watcher)
        chosen = self._choose_tables()
        if self.stop.is_set():
            return Outcome.DONE
        settled = self._settle_position(control, streams, state, chosen)
        if settled is None or self.stop.is_set():
            return Outcome.AGAIN
        self._join_tables(control, streams, chosen)
        return self._follow(streams, settled)

    # ------------------------------------------------------------------------------------------ connections

    def _open_target(self, *, first: bool) -> tuple[Control, StreamControl, ListenerState]:
        connection = connect(self.listener.target_conninfo, side="target", timeout_s=self.timeout_s, first=first)
        self.stack.enter_context(closing(connection))
        schema, pipeline = self.settings.target.control_schema, self.settings.pipeline
        self.control = control = Control(connection, schema, pipeline)
        with translated("target"):
            control.migrate()
            wait_s = self.settings.lock_wait.total_seconds()
            control.take_lock("listener", wait_s)
            self.stream_control = streams = StreamControl(connection, schema, pipeline)
            state = streams.claim(wait_s)
            control.close_dead_runs(self.listener.result.execution_id, ["listen"])
        return control, streams, state

    def _open_source(self, *, first: bool) -> None:
        self.watcher = self.stack.enter_context(closing(self.access.open(first=first)))

    def record_failure(self, error: OperatorError) -> None:
        """Leave a trace of what stopped the listener."""
        if self.stream_control is None or isinstance(error, LockHeldError):
            return
        table = error.table or "-"
        with suppress(psycopg.Error, ReplicatorError):
            connection = connect(self.listener.target_conninfo, side="target", timeout_s=self.timeout_s)
            with closing(connection):
                control = StreamControl(connection, self.stream_control.schema, self.stream_control.pipeline)
                control.record_failure(self.listener.result.execution_id, table, error)
        self.log.error(
            "run_failed", path="listen", table=error.table, error_type=error.id, error_message=error.message,
            sqlstate=error.sqlstate,
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------- tables

    def _choose_tables(self) -> list[Chosen]:
        """Return the tables that a stream can bring; the others stay with the nightly sync."""
        with translated("source"):
            inventory = take_inventory(self.watcher, self.settings)
        require_tables(inventory)
        for error in inventory.missing.values():
            raise error
        kinds = [table for table in inventory.tables if table.kind in (TABLE, PARTITIONED)]
        jobs = self._prepare_jobs(kinds)
        chosen = [table for table in kinds if jobs[table.table].mapping.relation.persistence == LOGGED]
        for table in inventory.tables:
            if table not in chosen:
                kind = KIND_NAMES[table.kind] if table not in kinds else "table that is unlogged"
                self.log.info("table_skipped", table=table.table, reason=f"a {kind} has no stream")
        if not chosen:
            raise ConfigError(
                "none of the configured tables has a stream",
                why="views, materialized views, foreign and unlogged tables are not published",
                mend="name other tables under [[tables]]; these stay with `replicator sync`",
                id="no_tables",
            )
        self._publish(chosen, {table.table: jobs[table.table] for table in chosen})
        return chosen

    def _publish(self, chosen: Sequence[Chosen], jobs: Mapping[str, Job]) -> None:
        """Check that every table's changes can be told, and bring the publication up to them."""
        with translated("source"):
            identities = read_identities(self.watcher, [job.mapping.relation.oid for job in jobs.values()])
            published = []
            for table in chosen:
                job = jobs[table.table]
                own = identities[job.mapping.relation.oid]
                check_identity(table.table, job.mapping, own)
                excludes = len(job.mapping.outputs) < len(job.mapping.relation.columns)
                published.append(plan_table(job.mapping, excludes, own))
            ensure_publication(self.watcher, self.settings.publication_name, published, self.version)
            self.memberships = self._read_memberships(self.watcher, jobs)

    def _read_memberships(self, connection: Connection, jobs: Mapping[str, Job]) -> dict[int, str]:
        oids = [job.mapping.relation.oid for job in jobs.values()]
        return read_memberships(connection, self.settings.publication_name, oids)

    def _prepare_jobs(self, chosen: Sequence[Chosen]) -> dict[str, Job]:
        """Return the tables' jobs as the source defines them now."""
        assert self.control is not None
        with translated("target"):
            records = self.control.read_records()
        return prepare_jobs(self.watcher, chosen, records, mask_key=self.access.mask_key)

    # --------------------------------------------------------------------------------------------- position

    def _settle_position(
        self, control: Control, streams: StreamControl, state: ListenerState, chosen: Sequence[Chosen]
    ) -> ListenerState | None:
        """Return the state from which the stream goes on, after the copy that it may ask for."""
        name = self.settings.slot_name
        with translated("source"):
            slot = read_slot(self.watcher, name)
            identifier, timeline = read_system_identifier(self.watcher), read_timeline(self.watcher)
        if slot is not None:
            check_slot(slot, self.watcher.info.dbname)
        if state.position is not None:
            gap = self._find_gap(state, slot, identifier, timeline)
            if gap is None and not self.listener.has_lost_publication:
                return state
            if gap is not None:
                if not self.listener.repair_gap or isinstance(gap, SafetyStop):
                    raise gap
                self.log.warning("gap_found", error_type=gap.id, error_message=gap.message)
        elif slot is not None and state.slot_name != name:
            raise OperatorError(
                f"the replication slot {name} is there, and nothing is known of it here",
                why="it belongs to another target, or this target was restored from an older backup",
                mend="replicator slot drop --yes, then replicator listen; or set listen.slot to another name",
                id="slot_unknown",
            )
        repair_xid = state.repair_xid if state.timeline == timeline else None
        self._copy(control, streams, chosen, slot, repair_xid)
        return streams.read_state()

    def _find_gap(
        self, state: ListenerState, slot: SlotFacts | None, identifier: str, timeline: int
    ) -> OperatorError | None:
        """Return what keeps the slot from going on at the target's position, with the command that mends it."""
        assert state.position is not None
        if state.system_identifier != identifier:
            return SafetyStop(
                "the source is another database cluster than before",
                why="its system identifier changed: a wrong address would replace all rows",
                mend="if it is the right one: replicator slot drop --yes, then replicator listen",
                id="source_changed",
            )
        what = None
        if slot is None:
            what = ("slot_missing", f"the replication slot {self.settings.slot_name} is gone", "somebody dropped it")
        elif slot.wal_status == "lost":
            what = ("slot_lost", f"the replication slot {slot.name} was invalidated", "the source kept too little WAL")
        elif state.timeline != timeline:
            what = ("timeline_changed", "the source's timeline changed", "a failover or a restore")
        elif slot.confirmed is not None and slot.confirmed > state.position:
            what = (
                "slot_ahead",
                f"the replication slot {slot.name} is ahead of the target",
                f"it is at {slot.confirmed}, the target at {state.position}: it was advanced, or the target restored",
            )
        if what is None:
            return None
        return OperatorError(what[1], why=f"{what[2]}; changes in between would be lost", mend=_REPAIR, id=what[0])

    # ------------------------------------------------------------------------------------------------- copy

    def _copy(
        self,
        control: Control,
        streams: StreamControl,
        chosen: Sequence[Chosen],
        old: SlotFacts | None,
        repair_xid: int | None,
    ) -> None:
        """Make a slot and bring every table to its consistent point."""
        name = self.settings.slot_name
        with translated("target"):
            streams.begin_copy(name)
        if old is not None:
            self._drop_slot(name)
        with self._new_slot(name, temporary=False) as slot:
            path = "listen" if repair_xid is None else "repair"
            facts = self._copy_tables(control, streams, slot, chosen, repair_xid, path)
        with translated("target"):
            streams.finish_copy(
                slot.consistent_point,
                system_identifier=facts.system_identifier,
                timeline=facts.timeline,
                fresh_at=facts.clock,
                repair_xid=facts.xmin,
            )
        self.listener.has_lost_publication = False
        self.log.info("position_confirmed", path=path, lsn=str(slot.consistent_point))

    def _drop_slot(self, name: str) -> None:
        """Drop the slot of a dead attempt, once the server has noticed that its reader is gone."""
        deadline = time.monotonic() + self.settings.lock_wait.total_seconds()
        while True:
            try:
                with translated("source"):
                    drop_slot(self.watcher, name)
            except LockHeldError:
                if time.monotonic() >= deadline or self.stop.wait(0.2):
                    raise
            else:
                return

    @contextmanager
    def _new_slot(self, name: str, *, temporary: bool) -> Iterator[NewSlot]:
        """Make a slot with an exported snapshot, which lives as long as the block. A SIGTERM ends the wait for it."""
        with WalSender.open(self.access.conninfo, timeout_s=self.timeout_s) as sender:
            self.log.info("slot_awaited", slot=name, reason="it waits for every transaction that is open now")
            made: list[NewSlot | ReplicatorError] = []

            def make() -> None:
                try:
                    made.append(sender.create_slot(name, temporary=temporary, export=True))
                except ReplicatorError as error:
                    made.append(error)

            thread = threading.Thread(target=make, name="slot", daemon=True)
            thread.start()
            while thread.is_alive():
                thread.join(0.1)
                if self.stop.is_set():
                    sender.cancel()
            (slot,) = made
            if isinstance(slot, ReplicatorError):
                raise slot
            self.log.info("slot_created", slot=name, lsn=str(slot.consistent_point))
            yield slot

    def _copy_tables(
        self,
        control: Control,
        streams: StreamControl,
        slot: NewSlot,
        chosen: Sequence[Chosen],
        repair_xid: int | None,
        path: str,
    ) -> SnapshotFacts:
        """Copy tables in the slot's snapshot, with the lock of runs held."""
        run = Run(
            self.settings,
            self.listener.target_conninfo,
            full=repair_xid is None,
            jobs=self.listener.jobs,
            stop=self.stop,
            path=path,
            execution_id=self.listener.result.execution_id,
        )
        with translated("target"):
            control.take_lock("run", run.lock_wait_s)
        try:
            run.open_watcher()
            names = [table.table for table in chosen]
            with translated("target"):
                run.claim(control, names, "listener")

            def make_round(left: list[Chosen]) -> SlotRound:
                return SlotRound(
                    run,
                    control,
                    left,
                    slot=slot,
                    repair_xid=repair_xid,
                    epoch=streams.epoch,
                    memberships=self.memberships,
                )

            return copy_in_slot(make_round, chosen)
        finally:
            run.close_watcher()
            with suppress(psycopg.Error):
                control.release_lock("run")

    def _join_tables(self, control: Control, streams: StreamControl, chosen: Sequence[Chosen]) -> None:
        """Copy what the stream alone cannot bring up to date, and learn the layout of every table."""
        names = {table.table for table in chosen}
        with translated("target"):
            known = streams.read_tables()
            for table in known.keys() - names:
                streams.drop_table(table)
        missing = self._make_ready(streams, known, chosen)
        if missing:
            self.log.info("tables_awaited", tables=len(missing))
            with self._new_slot(self.settings.slot_name[:58] + COPY_SUFFIX, temporary=True) as slot:
                self._copy_tables(control, streams, slot, missing, None, "listen")
            with translated("target"):
                known = streams.read_tables()
            missing = self._make_ready(streams, known, chosen)
        if missing:
            raise PassingError(
                f"{missing[0].table} changed while it was read again",
                why="its definition is not the one that was copied",
                mend="it is tried again by itself",
                id="definition_changed",
            )
        self.since = {table: known[table].since for table in names}
        self.definitions = {table: known[table].definition for table in names}

    def _make_ready(
        self, streams: StreamControl, known: dict[str, StreamTable], chosen: Sequence[Chosen]
    ) -> list[Chosen]:
        """Compile every table of the stream; return those that have to be read first."""
        jobs = self._prepare_jobs(chosen)
        with translated("source"):
            published = read_published(self.watcher, self.settings.publication_name)
        with translated("target"):
            self.digest = choose_digest(self.watcher, streams.connection)
        missing = []
        for table in chosen:
            job = jobs[table.table]
            there = known.get(table.table)
            streamed = None
            if there is not None and not there.is_stale and there.definition == define(job, self.memberships):
                with translated("target", table.table):
                    streamed = make_streamed(
                        streams.connection,
                        table,
                        job,
                        published.get((table.schema, table.name)),
                        version=self.version,
                        mask_key=self.access.mask_key,
                        digest=self.digest,
                    )
            if streamed is None:
                missing.append(table)
            else:
                self.tables[table.table] = streamed
        return missing

    # ----------------------------------------------------------------------------------------------- stream

    def _follow(self, streams: StreamControl, state: ListenerState) -> Outcome:
        assert state.position is not None
        delivered = Delivered()
        lookup = Lookup(self.access, delivered, self.stop)
        self.stack.callback(lookup.close)
        loader = self._open_loader(streams, lookup)
        by_oid = self._index_members()

        def resolve(message: RelationMessage) -> Intake | None:
            table = by_oid.get(message.oid)
            if table is None:
                return None
            intake = self.tables[table].make_intake(message)
            if intake is None and not collector.passes_over(table):
                collector.discard(table)
            return intake

        collector = Collector(resolve, state.position, self.since, delivered)
        watch = Watch(
            self.stack.enter_context(closing(self.access.open())),
            self.settings.slot_name,
            self.settings.listen.heartbeat.total_seconds(),
            self._find_changed,
            self.log,
        )
        with self._start_stream(state.position) as sender:
            loading = LoadingThread(loader, sender, state.position, self._tell)
            stream = Stream(
                sender,
                collector,
                loading,
                watch,
                cap_bytes=self.settings.listen.batch_bytes // 2,
                until=self.listener.until,
                stop=self.stop,
            )
            loading.start()
            watch.start()
            try:
                stream.run()
            except OperatorError as error:
                if error.table is not None and error.table in self._look_for_changes():
                    # The target refused what a changed definition explains: a new enum label, a wider type.
                    self._mark_stale(error.table)
                    return Outcome.AGAIN
                raise
            finally:
                watch.finish()
                loading.finish()
                if loading.error is None:
                    with suppress(psycopg.Error, ReplicatorError):
                        loader.move_sequences()
                sender.confirm(loading.position)
                sender.stop()
                self.listener.result.position = loading.position
            if loading.error is not None:
                raise loading.error
        return self._conclude(bool(loading.landed_stale))

    def _conclude(self, has_stale: bool) -> Outcome:
        if self.stop.is_set():
            return Outcome.DONE
        if has_stale:
            return Outcome.AGAIN
        # A bounded stream has reached its end; what changed without a message is made up for now.
        for table in self._look_for_changes():
            self._mark_stale(table)
            has_stale = True
        return Outcome.AGAIN if has_stale else Outcome.DONE

    def _mark_stale(self, table: str) -> None:
        assert self.stream_control is not None
        with translated("target"):
            self.stream_control.mark_stale(table)

    @contextmanager
    def _start_stream(self, position: Lsn) -> Iterator[WalSender]:
        """Start the stream, waiting for the server to notice that an earlier reader of the slot is gone."""
        deadline = time.monotonic() + self.settings.lock_wait.total_seconds()
        while True:
            sender = WalSender.open(self.access.conninfo, timeout_s=self.timeout_s)
            try:
                sender.start(
                    self.settings.slot_name,
                    publications=[self.settings.publication_name],
                    at=position,
                    binary=self._streams_binary(),
                )
            except LockHeldError:
                sender.close()
                if time.monotonic() >= deadline or self.stop.wait(0.2):
                    raise
            except BaseException:
                sender.close()
                raise
            else:
                break
        try:
            self.log.info("stream_started", path="listen", lsn=str(position), tables=len(self.tables))
            yield sender
        finally:
            sender.close()

    def _open_loader(self, streams: StreamControl, lookup: Lookup) -> StreamLoader:
        connection = connect(self.listener.target_conninfo, side="target", timeout_s=self.timeout_s)
        self.stack.enter_context(closing(connection))
        with translated("target"):
            replica = take_replica_role(connection)
            wait_ms = max(1, int(self.settings.lock_wait.total_seconds() * 1000))
            connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{wait_ms}ms"])
        loader = StreamLoader(
            connection,
            StreamControl(connection, streams.schema, streams.pipeline, streams.epoch),
            Control(connection, streams.schema, streams.pipeline),
            lookup,
            self.listener.result.execution_id,
            replica=replica,
            digest=self.digest,
            binary=self._streams_binary(),
        )
        for name, table in self.tables.items():
            loader.introduce(table.job, VERSION)
            loader.follow_sequences(name, table.sequences)
            with translated("source"):
                spellings = spell_key(self.watcher, table.job)
            lookup.introduce(name, VERSION, table.job.mapping, table.shape, spellings)
        # What a killed listener had left to its end.
        loader.move_sequences()
        return loader

    def _streams_binary(self) -> bool:
        """Say whether every table can take its cells in binary: one stream has one format.

        Rules need a cell's text, and so does the key of a row in quarantine.
        """
        return all(
            table.shape.binary
            and not table.layout.rules
            and not table.layout.from_source
            and table.job.settings.on_row_error != "quarantine"
            for table in self.tables.values()
        )

    def _index_members(self) -> dict[int, str]:
        """Return the table of every relation that the stream may speak of."""
        return {
            oid: name
            for name, table in self.tables.items()
            for oid in (table.job.mapping.relation.oid, *(m.oid for m in table.job.mapping.relation.members))
        }

    def _find_changed(self, connection: Connection) -> set[str]:
        """Return the tables whose definition is not the one that was copied."""
        chosen = [table.chosen for table in self.tables.values()]
        assert self.control is not None
        records = {name: table.job.record for name, table in self.tables.items()}
        jobs = prepare_jobs(connection, chosen, records, mask_key=self.access.mask_key, lenient=True)
        memberships = self._read_memberships(connection, jobs)
        return {
            table.table
            for table in chosen
            if table.table not in jobs or define(jobs[table.table], memberships) != self.definitions[table.table]
        }

    def _look_for_changes(self) -> set[str]:
        with translated("source"):
            return self._find_changed(self.watcher)

    def _tell(self, landed: Landed, duration_s: float) -> None:
        """Log a batch that landed, and count it."""
        for table, figures in landed.figures.items():
            self.listener.result.rows[table] = self.listener.result.rows.get(table, 0) + figures.rows_extracted
            self.log.debug("batch_loaded", table=table, path="listen", lsn=str(landed.position), **figures.counts())
        for table, rows in landed.corrected.items():
            self.log.warning("refused_rows_corrected", table=table, path="listen", rows=rows)
        self.listener.result.transactions += landed.transactions
        self.listener.patience.renew()
        if landed.figures:
            self.log.info(
                "position_confirmed",
                path="listen",
                lsn=str(landed.position),
                transactions=landed.transactions,
                rows_extracted=sum(figures.rows_extracted for figures in landed.figures.values()),
                duration_seconds=round(duration_s, 3),
            )
