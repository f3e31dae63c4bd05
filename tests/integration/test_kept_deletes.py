"""Rows that the source deleted and the target keeps: what the source's unique indexes can be here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import MakePair
from tests.nightly import read_hint, refuse, sync, sync_idly
from tests.pair import Pair
from tests.streaming import catch_up, expect_refusal

SOURCE = """
    create table t (id int primary key, email text unique, a int, b int, unique (a, b), unique (id, a));
    create index on t (b); create index on t (b desc); create index on t (b);
    insert into t select n, 'p' || n, n, n from generate_series(1, 10) n"""
TRADE = (
    "begin; update t set email = 'x' where id = 3; update t set email = 'p3' where id = 4;"
    " update t set email = 'p4' where id = 3; commit"
)
CHANGES = (
    "delete from t where id in (1, 2); insert into t values (11, 'p1', 1, 1), (12, 'p2', 2, 2)",
    "delete from t where id = 11; insert into t values (13, 'p1', 1, 1)",
    "begin; delete from t where id = 13; insert into t values (1, 'p1', 1, 1); commit",
    TRADE,
    "begin; delete from t where id = 5; update t set email = 'p5', a = 5, b = 5 where id = 6; commit",
    "update t set id = 20 where id = 7; insert into t values (7, 'new', 70, 70)",
    "delete from t; insert into t select n + 100, 'p' || n, n, n from generate_series(1, 10) n",
)
DOWN: dict[str, Callable[[Pair], object]] = {"sync": sync, "listen": catch_up}


def configure(pair: Pair, deletes: str, **table: object) -> None:
    settings = {"name": "public.t", "deletes": deletes, "indexes": "all", "max_delete_fraction": 1.0}
    pair.write_config(tables=[settings | table])


def assert_live_equal(pair: Pair, deletes: str) -> None:
    """Compare the rows that the source still has; with `ignore` the others are told apart by their keys alone."""
    if deletes == "soft":
        pair.assert_equal("public.t", target_where="_deleted_at is null")
        return
    ids = ", ".join(str(n) for (n,) in pair.source.execute("select id from t").fetchall())
    pair.assert_equal("public.t", target_where=f"id in ({ids})")


@pytest.mark.versions
@pytest.mark.parametrize("replica", [True, False], ids=["replica", "origin"])
@pytest.mark.parametrize("path", DOWN)
@pytest.mark.parametrize("deletes", ["soft", "ignore"])
def test_a_new_row_takes_the_unique_value_of_a_deleted_one_that_stays(
    make_pair: MakePair, deletes: str, path: str, replica: bool
) -> None:
    """T13: and so do rows that trade values, change their keys or come back."""
    pair = make_pair(listens=True, replica=replica)
    pair.source.execute(SOURCE)
    pair.publish()
    configure(pair, deletes)
    DOWN[path](pair)
    for change in CHANGES:
        if not replica and path == "listen" and change == TRADE:
            # Without the replica role the stream never takes a row out for a moment: a foreign key might fire.
            continue
        pair.source.execute(change)
        DOWN[path](pair)
        assert_live_equal(pair, deletes)
    kept = "where _deleted_at is not null" if deletes == "soft" else "where email = 'p1'"
    assert len(pair.target.execute(f"select from t {kept}").fetchall()) > 1
    definitions = "select indexdef from pg_indexes where tablename = 't' and indexdef like '%UNIQUE%' order by 1"
    unique = [d for (d,) in pair.target.execute(definitions).fetchall() if "pkey" not in d and "(id, a)" not in d]
    assert all("WHERE (_deleted_at IS NULL)" in definition for definition in unique)
    assert len(unique) == (2 if deletes == "soft" else 0)
    if path == "sync":
        sync_idly(pair)


@pytest.mark.parametrize("path", DOWN)
@pytest.mark.parametrize("deletes", ["soft", "ignore"])
def test_the_unique_indexes_of_a_target_made_before_are_replaced(streamed: Pair, deletes: str, path: str) -> None:
    """T13: by the next command, without reading the table again; `check` says so."""
    streamed.source.execute(SOURCE)
    streamed.publish()
    configure(streamed, "hard")
    DOWN[path](streamed)
    configure(streamed, deletes)
    if deletes == "soft":
        # The column that marks deleted rows comes first; an index on it cannot be there before.
        streamed.target.execute("alter table t add column _deleted_at timestamptz")
    findings = [f for f in streamed.json("check")["findings"] if f["id"] == "unique_index_kept_rows"]
    assert {f["severity"] for f in findings} == {"ok"}
    assert len(findings) == 2
    for change in CHANGES:
        streamed.source.execute(change)
        DOWN[path](streamed)
        assert_live_equal(streamed, deletes)
    loads = [row["load_type"] for row in streamed.control_rows("public.t", status="success")]
    assert loads.count("full") == 1
    assert not [f for f in streamed.json("check")["findings"] if f["id"] == "unique_index_kept_rows"]


@pytest.mark.parametrize("deletes", ["soft", "ignore"])
def test_a_unique_index_of_an_adopted_target_is_told_with_the_sql_that_replaces_it(
    streamed: Pair, deletes: str
) -> None:
    """T13: `check` names it, the refused row's error leads there, and with the SQL both paths go on."""
    streamed.source.execute(SOURCE)
    streamed.publish()
    streamed.as_writer.execute("create table t (id int primary key, email text unique, a int, b int)")
    streamed.as_writer.execute("create unique index by_pair on t (a, b); create unique index mine on t ((id + 1))")
    configure(streamed, deletes)
    catch_up(streamed)
    streamed.source.execute(CHANGES[0])
    expect_refusal(streamed.run("listen", "--until-caught-up", check=1), "replicator check")
    streamed.source.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", [streamed.slot]
    )
    streamed.target.execute("delete from replicator.stream_table; delete from replicator.listener")
    assert "replicator check" in read_hint(refuse(streamed, 1, "23505"))
    findings = [f for f in streamed.json("check")["findings"] if f["id"] == "unique_index_kept_rows"]
    assert len(findings) == 2
    for finding in findings:
        streamed.as_writer.execute(finding["hint"])
    for change in ("select", *CHANGES[1:]):
        streamed.source.execute(change)
        sync(streamed)
        assert_live_equal(streamed, deletes)


def test_an_index_that_a_foreign_key_needs_is_not_dropped(pair: Pair) -> None:
    """T13: what depends on it is named."""
    pair.source.execute(SOURCE)
    pair.grant()
    configure(pair, "hard")
    sync(pair)
    pair.as_writer.execute("create table child (a int, b int, foreign key (a, b) references t (a, b))")
    configure(pair, "soft")
    assert "alter table" in read_hint(refuse(pair, 8, "depends", "public.t"))
    pair.as_writer.execute("drop table child")
    sync(pair)
    assert_live_equal(pair, "soft")
