"""Why a row of the target is as it is: one word and one sentence from what was seen on both sides. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from replicator.errors import ReplicatorError
from replicator.reading import Reading, State
from replicator.strategy import FULL, WATERMARK

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of the source as the rules make it, by the target's names. The marks: see `row_query.find_source_row`."""

    key: tuple[str | None, ...]
    values: dict[str, str | None]
    satisfies: bool
    is_young: bool | None
    is_due: bool | None
    is_unaudited: bool | None


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A row of the target. deleted_at: where deletes are soft, and it is deleted."""

    values: dict[str, str | None]
    deleted_at: str | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """The listener. holds: it keeps this table; is_live: it runs."""

    holds: bool = False
    is_live: bool = False
    position: str | None = None
    fresh_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A column that differs, by its name in the target and in the source."""

    column: str
    source_column: str
    source: str | None
    target: str | None


@dataclass
class Sighting:
    """Everything that was seen of one key.

    rows_source, rows_target: how many the key names, at most two. target_key: what the rules make of the key, None
    where only its row would tell. lacking: columns that the target has not got yet. refusal: why the source cannot
    compute the row. reading: of the next sync; problem: what would stop it. refused: the row's change that the listener
    cannot get past. last_batch: the newest row of `etl_control` for the table.
    """

    table: str
    state: State
    deletes: str
    audit_every: timedelta
    rows_source: int = 0
    rows_target: int = 0
    source: SourceRow | None = None
    target: TargetRow | None = None
    target_exists: bool = True
    target_key: tuple[str | None, ...] | None = None
    differences: list[Difference] = field(default_factory=list)
    lacking: tuple[str, ...] = ()
    refusal: ReplicatorError | None = None
    reading: Reading | None = None
    problem: ReplicatorError | None = None
    quarantined: Row | None = None
    refused: Row | None = None
    stream: Stream = field(default_factory=Stream)
    last_batch: Row | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """verdict: one word, stable. sentence: for people. hint: what changes it, if anything is to be changed."""

    verdict: str
    sentence: str
    hint: str | None = None


SETTLED = frozenset({"equal", "absent", "deleted", "excluded", "kept"})
"""Verdicts under which both sides are as they should be."""


def find_reason(seen: Sighting) -> Reason:
    """Return why the target has of this key what it has."""
    settled = _find_refusal(seen) or _find_ambiguity(seen) or _find_agreement(seen)
    if settled is not None:
        return settled
    for look in (
        _find_quarantine,
        _find_refused_change,
        _find_missing_target,
        _find_stream_reason,
        _find_stop,
        _find_next,
    ):
        reason = look(seen)
        if reason is not None:
            return _mention_failure(reason, seen)
    return Reason("unknown", "unknown: what was seen does not explain it", _command("verify", seen, "--repair"))


def _find_refusal(seen: Sighting) -> Reason | None:
    if seen.refusal is None:
        return None
    return Reason("refused", f"the row is in the source, and {seen.refusal.message}", seen.refusal.hint)


def _find_ambiguity(seen: Sighting) -> Reason | None:
    for side, rows in (("source", seen.rows_source), ("target", seen.rows_target)):
        if rows > 1:
            return Reason("ambiguous", f"the key names more than one row of the {side}", "configure another key")
    return None


def _find_agreement(seen: Sighting) -> Reason | None:
    source, target = seen.source, seen.target
    is_there = target is not None and target.deleted_at is None
    if source is not None and source.satisfies:
        if not is_there or seen.differences or seen.lacking:
            return None
        waits = "; a change of it waits in quarantine" if seen.quarantined else ""
        return Reason("equal", f"equal in all {len(source.values)} copied columns{waits}")
    if is_there:
        return None
    if source is not None:
        return Reason("excluded", "the source row does not satisfy where, and is not in the target")
    if target is not None:
        return Reason("deleted", f"not in the source, and marked as deleted in the target ({target.deleted_at})")
    if seen.target_key is None:
        return Reason(
            "unknown", "the row is not in the source, and its key is masked with an expression over other columns"
        )
    return Reason("absent", "the key is neither in the source nor in the target")


def _find_quarantine(seen: Sighting) -> Reason | None:
    row = seen.quarantined
    if row is None:
        return None
    return Reason(
        "quarantined",
        f"in quarantine since {_moment(row['first_at'])}: the target refused it ({row['error_code']}: "
        f"{row['error_message']})",
        f"replicator quarantine retry {row['quarantine_id']}",
    )


def _find_refused_change(seen: Sighting) -> Reason | None:
    row = seen.refused
    if row is None:
        return None
    return Reason(
        "stopped",
        f"the listener stopped at a change of it at {_moment(row['last_at'])}: the target refused it "
        f"({row['error_code']}: {row['error_message']})",
        "fix what refuses it, or the row in the source; then replicator listen",
    )


def _find_missing_target(seen: Sighting) -> Reason | None:
    if seen.target_exists and seen.state.snapshot_at is not None:
        return None
    what = "the table was never synced" if seen.state.snapshot_at is None else "the target table is not there"
    return Reason("not_synced", what, _command("sync", seen))


def _find_stream_reason(seen: Sighting) -> Reason | None:
    stream, source = seen.stream, seen.source
    if not stream.holds:
        return None
    if not stream.is_live:
        return Reason(
            "pending",
            f"the listener keeps this table, and does not run: the target is as of {_moment(stream.fresh_at)}",
            "replicator listen",
        )
    until = f"the listener has brought everything up to {_moment(stream.fresh_at)}"
    if source is None:
        return Reason(
            "unknown",
            f"the row is not in the source, and {until}: its delete is on the way, or somebody else added it here",
            _command("verify", seen, "--repair"),
        )
    if source.is_young is False and source.satisfies:
        return Reason(
            "drifted",
            f"{until}, and this version of the row is older: the target's row was changed by somebody else",
            _command("verify", seen, "--repair"),
        )
    return Reason("pending", f"{until}: the change is on its way, ask again in a moment")


def _find_stop(seen: Sighting) -> Reason | None:
    if seen.problem is None:
        return None
    return Reason("stopped", f"the next sync would stop: {seen.problem.message}", seen.problem.hint)


def _find_next(seen: Sighting) -> Reason | None:
    """Return what the next sync does about it."""
    source, target = seen.source, seen.target
    if source is None or not source.satisfies:
        return _find_removal(seen)
    if seen.reading is None:
        return None
    last = f"the last run at {_moment(seen.state.snapshot_at)}"
    sync = _command("sync", seen)
    if seen.lacking:
        told = f"the target lacks {', '.join(seen.lacking)}: the next sync alters it, and brings the row"
        return Reason("pending", told, sync)
    if seen.reading.load_type == FULL:
        return Reason("pending", f"the next sync reads the whole table ({seen.reading.reason}), and brings it", sync)
    if target is None or target.deleted_at is not None:
        why = f"inserted at the source after {last}"
        if source.is_young is False:
            why = "the source had the row at the last run already: it was deleted from the target by somebody else"
        elif source.is_young is None:
            why = "the target does not have the row"
        return Reason("pending", f"{why}; every sync compares the keys: the next one brings it", sync)
    # With an audit the watermark's reading is by xid too, from the last audit on.
    if source.is_due or (source.is_young and seen.reading.strategy != WATERMARK):
        return Reason("pending", f"changed at the source after {last}: the next sync brings it", sync)
    return _find_passed_over(seen)


def _find_removal(seen: Sighting) -> Reason:
    gone = seen.source is None
    why = "the row is not in the source" if gone else "the source row does not satisfy where"
    if seen.deletes == "ignore":
        return Reason("kept", f'{why}, and deletes = "ignore" keeps it in the target')
    since = f"since the last run at {_moment(seen.state.snapshot_at)}"
    how = f"it was deleted there {since}, or added to the target by somebody else" if gone else f"it changed {since}"
    act = "marks it as deleted" if seen.deletes == "soft" else "deletes it from the target"
    return Reason("pending", f"{why}: {how}; the next sync {act}", _command("sync", seen))


def _find_passed_over(seen: Sighting) -> Reason:
    """Return why an incremental read leaves a row that differs."""
    source, reading = seen.source, seen.reading
    assert source is not None
    assert reading is not None
    if reading.strategy != WATERMARK and reading.audit:
        sentence = "no row version tells of the difference: the audit of the next sync finds it, and brings it"
        return Reason("pending", sentence, _command("sync", seen))
    if reading.strategy == WATERMARK and source.is_unaudited is not False:
        if reading.audit:
            return Reason(
                "pending",
                "its watermark is older than the last run; the audit of the next sync finds it, and brings it",
                _command("sync", seen),
            )
        audited = seen.state.audited_at
        due = None if audited is None else audited + seen.audit_every
        return Reason(
            "unmoved",
            f"it changed, and its watermark did not move: sync passes it over until the audit of {_moment(due)}",
            _command("sync", seen, "--full"),
        )
    return Reason(
        "drifted",
        "the source row is the one of the last run: the target's row was changed by somebody else, and no sync "
        "looks at it again before the source row changes",
        _command("verify", seen, "--repair"),
    )


def _mention_failure(reason: Reason, seen: Sighting) -> Reason:
    batch = seen.last_batch
    if batch is None or batch["status"] not in ("failed", "running"):
        return reason
    if batch["status"] == "running":
        told = "a run is at work on the table, or was killed"
    else:
        told = f"the last run of the table failed ({batch['error_code']}: {batch['error_message']})"
    return Reason(reason.verdict, f"{reason.sentence}; {told}", reason.hint)


def _command(name: str, seen: Sighting, *options: str) -> str:
    return shlex.join(["replicator", name, seen.table, *options])


def _moment(moment: datetime | None) -> str:
    return "an unknown time" if moment is None else moment.isoformat(" ", "seconds")
