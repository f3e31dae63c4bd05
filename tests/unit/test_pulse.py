"""When a stream counts as one that moves."""

from __future__ import annotations

import threading

import pytest

from replicator.monitor.facts import SourceAnswer
from replicator.serve.pulse import MOVED_S, Pulse
from replicator.serve.source_watch import SourceWatch
from tests.wait import wait_until


def test_a_stream_that_was_seen_to_move_counts_as_streaming_for_a_while() -> None:
    pulse = Pulse()
    assert pulse.judge((1, 10), 0.0) is None
    assert pulse.judge((1, 10), 1.0) is None
    assert pulse.judge((1, 11), 2.0) is True
    assert pulse.judge((1, 11), 2.0 + MOVED_S / 2) is True
    assert pulse.judge((1, 11), 2.0 + MOVED_S) is None


def test_of_a_new_listener_nothing_is_known_until_it_moves() -> None:
    pulse = Pulse()
    pulse.judge((1, 10), 0.0)
    assert pulse.judge((1, 11), 1.0) is True
    assert pulse.judge((2, 11), 2.0) is None
    assert pulse.judge((2, 12), 3.0) is True
    pulse.forget()
    assert pulse.judge((2, 13), 4.0) is None


def test_the_source_is_asked_seldom_and_a_silent_one_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.serve.source_watch._WAIT_S", 0.05)
    silence, asked = threading.Event(), []

    def ask() -> SourceAnswer:
        asked.append(1)
        silence.wait(20)
        return SourceAnswer()

    watch = SourceWatch(ask)
    assert watch.read().problem is not None
    assert watch.read().problem is not None
    assert len(asked) == 1
    silence.set()
    wait_until(lambda: watch.read().problem is None, what="the answer is there")
    watch.read()
    assert len(asked) == 1, "not asked again within a second"
