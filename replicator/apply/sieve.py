"""Rows that the target refuses, found by halves and put aside, so that all others land.

Only where on_row_error is "quarantine".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psycopg
from psycopg import sql

from replicator.apply import merge, sieve_merge
from replicator.apply.merge import Target
from replicator.batch import Figures
from replicator.changes import KeyText
from replicator.db import Connection, translate
from replicator.errors import DataRefused

MOST_REFUSED_ROWS = 1000
"""More than that are no matter of single rows, and each costs some ten savepoints to find."""

UNIQUE_VIOLATION = "23505"


class Sieve:
    """What the target refused of one table in one load.

    write(staging, rows) brings staged rows in, or raises; make_way() deletes what holds unique values that others take
    over, and is asked for once at most.
    """

    def __init__(
        self,
        connection: Connection,
        table: str,
        target: Target,
        number: int,
        figures: Figures,
        *,
        write: Callable[[str, int], None],
        make_way: Callable[[], None],
    ) -> None:
        self._connection, self._table, self._target, self._figures = connection, table, target, figures
        self._write, self._make_way = write, make_way
        self._part, self._keys = f"replicator_part_{number}", f"replicator_refused_{number}"
        self._has_made_way = False
        self.refused: dict[KeyText, DataRefused] = {}

    def land(self, staging: str, rows: int) -> None:
        """Bring in what the target takes of the staged rows. Raises our errors when it refuses too many."""
        if self._try(staging, rows) is None:
            return
        refused: dict[int, DataRefused] = {}
        self._sift(staging, 0, rows, refused)
        self._trade(staging, refused)
        for place, error in sorted(refused.items()):
            self._set_aside(staging, place, error)

    def _sift(self, staging: str, first: int, rows: int, refused: dict[int, DataRefused]) -> None:
        """Land the two halves of rows that did not land together."""
        half = rows // 2
        for start, count in ((first, half), (first + half, rows - half)):
            error = self._try_part(staging, start, count) if count else None
            if error is None:
                continue
            if count > 1:
                self._sift(staging, start, count, refused)
                continue
            refused[start] = error
            if len(self.refused) + len(refused) > MOST_REFUSED_ROWS:
                raise too_many(self._table, error) from error

    def _trade(self, staging: str, refused: dict[int, DataRefused]) -> None:
        """Try rows once more whose unique values were taken: who holds them may have landed, or trades with them."""
        places = [place for place, error in refused.items() if error.sqlstate == UNIQUE_VIOLATION]
        if len(places) < 2 or self._try_places(staging, places) is None:
            landed = places if len(places) > 1 else []
        else:
            landed = [place for place in places if self._try_places(staging, [place]) is None]
        for place in landed:
            del refused[place]

    def _try_part(self, staging: str, first: int, rows: int) -> DataRefused | None:
        self._run(sieve_merge.create_part(self._target, staging, self._part, first, rows))
        return self._try_and_drop(rows)

    def _try_places(self, staging: str, places: list[int]) -> DataRefused | None:
        self._run(sieve_merge.create_part(self._target, staging, self._part, 0, 0))
        for place in places:
            self._run(sieve_merge.append_part(self._target, staging, self._part, place))
        return self._try_and_drop(len(places))

    def _try_and_drop(self, rows: int) -> DataRefused | None:
        error = self._try(self._part, rows)
        self._run(merge.drop_staging(self._part))
        return error

    def _try(self, staging: str, rows: int) -> DataRefused | None:
        """Write rows in a savepoint; return why one of them was refused, with all of it undone."""
        before = replace(self._figures)
        try:
            with self._connection.transaction():
                self._write(staging, rows)
        except psycopg.Error as error:
            refusal = self._find_refusal(error)
            if refusal is None:
                raise
        except DataRefused as error:
            if error.sqlstate != UNIQUE_VIOLATION:
                raise
            refusal = error
        else:
            return None
        self._figures.restore(before)
        if refusal.sqlstate == UNIQUE_VIOLATION and not self._has_made_way:
            self._has_made_way = True
            self._make_way()
        return refusal

    def _find_refusal(self, error: psycopg.Error) -> DataRefused | None:
        """Return the error of a row; None where it is no row's, or of one that has no key to be known by."""
        facts = error.diag
        is_null_key = isinstance(error, psycopg.errors.NotNullViolation) and facts.column_name in self._target.key
        if is_null_key and facts.table_name == self._target.name:
            return None
        ours = translate(error, side="target", table=self._table)
        return ours if isinstance(ours, DataRefused) else None

    def _set_aside(self, staging: str, place: int, error: DataRefused) -> None:
        self._run(sieve_merge.create_part(self._target, staging, self._part, place, 1))
        row = self._connection.execute(sieve_merge.read_keys(self._target, self._part)).fetchone()
        assert row is not None
        if not self.refused:
            self._run(merge.create_staging(self._target, self._keys, self._target.key))
        self._run(sieve_merge.add_keys(self._target, self._part, self._keys))
        self._run(merge.drop_staging(self._part))
        self.refused[tuple(text.encode() for text in row["key"])] = error
        self._figures.rows_quarantined += 1

    def take_out(self, staging: str) -> int:
        """Take rows and keys out of a staging table that were refused already; return how many."""
        return self._run(sieve_merge.drop_keys(self._target, staging, self._keys)) if self.refused else 0

    def count_absent(self) -> int:
        """Return how many of the refused rows the target has no version of."""
        if not self.refused:
            return 0
        row = self._connection.execute(merge.count_new(self._target, self._keys)).fetchone()
        return int(row["rows"]) if row else 0

    def _run(self, statement: sql.Composed) -> int:
        return self._connection.execute(statement).rowcount


def too_many(table: str, error: DataRefused) -> DataRefused:
    """Return the error of a target that refuses more rows than quarantine is for."""
    return DataRefused(
        f"the target refused more than {MOST_REFUSED_ROWS} rows of {table}",
        why=f"so many are no matter of single rows; the last: {error.why}",
        mend=error.mend or "look at the constraints of the target's table",
        id="too_many_refused",
        sqlstate=error.sqlstate,
        table=table,
    )
