"""One table in trouble is left out of the stream until its cause is gone; all others go on without a pause."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from tests.conftest import MakePair
from tests.pair import Pair
from tests.streaming import catch_up, listening, wait_until_equal
from tests.wait import wait_until


@pytest.fixture
def quick(streamed: Pair) -> Pair:
    """Return a pair whose listener looks at catalogs, and tries parked tables again, within a second."""
    return hurry(streamed)


def hurry(pair: Pair) -> Pair:
    pair.constants["replicator.stream.loop._DEFINITIONS_S"] = 0.5
    pair.constants["replicator.stream.join._LOOK_AGAIN_S"] = 0.5
    pair.constants["replicator.stream.join._LOAD_AGAIN_S"] = 0.5
    return pair


def read_parked(pair: Pair) -> dict[str, tuple[str, str, str | None]]:
    """Return id, message and hint of the parked tables."""
    query = "select table_name, error_id, error_message, error_hint from replicator.parked_table"
    return {name: (id_, message, hint) for name, id_, message, hint in pair.target.execute(query)}


def wait_until_parked(pair: Pair, table: str, id_: str) -> str:
    """Wait until a table is parked with this reason; return its hint."""
    wait_until(lambda: read_parked(pair).get(table, ("",))[0] == id_, 30, what=f"{table} is parked with {id_}")
    return read_parked(pair)[table][2] or ""


def wait_until_live(pair: Pair, *tables: str) -> None:
    query = "select table_name from replicator.stream_table where not is_stale"

    def are_live() -> bool:
        live = {name for (name,) in pair.target.execute(query)}
        return set(tables) <= live and not set(tables) & read_parked(pair).keys()

    wait_until(are_live, 30, what=f"{tables} are live")


def as_owner(pair: Pair, hint: str) -> None:
    pair.source.execute(sql.SQL(hint.removeprefix("as their owner: ")))


@pytest.mark.hazard("S30")
def test_a_new_table_outside_of_somebody_elses_publication_waits_and_is_taken_in_once_it_is_there(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); insert into t values (1)")
    quick.publish("t")
    quick.write_config()
    with listening(quick) as running:
        quick.source.execute("create table u (id int primary key); insert into u values (1)")
        quick.grant()
        hint = wait_until_parked(quick, "public.u", "publication_missing")
        quick.source.execute("alter table t add column z int default 3; insert into t values (2, 4)")
        wait_until_equal(quick, "public.t")
        as_owner(quick, hint)
        wait_until_live(quick, "public.u")
        quick.source.execute("insert into u values (2); insert into t values (3, 5)")
        wait_until_equal(quick, "public.t", "public.u")
        assert running.stderr.count("stream_started") == 1


@pytest.mark.hazard("S30")
def test_a_narrowed_column_parks_its_table_and_resync_makes_the_target_anew(quick: Pair) -> None:
    quick.source.execute(
        "create table t (id int primary key); create table n (id int primary key, value text);"
        "insert into n values (1, 'a'), (2, 'bcd'), (3, null)"
    )
    quick.publish()
    quick.write_config()
    with listening(quick):
        quick.target.execute(sql.SQL("grant select on n to {}").format(sql.Identifier(quick.writer)))
        quick.source.execute("alter table n alter column value type int using length(value)")
        quick.source.execute("insert into n values (4, 4); insert into t values (1)")
        hint = wait_until_parked(quick, "public.n", "schema_drift")
        assert "replicator resync" in hint
        wait_until_equal(quick, "public.t")
        quick.run("resync", "public.n", "--yes")
        wait_until_live(quick, "public.n")
        quick.source.execute("insert into n values (5, 5)")
        wait_until_equal(quick, "public.n")


@pytest.mark.hazard("S30")
def test_a_table_without_identity_keeps_none_of_the_others_back(quick: Pair) -> None:
    quick.source.execute(
        "create table t (id int primary key); create table nothing (a int); insert into nothing values (1), (1)"
    )
    quick.publish()
    quick.write_config()
    error = catch_up(quick, check=6)
    assert "table_parked" in error
    with listening(quick) as running:
        quick.source.execute("insert into t values (1)")
        wait_until_equal(quick, "public.t")
        as_owner(quick, wait_until_parked(quick, "public.nothing", "identity_missing"))
        wait_until_live(quick, "public.nothing")
        quick.source.execute("insert into nothing values (1), (2); delete from nothing where ctid = '(0,1)'")
        wait_until_equal(quick, "public.nothing")
        assert running.stderr.count("stream_started") == 1
    catch_up(quick)


@pytest.mark.hazard("T9", "S30")
def test_a_refused_row_parks_its_table_alone_and_its_key_is_still_told(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); create table r (id int primary key, n int)")
    quick.publish()
    quick.write_config()
    with listening(quick) as running:
        quick.target.execute("alter table r add constraint small check (n < 10)")
        quick.source.execute("insert into t values (1); insert into r values (7, 77); insert into t values (2)")
        wait_until_parked(quick, "public.r", "target_refused_row")
        wait_until_equal(quick, "public.t")
        assert quick.json("quarantine", "list")["stopped_at"]["key"] == ["7"], running.stderr
        assert running.stderr.count("stream_started") == 1
        quick.source.execute("insert into t values (3)")
        wait_until_equal(quick, "public.t")
        assert quick.json("quarantine", "list")["stopped_at"]["key"] == ["7"]
        quick.target.execute("alter table r drop constraint small")
        wait_until_live(quick, "public.r")
        wait_until_equal(quick, "public.r")
        assert quick.json("quarantine", "list")["stopped_at"] is None


@pytest.mark.hazard("S30")
def test_a_bounded_listener_ends_with_6_while_a_table_is_parked_and_with_0_after(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); create table nothing (a int)")
    quick.publish()
    quick.write_config()
    document = quick.json("listen", "--until-caught-up", check=6)
    (parked,) = document["parked"]
    assert (parked["table"], parked["id"]) == ("public.nothing", "identity_missing")
    assert list(parked) == ["table", "since", "lsn", "id", "message", "hint"]
    as_owner(quick, parked["hint"])
    catch_up(quick)
    assert not read_parked(quick)


def test_a_table_in_trouble_ends_the_listener_where_that_is_wanted(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); create table nothing (a int)")
    quick.publish()
    quick.write_config(listen={"on_table_error": "stop"})
    assert "identity_missing" in catch_up(quick, check=4)


@pytest.mark.hazard("S39")
def test_a_changed_definition_reads_its_table_again_while_the_stream_goes_on(quick: Pair) -> None:
    quick.source.execute(
        "create table t (id int primary key, v text); insert into t select n, 'v' from generate_series(1, 2000) n;"
        "create table u (id int primary key)"
    )
    quick.publish()
    quick.write_config()
    with listening(quick) as running:
        quick.source.execute("alter table t add column z int default 3; update t set v = 'w' where id < 9")
        quick.source.execute("insert into u values (1)")
        wait_until_equal(quick, "public.t", "public.u")
        quick.source.execute("alter table t drop column v, add column v uuid; insert into t values (0)")
        wait_until_parked(quick, "public.t", "schema_drift")
        quick.source.execute("insert into u values (2)")
        wait_until_equal(quick, "public.u")
        assert running.stderr.count("stream_started") == 1


@pytest.mark.parametrize("identity", ["default", "full"])
@pytest.mark.hazard("S33")
def test_a_row_written_ahead_of_the_publication_and_committed_after_it_is_read(quick: Pair, identity: str) -> None:
    key = "primary key" if identity == "default" else ""
    quick.source.execute("create table t (id int primary key)")
    quick.source.execute(sql.SQL(f"create table late (id int {key})"))
    quick.source.execute(sql.SQL(f"alter table late replica identity {identity}"))
    quick.publish("t")
    quick.write_config()
    with listening(quick) as running, quick.source_server.connect(quick.source_db) as session:
        hint = wait_until_parked(quick, "public.late", "publication_missing")
        session.execute("begin; insert into late values (1)")
        as_owner(quick, hint)
        wait_until(lambda: "transactions_awaited" in running.stderr, what="the open transaction is waited for")
        quick.source.execute("insert into late values (2)")
        session.execute("commit")
        wait_until_live(quick, "public.late")
        quick.source.execute("insert into late values (3)")
        wait_until_equal(quick, "public.late")


@pytest.mark.hazard("T4")
def test_without_the_replica_role_tables_tied_by_foreign_keys_park_and_return_together(make_pair: MakePair) -> None:
    pair = hurry(make_pair(listens=True, replica=False))
    pair.source.execute(
        "create table p (id int primary key, n int); create table c (id int primary key, p int references p);"
        "create table t (id int primary key); insert into p values (1, 1); insert into c values (1, 1)"
    )
    pair.publish()
    pair.write_config()
    catch_up(pair)
    pair.target.execute("alter table c add foreign key (p) references p; alter table p add constraint n check (n < 9)")
    with listening(pair):
        pair.source.execute("insert into p values (2, 99); insert into c values (2, 2); insert into t values (1)")
        wait_until_parked(pair, "public.p", "target_refused_row")
        wait_until_parked(pair, "public.c", "foreign_key_tie")
        wait_until_equal(pair, "public.t")
        pair.target.execute("alter table p drop constraint n")
        wait_until_live(pair, "public.p", "public.c")
        pair.source.execute("insert into p values (3, 3); insert into c values (3, 3)")
        wait_until_equal(pair, "public.p", "public.c")


def test_a_sync_copies_a_parked_table_where_it_can(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); create table nothing (a int)")
    quick.publish()
    quick.write_config()
    with listening(quick):
        wait_until_parked(quick, "public.nothing", "identity_missing")
        quick.source.execute("insert into nothing values (1), (1)")
        rows: list[dict[str, Any]] = quick.json("sync")["tables"]
        assert {row["table_name"]: row["status"] for row in rows} == {
            "public.nothing": "success",
            "public.t": "skipped",
        }
        quick.assert_equal("public.nothing")


def test_a_table_that_a_pattern_takes_no_longer_leaves_the_stream(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); create table u (id int primary key)")
    quick.publish()
    quick.write_config()
    with listening(quick) as running:
        quick.source.execute("drop table u; insert into t values (1)")
        wait_until(lambda: "table_left" in running.stderr, what="the table has left")
        wait_until_equal(quick, "public.t")
        assert running.stderr.count("stream_started") == 1


@pytest.mark.hazard("S30", "S7")
@pytest.mark.parametrize("kind", ["dropped", "moved", "replaced by a view", "unlogged"])
def test_a_table_that_left_the_stream_is_taken_in_when_it_returns(quick: Pair, kind: str) -> None:
    """A nightly rebuild drops a table and makes it anew minutes later: what it then holds must not be passed over."""
    filled = "insert into {}u values (3, 'c')"
    leave, come_back = {
        "dropped": ("drop table u", f"create table u (id int primary key, v text); {filled.format('')}"),
        "moved": (
            f"alter table u set schema aside; {filled.format('aside.')}",
            "alter table aside.u set schema public",
        ),
        "replaced by a view": (
            "alter table u rename to w; create view u as select * from w",
            "drop view u; alter table w rename to u",
        ),
        "unlogged": (f"alter table u set unlogged; {filled.format('')}", "alter table u set logged"),
    }[kind]
    quick.source.execute(
        "create schema aside; create table t (id int primary key);"
        " create table u (id int primary key, v text); insert into u values (1, 'a'), (2, 'b')"
    )
    quick.grant()
    quick.source.execute("create publication replicator_default for all tables")
    quick.write_config()
    with listening(quick) as running:
        quick.source.execute(leave)
        wait_until(lambda: "table_left" in running.stderr or "table_skipped" in running.stderr, what="it has left")
        quick.source.execute("insert into t values (1)")
        wait_until_equal(quick, "public.t")
        quick.source.execute(come_back)
        quick.grant()
        wait_until_live(quick, "public.u")
        quick.source.execute("insert into u values (4, 'd'); delete from u where id = 1")
        wait_until_equal(quick, "public.u")
        assert running.stderr.count("stream_started") == 1
    catch_up(quick)
    quick.run("verify")


@pytest.mark.parametrize("gone", ["delete from n where id > 500", "truncate n"])
def test_a_parked_table_returns_however_many_of_its_rows_are_gone(quick: Pair, gone: str) -> None:
    """The stream has no stop for deletes, and it would have brought them."""
    quick.source.execute(
        "create table n (id int primary key, v int); insert into n select g, g from generate_series(1, 4000) g"
    )
    quick.source.execute("create table t (id int primary key)")
    quick.publish()
    quick.write_config()
    with listening(quick):
        quick.target.execute("create rule odd as on update to n do also nothing")
        quick.target.execute("update replicator.stream_table set is_stale = true where table_name = 'public.n'")
        wait_until_parked(quick, "public.n", "target_rules")
        quick.source.execute(gone)
        quick.target.execute("drop rule odd on n")
        wait_until_live(quick, "public.n")
        wait_until_equal(quick, "public.n")
