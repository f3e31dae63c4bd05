"""Keeps the changes of a table that is being read beside the stream, until its rows are in the target.

    open ──► snapshot ──► rows are read and loaded ──► stream passes the snapshot ──► replay ──► the table is live

A snapshot and a position of the stream never correspond, so the window opens ahead of the snapshot and its changes are
applied to the loaded rows as a whole. That is right for a table with a key: the last image of each row wins, and every
transaction that the snapshot sees has been delivered by then. A table without a key counts images, so exactly the
transactions that the snapshot saw are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from replicator.capture.intake import Intake
from replicator.capture.pgoutput import (
    Begin,
    Delete,
    Insert,
    PartialInsert,
    PartialUpdate,
    Relation,
    Update,
)
from replicator.cell import Cells
from replicator.changes import Segment
from replicator.fold import Fold
from replicator.position import Lsn

RowMessage = Insert | PartialInsert | Update | PartialUpdate | Delete
_CELL_BYTES = 60
_ENTRY_BYTES = 300


@dataclass(frozen=True, slots=True)
class Emptied:
    """A TRUNCATE of one relation."""

    relation: int


@dataclass(frozen=True)
class Replayed:
    """What a window kept. segment: None when nothing changed.

    intakes: by relation as it was described last; None where that shape does not fit the table.
    """

    segment: Segment | None
    intakes: dict[int, Intake | None]


@dataclass
class Window:
    """The changes of one table since the window opened, in order.

    oids: of the relations that make the table up. described: those that the stream has described before. cap_bytes:
    what it may hold; past it nothing is kept any more, and the table has to be read once more. root: of a partitioned
    table, whose new partitions void the window. begin: of the transaction under delivery.
    """

    table: str
    oids: frozenset[int]
    cap_bytes: int
    root: int | None = None
    described: dict[int, Relation] = field(default_factory=dict)
    begin: Begin | None = None
    held_bytes: int = 0
    is_overfull: bool = False
    _entries: list[tuple[Begin | None, RowMessage | Relation | Emptied]] = field(default_factory=list)

    def void(self) -> None:
        """Give up what is held: the table has to be read again."""
        self.is_overfull = True
        self._entries.clear()

    def keep(self, message: RowMessage | Relation | Emptied) -> None:
        """Keep one message of the transaction under delivery."""
        if self.is_overfull:
            return
        self._entries.append((self.begin, message))
        self.held_bytes += _ENTRY_BYTES
        if isinstance(message, Insert | Update):
            self.held_bytes += _measure(message.new)
        if isinstance(message, Update | Delete) and message.old is not None:
            self.held_bytes += _measure(message.old)
        if self.held_bytes > self.cap_bytes:
            self.void()

    def replay(
        self, make_intake: Callable[[Relation], Intake | None], is_seen: Callable[[Lsn, int], bool]
    ) -> Replayed | None:
        """Return the changes, folded; None where the table has to be read again.

        is_seen: says of a transaction (place of its commit, xid) whether the loaded rows have it already.
        """
        if self.is_overfull:
            return None
        intakes = {oid: make_intake(relation) for oid, relation in self.described.items()}
        segment: Segment | None = None
        for begin, message in self._entries:
            if isinstance(message, Relation):
                intakes[message.oid] = make_intake(message)
                continue
            if begin is None or is_seen(begin.final_lsn, begin.xid):
                continue
            intake = intakes.get(message.relation)
            if intake is None or (isinstance(message, Emptied) and intake.is_part):
                return None
            segment = segment or Segment(intake.layout.version, intake.make_fold())
            segment.count += 1
            _fold(segment.fold, intake, message)
        return Replayed(segment, intakes)


def _measure(cells: Cells) -> int:
    return sum(_CELL_BYTES + (len(cell) if isinstance(cell, bytes) else 0) for cell in cells)


def _fold(fold: Fold, intake: Intake, message: RowMessage | Emptied) -> None:
    if isinstance(message, Emptied):
        fold.truncate()
    elif isinstance(message, Delete):
        intake.delete(fold, message)
    elif isinstance(message, Insert):
        intake.insert(fold, message)
    else:
        intake.update(fold, message)
