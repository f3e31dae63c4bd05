"""The listener: finds out where it stands, copies what is missing, follows the stream; again after every passing error.

Each session begins from the position in the target, so whatever an earlier one had in hand when it ended is read
again: an answer to COMMIT that was lost needs no other care.
"""

from __future__ import annotations

import math
import threading
import uuid
from contextlib import ExitStack, suppress

import psycopg

from replicator.apply.control import Control
from replicator.apply.stream_control import ListenerState, StreamControl
from replicator.capture.source_state import check_source, read_end_of_wal
from replicator.config.settings import Settings
from replicator.continuity import LOST_HISTORY
from replicator.db import Connection, closing, connect, translated
from replicator.errors import LockHeldError, OperatorError, PassingError, PreflightError, ReplicatorError
from replicator.patience import DAEMON, FAILOVER, Patience, waiting_out
from replicator.position import Lsn
from replicator.stream.candidate import is_of_one_table, take_writable_inventory, tie_refused, went_away
from replicator.stream.follower import StreamFollower
from replicator.stream.loop import Search, Until
from replicator.stream.session import ListenResult, ListenSession, Memory, Outcome
from replicator.stream.start import StreamStart
from replicator.sync.preparation import check_home, open_access
from replicator.sync.rights import require_control
from replicator.telemetry.log import get_logger


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
        limit_s = None if self.is_bounded else math.inf
        self.patience = Patience(self.stop, self.log, limit_s=limit_s, waits_at_limits=not self.is_bounded)
        self.is_connected = self.has_run = False
        self.has_lost_publication = self.has_lost_history = False
        self.has_lock = False
        self.session: ListenSession | None = None
        self.search: Search | None = None
        self.memory = Memory()

    def run(self) -> ListenResult:
        """Listen. Raises what only an operator can fix; passing errors are borne, for ever unless bounded."""
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
            try:
                with waiting_out(self._passes_now):
                    return self._listen(stack)
            except OperatorError as error:
                if self.repair_gap and is_publication_lost(error) and not self.has_lost_publication:
                    # The WAL holds changes of a time without the publication: no stream passes by those.
                    self.has_lost_publication = True
                    return Outcome.AGAIN
                if self.repair_gap and error.id in LOST_HISTORY and not self.has_lost_history:
                    self.has_lost_history = True
                    return Outcome.AGAIN
                if self._park(error):
                    return Outcome.AGAIN
                if self.has_run and went_away(error):
                    raise PassingError("the catalog changed while it was read", why=error.why) from error
                self._record_failure(error)
                raise

    @property
    def _passes_now(self) -> frozenset[str]:
        """Return the ids of what is waited out by now: nothing ahead of the first stream."""
        if not self.has_run:
            return frozenset()
        return FAILOVER if self.is_bounded else DAEMON

    def _listen(self, stack: ExitStack) -> Outcome:
        """Connect, find out where the stream stands, make up for what is missing, follow it."""
        first, self.has_lock, self.session = not self.is_connected, False, None
        control, streams, state = self._open_target(stack, first=first)
        watcher = stack.enter_context(closing(self.access.open_at_slot(self.settings.slot_name, first=first)))
        self.is_connected = True
        check_home(watcher, control.connection, state.system_identifier)
        with translated("source"):
            version = check_source(watcher)
            if self.until_caught_up and self.until.lsn is None:
                self.until.lsn = read_end_of_wal(watcher)
        session = ListenSession(
            self.settings, self.access.narrow(watcher), self.log, self.stop, self.target_conninfo, self.jobs,
            self.result, stack, control, streams, watcher, version, self.is_bounded, self.memory,
        )  # fmt: skip
        self.session = session
        start = StreamStart(
            session,
            repair_gap=self.repair_gap,
            has_lost_publication=self.has_lost_publication,
            has_lost_history=self.has_lost_history,
        )
        try:
            started = start.start(state)
        finally:
            self.has_lost_publication = start.has_lost_publication
            self.has_lost_history = start.has_lost_history
        if started is None:
            return Outcome.AGAIN
        self.has_run = True
        follower = StreamFollower(session, started, self.until, self.patience.renew, self.search)
        session.has_begun = True
        outcome = follower.follow()
        self.search = follower.search
        self.result.live = set(follower.tables)
        with translated("target"):
            self.result.parked = streams.read_parked()
        return outcome

    def _park(self, error: OperatorError) -> bool:
        """Leave out the table that an error of the stream is about, with those that foreign keys tie to it."""
        session = self.session
        if session is None or not session.parks or not is_of_one_table(error) or not session.has_begun:
            return False
        refused: dict[str, ReplicatorError] = {error.table or "-": error}
        with translated("source"):
            tie_refused(session, take_writable_inventory(session, session.watcher).tables, refused)
        session.park(refused)
        self.search = None
        return True

    def _open_target(self, stack: ExitStack, *, first: bool) -> tuple[Control, StreamControl, ListenerState]:
        connection = self._connect_target(first=first)
        stack.enter_context(closing(connection))
        schema, pipeline = self.settings.target.control_schema, self.settings.pipeline
        control = Control(connection, schema, pipeline)
        with translated("target"):
            require_control(connection, schema)
            control.migrate()
            wait_s = self.settings.lock_wait.total_seconds()
            control.take_lock("listener", wait_s)
            self.has_lock = True
            streams = StreamControl(connection, schema, pipeline)
            state = streams.claim(wait_s)
            control.close_dead_runs(self.result.execution_id, ["listen"])
        return control, streams, state

    def _connect_target(self, *, first: bool = False) -> Connection:
        timeout_s = self.access.connect_timeout_s
        return connect(self.target_conninfo, side="target", timeout_s=timeout_s, first=first)

    def _record_failure(self, error: OperatorError) -> None:
        """Leave a trace of what stopped the listener."""
        if not self.has_lock or isinstance(error, LockHeldError):
            return
        with suppress(psycopg.Error, ReplicatorError), closing(self._connect_target()) as connection:
            control = StreamControl(connection, self.settings.target.control_schema, self.settings.pipeline)
            control.record_failure(self.result.execution_id, error.table or "-", error)
        self.log.error(
            "run_failed", path="listen", table=error.table, error_type=error.id, error_message=error.message,
            sqlstate=error.sqlstate, lsn=error.lsn,
        )  # fmt: skip


def is_publication_lost(error: OperatorError) -> bool:
    """Say whether the stream, not the catalog, lacks the publication."""
    return error.id == "publication_missing" and not isinstance(error, PreflightError)


def _stopped_early() -> OperatorError:
    return OperatorError(
        "the listener was stopped before it reached its end",
        why="a signal asked the process to end",
        hint="nothing is lost: run it again",
        id="interrupted",
    )
