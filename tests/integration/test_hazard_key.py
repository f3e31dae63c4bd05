"""Rows that leave, come back, change their key, or take each other's unique values; rows touched by hand."""

from __future__ import annotations

import pytest

from tests.conftest import MakePair
from tests.pair import Pair
from tests.strategy_case import BOTH, TABLE, WATERMARK, XMIN, Case


@BOTH
@pytest.mark.hazard("W13")
def test_a_deleted_row_goes(case: Case) -> None:
    case.pair.source.execute("delete from t where id in (1, 2)")
    batch = case.catch_up()
    assert (batch["rows_deleted"], batch["rows_updated"], batch["rows_inserted"]) == (2, 0, 0)


@BOTH
@pytest.mark.hazard("W13")
def test_as_many_inserts_as_deletes_do_not_hide_them(case: Case) -> None:
    """Counts alone would say that nothing was deleted."""
    case.pair.source.execute(
        "delete from t where id <= 5; insert into t select g, 'new' from generate_series(101, 105) g"
    )
    batch = case.catch_up()
    assert (batch["rows_deleted"], batch["rows_inserted"]) == (5, 5)


@BOTH
@pytest.mark.hazard("W13")
def test_a_row_that_is_deleted_and_comes_back_with_an_old_stamp(case: Case) -> None:
    pair = case.pair
    pair.source.execute("delete from t where id = 1; insert into t values (1, 'back', now() - interval '9 days')")
    case.catch_up(missed=1)
    pair.source.execute("delete from t where id = 1")
    case.catch_up()
    pair.source.execute("insert into t values (1, 'back again', now() - interval '9 days')")
    case.catch_up(missed=1)


@BOTH
@pytest.mark.hazard("W13")
def test_deletes_are_marked_where_that_is_asked_and_unmarked_on_return(pair: Pair, strategy: str) -> None:
    pair.source.execute(TABLE)
    case = Case(pair, strategy, deletes="soft")
    case.begin()
    pair.source.execute("delete from t where id <= 2")
    case.sync()
    pair.assert_equal("t", target_where="_deleted_at is null")
    assert pair.target.execute("select id from t where _deleted_at is not null order by 1").fetchall() == [(1,), (2,)]
    pair.source.execute("insert into t values (1, 'back')")
    case.sync()
    pair.assert_equal("t", target_where="_deleted_at is null")
    assert pair.target.execute("select id from t where _deleted_at is not null").fetchall() == [(2,)]


@BOTH
@pytest.mark.hazard("W13")
def test_deletes_are_ignored_where_that_is_asked(pair: Pair, strategy: str) -> None:
    pair.source.execute(TABLE)
    case = Case(pair, strategy, deletes="ignore")
    case.begin()
    pair.source.execute("delete from t where id <= 2; insert into t values (100, 'new')")
    case.sync()
    pair.assert_equal("t", target_where="id > 2")
    assert pair.target.execute("select count(*) from t where id <= 2").fetchall() == [(2,)]


@BOTH
@pytest.mark.hazard("W14")
@pytest.mark.parametrize("stamped", [True, False])
def test_a_key_that_changes_leaves_no_row_behind(case: Case, stamped: bool) -> None:
    pair, stamp = case.pair, ", updated_at = now()" if stamped else ""
    missed = 0 if stamped else 1
    pair.source.execute(f"update t set id = 101{stamp} where id = 1")
    batch = case.catch_up(missed=missed)
    assert (batch["rows_inserted"], batch["rows_deleted"]) == (1, 1)
    pair.source.execute(f"delete from t where id = 3; update t set id = 3{stamp} where id = 2")
    case.catch_up(missed=missed)


@BOTH
@pytest.mark.hazard("W14")
@pytest.mark.parametrize("stamped", [True, False])
def test_keys_that_move_along_a_chain_and_swap(case: Case, stamped: bool) -> None:
    """The set of keys is the same afterwards, and four rows are others than before."""
    pair, stamp = case.pair, ", updated_at = now()" if stamped else ""
    for old, new in ((1, 1000), (2, 1), (1000, 2), (3, 1000), (4, 3), (5, 4), (1000, 5)):
        pair.source.execute(f"update t set id = {new}{stamp} where id = {old}")
    batch = case.catch_up(missed=0 if stamped else 5)
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (0, 5, 0)


@BOTH
@pytest.mark.hazard("W14")
def test_a_key_of_several_columns_one_of_which_changes(pair: Pair, strategy: str) -> None:
    pair.source.execute(
        'create table t (account int, "Name" text, note text, updated_at timestamptz default now(),'
        ' primary key (account, "Name"));'
        "insert into t select g % 3, 'n' || g, 'old', now() - interval '1 day' from generate_series(1, 20) g"
    )
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("""update t set account = 7, updated_at = now() where "Name" = 'n1'""")
    pair.source.execute("""update t set "Name" = 'N2', updated_at = now() where "Name" = 'n2'""")
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_deleted"]) == (2, 2)


@BOTH
@pytest.mark.hazard("W30")
def test_a_row_deleted_by_hand_in_the_target_comes_back(case: Case) -> None:
    pair = case.pair
    pair.target.execute("delete from t where id in (1, 20)")
    batch = case.sync()
    pair.assert_equal("t")
    assert (batch["rows_inserted"], batch["rows_deleted"], batch["rows_missed_before"]) == (2, 0, 2)


@BOTH
@pytest.mark.hazard("W30")
def test_a_row_added_by_hand_in_the_target_goes(case: Case) -> None:
    pair = case.pair
    pair.target.execute("insert into t values (900, 'by hand'), (901, 'by hand')")
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_deleted"]) == (0, 2)


@BOTH
@pytest.mark.hazard("W30")
def test_a_row_edited_by_hand_in_the_target_waits_for_a_full_read(case: Case) -> None:
    """The source has no trace of it, and a sync reads what the source changed: finding it is work for verify."""
    pair = case.pair
    pair.target.execute("update t set note = 'by hand' where id = 1")
    before = case.image()
    case.sync()
    assert case.image() == before
    batch = case.sync("--full")
    assert batch["rows_updated"] == 1
    pair.assert_equal("t")


@pytest.mark.hazard("W30")
def test_a_row_edited_by_hand_in_the_target_of_a_view_is_mended(pair: Pair) -> None:
    """Views are compared by hashes of whole rows in every sync."""
    pair.source.execute(TABLE + "create view v as select * from t")
    case = Case(pair, WATERMARK, "public.v", key=["id"])
    case.begin()
    pair.target.execute("update v set note = 'by hand' where id = 1; delete from v where id = 2")
    pair.target.execute("insert into v values (900, 'by hand')")
    batch = case.catch_up(missed=2)
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 1, 1)


SLUGS = """
create table t (id int primary key, slug text not null unique, note text, updated_at timestamptz default now());
insert into t select g, 's' || g, 'row ' || g, now() - interval '1 day' from generate_series(1, 20) g;
"""

SWAP = """
update t set slug = 'x', updated_at = now() where id = 1;
update t set slug = 's1', updated_at = now() where id = 2;
update t set slug = 's2', updated_at = now() where id = 1;
"""


@BOTH
@pytest.mark.hazard("W31")
def test_unique_values_swapped_between_two_rows(pair: Pair, strategy: str) -> None:
    pair.source.execute(SLUGS)
    case = Case(pair, strategy, indexes="all")
    case.begin()
    pair.target.execute("alter table t add column kept text; update t set kept = 'local ' || id")
    pair.source.execute(SWAP)
    batch = case.catch_up()
    assert batch["rows_updated"] == 2
    kept = pair.target.execute("select kept from t where id in (1, 2) order by id").fetchall()
    assert kept == [("local 1",), ("local 2",)], "a column of the target's own lost its value"


@BOTH
@pytest.mark.hazard("W31")
def test_unique_values_that_go_round_and_over_to_new_and_from_deleted_rows(pair: Pair, strategy: str) -> None:
    pair.source.execute(SLUGS)
    case = Case(pair, strategy, indexes="all")
    case.begin()
    pair.source.execute(
        "delete from t where id in (10, 11);"
        "update t set slug = 's10', updated_at = now() where id = 12;"
        "insert into t values (100, 's11', 'new'), (101, 's12', 'new');"
        "update t set slug = 'x', updated_at = now() where id = 1;"
        "update t set slug = 's1', updated_at = now() where id = 2;"
        "update t set slug = 's2', updated_at = now() where id = 3;"
        "update t set slug = 's3', updated_at = now() where id = 1;"
    )
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (2, 4, 2)


@BOTH
@pytest.mark.hazard("W31")
def test_without_the_replica_role_unique_values_change_hands_too(make_pair: MakePair, strategy: str) -> None:
    """Nothing refers to the table, so a delete ahead of the insert goes no further than the row."""
    pair = make_pair(replica=False)
    pair.source.execute(SLUGS)
    case = Case(pair, strategy, indexes="all")
    case.begin()
    pair.source.execute("delete from t where id = 3; insert into t values (101, 's3', 'new')")
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 0, 1)
    pair.target.execute("alter table t add column kept text; update t set kept = 'local ' || id")
    pair.source.execute(SWAP)
    assert case.catch_up()["rows_updated"] == 2
    assert pair.target.execute("select kept from t where id = 1").fetchall() == [("local 1",)]


@BOTH
@pytest.mark.hazard("W31")
@pytest.mark.parametrize("policy", ["stop", "quarantine"])
def test_places_that_an_exclusion_constraint_guards_change_hands_too(pair: Pair, strategy: str, policy: str) -> None:
    """Two rows trade theirs, one takes over that of a row that goes."""
    guard = "alter table t add exclude using gist (place with &&)"
    pair.source.execute(
        "create table t (id int primary key, place int4range, updated_at timestamptz default now() - interval '1 day');"
        f"insert into t select n, int4range(n * 10, n * 10 + 9) from generate_series(1, 20) n; {guard}"
    )
    case = Case(pair, strategy, on_row_error=policy)
    case.begin()
    pair.target.execute(guard)
    pair.source.execute(
        "begin; update t set place = 'empty' where id = 1;"
        "update t set place = '[20,25)', updated_at = now() where id = 2;"
        "update t set place = '[26,29)', updated_at = now() where id = 1;"
        "update t set place = '[10,19)', updated_at = now() where id = 2; delete from t where id = 3;"
        "insert into t values (101, '[30,31)', now()); commit"
    )
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 2, 1)
    assert batch["rows_quarantined"] == 0


def refer(pair: Pair, action: str = "") -> None:
    """Let a table that is the target's own refer to two rows of `t`."""
    pair.target.execute(
        f"create table child (id int primary key, t int references t {action}); insert into child values (1, 1), (2, 2);"
        f'grant select, insert, update, delete on child to "{pair.writer}"'
    )


@pytest.mark.hazard("W31")
def test_without_the_replica_role_a_vanished_row_gives_its_value_though_others_are_referred_to(
    make_pair: MakePair,
) -> None:
    pair = make_pair(replica=False)
    pair.source.execute(SLUGS)
    case = Case(pair, XMIN, indexes="all")
    case.begin()
    refer(pair)
    pair.source.execute("delete from t where id = 3; insert into t values (101, 's3', 'new')")
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_deleted"]) == (1, 1)


@BOTH
@pytest.mark.hazard("W31")
@pytest.mark.parametrize("action", ["", "on delete cascade"])
def test_without_the_replica_role_a_swap_of_rows_that_others_refer_to_stops(
    make_pair: MakePair, strategy: str, action: str
) -> None:
    """A delete would be refused there, or go on to other rows."""
    pair = make_pair(replica=False)
    pair.source.execute(SLUGS)
    case = Case(pair, strategy, indexes="all")
    case.begin()
    refer(pair, action)
    pair.source.execute(SWAP)
    assert case.stop(1, "target_refused_row")["error_code"] == "23505"
    hint = pair.json("sync", check=1)["errors"]["public.t"]["hint"]
    assert pair.target.execute("select count(*) from child").fetchall() == [(2,)]
    pair.target.execute(hint.encode())
    case.catch_up()
    assert pair.target.execute("select count(*) from child").fetchall() == [(2,)]


def find_index(pair: Pair, column: str) -> str:
    """Return the name of the target's index on a column of t."""
    query = "select indexrelid::regclass::text from pg_index where pg_get_indexdef(indexrelid) like %s"
    ((name,),) = pair.target.execute(query, [f"%({column})"]).fetchall()
    return str(name)


@pytest.mark.hazard("W31")
def test_a_full_read_swaps_unique_values_too(pair: Pair) -> None:
    pair.source.execute(SLUGS)
    case = Case(pair, XMIN, indexes="all")
    case.begin()
    pair.source.execute(SWAP + "delete from t where id = 20; update t set slug = 's20' where id = 19")
    batch = case.sync("--full")
    pair.assert_equal("t")
    assert (batch["load_type"], batch["rows_updated"], batch["rows_deleted"]) == ("full", 3, 1)
