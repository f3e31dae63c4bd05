"""Names that end a statement, a string, a line or a pattern when they are pasted, and tables that have them."""

from __future__ import annotations

from psycopg import sql

from replicator.selection import format_table_name
from tests.pair import Pair

INJECTION = '"x"; DROP TABLE etl_control; --'
ODD_NAMES = [
    INJECTION,
    "'x'; drop table etl_control; --",
    '"',
    '""',
    "'",
    "\\",
    "back\\slash\\'",
    "E'\\n'",
    "new\nline\r\n",
    "tab\t",
    "\x01\x7f",
    "\x1b[31mred",
    "per%cent %s %% %(x)s",
    "{0} {x} {}",
    "[section]",
    "$1 $$ ${x}",
    ":name :'name' :\"name\"",
    "/* */ --",
    "a,b;(c)",
    "🙂\u202eright to left",
    "e\u0301",
    "é",
    " ",
    ".",
    "a.b.c",
    "*",
    "?",
    "public.*",
    "<img src=x onerror=alert(1)>",
    "n" * 62 + "1",
    "n" * 62 + "2",
    "🙂" * 15 + "aa1",
    "🙂" * 15 + "aa2",
]
SPECIAL_NAMES = [
    "select", "from", "table", "user", "order", "all", "null", "true", "default", "array", "values", "only", "new",
    "old", "Upper", "UPPER", "upper", "etl_control", "table_state", "xmin_", "_deleted_at", "oid", "excluded", "t",
    "s", "x", "gone", "place", "leaf", "rows", "digest", "bucket", "replicator due", "replicator row text",
    "replicator row number", "record",
]  # fmt: skip


def create_tables(pair: Pair, schema: str, names: list[str]) -> dict[str, str]:
    """Make a table of each name in the source, a keyless one every third; every one has columns of all the names.

    Return the tables as the tool spells them, with their own names.
    """
    pair.source.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    for n, name in enumerate(names):
        columns = [
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL("int" if column == name else "text"))
            for column in names
        ]
        if n % 3:
            columns.append(sql.SQL("primary key ({})").format(sql.Identifier(name)))
        table = sql.Identifier(schema, name)
        pair.source.execute(
            sql.SQL("create table {} ({}, at timestamptz default now())").format(table, sql.SQL(", ").join(columns))
        )
        pair.source.execute(
            sql.SQL("insert into {} ({}, {}) select n, n from generate_series(1, 4) as n").format(
                table, sql.Identifier(name), sql.Identifier(names[n - 1])
            )
        )
    pair.grant()
    return {format_table_name(schema, name): name for name in names}


def change_tables(pair: Pair, schema: str, names: list[str]) -> None:
    """Change, add and delete a row of each table."""
    for n, name in enumerate(names):
        pair.source.execute(
            sql.SQL(
                "update {table} set {other} = 'changed' where {key} = 2; delete from {table} where {key} = 3;"
                " insert into {table} ({key}) values (10)"
            ).format(table=sql.Identifier(schema, name), key=sql.Identifier(name), other=sql.Identifier(names[n - 1]))
        )
