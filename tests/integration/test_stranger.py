"""Bring a schema that the tool has never seen, and ask for nothing but equality.

`stranger/schema.sql` is what somebody's database might hold, `stranger/changes.sql` is what might happen to it in a
day. The oracle is this file's own: both sides' rows as COPY writes them, sorted, compared.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from tests.pair import Pair

FOLDER = Path(__file__).parent / "stranger"
VIEWS: dict[str, list[str]] = {
    "shop.order_summary": ["order_id"],
    "shop.mood_counts": ["mood"],
    "shop.unkeyed_facts": [],
    "shop.keyless": [],
    'shop."View ""of"" {names}, 100%"': ["Id"],
    "shop.constant": ["id"],
    "shop.ancestry": ["id"],
}
ROOTS = """
    select c.oid::regclass::text, n.nspname, c.relname
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where (c.relkind in ('r', 'p') and not c.relispartition or c.oid = any (%s::regclass[]))
      and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and n.nspname <> 'replicator'
    order by n.nspname, c.relname
"""
Names = list[tuple[str, str]]


@pytest.mark.versions
def test_schema_of_a_stranger_equals_after_one_sync_and_stays_so(pair: Pair) -> None:
    seed = int(os.environ.get("REPLICATOR_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed {seed}: REPLICATOR_TEST_SEED={seed} repeats it")
    bring_schema(pair)

    first = sync(pair)
    names = list_tables(pair.source, VIEWS)
    assert len(names) > 400
    assert {row["status"] for row in first} == {"success"}
    assert len(first) == len(names)
    assert_same_rows(pair, names)

    change(pair, seed)
    second = sync(pair)
    names = list_tables(pair.source, VIEWS)
    assert len(second) == len(names)
    assert_same_rows(pair, names)
    assert count_written(second), "the changes reached the source"

    third = sync(pair)
    assert not count_written(third)
    assert_same_rows(pair, names)
    assert_nothing_else_made(pair, names)
    assert pair.json("health") == {"schema": 1, "healthy": True, "state": "healthy", "reasons": []}
    assert len(pair.json("status")["tables"]) == len(names)


def bring_schema(pair: Pair) -> None:
    """Make the schema on the source and let `reader` read it; the target stays empty."""
    pair.source.execute((FOLDER / "schema.sql").read_text(encoding="utf8"))
    pair.grant()
    pair.write_config(tables=["*.*", *({"name": name, "key": key} if key else name for name, key in VIEWS.items())])


def change(pair: Pair, seed: int) -> None:
    """Apply one day's changes and print how many of each kind there were."""
    with pair.source.transaction():
        pair.source.execute("select setseed(%s)", [seed / 10**6])
        pair.source.execute((FOLDER / "changes.sql").read_text(encoding="utf8"))
    for kind, done, refused in pair.source.execute(
        "select kind, sum(done), sum(refused) from change group by kind order by kind"
    ):
        print(f"{kind}: {done} rows, {refused} statements refused")
        assert done > 100
    pair.grant()


def sync(pair: Pair) -> list[dict[str, Any]]:
    """Run `sync` and return its row for each table."""
    finished = pair.run("sync", "--json", check=None, timeout_s=240)
    messages = [line for line in finished.stderr.splitlines() if not line.startswith("{")]
    assert finished.exit_code == 0, "\n".join([f"sync ended with {finished.exit_code}", *messages])
    rows: list[dict[str, Any]] = finished.json()["tables"]
    return rows


def count_written(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many rows a run wrote in each table that it wrote to."""
    written = {row["table_name"]: row["rows_inserted"] + row["rows_updated"] + row["rows_deleted"] for row in rows}
    return {name: count for name, count in written.items() if count}


def list_tables(connection: psycopg.Connection[TupleRow], views: Sequence[str] | dict[str, Any] = ()) -> Names:
    """Return schema and name of every table, partitions left out, and of `views`."""
    return [(schema, name) for _, schema, name in connection.execute(ROOTS, [list(views)])]


def list_columns(connection: psycopg.Connection[TupleRow], table: tuple[str, str]) -> list[str]:
    """Return the names of a table's columns, in their order."""
    query = """
        select attname from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = (select oid from pg_namespace where nspname = %s) and c.relname = %s
          and attnum > 0 and not attisdropped order by attnum
    """
    return [name for (name,) in connection.execute(query, table)]


def read_sorted(
    connection: psycopg.Connection[TupleRow], table: tuple[str, str], columns: Sequence[str]
) -> list[bytes]:
    """Return the rows as COPY writes them, sorted as bytes."""
    query = sql.SQL("copy (select {} from {}) to stdout").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(*table)
    )
    with connection.cursor().copy(query) as copy:
        return sorted(b"".join(copy).split(b"\n")[:-1])


def assert_same_rows(pair: Pair, names: Names) -> None:
    """Compare every table on both sides, and name all that differ."""
    differing = []
    for table in names:
        columns = list_columns(pair.source, table)
        there = list_columns(pair.target, table)
        if not set(columns) <= set(there):
            differing.append(f"{table}: columns {sorted(set(columns) - set(there))} are missing")
            continue
        expected, actual = read_sorted(pair.source, table, columns), read_sorted(pair.target, table, columns)
        if expected != actual:
            first = next((two for two in zip(expected, actual, strict=False) if two[0] != two[1]), None)
            differing.append(
                f"{table}: {len(expected)} rows in the source, {len(actual)} in the target: {first}"[:1000]
            )
    assert not differing, "\n".join(differing)


def assert_nothing_else_made(pair: Pair, names: Names) -> None:
    """Prove that the target holds the tables and no other: no staging table, no view, no function of the tool's."""
    assert list_tables(pair.target) == names
    others = pair.target.execute(
        """
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('v', 'm', 'f', 'S') and n.nspname not in ('pg_catalog', 'information_schema', 'replicator')
        union all
        select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname not in ('pg_catalog', 'information_schema', 'replicator')
        """
    ).fetchall()
    assert not others
