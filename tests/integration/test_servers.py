"""The servers under the tests: real ones of three major versions, that start, stop, break and come back."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import get_args

import psycopg
import pytest

from tests.conftest import MakeCluster
from tests.servers import (
    VERSIONS,
    Cluster,
    ServerFailed,
    StopMode,
    Workspace,
    find_segments,
    is_alive,
    open_binaries,
    open_to_all,
    open_workspace,
    read_segment,
    server_account,
)
from tests.wait import wait_until

every_version = pytest.mark.parametrize("version", VERSIONS)


@every_version
def test_a_cluster_is_of_its_version_and_keeps_its_data_through_stop_and_kill(
    make_cluster: MakeCluster, version: int
) -> None:
    cluster = make_cluster(version)
    ((major, wal_level),) = cluster.execute(
        "select current_setting('server_version_num')::int / 10000, current_setting('wal_level')"
    )
    assert (major, wal_level) == (version, "logical")
    cluster.execute("create table kept (step text)")
    port = cluster.port
    for step in get_args(StopMode):
        cluster.execute("insert into kept values (%s)", [step])
        cluster.restart(step)
    cluster.execute("insert into kept values ('kill')")
    cluster.kill()
    with pytest.raises(psycopg.OperationalError):
        cluster.connect()
    cluster.start()
    assert cluster.port == port
    assert cluster.execute("select step from kept order by ctid") == [("smart",), ("fast",), ("immediate",), ("kill",)]


@every_version
def test_a_standby_follows_and_can_take_over(make_cluster: MakeCluster, version: int) -> None:
    primary = make_cluster(version)
    standby = primary.standby()
    try:
        primary.execute("create table t (id int); insert into t values (1)")
        standby.wait_for_replay(primary)
        assert standby.execute("select id, pg_is_in_recovery() from t") == [(1, True)]
        primary.kill()
        standby.promote()
        standby.execute("insert into t values (2)")
        assert standby.execute("select count(*) from t") == [(2,)]
    finally:
        standby.remove()


def test_two_clusters_are_two_systems(make_cluster: MakeCluster) -> None:
    query = "select system_identifier from pg_control_system()"
    assert make_cluster().execute(query) != make_cluster().execute(query)


def test_a_server_that_cannot_start_shows_its_log(workspace: Workspace, make_cluster: MakeCluster) -> None:
    with pytest.raises(ServerFailed, match="shared_buffers"):
        make_cluster(settings={"shared_buffers": "nonsense"})


def test_a_port_taken_in_the_meantime_is_replaced(workspace: Workspace) -> None:
    cluster = Cluster(18, workspace)
    with socket.create_server(("127.0.0.1", cluster.port)) as taken, cluster:
        assert cluster.port != taken.getsockname()[1]
        assert cluster.execute("select 1") == [(1,)]


def test_removing_a_cluster_leaves_neither_process_nor_file(workspace: Workspace) -> None:
    with Cluster(18, workspace) as cluster:
        ((pid,),) = cluster.execute("select pg_backend_pid()")
    assert not cluster.running
    assert not cluster.home.exists()
    wait_until(lambda: not is_alive(pid), what="the backend ended")


def test_a_cluster_that_was_killed_leaves_no_shared_memory_behind(workspace: Workspace) -> None:
    with Cluster(18, workspace) as cluster:
        segment = read_segment(cluster.data / "postmaster.pid")
        assert find_segments()[segment] > 0
        cluster.kill()
        assert find_segments()[segment] == 0
    assert segment not in find_segments()


def test_a_cluster_left_by_a_dead_session_is_swept_with_its_shared_memory() -> None:
    with open_workspace() as living:
        dead = Workspace(living.path.with_name(f"rpt-dead{os.getpid()}"))
        dead.path.mkdir()
        (dead.path / "lock").touch()
        dead.path.chmod(0o755)
        cluster = Cluster(18, dead).start()
        segment = read_segment(cluster.data / "postmaster.pid")
        cluster.kill()
        with open_workspace():
            assert not dead.path.exists()
            assert segment not in find_segments()


def test_binaries_in_a_closed_directory_are_copied_to_an_open_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.servers.is_open_to_all", lambda program: False)
    copied = open_binaries(18, workspace)
    assert copied.is_relative_to(workspace.path) == bool(server_account())
    with Cluster(18, workspace) as cluster:
        assert cluster.bin == copied
        assert cluster.execute("select 1") == [(1,)]


def test_what_nobody_may_read_is_opened(tmp_path: Path) -> None:
    root = tmp_path / "closed"
    root.mkdir(mode=0o700)
    (root / "program").touch(mode=0o700)
    (root / "data").touch(mode=0o600)
    open_to_all(root)
    modes = [path.stat().st_mode & 0o777 for path in (root, root / "program", root / "data")]
    assert modes == [0o755, 0o755, 0o644]


def test_a_dead_sessions_workspace_is_swept_and_a_living_one_is_kept() -> None:
    with open_workspace() as living:
        dead = living.path.with_name("rpt-dead0000")
        dead.mkdir()
        (dead / "lock").touch()
        with open_workspace():
            assert not dead.exists()
            assert living.path.exists()
    assert not living.path.exists()
