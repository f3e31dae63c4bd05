"""Which stamp an honest transaction cannot have, told from who was open when."""

from __future__ import annotations

from datetime import UTC, datetime

from replicator.reading import Observation
from replicator.trust import Trust, prove_start


def at(minute: int) -> datetime:
    """Return a moment of one hour."""
    return datetime(2026, 1, 1, 12, minute, tzinfo=UTC)


def seen(minute: int, *transactions: str, prepared: int = 0) -> Observation:
    """Return an observation of open transactions."""
    return Observation(at(minute), frozenset(transactions), prepared)


def test_a_quiet_source_proves_its_newest_observation() -> None:
    assert prove_start([seen(9), seen(8), seen(1)]) == at(9)


def test_what_is_open_throughout_leaves_nothing_proved() -> None:
    assert prove_start([seen(9, "a"), seen(8, "a", "b"), seen(7, "a")]) is None
    assert prove_start([]) is None


def test_two_steps_back_are_needed() -> None:
    """`b` was open at 8, ended by 9, and may have taken its xid in between: its stamps are from before 8."""
    assert prove_start([seen(9, "a"), seen(8, "b"), seen(7, "b"), seen(6, "c")]) == at(6)


def test_a_prepared_transaction_proves_nothing() -> None:
    assert prove_start([seen(9, prepared=1), seen(8)]) is None


def test_an_observation_from_a_clock_that_was_set_back_is_passed_over() -> None:
    assert prove_start([seen(5, "a"), seen(9, "b"), seen(4, "b"), seen(3)]) == at(3)


def test_the_sentence_names_numbers_or_the_reason() -> None:
    assert Trust("at", at(5), 7, 2, 1).sentence == (
        "2 of 7 row versions written since the sync of 2026-01-01 12:05:00+00:00 did not move at; "
        "1 have none, and are read at every sync"
    )
    assert "no row was written" in Trust("at", at(5), 0, 0, 0).sentence
    assert Trust("at", unknown="of this").sentence == "whether changes move at is not known: of this"
