"""Fold a stream of changes into at most one change a row, in the target's columns. Pure.

Folding is by the text of the key. That is exact although an index may take unlike texts as equal (citext, 1.0 and
1.00): a row's key changes its text only in an update that says so, and of all rows that an index takes as equal at
most one lives at a time; the others are gone, and what is gone is deleted ahead of what is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from replicator.cell import UNCHANGED, Cells


class Marker(Enum):
    """What a folded row is when it has no cells."""

    GONE = "gone"
    UNKNOWN = "unknown"


GONE: Final = Marker.GONE
"""The row is not there any more."""
UNKNOWN: Final = Marker.UNKNOWN
"""The stream does not say what the row is: it is to be read again by its key."""

Key: TypeAlias = Hashable
"""One cell, or a tuple of the key's cells in key order."""


class Partial(NamedTuple):
    """A row whose UNCHANGED cells are those of the target's row with the key `base`."""

    cells: Cells
    base: Key


Row: TypeAlias = Cells | Partial | Marker


@dataclass
class KeyedFold:
    """The changes of a table with a key.

    rows: by key; a key that is absent was not touched. truncated: all that was there before is gone. A row that moves
    to another key stays Partial even when it is whole: it takes along what only the target has of it.
    """

    rows: dict[Key, Row] = field(default_factory=dict)
    truncated: bool = False

    def insert(self, key: Key, cells: Cells) -> None:
        """Fold a new row, which is whole."""
        self.rows[key] = cells

    def overwrite(self, key: Key, cells: Cells) -> None:
        """Fold a new version of a row, which is whole, under the same key."""
        before = self.rows.get(key)
        self.rows[key] = Partial(cells, before.base) if type(before) is Partial else cells

    def update(self, old_key: Key, key: Key, cells: Cells) -> None:
        """Fold a new version of a row, with UNCHANGED cells or under another key."""
        row = self._complete(old_key, cells)
        if old_key != key:
            self.rows[old_key] = GONE
        self.rows[key] = row

    def _complete(self, key: Key, cells: Cells) -> Row:
        """Return the new version of the row that stood under `key`."""
        before = self.rows.get(key)
        if before is None:
            return UNKNOWN if self.truncated else Partial(cells, key)
        if isinstance(before, Marker):
            return UNKNOWN if UNCHANGED in cells else cells
        if isinstance(before, Partial):
            return Partial(fill(cells, before.cells), before.base)
        return fill(cells, before)

    def delete(self, key: Key) -> None:
        """Fold the end of a row."""
        self.rows[key] = GONE

    def lose(self, key: Key) -> None:
        """Fold a change that the stream does not tell whole."""
        self.rows[key] = UNKNOWN

    def truncate(self) -> None:
        """Fold a TRUNCATE: nothing of what was there before it is left."""
        self.rows.clear()
        self.truncated = True

    @property
    def keys(self) -> set[Key]:
        """Return every key that was touched."""
        return set(self.rows)


@dataclass
class MultisetFold:
    """The changes of a table without a key: how many rows of each image come (positive) or go (negative)."""

    counts: Counter[Cells] = field(default_factory=Counter)
    truncated: bool = False

    def insert(self, cells: Cells) -> None:
        """Fold a new row."""
        self.counts[cells] += 1

    def update(self, old: Cells, cells: Cells) -> None:
        """Fold a change of one row; both images are whole (REPLICA IDENTITY FULL)."""
        self.counts[old] -= 1
        self.counts[fill(cells, old)] += 1

    def delete(self, old: Cells) -> None:
        """Fold the end of one of the rows that look like this."""
        self.counts[old] -= 1

    def truncate(self) -> None:
        """Fold a TRUNCATE."""
        self.counts.clear()
        self.truncated = True


Fold: TypeAlias = KeyedFold | MultisetFold


def fill(cells: Cells, before: Cells) -> Cells:
    """Return the cells, with those that are UNCHANGED taken from the version before."""
    return tuple([old if cell is UNCHANGED else cell for cell, old in zip(cells, before, strict=True)])
