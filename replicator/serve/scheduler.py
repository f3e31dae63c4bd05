"""The scheduler: starts one run a night, of all the processes that serve a pipeline only one.

Leading is an advisory lock in the target, which the server gives back with the session. What makes a night unique is a
row of `started_run`, committed before its run starts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import psycopg

from replicator.apply.control import Control
from replicator.apply.stream_control import StreamControl
from replicator.config.settings import Settings
from replicator.db import connect, translated
from replicator.errors import EXIT_FAILED, EXIT_OK, PassingError, ReplicatorError
from replicator.patience import Patience
from replicator.schedule import Schedule
from replicator.serve.record import GRACE_S, OpenNight, Order, Outcome, StartedRuns
from replicator.telemetry.log import get_logger

LEADER_LOCK = "serve"
MOST_ATTEMPTS = 5
"""How often a night is taken up again that was cut off: one that kills its process would do so for ever."""

_VERIFY_GRACE_S = 86400.0
_PAUSE_S = 2.0


class Starter(Protocol):
    """What starts runs."""

    def start(self, order: Order) -> None:
        """Start a run and return at once."""

    def list_alive(self, *commands: str) -> list[Order]:
        """Return the runs under way."""


def read_clock() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class Scheduler:
    """Looks every few seconds whether a night is due. on_tick: told each time whether it leads."""

    def __init__(
        self,
        settings: Settings,
        target_conninfo: str,
        starter: Starter,
        *,
        clock: Callable[[], datetime] = read_clock,
        on_tick: Callable[[bool], None] = lambda _leads: None,
    ) -> None:
        self._settings, self._target_conninfo, self._starter = settings, target_conninfo, starter
        self._clock, self._on_tick = clock, on_tick
        self.schedule = Schedule.parse(settings.schedule.cron, settings.schedule.timezone)
        self._control: Control | None = None
        self.leads = False
        self._since = clock()
        self._started: set[UUID] = set()
        self._log = get_logger()

    def run(self, stop: threading.Event) -> None:
        """Look until it is told to stop; a target that is away is waited for, for ever."""
        while not stop.is_set():
            patience = Patience(stop, self._log, limit_s=float("inf"))
            try:
                patience.attempts()(self.tick)
            except PassingError:
                break
            except ReplicatorError as error:
                self._log.error(
                    "schedule_failed", error_type=error.id, error_message=error.message, sqlstate=error.sqlstate
                )
                self.close()
            except Exception as error:  # noqa: BLE001  # a thread has nobody above it, and the next night must come
                self._log.error("schedule_failed", exc_info=error)
                self.close()
            stop.wait(_PAUSE_S)
        self.close()

    def tick(self) -> None:
        """Look once, and tell that it did. Raises PassingError when the target does not answer.

        A target that is away is no fault of this process: it goes round, and systemd hears of it all the same.
        """
        try:
            with translated("target"):
                self._look()
        except ReplicatorError:
            self.close()
            raise
        finally:
            self._on_tick(self.leads)

    def is_held(self, lock: str) -> bool | None:
        """Say whether some session holds a lock of the pipeline; None where the target cannot be asked now.

        For `on_tick`: the session is that of the scheduler's thread.
        """
        if self._control is None:
            return None
        control = self._control
        try:
            return StreamControl(control.connection, control.schema, control.pipeline).is_held(lock)
        except psycopg.Error:
            return None

    def close(self) -> None:
        """Give the lead back."""
        if self._control is not None:
            self._control.connection.close()
        self._control, self.leads = None, False

    def _look(self) -> None:
        control = self._open()
        if not self.leads:
            self.leads = control.try_lock(LEADER_LOCK)
            if not self.leads:
                return
            self._since = self._save_schedule(StartedRuns(control))
            self._log.info("schedule_led", cron=self._settings.schedule.cron, timezone=self._settings.schedule.timezone)
        runs = StartedRuns(control)
        self._close_dead(runs)
        now = self._clock()
        last = runs.read_last_night()
        due = self.schedule.find_due(max(self._since, last) if last else self._since, now)
        if any(order.scheduled_for is not None for order in self._starter.list_alive()):
            return
        night = runs.read_open_night()
        if night is not None and not self._settle(runs, night, due):
            return
        if due is not None:
            self._start(runs, Order("sync", "scheduler", scheduled_for=due), now)

    def _open(self) -> Control:
        if self._control is None or self._control.connection.closed:
            self.leads = False
            timeout_s = self._settings.source.connect_timeout.total_seconds()
            connection = connect(self._target_conninfo, side="target", timeout_s=timeout_s)
            self._control = Control(connection, self._settings.target.control_schema, self._settings.pipeline)
            self._control.migrate()
        return self._control

    def _save_schedule(self, runs: StartedRuns) -> datetime:
        """Return from when on nights are due."""
        return runs.save_schedule(self._settings.schedule.cron, self._settings.schedule.timezone, self._clock())

    def _settle(self, runs: StartedRuns, night: OpenNight, due: datetime | None) -> bool:
        """Bring a night to its end whose process is gone; False when something of it is still under way."""
        if runs.is_run_locked() or (not night.batches and night.age_s < GRACE_S and not self._knows(night)):
            return False
        if night.batches and not night.unfinished:
            runs.finish(night.execution_id, Outcome(EXIT_FAILED if night.failed else EXIT_OK))
        elif due is not None:
            message = "the next night came before it was done"
            runs.finish(night.execution_id, Outcome(EXIT_FAILED, error_message=message))
        elif night.attempts >= MOST_ATTEMPTS:
            message = f"given up after {night.attempts} attempts that ended without a word"
            runs.finish(night.execution_id, Outcome(EXIT_FAILED, error_message=message))
        elif order := runs.restart(night):
            self._log.warning("night_resumed", scheduled_for=night.scheduled_for, attempt=night.attempts + 1)
            self._launch(order)
            return False
        return True

    def _start(self, runs: StartedRuns, order: Order, now: datetime) -> None:
        assert order.scheduled_for is not None
        if not runs.start(order):
            return
        late = now - order.scheduled_for
        if late > timedelta(minutes=5):
            self._log.warning("night_missed", scheduled_for=order.scheduled_for, late_seconds=late.total_seconds())
        self._launch(order)
        runs.delete_expired(self._settings.defaults.retention_days * 86400.0)

    def _launch(self, order: Order) -> None:
        self._started = {order.execution_id}
        self._starter.start(order)

    def _close_dead(self, runs: StartedRuns) -> None:
        """Close what was asked for and whose process is gone."""
        alive = [order.execution_id for order in self._starter.list_alive()]
        if not runs.is_run_locked():
            runs.close_asked(alive, ("sync", "resync"), GRACE_S)
        runs.close_asked(alive, ("verify",), _VERIFY_GRACE_S)

    def _knows(self, night: OpenNight) -> bool:
        """Say whether the night's process was ours: then it has ended."""
        return night.execution_id in self._started
