"""Rows that the target refuses, found by halves and put aside, so that all others land.

Only where on_row_error is "quarantine".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psycopg
from psycopg import sql

from replicator.apply import merge, sieve_merge
from replicator.apply.merge import Place, Target
from replicator.batch import Figures
from replicator.changes import KeyText
from replicator.db import TAKEN_STATES, Connection, translate
from replicator.errors import DataRefused

MOST_REFUSED_ROWS = 500
"""More than that are no matter of single rows, and each costs some ten savepoints to find."""


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
        write: Callable[[Place, int], None],
        make_way: Callable[[], None],
    ) -> None:
        self._connection, self._table, self._target, self._figures = connection, table, target, figures
        self._write, self._make_way = write, make_way
        self._part, self._aside = f"replicator_part_{number}", f"replicator_aside_{number}"
        self._keys = f"replicator_refused_{number}"
        self._has_made_way = False
        self.refused: dict[KeyText, DataRefused] = {}

    def land(self, staging: Place, rows: int) -> None:
        """Bring in what the target takes of the staged rows. Raises our errors when it refuses too many."""
        if self._try(staging, rows) is None:
            return
        self._run(sieve_merge.create_part(self._target, staging, self._aside, 0, 0))
        errors: list[DataRefused] = []
        self._sift(staging, rows, 0, errors)
        for place, error in self._trade(errors):
            self._quarantine(place, error)
        self._run(merge.drop_staging(self._aside))

    def _sift(self, staging: Place, rows: int, depth: int, errors: list[DataRefused]) -> None:
        """Land the two halves of rows that did not land together; single rows that are refused go aside.

        Each half is a copy, so that one bad row of n costs the copying of 2n rows and not of n log n.
        """
        half, part = rows // 2, f"{self._part}_{depth}"
        for first, count in ((0, half), (half, rows - half)):
            if not count:
                continue
            self._run(sieve_merge.create_part(self._target, staging, part, first, count))
            error = self._try(part, count)
            if error is not None and count > 1:
                self._sift(part, count, depth + 1, errors)
            elif error is not None:
                self._run(sieve_merge.append_part(self._target, part, self._aside, 0))
                errors.append(error)
                if len(self.refused) + len(errors) > MOST_REFUSED_ROWS:
                    raise too_many(self._table, error) from error
            self._run(merge.drop_staging(part))

    def _trade(self, errors: list[DataRefused]) -> list[tuple[int, DataRefused]]:
        """Try rows aside once more whose unique values were taken; return (place, error) of those that stay.

        Whoever holds such a value may have landed by now, or trades with them.
        """
        places = [place for place, error in enumerate(errors) if error.sqlstate in TAKEN_STATES]
        landed: list[int] = []
        if len(places) > 1:
            together = self._try_places(places) is None
            landed = places if together else [place for place in places if self._try_places([place]) is None]
        return [(place, error) for place, error in enumerate(errors) if place not in landed]

    def _try_places(self, places: list[int]) -> DataRefused | None:
        self._run(sieve_merge.create_part(self._target, self._aside, self._part, 0, 0))
        for place in places:
            self._run(sieve_merge.append_part(self._target, self._aside, self._part, place))
        error = self._try(self._part, len(places))
        self._run(merge.drop_staging(self._part))
        return error

    def _try(self, staging: Place, rows: int) -> DataRefused | None:
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
            if error.sqlstate not in TAKEN_STATES:
                raise
            refusal = error
        else:
            return None
        self._figures.restore(before)
        if refusal.sqlstate in TAKEN_STATES and not self._has_made_way:
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

    def _quarantine(self, place: int, error: DataRefused) -> None:
        self._run(sieve_merge.create_part(self._target, self._aside, self._part, place, 1))
        row = self._connection.execute(sieve_merge.read_keys(self._target, self._part)).fetchone()
        assert row is not None
        if not self.refused:
            self._run(merge.create_staging(self._target, self._keys, self._target.key))
        self._run(sieve_merge.add_keys(self._target, self._part, self._keys))
        self._run(merge.drop_staging(self._part))
        self.refused[tuple(text.encode() for text in row["key"])] = error
        self._figures.rows_quarantined += 1

    def take_out(self, staging: Place) -> int:
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
        hint=error.hint or "look at the constraints of the target's table",
        id="too_many_refused",
        sqlstate=error.sqlstate,
        table=table,
    )
