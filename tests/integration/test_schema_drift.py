"""What a sync does when the source's columns, key, types or tables are not what they were the night before."""

from __future__ import annotations

import pytest
from psycopg import sql

from tests.nightly import assert_tables_equal, read_hint, read_types, refuse, sync, sync_idly
from tests.pair import Pair


def start(pair: Pair, policy: str = "evolve", columns: str = "id int primary key, v int, note text") -> None:
    """Fill `t` with five rows and sync it once."""
    pair.source.execute(f"create table t ({columns})")
    pair.source.execute("insert into t (id, v, note) select n, n * 10, 'note ' || n from generate_series(1, 5) as n")
    pair.grant()
    pair.write_config(defaults={"on_schema_change": policy}, tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")


def read_target(pair: Pair) -> tuple[dict[str, str], list[tuple[object, ...]]]:
    """Return types and rows of the target's `t`."""
    return read_types(pair.target, "public.t"), pair.target.execute("select * from t order by id").fetchall()


# ------------------------------------------------------------------------------------------------ evolve

FOLLOWED = {
    "added": "alter table t add extra int",
    "added with a default": "alter table t add extra text not null default 'old rows show this'",
    "added and filled": "alter table t add extra int; update t set extra = 7 where id = 3",
    "added twice": "alter table t add a int default 1, add b int[] default '{1,2}'",
    "renamed": "alter table t rename v to w",
    "renamed and changed": "alter table t rename v to w; update t set w = -w",
    "renamed onto an older name": "alter table t rename note to old_note; alter table t rename v to note",
    "swapped": "alter table t rename v to x; alter table t rename note to v; alter table t rename x to note",
    "dropped and added again": "alter table t drop v; alter table t add v int not null default 3",
    "dropped and added wider": "alter table t drop v; alter table t add v bigint default 5000000000",
    "widened": "alter table t alter v type bigint; update t set v = 5000000000 where id = 1",
    "widened to numeric": "alter table t alter v type numeric; update t set v = 1.50 where id = 1",
    "widened to text": "alter table t alter v type text using 'no. ' || v",
    "moved": "alter table t add w int; update t set w = v; alter table t drop v",
}


@pytest.mark.parametrize("change", FOLLOWED.values(), ids=FOLLOWED)
def test_evolve_follows_columns(pair: Pair, change: str) -> None:
    start(pair)
    pair.source.execute(change)
    pair.source.execute("insert into t (id) select 6" if "v" not in change else "delete from t where id = 5")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


WIDENINGS = [
    ("smallint", "integer", "32767", "2147483647"),
    ("smallint", "numeric(5)", "-32768", "-99999"),
    ("integer", "numeric(12,2)", "2147483647", "9999999999.99"),
    ("bigint", "numeric", "9223372036854775807", "1e30"),
    ("real", "double precision", "0.1", "0.30000000000000004"),
    ("varchar(3)", "varchar(5)", "'abc'", "'abcde'"),
    ("varchar(3)", "varchar", "'abc'", "repeat('x', 100)"),
    ("varchar(3)", "text", "'abc'", "repeat('x', 100)"),
    ("numeric(5,2)", "numeric(7,3)", "999.99", "9999.999"),
    ("numeric(5,2)", "numeric", "1.50", "1.5001"),
    ("timestamp(0)", "timestamp", "'2024-01-01 00:00:01'", "'2024-01-01 00:00:00.000001'"),
    ("timestamptz(3)", "timestamptz(6)", "'2024-01-01 00:00:00.001+00'", "'2024-01-01 00:00:00.000001+00'"),
    ("time(0)", "time(6)", "'00:00:01'", "'00:00:00.000001'"),
    ("bit varying(2)", "bit varying(4)", "'01'", "'0101'"),
    ("int[]", "bigint[]", "'{1,NULL}'", "'{5000000000}'"),
    ("date", "text", "'2024-02-29'", "'tomorrow'"),
    ("uuid", "text", "'00000000-0000-0000-0000-000000000001'", "'x'"),
    ("boolean", "text", "true", "'maybe'"),
]


def test_evolve_follows_every_widening(pair: Pair) -> None:
    for n, (old, _, value, _) in enumerate(WIDENINGS):
        pair.source.execute(
            f"create table t{n} (id int primary key, v {old}); insert into t{n} values (1, {value}), (2, null)"
        )
    pair.grant()
    pair.write_config(tables=["public.*"])
    sync(pair)
    for n, (_, new, _, value) in enumerate(WIDENINGS):
        pair.source.execute(f"alter table t{n} alter v type {new} using v::{new}; insert into t{n} values (3, {value})")
    sync(pair)
    assert_tables_equal(pair, [f"public.t{n}" for n in range(len(WIDENINGS))])
    for n in range(len(WIDENINGS)):
        assert read_types(pair.target, f"t{n}") == read_types(pair.source, f"t{n}")
    sync_idly(pair)


def test_a_dropped_column_stays_and_no_longer_asks_for_a_value(pair: Pair) -> None:
    """The tool makes no column NOT NULL but the key; a table that was adopted may have any."""
    pair.as_writer.execute("create table t (id int primary key, v int not null, note text not null)")
    start(pair)
    pair.source.execute("alter table t drop v; alter table t drop note; insert into t values (6)")
    sync(pair)
    pair.assert_equal("public.t")
    kept = pair.target.execute("select v, note from t where id in (1, 6) order by id").fetchall()
    assert kept == [(10, "note 1"), (None, None)]
    sync_idly(pair)


@pytest.mark.versions
def test_a_virtual_column_is_read_again_when_its_expression_changes(pair: Pair) -> None:
    """Before 18 a generated column is stored, and the change rewrites the table; now not one row knows of it."""
    newest = pair.source_server.version >= 18
    pair.source.execute(
        f"create table t (id int primary key, v int generated always as (id * 2) {'virtual' if newest else 'stored'})"
    )
    pair.source.execute("insert into t (id) select generate_series(1, 5)")
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    if newest:
        pair.source.execute("alter table t alter v set expression as (id * 3)")
    else:
        pair.source.execute("alter table t drop v; alter table t add v int generated always as (id * 3) stored")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


# The new type's values are not all the old one's too, or are written otherwise.
INCOMPARABLE = {"numeric scale", "zone taken away"}
NARROWINGS = {
    "bigint to integer": ("bigint", "integer"),
    "text to varchar": ("text", "varchar(40)"),
    "numeric scale": ("numeric(12,2)", "numeric(12,1)"),
    "numeric digits": ("numeric", "numeric(9,0)"),
    "timestamptz precision": ("timestamptz", "timestamptz(0)"),
    "text to integer": ("text", "integer"),
    "double to real": ("double precision", "real"),
    "zone taken away": ("timestamptz", "timestamp"),
}


@pytest.mark.parametrize("kind", NARROWINGS)
@pytest.mark.parametrize("policy", ["evolve", "ignore"])
def test_a_narrowed_column_needs_a_decision_and_resync_makes_it_anew(pair: Pair, kind: str, policy: str) -> None:
    old, new = NARROWINGS[kind]
    value = "'2024-01-01 12:00+00'" if "timestamp" in old else "'12'"
    pair.source.execute(f"create table t (id int primary key, v {old}); insert into t values (1, {value}), (2, null)")
    pair.grant()
    pair.write_config(defaults={"on_schema_change": policy}, tables=["public.t"])
    sync(pair)
    before = read_target(pair)
    pair.source.execute(f"alter table t alter v type {new} using v::{new}; insert into t values (3, {value})")
    if policy == "ignore" and kind not in INCOMPARABLE:
        sync(pair)
        pair.assert_equal("public.t")
        assert read_types(pair.target, "public.t") == before[0]
        return
    finished = refuse(pair, 8, "public.t", "column v", "hint")
    assert read_target(pair) == before
    assert pair.control_rows("public.t")[-1]["error_code"] == "schema_drift"
    assert read_hint(finished) == "replicator resync 'public.t' --yes"
    pair.run("resync", "public.t", "--yes")
    pair.assert_equal("public.t")
    assert read_types(pair.target, "public.t") == read_types(pair.source, "public.t")
    sync_idly(pair)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("macaddr", "inet", "'08:00:2b:01:02:03'"),
        ("boolean", "smallint", "null"),
        ("timestamptz", "date", "'2024-01-01 12:00+00'"),
    ],
)
def test_a_type_that_is_another_one_is_not_called_narrowed(pair: Pair, old: str, new: str, value: str) -> None:
    pair.source.execute(f"create table t (id int primary key, v {old}); insert into t values (1, {value})")
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.source.execute(f"alter table t alter v type {new} using null")
    finished = refuse(pair, 8, "[schema_drift]", "column v")
    assert "narrowed" not in finished.stderr
    pair.run("resync", "public.t", "--yes")
    pair.assert_equal("public.t")


@pytest.mark.parametrize("local", [False, True], ids=["bare", "with a column of its own"])
@pytest.mark.parametrize(("kind", "using"), [("text", "v::text"), ("smallint", "v")], ids=["other type", "narrowed"])
def test_a_key_column_of_another_type_is_made_anew_by_a_resync(pair: Pair, local: bool, kind: str, using: str) -> None:
    """A view of the target's own is named, for nobody else knows how to make it again."""
    pair.source.execute("create table t (v int primary key, n int not null default 0); insert into t values (1), (2)")
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    if local:
        pair.target.execute("alter table t add column mine int default 5")
    pair.source.execute(
        f"alter table t alter n drop default, alter n type text using n, alter v type {kind} using {using}"
    )
    if local:
        hint = read_hint(pair.run("resync", "public.t", "--yes", check=8))
        pair.as_writer.execute(hint.encode())
    pair.target.execute("create view w as select n from t")
    assert "drop view" in pair.run("resync", "public.t", "--yes", check=8).stderr
    pair.target.execute("drop view w")
    pair.run("resync", "public.t", "--yes")
    assert not local or pair.target.execute("select count(mine) from t").fetchone() == (2,)
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.parametrize(
    "change",
    [
        "alter table t drop v; alter table t add v uuid default '00000000-0000-0000-0000-000000000001'",
        "alter table t drop v; alter table t rename w to v",
    ],
)
def test_a_column_that_took_the_name_of_a_dropped_one_needs_the_old_one_renamed(pair: Pair, change: str) -> None:
    """The old one stays in the target with its values, which no cast makes those of the new one."""
    pair.source.execute(
        "create table t (id int primary key, v text, w uuid);"
        "insert into t values (1, 'one', '00000000-0000-0000-0000-000000000002'), (2, null, null)"
    )
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.source.execute(change)
    pair.as_writer.execute(read_hint(refuse(pair, 8, "[schema_drift]", "column v is another one")))
    sync(pair)
    assert pair.target.execute("select v_old from t order by id").fetchall() == [("one",), (None,)]
    pair.target.execute("alter table t drop v_old, drop if exists w")
    pair.source.execute("alter table t drop if exists w")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


VIEWS = {
    "view": "create view shown as select * from t",
    "materialized view": "create materialized view shown as select * from t",
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_view_over_the_target_that_keeps_a_column_from_widening_is_named(pair: Pair, kind: str) -> None:
    start(pair)
    pair.as_writer.execute(VIEWS[kind].encode())
    pair.source.execute("alter table t alter v type bigint")
    finished = refuse(pair, 8, "[dependent_object]", "public", "t", "shown")
    pair.as_writer.execute(read_hint(finished).encode())
    sync(pair)
    pair.assert_equal("public.t")


def test_a_foreign_key_that_keeps_the_key_from_changing_is_named(pair: Pair) -> None:
    start(pair, columns="id int primary key, v int not null, note text")
    pair.as_writer.execute("create table child (t int constraint tied references t)")
    pair.source.execute("alter table t drop constraint t_pkey, add primary key (v)")
    finished = refuse(pair, 8, "[dependent_object]", "child", "tied")
    pair.as_writer.execute(read_hint(finished).encode())
    sync(pair)
    pair.assert_equal("public.t")


def test_drift_of_one_table_does_not_keep_the_others_from_landing(pair: Pair) -> None:
    start(pair)
    pair.source.execute("create table other (id int primary key); insert into other values (1)")
    pair.grant()
    pair.write_config(tables=["public.*"])
    pair.source.execute("alter table t alter v type smallint")
    refuse(pair, 6, "public.t", "smallint")
    pair.assert_equal("public.other")


# ----------------------------------------------------------------------------------------- freeze, ignore

FROZEN = {
    "added": ("alter table t add extra int", "extra"),
    "dropped": ("alter table t drop v", "v"),
    "renamed": ("alter table t rename v to w", "w"),
    "widened": ("alter table t alter v type bigint", "v"),
    "narrowed": ("alter table t alter v type smallint", "v"),
}


@pytest.mark.parametrize(("change", "column"), FROZEN.values(), ids=FROZEN)
def test_freeze_stops_at_any_change_and_names_the_column(pair: Pair, change: str, column: str) -> None:
    start(pair, "freeze")
    before = read_target(pair)
    pair.source.execute(change)
    pair.source.execute("update t set note = 'changed' where id = 1; delete from t where id = 2")
    refuse(pair, 8, "public.t", column)
    assert read_target(pair) == before


@pytest.mark.parametrize("change", ["added", "dropped", "renamed"])
def test_ignore_goes_on_with_the_columns_there_were(pair: Pair, change: str) -> None:
    start(pair, "ignore")
    types = read_types(pair.target, "public.t")
    pair.source.execute(FROZEN[change][0])
    pair.source.execute("""
        update t set note = 'changed' where id = 1;
        delete from t where id = 2;
        insert into t (id, note) values (6, 'new');
    """)
    sync(pair)
    assert read_types(pair.target, "public.t") == types
    pair.assert_equal("public.t", columns=["id", "note"] + (["v"] if change == "added" else []))
    sync_idly(pair)


# --------------------------------------------------------------------------------------------------- keys


def test_evolve_follows_a_change_of_key(pair: Pair) -> None:
    start(pair, columns="id int primary key, v int not null unique, note text not null")
    pair.source.execute("alter table t drop constraint t_pkey, add primary key (v); update t set id = 1")
    sync(pair)
    pair.assert_equal("public.t")
    pair.source.execute(
        "update t set note = 'changed' where v = 20; insert into t values (1, 60, 'new'); delete from t where v = 10"
    )
    assert sync(pair)["public.t"]["load_type"] == "incremental"
    pair.assert_equal("public.t")
    sync_idly(pair)


def test_evolve_follows_a_key_that_grows_and_a_key_that_is_renamed(pair: Pair) -> None:
    start(pair, columns="id int primary key, v int not null, note text")
    pair.source.execute(
        "alter table t drop constraint t_pkey, add primary key (id, v); insert into t values (1, 11, 'second')"
    )
    sync(pair)
    pair.assert_equal("public.t")
    pair.source.execute("alter table t rename id to number; update t set note = 'changed' where number = 1 and v = 11")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


def test_a_table_that_loses_its_key_is_compared_and_one_that_gets_a_key_is_not(pair: Pair) -> None:
    start(pair)
    pair.source.execute("alter table t drop constraint t_pkey")
    pair.source.execute("update t set note = 'changed' where id = 1")
    assert sync(pair)["public.t"]["strategy"] == "full"
    pair.assert_equal("public.t")
    pair.source.execute("alter table t add primary key (id); update t set note = 'again' where id = 1")
    sync(pair)
    pair.assert_equal("public.t")
    pair.source.execute("update t set note = 'once more' where id = 1")
    assert sync(pair)["public.t"]["load_type"] == "incremental"
    pair.assert_equal("public.t")


@pytest.mark.parametrize("policy", ["evolve", "freeze"])
def test_a_changed_key_of_an_adopted_table_is_told_with_the_index_that_it_needs(pair: Pair, policy: str) -> None:
    pair.as_writer.execute("create table t (id int primary key, v int, note text)")
    start(pair, policy)
    before = read_target(pair)
    pair.source.execute("alter table t drop constraint t_pkey, add primary key (v)")
    finished = refuse(pair, 8, "public.t", "v")
    assert read_target(pair) == before
    pair.as_writer.execute(read_hint(finished))
    sync(pair)
    pair.assert_equal("public.t")


@pytest.mark.parametrize("policy", ["freeze", "ignore"])
def test_a_changed_key_that_is_not_followed_is_told_with_the_old_one_that_has_to_go(pair: Pair, policy: str) -> None:
    start(pair, policy, columns="id int primary key, v int not null, note text")
    pair.source.execute("alter table t drop constraint t_pkey, add primary key (v), alter id drop not null")
    pair.as_writer.execute(read_hint(refuse(pair, 8, "public.t", "v")))
    sync(pair)
    pair.source.execute("insert into t values (1, 60, 'the old key is there twice'), (null, 70, 'or not at all')")
    sync(pair)
    pair.assert_equal("public.t")


def test_a_column_that_is_gone_under_freeze_is_told_with_the_statement_that_drops_it(pair: Pair) -> None:
    start(pair, "freeze", columns='id int primary key, v int not null, note text, "Odd one" int')
    pair.source.execute('alter table t drop v, drop "Odd one"')
    pair.as_writer.execute(read_hint(refuse(pair, 8, "public.t", "v")))
    sync(pair)
    pair.assert_equal("public.t")


def test_a_key_column_that_is_renamed_under_ignore_is_told_as_one_that_is_not_there(pair: Pair) -> None:
    start(pair, "ignore")
    pair.source.execute("alter table t rename id to number")
    told = refuse(pair, 8, "public.t", "column number of the key is not there")
    assert "evolve" in read_hint(told)
    pair.target.execute("alter table t rename id to number")
    sync(pair)
    pair.assert_equal("public.t")


# -------------------------------------------------------------------------------------------------- enums


@pytest.mark.versions
def test_labels_of_enums_are_followed_when_added_and_when_renamed(pair: Pair) -> None:
    pair.source.execute("create type mood as enum ('sad', 'ok', 'happy')")
    start(pair, columns="id int primary key, v int, note text, m mood default 'ok', ms mood[] default '{sad,happy}'")
    pair.source.execute("alter type mood add value 'bored' before 'ok'")
    pair.source.execute("alter type mood add value 'blissful'")
    pair.source.execute("alter type mood rename value 'sad' to 'blue'")
    pair.source.execute("update t set m = 'bored', ms = '{blissful,blue}' where id = 1")
    sync(pair)
    pair.assert_equal("public.t")
    query = "select enum_range(null::mood)::text"
    assert pair.target.execute(query).fetchone() == pair.source.execute(query).fetchone()
    sync_idly(pair)


@pytest.mark.versions
def test_types_inside_of_types_that_are_kept_as_text_are_followed(pair: Pair) -> None:
    """No row is written when a label inside of a composite type or a range is renamed, or an attribute is added."""
    pair.source.execute(
        "create type mood as enum ('a', 'b'); create type pair as (x int, y mood); create domain same as pair;"
        "create type span as range (subtype = mood); create type wide as (x int); create table row_of (p int, q text)"
    )
    pair.source.execute(
        "create table u (id int primary key, one pair, many pair[], dom same, rng span, grows wide, line row_of);"
        "insert into u values (1, row(1, 'a'), array[row(1, 'a')::pair], row(1, 'a'), '[a,b]', row(1), row(1, 'q'))"
    )
    pair.grant()
    pair.write_config(tables=["public.u"])
    sync(pair)
    pair.assert_equal("public.u")
    for change in (
        "alter type mood rename value 'a' to 'aa'",
        "alter type wide add attribute y int",
        "alter table row_of add column r int",
    ):
        pair.source.execute(change)
        sync(pair)
        pair.assert_equal("public.u")
        sync_idly(pair)


def test_two_labels_of_an_enum_that_change_places_are_followed(pair: Pair) -> None:
    pair.source.execute("create type mood as enum ('a', 'b')")
    start(pair, columns="id int primary key, v int, note text, m mood default 'a'")
    for old, new in (("a", "x"), ("b", "a"), ("x", "b")):
        pair.source.execute(sql.SQL("alter type mood rename value {} to {}").format(old, new))
    pair.source.execute("insert into t values (6, 6, '', 'a')")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


def test_an_enum_that_is_made_anew_with_fewer_labels_is_followed(pair: Pair) -> None:
    pair.source.execute("create type mood as enum ('sad', 'ok', 'happy')")
    start(pair, columns="id int primary key, v int, note text, m mood default 'ok'")
    pair.source.execute("""
        alter table t alter m drop default, alter m type text;
        drop type mood;
        create type mood as enum ('ok', 'new');
        alter table t alter m type mood using m::mood;
        update t set m = 'new' where id = 1;
    """)
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


def test_an_enum_column_that_becomes_text_is_followed(pair: Pair) -> None:
    pair.source.execute("create type mood as enum ('sad', 'ok')")
    start(pair, columns="id int primary key, v int, note text, m mood default 'ok'")
    pair.source.execute("alter table t alter m drop default, alter m type text; update t set m = 'any' where id = 1")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


# ------------------------------------------------------------------------------------------------- tables


def test_a_new_table_under_a_pattern_joins_in(pair: Pair) -> None:
    start(pair)
    pair.write_config(tables=["public.*"])
    sync(pair)
    pair.source.execute("create table late (id int primary key); insert into late values (1)")
    refuse(pair, 6, "public.late", "grant")
    pair.grant()
    assert sync(pair)["public.late"]["load_type"] == "full"
    pair.assert_equal("public.late")


def test_a_table_dropped_in_the_source_keeps_its_rows_in_the_target(pair: Pair) -> None:
    start(pair)
    pair.source.execute("create table other (id int primary key)")
    pair.grant()
    before = read_target(pair)
    pair.source.execute("drop table t")
    refuse(pair, 4, "public.t", "missing")
    pair.write_config(tables=["public.*"])
    assert {table: row["status"] for table, row in sync(pair).items()} == {
        "public.other": "success",
        "public.t": "skipped",
    }
    assert read_target(pair) == before


def test_a_view_that_is_named_no_more_beside_a_pattern_is_not_called_gone(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); create view v as select 1 as id")
    pair.grant()
    pair.write_config(tables=["public.*", {"name": "public.v", "key": ["id"]}])
    sync(pair)
    pair.write_config(tables=["public.*"])
    finished = pair.run("sync", check=0)
    assert "gone" not in finished.stdout + finished.stderr
    assert pair.control_rows("public.v", status="skipped") == []
    pair.source.execute("drop view v; create table keep (id int); drop table t; create view t as select 1 as id")
    pair.grant()
    assert "public.t is gone from the source" in pair.run("sync").stderr


def test_a_table_made_anew_under_its_old_name_is_read_again(pair: Pair) -> None:
    start(pair)
    pair.source.execute("drop table t; create table t (note text, id int primary key, extra int)")
    pair.source.execute("insert into t values ('new', 3, 1), ('newer', 9, 2)")
    pair.grant()
    sync(pair)
    pair.assert_equal("public.t")
    assert pair.target.execute("select id, v from t order by id").fetchall() == [(3, 30), (9, None)]
    sync_idly(pair)


def test_a_table_dropped_in_the_target_is_made_again(pair: Pair) -> None:
    start(pair)
    pair.as_writer.execute("drop table t")
    assert sync(pair)["public.t"]["load_type"] == "full"
    pair.assert_equal("public.t")
    sync_idly(pair)


def test_a_column_dropped_in_the_target_comes_back_with_its_values(pair: Pair) -> None:
    start(pair)
    pair.as_writer.execute("alter table t drop note")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)
