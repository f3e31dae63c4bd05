"""What counts as an incident, when somebody is told of it, and when it is over: pure.

An incident is named by its kind and table, so that one that lasts is told once. Most are told when first seen; what a
restart or a short wait brings along is told only once it has lasted for its kind's patience. Texts are our own words,
names and SQLSTATEs: what they come from holds no values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from replicator.monitor.health import Kind, PipelineFacts, judge

_DAY_S = 26 * 3600.0
PATIENCE_S: Mapping[Kind, float] = {
    Kind.NOT_READY: _DAY_S,
    Kind.EMPTY: _DAY_S,
    Kind.NEVER: _DAY_S,
    Kind.COPY: _DAY_S,
    Kind.DEAD_RUN: 60.0,
    Kind.LISTENER: 60.0,
    Kind.LAG: 60.0,
    Kind.FORECAST: 60.0,
    Kind.SOURCE: 20.0,
    Kind.TARGET: 20.0,
}
"""For how long an incident has to last until somebody is told; the others at once."""

_SAFETY_STOPS = ("source_empty", "too_many_deletes", "row_security", "source_changed", "safety_stop")
_DRIFTS = ("schema_drift", "dependent_object", "new_key", "generated_target")
_WHAT_LENGTH = 120

Key = tuple[str, str]
"""Kind and table; the table is empty where the incident is not of one."""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that is wrong. message: our own words, without a name that is in `table` already.

    hint: what to do; None of one that is remembered, for it was told when it began.
    """

    kind: Kind
    code: str
    message: str
    table: str = ""
    hint: str | None = None

    @property
    def key(self) -> Key:
        """Return what makes two incidents the same."""
        return self.kind, self.table

    @property
    def headline(self) -> str:
        """Return what is wrong, in one line."""
        what = _find_what(self.message.removesuffix(f" ({self.code})")) if self.kind in _TOLD_BY_ERROR else ""
        return self._with_table(f"{self._word}: {what}" if what else self._word)

    @property
    def sentence(self) -> str:
        """Return what is wrong, and why."""
        message = _strip(self.message)
        return self._with_table(message if message.startswith(self._word) else f"{self._word}: {message}")

    @property
    def _word(self) -> str:
        if self.kind is Kind.RUN:
            return _name_failure(self)
        return _SLOTS.get(self.code, "the slot is in danger") if self.kind is Kind.SLOT else _HEADLINES[self.kind]

    def _with_table(self, text: str) -> str:
        return f"{self.table}: {text}" if self.table else text


_HEADLINES = {
    Kind.NOT_READY: "the control schema is not ready",
    Kind.DEAD_RUN: "a run died",
    Kind.EMPTY: "nothing has been synced yet",
    Kind.NEVER: "never synced",
    Kind.STALE: "stale",
    Kind.UNSELECTED: "not in the configuration any more",
    Kind.PARKED: "parked",
    Kind.QUARANTINE: "rows in quarantine",
    Kind.DIFFERS: "rows differ from the source",
    Kind.LISTENER: "the listener does not run",
    Kind.COPY: "the listener's first copy is not complete",
    Kind.LAG: "the listener is behind",
    Kind.HISTORY: "the source lacks what the target has",
    Kind.FORECAST: "the slot will be lost",
    Kind.RETAINED: "the slot fills the source's disk",
    Kind.SOURCE: "the source does not answer",
    Kind.TARGET: "the target does not answer",
    Kind.COMMAND: "a command failed",
}
_SLOTS = {
    "missing": "the slot is gone from the source",
    "lost": "the slot is lost",
    "unreserved": "the slot is about to be lost",
}
_TOLD_BY_ERROR = frozenset({Kind.RUN, Kind.PARKED, Kind.COMMAND})
_PREFIXES = ("parked: ", "the last run failed: ", "gone from the source: ", "the listener stopped: ")


def _name_failure(incident: Incident) -> str:
    if not incident.table:
        return "the listener stopped"
    if incident.code in _SAFETY_STOPS:
        return "safety stop"
    if incident.code in _DRIFTS:
        return "schema change"
    return "gone from the source" if incident.code == "table_vanished" else "failed"


def _strip(message: str) -> str:
    """Return a reason's message without the words that the headline has."""
    for prefix in _PREFIXES:
        message = message.removeprefix(prefix)
    return message


def _find_what(message: str) -> str:
    """Return what happened, without why: the first part of an error's message."""
    what = _strip(message).partition(": ")[0]
    return what if len(what) <= _WHAT_LENGTH else f"{what[: _WHAT_LENGTH - 1]}…"


@dataclass(frozen=True, slots=True)
class Kept:
    """An incident as it is remembered. told_at: None while nobody was told."""

    incident: Incident
    seen_at: datetime
    told_at: datetime | None = None


def find_incidents(facts: PipelineFacts, kept: Iterable[Key] = ()) -> tuple[list[Incident], frozenset[Kind]]:
    """Return what is wrong, and the kinds of which nothing can be said now: those stay as they are.

    kept: incidents that are open.
    """
    health = judge(facts, [Kind(kind) for kind, _ in kept])
    found = [Incident(one.kind, one.code or one.id, one.message, one.table, one.hint) for one in health.reasons]
    has_stopped = any(batch.path == "listen" and not batch.is_good for batch in facts.batches.values())
    if has_stopped:
        # Why it stopped is told already.
        found = [one for one in found if one.kind is not Kind.LISTENER]
    return found, health.unknown


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
MAX_HINT_LENGTH = 1200


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
    lines: list[str] = []
    for one in incidents[:MAX_LINES]:
        lines.append(_clean(one.sentence if with_message else f"over: {one.headline}"))
        if with_message and one.hint:
            lines.append(_clean(f"hint: {one.hint}", MAX_HINT_LENGTH))
    if len(incidents) > MAX_LINES:
        lines.append(f"and {len(incidents) - MAX_LINES} more: replicator health")
    return "\n".join(lines)


def _clean(text: str, longest: int = MAX_LENGTH) -> str:
    """Return one short printable line: names come from a database that is not ours."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return printable if len(printable) <= longest else printable[: longest - 1] + "…"
