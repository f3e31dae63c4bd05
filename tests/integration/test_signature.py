"""The signatures by which a watcher notices which table of thousands changed: each kind of DDL, and what is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from replicator.capture.signature import Signatures, read_signatures
from replicator.db import Connection, closing, connect
from tests.pair import Pair

TABLES = """
    create type mood as enum ('sad', 'fine');
    create domain percent as numeric(5, 2);
    create type pair as (a int, b percent);
    create type span as range (subtype = int);
    create function double(n int) returns int immutable language sql return n * 2;
    create table plain (id int primary key, v varchar(20), n int, code text not null unique);
    create table other (id int primary key, v text);
    create table moody (id int primary key, m mood, ms mood[]);
    create table typed (id int primary key, p pair, s span);
    create table computed (id int primary key, n int, d int generated always as (n * 2) stored);
    create table parts (id int primary key, v text) partition by range (id);
    create table part_1 partition of parts for values from (0) to (100);
    create table spare (id int primary key, v text);
    create table parent (id int primary key, v text);
    create table child () inherits (parent);
    insert into plain select n, 'v', n, n from generate_series(1, 50) n;
    insert into parts select n, 'v' from generate_series(1, 50) n;
"""
ROOTS = ("plain", "other", "moody", "typed", "computed", "parts", "parent")


@pytest.fixture
def reader(pair: Pair) -> Iterator[Connection]:
    """Return a session of the role that reads, in a source with tables that are published one by one."""
    pair.source.execute(TABLES)
    pair.source.execute("create publication p for table plain, other, moody, typed, computed, parts, parent")
    pair.grant()
    with closing(connect(pair.source_dsn, side="source")) as connection:
        yield connection


def read_oids(pair: Pair) -> dict[int, str]:
    """Return the roots' names by OID."""
    query = "select oid::bigint, relname from pg_class where relname = any (%s)"
    return dict(pair.source.execute(query, [list(ROOTS)]).fetchall())


def look(pair: Pair, reader: Connection) -> tuple[dict[int, str], Signatures]:
    """Return the roots and their signatures."""
    names = read_oids(pair)
    return names, read_signatures(reader, "p", list(names))


def find_changed(pair: Pair, reader: Connection, statements: str) -> set[str]:
    """Return the tables whose signature is another one after some statements."""
    names, before = look(pair, reader)
    for statement in statements.split(";"):
        pair.source.execute(statement)
    return {names[oid] for oid in read_signatures(reader, "p", list(names)).find_changed(before)}


@pytest.mark.versions
@pytest.mark.parametrize(
    ("statements", "tables"),
    [
        ("alter table plain add z int", "plain"),
        ("alter table plain add z int default 3", "plain"),
        ("alter table plain drop n", "plain"),
        ("alter table plain rename n to m", "plain"),
        ("alter table plain rename n to m; alter table plain rename m to n", "plain"),
        ("alter table plain alter v type text", "plain"),
        ("alter table plain alter v type varchar(10)", "plain"),
        ("alter table plain alter n type bigint", "plain"),
        ("alter table plain alter n set default 4", "plain"),
        ("alter table plain alter n set not null", "plain"),
        ("alter table plain rename to plane", "plain"),
        ("create schema elsewhere; alter table plain set schema elsewhere", "plain"),
        ("drop table plain", "plain"),
        ("truncate plain", "plain"),
        ("vacuum full plain", "plain"),
        ("alter table plain set unlogged", "plain"),
        ("alter table plain replica identity full", "plain"),
        ("alter table plain replica identity full; alter table plain replica identity default", "plain"),
        ("alter table plain replica identity using index plain_code_key", "plain"),
        ("alter table plain drop constraint plain_pkey", "plain"),
        ("create unique index on plain (n)", "plain"),
        ("drop index if exists none; alter table plain drop constraint plain_code_key", "plain"),
        ("alter table plain drop constraint plain_pkey; alter table plain add primary key (id) deferrable", "plain"),
        ("alter table plain enable row level security", "plain"),
        ("alter publication p drop table plain", "plain"),
        ("alter publication p drop table plain; alter publication p add table plain", "plain"),
        ("alter publication p set table plain where (n > 1), other, moody, typed, computed, parts, parent", "plain"),
        ("alter type mood add value 'glad'", "moody"),
        ("alter type mood add value 'glum' before 'sad'", "moody"),
        ("alter type mood rename value 'sad' to 'blue'", "moody"),
        ("alter type mood rename to temper", "moody"),
        ("alter domain percent rename to share", "typed"),
        ("alter type pair add attribute c int", "typed"),
        ("alter type pair rename attribute a to x", "typed"),
        ("alter type span rename to stretch", "typed"),
        ("alter table computed alter d drop expression", "computed"),
        ("alter table parts add z int", "parts"),
        ("create table part_2 partition of parts for values from (100) to (200)", "parts"),
        ("alter table parts attach partition spare for values from (200) to (300)", "parts"),
        ("alter table parts detach partition part_1", "parts"),
        ("truncate part_1", "parts"),
        ("alter table part_1 replica identity full", "parts"),
        ("alter table part_1 set unlogged", "parts"),
        ("alter table child add w int", "parent"),
        ("alter table child no inherit parent", "parent"),
        ("create table nephew () inherits (parent)", "parent"),
        ("alter publication p set (publish = 'insert')", "all"),
        ("alter publication p add tables in schema public", "all"),
        ("drop publication p", "all"),
        ("drop publication p; create publication p for all tables", "all"),
        ("alter schema public rename to private", "all"),
    ],
)
def test_a_ddl_changes_the_signatures_of_the_tables_it_concerns_and_of_no_other(
    pair: Pair, reader: Connection, statements: str, tables: str
) -> None:
    """S39: a watcher looks at what changed alone, and misses nothing that a definition or identity depends on."""
    if statements == "alter table plain set unlogged":
        pair.source.execute("alter publication p drop table plain")
    expected = set(ROOTS) if tables == "all" else {tables}
    assert find_changed(pair, reader, statements) == expected


def test_another_expression_of_a_generated_column_changes_the_signature(pair: Pair, reader: Connection) -> None:
    """S39: ALTER COLUMN SET EXPRESSION, stored and virtual."""
    if pair.source.info.server_version < 180000:
        pytest.skip("an expression can be changed from 17 on, a generated column be virtual from 18 on")
    pair.source.execute("alter table other add w text generated always as (v || 'a') virtual")
    pair.source.execute("alter publication p drop table other")
    assert find_changed(pair, reader, "alter table computed alter d set expression as (n * 3)") == {"computed"}
    assert find_changed(pair, reader, "alter table other alter w set expression as (v || 'b')") == {"other"}


@pytest.mark.versions
@pytest.mark.parametrize(
    "statements",
    [
        "analyze",
        "vacuum",
        "vacuum freeze; vacuum analyze",
        "insert into plain values (100, 'x', 1, 'y'); update plain set v = 'z'; delete from plain where id < 10",
        "update parts set v = 'w'; analyze parts; delete from parts; vacuum parts",
        "create temp table scratch (id int, m mood); drop table scratch",
        "create table newcomer (id int primary key); create type another as enum ('a'); drop type another",
        "checkpoint",
    ],
)
def test_what_changes_no_definition_changes_no_signature(pair: Pair, reader: Connection, statements: str) -> None:
    """S39: VACUUM, ANALYZE, rows, temporary tables and other tables are no reason to look again."""
    pair.source.execute("delete from plain where id > 40; analyze plain")
    assert find_changed(pair, reader, statements) == set()


def test_row_security_of_a_role_shows_in_the_signature(pair: Pair, reader: Connection) -> None:
    """S39: a role that loses BYPASSRLS reads less of the table, and no row of the table's own catalog says so."""
    pair.source.execute("alter table plain enable row level security")
    pair.source.execute(f'alter role "{pair.reader}" bypassrls')
    assert find_changed(pair, reader, f'alter role "{pair.reader}" nobypassrls') == {"plain"}


def test_a_partition_that_is_a_root_itself_depends_on_the_tables_above_it(pair: Pair, reader: Connection) -> None:
    """S39: what publishes a partitioned table publishes its partition too."""
    (oid,) = pair.source.execute("select 'part_1'::regclass::oid::bigint").fetchone() or (0,)
    before = read_signatures(reader, "p", [oid])
    pair.source.execute("alter publication p drop table parts")
    after = read_signatures(reader, "p", [oid])
    assert after.find_changed(before) == {oid}
    pair.source.execute("alter table parts detach partition part_1")
    assert read_signatures(reader, "p", [oid]).find_changed(after) == {oid}


def test_signatures_of_no_table_and_of_one_that_is_gone_are_empty(pair: Pair, reader: Connection) -> None:
    """S39: a watcher may ask for what was dropped a moment ago."""
    assert read_signatures(reader, "p", []).by_oid == {}
    assert read_signatures(reader, "p", [1]).by_oid == {}
    assert read_signatures(reader, "none", [1]).shared == ""
