"""Gather what the state of health is judged by, from the control schema and from the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from replicator.apply.control import Control
from replicator.apply.stream_control import ListenerState, StreamControl
from replicator.capture.source_state import SlotFacts, read_slot
from replicator.config.settings import Settings
from replicator.db import closing, translated
from replicator.errors import PassingError, ReplicatorError
from replicator.monitor.health import LISTENER_ROW, MOVED, ListenerFacts, Parked, PipelineFacts, Problem, SlotState
from replicator.monitor.observe import measure_slot
from replicator.monitor.operation import Operation
from replicator.relation import TABLE
from replicator.selection import parse_table_name, select_entry
from replicator.sync.history import find_history_errors
from replicator.sync.preparation import open_access

Forecast = Callable[[SlotFacts], float | None]


@dataclass(frozen=True, slots=True)
class SourceAnswer:
    """What the source said when it was asked for the pipeline's slot. slot: None where there is none.

    problem: why it did not answer. invalid_in_s: in how many seconds the slot is lost, None if unknown or never.
    """

    slot: SlotFacts | None = None
    problem: Problem | None = None
    invalid_in_s: float | None = None


def ask_source(settings: Settings, forecast: Forecast | None = None) -> SourceAnswer:
    """Ask the source for the pipeline's slot. Nothing is raised for one that does not answer."""
    try:
        access = open_access(settings)
        with closing(access.open_at_slot(settings.slot_name, first=True)) as connection, translated("source"):
            slot = read_slot(connection, settings.slot_name)
    except ReplicatorError as error:
        return SourceAnswer(problem=describe_problem(error))
    return SourceAnswer(slot, None, None if slot is None or forecast is None else forecast(slot))


def describe_problem(error: ReplicatorError) -> Problem:
    """Return what an error tells of a server that did not answer."""
    return Problem(error.code, error.message, error.hint)


def has_stream(control: Control) -> bool:
    """Say whether the pipeline has a stream. The control schema must be of this version."""
    state = StreamControl(control.connection, control.schema, control.pipeline).read_state()
    return state is not None and state.slot_name is not None


def read_facts(
    control: Control,
    settings: Settings,
    source: SourceAnswer | None = None,
    *,
    listens: bool = False,
    is_streaming: bool | None = None,
    with_tables: bool = True,
    with_history: bool = False,
) -> PipelineFacts:
    """Return what is known of the pipeline now.

    source: None where it was not asked. listens: there should be a listener, whether or not one ever ran.
    is_streaming: None where nobody has watched it for a while; then the slot tells. with_tables: False leaves out all
    that concerns a single table. with_history: ask the source whether it has what the target has of it.
    """
    problem = None if source is None else source.problem
    facts = PipelineFacts(datetime.now(UTC), settings.alerts.stale_after, source_problem=problem)
    if not control.exists():
        nothing = frozenset[str]() if with_tables else None
        return replace(facts, tables=nothing, listener=ListenerFacts(False, False, None) if listens else None)
    if control.list_pending():
        return replace(facts, is_ready=False)
    facts = _add_stream(facts, control, settings, source, listens=listens, is_streaming=is_streaming)
    if with_history and source is not None and source.problem is None:
        facts = replace(facts, history=_find_history(control, settings))
    return _add_tables(facts, control, settings) if with_tables else facts


def _find_history(control: Control, settings: Settings) -> tuple[Problem, ...]:
    """Return what the source lacks of what the target has. It is asked once the target has told: both move on."""
    records = control.read_records()
    listener = StreamControl(control.connection, control.schema, control.pipeline).read_state()
    if not records:
        return ()
    try:
        access = open_access(settings)
        with closing(access.open_at_slot(settings.slot_name, first=True)) as connection, translated("source"):
            errors = find_history_errors(connection, settings.slot_name, records, listener)
    except ReplicatorError:
        return ()
    return tuple(describe_problem(error) for error in errors if not isinstance(error, PassingError))


def _add_stream(
    facts: PipelineFacts,
    control: Control,
    settings: Settings,
    source: SourceAnswer | None,
    *,
    listens: bool,
    is_streaming: bool | None,
) -> PipelineFacts:
    """Return the facts with what concerns the whole pipeline."""
    streams = StreamControl(control.connection, control.schema, control.pipeline)
    operation = Operation(control.connection, control.schema, control.pipeline)
    # Before the lock is asked for: a run takes it first and writes its rows then.
    running = operation.count_running()
    facts = replace(
        facts,
        has_dead_run=running > 0 and not streams.is_held("run"),
        batches=operation.read_last_batches([LISTENER_ROW]),
    )
    state = streams.read_state()
    has_slot = state is not None and state.slot_name is not None
    if not (has_slot or listens):
        return facts
    if is_streaming is None:
        is_streaming = _is_streaming(state, source, facts.now)
    listener = ListenerFacts(
        streams.is_listening(),
        state is not None and state.position is not None,
        None if state is None else state.fresh_at,
        is_streaming,
    )
    slot = _see_slot(settings, source) if has_slot and source is not None and source.problem is None else None
    return replace(facts, listener=listener, slot=slot)


def _is_streaming(state: ListenerState | None, source: SourceAnswer | None, now: datetime) -> bool | None:
    """Say whether changes arrive: they did a moment ago, or the source serves the slot. None where neither is known."""
    if state is not None and state.fresh_at is not None and now - state.fresh_at < MOVED:
        return True
    return None if source is None or source.slot is None else source.slot.active


def _see_slot(settings: Settings, source: SourceAnswer) -> SlotState:
    slot = source.slot
    if slot is None:
        return SlotState(settings.slot_name, "missing")
    return SlotState(
        slot.name,
        slot.wal_status or "unknown",
        retained_bytes=measure_slot(slot).retained_bytes,
        safe_wal_bytes=slot.safe_wal_bytes,
        invalid_in_s=source.invalid_in_s,
    )


def _add_tables(facts: PipelineFacts, control: Control, settings: Settings) -> PipelineFacts:
    """Return the facts with what concerns single tables."""
    streams = StreamControl(control.connection, control.schema, control.pipeline)
    operation = Operation(control.connection, control.schema, control.pipeline)
    known = operation.read_tables()
    tables = frozenset(known)
    return replace(
        facts,
        tables=tables,
        unselected=frozenset(find_unselected(settings, tables)),
        batches={**facts.batches, **operation.read_last_batches(tables)},
        successes=operation.read_successes(),
        streamed=frozenset(table for table, is_streamed in known.items() if is_streamed),
        parked={name: Parked(one.id, one.message, one.hint) for name, one in streams.read_parked().items()},
        copying=frozenset(streams.read_copying()),
        quarantined=operation.read_waiting(),
        mismatched=operation.read_mismatches(),
    )


def find_unselected(settings: Settings, tables: Iterable[str]) -> list[str]:
    """Return the tables that the configuration selects no longer."""
    return [table for table in tables if select_entry(settings.entries, *parse_table_name(table), TABLE) is None]
