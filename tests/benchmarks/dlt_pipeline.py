"""`conversations` by dlt: rows as dictionaries, merged by key; an argument asks for the rows stamped since then."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import dlt
import psycopg
from psycopg.rows import dict_row

from tests.benchmarks.contender import TABLE

CHUNK_ROWS = 10_000


def read_rows(since: str | None) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of the source in chunks."""
    query = f"select * from {TABLE} where %(since)s::timestamptz is null or updated_at >= %(since)s"
    with (
        psycopg.connect(os.environ["SOURCE_URL"], row_factory=dict_row) as connection,
        connection.cursor("rows") as cursor,
    ):
        cursor.execute(query.encode(), {"since": since})
        while rows := cursor.fetchmany(CHUNK_ROWS):
            yield rows


def main() -> None:
    """Run the pipeline: replace without an argument, merge with one."""
    since = sys.argv[1] if len(sys.argv) > 1 else None
    resource = dlt.resource(
        read_rows(since),
        name=TABLE,
        primary_key="id",
        write_disposition="merge" if since else "replace",
        columns={"labels": {"data_type": "json"}, "attributes": {"data_type": "json"}},
    )
    destination = dlt.destinations.postgres(os.environ["TARGET_URL"])
    dlt.pipeline("bench", destination=destination, dataset_name="public").run(resource)


if __name__ == "__main__":
    main()
