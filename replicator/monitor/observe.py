"""Look at a pipeline from outside of its runs: the figures of control schema and slot, and what follows a command."""

from __future__ import annotations

import time
from dataclasses import replace

import psycopg

from replicator.apply.control import Control
from replicator.apply.stream_control import StreamControl
from replicator.capture.source_state import SlotFacts, read_slot
from replicator.config.settings import Settings
from replicator.db import closing, connect, translated
from replicator.errors import OperatorError, ReplicatorError
from replicator.monitor.metrics import PipelineFigures, SlotFigures, render_metrics, write_textfile
from replicator.monitor.operation import Operation
from replicator.sync.preparation import open_access
from replicator.telemetry.log import count_dropped, get_logger


class PipelineMetrics:
    """The metrics of one pipeline for as long as a process serves them: what it saw last outlives the target.

    A lag that vanished while the target is down would end the alert for it, and so would the WAL that its slot keeps.
    """

    def __init__(self, settings: Settings, target_conninfo: str) -> None:
        self._settings, self._target_conninfo = settings, target_conninfo
        self._last: tuple[float, PipelineFigures] | None = None

    def render(self) -> str:
        """Return the metrics as Prometheus reads them, whether or not target and source answer.

        Raises OperatorError for a control schema that is a newer package's.
        """
        figures = read_figures(self._settings, self._target_conninfo)
        if figures.is_target_up:
            self._last = (time.monotonic(), figures)
        elif self._last is not None:
            figures = self._remember(*self._last)
        return render_metrics(figures)

    def _remember(self, seen_at: float, last: PipelineFigures) -> PipelineFigures:
        """Return what was seen last, with the lag and the slot as they are now."""
        lag_s = None if last.lag_s is None else last.lag_s + time.monotonic() - seen_at
        slot = None if last.slot is None else ask_slot_figures(self._settings)
        return replace(last, is_target_up=False, lag_s=lag_s, slot=slot, logs_dropped=count_dropped())


def read_figures(settings: Settings, target_conninfo: str) -> PipelineFigures:
    """Return the pipeline's figures; only that the target is down when it is."""
    timeout_s = settings.source.connect_timeout.total_seconds()
    dropped = count_dropped()
    unknown = PipelineFigures(settings.pipeline, is_target_up=False, is_known=False, logs_dropped=dropped)
    try:
        with closing(connect(target_conninfo, side="target", timeout_s=timeout_s)) as connection, translated("target"):
            control = Control(connection, settings.target.control_schema, settings.pipeline)
            if not control.exists():
                return PipelineFigures(settings.pipeline, logs_dropped=dropped)
            control.migrate()
            operation = Operation(connection, control.schema, control.pipeline)
            figures = operation.read_figures(read_slot_figures(settings, control), logs_dropped=dropped)
    except (ReplicatorError, psycopg.Error) as error:
        if isinstance(error, OperatorError) and error.id == "control_newer":
            raise
        return unknown
    return figures


def read_slot_figures(settings: Settings, control: Control) -> SlotFigures | None:
    """Return what the slot of a pipeline that has a stream holds back; None without one, or without an answer."""
    state = StreamControl(control.connection, control.schema, control.pipeline).read_state()
    if state is None or state.slot_name is None:
        return None
    return ask_slot_figures(settings)


def ask_slot_figures(settings: Settings) -> SlotFigures | None:
    """Return what the slot holds back; None without one, or without an answer of the source."""
    try:
        with (
            closing(open_access(settings).open_at_slot(settings.slot_name, first=True)) as connection,
            translated("source"),
        ):
            slot = read_slot(connection, settings.slot_name)
    except ReplicatorError:
        return None
    return None if slot is None else measure_slot(slot)


def measure_slot(slot: SlotFacts) -> SlotFigures:
    """Return a slot's figures. retained: from the oldest WAL that the source keeps for it to the end."""
    retained = None
    if slot.lag_bytes is not None and slot.confirmed is not None and slot.restart is not None:
        retained = slot.lag_bytes + (slot.confirmed - slot.restart)
    return SlotFigures(slot.lag_bytes, retained, slot.safe_wal_bytes)


def write_metrics(settings: Settings, target_conninfo: str) -> None:
    """Write `metrics_textfile`, if one is configured. A failure costs a warning: the run itself is done.

    With the target down the file stays as it is: the age of its figures is what an alert looks at.
    """
    path = settings.metrics_textfile
    if path is None:
        return
    try:
        figures = read_figures(settings, target_conninfo)
        if figures.is_target_up:
            write_textfile(path, render_metrics(figures))
    except OSError as error:
        get_logger().warning("metrics_file_unavailable", file=path, error_message=error.strerror)
    except ReplicatorError as error:
        get_logger().warning("metrics_file_unavailable", file=path, error_message=error.message)
