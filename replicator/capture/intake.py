"""Takes the stream's messages into folded changes, in the columns and under the rules of a table's target.

What the stream cannot tell whole becomes UNKNOWN, and is read again by its key: rows under `where` or an expression
mask, rows of a shape that lacks a column of the target, unchanged values of which no old version is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from replicator.capture.pgoutput import Delete, Insert, PartialInsert, PartialUpdate, Relation, Update
from replicator.cell import UNCHANGED, Cell, Cells
from replicator.errors import OperatorError, StreamError
from replicator.fold import Key, KeyedFold, MultisetFold
from replicator.rules import CellRule

_MISSING = -1


@dataclass(frozen=True)
class Layout:
    """What a table's target wants from the stream.

    columns: the source's names of the columns written, in the target's order. rules: by place in columns. key: places
    of the key, empty without one. from_source: rows are computed by the source alone.
    """

    table: str
    version: int
    columns: tuple[str, ...]
    rules: dict[int, CellRule]
    constant: frozenset[int]
    key: tuple[int, ...]
    from_source: bool


class Intake:
    """One shape of one table, as a Relation message describes it, on its way into a fold.

    lacking: columns of the target that the shape does not have; its rows are read again by key. is_part: the relation
    is one of several that make up the table.
    """

    def __init__(self, relation: Relation, layout: Layout, *, is_part: bool = False) -> None:
        self.layout, self.relation, self.is_part = layout, relation, is_part
        places = {column.name: place for place, column in enumerate(relation.columns)}
        self._places = tuple(
            0 if n in layout.constant else places.get(name, _MISSING) for n, name in enumerate(layout.columns)
        )
        self.lacking = tuple(
            name for name, place in zip(layout.columns, self._places, strict=True) if place == _MISSING
        )
        self._width = len(relation.columns)
        is_same = self._places == tuple(range(self._width))
        self._pick = _picker(self._places)
        self._rules = sorted(layout.rules.items())
        self._passes = is_same and not self._rules
        self.key_of = _key_picker(layout.key)
        self.reads_again = bool(layout.from_source or self.lacking)
        if layout.key and any(self._places[place] == _MISSING for place in layout.key):
            raise _key_missing(layout.table)

    def make_fold(self) -> KeyedFold | MultisetFold:
        """Return an empty fold of the table's kind."""
        return KeyedFold() if self.layout.key else MultisetFold()

    def _cells(self, cells: Cells) -> Cells:
        """Return a row in the target's columns, under its rules."""
        if len(cells) != self._width:
            raise _width_differs(self.layout.table, len(cells), self._width)
        if self._passes:
            return cells
        picked = self._pick(cells)
        if not self._rules:
            return picked
        changed = list(picked)
        for place, rule in self._rules:
            cell = changed[place]
            if isinstance(cell, bytes):
                changed[place] = rule(cell)
        for place in self.layout.constant:
            changed[place] = None
        return tuple(changed)

    def insert(self, fold: KeyedFold | MultisetFold, message: Insert) -> None:
        """Take a new row in."""
        cells = self._cells(message.new)
        if isinstance(fold, MultisetFold):
            if type(message) is PartialInsert and UNCHANGED in cells:
                raise _moved_unsent(self.layout.table)
            fold.insert(cells)
        elif self.reads_again or (type(message) is PartialInsert and UNCHANGED in cells):
            fold.lose(self.key_of(cells))
        else:
            fold.insert(self.key_of(cells), cells)

    def update(self, fold: KeyedFold | MultisetFold, message: Update) -> None:
        """Take a new version of a row in."""
        if message.old is None and type(fold) is KeyedFold and not self.reads_again:
            cells = self._cells(message.new)
            key = self.key_of(cells)
            if type(message) is PartialUpdate:
                fold.update(key, key, cells)
            else:
                fold.overwrite(key, cells)
        else:
            self._update_from_old(fold, message)

    def _update_from_old(self, fold: KeyedFold | MultisetFold, message: Update) -> None:
        """Take an update in of which the old row, or its key, is known."""
        new, old = message.new, message.old
        if old is not None and type(message) is PartialUpdate:
            # A key's old value is sent wherever it is large; under REPLICA IDENTITY FULL every old value is. What is
            # not sent stands as NULL, and what did not change and is large never is NULL. `old_kind` does not tell: of
            # a partition it names the root's identity, while the values are those of the partition's own.
            new = tuple([o if c is UNCHANGED and o is not None else c for c, o in zip(new, old, strict=True)])
        cells = self._cells(new)
        if isinstance(fold, MultisetFold):
            if old is None or message.old_kind != "O":
                raise identity_lost(self.layout.table)
            fold.update(self._cells(old), cells)
            return
        key = self.key_of(cells)
        old_key = key if old is None else self.key_of(self._cells(old))
        if self.reads_again:
            fold.lose(old_key)
            fold.lose(key)
        elif old_key == key and UNCHANGED not in cells:
            fold.overwrite(key, cells)
        else:
            fold.update(old_key, key, cells)

    def delete(self, fold: KeyedFold | MultisetFold, message: Delete) -> None:
        """Take the end of a row in."""
        old = self._cells(message.old)
        if isinstance(fold, KeyedFold):
            key = self.key_of(old)
            if self.reads_again:
                fold.lose(key)
            else:
                fold.delete(key)
        elif message.old_kind == "O":
            fold.delete(old)
        else:
            raise identity_lost(self.layout.table)


def _picker(places: Sequence[int]) -> Callable[[Cells], Cells]:
    if _MISSING in places:
        return lambda cells: tuple([None if place == _MISSING else cells[place] for place in places])
    if not places:
        return lambda _cells: ()
    if len(places) == 1:
        (only,) = places
        return lambda cells: (cells[only],)
    pick: Callable[[Cells], tuple[Cell, ...]] = itemgetter(*places)
    return pick


def _key_picker(places: Sequence[int]) -> Callable[[Cells], Key]:
    """Return what takes the key's cells: one cell, or a tuple of several."""
    return itemgetter(*places) if places else lambda cells: cells


def _width_differs(table: str, cells: int, columns: int) -> StreamError:
    return StreamError(
        f"a row of {table} has another width than its table",
        why=f"{cells} cells for {columns} columns",
        hint="please report this with the server's version",
        table=table,
    )


def identity_lost(table: str) -> OperatorError:
    """Return the error of a table without a key whose old rows the source no longer sends."""
    return OperatorError(
        f"{table} has no key, and the source no longer says which row changed",
        why="its replica identity is not FULL any more",
        hint=f"alter table {table} replica identity full; then `replicator listen`",
        id="identity_missing",
        table=table,
    )


def _moved_unsent(table: str) -> OperatorError:
    return OperatorError(
        f"a row of {table} moved to another partition, and a large value of it was not sent",
        why="without a key nobody can tell which row it was",
        hint="replicator slot drop --yes, then replicator listen; or give the table a key",
        id="row_not_whole",
        table=table,
    )


def _key_missing(table: str) -> OperatorError:
    return OperatorError(
        f"the publication leaves out a key column of {table}",
        why="rows are told apart by their key",
        hint="publish the whole table: alter publication ... set table ... without a column list",
        id="publication_columns",
        table=table,
    )
