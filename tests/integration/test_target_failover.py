"""A target that takes no writes for a while, because another server is about to take its place."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair, Running
from tests.servers import Cluster
from tests.streaming import wait_for_stream
from tests.wait import wait_until


@pytest.fixture
def standby() -> Iterator[list[Cluster]]:
    standbys: list[Cluster] = []
    yield standbys
    for one in standbys:
        one.remove()


def make_two(
    make_cluster: MakeCluster, make_pair: MakePair, standbys: list[Cluster], **sections: Any
) -> tuple[Pair, Cluster, Cluster]:
    """Return a pair whose target is the first of two servers that answers, and both of them."""
    primary = make_cluster()
    pair = make_pair(target_server=primary, listens=True)
    standby = primary.standby()
    standbys.append(standby)
    pair.source.execute("create table t (id int primary key); insert into t select generate_series(1, 10)")
    pair.publish()
    dsn = pair.dsn_of_target(host="127.0.0.1,127.0.0.1", port=f"{primary.port},{standby.port}")
    pair.write_config(tables=["public.t"], target={"dsn": dsn}, **sections)
    return pair, primary, standby


def take_over(pair: Pair, primary: Cluster, standby: Cluster, at_work: Running) -> None:
    """Stop the primary, and promote the standby once the tool has met it several times."""
    standby.wait_for_replay(primary)
    pair.target.close()
    told = len(at_work.stderr)
    primary.stop("immediate")
    wait_until(
        lambda: at_work.stderr[told:].count('"read_only"') > 1 or not at_work.running, 60, what="the standby is met"
    )
    assert at_work.running, at_work.wait()
    standby.promote()
    pair.target_server = standby
    pair.target = standby.connect(pair.target_db)


def test_a_listener_waits_while_its_target_is_a_standby(
    standby: list[Cluster], make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """T16: it ran before, so somebody is about to promote the server; nothing is lost or doubled."""
    pair, primary, second = make_two(make_cluster, make_pair, standby)
    listener = pair.popen("listen")
    wait_for_stream(listener)
    pair.source.execute("insert into t values (11)")
    wait_until(lambda: pair.target.execute("select from t where id = 11").rowcount, what="a row of the stream")
    take_over(pair, primary, second, listener)
    pair.source.execute("insert into t values (12); delete from t where id = 1")
    wait_until(lambda: pair.target.execute("select from t where id = 12").rowcount, 60, what="a row after the failover")
    pair.assert_equal("t")


def test_a_sync_that_has_begun_waits_while_its_target_is_a_standby(
    standby: list[Cluster], make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """T16: the retries of a run bear a failover as well."""
    pair, primary, second = make_two(make_cluster, make_pair, standby)
    pair.run("sync")
    pair.source.execute("insert into t values (11)")
    with contextlib.closing(psycopg.connect(primary.admin_dsn(pair.target_db))) as holder:
        holder.execute("lock table t in access exclusive mode")
        running = pair.popen("sync")
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        wait_until(lambda: pair.target.execute(waits).rowcount == 1, what="the run waits for the target's table")
        take_over(pair, primary, second, running)
    running.wait(90, check=0)
    pair.assert_equal("t")


@pytest.mark.parametrize("command", ["sync", "listen"])
def test_a_target_that_is_a_standby_from_the_first_is_refused_at_once(
    standby: list[Cluster], make_cluster: MakeCluster, make_pair: MakePair, command: str
) -> None:
    """T16: nobody is about to promote it, as far as is known."""
    pair, _primary, second = make_two(make_cluster, make_pair, standby)
    pair.write_config(tables=["public.t"], target={"dsn": pair.dsn_of_target(port=second.port)})
    began = time.monotonic()
    finished = pair.run(command, check=4)
    assert "error [read_only]" in finished.stderr
    assert time.monotonic() - began < 20
