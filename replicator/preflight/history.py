"""Whether the source still has what the target was given of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from replicator.apply.control import Control
from replicator.apply.stream_control import StreamControl
from replicator.config.settings import Settings
from replicator.db import Connection, translated
from replicator.errors import PassingError
from replicator.preflight.finding import Finding, find_error
from replicator.sync.history import find_history_errors


def check_history(settings: Settings, source: Connection, target: Connection) -> Iterator[Finding]:
    """Find a source that was put back, or replaced by one that lacks what the target has."""
    control = Control(target, settings.target.control_schema, settings.pipeline)
    with translated("target"):
        if not control.exists() or control.list_pending():
            return
        records = control.read_records()
        listener = StreamControl(target, control.schema, control.pipeline).read_state()
    with translated("source"):
        errors = find_history_errors(source, settings.slot_name, records, listener)
    for error in errors:
        finding = find_error(error)
        yield replace(finding, severity="warn") if isinstance(error, PassingError) else finding
