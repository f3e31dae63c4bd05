"""The control schema is replicator's own, also where the source has one."""

from __future__ import annotations

from tests.pair import Pair


def make_source_with_a_control_schema(pair: Pair) -> None:
    pair.source.execute("create schema replicator")
    pair.source.execute("create table replicator.etl_control (id int primary key)")
    pair.source.execute("create table public.etl_control (id int primary key)")
    pair.source.execute("insert into public.etl_control values (1)")
    pair.grant()


def test_a_pattern_passes_over_the_control_schema_of_a_source_that_is_a_target_itself(pair: Pair) -> None:
    """H3: a table called etl_control is a table like any other, but not in the control schema."""
    make_source_with_a_control_schema(pair)
    pair.write_config(tables=[{"name": "*.*"}])
    pair.run("sync")
    pair.assert_equal("public.etl_control")
    assert [row["table_name"] for row in pair.control_rows()] == ["public.etl_control"]


def test_a_table_named_into_the_control_schema_is_refused(pair: Pair) -> None:
    make_source_with_a_control_schema(pair)
    pair.write_config(tables=[{"name": "replicator.etl_control"}])
    refused = pair.run("sync", check=3)
    assert "another target" in refused.stderr
