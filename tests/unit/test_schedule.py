"""When the nightly sync runs, on the nights on which Helsinki changes its clock above all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from replicator.schedule import Schedule, find_bites, find_switches

HELSINKI = ZoneInfo("Europe/Helsinki")
SPRING = datetime(2027, 3, 28, 1, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 25, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def nightly(cron: str = "0 3 * * *", timezone: str = "Europe/Helsinki") -> Schedule:
    return Schedule.parse(cron, timezone)


def test_the_clock_of_helsinki_changes_twice_a_year_at_one_in_the_night_of_utc() -> None:
    start = datetime(2026, 10, 1, tzinfo=UTC)
    assert [s.at for s in find_switches(HELSINKI, start, start + 360 * DAY)] == [AUTUMN, SPRING]


@pytest.mark.hazard("O6")
def test_a_night_without_three_o_clock_has_one_run_right_after_the_jump() -> None:
    runs = list(islice(nightly().iterate(SPRING - DAY), 3))
    assert [run.isoformat() for run in runs] == [
        "2027-03-28T04:00:00+03:00",
        "2027-03-29T03:00:00+03:00",
        "2027-03-30T03:00:00+03:00",
    ]


@pytest.mark.hazard("O6")
def test_a_night_with_three_o_clock_twice_has_one_run_the_first_time() -> None:
    runs = list(islice(nightly().iterate(AUTUMN - timedelta(hours=12)), 2))
    assert [run.isoformat() for run in runs] == ["2026-10-25T03:00:00+03:00", "2026-10-26T03:00:00+02:00"]


@pytest.mark.parametrize("switch", [SPRING, AUTUMN])
def test_a_switch_is_told_with_what_becomes_of_the_run(switch: datetime) -> None:
    (bite,) = find_bites(nightly(), switch - 10 * DAY, switch + 10 * DAY)
    assert len(bite.runs) == 1
    told = {
        SPRING: "2027-03-28: the clock jumps from 03:00 to 04:00, so there is no 03:00; "
        "it runs at 04:00 (EEST, UTC+0300)",
        AUTUMN: "2026-10-25: 03:00 to 04:00 happens twice, and so does 03:00; it runs at 03:00 (EEST, UTC+0300)",
    }
    assert bite.message == told[switch]


@pytest.mark.parametrize(("cron", "timezone"), [("0 5 * * *", "Europe/Helsinki"), ("0 3 * * *", "UTC")])
def test_a_run_at_an_hour_that_no_switch_touches_is_not_told(cron: str, timezone: str) -> None:
    assert find_bites(nightly(cron, timezone), AUTUMN - DAY, AUTUMN + 365 * DAY) == []


def test_of_several_missed_nights_the_last_is_due() -> None:
    now = datetime(2026, 11, 10, 12, tzinfo=UTC)
    assert nightly().find_due(now - 5 * DAY, now) == datetime(2026, 11, 10, 1, tzinfo=UTC)
    assert nightly().find_due(now - timedelta(hours=2), now) is None


def test_a_moment_that_is_a_run_is_due_and_not_twice() -> None:
    moment = datetime(2026, 11, 10, 1, tzinfo=UTC)
    assert nightly().find_due(moment - DAY, moment) == moment
    assert nightly().find_due(moment, moment + timedelta(hours=3)) is None


def test_a_day_that_never_comes_has_no_run() -> None:
    assert nightly("0 3 30 2 *").find_next(AUTUMN) is None
    assert nightly("0 3 30 2 *").find_due(AUTUMN - DAY, AUTUMN) is None


def test_a_run_every_minute_is_found_without_counting_a_year_of_them() -> None:
    now = datetime(2026, 11, 10, 12, tzinfo=UTC)
    assert nightly("* * * * *").find_due(now - 300 * DAY, now) == now
