"""What travels from the stream's reader to its loader: folded changes, in order, up to a position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from replicator.continuity import LastCommit
from replicator.fold import GONE, Fold, KeyedFold
from replicator.position import Lsn

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Segment:
    """The changes of one table while its shape stayed as it was. version: of the shape; count: of changes folded."""

    version: int
    fold: Fold
    count: int = 0
    data_bytes: int = 0


@dataclass
class Changes:
    """Folded changes of one or more transactions.

    segments: by table, in order. position: the end of the last transaction that is whole in here, None before any.
    commit_lsn: where the last transaction in here commits, whole or not. commit_time_us: when the last whole one did,
    in microseconds since 2000-01-01 UTC.
    is_open: the last transaction is not, its rest follows. stale: tables of which nothing more was taken: they are to
    be read again. joined: by table, the definition of those that are live from this batch on. last_commit: the last
    whole transaction. fresh_at: all that the source committed before this moment is in here or before it. repair_xid:
    the same of all older transactions.
    """

    segments: dict[str, list[Segment]] = field(default_factory=dict)
    position: Lsn | None = None
    commit_lsn: Lsn | None = None
    commit_time_us: int | None = None
    transactions: int = 0
    held_bytes: int = 0
    is_open: bool = False
    stale: frozenset[str] = frozenset()
    joined: dict[str, str] = field(default_factory=dict)
    fresh_at: datetime | None = None
    repair_xid: int | None = None
    last_commit: LastCommit | None = None

    @property
    def committed_at(self) -> datetime | None:
        """Return when the last whole transaction in here was committed."""
        return None if self.commit_time_us is None else _EPOCH + timedelta(microseconds=self.commit_time_us)

    @property
    def is_empty(self) -> bool:
        """Say whether nothing is in here that the target must hear of."""
        return not self.segments and self.position is None


def split_gone(segment: Segment) -> tuple[Segment | None, Segment]:
    """Return a segment as two: what is gone, and what is written. The first empties the table.

    None for the first of a table without a key: its images come and go together.
    """
    if not isinstance(segment.fold, KeyedFold):
        return None, segment
    gone = KeyedFold(truncated=segment.fold.truncated)
    written = KeyedFold()
    for key, row in segment.fold.rows.items():
        (gone if row is GONE else written).rows[key] = row
    return Segment(segment.version, gone), Segment(segment.version, written)


def halve(segment: Segment) -> tuple[Segment, Segment] | None:
    """Return a segment of a table with a key as two of half its rows; None when there is nothing to halve."""
    if not isinstance(segment.fold, KeyedFold) or len(segment.fold.rows) < 2:
        return None
    rows = list(segment.fold.rows.items())
    middle = len(rows) // 2
    first = KeyedFold(dict(rows[:middle]), segment.fold.truncated)
    second = KeyedFold(dict(rows[middle:]))
    return Segment(segment.version, first), Segment(segment.version, second)


KeyText = tuple[bytes | None, ...]
"""A key as the text of its cells, in key order."""


class RowFinder(Protocol):
    """Reads rows of the source again by their keys."""

    def find_rows(self, table: str, version: int, keys: Sequence[KeyText]) -> Iterator[bytes]:
        """Yield COPY text of those rows that are there, under the table's rules, in the columns of its target.

        Seen are all transactions that the stream has delivered, and perhaps later ones.
        """
