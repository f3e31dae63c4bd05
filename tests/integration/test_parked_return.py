"""Tables that went away, or could not be streamed for a while, are taken in again, whatever became of them."""

from __future__ import annotations

import signal
import threading

import pytest
from psycopg import sql

from tests.integration.test_parked import hurry, wait_until_live, wait_until_parked
from tests.pair import Pair
from tests.streaming import catch_up, listening, wait_for_stream, wait_until_equal
from tests.wait import wait_until


@pytest.fixture
def quick(streamed: Pair) -> Pair:
    return hurry(streamed)


@pytest.mark.hazard("S30")
def test_a_table_that_was_dropped_for_a_while_is_taken_in_again(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); create table u (id int primary key)")
    quick.source.execute("insert into t values (1)")
    quick.publish()
    quick.write_config()
    with listening(quick) as running:
        quick.source.execute("drop table t")
        wait_until(lambda: "table_left" in running.stderr, 30, what="it is left out")
        quick.source.execute("create table t (id int primary key, n int); insert into t values (2, 2)")
        quick.grant()
        wait_until_live(quick, "public.t")
        quick.source.execute("insert into t values (3, 3)")
        wait_until_equal(quick, "public.t")
        assert running.stderr.count("stream_started") == 1


@pytest.mark.hazard("S30")
def test_a_table_that_was_unlogged_for_a_while_is_taken_in_again(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); create table u (id int primary key)")
    quick.source.execute("insert into t values (1)")
    quick.publish()
    quick.write_config()
    with listening(quick) as running:
        quick.source.execute("alter table t set unlogged")
        wait_until(lambda: "table_skipped" in running.stderr, 30, what="it is left out")
        quick.source.execute("insert into t values (2); alter table t set logged; insert into t values (3)")
        wait_until_live(quick, "public.t")
        quick.source.execute("insert into t values (4)")
        wait_until_equal(quick, "public.t")
        assert running.stderr.count("stream_started") == 1


@pytest.mark.hazard("S30")
def test_two_tables_that_trade_names_keep_apart_while_one_is_parked(quick: Pair) -> None:
    quick.source.execute(
        "create table a (id int primary key, n int); create table b (id int primary key, n int);"
        "insert into a values (1, 1); insert into b values (2, 2)"
    )
    quick.publish()
    quick.write_config()
    with listening(quick) as running:
        quick.target.execute("alter table b add constraint odd check (n <> 1) not valid")
        quick.source.execute("alter table a rename to c; alter table b rename to a; alter table c rename to b")
        wait_until_parked(quick, "public.b", "target_refused_row")
        wait_until(lambda: "table_joined" in running.stderr, 30, what="a is live again")
        quick.source.execute("insert into b values (3, 1); insert into a values (4, 2)")
        wait_until_equal(quick, "public.a")
        joined = running.stderr.count("table_joined")
        quick.source.execute("insert into b values (5, 1); alter table b add m int; insert into b values (6, 1)")
        quick.source.execute("insert into a values (7, 2)")
        wait_until_equal(quick, "public.a")
        assert running.stderr.count("table_joined") == joined
        quick.target.execute("alter table b drop constraint odd")
        wait_until_live(quick, "public.b")
        wait_until_equal(quick, "public.a", "public.b")


@pytest.mark.hazard("S30")
def test_a_locked_table_keeps_the_listener_from_no_other_and_from_no_end(quick: Pair) -> None:
    """PostgreSQL locks what its catalog functions describe."""
    quick.source.execute("create table t (id int primary key); create table u (id int primary key)")
    quick.publish()
    quick.write_config(source={"lock_timeout": "1s"}, lock_wait="2s")
    with quick.source_server.connect(quick.source_db) as session, quick.popen("listen") as running:
        wait_for_stream(running)
        session.execute("begin; lock table t in access exclusive mode")
        quick.target.execute("update replicator.stream_table set is_stale = true where table_name = 'public.t'")
        wait_until_parked(quick, "public.t", "lock_timeout")
        quick.source.execute("insert into u values (1)")
        wait_until_equal(quick, "public.u")
        running.send(signal.SIGTERM)
        running.wait(10, check=0)
        session.execute("commit")
    catch_up(quick)


@pytest.mark.hazard("S30")
def test_a_grant_that_goes_away_while_tables_are_looked_at_parks_its_table_alone(quick: Pair) -> None:
    names = [f"t{number}" for number in range(6)]
    for name in names:
        quick.source.execute(sql.SQL("create table {} (id int primary key)").format(sql.Identifier(name)))
    quick.publish()
    quick.write_config()
    revoke, grant = (
        sql.SQL(f"{verb} select on t0 {way} {{}}").format(sql.Identifier(quick.reader))
        for verb, way in (("revoke", "from"), ("grant", "to"))
    )
    with listening(quick) as running:
        for _ in range(8):
            quick.target.execute("update replicator.stream_table set is_stale = true")
            for _ in range(40):
                quick.source.execute(revoke)
                threading.Event().wait(0.01)
                quick.source.execute(grant)
                threading.Event().wait(0.01)
            assert running.running, running.wait()
        wait_until_live(quick, *(f"public.{name}" for name in names))


@pytest.mark.hazard("S30")
def test_a_table_that_is_dropped_while_it_is_looked_at_ends_nothing(quick: Pair) -> None:
    quick.source.execute("create table u (id int primary key)")
    quick.publish("u")
    quick.write_config(tables=["public.t", "public.u"])
    statement = "create table t (id int primary key); select pg_sleep(random() * 0.02); drop table t"
    with listening(quick) as running, quick.source_server.connect(quick.source_db) as session:
        session.execute(
            sql.SQL("alter default privileges grant select on tables to {}").format(sql.Identifier(quick.reader))
        )
        for number in range(150):
            for part in statement.split("; "):
                session.execute(part.encode())
            if number % 10 == 0:
                quick.source.execute(sql.SQL("insert into u values ({})").format(number))
        wait_until_equal(quick, "public.u")
        assert running.running


@pytest.mark.hazard("S30")
def test_a_verify_ends_though_its_table_is_left_out_meanwhile_and_the_stream_goes_on(quick: Pair) -> None:
    quick.source.execute("create table t (id int primary key); create table u (id int primary key)")
    quick.publish()
    quick.write_config()
    with listening(quick), quick.target_server.connect(quick.target_db) as holder:
        holder.execute("begin; lock table u in share row exclusive mode")
        quick.source.execute("insert into u values (0); insert into t values (1)")
        verify = quick.popen("verify", "public.t")
        query = "select from pg_stat_activity where datname = %s and usename = %s and query like '%%stream_table%%'"
        wait_until(
            lambda: quick.target.execute(query, [quick.target_db, quick.writer]).rowcount, 30, what="verify waits"
        )
        threading.Event().wait(2.0)
        quick.target.execute("alter table t rename to elsewhere; create view t as select 1 as id")
        quick.target.execute("delete from replicator.stream_table where table_name = 'public.t'")
        holder.execute("commit")
        for number in range(1, 400):
            quick.source.execute(sql.SQL("insert into u values ({})").format(number))
            if verify.process.poll() is not None:
                break
            threading.Event().wait(0.1)
        assert "Traceback" not in verify.wait(5).stderr
