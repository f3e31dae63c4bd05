"""Where a stream goes on, and what proves that it may."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.continuity import (
    Expectation,
    LastCommit,
    Marker,
    Resume,
    SourcePresent,
    Standing,
    StreamRecord,
    check_advance,
    find_reads_ahead,
    judge_standing,
    plan_resume,
)
from replicator.errors import OperatorError, PassingError, ReplicatorError, SafetyStop
from replicator.position import Lsn

COMMIT = LastCommit(Lsn(290), Lsn(300), 7, 1_000)
RECORD = StreamRecord("1", 1, Lsn(100), Lsn(400), COMMIT)
NOW = SourcePresent("1", 1, Lsn(500), is_standby=False, slot="s", has_slot=True, is_lost=False, confirmed=Lsn(400))


def test_a_slot_that_confirmed_the_position_proves_it_on_whatever_timeline() -> None:
    """S36."""
    assert plan_resume(RECORD, NOW) == Resume(Lsn(400), Lsn(400))
    assert plan_resume(RECORD, replace(NOW, timeline=2)) == Resume(Lsn(400), Lsn(400), has_new_timeline=True)


def test_a_slot_between_the_last_commit_and_the_position_starts_at_its_own() -> None:
    """S35: nothing that the target has lies behind it."""
    assert plan_resume(RECORD, replace(NOW, confirmed=Lsn(350))) == Resume(Lsn(350), Lsn(350))


def test_a_slot_before_the_last_commit_has_to_send_it_again() -> None:
    """S35."""
    assert plan_resume(RECORD, replace(NOW, confirmed=Lsn(200))) == Resume(Lsn(300), Lsn(200), COMMIT)
    untouched = replace(RECORD, last_commit=None)
    assert plan_resume(untouched, replace(NOW, confirmed=Lsn(200))) == Resume(Lsn(200), Lsn(200))


@pytest.mark.parametrize(
    ("now", "family", "id_"),
    [
        (replace(NOW, system_identifier="2"), SafetyStop, "source_changed"),
        (replace(NOW, end_of_wal=Lsn(399)), OperatorError, "source_behind"),
        (replace(NOW, end_of_wal=Lsn(399), is_standby=True), PassingError, "source_behind"),
        (replace(NOW, has_slot=False, confirmed=None), OperatorError, "slot_missing"),
        (replace(NOW, is_lost=True), OperatorError, "slot_lost"),
        (replace(NOW, confirmed=Lsn(401)), OperatorError, "slot_ahead"),
        (replace(NOW, confirmed=Lsn(99)), OperatorError, "history_changed"),
        (replace(NOW, confirmed=Lsn(99), timeline=2), OperatorError, "timeline_changed"),
    ],
)
def test_what_keeps_a_stream_from_going_on(now: SourcePresent, family: type[ReplicatorError], id_: str) -> None:
    """S35, S36, S19."""
    error = plan_resume(RECORD, now)
    assert isinstance(error, family)
    assert (error.id, bool(error.hint)) == (id_, True)


def test_the_last_commit_comes_again_or_the_stream_stops_ahead_of_all_else() -> None:
    """S35."""
    expectation = Expectation(COMMIT)
    expectation.meet(Lsn(250), 6, 900)
    expectation.pass_by(Lsn(299))
    assert not expectation.is_met
    expectation.meet(Lsn(290), 7, 1_000)
    assert expectation.is_met
    expectation.pass_by(Lsn(900))


@pytest.mark.parametrize("other", [(Lsn(290), 8, 1_000), (Lsn(290), 7, 1_001), (Lsn(291), 7, 1_000)])
def test_another_commit_in_the_place_of_the_last_one_is_another_history(other: tuple[Lsn, int, int]) -> None:
    """S35."""
    with pytest.raises(OperatorError, match="history") as stop:
        Expectation(COMMIT).meet(*other)
    assert stop.value.id == "history_changed"


def test_a_stream_that_is_past_the_last_commit_without_it_is_another_history() -> None:
    """S35, S36."""
    with pytest.raises(OperatorError) as stop:
        Expectation(COMMIT, is_promoted=True).pass_by(Lsn(300))
    assert stop.value.id == "timeline_changed"


def test_a_marker_holds_only_where_each_transaction_ended_as_it_did() -> None:
    """S35."""
    marker = Marker({5: True, 6: False})
    assert Marker.parse(str(marker)) == marker
    assert marker.covers(7)
    assert not marker.covers(8)
    assert marker.holds({5: "committed", 6: "aborted"})
    assert marker.holds({5: None, 6: "aborted"}), "what is forgotten proves nothing"
    assert not marker.holds({5: "committed", 6: "committed"})
    assert not marker.holds({5: "committed", 6: "in progress"})
    assert not marker.holds({5: "committed"}), "nobody has the second one yet"


def test_what_a_stream_brought_stands_only_with_its_slot() -> None:
    """S35."""
    assert judge_standing(Lsn(10), Lsn(9), Lsn(10)) is Standing.BEHIND
    assert judge_standing(Lsn(10), Lsn(11), Lsn(9)) is Standing.UNPROVEN
    assert judge_standing(Lsn(10), Lsn(11), None) is Standing.UNPROVEN
    assert judge_standing(Lsn(10), Lsn(11), Lsn(10)) is Standing.PROVEN


def test_reads_ahead_of_a_source_are_told_and_of_a_standby_only_warned_of() -> None:
    """S35."""
    assert find_reads_ahead([Lsn(400)], NOW, has_lost_marker=False) is None
    assert isinstance(find_reads_ahead([Lsn(501)], NOW, has_lost_marker=False), OperatorError)
    assert isinstance(find_reads_ahead([Lsn(400)], NOW, has_lost_marker=True), OperatorError)
    standby = replace(NOW, is_standby=True)
    assert isinstance(find_reads_ahead([Lsn(501)], standby, has_lost_marker=False), PassingError)


def test_wal_that_goes_back_under_a_running_listener_starts_it_anew() -> None:
    """S35."""
    check_advance(Lsn(5), Lsn(5))
    with pytest.raises(PassingError) as error:
        check_advance(Lsn(5), Lsn(4))
    assert error.value.id == "source_behind"
