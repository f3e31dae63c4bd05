"""The pipeline's state of health, from the facts that target and source tell: pure, and the only judgement there is.

`status`, `health`, `/readyz`, the dashboard, the API and the alerts all show what `judge` returns, so none of them can
be green while another is red. Texts are our own words, names and SQLSTATEs: what they come from holds no values.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

State = Literal["healthy", "attention", "failing"]
Scope = Literal["process", "table"]


class Kind(StrEnum):
    """What a reason is of."""

    TARGET = "target"
    NOT_READY = "not_ready"
    SOURCE = "source"
    LISTENER = "listener"
    COPY = "copy"
    SLOT = "slot"
    HISTORY = "history"
    FORECAST = "forecast"
    RETAINED = "retained"
    LAG = "lag"
    DEAD_RUN = "dead_run"
    EMPTY = "empty"
    COMMAND = "command"
    PARKED = "parked"
    RUN = "run"
    DIFFERS = "differs"
    QUARANTINE = "quarantine"
    NEVER = "never"
    STALE = "stale"
    UNSELECTED = "unselected"


_OF_THE_STREAM = frozenset({Kind.SOURCE, Kind.LISTENER, Kind.SLOT, Kind.RUN, Kind.COPY})
_UNREADY = _OF_THE_STREAM | {Kind.TARGET, Kind.NOT_READY}

LAG = timedelta(minutes=5)
"""A listener writes its position every second while it streams, so this long without one is trouble."""

MOVED = timedelta(seconds=30)
"""For how long a stream that has moved counts as streaming."""

LAG_OVER = timedelta(minutes=1)
FORECAST = timedelta(hours=6)
FORECAST_OVER = timedelta(hours=12)
RETAINED_BYTES = 10 * 1024**3
RETAINED_OVER_BYTES = 5 * 1024**3
_HEALTHY_SLOT = ("reserved", "extended")
LISTENER_ROW = "-"
"""What stands for a table's name in the record of the listener itself."""

_LISTEN = "listen"
_START = "replicator listen, or start the service that runs it"
_REPAIR = "replicator listen --repair-gap"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the pipeline is not healthy.

    id: stable, of what it is; code: SQLSTATE or our own id of the error behind it. table: empty where the reason is the
    whole pipeline's. stops: nothing flows while it lasts.
    """

    kind: Kind
    id: str
    message: str
    hint: str | None = None
    table: str = ""
    code: str = ""
    stops: bool = False

    @property
    def scope(self) -> Scope:
        """Say whether it is one table's, or the whole pipeline's."""
        return "table" if self.table else "process"

    @property
    def sentence(self) -> str:
        """Return the message with the table that it is about."""
        return f"{self.table}: {self.message}" if self.table else self.message

    def document(self) -> dict[str, str | None]:
        """Return the reason as JSON has it."""
        return {
            "id": self.id,
            "scope": self.scope,
            "table": self.table or None,
            "message": self.message,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True)
class Health:
    """The judgement. unknown: kinds of which nothing can be said now."""

    reasons: Sequence[Reason] = ()
    unknown: frozenset[Kind] = frozenset()

    @property
    def state(self) -> State:
        """Return `failing` when nothing flows, `attention` when somebody should look, else `healthy`."""
        if any(reason.stops for reason in self.reasons):
            return "failing"
        return "attention" if self.reasons else "healthy"

    def find_unready(self, *, listens: bool) -> list[Reason]:
        """Return what keeps a serving process from its work; a table never does.

        listens: it keeps a listener. What only a stream needs concerns no other process.
        """
        return [
            reason
            for reason in self.reasons
            if reason.scope == "process" and reason.kind in _UNREADY and (listens or reason.kind not in _OF_THE_STREAM)
        ]

    def document(self) -> dict[str, object]:
        """Return state and reasons as JSON has them."""
        return {"state": self.state, "reasons": [reason.document() for reason in self.reasons]}


@dataclass(frozen=True, slots=True)
class Problem:
    """What kept a server from answering: id or SQLSTATE, our own words, and what to do."""

    code: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class LastBatch:
    """How a table's newest finished batch ended."""

    path: str
    status: str
    code: str
    message: str
    completed_at: datetime
    hint: str | None = None

    @property
    def is_good(self) -> bool:
        """Say whether it landed."""
        return self.status == "success"


@dataclass(frozen=True, slots=True)
class Parked:
    """Why a table is parked: id, message and hint of the error."""

    id: str
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class ListenerFacts:
    """The listener as the target shows it.

    is_running: it holds its lock. is_copied: its first copy is complete. is_streaming: None where that is not known.
    """

    is_running: bool
    is_copied: bool
    fresh_at: datetime | None
    is_streaming: bool | None = None


@dataclass(frozen=True, slots=True)
class SlotState:
    """The slot as the source shows it. wal_status: `missing` without a slot. invalid_in_s: None if unknown or never."""

    name: str
    wal_status: str
    retained_bytes: int | None = None
    safe_wal_bytes: int | None = None
    invalid_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """All that is judged, at one moment.

    tables: that the pipeline knows; None: nothing is said of tables. unselected: those that the configuration selects
    no longer. copying: those that the listener reads now. batches: by table, and `-` for the listener itself.
    successes: up to when each table is known to be right. quarantined: rows and SQLSTATE by table. mismatched: rows
    that a comparison found and left, by table. source_problem: why the source did not answer, if it was asked and did
    not. history: what the source lacks of what the target has. is_ready: the control schema is of this version.
    """

    now: datetime
    stale_after: timedelta
    tables: frozenset[str] | None = None
    unselected: frozenset[str] = frozenset()
    batches: Mapping[str, LastBatch] = field(default_factory=dict)
    successes: Mapping[str, datetime] = field(default_factory=dict)
    streamed: frozenset[str] = frozenset()
    parked: Mapping[str, Parked] = field(default_factory=dict)
    copying: frozenset[str] = frozenset()
    quarantined: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    mismatched: Mapping[str, int] = field(default_factory=dict)
    has_dead_run: bool = False
    listener: ListenerFacts | None = None
    slot: SlotState | None = None
    source_problem: Problem | None = None
    history: tuple[Problem, ...] = ()
    is_ready: bool = True

    @property
    def is_in_first_copy(self) -> bool:
        """Say whether a listener is at its first copy of all tables."""
        return self.listener is not None and self.listener.is_running and not self.listener.is_copied


def judge(facts: PipelineFacts, open_kinds: Iterable[Kind] = ()) -> Health:
    """Return the state of health: what concerns the whole pipeline first, then parked tables, then the others.

    open_kinds: of what was found before. Some reasons end at another limit than that at which they begin.
    """
    kinds = frozenset(open_kinds)
    unknown: frozenset[Kind] = frozenset()
    found = [*_judge_control(facts)]
    if facts.source_problem is not None:
        found.append(_judge_source(facts, facts.source_problem))
        unknown = frozenset({Kind.LISTENER, Kind.COPY, Kind.LAG, Kind.SLOT, Kind.HISTORY, Kind.FORECAST, Kind.RETAINED})
    elif facts.listener is not None:
        found += _judge_listener(facts, facts.listener, kinds)
    found += [
        Reason(Kind.HISTORY, problem.code, problem.message, problem.hint, "", problem.code, stops=True)
        for problem in facts.history[:1]
    ]
    if facts.slot is not None:
        found += _judge_slot(facts, facts.slot, kinds)
    found += _judge_parked(facts)
    found += _judge_tables(facts)
    return Health(tuple(sorted(found, key=lambda reason: reason.scope)), unknown)


def judge_unreachable(problem: Problem, *, is_ready: bool = True) -> Health:
    """Return the state of health of a pipeline whose target does not answer: all else is unknown.

    is_ready: False where it does, and its control schema is not that of this version.
    """
    kind, name = (Kind.TARGET, "target_unreachable") if is_ready else (Kind.NOT_READY, "not_ready")
    return Health((Reason(kind, name, problem.message, problem.hint, "", problem.code, is_ready),))


def find_table_state(
    table: str, *, parked: Iterable[str], copying: Iterable[str], streamed: Iterable[str], is_copied: bool
) -> Literal["nightly", "copying", "live", "parked"]:
    """Return who brings a table now. is_copied: the listener's first copy is complete."""
    if table in parked:
        return "parked"
    if table in copying or (table in streamed and not is_copied):
        return "copying"
    return "live" if table in streamed else "nightly"


def _judge_control(facts: PipelineFacts) -> Iterator[Reason]:
    if not facts.is_ready:
        yield Reason(
            Kind.NOT_READY,
            "not_ready",
            "the control schema is not ready: migrations of this version have not run yet",
            "replicator sync, listen or serve makes them",
        )
    elif facts.tables is not None and not facts.tables and not facts.parked:
        hint = "replicator sync, or replicator listen"
        yield Reason(Kind.EMPTY, "nothing_synced", "nothing has been synced yet", hint)
    if facts.has_dead_run:
        message = "a run died: killed, out of memory, or its server went away"
        yield Reason(Kind.DEAD_RUN, "run_died", message, "replicator sync: it begins where the dead one stood")


def _judge_source(facts: PipelineFacts, problem: Problem) -> Reason:
    return Reason(
        Kind.SOURCE, "source_unreachable", problem.message, problem.hint, "", problem.code, facts.listener is not None
    )


def _judge_listener(facts: PipelineFacts, listener: ListenerFacts, open_kinds: frozenset[Kind]) -> Iterator[Reason]:
    if not listener.is_running:
        message = "the listener does not run: no process holds its lock, and its slot keeps the source's WAL"
        yield Reason(Kind.LISTENER, "listener_down", message, _START, stops=True)
    elif not listener.is_copied:
        hint = "wait for it: replicator status shows the tables that are being copied"
        yield Reason(Kind.COPY, "listener_copying", "the listener's first copy is not complete", hint)
    elif listener.is_streaming is False:
        message = "the listener does not stream: it holds its lock, and no change arrives"
        hint = "look at its log; restart it if that goes on"
        yield Reason(Kind.LISTENER, "listener_not_streaming", message, hint, stops=True)
    elif listener.fresh_at is not None:
        limit = LAG_OVER if Kind.LAG in open_kinds else LAG
        if facts.now - listener.fresh_at > limit:
            message = f"the listener is behind: more than {in_words(LAG)}"
            yield Reason(Kind.LAG, "listener_behind", message, "replicator status shows where the stream stands")


def _judge_slot(facts: PipelineFacts, slot: SlotState, open_kinds: frozenset[Kind]) -> Iterator[Reason]:
    if slot.wal_status not in _HEALTHY_SLOT:
        if slot.wal_status == "missing" and facts.listener is not None and not facts.listener.is_copied:
            # It is made once the transactions have ended that are open now.
            return
        yield _judge_bad_slot(slot)
        return
    raise_it = "start the listener, or on the source: alter system set max_slot_wal_keep_size = '...'"
    forecast = FORECAST_OVER if Kind.FORECAST in open_kinds else FORECAST
    if slot.invalid_in_s is not None and slot.invalid_in_s < forecast.total_seconds():
        left = in_words(timedelta(seconds=slot.invalid_in_s))
        message = f"slot {slot.name}: invalid in about {left} at the rate at which WAL is written"
        yield Reason(Kind.FORECAST, "slot_forecast", message, raise_it)
    limit = RETAINED_OVER_BYTES if Kind.RETAINED in open_kinds else RETAINED_BYTES
    if slot.retained_bytes is not None and slot.retained_bytes > limit and slot.safe_wal_bytes is None:
        size = f"{slot.retained_bytes / 1024**3:.0f} GiB"
        message = f"slot {slot.name} holds {size} of WAL back, and max_slot_wal_keep_size sets no limit"
        yield Reason(Kind.RETAINED, "slot_retains", message, raise_it)


def _judge_bad_slot(slot: SlotState) -> Reason:
    texts = {
        "missing": ("slot_missing", f"slot {slot.name} is gone from the source", _REPAIR),
        "lost": ("slot_lost", f"slot {slot.name} is lost: the source removed WAL that it needs", _REPAIR),
        "unreserved": (
            "slot_unreserved",
            f"slot {slot.name} is about to be lost: the next checkpoint may remove WAL that it needs",
            _START,
        ),
    }
    name, message, hint = texts.get(
        slot.wal_status, ("slot_unknown", f"slot {slot.name}: {slot.wal_status}", "replicator slot list")
    )
    return Reason(Kind.SLOT, name, message, hint, code=slot.wal_status, stops=True)


def _judge_parked(facts: PipelineFacts) -> Iterator[Reason]:
    for table, parked in sorted(facts.parked.items()):
        hint = parked.hint or f"replicator resync {shlex.quote(table)} --yes"
        yield Reason(Kind.PARKED, "parked", f"parked: {parked.message} ({parked.id})", hint, table, parked.id)


def _judge_tables(facts: PipelineFacts) -> Iterator[Reason]:
    stopped = facts.batches.get(LISTENER_ROW)
    if stopped is not None and not stopped.is_good and not _is_outlived(facts, stopped):
        message = f"the listener stopped: {stopped.message} ({stopped.code})"
        yield Reason(Kind.RUN, "listener_failed", message, stopped.hint or _START, "", stopped.code, True)
    known = facts.tables if facts.tables is not None else {*facts.batches, *facts.successes} - {LISTENER_ROW}
    for table in sorted(known):
        wrong = _judge_batches(facts, table)
        if table in facts.unselected and table not in facts.successes:
            # A name that was mistyped: nothing of it is in the target, so nothing is left to be done.
            continue
        if wrong is not None and table in facts.unselected:
            hint = f"replicator forget {shlex.quote(table)} --yes"
            message = "the configuration does not select it any more"
            wrong = Reason(Kind.UNSELECTED, "table_unselected", message, hint, table)
        if wrong is not None:
            yield wrong
    for table, (rows, code) in sorted(facts.quarantined.items()):
        message = f"{_count(rows)} in quarantine, refused with SQLSTATE {code}"
        yield Reason(Kind.QUARANTINE, "quarantine", message, "replicator quarantine list", table, code)
    for table, rows in sorted(facts.mismatched.items()):
        if rows:
            message = f"{_count(rows)} differed from the source at the last comparison"
            hint = f"replicator verify {shlex.quote(table)} --repair"
            yield Reason(Kind.DIFFERS, "verify_differs", message, hint, table, "mismatch")


def _judge_batches(facts: PipelineFacts, table: str) -> Reason | None:
    """Return what is wrong by a table's batches: a failure, else that none succeeded, or none for too long."""
    batch, success = facts.batches.get(table), facts.successes.get(table)
    has_failed = batch is not None and not batch.is_good
    if batch is not None and has_failed and not _is_told(facts, table, batch):
        return _judge_failure(table, batch)
    if table in facts.parked:
        return None
    if success is None:
        if facts.tables is None or table in facts.copying or facts.is_in_first_copy:
            return None
        hint = f"replicator sync {shlex.quote(table)}"
        return Reason(Kind.NEVER, "never_synced", "never synced", hint, table)
    if facts.now - success > facts.stale_after and table not in facts.streamed and not has_failed:
        message = f"no success for more than {in_words(facts.stale_after)}"
        return Reason(Kind.STALE, "stale", message, f"replicator history --table {shlex.quote(table)}", table, "stale")
    return None


def _judge_failure(table: str, batch: LastBatch) -> Reason:
    is_gone = batch.status == "skipped"
    what = "gone from the source" if is_gone else "the last run failed"
    hint = batch.hint or f"replicator history --table {shlex.quote(table)}"
    name = "table_gone" if is_gone else "run_failed"
    return Reason(Kind.RUN, name, f"{what}: {batch.message} ({batch.code})", hint, table, batch.code)


def _is_told(facts: PipelineFacts, table: str, batch: LastBatch) -> bool:
    """Say whether a failure is over, or is the very one for which the table is parked."""
    parked = facts.parked.get(table)
    if parked is not None and (batch.path == _LISTEN or batch.code == parked.id):
        return True
    return _is_outlived(facts, batch)


def _is_outlived(facts: PipelineFacts, batch: LastBatch) -> bool:
    """Say whether a stream that stopped has moved on since: idle tables get no newer row that says so."""
    listener = facts.listener
    if batch.path != _LISTEN or listener is None or listener.fresh_at is None:
        return False
    return listener.fresh_at > batch.completed_at


def _count(rows: int) -> str:
    return f"{rows:,} row" if rows == 1 else f"{rows:,} rows"


def in_words(span: timedelta) -> str:
    """Return a span as people say it, in hours, minutes or seconds."""
    seconds = span.total_seconds()
    if seconds >= 7200:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
