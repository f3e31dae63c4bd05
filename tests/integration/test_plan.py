"""`plan` says what the next sync would do, and does none of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg import sql

from tests.conftest import MakePair
from tests.pair import Pair

EVERYTHING = """
select 'schema', nspname::text, null from pg_namespace
union all select c.relkind::text, c.oid::regclass::text, pg_relation_filenode(c.oid)::text
          from pg_class c where c.oid >= 16384
union all select 'type', t.oid::regtype::text, t.typtype::text from pg_type t where t.oid >= 16384
order by 1, 2
"""


def plan(pair: Pair, *, check: int = 0) -> dict[str, dict[str, Any]]:
    """Return the plan's tables by name."""
    return {table["table"]: table for table in pair.json("plan", check=check)["tables"]}


def make_table(pair: Pair, name: str = "t", rows: int = 10) -> None:
    """Make a table with a key on the source, readable."""
    pair.source.execute(f"create table {name} (id int primary key, note text)")
    pair.source.execute(f"insert into {name} select g, 'note ' || g from generate_series(1, {rows}) g")
    pair.grant()


@pytest.mark.versions
def test_a_plan_writes_nothing_before_and_after_the_first_sync(pair: Pair) -> None:
    make_table(pair)
    pair.write_config(tables=["public.t"])
    for _ in range(2):
        source, target = (connection.execute(EVERYTHING).fetchall() for connection in (pair.source, pair.target))
        pair.run("plan")
        pair.run("plan", "--json")
        assert source == pair.source.execute(EVERYTHING).fetchall()
        assert target == pair.target.execute(EVERYTHING).fetchall()
        pair.run("sync")


def test_a_plan_claims_no_table_and_records_no_batch(pair: Pair) -> None:
    make_table(pair)
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    states = pair.target.execute("select * from replicator.table_state").fetchall()
    pair.run("plan")
    assert states == pair.target.execute("select * from replicator.table_state").fetchall()
    assert len(pair.control_rows()) == 1
    assert pair.target.execute("select count(*) from replicator.observation").fetchall() == [(0,)]


@pytest.mark.versions
def test_a_new_table_is_a_full_load_and_its_ddl_is_what_sync_needs(pair: Pair) -> None:
    pair.source.execute("create type mood as enum ('sad', 'glad')")
    pair.source.execute("create table t (id int primary key, feels mood, many mood[], at timestamptz)")
    pair.source.execute("insert into t values (1, 'sad', '{glad}', now())")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "target": "raw.t", "watermark": "at"}])
    table = plan(pair)["public.t"]
    assert (table["load_type"], table["load_reason"], table["creates"]) == ("full", "first run", True)
    assert (table["strategy"], table["guarantee"], table["target"]) == ("xmin", "exact", "raw.t")
    assert (table["estimated_rows"], table["key"], table["watermark"]) == (1, ["id"], "at")
    for ddl in table["ddl"]:
        pair.as_writer.execute(sql.SQL(ddl))
    again = plan(pair)["public.t"]
    assert (again["ddl"], again["creates"]) == ([], False)
    pair.run("sync")
    pair.assert_equal("public.t", "raw.t")


def test_after_a_sync_only_what_changed_is_counted(pair: Pair) -> None:
    make_table(pair, rows=100)
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    assert plan(pair)["public.t"]["estimated_rows"] == 0
    pair.source.execute("update t set note = 'new' where id <= 7")
    table = plan(pair)["public.t"]
    assert (table["load_type"], table["load_reason"], table["estimated_rows"]) == ("incremental", None, 7)
    assert table["ddl"] == []
    pair.run("sync")
    assert pair.control_rows("public.t")[-1]["rows_extracted"] == 7


def test_of_a_big_heap_read_by_xmin_only_the_scan_is_known(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, pad text) with (fillfactor = 10)")
    pair.source.execute("insert into t select g, repeat('x', 700) from generate_series(1, 9000) g")
    pair.source.execute("analyze t")
    pair.grant()
    pair.write_config(tables=["public.t"])
    first = plan(pair)["public.t"]
    assert first["scan_bytes"] > 64 * 1024**2
    assert 8000 < first["estimated_rows"] < 10000
    assert first["estimated_bytes"] > 8000 * 700
    pair.run("sync")
    later = plan(pair)["public.t"]
    assert (later["load_type"], later["estimated_rows"], later["estimated_bytes"]) == ("incremental", None, None)
    assert "not known ahead; scans 7" in pair.run("plan").stdout


def test_the_reason_of_each_strategy_is_told(pair: Pair) -> None:
    pair.source.execute("create table stamped (id int primary key, at timestamptz default now())")
    pair.source.execute("insert into stamped select generate_series(1, 500); create index on stamped (at)")
    pair.source.execute("create view seen as select * from stamped; create table bare (note text)")
    pair.grant()
    pair.write_config(
        tables=[
            {"name": "public.stamped", "watermark": "at", "xmin_scan_limit": "8kB"},
            {"name": "public.seen", "key": ["id"], "watermark": "at", "deletes": "soft"},
            "public.bare",
        ]
    )
    tables = plan(pair)
    assert [tables[f"public.{name}"]["strategy"] for name in ("stamped", "seen", "bare")] == [
        "watermark",
        "watermark",
        "full",
    ]
    assert "xmin_scan_limit" in tables["public.stamped"]["strategy_reason"]
    assert "view" in tables["public.seen"]["strategy_reason"]
    assert "no usable key" in tables["public.bare"]["strategy_reason"]
    assert tables["public.seen"]["deletes"] == "soft"
    assert tables["public.seen"]["scan_bytes"] is None
    pair.run("sync")
    later = plan(pair)
    assert later["public.seen"]["audit"] is True
    assert later["public.bare"]["load_type"] == "full"


def test_a_changed_source_shows_the_ddl_that_follows_it(pair: Pair) -> None:
    make_table(pair)
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.source.execute("alter table t add column more bigint; alter table t rename column note to remark")
    table = plan(pair)["public.t"]
    assert table["load_type"] == "full"
    assert len(table["ddl"]) == 2
    pair.run("sync")
    pair.assert_equal("public.t")
    assert plan(pair)["public.t"]["ddl"] == []


def test_a_target_that_was_dropped_is_loaded_in_full(pair: Pair) -> None:
    make_table(pair)
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.target.execute("drop table t")
    table = plan(pair)["public.t"]
    assert (table["load_type"], table["creates"]) == ("full", True)
    assert "not there" in table["load_reason"]


def test_a_narrowed_column_stops_only_its_table(pair: Pair) -> None:
    make_table(pair)
    make_table(pair, "u")
    pair.write_config(tables=["public.t", "public.u"])
    pair.run("sync")
    pair.source.execute("alter table t alter column note type int using id")
    tables = plan(pair, check=6)
    assert tables["public.t"]["error"]["id"] == "schema_drift"
    assert tables["public.u"]["error"] is None
    text = pair.run("plan", check=6).stdout
    assert "error [schema_drift]" in text
    assert "hint: replicator resync 'public.t' --yes" in text


@pytest.mark.parametrize(
    ("tables", "exit_code", "error"),
    [
        (["public.nothing_here"], 4, "table_missing"),
        (["public.t", "public.nothing_here"], 6, "table_missing"),
        (["public.closed"], 4, "grant_missing"),
        ([{"name": "public.t", "exclude": ["no_such"]}], 3, "config_invalid"),
        ([{"name": "public.t", "mask": {"note": "hash"}}], 3, "mask_key_missing"),
        ([{"name": "public.t", "strategy": "watermark"}], 3, "config_invalid"),
        (["public.guarded"], 8, "row_security"),
    ],
)
def test_the_exit_code_is_the_one_that_sync_would_end_with(
    pair: Pair, tables: list[Any], exit_code: int, error: str
) -> None:
    make_table(pair)
    pair.source.execute("create table guarded (id int primary key); alter table guarded enable row level security")
    pair.grant()
    pair.source.execute("create table closed (id int primary key)")
    pair.write_config(tables=tables)
    errors = [table["error"]["id"] for table in plan(pair, check=exit_code).values() if table["error"]]
    assert errors == [error]
    pair.run("sync", check=exit_code)


def test_a_missing_right_comes_with_the_grant_that_mends_it(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.source.execute('create schema "Odd one"; create table "Odd one"."T" (id int primary key)')
    pair.target.execute("create schema kept; create table kept.t (id int primary key)")
    pair.write_config(tables=[{"name": '"Odd one"."T"', "target": "kept.t"}])
    table = plan(pair, check=4)['"Odd one"."T"']
    pair.source.execute(sql.SQL(table["error"]["hint"]))
    table = plan(pair, check=4)['"Odd one"."T"']
    pair.target.execute(sql.SQL(table["error"]["hint"]))
    assert plan(pair)['"Odd one"."T"']["error"] is None
    pair.run("sync")


def test_a_hostile_name_is_quoted_and_moves_no_cursor(pair: Pair) -> None:
    name = '"x""; drop table t; --\x1b[2J%s"'
    pair.source.execute(sql.SQL(f'create table {name} (id int primary key, "a;b" text)'))
    pair.grant()
    pair.write_config()
    text = pair.run("plan").stdout
    assert "\x1b" not in text
    for table in plan(pair).values():
        for ddl in table["ddl"]:
            pair.as_writer.execute(sql.SQL(ddl))
    pair.run("sync")


def test_without_a_server_the_plan_ends_as_every_command_does(pair: Pair) -> None:
    make_table(pair)
    for side, dsn in (
        ("source", pair.dsn_of_source(password="wrong")),
        ("target", pair.dsn_of_target(dbname="no_such")),
    ):
        pair.write_config(f"{side}.dsn = {json.dumps(dsn)}", tables=["public.t"])
        assert "no_connection" in pair.run("plan", check=4).stderr
        assert pair.run("plan", "--json", check=4).json()["error"]["id"] == "no_connection"
    pair.write_config("unknown_key = 1")
    pair.run("plan", check=3)


def test_no_table_selected_is_no_error(pair: Pair) -> None:
    pair.write_config(tables=["nowhere.*"])
    assert plan(pair) == {}
    assert "no table" in pair.run("plan").stdout
