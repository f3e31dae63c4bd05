"""Run the nightly sync and read its figures.

sync(pair)                      one run, exit code 0; the rows of `etl_control` by table
sync_idly(pair)                 one run that may not write a row
assert_tables_equal(pair, ...)  every table that differs is named, not only the first
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from tests.pair import Finished, Pair

Batches = dict[str, dict[str, Any]]


def sync(pair: Pair, *args: str) -> Batches:
    """Run `replicator sync ARGS` and return its batches by table."""
    return {row["table_name"]: row for row in pair.json("sync", *args)["tables"]}


def sync_idly(pair: Pair) -> Batches:
    """Run a sync after which nothing has changed, and prove that it wrote no row."""
    batches = sync(pair)
    written = {table: count_written(row) for table, row in batches.items()}
    assert written, "no table was synced"
    assert not any(written.values()), written
    return batches


def count_written(batch: dict[str, Any]) -> int:
    """Return how many rows of the target a batch touched."""
    return int(batch["rows_inserted"] + batch["rows_updated"] + batch["rows_deleted"])


def assert_tables_equal(pair: Pair, tables: Iterable[str]) -> None:
    """Compare all tables, and fail with every one that differs."""
    differences = []
    for table in tables:
        try:
            pair.assert_equal(table)
        except AssertionError as error:
            differences.append(str(error))
    assert not differences, "\n".join(differences)


def read_types(connection: psycopg.Connection[TupleRow], table: str) -> dict[str, str]:
    """Return the server's spelling of a table's column types, by column."""
    query = (
        "select attname, format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum"
    )
    return dict(connection.execute(query, [table]).fetchall())


def refuse(pair: Pair, exit_code: int, *words: str) -> Finished:
    """Run a sync that must end with `exit_code` and say each of `words`, without a line of a traceback."""
    finished = pair.run("sync", check=exit_code)
    for word in words:
        assert word in finished.stderr, f"{word!r} is not in the message\n{finished}"
    assert "Traceback" not in finished.stderr, finished
    return finished


def read_hint(finished: Finished) -> str:
    """Return what the message tells to do."""
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("  hint: ")]
    return line.removeprefix("  hint: ")
