"""The state of health: what is wrong, whose it is, and what to do about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from replicator.monitor.health import (
    Health,
    LastBatch,
    ListenerFacts,
    Parked,
    PipelineFacts,
    Problem,
    SlotState,
    find_table_state,
    judge,
    judge_unreachable,
)

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
FAILED = LastBatch("sync", "failed", "23514", "the target refused a row: a check", NOW, "alter table t ...")
RUNS = ListenerFacts(is_running=True, is_copied=True, fresh_at=NOW, is_streaming=True)
PARKED = Parked("identity_missing", "it cannot be streamed: it has no key", "alter table t replica identity full")


def look(**facts: Any) -> Health:
    known = {"tables": frozenset({"t"}), "successes": {"t": NOW}}
    return judge(PipelineFacts(now=NOW, stale_after=timedelta(hours=26), **{**known, **facts}))


def ids(health: Health) -> list[str]:
    return [reason.id for reason in health.reasons]


def test_a_pipeline_that_is_well_is_healthy() -> None:
    assert look().state == "healthy"
    assert look(listener=RUNS, slot=SlotState("s", "reserved"), streamed=frozenset("t")).document() == {
        "state": "healthy",
        "reasons": [],
    }


def test_a_parked_table_asks_for_attention_and_keeps_no_process_from_being_ready() -> None:
    health = look(parked={"t": PARKED}, listener=RUNS)
    assert health.state == "attention"
    assert health.find_unready(listens=True) == []
    (reason,) = health.reasons
    assert reason.document() == {
        "id": "parked",
        "scope": "table",
        "table": "t",
        "message": "parked: it cannot be streamed: it has no key (identity_missing)",
        "hint": "alter table t replica identity full",
    }


def test_a_parked_table_without_a_hint_is_told_how_it_comes_back() -> None:
    (reason,) = look(parked={'public."A b"': Parked("x", "y")}).reasons
    assert reason.hint == "replicator resync 'public.\"A b\"' --yes"


def test_a_mistyped_table_that_left_the_configuration_is_no_reason() -> None:
    assert ids(look(successes={}, batches={"t": FAILED}, unselected=frozenset("t"))) == []


def test_a_parked_table_that_was_never_copied_or_is_stale_has_one_reason() -> None:
    assert ids(look(parked={"t": PARKED}, successes={})) == ["parked"]
    assert ids(look(parked={"t": PARKED}, successes={"t": NOW - timedelta(days=9)})) == ["parked"]
    assert ids(look(parked={"t": PARKED}, tables=frozenset())) == ["parked"]
    assert ids(look(parked={"t": PARKED}, batches={"t": FAILED})) == ["parked", "run_failed"]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"batches": {"t": FAILED}}, "run_failed"),
        ({"mismatched": {"t": 3}}, "verify_differs"),
        ({"quarantined": {"t": (1, "23514")}}, "quarantine"),
        ({"successes": {}}, "never_synced"),
        ({"successes": {"t": NOW - timedelta(hours=27)}}, "stale"),
        ({"successes": {"t": NOW - timedelta(days=9)}, "unselected": frozenset("t")}, "table_unselected"),
        ({"batches": {"t": LastBatch("sync", "skipped", "table_vanished", "gone", NOW)}}, "table_gone"),
    ],
)
def test_what_is_wrong_with_one_table_is_that_table_s_and_has_a_hint(facts: dict[str, Any], name: str) -> None:
    health = look(**facts)
    (reason,) = health.reasons
    assert (reason.id, reason.scope, reason.table) == (name, "table", "t")
    assert reason.hint
    assert health.state == "attention"
    assert health.find_unready(listens=True) == []


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"listener": ListenerFacts(False, True, NOW)}, "listener_down"),
        ({"listener": ListenerFacts(True, True, NOW, False)}, "listener_not_streaming"),
        ({"listener": RUNS, "slot": SlotState("s", "missing")}, "slot_missing"),
        ({"listener": RUNS, "slot": SlotState("s", "lost")}, "slot_lost"),
        (
            {"listener": RUNS, "source_problem": Problem("28P01", "the password is wrong", "set it")},
            "source_unreachable",
        ),
        ({"batches": {"-": LastBatch("listen", "failed", "publication_missing", "gone", NOW)}}, "listener_failed"),
    ],
)
def test_what_stops_everything_is_failing_and_not_ready_where_the_process_keeps_a_listener(
    facts: dict[str, Any], name: str
) -> None:
    health = look(**facts)
    assert (health.state, ids(health)) == ("failing", [name])
    assert health.reasons[0].scope == "process"
    assert health.reasons[0].hint
    assert [reason.id for reason in health.find_unready(listens=True)] == [name]
    assert health.find_unready(listens=False) == []


def test_a_target_that_does_not_answer_keeps_every_process_from_being_ready() -> None:
    health = judge_unreachable(Problem("28P01", "the password is wrong"))
    assert (health.state, ids(health)) == ("failing", ["target_unreachable"])
    assert health.find_unready(listens=False)


@pytest.mark.parametrize(
    "facts",
    [
        {"has_dead_run": True},
        {"tables": frozenset(), "successes": {}},
        {"source_problem": Problem("08006", "no connection")},
        {"listener": ListenerFacts(True, True, NOW - timedelta(hours=1), True)},
        {"listener": RUNS, "slot": SlotState("s", "reserved", invalid_in_s=60.0)},
        {"listener": RUNS, "slot": SlotState("s", "reserved", retained_bytes=10**12)},
    ],
)
def test_what_flows_still_and_asks_to_be_looked_at_is_attention(facts: dict[str, Any]) -> None:
    health = look(**facts)
    assert (health.state, len(health.reasons), health.reasons[0].scope) == ("attention", 1, "process")
    assert health.find_unready(listens=True) == ([] if "source_problem" not in facts else list(health.reasons))


def test_a_first_copy_is_one_reason_however_many_tables_it_has() -> None:
    facts = {"tables": frozenset({"t", "u"}), "successes": {}, "slot": SlotState("s", "missing")}
    health = look(listener=ListenerFacts(True, False, None), **facts)
    assert (health.state, ids(health)) == ("attention", ["listener_copying"])
    assert len(health.find_unready(listens=True)) == 1
    assert ids(look(copying=frozenset("t"), successes={}, listener=RUNS)) == []


def test_reasons_of_the_whole_pipeline_come_first_then_parked_tables() -> None:
    health = look(
        tables=frozenset("ab"), batches={"a": FAILED}, parked={"b": PARKED}, listener=ListenerFacts(False, True, NOW)
    )
    assert ids(health) == ["listener_down", "parked", "run_failed"]


def test_a_table_is_brought_by_one_of_four() -> None:
    def state(table: str, *, is_copied: bool = True) -> str:
        return find_table_state(table, parked="p", copying="c", streamed="lp", is_copied=is_copied)

    assert [state(table) for table in "pcln"] == ["parked", "copying", "live", "nightly"]
    assert state("l", is_copied=False) == "copying"
