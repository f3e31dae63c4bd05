"""Alerts: look at the pipeline, compare with what is remembered, tell what is new and what is over.

    alarm = Alarm(settings, target_conninfo)
    alarm.check()                  # in a daemon, every few seconds; in a thread, because it may take half a minute
    alarm.check(error, is_final=True)   # after a command, with what it raised

Incidents are remembered in the target's control schema, so that the processes of a pipeline, and those of tomorrow,
tell of each once; that the target itself does not answer is remembered in a file of `data_dir`. A check never raises:
an alert that fails costs a line of the log, and is tried again at the next check.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime

import psycopg

from replicator.apply.control import Control
from replicator.capture.source_state import SlotFacts
from replicator.config.settings import Settings
from replicator.db import Connection, closing, connect, translated
from replicator.errors import LockHeldError, OperatorError, ReplicatorError, UsageError, unexpected
from replicator.monitor.facts import ask_source, has_stream, read_facts
from replicator.monitor.health import Kind, PipelineFacts
from replicator.monitor.incident import (
    Decision,
    Incident,
    Kept,
    Key,
    decide,
    describe_ended,
    describe_new,
    find_incidents,
)
from replicator.monitor.memory import AlertMemory
from replicator.monitor.messenger import Messenger
from replicator.monitor.operation import Operation
from replicator.position import Lsn
from replicator.telemetry.log import get_logger

CHECK_EVERY_S = 15.0
_LEAST_PAUSE_S = 5.0
_ANSWER_S = 5.0
_LOCK_WAIT_S = 30.0
_RATE_SPAN_S = (30.0, 1800.0)
_SETTLE_S = 180.0
_AFTER_OUTAGE = frozenset({Kind.DEAD_RUN, Kind.STALE, Kind.LISTENER, Kind.LAG})
_OF_A_RUN = frozenset({Kind.RUN, Kind.DEAD_RUN, Kind.SOURCE})


class Alarm:
    """Watches one pipeline and tells the addresses of `[alerts]`. Without an address every check is empty.

    target_conninfo: None where not even the embedded target could be started.
    """

    def __init__(self, settings: Settings, target_conninfo: str | None, *, messenger: Messenger | None = None) -> None:
        self._settings, self._conninfo = settings, target_conninfo
        self._messenger = messenger or Messenger(settings.alerts.urls)
        self._memory = AlertMemory(settings.data_dir, settings.pipeline)
        self._log = get_logger()
        self._checked_at = -_LEAST_PAUSE_S
        self._answered_since: float | None = None
        self._was_down = False
        self._ends: deque[tuple[float, Lsn]] = deque(maxlen=256)

    @property
    def is_silent(self) -> bool:
        """Say whether there is nobody to tell."""
        return self._messenger.is_empty

    def watch(self, stop: threading.Event, *, every_s: float = CHECK_EVERY_S) -> None:
        """Check again and again until `stop` is set, more often while the target is away: the body of a thread."""
        while not (self.is_silent or stop.wait(_LEAST_PAUSE_S if self._was_down else every_s)):
            self.check()

    def check(self, error: Exception | None = None, *, is_final: bool = False) -> None:
        """Look, and tell what is new or over.

        error: what the command raised that ends now. is_final: a command ends, and nobody looks again soon. Otherwise
        a call within five seconds of the last one returns at once.
        """
        if self.is_silent or (not is_final and time.monotonic() - self._checked_at < _LEAST_PAUSE_S):
            return
        self._checked_at = time.monotonic()
        try:
            self._check(error, is_final=is_final)
        except ReplicatorError as problem:
            self._log.warning("alerts_unavailable", error_type=problem.id, error_message=problem.message)
        except Exception as problem:  # noqa: BLE001  # whatever is wrong with an alert, the run goes on
            self._log.warning("alerts_unavailable", exc_info=problem)

    def _check(self, error: Exception | None, *, is_final: bool) -> None:
        problem = None
        told_by_run = False
        try:
            told_by_run = self._check_pipeline(is_final=is_final)
        except LockHeldError:
            # Another process of the pipeline checks now; a daemon's next check comes soon.
            if not is_final:
                return
        except (ReplicatorError, psycopg.Error) as caught:
            problem = caught
        self._note_answer(is_down=problem is not None)
        found = [] if problem is None else [_target_incident(problem)]
        unknown = frozenset() if is_final else frozenset({Kind.COMMAND})
        if is_final and error is not None and problem is None and not told_by_run:
            found += _command_incident(error)
        with self._memory.open() as kept:
            now = datetime.now(UTC)
            decision = decide(found, kept, now, unknown=unknown, is_final=is_final)
            for one in self._tell(decision, now):
                kept[one.incident.key] = one
            for key in self._tell_ended(decision):
                del kept[key]

    def _note_answer(self, *, is_down: bool) -> None:
        if is_down:
            self._was_down, self._answered_since = True, None
        elif self._was_down:
            self._was_down, self._answered_since = False, time.monotonic()

    def _is_settling(self) -> bool:
        """Say whether the target is back for too short a time: listener and runs still make up for its absence."""
        return self._was_down or (
            self._answered_since is not None and time.monotonic() - self._answered_since < _SETTLE_S
        )

    # --------------------------------------------------------------------------------------------- pipeline

    def _check_pipeline(self, *, is_final: bool) -> bool:
        """Check what the control schema tells; return whether a failed run is among the incidents.

        Raises LockHeldError while another process checks, and our errors when the target does not answer.
        """
        with closing(self._connect()) as connection, translated("target"):
            control = Control(connection, self._settings.target.control_schema, self._settings.pipeline)
            if not control.exists():
                return False
            control.migrate()
            control.take_lock("alerts", _LOCK_WAIT_S if is_final else 0.0)
            operation = Operation(connection, control.schema, control.pipeline)
            kept = operation.read_incidents()
            facts = self._look(control)
            found, unknown = find_incidents(facts, kept)
            if self._is_settling():
                unknown |= _AFTER_OUTAGE
                found = [one for one in found if one.kind not in _AFTER_OUTAGE]
            decision = decide(found, kept, facts.now, unknown=unknown, is_final=is_final)
            for one in (*decision.fresh, *self._tell(decision, facts.now)):
                operation.save_incident(one)
            for key in self._tell_ended(decision):
                operation.delete_incident(key)
            return any(one.kind in _OF_A_RUN for one in found)

    def _connect(self) -> Connection:
        if self._conninfo is None:
            raise OperatorError("the embedded target did not start", id="no_connection")
        timeout_s = min(_ANSWER_S, self._settings.source.connect_timeout.total_seconds())
        return connect(self._conninfo, side="target", timeout_s=timeout_s, first=True)

    def _look(self, control: Control) -> PipelineFacts:
        """Return the facts. Of a source that only the nightly run reads, that run tells whether it answers."""
        source = ask_source(self._settings, self._forecast) if has_stream(control) else None
        return read_facts(control, self._settings, source, with_history=True)

    def _forecast(self, slot: SlotFacts) -> float | None:
        """Return in how many seconds the slot is lost at the rate of the last half hour; None when that is unknown."""
        if slot.confirmed is None or slot.lag_bytes is None or slot.safe_wal_bytes is None:
            return None
        now, end = time.monotonic(), Lsn(slot.confirmed + slot.lag_bytes)
        least_s, most_s = _RATE_SPAN_S
        while self._ends and now - self._ends[0][0] > most_s:
            self._ends.popleft()
        self._ends.append((now, end))
        since, begin = self._ends[0]
        if now - since < least_s or end <= begin:
            return None
        return slot.safe_wal_bytes * (now - since) / (end - begin)

    # --------------------------------------------------------------------------------------------- messages

    def _tell(self, decision: Decision, now: datetime) -> list[Kept]:
        """Tell of what is due; return all that is to be remembered, told or not."""
        remembered = {one.incident.key: one for one in decision.fresh}
        if decision.tell:
            incidents = [one.incident for one in decision.tell]
            if self._messenger.send(describe_new(self._settings.pipeline, incidents)):
                self._log.warning("alert_sent", incidents=[one.headline for one in incidents])
                remembered |= {one.incident.key: Kept(one.incident, one.seen_at, now) for one in decision.tell}
        return list(remembered.values())

    def _tell_ended(self, decision: Decision) -> list[Key]:
        """Tell of what is over; return what is to be forgotten."""
        gone = [one.incident.key for one in decision.dropped]
        if decision.ended:
            incidents = [one.incident for one in decision.ended]
            if self._messenger.send(describe_ended(self._settings.pipeline, incidents)):
                self._log.info("recovery_sent", incidents=[one.headline for one in incidents])
                gone += [one.incident.key for one in decision.ended]
        return gone


def _target_incident(problem: Exception) -> Incident:
    if isinstance(problem, ReplicatorError):
        return Incident(Kind.TARGET, problem.code, problem.message, hint=problem.hint)
    return Incident(Kind.TARGET, "connection_lost", "the connection to the target was lost")


def _command_incident(error: Exception) -> list[Incident]:
    """Return the incident of a command that ended by an error that no table's row tells; none for a wrong option."""
    if isinstance(error, UsageError):
        return []
    known = error if isinstance(error, ReplicatorError) else unexpected(error)
    return [Incident(Kind.COMMAND, known.code, f"{known.message} ({known.code})", hint=known.hint)]


def check_after(settings: Settings, target_conninfo: str | None, error: Exception | None) -> None:
    """Tell what a command that ends has left behind. error: what it raised. Nothing of it changes the command's end."""
    if settings.alerts.urls:
        with suppress(Exception):
            Alarm(settings, target_conninfo).check(error, is_final=True)
