"""What systemd is told, over a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.serve.notify import Heart, notify, notify_ready, notify_stopping


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield receiver


def read_all(manager: socket.socket) -> list[str]:
    manager.setblocking(False)
    told = []
    try:
        while True:
            told.append(manager.recv(4096).decode())
    except BlockingIOError:
        return told


def test_ready_carries_a_status_of_one_line(manager: socket.socket) -> None:
    notify_ready("serves\non 127.0.0.1")
    notify_stopping()
    assert read_all(manager) == ["READY=1\nSTATUS=serves on 127.0.0.1", "STOPPING=1"]


def test_an_abstract_socket_is_reached_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"replicator-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("READY=1")
        assert receiver.recv(100) == b"READY=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")


def test_the_watchdog_is_fed_by_beats_and_not_by_each(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", str(3600 * 10**6))
    heart = Heart()
    assert read_all(manager) == []
    for _ in range(1000):
        heart.beat()
    assert read_all(manager) == ["WATCHDOG=1"]


def test_the_watchdog_of_another_process_is_left_alone(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    Heart().beat()
    assert read_all(manager) == []
