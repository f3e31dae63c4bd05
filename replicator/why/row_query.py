"""Statements that find one row by its key, on either side, and show it as text. Pure: composes SQL, runs nothing."""

from __future__ import annotations

from collections.abc import Mapping as ByName
from collections.abc import Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from replicator.apply.merge import same_value
from replicator.capture.pull import since_mark, since_xid
from replicator.reading import Reading
from replicator.rules import Mapping, Output

# More would only tell once more that the key is not unique.
_MOST_ROWS = 2


@dataclass(frozen=True, slots=True)
class KeyCell:
    """One value of a key as it was given. spelling: the column's type; equality: (schema, operator), None: as text."""

    column: str
    text: str
    spelling: str
    equality: tuple[str, str] | None

    @property
    def value(self) -> sql.Composed:
        """Return it as a value of its type."""
        return sql.SQL("({}::{})").format(sql.Literal(self.text), sql.SQL(self.spelling))

    def matches(self, column: sql.Composable) -> sql.Composable:
        """Return the condition that a column has this value."""
        if self.equality is None:
            return sql.SQL('{} = {} COLLATE "C"').format(show(column), show(self.value))
        return same_value(column, self.equality, self.value)


def show(value: sql.Composable) -> sql.Composed:
    """Return a value's text, NULL staying NULL: what the type's output function writes, on both sides alike."""
    # IS NOT NULL is false for a row that holds a NULL; a cast to text loses the trailing blanks of a char(n).
    return sql.SQL("(CASE WHEN {0} IS DISTINCT FROM NULL THEN format('%s', {0}) END)").format(value)


def try_cell(cell: KeyCell) -> sql.Composed:
    """Return the statement that fails unless the cell's text is of its type and can be compared."""
    return sql.SQL("SELECT {} AS same").format(cell.matches(cell.value))


def map_key(mapping: Mapping, cells: Sequence[KeyCell]) -> sql.Composed:
    """Return the statement that shows what the rules make of a key, without its row."""
    shown = [name_place(n, show(output.expression)) for n, output in enumerate(mapping.key_outputs)]
    given = [sql.SQL("{} AS {}").format(cell.value, sql.Identifier(cell.column)) for cell in cells]
    return sql.SQL("SELECT {} FROM (SELECT {}) AS given").format(_list(shown), _list(given))


def name_place(place: int, value: sql.Composable) -> sql.Composed:
    """Return a value under its number: a column may have any name, those of the marks too."""
    return sql.SQL("{} AS {}").format(value, sql.Identifier(str(place)))


def find_source_row(
    mapping: Mapping,
    cells: Sequence[KeyCell],
    outputs: Sequence[Output],
    casts: ByName[str, str],
    reading: Reading | None,
    audit: Reading | None,
) -> sql.Composed:
    """Return the query for the source's row: marks, then the outputs' texts by number, then those of the key.

    satisfies: of `where`. is_young: its version is one that the reading, by xid, takes; is_due: by the watermark;
    is_unaudited: it is younger than the last audit. NULL where that does not apply.
    """
    by_xid = reading is not None and reading.since_xid is not None
    by_mark = reading is not None and reading.since_mark is not None
    marks = [
        ("satisfies", sql.SQL("({}) IS TRUE").format(mapping.where) if mapping.where is not None else sql.SQL("true")),
        ("is_young", since_xid(reading) if reading is not None and by_xid else sql.SQL("NULL::bool")),
        ("is_due", since_mark(mapping, reading) if reading is not None and by_mark else sql.SQL("NULL::bool")),
        ("is_unaudited", since_xid(audit) if audit is not None else sql.SQL("NULL::bool")),
    ]
    columns: list[sql.Composable] = [sql.SQL("({}) AS {}").format(value, sql.Identifier(n)) for n, value in marks]
    columns += [name_place(n, show(_cast(output, casts))) for n, output in enumerate(outputs)]
    columns += [name_place(-1 - n, show(output.expression)) for n, output in enumerate(mapping.key_outputs)]
    conditions = [cell.matches(sql.Identifier(cell.column)) for cell in cells]
    return replace(mapping, where=None).select(columns, *conditions) + sql.SQL(" LIMIT {}").format(_MOST_ROWS)


def find_target_row(
    table: sql.Identifier, cells: Sequence[KeyCell], columns: Sequence[str], extra: Sequence[str] = ()
) -> sql.Composed:
    """Return the query for the target's row: texts of the columns, then of the extra ones, by number."""
    shown = [name_place(n, show(sql.Identifier("t", name))) for n, name in enumerate([*columns, *extra])]
    conditions = sql.SQL(" AND ").join(cell.matches(sql.Identifier("t", cell.column)) for cell in cells)
    return sql.SQL("SELECT {} FROM {} AS t WHERE {} LIMIT {}").format(_list(shown), table, conditions, _MOST_ROWS)


def _cast(output: Output, casts: ByName[str, str]) -> sql.Composable:
    cast = casts.get(output.name)
    return output.expression if cast is None else sql.SQL("({})::{}").format(output.expression, sql.SQL(cast))


def _list(items: Sequence[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(items)
