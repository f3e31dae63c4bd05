"""The source belongs to somebody else: whoever waits behind our lock longer than max_hold gets the table."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from tests.chaos.moment import SLOWLY, held_merge, slowed, wait_for_copy, wait_for_merge
from tests.pair import Pair
from tests.wait import wait_until

MAX_HOLD_S = 1.0
GRACE_S = 4.0
ROWS = 400
"""A slowed read takes so many seconds that whoever waits for its end waits for longer than he should."""

SLOW = {"name": "public.t", "where": SLOWLY}


@pytest.fixture
def scene(pair: Pair) -> Pair:
    """Return a pair with two tables in sync; t is changed."""
    for table in ("a_first", "t"):
        pair.source.execute(
            f"create table {table} (id int primary key, n int not null);"
            f"insert into {table} select g, 0 from generate_series(1, {ROWS}) g"
        )
    pair.grant()
    pair.write_config(tables=["public.a_first", "public.t"])
    pair.run("sync")
    pair.source.execute("update t set n = n + 1")
    return pair


def configure(pair: Pair, *tables: object) -> None:
    pair.write_config(tables=list(tables), source={"max_hold": f"{MAX_HOLD_S:g}s"})


@dataclass
class Waiter:
    """How long somebody else's statement took; None while it has not ended."""

    seconds: float | None = None


@contextmanager
def owner(pair: Pair, statement: str) -> Iterator[Waiter]:
    """Run a statement of the tables' owner on the source beside the block."""
    waiter = Waiter()

    def work() -> None:
        with pair.source_server.connect(pair.source_db) as connection:
            began = time.monotonic()
            connection.execute(statement.encode())
            waiter.seconds = time.monotonic() - began

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield waiter
    finally:
        thread.join()


def assert_let_through(waiter: Waiter) -> None:
    """Prove that the statement had to wait, and did not wait for longer than it must."""
    wait_until(lambda: waiter.seconds is not None, MAX_HOLD_S + GRACE_S, what="the owner's statement got through")
    assert waiter.seconds is not None
    assert MAX_HOLD_S / 2 <= waiter.seconds <= MAX_HOLD_S + GRACE_S


def assert_synced(pair: Pair, *tables: str) -> None:
    for table in tables:
        pair.assert_equal(table)
        assert pair.control_rows(f"public.{table}")[-1]["status"] == "success"


def test_a_read_gives_way_to_an_owner_who_waits_and_is_done_at_the_end(scene: Pair) -> None:
    configure(scene, "public.a_first", SLOW)
    with slowed(scene):
        running = scene.popen("sync")
        wait_for_copy(scene)
        with owner(scene, "alter table t add column late int default 7") as waiter:
            assert_let_through(waiter)
    running.wait(check=0)
    assert_synced(scene, "a_first", "t")
    assert scene.control_rows("public.t")[-1]["attempts"] == 2


def test_the_application_behind_the_owner_waits_no_longer_either(scene: Pair) -> None:
    configure(scene, SLOW)
    with slowed(scene):
        running = scene.popen("sync")
        wait_for_copy(scene)
        with owner(scene, "alter table t add column late int") as first:
            waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query ilike 'alter table%'"
            wait_until(lambda: scene.source.execute(waiting).rowcount, what="the owner waits")
            with owner(scene, "update t set n = n + 1 where id = 1") as second:
                assert_let_through(first)
                wait_until(lambda: second.seconds is not None, GRACE_S, what="the application went on")
    running.wait(check=0)
    assert_synced(scene, "t")


def test_a_table_that_was_read_but_waits_to_be_written_gives_way_too(scene: Pair) -> None:
    """The reader idles in its transaction, and its lock is as much in the way as that of one who reads."""
    configure(scene, "public.t")
    with held_merge(scene, "t"):
        running = scene.popen("sync")
        wait_for_merge(scene)
        with owner(scene, "alter table t add column late int default 7") as waiter:
            assert_let_through(waiter)
    running.wait(check=0)
    assert_synced(scene, "t")


def test_a_table_that_has_landed_gives_way_while_the_next_one_is_read(scene: Pair) -> None:
    scene.source.execute("update a_first set n = n + 1")
    configure(scene, "public.a_first", SLOW)
    already = len(scene.control_rows("public.a_first", status="success"))
    with slowed(scene):
        running = scene.popen("sync", "--jobs", "1")
        wait_until(
            lambda: len(scene.control_rows("public.a_first", status="success")) > already, what="the first table landed"
        )
        wait_for_copy(scene)
        with owner(scene, "alter table a_first alter column n type bigint") as waiter:
            assert_let_through(waiter)
    running.wait(check=0)
    assert_synced(scene, "t")


def test_owners_of_two_tables_that_are_read_at_once_are_both_let_through(scene: Pair) -> None:
    scene.source.execute("update a_first set n = n + 1")
    configure(scene, SLOW, SLOW | {"name": "public.a_first"})
    with slowed(scene):
        running = scene.popen("sync", "--jobs", "2")
        wait_for_copy(scene, tables=2)
        with owner(scene, "alter table a_first add column late int") as first:
            assert_let_through(first)
            with owner(scene, "alter table t add column late int") as second:
                assert_let_through(second)
    running.wait(check=0)
    assert_synced(scene, "a_first", "t")


def test_a_read_that_nobody_waits_for_is_not_given_up(scene: Pair) -> None:
    configure(scene, SLOW)
    with slowed(scene):
        running = scene.popen("sync")
        wait_for_copy(scene)
        scene.source.execute("update t set n = n + 1 where id = 1")
        read_s = "select extract(epoch from max(now() - query_start)) from pg_stat_activity where usename = %s"
        wait_until(
            lambda: scene.source.execute(read_s, [scene.reader]).fetchall()[0][0] > 2 * MAX_HOLD_S, what="a long read"
        )
    running.wait(check=0)
    assert scene.control_rows("public.t")[-1]["attempts"] == 1


def test_an_owner_who_keeps_the_table_fails_it_alone(scene: Pair) -> None:
    scene.source.execute("update a_first set n = n + 1")
    scene.write_config(tables=["public.a_first", "public.t"], source={"lock_timeout": "500ms"})
    with psycopg.connect(scene.source_server.admin_dsn(scene.source_db)) as holder:
        holder.execute("lock table t in access exclusive mode")
        finished = scene.run("sync", check=6)
    assert "error [lock_timeout]" in finished.stderr
    row = scene.control_rows("public.t")[-1]
    assert (row["status"], row["error_code"]) == ("failed", "55P03")
    assert_synced(scene, "a_first")
    scene.run("sync")
    assert_synced(scene, "t")
