"""What networks, signals, administrators and other runs do to a sync, and that it ends right or not at all."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from psycopg import sql

from replicator import patience
from replicator.db import connect
from replicator.errors import OperatorError, PassingError, PreflightError
from replicator.sync import pipeline
from tests.chaos.moment import (
    SLOWLY,
    held_merge,
    held_read,
    read_settings,
    slowed,
    terminate_sessions,
    wait_for_copy,
    wait_for_lock,
    wait_for_merge,
    wait_for_silence,
)
from tests.chaos.scale import SCALE
from tests.fault_proxy import FaultProxy
from tests.pair import Finished, Pair, Running, merge_config
from tests.wait import wait_until

ROWS = 100
SIDES = ("source", "target")
COMMIT = b"COMMIT\x00"
"""The whole statement: ON COMMIT DROP is not it."""


@pytest.fixture
def scene(pair: Pair) -> Pair:
    """Return a pair whose table t is in sync, and then changed."""
    create_table(pair, "t")
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    change_table(pair, "t")
    return pair


def create_table(pair: Pair, table: str, rows: int = ROWS) -> None:
    pair.source.execute(
        f"create table {table} (id int primary key, n int not null);"
        f"insert into {table} select g, 0 from generate_series(1, {rows}) g"
    )
    pair.grant()


def change_table(pair: Pair, table: str) -> None:
    """Change every row, delete one and add one."""
    pair.source.execute(
        f"update {table} set n = n + 1; delete from {table} where id = (select min(id) from {table});"
        f"insert into {table} select max(id) + 1, 0 from {table}"
    )


def read_target(pair: Pair, table: str = "t") -> list[tuple[int, int]]:
    return pair.target.execute(f"select id, n from {table} order by id").fetchall()


def write_slow_config(pair: Pair) -> None:
    """Let t be read slowly from now on, with its position as if it had always been so."""
    pair.write_config(tables=[{"name": "public.t", "where": SLOWLY}])


def assert_settled(pair: Pair, table: str = "t") -> None:
    """Prove that a clean sync works and leaves nothing behind."""
    pair.run("sync")
    pair.assert_equal(table)
    assert not pair.control_rows(status="running")


def last_row(pair: Pair, table: str = "public.t") -> dict[str, object]:
    return pair.control_rows(table)[-1]


@contextmanager
def proxied(pair: Pair, side: str, **sections: Any) -> Iterator[FaultProxy]:
    """Put a fault proxy between the tool and one of the servers."""
    server, dsn = {
        "source": (pair.source_server, pair.dsn_of_source),
        "target": (pair.target_server, pair.dsn_of_target),
    }[side]
    with FaultProxy(server.host, server.port) as proxy:
        config: dict[str, Any] = {"tables": ["public.t"], side: {"dsn": dsn(port=proxy.port)}}
        merge_config(config, sections)
        pair.write_config(**config)
        yield proxy
    pair.write_config(tables=["public.t"])


# ------------------------------------------------------------------------------------------------- signals


@pytest.mark.hazard("F2")
def test_a_sync_told_to_stop_while_it_reads_leaves_the_table_as_it_was(scene: Pair) -> None:
    before = read_target(scene)
    write_slow_config(scene)
    with slowed(scene):
        running = scene.popen("sync")
        wait_for_copy(scene)
        running.send(signal.SIGTERM)
        finished = running.wait(10, check=1)
    assert_interrupted(scene, finished, before)


@pytest.mark.hazard("F2")
def test_a_sync_told_to_stop_while_it_writes_leaves_the_table_as_it_was(scene: Pair) -> None:
    before = read_target(scene)
    with held_merge(scene, "t"):
        running = scene.popen("sync")
        wait_for_merge(scene)
        running.send(signal.SIGTERM)
        finished = running.wait(10, check=1)
    assert_interrupted(scene, finished, before)


@pytest.mark.hazard("F2")
def test_a_sync_told_to_stop_while_it_waits_for_a_lock_does_not_begin_to_read(scene: Pair) -> None:
    before = read_target(scene)
    scene.write_config(tables=["public.t"], source={"lock_timeout": "2s"})
    with held_read(scene, "t"):
        running = scene.popen("sync")
        wait_for_lock(scene)
        running.send(signal.SIGTERM)
        finished = running.wait(10, check=1)
    assert_interrupted(scene, finished, before)


def assert_interrupted(pair: Pair, finished: Finished, before: list[tuple[int, int]]) -> None:
    """Prove that the run changed nothing, says so, and is followed by a good one."""
    assert "error [interrupted]" in finished.stderr, finished
    row = last_row(pair)
    assert (row["status"], row["error_code"]) == ("failed", "interrupted")
    assert read_target(pair) == before
    wait_for_silence(pair)
    pair.write_config(tables=["public.t"])
    assert_settled(pair)


@pytest.mark.hazard("F2")
def test_a_sync_told_to_stop_keeps_the_tables_that_have_landed(scene: Pair) -> None:
    create_table(scene, "quick")
    scene.write_config(tables=[{"name": "public.t", "where": SLOWLY}, {"name": "public.quick"}])
    with slowed(scene):
        running = scene.popen("sync", "--jobs", "2")
        landed = "select to_regclass('quick') is not null"
        wait_until(lambda: scene.target.execute(landed).fetchone() == (True,), what="quick landed")
        running.send(signal.SIGTERM)
        running.wait(10, check=6)
    scene.assert_equal("quick")
    assert last_row(scene, "public.quick")["status"] == "success"
    assert last_row(scene)["error_code"] == "interrupted"


@pytest.mark.hazard("F2")
def test_no_moment_to_stop_is_wrong(scene: Pair, record_property: Callable[[str, object], None]) -> None:
    chance = random.Random(seed := random.SystemRandom().getrandbits(32))
    left_s = measure_sync(scene)
    codes: list[int] = []
    while len(codes) < round(10 * SCALE) or (1 not in codes and len(codes) < 60):
        change_table(scene, "t")
        running = start_sync(scene)
        time.sleep(chance.uniform(0.0, left_s))
        running.send(signal.SIGTERM)
        codes.append(running.wait(20).exit_code)
        assert not scene.control_rows(status="running"), (seed, codes)
        # Past its work the process is like any other: what it dies of then changes nothing.
        assert (last_row(scene)["status"] == "success") == (codes[-1] != 1), (seed, codes)
    record_property("measured", f"SIGTERM at random moments (seed {seed}): exit codes {codes}")
    assert set(codes) <= {0, 1, -signal.SIGTERM}
    assert 1 in codes
    assert_settled(scene)


def start_sync(pair: Pair) -> Running:
    """Start a sync and return when it has connected."""
    running = pair.popen("sync")
    query = "select 1 from pg_stat_activity where usename = %s"
    wait_until(lambda: pair.target.execute(query, [pair.writer]).rowcount, what="the sync connected", interval_s=0.005)
    return running


def measure_sync(pair: Pair) -> float:
    """Run a sync and return its seconds from the first connection on."""
    running = start_sync(pair)
    began = time.monotonic()
    running.wait(check=0)
    return time.monotonic() - began


@pytest.mark.hazard("F3")
def test_a_sync_that_was_paused_goes_on(scene: Pair) -> None:
    write_slow_config(scene)
    with slowed(scene):
        running = scene.popen("sync")
        wait_for_copy(scene)
        running.send(signal.SIGSTOP)
        change_table(scene, "t")
    time.sleep(3 * SCALE)
    running.send(signal.SIGCONT)
    running.wait(check=0)
    assert last_row(scene)["attempts"] == 1
    assert_settled(scene)


# ------------------------------------------------------------------------------------------------- network


@pytest.mark.hazard("F4")
@pytest.mark.parametrize("side", SIDES)
def test_no_moment_for_a_reset_is_wrong(scene: Pair, side: str, record_property: Callable[[str, object], None]) -> None:
    chance = random.Random(seed := random.SystemRandom().getrandbits(32))
    with proxied(scene, side) as proxy:
        left_s = measure_sync(scene)
        resets = 0
        for _ in range(round(10 * SCALE)):
            change_table(scene, "t")
            running = start_sync(scene)
            time.sleep(chance.uniform(0.0, left_s))
            resets += proxy.live > 0
            proxy.reset()
            running.wait(check=0)
            scene.assert_equal("t")
    record_property("measured", f"resets of the {side}'s link (seed {seed}): {resets} that hit a connection")
    assert resets >= 3
    assert_settled(scene)


@pytest.mark.hazard("F4")
@pytest.mark.hazard("O1")
@pytest.mark.parametrize("side", SIDES)
def test_a_server_that_is_away_for_a_while_costs_retries_and_no_rows_of_the_record(scene: Pair, side: str) -> None:
    with proxied(scene, side, tables=[{"name": "public.t", "where": SLOWLY}]) as proxy:
        already = len(scene.control_rows("public.t"))
        with slowed(scene):
            running = scene.popen("sync")
            wait_for_copy(scene)
            proxy.refuse()
            proxy.reset()
        time.sleep(3)
        assert running.running
        proxy.heal()
        running.wait(check=0)
    (row,) = scene.control_rows("public.t")[already:]
    assert (row["status"], row["error_code"]) == ("success", None)
    assert row["attempts"] == 2
    scene.assert_equal("t")


@pytest.mark.hazard("F4")
@pytest.mark.parametrize("side", SIDES)
def test_a_server_that_stays_away_ends_the_run_with_75(scene: Pair, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PASSING_LIMIT_S", 2.0)
    before = read_target(scene)
    slow = [{"name": "public.t", "where": SLOWLY}]
    with proxied(scene, side, tables=slow, source={"connect_timeout": "1s"}) as proxy:
        settings = read_settings(scene)
        assert settings.target.dsn is not None
        with slowed(scene), striking(scene, proxy):
            try:
                code = pipeline.sync(settings, settings.target.dsn.get_secret_value()).exit_code
            except PassingError as error:  # with the target away there is nobody to ask what became of the tables
                code = error.exit_code
        assert code == 75
        assert read_target(scene) == before
        proxy.heal()
        if side == "source":
            assert last_row(scene)["status"] == "failed"
        assert_settled(scene)


@contextmanager
def striking(pair: Pair, proxy: FaultProxy) -> Iterator[None]:
    """Take the server away, from another thread, once the block copies."""

    def strike() -> None:
        wait_for_copy(pair)
        proxy.refuse()
        proxy.reset()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.hazard("F4")
def test_a_snapshot_that_was_lost_is_taken_anew(scene: Pair) -> None:
    """t fails, so its reader is replaced, and the new one finds nobody who holds the snapshot that it shall enter."""
    create_table(scene, "tail", rows=10)
    scene.write_config(tables=["public.t", "public.tail"])
    scene.run("sync")
    scene.target.execute("alter table t add constraint only_small check (n < 1000)")
    scene.source.execute("update t set n = 5000; update tail set n = n + 1")
    with held_merge(scene, "t"):
        running = scene.popen("sync", "--jobs", "1")
        wait_for_merge(scene)
        locked = "select count(*) from pg_locks l where l.pid = a.pid and l.relation = any ('{t,tail}'::regclass[])"
        assert terminate_sessions(scene.source, scene.reader, f"2 = ({locked})") == 1
    running.wait(check=6)
    assert last_row(scene)["error_code"] == "23514"
    scene.assert_equal("tail")


@pytest.mark.hazard("F4")
@pytest.mark.parametrize("side", SIDES)
def test_one_byte_at_a_time_is_enough(scene: Pair, side: str) -> None:
    with proxied(scene, side) as proxy:
        proxy.trickle()
        scene.run("sync")
        scene.assert_equal("t")


@pytest.mark.hazard("F4")
@pytest.mark.parametrize("side", SIDES)
def test_a_link_that_is_silent_for_a_while_is_waited_for(scene: Pair, side: str) -> None:
    with proxied(scene, side, tables=[{"name": "public.t", "where": SLOWLY}]) as proxy:
        with slowed(scene):
            running = scene.popen("sync")
            wait_for_copy(scene)
            proxy.black_hole()
            time.sleep(3)
        proxy.heal()
        running.wait(check=0)
        scene.assert_equal("t")
    assert last_row(scene)["attempts"] == 1


@pytest.mark.hazard("F4")
@pytest.mark.parametrize("side", SIDES)
def test_a_silent_link_that_is_found_dead_is_replaced(scene: Pair, side: str) -> None:
    with proxied(scene, side, tables=[{"name": "public.t", "where": SLOWLY}]) as proxy:
        with slowed(scene):
            running = scene.popen("sync")
            wait_for_copy(scene)
            proxy.black_hole()
            time.sleep(1)
            proxy.reset()
        proxy.heal()
        running.wait(check=0)
        scene.assert_equal("t")
    assert last_row(scene)["attempts"] == 2


@pytest.mark.hazard("F4")
@pytest.mark.parametrize("side", SIDES)
def test_a_server_that_never_answers_ends_the_wait_with_4(scene: Pair, side: str) -> None:
    with proxied(scene, side, source={"connect_timeout": "2s"}) as proxy:
        proxy.black_hole()
        finished = scene.run("sync", check=4, timeout_s=15)
    assert f"no connection to the {side} within 2 s" in finished.stderr


@pytest.mark.hazard("F4")
def test_a_dead_peer_is_noticed_in_minutes_and_not_in_hours(scene: Pair) -> None:
    with connect(scene.target_dsn, side="target") as connection:
        link = socket.socket(fileno=connection.fileno())
        try:
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle_s, interval_s, count = (
                link.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
        finally:
            link.detach()
    assert idle_s + interval_s * count <= 300


# --------------------------------------------------------------------------------------- the answer to COMMIT


@pytest.mark.hazard("F5")
@pytest.mark.hazard("B27")
def test_data_whose_commit_got_no_answer_is_not_loaded_twice(scene: Pair) -> None:
    with proxied(scene, "target") as proxy:
        with held_merge(scene, "t"):
            running = scene.popen("sync")
            wait_for_merge(scene)
            proxy.lose_answer_to(COMMIT)
        running.wait(check=0)
        assert proxy.lost_answers == 1
    row = last_row(scene)
    assert (row["status"], row["attempts"]) == ("success", 1)
    assert (row["rows_inserted"], row["rows_updated"], row["rows_deleted"]) == (1, ROWS - 1, 1)
    assert_settled(scene)


@pytest.mark.hazard("F5")
def test_a_run_whose_first_commit_got_no_answer_goes_on(scene: Pair) -> None:
    with proxied(scene, "target") as proxy:
        proxy.lose_answer_to(COMMIT)
        scene.run("sync")
        assert proxy.lost_answers == 1
        scene.assert_equal("t")
    assert_settled(scene)


@pytest.mark.hazard("F5")
def test_a_control_schema_whose_commit_got_no_answer_is_used(pair: Pair) -> None:
    create_table(pair, "t")
    with proxied(pair, "target") as proxy:
        proxy.lose_answer_to(COMMIT)
        pair.run("sync")
        assert proxy.lost_answers == 1
        pair.assert_equal("t")
    assert_settled(pair)


# ------------------------------------------------------------------------------------------------ other runs


@pytest.mark.hazard("F6")
def test_a_second_run_gives_up_after_lock_wait_and_leaves_the_first_alone(scene: Pair) -> None:
    scene.write_config(tables=["public.t"], lock_wait="1s")
    with held_merge(scene, "t"):
        first = scene.popen("sync")
        wait_for_merge(scene)
        already = len(scene.control_rows())
        second = scene.run("sync", check=5)
        assert len(scene.control_rows()) == already
    first.wait(check=0)
    assert "error [lock_held]" in second.stderr
    scene.assert_equal("t")
    assert_settled(scene)


@pytest.mark.hazard("F6")
def test_a_second_run_waits_for_the_first_and_then_does_its_work(scene: Pair) -> None:
    with held_merge(scene, "t"):
        first = scene.popen("sync")
        wait_for_merge(scene)
        change_table(scene, "t")
        second = scene.popen("sync")
        waiting = "select 1 from pg_stat_activity where usename = %s and wait_event = 'advisory'"
        wait_until(lambda: scene.target.execute(waiting, [scene.writer]).rowcount, what="the second run waits")
    first.wait(check=0)
    second.wait(check=0)
    scene.assert_equal("t")
    assert not scene.control_rows(status="failed")


@pytest.mark.hazard("F6")
def test_first_runs_that_start_together_take_turns(pair: Pair) -> None:
    create_table(pair, "t")
    pair.write_config(tables=["public.t"])
    runs = [pair.popen("sync") for _ in range(4)]
    for running in runs:
        running.wait(check=0)
    pair.assert_equal("t")
    assert [row["status"] for row in pair.control_rows()] == ["success"] * 4


@pytest.mark.hazard("F7")
@pytest.mark.hazard("B28")
@pytest.mark.parametrize("moment", ["reading", "merging", "waiting for the source"])
def test_a_stale_run_writes_nothing_after_its_successor(scene: Pair, moment: str) -> None:
    with ExitStack() as held:
        if moment == "reading":
            held.enter_context(slowed(scene))
            write_slow_config(scene)
            stale = scene.popen("sync")
            wait_for_copy(scene)
        elif moment == "merging":
            held.enter_context(held_merge(scene, "t"))
            stale = scene.popen("sync")
            wait_for_merge(scene)
        else:
            held.enter_context(held_read(scene, "t"))
            stale = scene.popen("sync")
            wait_for_lock(scene)
        stale.send(signal.SIGSTOP)
        terminate_sessions(scene.target, scene.writer)
        terminate_sessions(scene.source, scene.reader)
    change_table(scene, "t")
    scene.write_config(tables=["public.t"])
    scene.run("sync")
    scene.assert_equal("t")
    after = read_target(scene)
    record = scene.control_rows()
    change_table(scene, "t")
    stale.send(signal.SIGCONT)
    finished = stale.wait(check=1)
    assert "error [fenced]" in finished.stderr
    assert read_target(scene) == after
    assert scene.control_rows() == record
    assert_settled(scene)


@pytest.mark.hazard("F7")
@pytest.mark.hazard("B28")
def test_a_stale_worker_with_a_live_connection_is_fenced_off(scene: Pair) -> None:
    """Only the session that holds the run's lock is lost; the worker still has its connections and its snapshot."""
    create_table(scene, "tail", rows=10)
    scene.write_config(tables=["public.t", "public.tail"])
    scene.run("sync", "public.tail")
    change_table(scene, "tail")
    with held_merge(scene, "t"):
        stale = scene.popen("sync", "--jobs", "1")
        wait_for_merge(scene)
        stale.send(signal.SIGSTOP)
        lock_holder = "pid in (select pid from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock')"
        not_working = f"{lock_holder} and state = 'idle'"
        assert terminate_sessions(scene.target, scene.writer, not_working) == 1
        change_table(scene, "tail")
        scene.run("sync", "public.tail")
        scene.assert_equal("tail")
        after = read_target(scene, "tail")
    stale.send(signal.SIGCONT)
    finished = stale.wait()
    assert finished.exit_code == 6, finished
    assert "error [fenced]: public.tail" in finished.stderr
    assert read_target(scene, "tail") == after
    scene.assert_equal("t")
    assert_settled(scene, "tail")


@pytest.mark.hazard("F7")
def test_a_successor_waits_no_longer_than_lock_wait_for_a_stale_workers_table(scene: Pair) -> None:
    scene.write_config(tables=["public.t"], lock_wait="1s")
    with held_merge(scene, "t"):
        stale = scene.popen("sync")
        wait_for_merge(scene)
        stale.send(signal.SIGSTOP)
        terminate_sessions(scene.target, scene.writer, "state = 'idle'")
        finished = scene.run("sync", check=5, timeout_s=20)
    assert "error [lock_held]" in finished.stderr
    stale.send(signal.SIGCONT)
    stale.wait()
    assert_settled(scene)


# ------------------------------------------------------------------------------------------------------ rights


@pytest.mark.hazard("F8")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["password rotated", "role locked"])
def test_a_role_that_is_locked_out_stops_the_run_until_it_is_let_in(scene: Pair, side: str, how: str) -> None:
    before = read_target(scene)
    lock_out(scene, side, how)
    finished = scene.run("sync", check=4)
    assert "error [no_connection]" in finished.stderr
    assert read_target(scene) == before
    let_in(scene, side)
    assert_settled(scene)


@pytest.mark.hazard("F8")
@pytest.mark.parametrize("how", ["password rotated", "role locked"])
def test_a_role_that_is_locked_out_in_the_middle_of_a_run_is_not_tried_again_and_again(scene: Pair, how: str) -> None:
    before = read_target(scene)
    with held_read(scene, "t"):
        running = scene.popen("sync")
        wait_for_lock(scene)
        lock_out(scene, "source", how)
    running.wait(15, check=1)
    row = last_row(scene)
    assert (row["status"], row["error_code"]) == ("failed", "no_connection")
    assert read_target(scene) == before
    let_in(scene, "source")
    assert_settled(scene)


def lock_out(pair: Pair, side: str, how: str) -> None:
    action = "password 'another'" if how == "password rotated" else "nologin"
    alter_role(pair, side, sql.SQL(action))


def let_in(pair: Pair, side: str) -> None:
    password = pair.reader_password if side == "source" else pair.writer_password
    alter_role(pair, side, sql.SQL("login password {}").format(sql.Literal(password)))


def alter_role(pair: Pair, side: str, action: sql.Composable) -> None:
    connection, role = (pair.source, pair.reader) if side == "source" else (pair.target, pair.writer)
    connection.execute(sql.SQL("alter role {} {}").format(sql.Identifier(role), action))


@pytest.mark.hazard("F8")
def test_a_grant_that_is_taken_away_and_given_back_costs_no_row(scene: Pair) -> None:
    before = read_target(scene)
    scene.source.execute(f"revoke select on t from {scene.reader}")
    finished = scene.run("sync", check=4)
    assert "error [grant_missing]" in finished.stderr
    assert read_target(scene) == before
    scene.grant()
    assert_settled(scene)


@pytest.mark.hazard("F8")
def test_a_grant_that_is_taken_away_in_the_middle_of_a_run_fails_its_table_alone(scene: Pair) -> None:
    create_table(scene, "tiny", rows=3)
    scene.write_config(tables=["public.t", "public.tiny"])
    with held_merge(scene, "t"):
        running = scene.popen("sync", "--jobs", "1")
        wait_for_merge(scene)
        scene.source.execute(f"revoke select on tiny from {scene.reader}")
    running.wait(check=6)
    scene.assert_equal("t")
    assert last_row(scene, "public.tiny")["error_code"] == "42501"
    scene.grant()
    assert_settled(scene, "tiny")


@pytest.mark.hazard("F8")
def test_a_right_on_the_target_that_is_taken_away_and_given_back_costs_no_row(scene: Pair) -> None:
    before = read_target(scene)
    scene.target.execute("alter table t owner to postgres")
    finished = scene.run("sync", check=4)
    assert "error [grant_missing]" in finished.stderr
    assert read_target(scene) == before
    scene.target.execute(f"alter table t owner to {scene.writer}")
    assert_settled(scene)


# ----------------------------------------------------------------------------------------------------- restore


@pytest.mark.hazard("F9")
def test_a_target_restored_from_an_older_backup_catches_up(pair: Pair) -> None:
    for table in ("by_xmin", "by_mark"):
        pair.source.execute(
            f"create table {table} (id int primary key, n int not null, at timestamptz not null default now());"
            f"insert into {table} select g, 0 from generate_series(1, 500) g"
        )
    pair.grant()
    mark = {"name": "public.by_mark", "strategy": "watermark", "watermark": "at", "watermark_slack": "0s"}
    pair.write_config(tables=[{"name": "public.by_xmin", "strategy": "xmin"}, mark])
    pair.run("sync")
    backup = back_up(pair)
    for first in (1, 201):
        for table in ("by_xmin", "by_mark"):
            pair.source.execute(
                f"update {table} set n = n + 1, at = now() where id between {first} and {first + 99};"
                f"delete from {table} where id between {first} and {first + 9};"
                f"insert into {table} values ({first}, -1), ({first + 1000}, -1);"
                f"update {table} set id = id + 2000, at = now() where id = {first + 50}"
            )
        pair.run("sync")
    restore(pair, backup)
    pair.run("sync")
    for table in ("by_xmin", "by_mark"):
        pair.assert_equal(table)
        row = last_row(pair, f"public.{table}")
        assert (row["load_type"], row["rows_missed_before"]) == ("incremental", 0)
    assert not pair.control_rows(status="running")


@pytest.mark.hazard("F9")
def test_a_backup_taken_in_the_middle_of_a_run_is_as_good(scene: Pair) -> None:
    with held_merge(scene, "t"):
        running = scene.popen("sync")
        wait_for_merge(scene)
        running.kill()
    wait_for_silence(scene)
    assert scene.control_rows(status="running")
    backup = back_up(scene)
    scene.run("sync")
    change_table(scene, "t")
    scene.run("sync")
    restore(scene, backup)
    assert_settled(scene)


@pytest.mark.hazard("F9")
def test_a_database_that_is_made_anew_is_waited_for_by_whoever_was_connected_before(pair: Pair) -> None:
    backup = back_up(pair)
    pair.target.close()
    pair.target_server.drop_database(pair.target_db)
    with pytest.raises(PreflightError, match="no connection to the target"):
        connect(pair.target_dsn, side="target", first=True)
    with pytest.raises(OperatorError, match="no connection to the target") as stopped:
        connect(pair.target_dsn, side="target", timeout_s=0.5)
    assert stopped.value.exit_code == 1
    restoring = threading.Timer(0.5, rename_database, [pair, backup])
    restoring.start()
    with connect(pair.target_dsn, side="target") as connection:
        assert connection.info.dbname == pair.target_db
    restoring.join()
    pair.target = pair.target_server.connect(pair.target_db)


def back_up(pair: Pair) -> str:
    """Copy the target's database and return the copy's name."""
    pair.target.close()
    wait_for_silence_on(pair)
    backup = pair.target_server.create_database(
        pair.target_server.invent_name("backup"), template=pair.target_db, owner=pair.writer
    )
    pair.target = pair.target_server.connect(pair.target_db)
    return backup


def wait_for_silence_on(pair: Pair) -> None:
    """Wait until nobody is connected to the target: a template must be alone."""
    query = "select 1 from pg_stat_activity where datname = %s and backend_type = 'client backend'"
    wait_until(lambda: not pair.target_server.execute(query, [pair.target_db]), what="the target is left alone")


def restore(pair: Pair, backup: str) -> None:
    """Put the copy in the place of the target's database."""
    pair.target.close()
    pair.target_server.drop_database(pair.target_db)
    rename_database(pair, backup)
    pair.target = pair.target_server.connect(pair.target_db)


def rename_database(pair: Pair, backup: str) -> None:
    rename = sql.SQL("alter database {} rename to {}")
    pair.target_server.execute(rename.format(sql.Identifier(backup), sql.Identifier(pair.target_db)))
