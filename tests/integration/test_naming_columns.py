"""Texts that are names of the source's objects: a rename changes them, and no row version or WAL tells of it."""

from __future__ import annotations

import pytest

from tests.conftest import MakePair
from tests.pair import Pair
from tests.streaming import catch_up

OBJECTS = (
    "create schema area; create table area.thing (id int); create sequence area.counter;"
    "create function area.act(int) returns int language sql as 'select $1';"
    "create operator area.### (rightarg = int, function = area.act);"
    "create type area.kind as enum ('x'); create collation area.order_of from \"C\";"
    "create text search configuration area.search (copy = simple);"
    "create text search dictionary area.words (template = simple)"
)
RENAMES = (
    "alter table area.thing rename to thing_renamed; alter function area.act(int) rename to act_renamed;"
    "alter type area.kind rename to kind_renamed; alter collation area.order_of rename to order_renamed;"
    "alter text search configuration area.search rename to search_renamed;"
    "alter text search dictionary area.words rename to words_renamed; alter schema area rename to area_renamed"
)
VALUES = {
    "regclass": "area.thing",
    "regproc": "area.act",
    "regprocedure": "area.act(int)",
    "regoper": "area.###",
    "regoperator": "area.###(none,int4)",
    "regtype": "area.kind",
    "regcollation": "area.order_of",
    "regconfig": "area.search",
    "regdictionary": "area.words",
    "regnamespace": "area",
}
NESTED = (
    "create domain public.relation as regclass; create domain public.relations as regclass[];"
    "create type public.pointer as (n int, target regclass); create type public.deep as (p public.pointer[]);"
    "create type public.classes as range (subtype = regclass)"
)
NESTED_VALUES = {
    "public.relation": "'area.thing'",
    "public.relations": "'{area.thing,pg_class}'",
    "regclass[]": "'{{area.thing},{area.counter}}'",
    "public.pointer": "row(1, 'area.thing')",
    "public.deep": "row(array[row(1, 'area.thing')::public.pointer])",
    "public.classes": "public.classes('area.thing', 'area.thing', '[]')",
    "public.relation[]": "array['area.thing'::public.relation]",
}


def assert_exact(pair: Pair, table: str, columns: dict[str, str] | None = None) -> None:
    """Prove that sync brings what a rename changed, and that verify agrees."""
    pair.run("sync")
    pair.run("verify")
    query = f"select id, {{}} from {table} order by id"
    names = list(columns or {"c": "c::text"})
    theirs = pair.source.execute(query.format(", ".join((columns or {"c": "c::text"}).values()))).fetchall()
    assert pair.target.execute(query.format(", ".join(f"{name}::text" for name in names))).fetchall() == theirs


@pytest.mark.versions
def test_every_kind_of_name_follows_the_renamed_object(pair: Pair) -> None:
    """V10: also names of roles, and the roles in privileges; a second sync with nothing renamed writes nothing."""
    role = f"named_{pair.source_db}"
    pair.source.execute("set search_path to public; " + OBJECTS)
    pair.source.execute(f"create role {role}")
    kinds = {**VALUES, "regrole": role, "aclitem": f"{role}=r/{role}"}
    columns = ", ".join(f"c_{kind} {kind}" for kind in kinds)
    values = ", ".join(f"'{value}'" for value in kinds.values())
    pair.source.execute(f"create table t (id int primary key, {columns}); insert into t values (1, {values})")
    pair.grant()
    pair.write_config(tables=["public.t"])
    shown = {f"c_{kind}": f"c_{kind}::text" for kind in kinds}
    pair.source.execute("set search_path to ''")
    try:
        assert_exact(pair, "public.t", shown)
        pair.source.execute(RENAMES)
        pair.source.execute(f"alter role {role} rename to {role}_renamed")
        assert_exact(pair, "public.t", shown)
        row = pair.target.execute("select c_regrole, c_aclitem from t").fetchone()
        assert row == (f"{role}_renamed", f"{role}_renamed=r/{role}_renamed")
        pair.run("sync")
        last = pair.control_rows("public.t", path="sync")[-1]
        assert (last["guarantee"], last["rows_updated"], last["rows_unchanged"]) == ("exact", 0, 1)
    finally:
        pair.source.execute("drop table public.t")
        pair.source.execute(f"drop role if exists {role}; drop role if exists {role}_renamed")


@pytest.mark.parametrize("kind", NESTED_VALUES)
def test_a_name_within_another_type_follows_too(pair: Pair, kind: str) -> None:
    """V10: in arrays, domains, composites and ranges, and after the object is dropped."""
    pair.source.execute(f"{OBJECTS}; {NESTED}; create table t (id int primary key, c {kind})")
    pair.source.execute(f"insert into t values (1, {NESTED_VALUES[kind]})")
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.source.execute("set search_path to ''")
    assert_exact(pair, "public.t")
    pair.source.execute("alter table area.thing rename to thing_renamed")
    assert_exact(pair, "public.t")
    assert "thing_renamed" in str(pair.target.execute("select c::text from t").fetchone())
    pair.source.execute("drop table area.thing_renamed")
    assert_exact(pair, "public.t")


def test_plan_says_why_every_row_is_read_and_rules_that_drop_the_name_save_it(pair: Pair) -> None:
    """V10: a mask may hold the name or make it; a column that is left out is nobody's reason."""
    pair.source.execute(
        f"{OBJECTS}; create table t (id int primary key, c regclass, n oid);"
        "insert into t values (1, 'area.thing', 'area.thing'::regclass)"
    )
    pair.grant()
    (pair.dir / "mask.key").write_text("the secret of the masks" * 2)

    def plan(**rules: object) -> tuple[str, str, str]:
        pair.write_config(tables=[{"name": "public.t", **rules}], privacy={"mask_key_file": "mask.key"})
        (table,) = pair.json("plan")["tables"]
        return table["strategy"], table["guarantee"], table["strategy_reason"]

    assert plan()[:2] == ("full", "exact")
    assert "c names objects" in plan()[2]
    assert plan(exclude=["c"])[:2] == ("xmin", "exact")
    assert plan(mask={"c": "null"})[:2] == ("xmin", "exact")
    assert plan(mask={"c": "hash"})[:2] == ("full", "exact")
    assert plan(mask={"c": "c::oid::text"})[:2] == ("full", "exact")
    assert plan(exclude=["c"], mask={"n": "n::regclass::text"})[:2] == ("full", "exact")
    assert plan(exclude=["c"], where="c::text <> 'area.other'")[:2] == ("full", "exact")
    assert plan(xmin_scan_limit="1kB")[:2] == ("xmin", "bounded")
    assert plan(strategy="xmin")[:2] == ("xmin", "bounded")


@pytest.mark.parametrize("rules", [{"strategy": "xmin"}, {"strategy": "watermark", "watermark": "at"}])
@pytest.mark.parametrize("deletes", ["hard", "soft", "ignore"])
def test_an_audit_by_hashes_brings_what_no_row_version_tells(pair: Pair, rules: dict[str, str], deletes: str) -> None:
    """V10: where the configuration asks for xmin or a watermark all the same; what it missed is counted."""
    pair.source.execute(
        f"{OBJECTS}; create table t (id int primary key, c regclass, at timestamptz default now());"
        "insert into t select n, 'area.thing', '2020-01-01' from generate_series(1, 50) n"
    )
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "deletes": deletes, **rules}])
    pair.source.execute("set search_path to ''")
    assert_exact(pair, "public.t")
    pair.source.execute("alter table area.thing rename to thing_renamed")
    pair.source.execute(
        "insert into public.t values (52, 'area.thing_renamed'); update public.t set c = null, at = now() where id = 9"
    )
    assert_exact(pair, "public.t")
    last = pair.control_rows("public.t", path="sync")[-1]
    assert (last["load_type"], last["guarantee"], last["rows_missed_before"]) == ("incremental", "bounded", 49)


def test_a_watermark_of_a_view_that_names_objects_is_audited(pair: Pair) -> None:
    """V10: a view may make the name of a number."""
    pair.source.execute(
        f"{OBJECTS}; create table t (id int primary key, n oid, at timestamptz default now());"
        "insert into t values (1, 'area.thing'::regclass); create view v as select id, n::regclass as c, at from t"
    )
    pair.grant()
    pair.write_config(tables=[{"name": "public.v", "key": ["id"], "watermark": "at"}])
    pair.source.execute("set search_path to ''")
    assert_exact(pair, "public.v")
    pair.source.execute("alter table area.thing rename to thing_renamed")
    assert_exact(pair, "public.v")


def test_a_listener_leaves_names_to_the_nightly_sync_and_says_so(make_pair: MakePair) -> None:
    """V10: the guarantee of such a stream is bounded, in `check`, `status` and the record; other tables' is exact."""
    pair = make_pair(listens=True)
    pair.source.execute(
        f"{OBJECTS}; create table t (id int primary key, c regclass); create table plain (id int primary key);"
        "insert into t values (1, 'area.thing'), (2, 'pg_class')"
    )
    pair.publish("t", "plain")
    pair.write_config(tables=["public.t", "public.plain"])
    catch_up(pair)
    finding = next(f for f in pair.json("check")["findings"] if f["id"] == "names_objects")
    assert (finding["severity"], finding["table"]) == ("warn", "public.t")
    pair.source.execute(
        "alter table area.thing rename to thing_renamed; insert into t values (3, 'area.thing_renamed')"
    )
    pair.source.execute("insert into plain values (1)")
    catch_up(pair)
    assert [row["guarantee"] for row in pair.control_rows("public.t", load_type="stream")] == ["bounded"]
    told = {table["table"]: table["guarantee"] for table in pair.json("status")["tables"]}
    assert told == {"public.t": "bounded", "public.plain": "exact"}
    pair.run("sync")
    pair.run("verify")
    assert pair.target.execute("select c from t order by id").fetchall() == [
        ("area.thing_renamed",),
        ("pg_class",),
        ("area.thing_renamed",),
    ]
