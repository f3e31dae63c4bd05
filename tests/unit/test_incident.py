"""What counts as an incident, and when it is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from replicator.monitor.health import (
    FORECAST,
    FORECAST_OVER,
    RETAINED_BYTES,
    Kind,
    LastBatch,
    ListenerFacts,
    Parked,
    PipelineFacts,
    Problem,
    SlotState,
    in_words,
)
from replicator.monitor.incident import (
    MAX_LENGTH,
    MAX_LINES,
    PATIENCE_S,
    Incident,
    Kept,
    decide,
    describe_ended,
    describe_new,
    find_incidents,
)

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
FAILED = LastBatch("sync", "failed", "23514", "the target refused a row", NOW)
RUNS = ListenerFacts(is_running=True, is_copied=True, fresh_at=NOW)


def look(**facts: Any) -> PipelineFacts:
    return PipelineFacts(now=NOW, stale_after=timedelta(hours=26), **facts)


def kinds(sight: PipelineFacts, *open_kinds: Kind) -> list[tuple[str, str]]:
    found, _ = find_incidents(sight, [(kind, "") for kind in open_kinds])
    return [(one.kind.value, one.code) for one in found]


def test_a_pipeline_that_is_well_has_no_incident() -> None:
    assert kinds(look()) == []
    sight = look(successes={"t": NOW}, listener=RUNS, slot=SlotState("s", "reserved", 100, 10**12, 10**6))
    assert kinds(sight) == []


@pytest.mark.parametrize(
    ("code", "word"),
    [("source_empty", "safety stop"), ("too_many_deletes", "safety stop"), ("schema_drift", "schema change"),
     ("table_vanished", "gone from the source"), ("23514", "failed")],
)  # fmt: skip
def test_a_failed_run_is_called_by_what_it_asks_for(code: str, word: str) -> None:
    assert Incident(Kind.RUN, code, "", "public.t").headline == f"public.t: {word}"


def test_rows_that_a_comparison_left_are_told_until_the_next_finds_none() -> None:
    assert kinds(look(mismatched={"t": 3, "u": 0})) == [("differs", "mismatch")]


def test_a_table_that_fails_is_not_also_stale() -> None:
    old = {"t": NOW - timedelta(hours=27), "u": NOW - timedelta(hours=25)}
    assert kinds(look(successes=old)) == [("stale", "stale")]
    assert kinds(look(successes=old, batches={"t": FAILED})) == [("run", "23514")]
    assert kinds(look(successes=old, streamed=frozenset("t"))) == []


def test_a_stream_that_stopped_is_told_until_it_has_gone_on() -> None:
    stopped = {"-": LastBatch("listen", "failed", "publication_missing", "gone", NOW - timedelta(seconds=9))}
    down = ListenerFacts(is_running=False, is_copied=True, fresh_at=NOW - timedelta(minutes=1))
    assert kinds(look(batches=stopped, listener=down)) == [("run", "publication_missing")]
    assert kinds(look(batches=stopped, listener=RUNS)) == []
    assert kinds(look(listener=down)) == [("listener", "listener_down")]


def test_lag_ends_at_another_limit_than_it_begins() -> None:
    def behind(**span: float) -> PipelineFacts:
        return look(listener=ListenerFacts(True, True, NOW - timedelta(**span)))

    assert kinds(behind(minutes=4)) == []
    assert kinds(behind(minutes=6)) == [("lag", "listener_behind")]
    assert kinds(behind(minutes=4), Kind.LAG) == [("lag", "listener_behind")]
    assert kinds(behind(seconds=50), Kind.LAG) == []
    open_still = find_incidents(behind(minutes=9), [(Kind.LAG, "")])[0]
    assert open_still == find_incidents(behind(minutes=9))[0]
    assert open_still[0].message == "the listener is behind: more than 5 minutes"


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ({"seconds": 20}, "20 seconds"),
        ({"minutes": 1}, "60 seconds"),
        ({"minutes": 5}, "5 minutes"),
        ({"hours": 1}, "60 minutes"),
        ({"hours": 26}, "26 hours"),
    ],
)
def test_a_span_is_never_told_as_nothing(span: dict[str, float], words: str) -> None:
    assert in_words(timedelta(**span)) == words


def test_a_slot_is_told_before_it_is_lost() -> None:
    def slot(wal_status: str = "extended", **facts: Any) -> PipelineFacts:
        return look(listener=RUNS, slot=SlotState("s", wal_status, **facts))

    soon, later = FORECAST.total_seconds() - 1, FORECAST_OVER.total_seconds() - 1
    assert kinds(slot(invalid_in_s=soon)) == [("forecast", "slot_forecast")]
    assert kinds(slot(invalid_in_s=later)) == []
    assert kinds(slot(invalid_in_s=later), Kind.FORECAST) == [("forecast", "slot_forecast")]
    assert kinds(slot(retained_bytes=RETAINED_BYTES + 1)) == [("retained", "slot_retains")]
    assert kinds(slot(retained_bytes=RETAINED_BYTES + 1, safe_wal_bytes=1)) == []
    for status in ("unreserved", "lost", "missing"):
        assert kinds(slot(status, invalid_in_s=1.0)) == [("slot", status)]


def test_of_a_source_that_does_not_answer_slot_and_lag_are_neither_told_nor_over() -> None:
    down = ListenerFacts(False, True, NOW - timedelta(hours=1))
    found, unknown = find_incidents(look(listener=down, source_problem=Problem("08006", "no connection")))
    assert [one.kind for one in found] == [Kind.SOURCE]
    kept = Kept(Incident(Kind.SLOT, "unreserved", ""), NOW, NOW)
    assert decide(found, {kept.incident.key: kept}, NOW, unknown=unknown).ended == []


def test_an_incident_is_told_once_and_once_when_it_is_over() -> None:
    incident = Incident(Kind.RUN, "23514", "refused", "t")
    first = decide([incident], {}, NOW)
    assert [one.incident for one in first.tell] == [incident]
    told = Kept(incident, NOW, NOW)
    again = decide([incident], {incident.key: told}, NOW)
    assert (again.fresh, again.tell, again.ended) == ([], [], [])
    assert decide([], {incident.key: told}, NOW).ended == [told]


def test_an_alert_that_was_not_taken_is_told_again_and_never_said_to_be_over() -> None:
    incident = Incident(Kind.RUN, "23514", "refused", "t")
    untold = Kept(incident, NOW)
    assert decide([incident], {incident.key: untold}, NOW).tell == [untold]
    over = decide([], {incident.key: untold}, NOW)
    assert (over.ended, over.dropped) == ([], [untold])


def test_what_a_restart_brings_along_is_told_only_when_it_lasts() -> None:
    incident = Incident(Kind.LISTENER, "listener_down", "")
    first = decide([incident], {}, NOW)
    assert (len(first.fresh), first.tell) == (1, [])
    kept = {incident.key: first.fresh[0]}
    patience = timedelta(seconds=PATIENCE_S[Kind.LISTENER])
    assert decide([incident], kept, NOW + patience / 2).tell == []
    assert len(decide([incident], kept, NOW + patience).tell) == 1


def test_nobody_looks_again_after_a_command_so_a_dead_server_is_told_at_once() -> None:
    incident = Incident(Kind.TARGET, "no_connection", "")
    assert decide([incident], {}, NOW).tell == []
    assert len(decide([incident], {}, NOW, is_final=True).tell) == 1


def test_many_incidents_are_one_notice_of_bounded_length() -> None:
    incidents = [Incident(Kind.RUN, "42P01", "gone", f"public.t{n}") for n in range(500)]
    notice = describe_new("night", incidents)
    assert notice.title == "replicator night: public.t0: failed: gone, and 499 more"
    assert len(notice.body.splitlines()) == MAX_LINES + 1
    assert describe_ended("night", incidents[:1]).body == "over: public.t0: failed: gone"


def test_a_hostile_name_stays_one_printable_line() -> None:
    name = 'public."x\r\nBcc: all@example.org\x1b[2J' + "y" * 500
    notice = describe_new("night", [Incident(Kind.RUN, "42P01", "gone", name)])
    assert notice.title.isprintable()
    assert notice.body.isprintable()
    assert max(len(notice.title), len(notice.body)) <= MAX_LENGTH


def test_an_alert_says_in_its_title_what_is_wrong_and_carries_the_hint() -> None:
    stopped = LastBatch(
        "listen", "failed", "slot_lost", "the slot was invalidated: too little WAL", NOW, "run it again"
    )
    found, _ = find_incidents(look(batches={"-": stopped}))
    notice = describe_new("night", found)
    assert notice.title == "replicator night: the listener stopped: the slot was invalidated"
    assert notice.body.splitlines() == [
        "the listener stopped: the slot was invalidated: too little WAL (slot_lost)",
        "hint: run it again",
    ]
    assert describe_ended("night", found).body == "over: the listener stopped: the slot was invalidated"


def test_a_parked_table_is_told_with_its_hint_and_not_a_second_time_by_its_failed_batch() -> None:
    parked = {
        "t": Parked("identity_missing", "t has no identity: it has no key", "alter table t replica identity full")
    }
    failed = LastBatch("listen", "failed", "identity_missing", "t has no identity", NOW)
    found, _ = find_incidents(look(parked=parked, batches={"t": failed}, listener=RUNS))
    assert [(one.kind, one.code) for one in found] == [(Kind.PARKED, "identity_missing")]
    assert found[0].headline == "t: parked: t has no identity"
    assert describe_new("night", found).body.endswith("hint: alter table t replica identity full")


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_words_of_its_own(kind: Kind) -> None:
    assert Incident(kind, "code", "what: why").headline
    assert Incident(kind, "code", "what: why", "t").sentence.startswith("t: ")
