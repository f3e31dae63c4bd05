"""What piles up on the source while nobody listens: the backlogs that contenders catch up with."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from tests.benchmarks.arena import Arena


@dataclass(frozen=True)
class Backlog:
    """Changes of `conversations`: so many rows in transactions of so many, by one statement each.

    statement: over :first and :last, the numbers of a transaction's rows, from 1 to `rows`. once: the statement is run
    in one transaction over all of them.
    """

    name: str
    rows: int
    per_transaction: int
    statement: str


_SETS = (
    "message_count = message_count + 1, status = 'changed', last_activity_at = clock_timestamp(), updated_at = now()"
)
_INSERT = """
insert into conversations
select id + 100000000, account_id, inbox_id, contact_id, message_count, status, channel, subject, labels, attributes,
       notes, created_at, last_activity_at, updated_at
from conversations where id between :first and :last
"""

BACKLOGS = (
    Backlog("updates", 500_000, 1_000, f"update conversations set {_SETS} where id between :first and :last"),
    Backlog("inserts", 200_000, 100, _INSERT),
    Backlog("one-row transactions", 100_000, 1, f"update conversations set {_SETS} where id = :first"),
    Backlog("one big transaction", 500_000, 500_000, f"update conversations set {_SETS} where id <= :last"),
    Backlog(
        "hot keys", 600_000, 1_000, f"update conversations set {_SETS} where id <= 1000 and :first > 0 and :last > 0"
    ),
    Backlog(
        "deletes",
        200_000,
        100,
        "delete from conversations where id between 100000000 + :first and 100000000 + :last",
    ),
)
"""In this order: the rows that are deleted are the inserted ones."""


def pile_up(arena: Arena, backlog: Backlog, rows: int) -> None:
    """Write a backlog of so many rows, without waiting for the disk at each commit."""
    step = min(backlog.per_transaction, rows)
    body = backlog.statement.replace(":first", "low").replace(":last", "(low + {step} - 1)").strip()
    loop = "do $$ begin for low in 1..{rows} by {step} loop " + body + "; commit; end loop; end $$"
    arena.source.execute("set synchronous_commit = off")
    arena.source.execute(sql.SQL(loop).format(rows=sql.Literal(rows), step=sql.Literal(step)))
    arena.source.execute("set synchronous_commit = on")
