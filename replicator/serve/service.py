"""What the routes share: settings, the way to the target, the desk, and how ready the process is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from replicator.apply.stream_control import ListenerState, StreamControl
from replicator.capture.source_state import read_slot
from replicator.config.settings import Settings
from replicator.db import closing, translated
from replicator.errors import ReplicatorError
from replicator.monitor.observe import describe_pipeline
from replicator.serve.desk import Desk
from replicator.serve.pulse import Pulse
from replicator.serve.scheduler import Scheduler
from replicator.serve.view import View, Views
from replicator.sync.preparation import open_access

_UNKNOWN = ("active", "wal_status", "lag_bytes", "safe_wal_bytes", "invalid_in_seconds")


@dataclass(frozen=True)
class Service:
    """One serving process. listens: whether it keeps a listener; is_turning: whether its threads are alive."""

    settings: Settings
    target_conninfo: str
    desk: Desk
    scheduler: Scheduler
    listens: bool
    is_turning: Callable[[], bool]
    views: Views
    pulse: Pulse = field(default_factory=Pulse)

    def view(self) -> AbstractContextManager[View]:
        """Open the control schema for one request."""
        return self.views.open()

    def find_unready(self) -> list[str]:
        """Return what is not ready yet, in our own words."""
        try:
            with self.view() as view:
                if not self.listens:
                    return []
                control = view.control
                streams = StreamControl(control.connection, control.schema, control.pipeline)
                state = streams.read_state() if streams.is_listening() else None
            return [] if self._is_streaming(state) else ["the listener does not stream"]
        except ReplicatorError as error:
            return [error.what]

    def _is_streaming(self, state: ListenerState | None) -> bool:
        """Say whether a listener brings changes. state: of one that holds its lock, which a frozen one does too."""
        if state is None or state.position is None:
            self.pulse.forget()
            return False
        is_active = self.pulse.judge((state.epoch, state.position, state.fresh_at), time.monotonic())
        return self.pulse.ask(self._is_slot_active, time.monotonic()) if is_active is None else is_active

    def _is_slot_active(self) -> bool:
        try:
            with (
                closing(open_access(self.settings).open_at_slot(self.settings.slot_name, first=True)) as connection,
                translated("source"),
            ):
                slot = read_slot(connection, self.settings.slot_name)
        except ReplicatorError:
            return False
        return slot is not None and slot.active

    def read_metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return describe_pipeline(self.settings, self.target_conninfo)

    def read_slot(self) -> dict[str, Any] | None:
        """Return the stream's slot as `status --json` has it; None where there is no stream."""
        with self.view() as view:
            control = view.control
            state = StreamControl(control.connection, control.schema, control.pipeline).read_state()
        if state is None or state.slot_name is None:
            return None
        unknown = {"name": self.settings.slot_name, **dict.fromkeys(_UNKNOWN)}
        try:
            with (
                closing(open_access(self.settings).open_at_slot(self.settings.slot_name, first=True)) as connection,
                translated("source"),
            ):
                slot = read_slot(connection, self.settings.slot_name)
        except ReplicatorError as error:
            return unknown | {"wal_status": f"unknown: {error.what}"}
        if slot is None:
            return unknown | {"wal_status": "missing"}
        return unknown | {
            "active": slot.active,
            "wal_status": slot.wal_status,
            "lag_bytes": slot.lag_bytes,
            "safe_wal_bytes": slot.safe_wal_bytes,
        }
