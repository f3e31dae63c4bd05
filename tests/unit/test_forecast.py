"""When a slot will be lost, from what was seen of it."""

from __future__ import annotations

import pytest

from replicator.capture.source_state import SlotFacts
from replicator.config.settings import Settings
from replicator.monitor import alerts
from replicator.monitor.alerts import Alarm
from replicator.position import Lsn


def slot(end: int, safe_bytes: int | None) -> SlotFacts:
    return SlotFacts("s", True, "reserved", "app", "pgoutput", Lsn(1000), Lsn(0), safe_bytes, end - 1000)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(alerts, "time", clock)
    return clock


def test_the_rate_is_taken_over_minutes_and_not_from_two_looks(clock: Clock) -> None:
    alarm = Alarm(Settings(), None)
    assert alarm._forecast(slot(2000, 10_000)) is None
    clock.now = 15
    assert alarm._forecast(slot(9000, 3000)) is None, "a burst of some seconds says nothing"
    clock.now = 100
    assert alarm._forecast(slot(12_000, 5000)) == pytest.approx(5000 / (10_000 / 100))


def test_an_old_rate_is_forgotten(clock: Clock) -> None:
    alarm = Alarm(Settings(), None)
    for now, end in ((0, 2000), (100, 1_000_000), (2000, 1_000_000), (2100, 1_000_100)):
        clock.now = now
        invalid_in_s = alarm._forecast(slot(end, 1000))
    assert invalid_in_s == pytest.approx(1000 / (100 / 100))


@pytest.mark.parametrize("safe_bytes", [None, 5000])
def test_without_a_limit_or_without_writes_there_is_no_forecast(clock: Clock, safe_bytes: int | None) -> None:
    alarm = Alarm(Settings(), None)
    for now in (0, 600):
        clock.now = now
        assert alarm._forecast(slot(2000, safe_bytes)) is None
