"""Temporary tables of a session that loads again and again: made once, emptied by every commit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.copy import LibpqWriter

from replicator.apply.merge import copy_into, drop_staging, staging_name
from replicator.apply.stream_merge import empty_staging, measure_staging
from replicator.cell import Cell
from replicator.db import Connection

_MOST_KEPT = 96
"""Each commit looks at every temporary table of the session, so a pipeline of hundreds of tables keeps the latest."""
_MANY_ROWS = 1000
"""Unmeasured, the planner takes each text for 32 bytes, and so many wide rows for enough to read the whole target."""


class _CountingWriter(LibpqWriter):
    """Sends COPY data as psycopg does by default, and counts it."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        super().__init__(cursor)
        self.sent_bytes = 0

    def write(self, data: Buffer) -> None:
        """Send a piece."""
        self.sent_bytes += len(data)
        super().write(data)


class Staging:
    """The staging tables of one session, by what they are for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._names: dict[Hashable, str] = {}
        self._new: list[Hashable] = []
        self._used: set[Hashable] = set()
        self._measured: set[str] = set()

    def take(self, purpose: Hashable, create: Callable[[str], sql.Composed]) -> str:
        """Return an empty staging table for the purpose, made by `create` if there is none yet.

        A table made inside a savepoint goes with it: `rewind` tells.
        """
        name = self._names.get(purpose)
        if name is None:
            name = self.invent_name()
            self._connection.execute(create(name))
            self._names[purpose] = name
            self._new.append(purpose)
        elif purpose in self._used:
            self._connection.execute(empty_staging(name))
            self._measured.discard(name)
        self._used.add(purpose)
        return name

    def invent_name(self) -> str:
        """Return a name that no table of this session has had."""
        return f"replicator_change_{next(self._numbers)}"

    def fill(self, name: str, columns: Sequence[str], pieces: Iterable[bytes]) -> int:
        """Copy text into a staging table; return the rows."""
        into = copy_into(staging_name(name), columns, binary=False)
        with self._connection.cursor() as cursor:
            with cursor.copy(into) as copy:
                for piece in pieces:
                    copy.write(piece)
            self._measure(name, columns, cursor.rowcount)
            return cursor.rowcount

    def fill_binary(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> int:
        """Copy rows of cells in binary format into a staging table; return the bytes. No cell may be UNCHANGED."""
        into = copy_into(staging_name(name), columns, binary=True)
        with self._connection.cursor() as cursor:
            writer = _CountingWriter(cursor)
            with cursor.copy(into, writer=writer) as copy:
                # psycopg writes bytes as they are: a cell in the binary format of its type.
                write_row = copy.write_row
                for cells in rows:
                    write_row(cells)
            self._measure(name, columns, cursor.rowcount)
            return writer.sent_bytes

    def _measure(self, name: str, columns: Sequence[str], rows: int) -> None:
        """Measure a table that many rows came into, once: from then on its pages tell how many there are."""
        if rows >= _MANY_ROWS and name not in self._measured:
            self._connection.execute(measure_staging(name, columns[0]))
            self._measured.add(name)

    def mark(self) -> tuple[dict[Hashable, str], list[Hashable], set[Hashable]]:
        """Return what a savepoint begins with."""
        return dict(self._names), list(self._new), set(self._used)

    def rewind(self, mark: tuple[dict[Hashable, str], list[Hashable], set[Hashable]]) -> None:
        """Take note that the transaction went back to a savepoint: what was made since is gone."""
        self._names, self._new, self._used = dict(mark[0]), list(mark[1]), set(mark[2])

    def settle(self, *, committed: bool) -> None:
        """Take note that the transaction has ended, and with it every row."""
        if not committed:
            for purpose in self._new:
                self._names.pop(purpose, None)
        self._new.clear()
        self._used.clear()

    def trim(self) -> None:
        """Drop what was not used for longest. Inside a transaction, before its first `take`."""
        purposes = list(self._names)[: max(0, len(self._names) - _MOST_KEPT)]
        if not purposes:
            return
        names = [self._names.pop(purpose) for purpose in purposes]
        self._connection.execute(drop_staging(*names))
        self._measured.difference_update(names)
