"""Brings tables into a running stream, beside it: nothing else waits for them.

    look at the catalogs ──► wait for older transactions ──► open windows ──► snapshot, read, load ──► offer
            │ refused                                                              │ refused
            └──────────────────────────► parked, tried again ◄─────────────────────┘

Why nothing is missing. A transaction that wrote before the table was published is never sent, so all that began before
then has to be over. A commit may be delivered and still be invisible to snapshots, so the snapshot is taken anew until
it sees every delivered one. What commits later is kept in the window, which opens between transactions and ahead of
the snapshot. The table joins at a commit once the stream has passed all that the snapshot saw.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

import psycopg

from replicator.apply.control import Control
from replicator.apply.job import Job
from replicator.apply.stream_control import ParkedTable, StreamControl
from replicator.capture.lookup import Delivered
from replicator.capture.publication import read_published
from replicator.capture.pull import LOCKS_SHORT, is_standby
from replicator.capture.source_state import read_next_xid, read_oldest_xid, send_heartbeat
from replicator.capture.window import Window
from replicator.db import closing, translate, translated
from replicator.errors import FencedError, PassingError, ReplicatorError, unexpected
from replicator.position import Lsn, Seen
from replicator.relation import PARTITIONED, TABLE
from replicator.stream.candidate import (
    Candidates,
    examine,
    is_of_one_table,
    lift_delete_stop,
    may_be_of_one_table,
    name_table,
    take_writable_inventory,
    tie_refused,
    went_away,
)
from replicator.stream.join_board import JoinBoard, LoadedTable
from replicator.stream.join_round import JoinRound, JoinRun
from replicator.stream.match_key import match_by_identity
from replicator.stream.overlap import find_overlaps
from replicator.stream.session import ListenSession
from replicator.stream.start import Started
from replicator.stream.table import VERSION, make_streamed, spell_key, streams_binary
from replicator.sync.inventory import Chosen, Inventory
from replicator.sync.preparation import prepare_jobs

_TICK_S = 0.1
_IDLE_TICK_S = 1.0
_LOOK_AGAIN_S = 5.0
_LOAD_AGAIN_S = 10.0
_MOST_LOAD_AGAIN_S = 600.0
_POSTPONED_S = 1.0
_MOST_POSTPONED = 5
"""How often a table may be in somebody's way before it is parked with the reason."""
_BOUNDED_S = 300.0
"""How long a listener that ends by itself bears that at least: as long as a lost connection."""
_LOOK_LOCK = "2s"
"""How long a look at the catalogs waits for a table that somebody has locked: PostgreSQL locks what it describes."""
_MOST_OVERFULL = 4
_LEAST_WINDOW_BYTES = 256 * 1024
_IDLE_S = 0.5
_END_S = 30.0
"""How long the end of what is being read is waited for; a session that hangs is fenced off by the next listener."""


@dataclass
class _Attempts:
    """How the tables that are to join have fared in this session."""

    not_before: dict[str, float] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    awaited: set[str] = field(default_factory=set)
    loads: Counter[str] = field(default_factory=Counter)
    postponed: Counter[str] = field(default_factory=Counter)
    overfull: Counter[str] = field(default_factory=Counter)
    bounds: dict[str, int] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    first_postponed: dict[str, float] = field(default_factory=dict)

    def forget(self, table: str) -> None:
        """Begin anew: the table is live, or gone."""
        self.not_before.pop(table, None)
        self.bounds.pop(table, None)
        self.first_postponed.pop(table, None)
        self.awaited.discard(table)
        self.alone.discard(table)
        for counter in (self.loads, self.postponed, self.overfull):
            del counter[table]


class TableJoiner(threading.Thread):
    """Reads tables beside the stream: those that wait when it begins, changed and new ones, and parked ones again.

    error: what ended it; the reading thread raises it.
    """

    def __init__(
        self, session: ListenSession, board: JoinBoard, started: Started, delivered: Delivered, *, binary: bool
    ) -> None:
        super().__init__(name="join", daemon=True)
        self._board, self._delivered, self._binary = board, delivered, binary
        self._first_xid, self._digest = started.first_xid, started.digest
        self._listener = session
        self._todo: dict[str, bool] = {chosen.table: True for chosen in started.missing}
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._attempts = _Attempts()
        self._offered: dict[str, float] = {}
        self._exact: set[str] = set()
        self._left: set[str] = set()
        self._memberships = dict(started.memberships)
        self._held_since: float | None = None
        self._most_locked: int | None = None
        self._versions = itertools.count(VERSION + 1)
        self.error: ReplicatorError | None = None

    def add(self, tables: set[str]) -> None:
        """Read tables that changed or are new."""
        with self._mutex:
            self._todo |= dict.fromkeys(tables, True)
            self._left -= tables
            self._board.is_settled = False
        self._board.news.set()

    def is_joining(self, table: str) -> bool:
        """Say whether a table is on its way into the stream."""
        with self._mutex:
            return table in self._todo or table in self._offered

    def has_left(self, table: str) -> bool:
        """Say whether a table was left out for good, as the source was then: it may be back."""
        with self._mutex:
            return table in self._left

    def finish(self) -> None:
        """End the thread, and what it reads."""
        self._ended.set()
        self._board.news.set()
        self.join(_END_S)

    def run(self) -> None:
        """Bring tables in until `finish`, or until an error."""
        try:
            with ExitStack() as stack:
                self._open(stack)
                while not self._ended.is_set():
                    self._step()
                    busy = self._session.is_bounded or self._todo or self._offered
                    self._board.news.wait(_TICK_S if busy else _IDLE_TICK_S)
                    self._board.news.clear()
        except psycopg.Error as error:
            self.error = translate(error, side="source")
        except ReplicatorError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  # a thread has nobody above it; the reading thread raises it
            self.error = unexpected(error)

    def _open(self, stack: ExitStack) -> None:
        listener = self._listener
        connection = stack.enter_context(closing(listener.connect_target()))
        watcher = stack.enter_context(closing(listener.access.open()))
        watcher.execute("SELECT set_config('lock_timeout', %s, false)", [_LOOK_LOCK])
        schema, pipeline = listener.control.schema, listener.control.pipeline
        self._session = replace(
            listener,
            control=Control(connection, schema, pipeline),
            streams=StreamControl(connection, schema, pipeline, listener.streams.epoch),
            watcher=watcher,
        )
        self._control, self._streams = self._session.control, self._session.streams

    # Which tables are due.

    def _step(self) -> None:
        """Take in what the stream says of tables on offer, and try the tables that are due."""
        self._take_results()
        with translated("target"):
            parked = self._streams.read_parked()
        due = self._find_due(parked)
        if due:
            for group in self._split(due):
                self._try_group(group)
            with translated("target"):
                parked = self._streams.read_parked()
        with self._mutex:
            self._board.is_settled = not self._todo and not self._offered and parked.keys() <= self._attempts.tried

    def _find_due(self, parked: Mapping[str, ParkedTable]) -> set[str]:
        now = time.monotonic()
        attempts = self._attempts
        with self._mutex:
            waiting = {*self._todo, *parked} - self._offered.keys()
        due = set()
        for table in waiting:
            there = parked.get(table)
            if there is not None and table not in attempts.not_before and table not in attempts.tried:
                attempts.not_before[table] = now + self._first_pause(there)
            pause_s = attempts.not_before.get(table, 0.0) - now
            is_urgent = there is not None and there.is_requested and pause_s > _POSTPONED_S
            if is_urgent or pause_s <= 0:
                due.add(table)
        return due

    def _first_pause(self, parked: ParkedTable) -> float:
        """Return how long a parked table waits in a new session: one that a row keeps out costs a read each time."""
        if self._session.is_bounded or parked.lsn is None:
            return 0.0
        return _pause_after(parked.attempts)

    def _try(self, due: set[str]) -> None:
        """Look at tables, and read those that may join now."""
        if self._is_run_at_work():
            self._postpone(due)
            return
        with translated("source"):
            inventory = take_writable_inventory(self._session, self._session.watcher)
            published = [one for one in inventory.tables if one.kind in (TABLE, PARTITIONED)]
            overlaps = find_overlaps(self._session.watcher, self._session.settings.publication_name, published)
        for table in due & overlaps.keys():
            self._skip(table, overlaps[table].reason)
        due = due - overlaps.keys()
        chosen = {one.table: one for one in match_by_identity(self._session, inventory.tables)}
        for table in due - chosen.keys():
            self._leave_out(table, inventory)
        found = examine(self._session, [chosen[table] for table in sorted(due & chosen.keys())], looks_at_target=True)
        self._sort_out(found, inventory)
        ready = self._find_ready(found)
        if ready:
            self._join({table: chosen[table] for table in ready}, ready)

    def _split(self, due: set[str]) -> list[set[str]]:
        """Return tables that are tried together; apart those of which one was in the others' way."""
        alone = due & self._attempts.alone
        together = due - alone
        return [*([together] if together else []), *({table} for table in sorted(alone))]

    def _try_group(self, group: set[str]) -> None:
        if self._ended.is_set():
            return
        try:
            self._try(group)
        except ReplicatorError as error:
            if not may_be_of_one_table(error):
                raise
            self._put_off(group, error)

    def _put_off(self, group: set[str], error: ReplicatorError) -> None:
        """Try tables again, each by itself, after an error that names none of them."""
        left = group - self._offered.keys()
        for table in left:
            self._give_up(table)
        if len(left) > 1:
            self._attempts.alone |= left
            self._postpone(left)
        elif isinstance(error, PassingError):
            self._postpone(left, error)
        elif went_away(error):
            why = f"SQLSTATE {error.sqlstate}: something was dropped in that moment"
            self._postpone(left, PassingError("the catalog changed while it was read", why=why, id="catalog_changed"))
        else:
            for table in left:
                error.table = table
                self._attempts.loads[table] += 1
            self._refuse(dict.fromkeys(left, error), after_load=True)

    def _is_run_at_work(self) -> bool:
        """Say whether a sync, resync or repair may be at these tables. Raises LockHeldError in a bounded listener."""
        with translated("target"):
            if not self._streams.is_held("run"):
                self._held_since = None
                return False
            now = time.monotonic()
            self._held_since = self._held_since or now
            if self._session.is_bounded and now - self._held_since > self._session.settings.lock_wait.total_seconds():
                self._control.take_lock("run", 0.0)
                self._control.release_lock("run")
        return True

    def _leave_out(self, table: str, inventory: Inventory) -> None:
        """Park a table that the configuration names and the source lacks; forget one that no pattern takes any more."""
        error = inventory.missing.get(table)
        if error is not None:
            self._refuse({table: error})
            return
        with translated("target"):
            self._streams.drop_table(table)
            self._streams.unpark_table(table)
        self._session.log.info("table_left", path="listen", table=table, reason="the source has it no longer")
        self._leave(table)

    def _leave(self, table: str) -> None:
        self._forget(table)
        with self._mutex:
            self._left.add(table)

    def _skip(self, table: str, reason: str) -> None:
        """Leave a table to the nightly sync."""
        self._session.memory.skipped.add(table)
        with translated("target"):
            self._streams.drop_table(table)
            self._streams.unpark_table(table)
        self._session.log.info("table_skipped", path="listen", table=table, reason=reason)
        self._leave(table)

    def _sort_out(self, found: Candidates, inventory: Inventory) -> None:
        for table, kind in found.skipped.items():
            self._skip(table, f"a {kind} has no stream")
        self._postpone(found.postponed)
        refused = dict(found.refused)
        tie_refused(self._session, inventory.tables, refused)
        for table in refused:
            found.jobs.pop(table, None)
        self._refuse(refused)

    def _find_ready(self, found: Candidates) -> dict[str, Job]:
        """Return the tables of which the stream brings all that a snapshot may not see."""
        if not found.jobs:
            return {}
        with translated("source"):
            memberships = self._session.read_memberships(self._session.watcher, found.jobs)
            next_xid, oldest = read_next_xid(self._session.watcher), read_oldest_xid(self._session.watcher)
        ready = {}
        for table, job in found.jobs.items():
            membership = memberships.get(job.mapping.relation.oid, "")
            if self._memberships.get(table) != membership:
                self._memberships[table] = membership
                self._attempts.bounds[table] = next_xid
            bound = max(self._first_xid, self._attempts.bounds.get(table, 0))
            if oldest >= bound:
                ready[table] = job
            else:
                self._await_older(table, oldest)
        return ready

    def _await_older(self, table: str, oldest: int) -> None:
        if table not in self._attempts.awaited:
            self._attempts.awaited.add(table)
            self._session.log.info(
                "transactions_awaited", path="listen", table=table, xid=oldest,
                reason="it may have written to the table before that was published; pg_stat_activity.backend_xid",
            )  # fmt: skip
        self._attempts.not_before[table] = time.monotonic() + _POSTPONED_S

    # Reading and loading.

    def _join(self, chosen: Mapping[str, Chosen], jobs: Mapping[str, Job]) -> None:
        by_slot = {table for table, job in jobs.items() if not job.mapping.key and self._reads_standby()}
        if by_slot:
            self._leave_to_slot(by_slot)
            return
        windows = self._open_windows(jobs)
        if windows is None:
            return
        with translated("target"):
            for table in jobs:
                self._streams.begin_table_copy(table)
        run = JoinRun(
            self._session.settings,
            self._session.target_conninfo,
            jobs=self._session.jobs,
            stop=self._ended,
            execution_id=self._session.result.execution_id,
        )
        run.most_locked = self._most_locked
        try:
            run.open_watcher()
            round_ = self._read(run, chosen, jobs)
        finally:
            run.close_watcher()
            self._most_locked = run.most_locked
        if self._ended.is_set():
            return
        self._settle_errors(run, round_)
        for table in round_.landed:
            self._offer(chosen[table], round_, windows[table])

    def _reads_standby(self) -> bool:
        with translated("source"):
            return is_standby(self._session.watcher)

    def _open_windows(self, jobs: Mapping[str, Job]) -> dict[str, Window] | None:
        """Have the stream keep the tables' changes from now on; None when the thread was ended meanwhile."""
        cap = max(_LEAST_WINDOW_BYTES, self._session.settings.listen.batch_bytes // 4 // len(jobs))
        windows = {
            table: Window(
                table,
                frozenset({job.mapping.relation.oid, *(member.oid for member in job.mapping.relation.members)}),
                cap,
                root=job.mapping.relation.oid if job.mapping.relation.kind == PARTITIONED else None,
            )
            for table, job in jobs.items()
        }
        self._board.ask_for_windows(list(windows.values()))
        while not self._board.are_open(set(windows)):
            if self._ended.is_set():
                return None
            self._board.news.wait(_TICK_S)
            self._board.news.clear()
        return windows

    def _read(self, run: JoinRun, chosen: Mapping[str, Chosen], jobs: Mapping[str, Job]) -> JoinRound:
        with translated("target"):
            run.claim(self._control, sorted(chosen), "listener")
        with translated("source"):
            memberships = self._session.read_memberships(self._session.watcher, jobs)
        round_ = JoinRound(
            run,
            self._control,
            # What is here was read before, and is behind: its deletes are the stream's. A target that is met for the
            # first time keeps the stop.
            [
                lift_delete_stop(one) if run.records[one.table].state.snapshot_at is not None else one
                for one in chosen.values()
            ],
            delivered=self._delivered,
            epoch=self._streams.epoch,
            memberships=memberships,
            exact=frozenset(self._exact),
        )
        try:
            round_.execute()
        finally:
            left = [run.batch_ids[table] for table in chosen if table not in round_.landed]
            with suppress(psycopg.Error):
                self._control.drop_running(left)
        return round_

    def _settle_errors(self, run: JoinRun, round_: JoinRound) -> None:
        refused: dict[str, ReplicatorError] = {}
        for table, error in run.errors.items():
            self._attempts.loads[table] += 1
            self._give_up(table)
            if isinstance(error, FencedError) and error.table is not None:
                self._postpone({table})
            elif not is_of_one_table(name_table(error, table)):
                raise error
            else:
                refused[table] = error
        self._refuse(refused, after_load=True)
        passing = round_.passing
        left = {chosen.table for chosen in round_.left}
        for table in left:
            self._give_up(table)
        if left and passing is not None and (passing.sqlstate is None and passing.table is None):
            raise passing
        if len(left) > 1:
            self._attempts.alone |= left
            passing = None
        self._postpone(left, passing)

    def _offer(self, chosen: Chosen, round_: JoinRound, window: Window) -> None:
        """Offer a loaded table to the stream; one whose window could not hold its changes is read once more."""
        table = chosen.table
        incoming = round_.landed[table]
        self._exact.add(table)
        relation = incoming.job.mapping.relation
        if window.is_overfull or not {relation.oid, *(m.oid for m in relation.members)} <= window.oids:
            self._read_again(table)
            return
        definition, high = round_.describe(table)
        try:
            loaded = self._describe(chosen, definition, high, window, incoming.facts.snapshot)
        except ReplicatorError as error:
            self._give_up(table)
            if not is_of_one_table(name_table(error, table)):
                raise
            self._refuse({table: error}, after_load=True)
            return
        if loaded is None:
            self._read_again(table)
            return
        if self._binary and not streams_binary(loaded.streamed):
            self._session.memory.needs_text = True
            self._board.needs_restart = True
            return
        with self._mutex:
            self._todo.pop(table, None)
            self._offered[table] = time.monotonic()
        self._board.offer(loaded)

    def _describe(
        self, chosen: Chosen, definition: str, high: Lsn, window: Window, snapshot: str
    ) -> LoadedTable | None:
        """Compile a loaded table for the stream; None when its definition has changed since it was read."""
        watcher, target = self._session.watcher, self._control.connection
        with translated("target"):
            records = self._control.read_records()
        with translated("source", chosen.table):
            mask_key = self._session.access.mask_key
            job = prepare_jobs(watcher, [chosen], records, mask_key=mask_key, target=target)[chosen.table]
            published = read_published(watcher, self._session.settings.publication_name)
            spellings = spell_key(watcher, job)
        with translated("target", chosen.table):
            streamed = make_streamed(
                target,
                chosen,
                job,
                published.get((chosen.schema, chosen.name)),
                version=self._session.version,
                mask_key=self._session.access.mask_key,
                digest=self._digest,
                layout_version=next(self._versions),
            )
        if streamed is None:
            return None
        seen = None if job.mapping.key else Seen.parse(snapshot, high)
        return LoadedTable(streamed, window, definition, high, seen, spellings)

    # What becomes of them.

    def _take_results(self) -> None:
        landed, rejected = self._board.take_results()
        for table in landed:
            self._session.log.info("table_joined", path="listen", table=table)
            self._forget(table)
        for table in rejected:
            with self._mutex:
                self._offered.pop(table, None)
            self._read_again(table)
        self._nudge()

    def _nudge(self) -> None:
        """Commit on the source, if the role may, where tables wait for a position that an idle source does not send."""
        now = time.monotonic()
        with self._mutex:
            late = [table for table, since in self._offered.items() if now - since > _IDLE_S]
            self._offered |= dict.fromkeys(late, now + 10 * _IDLE_S)
        if late and self._session.settings.listen.heartbeat:
            with suppress(psycopg.Error):
                send_heartbeat(self._session.watcher)

    def _read_again(self, table: str) -> None:
        """Read once more what changed meanwhile; a table that moves too fast is copied ahead of the stream instead."""
        self._give_up(table)
        self._attempts.overfull[table] += 1
        with self._mutex:
            self._todo[table] = True
        if self._attempts.overfull[table] >= _MOST_OVERFULL:
            self._leave_to_slot({table})

    def _leave_to_slot(self, tables: set[str]) -> None:
        self._session.memory.by_slot |= tables
        self._board.needs_restart = True

    def _give_up(self, table: str) -> None:
        self._board.give_up(table)
        with translated("target"):
            self._streams.end_table_copy(table)

    def _postpone(self, tables: set[str], error: PassingError | None = None) -> None:
        """Try tables again in a moment; one that is always in somebody's way is parked with the reason."""
        refused: dict[str, ReplicatorError] = {}
        for table in tables:
            self._attempts.not_before[table] = time.monotonic() + _POSTPONED_S
            # Tables that take turns at the server's lock table are in nobody's way.
            if error is not None and error.id != LOCKS_SHORT:
                self._attempts.postponed[table] += 1
                if self._is_always_in_the_way(table):
                    refused[table] = error
        self._refuse(refused, after_load=True)

    def _is_always_in_the_way(self, table: str) -> bool:
        now = time.monotonic()
        first = self._attempts.first_postponed.setdefault(table, now)
        is_patient = self._session.is_bounded and now - first < _BOUNDED_S
        return self._attempts.postponed[table] >= _MOST_POSTPONED and not is_patient

    def _refuse(self, refused: Mapping[str, ReplicatorError], *, after_load: bool = False) -> None:
        """Park tables, to be tried again after a while: longer each time where a try costs a read."""
        self._session.park(refused)
        for table in refused:
            loads = self._attempts.loads[table]
            pause = _pause_after(loads) if after_load else _LOOK_AGAIN_S
            self._attempts.not_before[table] = time.monotonic() + pause
            self._attempts.tried.add(table)
            with self._mutex:
                self._todo.pop(table, None)

    def _forget(self, table: str) -> None:
        self._attempts.forget(table)
        self._attempts.tried.discard(table)
        with self._mutex:
            self._todo.pop(table, None)
            self._offered.pop(table, None)


def _pause_after(loads: int) -> float:
    return float(min(_LOAD_AGAIN_S * 2 ** max(0, loads - 1), _MOST_LOAD_AGAIN_S))
