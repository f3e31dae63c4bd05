"""Stops before something is lost that should not be: exit code, id and record, and a target that nobody touched."""

from __future__ import annotations

import pytest
from psycopg.conninfo import make_conninfo

from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.strategy_case import BOTH, TABLE, WATERMARK, XMIN, Case

MANY = """
create table t (id int primary key, note text, updated_at timestamptz default now());
insert into t select g, 'row ' || g, now() - interval '1 day' from generate_series(1, 3000) g;
"""


@BOTH
@pytest.mark.hazard("W28")
def test_row_security_that_is_switched_on_overnight(case: Case) -> None:
    """The hidden rows would look deleted."""
    pair = case.pair
    pair.source.execute("insert into t values (100, 'new'); alter table t enable row level security")
    batch = case.stop(8, "row_security")
    assert "row security" in batch["error_message"]
    pair.source.execute(f'create policy a_few on t for select to "{pair.reader}" using (id <= 5)')
    case.stop(8, "row_security")
    case.stop(8, "row_security", "--full")
    case.configure(max_delete_fraction=1.0).stop(8, "row_security")
    pair.source.execute("alter table t disable row level security")
    case.catch_up()


@pytest.mark.hazard("W28")
@pytest.mark.parametrize("invoker", [True, False])
def test_row_security_below_a_view(pair: Pair, invoker: bool) -> None:
    """A view asks with its owner's rights, unless it asks with the reader's."""
    options = "with (security_invoker = true)" if invoker else ""
    pair.source.execute(TABLE + f"create view v {options} as select * from t")
    case = Case(pair, WATERMARK, "public.v", key=["id"])
    case.begin()
    pair.source.execute("alter table t enable row level security; insert into t values (100, 'new')")
    if invoker:
        case.stop(8, "row_security")
    else:
        case.catch_up()


@pytest.mark.hazard("W28")
def test_row_security_from_the_first_night(pair: Pair) -> None:
    pair.source.execute(TABLE + "alter table t enable row level security")
    pair.grant()
    Case(pair, XMIN)
    document = pair.json("sync", check=8)
    assert document["errors"]["public.t"]["id"] == "row_security"
    assert pair.target.execute("select to_regclass('public.t')").fetchall() == [(None,)]


@BOTH
@pytest.mark.hazard("W29")
@pytest.mark.parametrize("empty", ["delete from t", "truncate t"])
def test_an_emptied_source_does_not_empty_the_target(case: Case, empty: str) -> None:
    """However few rows there are; only max_delete_fraction = 1.0 says that it is meant."""
    pair = case.pair
    pair.source.execute(empty)
    batch = case.stop(8, "source_empty")
    assert "empty" in batch["error_message"]
    case.stop(8, "source_empty", "--full")
    case.configure(max_delete_fraction=0.99).stop(8, "source_empty")
    batch = case.configure(max_delete_fraction=1.0).sync()
    assert batch["rows_deleted"] == 20
    pair.assert_equal("t")


@pytest.mark.hazard("W29")
@pytest.mark.parametrize("relation", ["v", "k"])
def test_an_emptied_view_or_keyless_table_does_not_empty_the_target(pair: Pair, relation: str) -> None:
    pair.source.execute(TABLE + "create view v as select * from t; create table k as select * from t")
    case = Case(pair, "auto", f"public.{relation}", key=["id"] if relation == "v" else None)
    case.begin()
    pair.source.execute("delete from t; delete from k")
    case.stop(8, "source_empty")
    batch = case.configure(max_delete_fraction=1.0).sync()
    assert batch["rows_deleted"] == 20
    pair.assert_equal(relation)


@BOTH
@pytest.mark.hazard("W29")
def test_more_deletes_than_the_fraction_and_a_thousand_stop(pair: Pair, strategy: str) -> None:
    pair.source.execute(MANY)
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("delete from t where id <= 1000; insert into t values (5000, 'new')")
    assert case.catch_up()["rows_deleted"] == 1000
    pair.source.execute("delete from t where id between 1001 and 2001; insert into t values (5001, 'new')")
    pair.source.execute("update t set note = 'changed', updated_at = now() where id = 3000")
    batch = case.stop(8, "too_many_deletes")
    assert batch["error_message"].startswith("1001 of ")
    case.configure(max_delete_fraction=0.5).stop(8, "too_many_deletes")
    assert case.configure(max_delete_fraction=0.501).sync()["rows_deleted"] == 1001
    pair.assert_equal("t")


@BOTH
@pytest.mark.hazard("W29")
def test_every_delete_goes_through_where_the_stop_is_switched_off(pair: Pair, strategy: str) -> None:
    pair.source.execute(MANY)
    case = Case(pair, strategy, max_delete_fraction=1.0)
    case.begin()
    pair.source.execute("delete from t where id < 3000")
    assert case.catch_up()["rows_deleted"] == 2999


@BOTH
@pytest.mark.hazard("W29")
@pytest.mark.parametrize("deletes", ["soft", "hard"])
def test_a_full_read_stops_at_the_same_number_of_deletes(pair: Pair, strategy: str, deletes: str) -> None:
    pair.source.execute(MANY)
    case = Case(pair, strategy, deletes=deletes)
    case.begin()
    pair.source.execute("delete from t where id <= 1001")
    case.stop(8, "too_many_deletes", "--full")
    case.stop(8, "too_many_deletes")


@BOTH
@pytest.mark.hazard("W29")
def test_a_new_key_of_every_row_is_more_deletes_than_allowed(pair: Pair, strategy: str) -> None:
    """As many rows as before, and none of them is the same."""
    pair.source.execute(MANY)
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("update t set id = id + 10000, updated_at = now()")
    case.stop(8, "too_many_deletes")


@pytest.mark.hazard("W29")
@pytest.mark.parametrize("change", ["update t set note = 'changed'", "alter table t add extra int default 7"])
def test_changed_rows_of_a_keyless_table_are_no_deletes(pair: Pair, change: str) -> None:
    """There a changed row is one that goes and one that comes: the stop looks at how many fewer there are."""
    pair.source.execute(MANY.replace("primary key", ""))
    case = Case(pair, "auto")
    case.begin()
    pair.source.execute(f"{change}; delete from t where id <= 1000")
    case.sync()
    pair.assert_equal("t")
    pair.source.execute("delete from t where id <= 2001; update t set note = 'again'")
    batch = case.stop(8, "too_many_deletes")
    assert batch["error_message"].startswith("1001 of 2000 ")


@BOTH
@pytest.mark.hazard("W29")
def test_a_wrong_source_that_is_much_larger_stops_too(pair: Pair, strategy: str) -> None:
    """What would go is measured against what was here, not against what would be here afterwards."""
    pair.source.execute(MANY)
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("delete from t; insert into t select g, 'other' from generate_series(100001, 140000) g")
    case.stop(8, "too_many_deletes")
    case.stop(8, "too_many_deletes", "--full")


@BOTH
@pytest.mark.hazard("W29")
def test_a_where_that_hides_too_many_rows_stops(pair: Pair, strategy: str) -> None:
    pair.source.execute(MANY)
    case = Case(pair, strategy)
    case.begin()
    case.configure(where="id > 1001").stop(8, "too_many_deletes")


@BOTH
@pytest.mark.hazard("W29")
def test_another_cluster_stops_until_a_full_sync_accepts_it(
    make_cluster: MakeCluster, make_pair: MakePair, strategy: str
) -> None:
    """The same tables and the same rows, but xids and clocks of another life."""
    pair = make_pair()
    other = make_pair(source_server=make_cluster())
    for source in (pair.source, other.source):
        source.execute(TABLE)
    case = Case(pair, strategy)
    case.begin()
    other.source.execute("insert into t values (100, 'other'); delete from t where id = 1")
    other.grant()
    case.configure(sections={"source": {"dsn": other.source_dsn}})
    case.stop(8, "source_changed")
    batch = case.sync("--full")
    assert (batch["load_type"], batch["rows_inserted"], batch["rows_deleted"]) == ("full", 1, 1)
    other.source.execute("insert into t values (101, 'other')")
    case.sync()
    compare(other, pair)
    case.configure()
    case.stop(8, "source_changed")


@pytest.mark.hazard("W29")
def test_another_cluster_brings_no_table_that_was_not_there_before(
    make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    pair = make_pair()
    other = make_pair(source_server=make_cluster())
    pair.source.execute(TABLE)
    pair.grant()
    pair.write_config(tables=["public.*"])
    pair.run("sync", check=0)
    other.source.execute("create table stranger (id int primary key); insert into stranger values (1)")
    other.grant()
    pair.write_config(tables=["public.*"], source={"dsn": other.source_dsn})
    assert "another database cluster" in pair.run("plan", check=None).stdout
    assert "another database cluster" in pair.run("sync", check=8).stderr
    assert pair.target.execute("select to_regclass('public.stranger')").fetchall() == [(None,)]
    pair.run("sync", "--full", check=0)
    assert pair.target.execute("select * from stranger").fetchall() == [(1,)]


def compare(source: Pair, target: Pair) -> None:
    """Prove that one pair's target holds the rows of another pair's source."""
    query = "select t::text from t order by id"
    assert source.source.execute(query).fetchall() == target.target.execute(query).fetchall()


@pytest.mark.hazard("W29")
def test_an_empty_database_of_another_cluster_stops_even_a_full_sync(
    make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    pair = make_pair()
    other = make_pair(source_server=make_cluster())
    pair.source.execute(TABLE)
    other.source.execute(TABLE + "truncate t")
    other.grant()
    case = Case(pair, XMIN)
    case.begin()
    case.configure(sections={"source": {"dsn": other.source_dsn}})
    case.stop(8, "source_changed")
    case.stop(8, "source_empty", "--full")


@BOTH
@pytest.mark.hazard("W29")
def test_another_database_of_the_same_cluster(case: Case) -> None:
    """Without the table it is missing, with an empty one the target stays as it is."""
    pair = case.pair
    other = pair.source_server.create_database()
    try:
        case.configure(sections={"source": {"dsn": make_conninfo(pair.source_dsn, dbname=other)}})
        case.stop(4, "table_missing")
        with pair.source_server.connect(other) as connection:
            connection.execute(TABLE + f'delete from t; grant select on t to "{pair.reader}"')
        case.stop(8, "source_empty")
    finally:
        pair.source_server.drop_database(other)
    case.configure()
    case.catch_up()


@BOTH
@pytest.mark.hazard("W29")
def test_a_database_that_is_put_back_from_a_copy_in_its_own_cluster_is_read_whole(case: Case) -> None:
    """The copy has the cluster, the name, the tables' OIDs and the files' numbers of the one that is gone."""
    pair = case.pair
    name, copy = pair.source_db, f"{pair.source_db}_copy"
    pair.source.close()
    pair.source_server.execute(f'create database "{copy}" template "{name}"')
    pair.source = pair.source_server.connect(name)
    pair.source.execute("update t set note = 'lost again', updated_at = now() where id <= 5")
    case.catch_up()
    pair.source.close()
    pair.source_server.execute(f'drop database "{name}" with (force)')
    pair.source_server.execute(f'alter database "{copy}" rename to "{name}"')
    pair.source = pair.source_server.connect(name)
    batch = case.sync()
    assert (batch["load_type"], batch["rows_updated"]) == ("full", 5)
    pair.assert_equal("t")


def test_a_stop_of_one_table_does_not_keep_the_others_from_landing(pair: Pair) -> None:
    pair.source.execute(TABLE + "create table u as select * from t; alter table u add primary key (id)")
    pair.grant()
    pair.write_config(tables=["public.t", "public.u"])
    pair.run("sync")
    pair.source.execute("delete from t; insert into u values (100, 'new')")
    document = pair.json("sync", check=6)
    assert document["status"] == "partial"
    assert {row["table_name"]: row["status"] for row in document["tables"]} == {
        "public.t": "failed",
        "public.u": "success",
    }
    assert {table: error["id"] for table, error in document["errors"].items()} == {"public.t": "source_empty"}
    pair.assert_equal("u")
    assert pair.target.execute("select count(*) from t").fetchall() == [(20,)]


@BOTH
def test_a_stop_says_what_why_and_what_mends_it(case: Case) -> None:
    case.pair.source.execute("delete from t")
    finished = case.pair.run("sync", check=8)
    for words in ("error [source_empty]: public.t is empty in the source", "  why:  ", "max_delete_fraction = 1.0"):
        assert words in finished.stderr, finished


@BOTH
@pytest.mark.hazard("W29")
@pytest.mark.parametrize("args", [(), ("--full",)], ids=["incremental", "full"])
def test_one_run_may_delete_as_many_rows_as_it_is_told_and_no_more(
    pair: Pair, strategy: str, args: tuple[str, ...]
) -> None:
    pair.source.execute(MANY)
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("delete from t where id <= 1500")
    case.stop(8, "too_many_deletes", *args)
    case.stop(8, "too_many_deletes", "public.t", "--allow-deletes", "1499", *args)
    stopped = pair.run("sync", "--allow-deletes", "1499", *args, check=8)
    assert "--allow-deletes 1499 does not cover them" in stopped.stderr
    assert "replicator sync public.t --allow-deletes 1500" in stopped.stderr
    pair.run("sync", "public.t", "--allow-deletes", "1500", *args)
    pair.assert_equal("t")
    pair.source.execute("delete from t where id <= 2900")
    case.stop(8, "too_many_deletes", *args)


@BOTH
@pytest.mark.hazard("W29")
def test_an_emptied_source_empties_the_target_only_when_the_number_covers_all_of_it(pair: Pair, strategy: str) -> None:
    pair.source.execute(MANY)
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("delete from t")
    case.stop(8, "source_empty", "--allow-deletes", "2999")
    assert "--allow-deletes 3000" in pair.run("sync", check=8).stderr
    pair.run("sync", "--allow-deletes", "3000")
    pair.assert_equal("t")


def test_a_table_without_a_key_may_lose_as_many_rows_as_the_run_is_told(pair: Pair) -> None:
    """W29"""
    pair.source.execute("create table t (note text); insert into t select 'row ' || g from generate_series(1, 3000) g")
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.source.execute("delete from t where ctid < '(12,0)'")
    gone = 3000 - pair.source.execute("select count(*) from t").fetchall()[0][0]
    assert 1000 < gone < 3000
    pair.run("sync", "--allow-deletes", str(gone - 1), check=8)
    pair.run("sync", "--allow-deletes", str(gone))
    pair.assert_equal("t")
