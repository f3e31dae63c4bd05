"""What systemd hears of `serve`: over a real socket, from the real command."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair, Running
from tests.serving import write_config
from tests.wait import wait_until

WATCHDOG_S = 6.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(40)
        yield receiver


def start(pair: Pair, manager: socket.socket) -> Running:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    return pair.popen("serve", env=environment)


def hear(manager: socket.socket, word: str) -> str:
    """Return the next message that holds a word."""
    while True:
        message = manager.recv(4096).decode()
        if word in message:
            return message


def hear_until(manager: socket.socket, moment: float) -> list[str]:
    """Return all that is told until a moment of the monotonic clock."""
    told = []
    while (left := moment - time.monotonic()) > 0:
        manager.settimeout(left)
        try:
            told.append(manager.recv(4096).decode())
        except TimeoutError:
            break
    manager.settimeout(40)
    return told


def test_serve_says_when_it_serves_that_it_goes_on_and_that_it_ends(pair: Pair, manager: socket.socket) -> None:
    write_config(pair)
    with start(pair, manager) as running:
        assert "STATUS=serving http://127.0.0.1:" in hear(manager, "READY=1")
        for _ in range(2):
            hear(manager, "WATCHDOG=1")
        running.send(signal.SIGTERM)
        hear(manager, "STOPPING=1")
        running.wait(30, check=0)


def test_a_target_that_is_away_is_no_reason_to_end_serve_and_one_that_hangs_is(
    make_cluster: MakeCluster, make_pair: MakePair, manager: socket.socket
) -> None:
    cluster = make_cluster()
    pair = make_pair(target_server=cluster)
    write_config(pair, source={"connect_timeout": "1s"})
    with start(pair, manager):
        hear(manager, "READY=1")
        hear(manager, "WATCHDOG=1")
        with cluster.connect(pair.target_db) as session:
            session.execute("begin; lock table replicator.migration, replicator.etl_control in access exclusive mode")
            wait_until(lambda: is_waiting(session), what="the scheduler hangs")
            hear_until(manager, time.monotonic() + 1)
            assert "WATCHDOG=1" not in hear_until(manager, time.monotonic() + WATCHDOG_S)
            session.execute("rollback")
        hear(manager, "WATCHDOG=1")
        pair.target.close()
        cluster.stop("immediate")
        for _ in range(2):
            hear(manager, "WATCHDOG=1")
        cluster.start()
        pair.target = cluster.connect(pair.target_db)


def is_waiting(session: psycopg.Connection[Any]) -> bool:
    """Say whether somebody waits for a lock."""
    return session.execute("select from pg_locks where not granted").fetchone() is not None
