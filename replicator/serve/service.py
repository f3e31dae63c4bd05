"""What the routes share: settings, the way to the target, the desk, and how ready the process is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from replicator.apply.stream_control import StreamControl
from replicator.capture.source_state import read_slot
from replicator.db import closing, translated
from replicator.errors import ReplicatorError
from replicator.observe import describe_pipeline
from replicator.preparation import open_access
from replicator.serve.desk import Desk
from replicator.serve.scheduler import Scheduler
from replicator.serve.view import View, Views
from replicator.settings import Settings

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
                state = streams.read_state()
                is_streaming = streams.is_listening() and state is not None and state.position is not None
                return [] if is_streaming else ["the listener does not stream"]
        except ReplicatorError as error:
            return [error.what]

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
            with closing(open_access(self.settings).open(first=True)) as connection, translated("source"):
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
