"""Whether the source is still in the history that the target has, and where to go on if it is. Pure.

A source that is put back from a copy of its disk, or replaced by a standby that lacked the last commits, gives out the
same WAL positions and transaction ids a second time. So a position alone proves nothing. What does:

    end of the WAL      below a recorded position: the source lies behind it
    marker              transactions around a read and how each ended; they end another way in another history
    slot                it confirmed the recorded position itself: a copy of an earlier moment had confirmed less
    last commit         a slot that lies before it sends it again, with its xid, place and time
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from replicator.errors import OperatorError, PassingError, ReplicatorError, SafetyStop
from replicator.position import Lsn

REPAIR = "replicator listen --repair-gap"
_IS_COMMITTED = {"+": True, "-": False}


@dataclass(frozen=True, slots=True)
class Marker:
    """Transactions of the source, 64-bit xids, that had ended, and which of them had committed."""

    is_committed: Mapping[int, bool]

    @classmethod
    def parse(cls, text: str) -> Marker:
        """Read what `str` writes. Raises ValueError or KeyError on anything else."""
        return cls({int(word[:-1]): _IS_COMMITTED[word[-1]] for word in text.split()})

    def __str__(self) -> str:
        return " ".join(f"{xid}{'+' if done else '-'}" for xid, done in sorted(self.is_committed.items()))

    def covers(self, next_xid: int) -> bool:
        """Say whether no transaction id has been given out since the marker was made."""
        return bool(self.is_committed) and max(self.is_committed) + 1 == next_xid

    def holds(self, statuses: Mapping[int, str | None]) -> bool:
        """Say whether the source still has these transactions, each as it ended.

        statuses: by xid, as pg_xact_status has them; None for one that is too old to be known, which proves nothing;
        without an entry for one that no transaction has yet.
        """
        for xid, done in self.is_committed.items():
            if xid not in statuses:
                return False
            if statuses[xid] is not None and statuses[xid] != ("committed" if done else "aborted"):
                return False
        return True


def list_xids(markers: Iterable[str]) -> list[int]:
    """Return the transactions of the markers, in order."""
    return sorted({xid for text in markers for xid in Marker.parse(text).is_committed})


@dataclass(frozen=True, slots=True)
class LastCommit:
    """The last transaction of the stream that is in the target. time_us: microseconds since 2000-01-01 UTC."""

    lsn: Lsn
    end: Lsn
    xid: int
    time_us: int

    def is_same(self, lsn: Lsn, xid: int, time_us: int) -> bool:
        """Say whether a transaction that the stream brings is this one."""
        return (self.lsn, self.xid, self.time_us) == (lsn, xid, time_us)


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """What the target knows of its stream. consistent_point: where its copy ends and the stream began."""

    system_identifier: str | None
    timeline: int | None
    consistent_point: Lsn | None
    position: Lsn
    last_commit: LastCommit | None

    @property
    def proven_end(self) -> Lsn:
        """Return the end of what the stream brought; up to `position` there was nothing more to bring."""
        ends = [self.consistent_point, None if self.last_commit is None else self.last_commit.end]
        return max((end for end in ends if end is not None), default=self.position)


@dataclass(frozen=True, slots=True)
class SourcePresent:
    """Where a source stands now. slot: its name; confirmed: by it, None without a slot that can go on.

    is_lost: the slot is there, and its WAL is not.
    """

    system_identifier: str
    timeline: int
    end_of_wal: Lsn
    is_standby: bool
    slot: str
    has_slot: bool
    is_lost: bool
    confirmed: Lsn | None


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a stream goes on. position: all before it is in the target.

    start_at: where the slot starts to send. awaited: the transaction that it must send before anything else counts;
    None where the slot itself proves the history. has_new_timeline: the source was promoted since.
    """

    position: Lsn
    start_at: Lsn
    awaited: LastCommit | None = None
    has_new_timeline: bool = False


def plan_resume(record: StreamRecord, now: SourcePresent) -> Resume | ReplicatorError:
    """Return where the stream goes on, or what keeps it from that, with the command that repairs it."""
    if record.system_identifier != now.system_identifier:
        return _other_cluster()
    behind = find_behind(record.position, now)
    if behind is not None:
        return behind
    if not now.has_slot:
        return _gap("slot_missing", f"the replication slot {now.slot} is gone", "somebody dropped it")
    if now.is_lost or now.confirmed is None:
        return _gap("slot_lost", f"the replication slot {now.slot} was invalidated", "the source kept too little WAL")
    if now.confirmed > record.position:
        why = f"it is at {now.confirmed}, the target at {record.position}: it was advanced, or the target restored"
        return _gap("slot_ahead", f"the replication slot {now.slot} is ahead of the target", why)
    return _plan_from_slot(record, now, now.confirmed)


def _plan_from_slot(record: StreamRecord, now: SourcePresent, confirmed: Lsn) -> Resume | OperatorError:
    """Return how far back the stream begins: where the slot and the target both are for certain in one history.

    A slot that confirmed the position did so in the history that it stands in. Below that, what the stream brought
    last has to come again; from its end on nothing is skipped, so whatever another history has there arrives.
    """
    is_new = record.timeline != now.timeline
    if confirmed == record.position:
        return Resume(record.position, record.position, has_new_timeline=is_new)
    if record.consistent_point is not None and confirmed < record.consistent_point:
        return history_changed(f"the slot {now.slot} is older than the copy that it was made for", is_promoted=is_new)
    end = record.proven_end
    if confirmed >= end:
        return Resume(confirmed, confirmed, has_new_timeline=is_new)
    return Resume(end, confirmed, record.last_commit, has_new_timeline=is_new)


class Standing(Enum):
    """Whether a source without a listener has what its stream brought."""

    PROVEN = "proven"
    UNPROVEN = "unproven"
    BEHIND = "behind"


def judge_standing(position: Lsn, end_of_wal: Lsn, confirmed: Lsn | None) -> Standing:
    """Judge what a stream brought up to a position. confirmed: by its slot, None without one."""
    if end_of_wal < position:
        return Standing.BEHIND
    return Standing.PROVEN if confirmed is not None and confirmed >= position else Standing.UNPROVEN


def find_behind(position: Lsn, now: SourcePresent) -> ReplicatorError | None:
    """Return the error of a source whose WAL ends before a recorded position; passing on a standby, which may lag."""
    if now.end_of_wal >= position:
        return None
    what = "the source lies behind what the target has of it"
    facts = f"its WAL ends at {now.end_of_wal}, the target is at {position}"
    if now.is_standby:
        return PassingError(
            what,
            why=f"{facts}: the standby lags, or its primary was put back",
            hint=f"it is tried again by itself; if the primary was put back: {REPAIR}",
            id="source_behind",
        )
    why = f"{facts}: it was put back from an older copy, or another server answers"
    return OperatorError(what, why=why, hint=REPAIR, id="source_behind")


def find_reads_ahead(reads: Iterable[Lsn], now: SourcePresent, *, has_lost_marker: bool) -> ReplicatorError | None:
    """Return the error of a source that lacks what syncs read of it. reads: where the WAL ended at each."""
    latest = max(reads, default=Lsn(0))
    if now.end_of_wal >= latest and not has_lost_marker:
        return None
    why = f"its WAL ends at {now.end_of_wal}, the last read was at {latest}: "
    if now.end_of_wal >= latest:
        why = "transactions of the last read ended another way there: "
    family = PassingError if now.is_standby else OperatorError
    return family(
        "the source lies behind what the last sync read of it",
        why=f"{why}it was put back from an older copy" + (", or is a standby that lags" if now.is_standby else ""),
        hint="replicator sync -- reads every such table whole, by itself",
        id="source_behind",
    )


def check_advance(before: Lsn, now: Lsn) -> None:
    """Raise PassingError where the WAL ends before an earlier look at it: the next start finds out who answers."""
    if now < before:
        raise PassingError(
            "the source's WAL went back",
            why=f"it ended at {before}, and now at {now}: another server answers, or the source was put back",
            hint="the next start finds out which, by itself",
            id="source_behind",
        )


def history_changed(why: str, *, is_promoted: bool) -> OperatorError:
    """Return the error of a source that lacks what the target has of it."""
    if is_promoted:
        what = "the source was promoted without all that the target has"
        return OperatorError(what, why=why, hint=REPAIR, id="timeline_changed")
    return OperatorError(
        "the source is in another history than the target",
        why=f"{why}: it was put back from an older copy",
        hint=REPAIR,
        id="history_changed",
    )


class Expectation:
    """What a stream has to bring before anything else of it counts: the last transaction that the target has.

    is_met: it came, or there is nothing to wait for.
    """

    def __init__(self, awaited: LastCommit | None, *, is_promoted: bool = False) -> None:
        self._awaited, self._is_promoted = awaited, is_promoted

    @property
    def is_met(self) -> bool:
        return self._awaited is None

    def meet(self, lsn: Lsn, xid: int, time_us: int) -> None:
        """Take note of a transaction, by the place of its commit. Raises OperatorError where another one stands."""
        if self._awaited is None or lsn < self._awaited.lsn:
            return
        if not self._awaited.is_same(lsn, xid, time_us):
            raise self._missed(self._awaited)
        self._awaited = None

    def pass_by(self, position: Lsn) -> None:
        """Take note that all up to a position was sent. Raises OperatorError when what is awaited was not among it."""
        if self._awaited is not None and position >= self._awaited.end:
            raise self._missed(self._awaited)

    def _missed(self, awaited: LastCommit) -> OperatorError:
        why = f"the transaction that the target has up to {awaited.end} is not in the source's WAL"
        return history_changed(why, is_promoted=self._is_promoted)


LOST_HISTORY = ("source_behind", "history_changed", "timeline_changed")
"""Errors after which nothing counts that the target has: all of it is read again."""


def _other_cluster() -> SafetyStop:
    return SafetyStop(
        "the source is another database cluster than before",
        why="its system identifier changed: a wrong address would replace all rows",
        hint="if it is the right one: replicator slot drop --yes, then replicator listen",
        id="source_changed",
    )


def _gap(id_: str, what: str, why: str) -> OperatorError:
    return OperatorError(what, why=f"{why}; changes in between would be lost", hint=REPAIR, id=id_)
