"""PgBouncer between the tool and either server: what works through it, and how the rest is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from replicator.capture.pull import BEGIN_READ, Access, set_up_read
from replicator.db import connect
from tests.conftest import MakeCluster, MakePair
from tests.finding import check, ids
from tests.pair import Pair
from tests.pgbouncer import PgBouncer
from tests.servers import Workspace
from tests.streaming import catch_up
from tests.wait import wait_until

Between = Callable[..., PgBouncer]
SPOIL = "set extra_float_digits = 0; set bytea_output = escape; set intervalstyle = sql_standard"
COMMANDS = [
    ("plan",), ("sync",), ("verify",), ("resync", "--yes"), ("listen",), ("listen", "--until-caught-up"),
    ("why", "public.t", "1"),
]  # fmt: skip
OF_SOURCE = ("slot", "list")
OF_TARGET = [("quarantine", "list"), ("status",), ("history",), ("forget", "public.t", "--yes")]


@pytest.fixture
def between(workspace: Workspace) -> Iterator[Between]:
    """Return a function that puts a pooler in front of one side of a pair, and leads the configuration through it."""
    with ExitStack() as stack:

        def put(pair: Pair, side: str, mode: str, text: str = "", **options: Any) -> PgBouncer:
            server = pair.source_server if side == "source" else pair.target_server
            pooler = stack.enter_context(PgBouncer(workspace, pair, server, mode=mode, **options))
            dsn = pair.dsn_of_source if side == "source" else pair.dsn_of_target
            pair.write_config(f"{side}.dsn = {json.dumps(dsn(port=pooler.port))}\n{text}", tables=["public.t"])
            return pooler

        yield put


def fill(pair: Pair) -> None:
    """Make a table whose cells another client's settings would change."""
    pair.source.execute(
        "create table t (id int primary key, f float8, b bytea, i interval);"
        "insert into t select g, 0.1 + g / 3e0, decode(md5(g::text), 'hex'), '-1 day 02:03:04'"
        " from generate_series(1, 100) g"
    )


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_every_command_names_a_pooler_that_does_not_leave_a_session_its_server(
    streamed: Pair, between: Between, side: str, mode: str
) -> None:
    """S38: at once, with nothing written and no lock left in the pool."""
    fill(streamed)
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    streamed.run("sync")
    between(streamed, side, mode)
    for command in [*COMMANDS, OF_SOURCE, *([] if side == "source" else OF_TARGET)]:
        if side == "target" and command == OF_SOURCE:
            continue
        began = time.monotonic()
        finished = streamed.run(*command, check=4)
        assert "error [session_not_pinned]" in finished.stderr, finished
        assert side in finished.stderr
        assert "pool_mode = session" in finished.stderr
        assert time.monotonic() - began < 8
    assert ids(check(streamed, exit_code=4), "error") == {"session_not_pinned"}
    locks = "select from pg_locks join pg_database d on d.oid = database where locktype = 'advisory' and datname = %s"
    assert streamed.target.execute(locks, [streamed.target_db]).rowcount == 0
    streamed.write_config(tables=["public.t"])
    streamed.run("sync")
    streamed.assert_equal("t")


@contextmanager
def busy(pair: Pair, port: int, clients: int) -> Iterator[None]:
    """Let other clients of the pool change settings again and again."""
    ended = threading.Event()

    def spoil() -> None:
        with psycopg.connect(pair.dsn_of_source(port=port), autocommit=True, prepare_threshold=None) as client:
            while not ended.is_set():
                client.execute(SPOIL)

    threads = [threading.Thread(target=spoil, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("round_robin", [False, True])
@pytest.mark.parametrize("size", [2, 20])
def test_a_busy_pool_is_found_out_as_well(pair: Pair, between: Between, size: int, round_robin: bool) -> None:
    """S38: other clients hold the servers that would tell, and the pool hands them out in turn."""
    fill(pair)
    pair.grant()
    pooler = between(pair, "source", "transaction", size=size, round_robin=round_robin)
    with busy(pair, pooler.port, 3):
        for _ in range(4):
            assert "error [session_not_pinned]" in pair.run("sync", check=4).stderr


def test_what_another_client_has_set_ends_where_a_read_begins(pair: Pair) -> None:
    """S38: the pins are the transaction's own, whatever the session has by then."""
    fill(pair)
    pair.grant()
    query = "select row(t.*)::text as cells from public.t order by id"
    with connect(pair.source_dsn, side="source") as session:
        expected = session.execute(query).fetchall()
        session.execute(SPOIL)
        session.execute("set datestyle = german; set timezone = 'Asia/Tokyo'; set search_path = public; set jit = on")
        assert session.execute(query).fetchall() != expected
        session.execute(BEGIN_READ)
        set_up_read(session, Access(pair.source_dsn, 10.0, 30.0))
        assert session.execute(query).fetchall() == expected
        assert session.execute("show search_path").fetchall() == [{"search_path": '""'}]
        session.execute("commit")


@pytest.mark.versions
@pytest.mark.parametrize("side", ["source", "target"])
def test_through_a_pooler_by_session_everything_but_the_stream_works(
    streamed: Pair, between: Between, side: str
) -> None:
    """S38: the session comes back to the pool with temporary tables behind it, and to the next command."""
    fill(streamed)
    streamed.publish()
    between(streamed, side, "session")
    for command in (("sync",), ("sync", "--full"), ("verify",), ("resync", "--yes"), ("plan",), ("status",)):
        streamed.run(*command)
        streamed.assert_equal("t")
    assert ids(check(streamed, exit_code=0), "warn") >= {"pooler"}
    if side == "source":
        return
    for number in range(3):
        streamed.source.execute("insert into t values (%s, 1, 'x', '1 day')", [1000 + number])
        catch_up(streamed)
        streamed.assert_equal("t")


@pytest.mark.parametrize(("mode", "ignored"), [("transaction", ""), ("session", ""), ("session", "replication")])
def test_a_stream_through_a_pooler_names_the_pooler(streamed: Pair, between: Between, mode: str, ignored: str) -> None:
    """S38: a pooler passes no replication connection on, and that is neither a password nor a missing right.

    One that ignores the parameter makes an ordinary session of it.
    """
    fill(streamed)
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    between(streamed, "source", mode, ignored=ignored)
    for command in (("listen",), ("listen", "--until-caught-up")):
        finished = streamed.run(*command, check=4)
        assert ("[pooler]" if mode == "session" else "[session_not_pinned]") in finished.stderr, finished
        assert "source.dsn at PostgreSQL itself" in finished.stderr
    assert ids(check(streamed, exit_code=4), "error") == {"pooler" if mode == "session" else "session_not_pinned"}


def test_a_pool_without_a_second_server_is_named(pair: Pair, between: Between) -> None:
    """S38: every run needs several sessions at once."""
    fill(pair)
    pair.grant()
    pair.constants = {"replicator.patience.PASSING_LIMIT_S": 1.0}
    between(pair, "source", "session", "source.connect_timeout = '2s'", size=1)
    finished = pair.run("sync", check=75)
    assert "error [pooler]" in finished.stderr
    assert "pool_size" in finished.stderr


def test_a_read_through_a_pooler_gives_way_as_well(pair: Pair, between: Between) -> None:
    """S38: the process ids of a pooler's greeting are nobody's, and its sessions must be ended by their own."""
    fill(pair)
    pair.grant()
    between(pair, "source", "session", "source.max_hold = '1s'")
    with psycopg.connect(pair.target_dsn) as holder:
        pair.run("sync")
        pair.source.execute("insert into t values (1000, 1, 'x', '1 day')")
        holder.execute("lock table t in access exclusive mode")
        running = pair.popen("sync")
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        wait_until(lambda: pair.target.execute(waits).rowcount == 1, what="the run waits for the target's table")
        began = time.monotonic()
        pair.source.execute("alter table t add column more int")
        assert time.monotonic() - began < 15
    running.wait(check=0)
    pair.assert_equal("t")


def test_a_listener_lives_on_when_its_pooler_and_the_server_behind_it_come_back(
    make_cluster: MakeCluster, make_pair: MakePair, between: Between
) -> None:
    """S38, F4: what a pooler says of a server that went away is a lost connection."""
    target = make_cluster()
    streamed = make_pair(target_server=target, listens=True)
    fill(streamed)
    streamed.publish()
    pooler = between(streamed, "target", "session")
    listener = streamed.popen("listen")

    def has(number: int) -> bool:
        try:
            return target.execute("select id from t where id = %s", [number], dbname=streamed.target_db) == [(number,)]
        except psycopg.Error:
            return False

    wait_until(lambda: has(100), what="the copy")
    streamed.target.close()
    target.restart("immediate")
    streamed.source.execute("insert into t values (1001, 1, 'x', '1 day')")
    wait_until(lambda: has(1001) or not listener.running, 60, what="a row after the server's restart")
    pooler.stop()
    streamed.source.execute("insert into t values (1002, 1, 'x', '1 day')")
    wait_until(lambda: "retry_scheduled" in listener.stderr.split("1001")[-1], what="a retry")
    pooler.start()
    wait_until(lambda: has(1002) or not listener.running, 120, what="a row after the pooler's restart")
    assert listener.running, listener.wait()
    streamed.target = target.connect(streamed.target_db)
    streamed.assert_equal("t")
