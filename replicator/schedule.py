"""When the nightly sync runs: cron in a time zone, and what the nights do on which the clock is changed. Pure.

cronsim keeps to Debian's cron: a run at a fixed time that the clock jumps over comes right after the jump, and one
whose time happens twice comes the first time only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

# How far back a missed night is looked for, nearest first: a dense cron is found in the first window.
_WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=8), timedelta(days=40), timedelta(days=400))
_STEP = timedelta(hours=6)
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """cron: five fields. zone: where their hours are counted."""

    cron: str
    zone: tzinfo

    @classmethod
    def parse(cls, cron: str, timezone: str) -> Schedule:
        """Return the schedule of two settings that have been checked."""
        return cls(cron, UTC if timezone == "UTC" else ZoneInfo(timezone))

    def iterate(self, after: datetime) -> Iterator[datetime]:
        """Yield the runs after a moment, in the schedule's zone; none for a day that never comes, like 30 February."""
        try:
            yield from CronSim(self.cron, after.astimezone(self.zone))
        except CronSimError:
            return

    def find_next(self, after: datetime) -> datetime | None:
        """Return the first run after a moment."""
        return next(self.iterate(after), None)

    def find_due(self, after: datetime, now: datetime) -> datetime | None:
        """Return the last run in (after, now], which is the one to make up for when several were missed."""
        for window in _WINDOWS:
            start = max(after, now - window)
            runs = list(takewhile(lambda moment: moment <= now, self.iterate(start)))
            if runs:
                return runs[-1].astimezone(UTC)
            if start == after:
                return None
        return None


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of the clock: from one wall time to another, as `datetime`s of the two offsets."""

    at: datetime
    before: datetime
    after: datetime

    @property
    def span(self) -> tuple[datetime, datetime]:
        """Return the wall times, without zone, that are jumped over or happen twice."""
        first, last = sorted((self.before.replace(tzinfo=None), self.after.replace(tzinfo=None)))
        return first, last

    @property
    def is_gap(self) -> bool:
        """Say whether wall times are jumped over; otherwise they happen twice."""
        return self.after.replace(tzinfo=None) > self.before.replace(tzinfo=None)


def find_switches(zone: tzinfo, start: datetime, end: datetime) -> Iterator[Switch]:
    """Yield the changes of the clock between two moments."""
    moment = start.astimezone(UTC).replace(second=0, microsecond=0)
    while moment < end:
        later = moment + _STEP
        if _offset(zone, moment) != _offset(zone, later):
            at = _bisect(zone, moment, later)
            before = (at.astimezone(zone).replace(tzinfo=None) + _offset(zone, moment)) - _offset(zone, at)
            yield Switch(at, before, at.astimezone(zone))
        moment = later


def _offset(zone: tzinfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _bisect(zone: tzinfo, low: datetime, high: datetime) -> datetime:
    old = _offset(zone, low)
    while high - low > _MINUTE:
        middle = low + ((high - low) / 2 // _MINUTE) * _MINUTE
        low, high = (middle, high) if _offset(zone, middle) == old else (low, middle)
    return high


@dataclass(frozen=True, slots=True)
class Bite:
    """A night on which a change of the clock meets the schedule. nominal: the wall times; runs: what comes of them."""

    switch: Switch
    nominal: tuple[datetime, ...]
    runs: tuple[datetime, ...]

    @property
    def message(self) -> str:
        """Tell it in one sentence."""
        first, last = (moment.strftime("%H:%M") for moment in self.switch.span)
        wanted = ", ".join(moment.strftime("%H:%M") for moment in self.nominal)
        runs = ", ".join(f"{moment:%H:%M} ({moment:%Z}, UTC{moment:%z})" for moment in self.runs)
        day = self.switch.after.strftime("%Y-%m-%d")
        if self.switch.is_gap:
            what = f"{day}: the clock jumps from {first} to {last}, so there is no {wanted}"
            return f"{what}; it runs at {runs}" if runs else f"{what}; it does not run"
        return f"{day}: {first} to {last} happens twice, and so does {wanted}; it runs at {runs}"


def find_bites(schedule: Schedule, start: datetime, end: datetime) -> list[Bite]:
    """Return the nights between two moments on which a change of the clock meets the schedule."""
    return [bite for switch in find_switches(schedule.zone, start, end) if (bite := _meet(schedule, switch))]


def _meet(schedule: Schedule, switch: Switch) -> Bite | None:
    first, last = switch.span
    try:
        wall = CronSim(schedule.cron, first - _MINUTE)
        nominal = tuple(takewhile(lambda moment: moment < last, wall))
    except CronSimError:
        return None
    if not nominal:
        return None
    # A run that was jumped over comes at the moment of the jump; times that happen twice lie on both sides of it.
    around = timedelta() if switch.is_gap else last - first
    runs = schedule.iterate(switch.at - around - _MINUTE)
    end = switch.at + (_MINUTE if switch.is_gap else around)
    return Bite(switch, nominal, tuple(takewhile(lambda moment: moment < end, runs)))
