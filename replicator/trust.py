"""Whether a watermark can be trusted: how many row versions written since the last sync bear an older stamp. Pure.

The proof has two steps. Three observations of the source's open transactions, each later than the one before: j, k and
o, the last of them no later than the sync's snapshot. No transaction is open both at k and at o, and none both at j
and at k. P is the oldest transaction that the snapshot found running, or the next one. What was open at k had ended by
o, so P began after k, and every xid from P on was given out after k. Whoever took one was open at k, and then began
after j, or began after k. So every row version from P on was made by a transaction that began after j, and an honest
stamp is no older than j's clock less the slack. One step would not do: between P's beginning and the snapshot others
may have committed that had begun, and stamped their rows, long before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from replicator.position import is_within_horizon
from replicator.reading import INCREMENTAL, Observation, Reading, SnapshotFacts, State
from replicator.rules import Mapping
from replicator.strategy import WATERMARK, reads_by_xmin, watermark_type

WATERMARK_TYPES = frozenset({"timestamptz", "timestamp", "date"})


@dataclass(frozen=True, slots=True)
class Trust:
    """What was seen. column: the watermark.

    row_versions: written since `since`, the source's clock at the last sync; unmoved: how many of them have a stamp
    from before all of their transactions; unstamped: how many have none. unknown: why nothing can be told, in which
    case the numbers are None.
    """

    column: str
    since: datetime | None = None
    row_versions: int | None = None
    unmoved: int | None = None
    unstamped: int | None = None
    unknown: str | None = None

    @property
    def sentence(self) -> str:
        """Return what was seen, for people."""
        if self.unknown is not None or self.since is None:
            return f"whether changes move {self.column} is not known: {self.unknown}"
        since = self.since.isoformat(" ", "seconds")
        if not self.row_versions:
            return f"no row was written since the sync of {since}: nothing tells whether changes move {self.column}"
        told = f"{self.unmoved} of {self.row_versions} row versions written since the sync of {since} did not move"
        if not self.unmoved:
            told = f"all {self.row_versions} row versions written since the sync of {since} moved"
        left = f"; {self.unstamped} have none, and are read at every sync" if self.unstamped else ""
        return f"{told} {self.column}{left}"


def choose_reference(
    mapping: Mapping,
    state: State,
    facts: SnapshotFacts,
    fingerprint: str,
    observations: Sequence[Observation],
    slack: timedelta,
) -> Reading | str:
    """Return the reading that an honest watermark would make (its xid and its mark), or why there is none.

    observations: newest first, those of earlier runs too.
    """
    relation = mapping.relation
    if watermark_type(mapping) not in WATERMARK_TYPES:
        return "it is no timestamp or date"
    if not reads_by_xmin(relation):
        return "its rows have no versions of their own to look at; what it misses is found by the audit of each sync"
    if facts.is_standby:
        return "on a standby open transactions cannot be observed"
    if state.snapshot_at is None or state.xid_position is None or state.lsn is None:
        return "there is no sync to count from: run one, and look again once rows have changed"
    moved = _find_break(state, facts, fingerprint)
    if moved is not None:
        return f"{moved} since the last sync: run one, and look again once rows have changed"
    before = [one for one in observations if one.observed_at <= state.snapshot_at]
    if not before:
        return "nothing is kept of who was at work at the last sync: run one, and look again once rows have changed"
    proved = prove_start(before)
    if proved is None:
        return "a transaction was open for as long as the last syncs can tell: run one more, and look again"
    return Reading(INCREMENTAL, WATERMARK, state.xid_position, proved - slack, False, None, "")


def _find_break(state: State, facts: SnapshotFacts, fingerprint: str) -> str | None:
    assert state.xid_position is not None
    assert state.lsn is not None
    if state.system_identifier != facts.system_identifier or state.timeline != facts.timeline or facts.lsn < state.lsn:
        return "the source became another server, or was restored"
    if state.fingerprint != fingerprint:
        return "the table's definition, its storage or its rules changed"
    if not is_within_horizon(state.xid_position, facts.next_xid):
        return "2^31 transactions have passed"
    assert state.snapshot_at is not None
    return "the source's clock stepped back" if facts.clock < state.snapshot_at else None


def prove_start(observations: Sequence[Observation]) -> datetime | None:
    """Return the clock of j, for the latest k that there is for o."""
    if not observations or observations[0].prepared:
        return None
    begun = _find_apart(observations[0], observations)
    before = None if begun is None else _find_apart(begun, observations)
    return None if before is None else before.observed_at


def _find_apart(later: Observation, observations: Sequence[Observation]) -> Observation | None:
    """Return the newest observation, no later than this one, that shares no transaction with it."""
    for one in observations:
        if one.observed_at <= later.observed_at and not one.transactions & later.transactions:
            return one
    return None
