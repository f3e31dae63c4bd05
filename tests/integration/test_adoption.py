"""A target table that exists before the first sync: it is compared and adopted, not dropped."""

from __future__ import annotations

import pytest

from tests.nightly import read_hint, read_types, refuse, sync, sync_idly
from tests.pair import Pair

ROWS = 5000


def fill_source(pair: Pair) -> None:
    """Make `t` of 5,000 rows in the source."""
    pair.source.execute(f"""
        create table t (
            id int primary key, name varchar(20) not null, n numeric(8,2), at timestamptz default '2024-01-01'
        );
        insert into t select n, 'name ' || n, n / 3.0 from generate_series(1, {ROWS}) as n;
    """)
    pair.grant()
    pair.write_config(tables=["public.t"])


def fill_target(pair: Pair, columns: str, values: str = "n, 'name ' || n, n / 3.0, '2024-01-01'") -> None:
    """Make `t` in the target, as somebody did long ago, with the source's rows."""
    pair.as_writer.execute(f"create table t ({columns})")
    pair.as_writer.execute(f"insert into t select {values} from generate_series(1, {ROWS}) as n")


SAME = "id int primary key, name varchar(20), n numeric(8,2), at timestamptz"


def change_source(pair: Pair) -> None:
    """Change, add and delete rows of the source's `t`."""
    pair.source.execute("""
        update t set name = 'changed' where id <= 10;
        delete from t where id between 100 and 120;
        insert into t (id, name) values (9001, 'new');
    """)


def test_an_equal_table_is_adopted_without_a_write(pair: Pair) -> None:
    fill_source(pair)
    fill_target(pair, SAME)
    oid = pair.target.execute("select 't'::regclass::oid, max(xmin::text) from t").fetchone()
    batch = sync(pair)["public.t"]
    assert (batch["rows_unchanged"], batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (
        ROWS,
        0,
        0,
        0,
    )
    assert pair.target.execute("select 't'::regclass::oid, max(xmin::text) from t").fetchone() == oid
    change_source(pair)
    assert sync(pair)["public.t"]["load_type"] == "incremental"
    pair.assert_equal("public.t")
    sync_idly(pair)


def test_a_stale_table_is_brought_up_to_date_and_its_surplus_rows_are_deleted(pair: Pair) -> None:
    fill_source(pair)
    fill_target(pair, SAME)
    pair.as_writer.execute("""
        update t set name = 'stale' where id between 1 and 50;
        delete from t where id between 60 and 69;
        insert into t select n, 'surplus' from generate_series(9001, 9020) as n;
    """)
    batch = sync(pair)["public.t"]
    assert (batch["rows_updated"], batch["rows_inserted"], batch["rows_deleted"]) == (50, 10, 20)
    pair.assert_equal("public.t")
    sync_idly(pair)


def test_a_table_with_too_many_surplus_rows_is_left_alone_until_somebody_decides(pair: Pair) -> None:
    fill_source(pair)
    fill_target(pair, SAME)
    pair.as_writer.execute("update t set name = 'stale' where id = 1")
    pair.as_writer.execute("insert into t select n, 'surplus' from generate_series(10001, 11500) as n")
    refuse(pair, 8, "public.t", "1500 of 6500", "max_delete_fraction")
    assert pair.target.execute("select count(*), count(*) filter (where name = 'stale') from t").fetchone() == (6500, 1)
    pair.write_config(tables=[{"name": "public.t", "max_delete_fraction": 0.5}])
    sync(pair)
    pair.assert_equal("public.t")


SHAPES = {
    "other order": (
        "at timestamptz, n numeric(8,2), name varchar(20), id int primary key",
        "'2024-01-01', n / 3.0, 'name ' || n, n",
    ),
    "wider types": (
        "id bigint primary key, name text, n numeric, at timestamptz",
        "n, 'name ' || n, (n / 3.0)::numeric(8,2), '2024-01-01'",
    ),
    "extra columns": (
        f"{SAME}, local text default 'mine', rank int generated always as (id * 2) stored",
        "n, 'name ' || n, n / 3.0, '2024-01-01'",
    ),
    "another primary key": (
        f"{SAME.replace('primary key', 'unique not null')}, own bigint generated always as identity primary key",
        "n, 'name ' || n, n / 3.0, '2024-01-01'",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_of_another_shape_is_adopted_as_it_is(pair: Pair, shape: str) -> None:
    fill_source(pair)
    fill_target(pair, *SHAPES[shape])
    before = read_types(pair.target, "public.t")
    assert sync(pair)["public.t"]["rows_unchanged"] == ROWS
    names = ["id", "name", "n", "at"]
    pair.assert_equal("public.t", columns=names)
    change_source(pair)
    sync(pair)
    pair.assert_equal("public.t", columns=names)
    assert read_types(pair.target, "public.t") == before
    sync_idly(pair)


def test_a_table_without_a_unique_index_on_the_key_is_told_which_one_it_needs(pair: Pair) -> None:
    fill_source(pair)
    fill_target(pair, SAME.replace("primary key", "not null"))
    finished = refuse(pair, 8, "public.t", "id")
    pair.as_writer.execute(read_hint(finished))
    assert sync(pair)["public.t"]["rows_unchanged"] == ROWS
    pair.assert_equal("public.t")


def test_a_narrower_column_is_widened_by_evolve_or_told(pair: Pair) -> None:
    fill_source(pair)
    fill_target(pair, SAME.replace("varchar(20)", "varchar(9)").replace("numeric(8,2)", "numeric(7,2)"))
    pair.write_config(tables=[{"name": "public.t", "on_schema_change": "freeze"}])
    refuse(pair, 8, "public.t", "name")
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    assert read_types(pair.target, "public.t")["name"] == "character varying(20)"


def test_an_unlike_column_is_told_and_the_table_left_alone(pair: Pair) -> None:
    fill_source(pair)
    fill_target(pair, SAME.replace("timestamptz", "date"))
    refuse(pair, 8, "public.t", "column at is date")
    assert pair.target.execute("select count(*) from t").fetchone() == (ROWS,)


@pytest.mark.versions
@pytest.mark.parametrize(
    "bounds", ["hash (id)", "range (id)", "list (area)"], ids=["by hash", "by range", "by another column"]
)
def test_a_partitioned_table_is_adopted(pair: Pair, bounds: str) -> None:
    key = "id, area" if "area" in bounds else "id"
    pair.source.execute(f"create table t (id int, area text, v text, primary key ({key}))")
    pair.source.execute(f"insert into t select n, 'area ' || n % 3, 'v' from generate_series(1, {ROWS}) as n")
    pair.grant()
    pair.as_writer.execute(
        f"create table t (v text, area text, id int, local int default 7, primary key ({key})) partition by {bounds}"
    )
    pair.as_writer.execute({
        "hash (id)": "create table t0 partition of t for values with (modulus 2, remainder 0);"
                     "create table t1 partition of t for values with (modulus 2, remainder 1)",
        "range (id)": "create table t0 partition of t for values from (0) to (2000);"
                      "create table t1 partition of t for values from (2000) to (9000)",
        "list (area)": "create table t0 partition of t for values in ('area 0', 'area 1');"
                       "create table t1 partition of t for values in ('area 2')",
    }[bounds])  # fmt: skip
    pair.as_writer.execute("insert into t select 'stale', 'area ' || n % 3, n from generate_series(1, 10) as n")
    columns = ["id", "area", "v"]
    pair.write_config(tables=["public.t"])
    batch = sync(pair)["public.t"]
    assert (batch["rows_inserted"], batch["rows_updated"]) == (ROWS - 10, 10)
    pair.assert_equal("public.t", columns=columns)
    pair.source.execute("""
        update t set v = 'changed' where id <= 10;
        update t set area = 'area 2' where id between 20 and 30;
        update t set id = id + 4000 where id between 1990 and 1999 or id between 2500 and 2510 and id + 4000 > 5000;
        delete from t where id between 100 and 120;
        insert into t values (8500, 'area 1', 'new');
    """)
    batch = sync(pair)["public.t"]
    assert batch["rows_updated"] + batch["rows_inserted"] + batch["rows_deleted"] > 0
    pair.assert_equal("public.t", columns=columns)
    sync_idly(pair)


def test_a_row_that_no_partition_takes_stops_the_table(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); insert into t select generate_series(1, 5)")
    pair.grant()
    pair.as_writer.execute("create table t (id int primary key) partition by range (id)")
    pair.as_writer.execute("create table t0 partition of t for values from (0) to (5)")
    pair.write_config(tables=["public.t"])
    refuse(pair, 1, "public.t", "23514")
    assert pair.target.execute("select count(*) from t").fetchone() == (0,)
    pair.as_writer.execute("create table t1 partition of t default")
    sync(pair)
    pair.assert_equal("public.t")


def test_a_view_or_an_index_in_the_target_s_place_is_told(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.as_writer.execute("create view t as select 1 as id")
    refuse(pair, 3, "public.t", "not a table")
    pair.as_writer.execute("drop view t; create sequence t")
    refuse(pair, 3, "public.t", "not a table")


def test_an_identity_always_beside_the_key_is_told_because_no_update_may_set_it(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, n int); insert into t values (1, 10), (2, 20)")
    pair.grant()
    pair.as_writer.execute("create table t (id int primary key, n int generated always as identity)")
    pair.as_writer.execute("insert into t (id) values (1)")
    pair.write_config(tables=["public.t"])
    finished = refuse(pair, 8, "public.t", "column n", "identity")
    assert pair.target.execute("select id, n from t").fetchall() == [(1, 1)]
    pair.as_writer.execute(read_hint(finished))
    sync(pair)
    pair.assert_equal("public.t")


PLAIN = "id int primary key, n int, twice int"
TWICE = "id int primary key, n int, twice int generated always as (n * 2) stored"
ALWAYS = "id int generated always as identity primary key, n int, twice int"
GENERATED = {
    "on the source": (TWICE, None),
    "on both": (TWICE, TWICE),
    "identity always on the source": (ALWAYS, None),
    "identity always on the target": (PLAIN, ALWAYS),
    "identity always on both": (ALWAYS, ALWAYS),
}


@pytest.mark.versions
@pytest.mark.parametrize("kept", ["stored", "virtual"])
def test_a_column_that_only_the_target_computes_is_told_because_nothing_can_be_written_to_it(
    pair: Pair, kept: str
) -> None:
    if pair.target_server.version < 18 and kept == "virtual":
        pytest.skip("every generated column is stored before 18")
    pair.source.execute(f"create table t ({PLAIN}); insert into t values (1, 1, 7), (2, 2, null)")
    pair.grant()
    pair.as_writer.execute(f"create table t ({TWICE.replace('stored', kept)})")
    pair.write_config(tables=["public.t"])
    assert "generated_target" in [finding["id"] for finding in pair.json("check", check=4)["findings"]]
    assert pair.json("plan", check=8)["tables"][0]["error"]["id"] == "generated_target"
    finished = refuse(pair, 8, "[generated_target]", "column twice")
    pair.as_writer.execute(read_hint(finished))
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


def test_a_column_that_both_sides_computed_is_told_when_the_source_stops(pair: Pair) -> None:
    pair.source.execute(f"create table t ({TWICE}); insert into t (id, n) values (1, 1), (2, 2)")
    pair.grant()
    pair.as_writer.execute(f"create table t ({TWICE})")
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.source.execute("alter table t alter twice drop expression; update t set twice = 7 where id = 1")
    finished = refuse(pair, 8, "[generated_target]", "column twice")
    pair.as_writer.execute(read_hint(finished))
    sync(pair)
    pair.assert_equal("public.t")


def test_a_column_that_the_source_no_longer_computes_is_followed_in_a_table_that_was_made_here(pair: Pair) -> None:
    pair.source.execute(f"create table t ({TWICE}); insert into t (id, n) values (1, 1), (2, 2)")
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.source.execute("alter table t alter twice drop expression; update t set twice = 7 where id = 1")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.parametrize("kind", GENERATED)
def test_generated_columns_and_identities_of_either_side_are_no_obstacle(pair: Pair, kind: str) -> None:
    source, target = GENERATED[kind]
    pair.source.execute(f"create table t ({source})")
    insert = "insert into t (id, n) overriding system value values"
    if source == TWICE:
        pair.source.execute(f"{insert} (1, 1), (2, 2), (3, 3)")
        change = f"update t set n = 20 where id = 2; {insert} (4, 4)"
    else:
        pair.source.execute(f"{insert} (1, 1), (2, 2), (3, 3); update t set twice = n * 2")
        change = f"update t set n = 20, twice = 40 where id = 2; {insert} (4, 4); update t set twice = 8 where id = 4"
    pair.grant()
    if target:
        pair.as_writer.execute(f"create table t ({target})")
        pair.as_writer.execute(f"{insert} (3, 3), (9, 9)")
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    pair.source.execute(f"{change}; delete from t where id = 1")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)
