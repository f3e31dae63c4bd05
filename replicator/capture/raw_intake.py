"""Takes rows in whose texts come in the encoding of the source's database, for a while.

A server ends the stream at the first character that it cannot convert, and says neither of which table nor of which
row. Asked for the stored bytes it sends all of them. What is ASCII in them means the same everywhere; any other row is
read again by its key, so that the server converts it, or refuses that one row.
"""

from __future__ import annotations

import codecs
import re

from replicator.capture.intake import Intake, Layout
from replicator.capture.pgoutput import Delete, Insert, PartialUpdate, Relation, Update
from replicator.cell import UNCHANGED, Cell, Cells
from replicator.errors import DataRefused
from replicator.fold import KeyedFold, MultisetFold

CONVERSION_STATES = frozenset({"22021", "22P05"})
"""SQLSTATE of text that the server could not convert."""

_WINDOWS = re.compile(r"WIN(\d+)")
_NAMES = {"KOI8R": "koi8_r", "KOI8U": "koi8_u", "EUC_CN": "gb2312", "SHIFT_JIS_2004": "shift_jis_2004"}
_MULTIBYTE = re.compile(r"EUC_|SHIFT|SJIS|BIG5|GB|UHC|JOHAB|MULE|UTF")


def find_codec(encoding: str) -> str | None:
    """Return Python's name for an encoding of PostgreSQL; None where Python has none, or nothing is to convert."""
    if encoding in ("UTF8", "SQL_ASCII", ""):
        return None
    name = _NAMES.get(encoding, _WINDOWS.sub(r"cp\1", encoding).lower())
    try:
        return codecs.lookup(name).name
    except LookupError:
        return None


def recode_relation(relation: Relation, codec: str) -> Relation:
    """Return a relation with its names as they are, of one whose names came in the database's encoding."""

    def recode(name: str) -> str:
        return name.encode("utf-8", "surrogateescape").decode(codec, "replace")

    columns = tuple(column._replace(name=recode(column.name)) for column in relation.columns)
    return relation._replace(schema=recode(relation.schema), name=recode(relation.name), columns=columns)


class RawIntake(Intake):
    """One shape of one table whose rows come as the source stores them. encoding: PostgreSQL's name, codec: Python's.

    A key in a multibyte encoding is left as it is: two tables of characters need not be the same, and by another key
    the row would be taken for gone. The target refuses it, so it is told.
    """

    def __init__(self, relation: Relation, layout: Layout, *, is_part: bool, encoding: str, codec: str) -> None:
        super().__init__(relation, layout, is_part=is_part)
        self._codec = None if _MULTIBYTE.match(encoding) else codec

    def insert(self, fold: KeyedFold | MultisetFold, message: Insert) -> None:
        """Take a new row in."""
        if _is_ascii(message.new):
            super().insert(fold, message)
        else:
            self._lose(fold, message.new)

    def update(self, fold: KeyedFold | MultisetFold, message: Update) -> None:
        """Take a new version of a row in."""
        old, new = message.old, message.new
        if _is_ascii(new) and _is_ascii(old or ()):
            super().update(fold, message)
            return
        if old is not None:
            if type(message) is PartialUpdate:
                new = tuple([o if c is UNCHANGED and o is not None else c for c, o in zip(new, old, strict=True)])
            self._lose(fold, old)
        self._lose(fold, new)

    def delete(self, fold: KeyedFold | MultisetFold, message: Delete) -> None:
        """Take the end of a row in."""
        old = message.old if _is_ascii(message.old) else self._recode(message.old)
        if isinstance(fold, MultisetFold) and old is not message.old:
            self._lose(fold, old)
        super().delete(fold, message._replace(old=old))

    def _lose(self, fold: KeyedFold | MultisetFold, cells: Cells) -> None:
        if isinstance(fold, MultisetFold):
            raise DataRefused(
                f"a text of {self.layout.table} cannot be converted to UTF-8",
                why="without a key its rows cannot be read again one by one",
                hint="correct the text in the source, then `replicator resync` of the table; or give it a key",
                id="source_refused_row",
                sqlstate="22P05",
                table=self.layout.table,
            )
        fold.lose(self.key_of(self._cells(self._recode(cells))))

    def _recode(self, cells: Cells) -> Cells:
        return tuple([self._recode_cell(cell) for cell in cells])

    def _recode_cell(self, cell: Cell) -> Cell:
        if not isinstance(cell, bytes) or self._codec is None:
            return cell
        try:
            return cell.decode(self._codec).encode()
        except UnicodeDecodeError:
            return cell


def _is_ascii(cells: Cells) -> bool:
    return all(cell.isascii() for cell in cells if isinstance(cell, bytes))
