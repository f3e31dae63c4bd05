"""What the routes share: settings, the way to the target, the desk, and the state of health."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from replicator.apply.stream_control import StreamControl
from replicator.config.settings import Settings
from replicator.db import translated
from replicator.errors import ReplicatorError
from replicator.monitor.facts import SourceAnswer, ask_source, describe_problem, has_stream, read_facts
from replicator.monitor.health import Health, Reason, judge, judge_unreachable
from replicator.monitor.observe import PipelineMetrics
from replicator.serve.desk import Desk
from replicator.serve.pulse import Pulse
from replicator.serve.scheduler import Scheduler
from replicator.serve.source_watch import SourceWatch
from replicator.serve.view import View, Views

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
    source_watch: SourceWatch = field(init=False)
    metrics: PipelineMetrics = field(init=False)

    def __post_init__(self) -> None:
        """Make what remembers."""
        object.__setattr__(self, "source_watch", SourceWatch(lambda: ask_source(self.settings)))
        object.__setattr__(self, "metrics", PipelineMetrics(self.settings, self.target_conninfo))

    def view(self) -> AbstractContextManager[View]:
        """Open the control schema for one request."""
        return self.views.open()

    def find_unready(self) -> list[Reason]:
        """Return what keeps this process from its work."""
        return self._judge(with_tables=False).find_unready(listens=self.listens)

    def read_health(self) -> Health:
        """Return the pipeline's state of health."""
        return self._judge(with_tables=True)

    def _judge(self, *, with_tables: bool) -> Health:
        try:
            with self.view() as view, translated("target"):
                source = self.source_watch.read() if self.listens or with_tables else None
                is_streaming = self._is_streaming(view, source)
                return judge(
                    read_facts(
                        view.control,
                        self.settings,
                        source,
                        listens=self.listens,
                        is_streaming=is_streaming,
                        with_tables=with_tables,
                    )
                )
        except ReplicatorError as error:
            return judge_unreachable(describe_problem(error), is_ready=error.id != "not_ready")

    def _is_streaming(self, view: View, source: SourceAnswer | None) -> bool | None:
        """Say whether a listener brings changes: a frozen one holds its lock too. None where the slot tells."""
        control = view.control
        state = StreamControl(control.connection, control.schema, control.pipeline).read_state()
        if state is None or state.position is None:
            self.pulse.forget()
            return None
        moves = self.pulse.judge((state.epoch, state.position, state.fresh_at), time.monotonic())
        if moves is None and source is not None:
            return source.slot is not None and source.slot.active
        return moves

    def read_metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return self.metrics.render()

    def read_slot(self) -> dict[str, Any] | None:
        """Return the stream's slot as `status --json` has it; None where there is no stream."""
        with self.view() as view:
            if not has_stream(view.control):
                return None
        source = self.source_watch.read()
        unknown = {"name": self.settings.slot_name, **dict.fromkeys(_UNKNOWN)}
        if source.problem is not None:
            return unknown | {"wal_status": f"unknown: {source.problem.message}"}
        if source.slot is None:
            return unknown | {"wal_status": "missing"}
        slot = source.slot
        return unknown | {
            "active": slot.active,
            "wal_status": slot.wal_status,
            "lag_bytes": slot.lag_bytes,
            "safe_wal_bytes": slot.safe_wal_bytes,
        }
