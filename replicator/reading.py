"""What the next read of a table must cover, and the positions it will leave. Pure.

The rules were proved in the open: a row version visible now and not at the previous read was made by a transaction
that the previous snapshot did not see, whose xid is therefore at or above that snapshot's xmin. Whatever else can
change a row is in the fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from replicator.continuity import Standing
from replicator.digest import SLOTS
from replicator.errors import SafetyStop
from replicator.position import Lsn, is_within_horizon
from replicator.strategy import BOUNDED, FULL, WATERMARK, XMIN, Choice

INCREMENTAL = "incremental"


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """One snapshot of the source. xmin and next_xid are 64 bits wide; clock is the source's own.

    snapshot: which transactions it sees, as PostgreSQL writes it. lsn: all that it sees was committed before.
    marker: transactions around the snapshot, by which a later read knows the history again; empty without one.
    """

    exported: str
    xmin: int
    next_xid: int
    clock: datetime
    system_identifier: str
    timeline: int
    lsn: Lsn
    is_standby: bool
    snapshot: str = ""
    marker: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """Which transactions were open: the clock was read first, then the transactions, then the prepared ones."""

    observed_at: datetime
    transactions: frozenset[str]
    prepared: int


@dataclass(frozen=True, slots=True)
class State:
    """Where a table stood after its last successful batch; every field None before the first.

    proved_at: when each slot of keys was last proved equal by hashes, by slot; shorter where that was never.
    """

    strategy: str | None = None
    fingerprint: str | None = None
    xid_position: int | None = None
    audit_xid_position: int | None = None
    watermark_mark: datetime | None = None
    system_identifier: str | None = None
    timeline: int | None = None
    lsn: Lsn | None = None
    snapshot_at: datetime | None = None
    audited_at: datetime | None = None
    verified_through: datetime | None = None
    marker: str = ""
    proved_at: tuple[datetime | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read now.

    load_type: full or incremental. since_xid: rows whose xmin is at or above it; since_mark: rows whose watermark is at
    or above it, or NULL. audit: what the watermark may have missed is looked for as well. next_mark: the watermark that
    the next read starts from, None = it reads everything. reason: why it is full, for people. slots: the slots of keys
    whose rows are compared by hashes after the load.
    """

    load_type: str
    strategy: str
    since_xid: int | None
    since_mark: datetime | None
    audit: bool
    next_mark: datetime | None
    reason: str
    slots: tuple[int, ...] = ()

    @property
    def audits_by_hashes(self) -> bool:
        """Say whether the audit compares all rows by hashes, which also tells what is gone; else it goes by age."""
        return self.audit and (self.since_xid is None or self.strategy == XMIN)


def decide_reading(
    choice: Choice,
    state: State,
    facts: SnapshotFacts,
    fingerprint: str,
    *,
    full: bool,
    slack: timedelta,
    observations: Sequence[Observation],
    audit_due: bool,
    audit_by_xmin: bool,
    verify_share: float = 0.0,
    is_same_history: bool = True,
    table: str,
) -> Reading:
    """Decide what to read in the snapshot.

    audit_by_xmin: the relation is audited by the age of its rows; others, which have none, by hashes.
    verify_share: the part of the slots to be proved as well, those that were not for longest.
    is_same_history: False where the state's marker does not hold.
    observations: those made before this snapshot, newest first, the first one just before it. Raises SafetyStop when
    the source is another database cluster than last time.
    """
    stays_on_cluster = state.system_identifier in (None, facts.system_identifier)
    if not stays_on_cluster and not full:
        raise SafetyStop(
            f"{table}: the source is another database cluster than at the last sync",
            why="its system identifier changed: a wrong address would replace all rows",
            hint=f"if it is the right one: replicator sync {table} --full",
            id="source_changed",
            table=table,
        )
    reason = _full_reason(choice, state, facts, fingerprint, full=full, is_same_history=is_same_history)
    audit_xid = state.audit_xid_position if audit_due and audit_by_xmin else None
    if not reason and audit_xid is not None and not is_within_horizon(audit_xid, facts.next_xid):
        reason = "2^31 transactions have passed since the last audit"
    next_mark = None
    if choice.strategy == WATERMARK:
        floor = None if reason else state.watermark_mark
        next_mark = advance_mark(floor, observations, slack)
    if reason:
        return Reading(FULL, choice.strategy, None, None, False, next_mark, reason)
    slots = choose_slots(state.proved_at, verify_share)
    has_audit = choice.guarantee == BOUNDED and audit_due
    if has_audit and (audit_xid is None or choice.strategy == XMIN):
        slots = tuple(range(SLOTS))
    if choice.strategy == XMIN:
        return Reading(INCREMENTAL, XMIN, state.xid_position, None, has_audit, None, "", slots)
    return Reading(
        INCREMENTAL,
        WATERMARK,
        audit_xid,
        state.watermark_mark,
        audit_due,
        next_mark,
        "",
        slots,
    )


def distrust_stream(reading: Reading, standing: Standing) -> Reading:
    """Return the reading of a table whose rows a stream brought: where the source may lack them, all are looked at."""
    if reading.load_type == FULL or standing is Standing.PROVEN:
        return reading
    if standing is Standing.UNPROVEN:
        return replace(reading, slots=tuple(range(SLOTS)))
    reason = "the source stands before what its stream brought: it was put back from an older copy"
    return replace(reading, load_type=FULL, since_xid=None, since_mark=None, audit=False, slots=(), reason=reason)


def choose_slots(proved_at: Sequence[datetime | None], share: float) -> tuple[int, ...]:
    """Return the slots of keys to prove now: this part of all, those first that were never proved or not for longest.

    So that each is proved once in 1 / share nights, rounded up.
    """
    count = min(SLOTS, math.ceil(share * SLOTS - 1e-9))
    known = [*proved_at, *[None] * SLOTS][:SLOTS]
    order = sorted(range(SLOTS), key=lambda slot: (known[slot] is not None, known[slot], slot))
    return tuple(sorted(order[:count]))


def _full_reason(
    choice: Choice, state: State, facts: SnapshotFacts, fingerprint: str, *, full: bool, is_same_history: bool
) -> str:
    if full:
        return "asked for"
    if state.snapshot_at is None or state.lsn is None or state.xid_position is None:
        return "first run"
    if choice.strategy == FULL:
        return choice.reason
    if state.strategy != choice.strategy:
        return f"the strategy changed from {state.strategy} to {choice.strategy}"
    if state.fingerprint != fingerprint:
        return "the definition or the rules changed"
    if state.timeline != facts.timeline:
        return "the source's timeline changed: a failover or a restore"
    if facts.lsn < state.lsn:
        return "the source stands before the last read: a restore, or a standby that lags"
    if not is_same_history:
        return "the source is in another history than at the last read: it was put back from an older copy"
    if choice.strategy == XMIN and not is_within_horizon(state.xid_position, facts.next_xid):
        return "2^31 transactions have passed since the last read"
    if choice.strategy == WATERMARK:
        if facts.clock < state.snapshot_at:
            return "the source's clock stepped back"
        if state.watermark_mark is None:
            return "open transactions left no safe watermark at the last read"
    return ""


def advance_mark(mark: datetime | None, observations: Sequence[Observation], slack: timedelta) -> datetime | None:
    """Return the watermark from which the next read starts.

    The latest observation that shares no transaction with the newest one proves that whatever this snapshot does not
    see began after it, so its stamps are not below its clock less the slack. While a prepared transaction exists
    nothing is proved, for it belongs to no session. Observations dated after the newest come from a clock that was
    set back, and are passed over.
    """
    newest = observations[0]
    if newest.prepared:
        return mark
    for observation in observations:
        if observation.observed_at > newest.observed_at:
            continue
        if not observation.transactions & newest.transactions:
            proved = observation.observed_at - slack
            return proved if mark is None else max(mark, proved)
    return mark


def is_audit_due(state: State, now: datetime, audit_every: timedelta) -> bool:
    """Say whether the audit is due; a nightly run that starts a little early still counts as a week later."""
    if state.audited_at is None:
        return True
    grace = min(timedelta(hours=1), audit_every / 10)
    return now - state.audited_at >= audit_every - grace
