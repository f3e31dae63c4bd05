"""What a read must cover, decided from positions alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import SafetyStop
from replicator.position import Lsn
from replicator.reading import (
    INCREMENTAL,
    Observation,
    Reading,
    SnapshotFacts,
    State,
    advance_mark,
    decide_reading,
    is_audit_due,
)
from replicator.strategy import BOUNDED, EXACT, FULL, WATERMARK, XMIN, Choice

START = datetime(2026, 3, 1, 3, tzinfo=UTC)
SLACK = timedelta(seconds=60)
FACTS = SnapshotFacts("0001-1", 1000, 1010, START, "7", 1, Lsn(5000), is_standby=False)
STATE = State(
    strategy=XMIN,
    fingerprint="f",
    xid_position=900,
    audit_xid_position=900,
    watermark_mark=START - timedelta(days=1, minutes=2),
    system_identifier="7",
    timeline=1,
    lsn=Lsn(4000),
    snapshot_at=START - timedelta(days=1),
    audited_at=START - timedelta(days=1),
)
BY_XMIN = Choice(XMIN, EXACT, "a heap")
BY_WATERMARK = Choice(WATERMARK, BOUNDED, "a view")
QUIET = Observation(START, frozenset(), 0)


def decide(
    choice: Choice = BY_XMIN, state: State = STATE, facts: SnapshotFacts = FACTS, *, full: bool = False
) -> Reading:
    return decide_reading(
        choice,
        state,
        facts,
        "f",
        full=full,
        slack=SLACK,
        observations=[QUIET],
        audit_due=False,
        audit_by_xmin=False,
        table="public.t",
    )


def test_an_unchanged_table_is_read_from_its_position() -> None:
    reading = decide()
    assert (reading.load_type, reading.since_xid) == (INCREMENTAL, 900)


@pytest.mark.parametrize(
    ("state", "facts", "reason"),
    [
        (State(), FACTS, "first run"),
        (replace(STATE, strategy=WATERMARK), FACTS, "the strategy changed"),
        (replace(STATE, fingerprint="g"), FACTS, "the definition or the rules changed"),
        (STATE, replace(FACTS, timeline=2), "the source's timeline changed"),
        (STATE, replace(FACTS, lsn=Lsn(3999)), "the source stands before the last read"),
        (STATE, replace(FACTS, next_xid=900 + (1 << 31)), "2^31 transactions have passed"),
        (STATE, replace(FACTS, next_xid=899), "2^31 transactions have passed"),
    ],
)
def test_what_breaks_the_chain_of_reads_leads_to_a_full_one(state: State, facts: SnapshotFacts, reason: str) -> None:
    reading = decide(state=state, facts=facts)
    assert reading.load_type == FULL
    assert reading.reason.startswith(reason)
    assert reading.since_xid is None


def test_another_cluster_stops_the_table_until_full_accepts_it() -> None:
    other = replace(FACTS, system_identifier="8")
    with pytest.raises(SafetyStop) as stop:
        decide(facts=other)
    assert stop.value.id == "source_changed"
    assert decide(facts=other, full=True).load_type == FULL


def test_a_clock_that_stepped_back_leads_to_a_full_read_with_a_new_mark() -> None:
    """W8."""
    state = replace(STATE, strategy=WATERMARK, snapshot_at=START + timedelta(hours=1), watermark_mark=START)
    reading = decide(BY_WATERMARK, state)
    assert reading.load_type == FULL
    assert reading.next_mark == START - SLACK


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Observation], list[tuple[float, float, bool]]]:
    """Transactions as (start, end, prepared before the end), and observations of them, newest first."""
    spans = draw(st.lists(st.tuples(st.floats(0, 1000), st.floats(0.001, 400), st.booleans()), max_size=30))
    transactions = [(start, start + length, prepared) for start, length, prepared in spans]
    moments = sorted(draw(st.lists(st.floats(0, 1000), min_size=1, max_size=8, unique=True)), reverse=True)
    return [observe(transactions, moment) for moment in moments], transactions


def observe(transactions: list[tuple[float, float, bool]], moment: float) -> Observation:
    """See what is open; the second half of a prepared transaction shows as prepared and under no session."""
    seen, prepared = set(), 0
    for number, (start, end, is_prepared) in enumerate(transactions):
        if start <= moment < end:
            if is_prepared and moment >= (start + end) / 2:
                prepared += 1
            else:
                seen.add(f"3/{number}")
    return Observation(START + timedelta(seconds=moment), frozenset(seen), prepared)


@given(histories(), st.one_of(st.none(), st.floats(-100, 2000)))
def test_no_transaction_that_a_snapshot_misses_stamps_below_the_next_mark(
    history: tuple[list[Observation], list[tuple[float, float, bool]]], mark_s: float | None
) -> None:
    """W1, W2, W15, B7, B12: whatever is open at the snapshot, or begins later, stamps at or above the mark."""
    observations, transactions = history
    mark = None if mark_s is None else START + timedelta(seconds=mark_s)
    moved = advance_mark(mark, observations, SLACK)
    if moved is None or moved == mark:
        return
    snapshot = observations[0].observed_at
    for start, end, _ in transactions:
        if START + timedelta(seconds=end) > snapshot:
            assert START + timedelta(seconds=start) - SLACK >= moved - timedelta(microseconds=2)


@given(histories(), st.floats(-100, 2000))
def test_the_mark_never_goes_back(
    history: tuple[list[Observation], list[tuple[float, float, bool]]], mark_s: float
) -> None:
    mark = START + timedelta(seconds=mark_s)
    moved = advance_mark(mark, history[0], SLACK)
    assert moved is not None
    assert moved >= mark


def test_a_prepared_transaction_holds_the_mark() -> None:
    """W15."""
    assert advance_mark(None, [Observation(START, frozenset(), 1)], SLACK) is None
    assert advance_mark(START, [Observation(START + SLACK * 9, frozenset(), 1)], SLACK) == START


def test_an_observation_dated_after_the_newest_proves_nothing() -> None:
    open_now = Observation(START, frozenset({"3/1"}), 0)
    before_the_step = Observation(START + timedelta(hours=1), frozenset(), 0)
    assert advance_mark(None, [open_now, before_the_step], SLACK) is None


@pytest.mark.parametrize(("hours", "due"), [(1, False), (24 * 7 - 2, False), (24 * 7 - 0.5, True), (24 * 8, True)])
def test_a_weekly_audit_is_due_on_the_seventh_night(hours: float, due: bool) -> None:
    state = replace(STATE, audited_at=START - timedelta(hours=hours))
    assert is_audit_due(state, START, timedelta(days=7)) is due


def test_what_was_never_audited_is_due() -> None:
    assert is_audit_due(State(), START, timedelta(days=7))
