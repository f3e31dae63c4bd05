"""Compare where a source stands with what the target has of it, and change nothing: for those who only look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from replicator.apply.control import TableRecord
from replicator.apply.stream_control import ListenerState
from replicator.capture.history import find_lost_markers
from replicator.capture.source_state import read_present, read_slot
from replicator.continuity import LOST_HISTORY, find_reads_ahead, plan_resume
from replicator.db import Connection
from replicator.errors import ReplicatorError
from replicator.reading import State


def find_history_errors(
    source: Connection, slot_name: str, records: Mapping[str, TableRecord], listener: ListenerState | None
) -> list[ReplicatorError]:
    """Return what of the target the source lacks: of a stream, and of the reads of single tables.

    source: outside any transaction, asked after the records were read.
    """
    now = read_present(source, slot_name, read_slot(source, slot_name))
    stream = None if listener is None else listener.record
    plan = None if stream is None else plan_resume(stream, now)
    errors = [plan] if isinstance(plan, ReplicatorError) and plan.id in LOST_HISTORY else []
    states = _list_reads([record.state for record in records.values()], now.system_identifier, now.timeline)
    lost = find_lost_markers(source, {state.marker for state in states if state.marker})
    ahead = find_reads_ahead(
        [state.lsn for state in states if state.lsn is not None],
        now,
        has_lost_marker=any(state.marker in lost for state in states),
    )
    return errors if ahead is None else [*errors, ahead]


def _list_reads(states: Iterable[State], system_identifier: str, timeline: int) -> list[State]:
    """Return the reads of this cluster on this timeline: those of others are known to count no longer."""
    return [
        state
        for state in states
        if state.lsn is not None and (state.system_identifier, state.timeline) == (system_identifier, timeline)
    ]
