"""Where a stream begins: what the target has, what the slot keeps, and the copies that make up for what is missing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import psycopg

from replicator.apply.stream_control import ListenerState, StreamTable
from replicator.apply.target_catalog import read_target_catalog
from replicator.capture.history import find_lost_markers
from replicator.capture.publication import read_published
from replicator.capture.signature import Signatures, read_signatures
from replicator.capture.slot_loss import describe_lost, describe_missing
from replicator.capture.source_state import SlotFacts, check_slot, drop_slot, read_next_xid, read_present, read_slot
from replicator.capture.walsender import NewSlot, WalSender
from replicator.continuity import LOST_HISTORY, Resume, SourcePresent, plan_resume
from replicator.db import translated
from replicator.digest import Digest
from replicator.errors import ConfigError, OperatorError, PassingError, ReplicatorError, SafetyStop
from replicator.position import Origin
from replicator.reading import SnapshotFacts
from replicator.relation import PARTITIONED, TABLE
from replicator.stream.candidate import examine, lift_delete_stop, take_writable_inventory, tie_refused
from replicator.stream.definition import define, is_redefined
from replicator.stream.match_key import match_by_identity
from replicator.stream.overlap import find_overlaps
from replicator.stream.session import ListenSession
from replicator.stream.slot_copy import SlotRound, copy_in_slot
from replicator.stream.table import StreamedTable, make_streamed
from replicator.sync.inventory import Chosen, Inventory, require_tables
from replicator.sync.preparation import choose_digest, went_away
from replicator.sync.run import Run

_COPY_SUFFIX = "_copy"


@dataclass(frozen=True)
class Started:
    """A stream that can go on: from `state.position`, with these tables, each with an origin of its own.

    resume: how its slot proves that. definitions: of what was copied, by table. missing: tables that are to be read
    beside the stream. first_xid: the source's next transaction when the session began. memberships: what ties each
    table to the publication. signatures: of the tables, ahead of their definitions.
    """

    state: ListenerState
    resume: Resume
    tables: dict[str, StreamedTable]
    origins: dict[str, Origin]
    definitions: dict[str, str]
    digest: Digest
    missing: list[Chosen]
    first_xid: int
    memberships: dict[str, str]
    signatures: Signatures


class StreamStart:
    """Finds out where the stream stands, and brings every table to where it goes on.

    repair_gap: where the slot cannot go on from the target's position, pull what is missing. has_lost_publication: the
    WAL holds changes that no stream can pass by. has_lost_history: the source lacks what the target has of it.
    """

    def __init__(
        self, session: ListenSession, *, repair_gap: bool, has_lost_publication: bool, has_lost_history: bool = False
    ) -> None:
        self.has_lost_history = has_lost_history
        self.resume: Resume | None = None
        self.session, self.repair_gap, self.has_lost_publication = session, repair_gap, has_lost_publication
        self.settings, self.access, self.log, self.stop = session.settings, session.access, session.log, session.stop
        self.control, self.streams, self.watcher = session.control, session.streams, session.watcher
        self.is_proven = True
        self.tables: dict[str, StreamedTable] = {}
        self.missing: list[Chosen] = []
        self.first_xid = 0
        self.signatures = Signatures({}, "")
        self.memberships: dict[int, str] = {}

    def start(self, state: ListenerState) -> Started | None:
        """Return the stream ready to go on; None when the listener was stopped ahead of that."""
        chosen = self._choose_tables()
        if self.stop.is_set():
            return None
        settled = self._settle_position(state, chosen)
        if settled is None or self.stop.is_set():
            return None
        known = self._join_tables(chosen)
        position = settled.position
        assert position is not None
        return Started(
            settled,
            self.resume or Resume(position, position),
            self.tables,
            {table: known[table].origin for table in self.tables},
            {table: known[table].definition for table in self.tables},
            self.digest,
            self.missing,
            self.first_xid,
            {name: self.memberships.get(table.job.mapping.relation.oid, "") for name, table in self.tables.items()},
            self.signatures,
        )

    def _choose_tables(self) -> list[Chosen]:
        """Return the tables that a stream can bring; the nightly sync has the others, and parked ones wait."""
        with translated("source"):
            inventory = take_writable_inventory(self.session, self.watcher)
            self.first_xid = read_next_xid(self.watcher)
            # Ahead of the definitions: what changes after this look is looked into at the next.
            oids = [inventory.present[one.table] for one in inventory.tables if one.table in inventory.present]
            self.signatures = read_signatures(self.watcher, self.settings.publication_name, oids)
        require_tables(inventory)
        overlaps = self._leave_out_overlaps(inventory)
        tables = [table for table in inventory.tables if table.table not in overlaps]
        inventory = replace(inventory, tables=match_by_identity(self.session, tables))
        found = examine(self.session, inventory.tables, looks_at_target=False)
        for table, kind in found.skipped.items():
            self.log.info("table_skipped", table=table, reason=f"a {kind} has no stream")
        self.session.memory.skipped = found.skipped.keys() | overlaps
        for table in found.postponed:
            raise went_away(table)
        refused = inventory.missing | found.refused
        if not found.jobs and not refused:
            raise ConfigError(
                "none of the configured tables has a stream",
                why="views, materialized views, foreign and unlogged tables are not published",
                hint="name other tables under [[tables]]; these stay with `replicator sync`",
                id="no_tables",
            )
        if not found.jobs:
            raise next(iter(refused.values()))
        tie_refused(self.session, inventory.tables, refused)
        self._forget_others({*found.jobs, *refused})
        self.session.park(refused)
        with translated("source"):
            self.memberships = self.session.read_memberships(self.watcher, found.jobs)
        return [table for table in inventory.tables if table.table in found.jobs and table.table not in refused]

    def _leave_out_overlaps(self, inventory: Inventory) -> set[str]:
        """Return the tables whose changes travel as those of others; the nightly sync has them."""
        published = [table for table in inventory.tables if table.kind in (TABLE, PARTITIONED)]
        with translated("source"):
            overlaps = find_overlaps(self.watcher, self.settings.publication_name, published)
        for table, overlap in overlaps.items():
            self.log.warning("table_skipped", table=table, reason=overlap.reason, hint=overlap.hint)
        return set(overlaps)

    def _forget_others(self, names: set[str]) -> None:
        """Forget what was parked or under way and is not configured any more."""
        with translated("target"):
            self.streams.end_table_copies()
            for table in self.streams.read_parked().keys() - names:
                self.streams.unpark_table(table)

    def _settle_position(self, state: ListenerState, chosen: Sequence[Chosen]) -> ListenerState | None:
        """Return the state from which the stream goes on, after the copy that it may ask for."""
        name = self.settings.slot_name
        with translated("source"):
            slot = read_slot(self.watcher, name)
            now = read_present(self.watcher, name, slot)
        if slot is not None:
            check_slot(slot, self.watcher.info.dbname)
        if (record := state.record) is not None:
            plan = plan_resume(record, now)
            if isinstance(plan, Resume) and not (self.has_lost_publication or self.has_lost_history):
                return self._resume(state, plan, now)
            if isinstance(plan, ReplicatorError):
                plan = self._describe(plan, state, slot, now)
                if not self.repair_gap or isinstance(plan, SafetyStop):
                    raise plan
                self.has_lost_history |= plan.id in LOST_HISTORY
                self.log.warning("gap_found", error_type=plan.id, error_message=plan.message)
        elif slot is not None and state.slot_name != name:
            raise OperatorError(
                f"the replication slot {name} is there, and nothing is known of it here",
                why="it belongs to another target, or this target was restored from an older backup",
                hint="replicator slot drop --yes, then replicator listen; or set listen.slot to another name",
                id="slot_unknown",
            )
        is_same = state.timeline == now.timeline and not self.has_lost_history
        repair_xid = state.repair_xid if is_same else None
        self.is_proven = now.confirmed is not None and state.position is not None and now.confirmed >= state.position
        if state.position is None and repair_xid is None:
            chosen = self._give_up_dead_copies(chosen)
        if self.has_lost_history:
            # An attempt that dies must not leave behind where a repair of the lost history would begin.
            with translated("target"):
                self.streams.resume(now.timeline, keeps_repair=False)
        self._copy(chosen, slot, repair_xid)
        return self.streams.read_state()

    def _give_up_dead_copies(self, chosen: Sequence[Chosen]) -> list[Chosen]:
        """Return the tables, without a limit of deletes where a dead attempt brought them: its stream had none."""
        with translated("target"):
            brought = self.streams.read_tables()
        return [lift_delete_stop(table) if table.table in brought else table for table in chosen]

    def _describe(
        self, gap: ReplicatorError, state: ListenerState, slot: SlotFacts | None, now: SourcePresent
    ) -> ReplicatorError:
        """Return a gap with its cause, where the slot tells one."""
        if gap.id == "slot_missing":
            timelines = (state.timeline, now.timeline)
            name = self.settings.slot_name
            return describe_missing(name, known_as=state.slot_name, timelines=timelines, is_standby=now.is_standby)
        return describe_lost(slot) if gap.id == "slot_lost" and slot is not None else gap

    def _resume(self, state: ListenerState, plan: Resume, now: SourcePresent) -> ListenerState:
        """Take up the stream where it is proven to go on."""
        assert state.position is not None
        timeline = now.timeline
        if plan.has_new_timeline or plan.position < state.position:
            with translated("target"):
                self.streams.resume(timeline, keeps_repair=plan.position == state.position)
        self._distrust_reads(now)
        if plan.has_new_timeline:
            self.log.info("timeline_followed", path="listen", timeline=timeline, lsn=str(plan.position))
        self.resume = plan
        return replace(state, position=plan.position, timeline=timeline)

    def _distrust_reads(self, now: SourcePresent) -> None:
        """Let the tables be read again of which a run read more than the stream had brought, if the source lacks it."""
        with translated("target"):
            records, known = self.control.read_records(), self.streams.read_tables()
        markers = {
            name: records[name].state.marker
            for name, table in known.items()
            if table.origin.seen is not None and name in records
        }
        with translated("source"):
            lost = find_lost_markers(self.watcher, set(markers.values()) - {""})
        for name, marker in markers.items():
            if marker in lost or known[name].origin.end > now.end_of_wal:
                self.log.info("read_distrusted", path="listen", table=name)
                with translated("target"):
                    self.streams.mark_stale(name)

    def _copy(
        self,
        chosen: Sequence[Chosen],
        old: SlotFacts | None,
        repair_xid: int | None,
    ) -> None:
        """Make a slot and bring every table to its consistent point."""
        name = self.settings.slot_name
        with translated("target"):
            self.streams.begin_copy(name)
        if old is not None:
            self._drop_slot(name)
        with self._new_slot(name, temporary=False) as slot:
            path = "listen" if repair_xid is None else "repair"
            facts = self._copy_tables(slot, chosen, repair_xid, path)
        with translated("target"):
            self.streams.finish_copy(
                slot.consistent_point,
                system_identifier=facts.system_identifier,
                timeline=facts.timeline,
                fresh_at=facts.clock,
                repair_xid=facts.xmin,
            )
        self.has_lost_publication = self.has_lost_history = False
        self.log.info("position_confirmed", path=path, lsn=str(slot.consistent_point))

    def _drop_slot(self, name: str) -> None:
        """Drop the slot of a dead attempt, once the server has noticed that its reader is gone."""

        def drop() -> None:
            with translated("source"):
                drop_slot(self.watcher, name)

        self.session.outlast(drop, name)

    @contextmanager
    def _new_slot(self, name: str, *, temporary: bool) -> Iterator[NewSlot]:
        """Make a slot with an exported snapshot, which lives as long as the block. A SIGTERM ends the wait for it."""
        with WalSender.open(self.access.conninfo, timeout_s=self.access.connect_timeout_s) as sender:
            self.log.info("slot_awaited", slot=name, reason="it waits for every transaction that is open now")
            slot = self.session.outlast(lambda: self._make_slot(sender, name, temporary=temporary), name)
            self.log.info("slot_created", slot=name, lsn=str(slot.consistent_point))
            yield slot

    def _make_slot(self, sender: WalSender, name: str, *, temporary: bool) -> NewSlot:
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
            # We were asked to end, and have ended the wait ourselves: no fault of anybody.
            raise _wait_ended(name) if self.stop.is_set() and slot.sqlstate == "57014" else slot
        return slot

    def _copy_tables(
        self,
        slot: NewSlot,
        chosen: Sequence[Chosen],
        repair_xid: int | None,
        path: str,
    ) -> SnapshotFacts:
        """Copy tables in the slot's snapshot, with the lock of runs held; park those that cannot be."""
        run = Run(
            self.settings,
            self.session.target_conninfo,
            full=repair_xid is None,
            jobs=self.session.jobs,
            stop=self.stop,
            path=path,
            execution_id=self.session.result.execution_id,
        )
        with translated("target"):
            self.control.take_lock("run", run.lock_wait_s)
        try:
            run.open_watcher()
            names = [table.table for table in chosen]
            with translated("target"):
                run.claim(self.control, names, "listener")

            def make_round(left: list[Chosen]) -> SlotRound:
                return SlotRound(
                    run,
                    self.control,
                    left,
                    slot=slot,
                    repair_xid=repair_xid,
                    is_proven=self.is_proven,
                    epoch=self.streams.epoch,
                    memberships=self.memberships,
                )

            facts, refused = copy_in_slot(make_round, chosen)
        finally:
            run.close_watcher()
            with suppress(psycopg.Error):
                self.control.release_lock("run")
        if len(refused) == len(chosen) and not self.tables:
            raise next(iter(refused.values()))
        self.session.park(refused)
        return facts

    def _join_tables(self, chosen: Sequence[Chosen]) -> dict[str, StreamTable]:
        """Learn the layout of every table that can go on; the others are read again beside the stream."""
        names = {table.table for table in chosen}
        with translated("target"):
            known = self.streams.read_tables()
            parked = self.streams.read_parked()
            for table in known.keys() - names:
                self.streams.drop_table(table)
        self.missing = self._make_ready(known, [table for table in chosen if table.table not in parked])
        self.missing += [table for table in chosen if table.table in parked]
        ahead = [table for table in self.missing if table.table in self.session.memory.by_slot]
        if ahead and not self.stop.is_set():
            self.log.info("tables_awaited", tables=len(ahead))
            with self._new_slot(self.settings.slot_name[:58] + _COPY_SUFFIX, temporary=True) as slot:
                self._copy_tables(slot, ahead, None, "listen")
            self.session.memory.by_slot.clear()
            with translated("target"):
                known = self.streams.read_tables()
            self.missing = self._make_ready(known, chosen)
        return known

    def _make_ready(self, known: dict[str, StreamTable], chosen: Sequence[Chosen]) -> list[Chosen]:
        """Compile every table of the stream; return those that have to be read first."""
        jobs = self.session.prepare_jobs(chosen)
        with translated("source"):
            published = read_published(self.watcher, self.settings.publication_name)
        with translated("target"):
            self.digest = choose_digest(self.watcher, self.streams.connection)
            catalog = read_target_catalog(self.streams.connection, list(jobs.values()), with_sequences=True)
        missing: list[Chosen] = []
        refused: dict[str, ReplicatorError] = {}
        for table in chosen:
            job = jobs[table.table]
            there = known.get(table.table)
            streamed = None
            now = define(job, self.memberships)
            if there is not None and not there.is_stale and not is_redefined(there.definition, now):
                try:
                    with translated("target", table.table):
                        streamed = make_streamed(
                            self.streams.connection,
                            table,
                            job,
                            published.get((table.schema, table.name)),
                            version=self.session.version,
                            mask_key=self.access.mask_key,
                            digest=self.digest,
                            catalog=catalog,
                        )
                except OperatorError as error:
                    error.table = error.table or table.table
                    refused[table.table] = error
                    continue
            if streamed is None:
                missing.append(table)
            else:
                self.tables[table.table] = streamed
        tie_refused(self.session, chosen, refused)
        for name in refused:
            self.tables.pop(name, None)
        self.session.park(refused)
        return [table for table in missing if table.table not in refused]


def _wait_ended(slot: str) -> PassingError:
    return PassingError(
        f"the wait for the slot {slot} was ended",
        why="a signal asked the process to end",
        hint="nothing is lost: run it again",
        id="interrupted",
    )
