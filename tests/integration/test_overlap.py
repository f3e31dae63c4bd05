"""Tables that are selected together with others whose changes theirs travel as."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from tests.finding import check
from tests.pair import Pair
from tests.streaming import catch_up, listening
from tests.wait import wait_until

PARTITIONS = (
    "create table root (id int primary key, note text) partition by range (id);"
    "create table mid partition of root for values from (0) to (100) partition by range (id);"
    "create table leaf partition of mid for values from (0) to (50);"
    "create table rest partition of mid for values from (50) to (100);"
    "insert into root select n, 'x' from generate_series(1, 80) n"
)
CHILDREN = (
    "create table p1 (id int primary key, note text); create table p2 (id int not null, note text);"
    "create table c1 (primary key (id)) inherits (p1); create table c2 (primary key (id)) inherits (p1, p2);"
    "alter table p1 replica identity full; alter table p2 replica identity full;"
    "alter table c1 replica identity full; alter table c2 replica identity full;"
    "insert into p1 values (1, 'x'); insert into p2 values (2, 'x');"
    "insert into c1 values (3, 'x'); insert into c2 values (4, 'x')"
)
FOR_TABLE = "for table {} with (publish_via_partition_root)"
PUBLICATIONS = {
    "via root": "for table root with (publish_via_partition_root)",
    "by leaves": "for table root",
    "all tables": "for all tables",
    "all tables via root": "for all tables with (publish_via_partition_root)",
    "schema": "for tables in schema public",
    "schema via root": "for tables in schema public with (publish_via_partition_root)",
}


def set_up(pair: Pair, ddl: str, publication: str, tables: list[str]) -> None:
    """Make the source's tables and the owner's publication, and configure tables, each with a target of its own."""
    pair.source.execute(sql.SQL(ddl))
    pair.grant()
    pair.source.execute(sql.SQL("create publication replicator_default " + publication))
    pair.write_config(
        tables=[{"name": name, "target": "raw.*" if "*" in name else f"raw.{name[7:]}"} for name in tables]
    )


def list_left_out(pair: Pair) -> set[Any]:
    """Return the tables that `check` says a listener leaves out."""
    return {f["table"] for f in check(pair, exit_code=0) if (f["id"], f["severity"]) == ("no_stream", "warn")}


def is_live(pair: Pair, table: str) -> bool:
    """Say whether the listener keeps a table."""
    return pair.target.execute("select from replicator.stream_table where table_name = %s", [table]).rowcount == 1


@pytest.mark.versions
@pytest.mark.parametrize("publication", PUBLICATIONS.values(), ids=PUBLICATIONS)
@pytest.mark.parametrize("tables", [["public.*", "public.leaf"], ["public.root", "public.mid", "public.leaf"]])
def test_of_a_root_and_its_partitions_the_stream_brings_the_root(
    streamed: Pair, publication: str, tables: list[str]
) -> None:
    """S27: the partitions stay with the nightly sync, which `check` says; no second start fails."""
    set_up(streamed, PARTITIONS, publication, tables)
    left_out = {name for name in tables if name not in ("public.*", "public.root")}
    assert list_left_out(streamed) == left_out
    for change in ("update root set note = 'a'", "delete from root where id < 5; insert into root values (3, 'b')"):
        catch_up(streamed)
        streamed.source.execute(sql.SQL(change))
        catch_up(streamed)
        streamed.assert_equal("public.root", "raw.root")
    assert {name for name in left_out if is_live(streamed, name)} == set()
    streamed.run("sync")
    for name in left_out:
        streamed.assert_equal(name, f"raw.{name[7:]}")


@pytest.mark.versions
@pytest.mark.parametrize(
    ("publication", "is_streamed"),
    [(text, "via_partition_root" not in text) for text in PUBLICATIONS.values()] + [("for table leaf", True)],
    ids=[*PUBLICATIONS, "leaf"],
)
def test_a_partition_alone_is_not_taken_from_a_publication_that_tells_its_root(
    streamed: Pair, publication: str, *, is_streamed: bool
) -> None:
    """S27: somebody else's publication, of which the listener would never hear of the partition."""
    streamed.source.execute("create table other (id int primary key)")
    set_up(streamed, PARTITIONS, publication, ["public.leaf", "public.other"])
    if "table " in publication:
        streamed.source.execute("alter publication replicator_default add table other")
    assert list_left_out(streamed) == (set() if is_streamed else {"public.leaf"})
    catch_up(streamed)
    streamed.source.execute("update root set note = 'a'; insert into other values (1)")
    catch_up(streamed)
    streamed.assert_equal("public.other", "raw.other")
    assert is_live(streamed, "public.leaf") is is_streamed
    if not is_streamed:
        streamed.run("sync")
    streamed.assert_equal("public.leaf", "raw.leaf")


@pytest.mark.versions
@pytest.mark.parametrize("tables", [["public.*"], ["public.p1", "public.p2", "public.c1", "public.c2"]])
@pytest.mark.parametrize("publication", ["for table p1, p2", "for all tables", "for tables in schema public"])
def test_of_a_parent_and_its_children_the_stream_brings_the_parent(
    streamed: Pair, publication: str, tables: list[str]
) -> None:
    """S27: inheritance, and a child of two parents."""
    set_up(streamed, CHILDREN, publication, tables)
    left_out = {"public.p2", "public.c1", "public.c2"}
    assert list_left_out(streamed) == left_out
    for _ in range(2):
        catch_up(streamed)
        streamed.source.execute("update p1 set note = note || 'a'; update p2 set note = note || 'b'")
        catch_up(streamed)
        streamed.assert_equal("public.p1", "raw.p1")
    streamed.run("sync")
    for name in left_out:
        streamed.assert_equal(name, f"raw.{name[7:]}")


@pytest.mark.versions
@pytest.mark.parametrize("publication", ["for table root", "for tables in schema public"])
def test_a_root_without_partitions_joins_a_publication_by_leaves_once(streamed: Pair, publication: str) -> None:
    """S27: the publication names it already, though no view shows it."""
    streamed.source.execute("create table other (id int primary key)")
    set_up(
        streamed, "create table root (id int primary key) partition by range (id)", publication,
        ["public.root", "public.other"],
    )  # fmt: skip
    if "table root" in publication:
        streamed.source.execute("alter publication replicator_default add table other")
    catch_up(streamed)
    streamed.source.execute(
        "create table leaf partition of root for values from (0) to (9); insert into root values (1)"
    )
    catch_up(streamed)
    streamed.assert_equal("public.root", "raw.root")


@pytest.mark.versions
def test_a_table_that_becomes_a_partition_leaves_the_running_stream(streamed: Pair) -> None:
    """S27: from then on its changes come under its root's name alone."""
    set_up(
        streamed,
        "create table root (id int primary key) partition by range (id);"
        "create table leaf (id int primary key check (id >= 0 and id < 9)); insert into leaf values (1)",
        "for table root, leaf with (publish_via_partition_root)",
        ["public.root", "public.leaf"],
    )
    with listening(streamed) as running:
        wait_until(lambda: is_live(streamed, "public.leaf"), 30, what="the table is live")
        streamed.source.execute("alter table root attach partition leaf for values from (0) to (9)")
        wait_until(lambda: not is_live(streamed, "public.leaf"), 30, what="the partition is left out")
        streamed.source.execute("insert into leaf values (2)")
        wait_until(
            lambda: streamed.target.execute("select from raw.root").rowcount == 2, 30, what="the root brings its rows"
        )
        assert "travel as those of public.root" in running.stderr
    streamed.run("sync")
    streamed.assert_equal("public.leaf", "raw.leaf")
    streamed.assert_equal("public.root", "raw.root")
