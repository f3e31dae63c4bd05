"""Fill a database with a chat platform's data, and change it: the source of the demo.

The statements are the files of `sql/demo`, each of which also pastes into psql.
"""

from __future__ import annotations

from typing import Any, Literal

from psycopg import Connection

from replicator.statement import sql_directory

WIDE_VIEW = "public.vw_conversations_analytics_final"
READER = "reader"
DEFAULT_ROWS = 20_000

Change = Literal["insert", "update", "delete", "rename_contacts"]


def create_demo(connection: Connection[Any], *, rows: int = DEFAULT_ROWS) -> None:
    """Create tables, the wide view and the role `reader` in an empty database, in one transaction.

    rows: conversations, at least 2; there are half as many contacts and three times as many messages. Equal `rows`
    give equal data. Needs the right to create roles.
    """
    with connection.transaction():
        connection.execute("select set_config('demo.rows', %s, true)", [str(rows)])
        for name in ("schema", "rows", "view", "reader"):
            _run(connection, name)


def change_demo(connection: Connection[Any], change: Change) -> int:
    """Make one kind of change and return how many rows it touched; calling it again changes other rows.

    It joins the transaction that is open: an uncommitted `insert` is a late commit.
    `rename_contacts` changes the wide view without moving its watermark.
    """
    return _run(connection, change)


def _run(connection: Connection[Any], name: str) -> int:
    return connection.execute((sql_directory() / "demo" / f"{name}.sql").read_bytes()).rowcount
