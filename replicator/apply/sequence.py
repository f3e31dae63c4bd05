"""Sequences of the target, moved past what was copied, so that the target can take the source's place.

A sequence is never moved back, and stays on its own grid: where two servers hand out odd and even numbers, they go on
to. `setval` is not undone by a ROLLBACK. So it runs as the last act of the transaction that brought the rows: whether
that lands or not, the sequence is past every row that is there, and at worst some numbers are never used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from replicator.db import Connection
from replicator.errors import PreflightError
from replicator.relation import Relation
from replicator.statement import statement

Row = dict[str, Any]
_NUMBERS = frozenset({"smallint", "integer", "bigint", "numeric"})


@dataclass(frozen=True, slots=True)
class Fed:
    """A column of the target that is copied, and a sequence that new rows of the target's own would take it from.

    is_indexed: its highest value is found without a scan. is_followed: the highest value tells where the sequence has
    to stand; not so for a text, or a default that computes something from the sequence.
    """

    table: sql.Identifier
    column: str
    schema: str
    name: str
    oid: int
    increment: int
    least: int
    most: int
    is_indexed: bool
    is_followed: bool

    @property
    def sequence(self) -> sql.Identifier:
        """Return the sequence's qualified name."""
        return sql.Identifier(self.schema, self.name)


def read_fed(connection: Connection, oids: Iterable[int]) -> dict[int, list[Row]]:
    """Return what the catalog says of the sequences of tables, by the table's OID; nothing for one without."""
    found: defaultdict[int, list[Row]] = defaultdict(list)
    for row in connection.execute(statement("sequence.list_fed"), {"oids": list(oids)}):
        found[row["relation"]].append(row)
    return found


def find_sequences(
    connection: Connection,
    table: str,
    existing: Relation,
    spellings: Mapping[str, str],
    known: Mapping[int, list[Row]] | None = None,
) -> list[Fed]:
    """Return the sequences of the copied columns of a target table.

    spellings: the copied columns' types, by name in the target. known: what `read_fed` read of it, if it did.
    Raises PreflightError, with the GRANT, for one that the role may not move.
    """
    rows = read_fed(connection, [existing.oid]) if known is None else known
    found = _list_fed(rows.get(existing.oid, ()), existing, spellings)
    grants = [grant for row, fed in found if fed.is_followed for grant in _missing_grants(row, fed)]
    if grants:
        raise _not_permitted(connection, grants, table)
    return [fed for _, fed in found]


def _not_permitted(connection: Connection, grants: Iterable[sql.Composed], table: str | None) -> PreflightError:
    role = connection.info.user
    texts = {sql.SQL("{} to {}").format(grant, sql.Identifier(role)).as_string(): None for grant in grants}
    return PreflightError(
        f"role {role} may not move the sequences of {table or 'a table'}",
        why="sync_sequences is on, and it lacks rights on the target",
        hint="; ".join(texts),
        id="grant_missing",
        sqlstate="42501",
        table=table,
    )


def _list_fed(rows: Iterable[Row], existing: Relation, spellings: Mapping[str, str]) -> list[tuple[Row, Fed]]:
    return [
        (
            row,
            Fed(
                table=sql.Identifier(existing.schema, existing.name),
                column=row["column"],
                schema=row["schema"],
                name=row["name"],
                oid=row["oid"],
                increment=row["increment"],
                least=row["least"],
                most=row["most"],
                is_indexed=_knows_highest(existing, row["column"]),
                is_followed=row["is_plain"] and _is_number(spellings[row["column"]]),
            ),
        )
        for row in rows
        if row["column"] in spellings
    ]


def _knows_highest(existing: Relation, column: str) -> bool:
    return any(i.columns[:1] == (column,) and i.method == "btree" and i.covers_all for i in existing.indexes)


def _is_number(spelling: str) -> bool:
    return spelling.partition("(")[0] in _NUMBERS


def _missing_grants(row: Row, fed: Fed) -> Iterable[sql.Composed]:
    if not row["may_use"]:
        yield sql.SQL("grant usage on schema {}").format(sql.Identifier(fed.schema))
    if row["lacking"]:
        yield sql.SQL("grant {} on sequence {}").format(sql.SQL(", ".join(row["lacking"])), fed.sequence)


def move_sequences(connection: Connection, fed: Collection[Fed]) -> None:
    """Move sequences past the highest value of their columns, where they are not; last in the rows' transaction.

    Raises PreflightError, with the GRANT, where the right was taken away meanwhile.
    """
    # In one order everywhere: two transactions that lock the same sequences must not wait for each other.
    for one in sorted((one for one in fed if one.is_followed), key=lambda one: (one.oid, one.column)):
        connection.execute(statement("sequence.lock"), {"oid": str(one.oid)})
        try:
            connection.execute(move_sequence(one))
        except psycopg.errors.InsufficientPrivilege as error:
            usage = sql.SQL("grant usage on schema {}").format(sql.Identifier(one.schema))
            grant = sql.SQL("grant select, update on sequence {}").format(one.sequence)
            raise _not_permitted(connection, [usage, grant], None) from error


def list_left(fed: Sequence[Fed]) -> list[Fed]:
    """Return those whose place the copied values do not tell."""
    return [one for one in fed if not one.is_followed]


def move_sequence(fed: Fed) -> sql.Composed:
    """Return the statement that moves one sequence, or does nothing.

    It goes to the last number of its own grid that is not past the column's highest value, so what it hands out next
    is; at its end it says so, or begins anew if it cycles. Values outside its bounds cannot have come from it, and do
    not count.
    """
    # The sequence's present place is read in the statement that moves it: as little as possible comes in between.
    return sql.SQL(
        "SELECT setval({oid}::oid::regclass, y.wanted::bigint, true) FROM ("
        " SELECT x.last_value, x.is_called, x.gap * sign({step}) AS ahead,"
        " x.last_value + div(x.gap, {step}) * {step} AS wanted FROM ("
        " SELECT s.last_value, s.is_called, {whole}(h.highest) - s.last_value AS gap FROM {sequence} AS s,"
        " (SELECT {top}(t.{column})::numeric AS highest FROM {table} AS t"
        " WHERE t.{column} BETWEEN {least} AND {most}) AS h"
        ") AS x) AS y"
        " WHERE y.ahead >= 0 AND (y.wanted <> y.last_value OR NOT y.is_called)"
    ).format(
        oid=sql.Literal(fed.oid),
        step=_number(fed.increment, "numeric"),
        least=_number(fed.least, "bigint"),
        most=_number(fed.most, "bigint"),
        sequence=fed.sequence,
        whole=sql.SQL("ceil" if fed.increment > 0 else "floor"),
        top=sql.SQL("max" if fed.increment > 0 else "min"),
        column=sql.Identifier(fed.column),
        table=fed.table,
    )


def _number(value: int, kind: str) -> sql.Composed:
    # As a string: a bare -9223372036854775808 is a numeric to the parser, and no index on an integer serves it.
    return sql.SQL("{}::{}").format(sql.Literal(str(value)), sql.SQL(kind))
