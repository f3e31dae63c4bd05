"""When a stream counts as one that moves."""

from __future__ import annotations

from replicator.serve.pulse import MOVED_S, Pulse


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


def test_the_source_is_asked_seldom_and_again_after_a_new_start() -> None:
    pulse = Pulse()
    pulse.judge((1, 10), 0.0)
    assert pulse.ask(lambda: True, 0.0) is True
    assert pulse.ask(lambda: False, 1.0) is True
    assert pulse.ask(lambda: False, 6.0) is False
    assert pulse.ask(lambda: True, 7.0) is False
    pulse.judge((2, 10), 8.0)
    assert pulse.ask(lambda: True, 8.0) is True
