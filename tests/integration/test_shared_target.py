"""Two pipelines that write one table of the target."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.nightly import read_hint, refuse, sync
from tests.pair import Pair
from tests.streaming import catch_up, expect_refusal

SOURCE = """
    create table t (id int primary key, v text); insert into t select n, 'v' || n from generate_series(1, 5) n;
    create schema other; create table other.t (id int primary key, v text); insert into other.t values (10, 'ten');
    create table other."T ""x" (id int primary key, v text); insert into other."T ""x" values (20, 'twenty')"""


def configure(pair: Pair, pipeline: str, source: str, target: str = "public.t", schema: str = "replicator") -> None:
    pair.write_config(
        pipeline=pipeline,
        tables=[{"name": source, "target": target}],
        target={"control_schema": schema},
        listen={"publication": "replicator_default"},
    )


def begin(pair: Pair) -> None:
    pair.source.execute(SOURCE)
    pair.publish("t", "other.t", 'other."T ""x"')


def read_target(pair: Pair, table: str = "public.t") -> list[tuple[object, ...]]:
    return pair.target.execute(f"select id from {table} order by id").fetchall()


@pytest.mark.versions
@pytest.mark.parametrize("schema", ["replicator", "second"], ids=["one control schema", "two"])
@pytest.mark.parametrize("first", [sync, catch_up], ids=["sync", "listen"])
def test_a_second_pipeline_on_the_same_table_is_refused_by_every_command(
    streamed: Pair, schema: str, first: Callable[[Pair], object]
) -> None:
    """T12: both are named, nothing is written, and `forget` in the first one lets the second go on."""
    begin(streamed)
    configure(streamed, "first", "public.t")
    first(streamed)
    streamed.source.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", [streamed.slot]
    )
    configure(streamed, "second", "other.t", schema=schema)
    (finding,) = [f for f in streamed.json("check", check=4)["findings"] if f["id"] == "target_shared"]
    assert (finding["severity"], finding["table"]) == ("error", "other.t")
    words = ("pipelines second and first", "both write public.t", "first copies public.t there")
    refuse(streamed, 3, *words)
    expect_refusal(streamed.run("resync", "--yes", check=3), *words)
    expect_refusal(streamed.run("listen", "--until-caught-up", check=3), *words)
    assert read_target(streamed) == [(1,), (2,), (3,), (4,), (5,)]
    command = read_hint(streamed.run("sync", check=3)).rpartition(": ")[2].split()
    settings = dict(word.replace("'", "").split("=") for word in command if word.startswith("REPLICATOR_"))
    assert settings.get("REPLICATOR_TARGET__CONTROL_SCHEMA", schema) == "replicator"
    streamed.run("forget", "public.t", "--yes", env=settings)
    streamed.write_config(
        pipeline="second",
        tables=[{"name": "other.t", "target": "public.t", "max_delete_fraction": 1.0}],
        target={"control_schema": schema},
        listen={"publication": "replicator_default"},
    )
    sync(streamed)
    assert read_target(streamed) == [(10,)]
    catch_up(streamed)
    configure(streamed, "first", "public.t")
    refuse(streamed, 3, "pipelines first and second", "other.t")


def test_two_pipelines_that_shared_a_table_before_are_both_refused(streamed: Pair) -> None:
    """T12: as the versions before let it come about; the listener too, with all its tables copied."""
    begin(streamed)
    configure(streamed, "first", "public.t")
    catch_up(streamed)
    configure(streamed, "second", "other.t", "public.u")
    sync(streamed)
    streamed.target.execute("update replicator.table_state set target_name = 'public.t' where pipeline = 'second'")
    configure(streamed, "first", "public.t")
    refuse(streamed, 3, "pipelines first and second")
    expect_refusal(streamed.run("listen", "--until-caught-up", check=3), "pipelines first and second", "public.t")
    streamed.run("forget", "other.t", "--yes", env={"REPLICATOR_PIPELINE": "second"})
    streamed.source.execute("update t set v = 'new'")
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_other_tables_of_the_pipeline_land_and_quoted_names_are_told_apart(pair: Pair) -> None:
    """T12: only the table that is shared fails."""
    begin(pair)
    pair.grant()
    target = 'public."T ""x"'
    configure(pair, "the_first", 'other."T ""x"', target)
    sync(pair)
    pair.write_config(
        pipeline="second",
        tables=[
            {"name": "public.t", "target": target},
            {"name": "other.t", "target": 'public."t ""x"'},
            {"name": 'other."T ""x"', "target": "public.tx"},
        ],
    )
    refuse(pair, 6, "pipelines second and the_first", target)
    assert read_target(pair, target) == [(20,)]
    assert read_target(pair, 'public."t ""x"') == [(10,)]
    assert read_target(pair, "public.tx") == [(20,)]


def test_a_partition_and_its_root_are_one_table(pair: Pair) -> None:
    """T12: a pipeline that writes the root writes its partitions."""
    begin(pair)
    pair.grant()
    pair.as_writer.execute("""
        create table root (id int primary key, v text) partition by range (id);
        create table middle partition of root for values from (0) to (100) partition by range (id);
        create table leaf partition of middle for values from (0) to (100);
        create table beside (id int primary key, v text)
    """)
    configure(pair, "first", "public.t", "public.middle")
    sync(pair)
    for target in ("public.leaf", "public.root"):
        configure(pair, "second", "other.t", target)
        refuse(pair, 3, f"both write {target}", "by way of public.middle")
    configure(pair, "second", "other.t", "public.beside")
    sync(pair)
    assert read_target(pair, "root") == [(1,), (2,), (3,), (4,), (5,)]


def test_a_copy_of_a_control_schema_is_none(pair: Pair) -> None:
    """T12: a source that is itself a target may be copied with the tables of its own control schema."""
    begin(pair)
    pair.grant()
    configure(pair, "first", "public.t")
    sync(pair)
    pair.as_writer.execute("create schema copied; create table copied.table_state as table replicator.table_state")
    pair.run("forget", "public.t", "--yes")
    configure(pair, "second", "public.t")
    sync(pair)
    pair.assert_equal("public.t")
