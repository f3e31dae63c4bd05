"""Schemas of the target that do not exist yet."""

from __future__ import annotations

from tests.pair import Pair


def test_tables_that_load_side_by_side_share_a_new_schema(pair: Pair) -> None:
    tables = [f"t{number}" for number in range(8)]
    for table in tables:
        pair.source.execute(f"create table {table} (id int primary key)")
        pair.source.execute(f"insert into {table} select generate_series(1, 5000)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.*", "target": "raw.*"}])
    pair.run("sync", "--jobs", "4")
    for table in tables:
        pair.assert_equal(f"public.{table}", f"raw.{table}")
