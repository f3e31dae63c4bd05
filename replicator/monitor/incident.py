"""What counts as an incident, when somebody is told of it, and when it is over: pure.

An incident is named by its kind and table, so that one that lasts is told once. Most are told when first seen; what a
restart or a short wait brings along is told only once it has lasted for its kind's patience. Texts are our own words,
names and SQLSTATEs: what they come from holds no values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum


class Kind(StrEnum):
    """What an incident is of. The text of `etl_control.error_code` tells failures of a run apart."""

    RUN = "run"
    DEAD_RUN = "dead_run"
    STALE = "stale"
    QUARANTINE = "quarantine"
    DIFFERS = "differs"
    LISTENER = "listener"
    LAG = "lag"
    SLOT = "slot"
    FORECAST = "forecast"
    RETAINED = "retained"
    SOURCE = "source"
    TARGET = "target"
    COMMAND = "command"


PATIENCE_S: Mapping[Kind, float] = {
    Kind.DEAD_RUN: 60.0,
    Kind.LISTENER: 60.0,
    Kind.LAG: 60.0,
    Kind.FORECAST: 60.0,
    Kind.SOURCE: 20.0,
    Kind.TARGET: 20.0,
}
"""For how long an incident has to last until somebody is told; the others at once."""

LAG = timedelta(minutes=5)
LAG_OVER = timedelta(minutes=1)
FORECAST = timedelta(hours=6)
FORECAST_OVER = timedelta(hours=12)
RETAINED_BYTES = 10 * 1024**3
RETAINED_OVER_BYTES = 5 * 1024**3
_HEALTHY_SLOT = ("reserved", "extended")

_SAFETY_STOPS = ("source_empty", "too_many_deletes", "row_security", "source_changed", "safety_stop")
_DRIFTS = ("schema_drift", "dependent_object", "new_key", "generated_target")

Key = tuple[str, str]
"""Kind and table; the table is empty where the incident is not of one."""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that is wrong. message: our own words, without a name that is in `table` already."""

    kind: Kind
    code: str
    message: str
    table: str = ""

    @property
    def key(self) -> Key:
        """Return what makes two incidents the same."""
        return self.kind, self.table

    @property
    def headline(self) -> str:
        """Return a few words of what happened."""
        word = _headline_of_run(self.code) if self.kind is Kind.RUN else _HEADLINES[self.kind]
        return f"{self.table}: {word}" if self.table else word


_HEADLINES = {
    Kind.DEAD_RUN: "a run died",
    Kind.STALE: "stale",
    Kind.QUARANTINE: "rows in quarantine",
    Kind.DIFFERS: "rows differ from the source",
    Kind.LISTENER: "the listener does not run",
    Kind.LAG: "the listener is behind",
    Kind.SLOT: "the slot is in danger",
    Kind.FORECAST: "the slot will be lost",
    Kind.RETAINED: "the slot fills the source's disk",
    Kind.SOURCE: "the source does not answer",
    Kind.TARGET: "the target does not answer",
    Kind.COMMAND: "a command failed",
}


def _headline_of_run(code: str) -> str:
    if code in _SAFETY_STOPS:
        return "safety stop"
    if code in _DRIFTS:
        return "schema change"
    return "gone from the source" if code == "table_vanished" else "failed"


@dataclass(frozen=True, slots=True)
class Kept:
    """An incident as it is remembered. told_at: None while nobody was told."""

    incident: Incident
    seen_at: datetime
    told_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a table's newest finished batch ended."""

    path: str
    status: str
    code: str
    message: str
    completed_at: datetime


@dataclass(frozen=True, slots=True)
class ListenerSight:
    """The listener as the target shows it. is_copied: its first copy is complete."""

    is_running: bool
    is_copied: bool
    fresh_at: datetime | None


@dataclass(frozen=True, slots=True)
class SlotSight:
    """The slot as the source shows it. wal_status: `missing` without a slot. invalid_in_s: None if unknown or never."""

    name: str
    wal_status: str
    retained_bytes: int | None = None
    safe_wal_bytes: int | None = None
    invalid_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """All that incidents are found in, at one moment of the target's clock.

    verdicts, successes: by table, of the tables that the pipeline has, and `-` for the listener itself. quarantined:
    rows and SQLSTATE by table. mismatched: rows that a comparison found and left, by table. source_problem: why the
    source did not answer, if it was asked and did not.
    """

    now: datetime
    stale_after: timedelta
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    successes: Mapping[str, datetime] = field(default_factory=dict)
    streamed: frozenset[str] = frozenset()
    quarantined: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    mismatched: Mapping[str, int] = field(default_factory=dict)
    has_dead_run: bool = False
    listener: ListenerSight | None = None
    slot: SlotSight | None = None
    source_problem: str | None = None


def find_incidents(sight: Sight, kept: Iterable[Key] = ()) -> tuple[list[Incident], frozenset[Kind]]:
    """Return what is wrong, and the kinds of which nothing can be said now: those stay as they are.

    kept: incidents that are open. Of some, the limit at which they end is another than that at which they begin.
    """
    open_kinds = {kind for kind, _ in kept}
    found = [*_find_failures(sight), *_find_stale(sight)]
    found += [
        Incident(Kind.QUARANTINE, code, f"{rows} rows wait, refused with SQLSTATE {code}", table)
        for table, (rows, code) in sorted(sight.quarantined.items())
    ]
    found += [
        Incident(Kind.DIFFERS, "mismatch", f"{rows} rows at the last comparison", table)
        for table, rows in sorted(sight.mismatched.items())
        if rows
    ]
    if sight.has_dead_run:
        found.append(Incident(Kind.DEAD_RUN, "interrupted", "a run ended without a word: killed, or out of memory"))
    unknown: set[Kind] = set()
    if sight.source_problem is not None:
        found.append(Incident(Kind.SOURCE, "no_connection", sight.source_problem))
        unknown |= {Kind.LISTENER, Kind.LAG, Kind.SLOT, Kind.FORECAST, Kind.RETAINED}
    elif sight.listener is not None:
        found += _find_listener(sight, sight.listener, open_kinds)
    if sight.slot is not None:
        found += _find_slot(sight.slot, open_kinds)
    return found, frozenset(unknown)


def _find_failures(sight: Sight) -> Iterable[Incident]:
    for table, verdict in sorted(sight.verdicts.items()):
        if verdict.status == "success" or _is_outlived(sight, verdict):
            continue
        name = "" if table == "-" else table
        yield Incident(Kind.RUN, verdict.code, f"{verdict.message} ({verdict.code})", name)


def _is_outlived(sight: Sight, verdict: Verdict) -> bool:
    """Say whether a stream that stopped has gone on since: idle tables get no newer row that says so."""
    listener = sight.listener
    if verdict.path != "listen" or listener is None or listener.fresh_at is None:
        return False
    return listener.fresh_at > verdict.completed_at


def _find_stale(sight: Sight) -> Iterable[Incident]:
    """Find tables without a success for too long; a failure that is told already is no second incident."""
    for table, at in sorted(sight.successes.items()):
        verdict = sight.verdicts.get(table)
        has_failed = verdict is not None and verdict.status != "success"
        if sight.now - at > sight.stale_after and table not in sight.streamed and not has_failed:
            yield Incident(Kind.STALE, "stale", f"no success for more than {in_words(sight.stale_after)}", table)


def _find_listener(sight: Sight, listener: ListenerSight, open_kinds: set[str]) -> Iterable[Incident]:
    if not listener.is_running:
        if not any(v.path == "listen" and v.status == "failed" for v in sight.verdicts.values()):
            yield Incident(Kind.LISTENER, "listener_down", "no process holds its lock; its slot keeps the source's WAL")
    elif listener.is_copied and listener.fresh_at is not None:
        limit = LAG_OVER if Kind.LAG in open_kinds else LAG
        if sight.now - listener.fresh_at > limit:
            yield Incident(Kind.LAG, "lag", f"it was more than {in_words(LAG)} behind the source")


def _find_slot(slot: SlotSight, open_kinds: set[str]) -> Iterable[Incident]:
    if slot.wal_status not in _HEALTHY_SLOT:
        yield Incident(Kind.SLOT, slot.wal_status, f"slot {slot.name}: {slot.wal_status}")
        return
    forecast = FORECAST_OVER if Kind.FORECAST in open_kinds else FORECAST
    if slot.invalid_in_s is not None and slot.invalid_in_s < forecast.total_seconds():
        left = in_words(timedelta(seconds=slot.invalid_in_s))
        message = f"slot {slot.name}: invalid in about {left} at the rate at which WAL is written"
        yield Incident(Kind.FORECAST, "forecast", message)
    limit = RETAINED_OVER_BYTES if Kind.RETAINED in open_kinds else RETAINED_BYTES
    if slot.retained_bytes is not None and slot.retained_bytes > limit and slot.safe_wal_bytes is None:
        size = f"{slot.retained_bytes / 1024**3:.0f} GiB"
        message = f"slot {slot.name} holds {size} of WAL back, and max_slot_wal_keep_size sets no limit"
        yield Incident(Kind.RETAINED, "retained", message)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do.

    fresh: seen for the first time; tell: of these somebody is to be told now; ended: tell that they are over; dropped:
    over before anybody was told.
    """

    fresh: Sequence[Kept] = ()
    tell: Sequence[Kept] = ()
    ended: Sequence[Kept] = ()
    dropped: Sequence[Kept] = ()


def decide(
    found: Iterable[Incident],
    kept: Mapping[Key, Kept],
    now: datetime,
    *,
    unknown: frozenset[Kind] = frozenset(),
    is_final: bool = False,
) -> Decision:
    """Compare what is wrong now with what is remembered.

    unknown: kinds of which nothing can be said now. is_final: nobody looks again soon, so a server that does not answer
    is told at once.
    """
    by_key = {incident.key: incident for incident in found}
    fresh = [Kept(incident, now) for key, incident in by_key.items() if key not in kept]
    untold = fresh + [
        replace(old, incident=by_key[key]) for key, old in kept.items() if key in by_key and old.told_at is None
    ]
    over = [old for key, old in kept.items() if key not in by_key and old.incident.kind not in unknown]
    return Decision(
        fresh=fresh,
        tell=[one for one in untold if _is_due(one, now, is_final=is_final)],
        ended=[one for one in over if one.told_at is not None],
        dropped=[one for one in over if one.told_at is None],
    )


def _is_due(one: Kept, now: datetime, *, is_final: bool) -> bool:
    kind = one.incident.kind
    if is_final and kind in (Kind.TARGET, Kind.SOURCE):
        return True
    return (now - one.seen_at).total_seconds() >= PATIENCE_S.get(kind, 0.0)


MAX_LINES = 20
MAX_LENGTH = 400


@dataclass(frozen=True, slots=True)
class Notice:
    """What is sent: a line, and some lines. is_good: something is over."""

    title: str
    body: str
    is_good: bool = False


def describe_new(pipeline: str, incidents: Sequence[Incident]) -> Notice:
    """Return the notice of incidents that began; all that began together are one notice."""
    return Notice(_title(pipeline, incidents, ""), _lines(incidents, with_message=True))


def describe_ended(pipeline: str, incidents: Sequence[Incident]) -> Notice:
    """Return the notice of incidents that are over."""
    return Notice(_title(pipeline, incidents, "over: "), _lines(incidents, with_message=False), is_good=True)


def _title(pipeline: str, incidents: Sequence[Incident], word: str) -> str:
    rest = f", and {len(incidents) - 1} more" if len(incidents) > 1 else ""
    return _clean(f"replicator {pipeline}: {word}{incidents[0].headline}{rest}")


def _lines(incidents: Sequence[Incident], *, with_message: bool) -> str:
    lines = [
        _clean(f"{one.headline}: {one.message}" if with_message else f"over: {one.headline}")
        for one in incidents[:MAX_LINES]
    ]
    if len(incidents) > MAX_LINES:
        lines.append(f"and {len(incidents) - MAX_LINES} more: replicator health")
    return "\n".join(lines)


def _clean(text: str) -> str:
    """Return one short printable line: names come from a database that is not ours."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return printable if len(printable) <= MAX_LENGTH else printable[: MAX_LENGTH - 1] + "…"


def in_words(span: timedelta) -> str:
    """Return a span as people say it, in hours, minutes or seconds."""
    seconds = span.total_seconds()
    if seconds >= 7200:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
