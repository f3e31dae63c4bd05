"""Rows that become others without a new version: tables, columns, labels and rules that change under them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.pair import Pair
from tests.strategy_case import BOTH, TABLE, WATERMARK, XMIN, Case

PARTITIONED = """
create table t (id int, part int, note text, updated_at timestamptz default now(), primary key (id, part))
    partition by list (part);
create table t_one partition of t for values in (1);
insert into t select g, 1, 'row ' || g, now() - interval '1 day' from generate_series(1, 20) g;
create table t_two (id int, part int not null, note text, updated_at timestamptz default now(), primary key (id, part));
insert into t_two select g, 2, 'old', now() - interval '9 days' from generate_series(1, 10) g;
"""


@BOTH
@pytest.mark.hazard("W20")
def test_a_filled_partition_that_is_attached_and_detached(pair: Pair, strategy: str) -> None:
    pair.source.execute(PARTITIONED)
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("alter table t attach partition t_two for values in (2)")
    batch = case.catch_up(load="full")
    assert batch["rows_inserted"] == 10
    pair.source.execute("update t set part = 2, updated_at = now() where id = 20")
    pair.source.execute("update t set note = 'moved', updated_at = now() where id = 1")
    case.catch_up()
    pair.source.execute("alter table t detach partition t_one")
    batch = case.catch_up(load="full")
    assert batch["rows_deleted"] == 19


@BOTH
@pytest.mark.hazard("W20")
def test_a_filled_partition_below_a_partition(pair: Pair, strategy: str) -> None:
    pair.source.execute(
        PARTITIONED + "create table t_sub (id int, part int not null, note text, updated_at timestamptz default now(),"
        " primary key (id, part)) partition by list (part);"
        "alter table t attach partition t_sub for values in (2, 3)"
    )
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("alter table t_sub attach partition t_two for values in (2)")
    batch = case.catch_up(load="full")
    assert batch["rows_inserted"] == 10


@pytest.mark.hazard("W20")
def test_a_filled_table_that_comes_to_inherit(pair: Pair) -> None:
    """The parent's key knows nothing of its children, so from then on the rows are compared as a multiset."""
    pair.source.execute(TABLE + "create table child as select id + 100 as id, note, updated_at from t")
    case = Case(pair, "auto")
    case.begin()
    pair.source.execute("alter table child alter id set not null; alter table child inherit t")
    batch = case.catch_up(load="full")
    assert (batch["strategy"], batch["rows_inserted"], batch["rows_deleted"]) == ("full", 20, 0)
    pair.source.execute("update child set note = 'silent' where id = 101; delete from child where id = 102")
    case.catch_up(load="full")
    pair.source.execute("alter table child no inherit t")
    case.catch_up(load="full")
    pair.source.execute("insert into t values (200, 'alone again')")
    case.catch_up()


@pytest.mark.hazard("W20")
def test_a_child_with_the_keys_of_its_parent_ends_the_key_that_the_tool_made(pair: Pair) -> None:
    pair.source.execute(TABLE + "create table child as select * from t")
    case = Case(pair, "auto")
    case.begin()
    pair.source.execute("alter table child alter id set not null; alter table child inherit t")
    pair.grant()
    pair.run("sync")
    pair.assert_equal("public.t")


@BOTH
@pytest.mark.hazard("W20")
def test_a_strategy_that_inheritance_makes_impossible_stops(case: Case) -> None:
    case.pair.source.execute("create table child () inherits (t); insert into child values (100, 'hidden')")
    case.pair.grant()
    case.stop(3, "config_invalid")


@BOTH
@pytest.mark.hazard("W21")
@pytest.mark.parametrize("default", ["'same'", "md5(random()::text)"])
def test_a_column_added_with_a_default(case: Case, default: str) -> None:
    """A constant default writes no row, a volatile one rewrites the table."""
    pair = case.pair
    pair.source.execute(f"alter table t add column extra text default {default}")
    batch = case.catch_up(load="full")
    assert batch["rows_updated"] == 20
    pair.source.execute("insert into t values (100, 'new'); update t set extra = 'x', updated_at = now() where id = 1")
    case.catch_up()


@BOTH
@pytest.mark.hazard("W21")
def test_a_column_dropped_and_added_again_under_its_name(case: Case) -> None:
    pair = case.pair
    pair.source.execute("alter table t drop column note; alter table t add column note text default 'again'")
    case.catch_up(load="full")
    pair.source.execute("alter table t drop column note; alter table t add column note text")
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W21")
def test_a_column_added_with_a_default_that_is_changed_later(case: Case) -> None:
    """The old rows keep the first default, and their versions are the same all the while."""
    pair = case.pair
    pair.source.execute("alter table t add column extra int default 1; alter table t alter extra set default 2")
    case.catch_up(load="full")
    pair.source.execute("alter table t alter extra set default 3; insert into t values (100, 'new')")
    case.catch_up()


@BOTH
@pytest.mark.hazard("W22")
@pytest.mark.parametrize("column", ["mood mood", "mood mood[]", "mood good_mood"])
def test_an_enum_value_that_is_renamed(pair: Pair, strategy: str, column: str) -> None:
    value = "array['sad', null]::mood[]" if column.endswith("[]") else "'sad'"
    pair.source.execute(
        "create type mood as enum ('sad', 'ok', 'glad'); create domain good_mood as mood check (value <> 'glad');"
        f"create table t (id int primary key, {column}, updated_at timestamptz default now());"
        f"insert into t select g, {value}, now() - interval '1 day' from generate_series(1, 20) g"
    )
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("alter type mood rename value 'sad' to 'blue'")
    case.catch_up(load="full")
    assert pair.target.execute("select distinct mood::text from t").fetchall() in ([("blue",)], [("{blue,NULL}",)])
    pair.source.execute("alter type mood rename value 'ok' to 'sad'")
    pair.source.execute("alter type mood add value 'new' before 'blue'")
    pair.source.execute("update t set mood = 'sad', updated_at = now() where id = 1" if value == "'sad'" else "select")
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W23")
def test_a_prebuilt_table_that_is_swapped_in_by_rename(case: Case) -> None:
    """Its rows are older than the last read in every respect."""
    pair = case.pair
    pair.source.execute("create table next (like t including all); insert into next select * from t where id <= 15")
    pair.source.execute("update next set note = 'prebuilt' where id <= 3; insert into next values (100, 'prebuilt')")
    case.catch_up()
    case.catch_up()
    pair.grant()
    pair.source.execute("begin; alter table t rename to previous; alter table next rename to t; commit")
    batch = case.catch_up(load="full")
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 3, 5)


@BOTH
@pytest.mark.hazard("W23")
def test_a_table_that_is_dropped_and_created_again(case: Case) -> None:
    pair = case.pair
    pair.source.execute("drop table t")
    case.stop(4, "table_missing")
    pair.source.execute(TABLE + "delete from t where id = 5")
    pair.grant()
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W24")
def test_a_where_that_is_widened_and_narrowed(pair: Pair, strategy: str) -> None:
    pair.source.execute(TABLE)
    case = Case(pair, strategy, where="id <= 10")
    case.begin()
    for condition, written in (("id > 5", 15), ("id % 2 = 0", 9), ("id <> 3 -- but one", 9)):
        case.configure(where=condition)
        batch = case.sync()
        pair.assert_equal("t", where=condition.split("--", maxsplit=1)[0])
        assert batch["load_type"] == "full"
        assert batch["rows_inserted"] + batch["rows_deleted"] == written
    case.configure(where=None)
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W24")
def test_a_row_that_leaves_and_enters_the_where(pair: Pair, strategy: str) -> None:
    pair.source.execute(TABLE)
    case = Case(pair, strategy, where="note not like 'hidden%'")
    case.begin()
    pair.source.execute("update t set note = 'hidden', updated_at = now() where id = 1")
    case.sync()
    pair.assert_equal("t", where="note not like 'hidden%'")
    pair.source.execute("update t set note = 'shown' where id = 1")
    case.sync()
    pair.assert_equal("t")


@BOTH
@pytest.mark.hazard("W24")
def test_a_mask_that_is_set_changed_and_taken_off(pair: Pair, strategy: str) -> None:
    pair.source.execute(TABLE)
    case = Case(pair, strategy)
    case.begin()

    def notes() -> list[str | None]:
        return [note for (note,) in pair.target.execute("select note from t order by id").fetchall()]

    case.configure(mask={"note": "upper(left(note, 1))"})
    assert case.sync()["rows_updated"] == 20
    assert notes() == ["R"] * 20
    case.configure(mask={"note": "null"})
    case.sync()
    assert notes() == [None] * 20
    for key in ("first", "second"):
        (pair.dir / "mask.key").write_text(key)
        case.configure(mask={"note": "hash"}, sections={"privacy": {"mask_key_file": "mask.key"}})
        assert case.sync()["load_type"] == "full"
        assert notes() == [hashlib.sha256(f"{key}row {g}".encode()).hexdigest() for g in range(1, 21)]
    case.configure(mask=None)
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W24")
def test_a_column_that_is_excluded_and_let_in_again(pair: Pair, strategy: str) -> None:
    """What an excluded column held stays until the column comes back."""
    pair.source.execute(TABLE + "alter table t alter note set not null")
    case = Case(pair, strategy)
    case.begin()
    case.configure(exclude=["note"])
    pair.source.execute(
        "update t set note = 'unseen', updated_at = now() where id = 1; insert into t values (100, 'new')"
    )
    case.catch_up(load="full", columns=["id", "updated_at"])
    assert pair.target.execute("select note from t where id in (1, 100) order by id").fetchall() == [
        ("row 1",),
        (None,),
    ]
    case.configure(exclude=None)
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W24")
def test_a_column_that_is_renamed_by_a_rule(pair: Pair, strategy: str) -> None:
    pair.source.execute(TABLE)
    case = Case(pair, strategy)
    case.begin()
    renamed = {"id": "id", "note": "remark", "updated_at": "stamp"}
    case.configure(rename={"note": "remark", "updated_at": "stamp"})
    case.catch_up(load="full", columns=renamed)
    pair.source.execute("update t set note = 'after', updated_at = now() where id = 1; delete from t where id = 2")
    case.catch_up(columns=renamed)
    case.configure(rename=None)
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W24")
def test_cleaning_rules_that_are_switched_on_and_off(pair: Pair, strategy: str) -> None:
    pair.source.execute(
        TABLE + "alter table t add column rate float8 default 'nan'; update t set note = 'NaT' where id = 1"
    )
    case = Case(pair, strategy)
    case.begin()
    case.configure(nan_to_null=True, null_values=["NaT"])
    assert case.sync()["load_type"] == "full"
    query = "select count(rate), count(note) from t"
    assert pair.target.execute(query).fetchall() == [(0, 19)]
    case.configure(nan_to_null=None, null_values=None)
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W24")
def test_another_target_is_filled_from_nothing(case: Case) -> None:
    case.configure(target="raw.other")
    assert case.sync()["load_type"] == "full"
    case.pair.assert_equal("t", "raw.other")


@pytest.mark.hazard("W24")
def test_a_strategy_that_changes_starts_from_a_full_read(pair: Pair) -> None:
    """The position of one strategy says nothing to another."""
    pair.source.execute(TABLE)
    case = Case(pair, XMIN)
    case.begin()
    pair.source.execute("update t set note = 'silent' where id = 1")
    case.configure(strategy=WATERMARK)
    case.catch_up(load="full")
    pair.source.execute("insert into t values (100, 'new')")
    case.catch_up()
    case.configure(strategy=XMIN)
    case.catch_up(load="full")


@pytest.fixture
def far(pair: Pair) -> Iterator[str]:
    """Make table t with a near partition and one in another database of the same server, and yield that one's name."""
    server, reader = pair.source_server, pair.reader
    far = server.create_database()
    server.execute(
        "create table t (id int, part int, note text, updated_at timestamptz default now());"
        "insert into t select g, 2, 'far ' || g, now() - interval '1 day' from generate_series(1, 10) g;"
        f'grant select on t to "{reader}"',
        dbname=far,
    )
    login = f"options (user '{reader}', password '{pair.reader_password}')"
    pair.source.execute(
        "create extension postgres_fdw;"
        "create server far foreign data wrapper postgres_fdw"
        f" options (host '{server.host}', port '{server.port}', dbname '{far}');"
        f'create user mapping for "{reader}" server far {login}; create user mapping for current_user server far {login};'
        "create table t (id int, part int, note text, updated_at timestamptz default now()) partition by list (part);"
        "create table t_near partition of t for values in (1);"
        "insert into t select g, 1, 'near ' || g, now() - interval '1 day' from generate_series(1, 10) g;"
        "create foreign table t_far partition of t for values in (2) server far options (table_name 't')"
    )
    yield far
    server.drop_database(far)


@pytest.mark.hazard("W25")
@pytest.mark.parametrize("strategy", [WATERMARK, "full", "auto"])
def test_changes_in_a_foreign_partition(pair: Pair, far: str, strategy: str) -> None:
    """A foreign row's xmin is 0: nothing that asks for xmin would ever find it."""
    case = Case(pair, strategy, key=["id", "part"])
    case.begin()
    pair.source_server.execute("update t set note = 'silent' where id = 1; delete from t where id = 2", dbname=far)
    pair.source_server.execute("insert into t values (100, 2, 'new')", dbname=far)
    pair.source.execute("update t_near set note = 'silent' where id = 3")
    batch = case.catch_up(missed=2, load="full" if strategy == "full" else "incremental")
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 2, 1)
    assert batch["strategy"] == ("full" if strategy == "full" else WATERMARK)


@pytest.mark.hazard("W25")
def test_xmin_is_refused_once_a_partition_is_foreign(pair: Pair, far: str) -> None:
    pair.source.execute("alter table t detach partition t_far")
    case = Case(pair, XMIN, key=["id", "part"])
    case.begin()
    pair.source.execute("alter table t attach partition t_far for values in (2)")
    case.stop(3, "config_invalid")
    case.configure(strategy="auto", watermark=None)
    case.catch_up(load="full")


VIEW = """
create table team (id int primary key, name text);
insert into team select g, 'team ' || g from generate_series(1, 4) g;
create view v as select t.id, t.note, t.updated_at, team.name from t left join team on team.id = t.id % 5;
"""


@pytest.mark.hazard("W26")
@pytest.mark.parametrize("strategy", [WATERMARK, "full", "auto"])
def test_a_view_whose_joined_table_changed(pair: Pair, strategy: str) -> None:
    pair.source.execute(TABLE + VIEW)
    case = Case(pair, strategy, "public.v", key=["id"])
    case.begin()
    load = "full" if strategy == "full" else "incremental"
    pair.source.execute("update team set name = 'renamed' where id = 1; delete from team where id = 2")
    batch = case.catch_up(missed=8, load=load)
    assert (batch["rows_updated"], batch["strategy"]) == (8, "full" if strategy == "full" else WATERMARK)
    pair.source.execute("delete from t where id = 1; insert into t values (100, 'new')")
    pair.source.execute("update t set note = 'stamped', updated_at = now() where id = 3")
    case.catch_up(load=load)


@pytest.mark.hazard("W26")
def test_a_view_that_is_defined_anew(pair: Pair) -> None:
    pair.source.execute(TABLE + VIEW)
    case = Case(pair, WATERMARK, "public.v", key=["id"])
    case.begin()
    pair.source.execute(
        "create or replace view v as select t.id, t.note, t.updated_at, 'none' as name from t where id > 5"
    )
    case.catch_up(load="full")


@pytest.mark.hazard("W26")
def test_xmin_of_a_view_is_refused(pair: Pair) -> None:
    pair.source.execute(TABLE + VIEW)
    case = Case(pair, "full", "public.v", key=["id"])
    case.begin()
    case.configure(strategy=XMIN)
    case.stop(3, "config_invalid")


@pytest.mark.hazard("W26")
@pytest.mark.parametrize("watermark", ["updated_at", None])
def test_a_materialized_view_that_is_refreshed(pair: Pair, watermark: str | None) -> None:
    pair.source.execute(TABLE + VIEW + "create materialized view m as select * from v; create unique index on m (id)")
    case = Case(pair, "auto", "public.m", key=["id"], watermark=watermark)
    case.begin()
    pair.source.execute("update team set name = 'renamed' where id = 1; delete from t where id = 2")
    batch = case.sync()
    assert (batch["rows_updated"], batch["rows_deleted"]) == (0, 0)
    for way in ("", "concurrently"):
        pair.source.execute(f"update team set name = 'refreshed {way}' where id = 3")
        pair.source.execute(f"refresh materialized view {way} m")
        case.sync()
        pair.assert_equal("m")
