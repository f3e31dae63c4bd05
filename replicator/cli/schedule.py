"""The command `schedule`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from replicator.cli.output import print_json
from replicator.cli.session import open_settings
from replicator.errors import EXIT_OK
from replicator.schedule import Schedule, find_bites

_RUNS = 5
_OUTLOOK = timedelta(days=366)


def show_schedule(config: Path | None, *, as_json: bool) -> int:
    """Print the next runs, and the nights of the year to come on which the clock is changed under them."""
    settings = open_settings(config)
    cron, timezone = settings.schedule.cron, settings.schedule.timezone
    schedule = Schedule.parse(cron, timezone)
    now = datetime.now(UTC)
    runs = list(islice(schedule.iterate(now), _RUNS))
    bites = find_bites(schedule, now, now + _OUTLOOK)
    if as_json:
        print_json(
            {
                "cron": cron,
                "timezone": timezone,
                "runs": runs,
                "daylight_saving": [
                    {"at": bite.switch.at, "runs": bite.runs, "message": bite.message} for bite in bites
                ],
            }
        )
        return EXIT_OK
    print(f"{cron} in {timezone}" + ("" if runs else ": never"))
    for run in runs:
        print(f"  {run:%a %Y-%m-%d %H:%M} {run:%Z} (UTC{run:%z})  = {run.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
    for bite in bites:
        print(f"daylight saving, {bite.message}")
    if not bites:
        print("no change of the clock meets these runs in the year to come")
    return EXIT_OK
