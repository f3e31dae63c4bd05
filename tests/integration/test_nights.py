"""One run a night, by a clock that the test turns: two schedulers on one pipeline, real runs of the real command."""

from __future__ import annotations

import os
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.config.settings import Settings, load_settings
from replicator.errors import LockHeldError
from replicator.serve.desk import Desk
from replicator.serve.launcher import Launcher
from replicator.serve.record import Order
from replicator.serve.scheduler import Scheduler
from tests.pair import Pair
from tests.serving import write_config
from tests.wait import wait_until

STEP = timedelta(minutes=20)
NIGHTS = {
    "autumn": ["2026-10-24T00:00", "2026-10-25T00:00", "2026-10-26T01:00"],
    "spring": ["2027-03-27T01:00", "2027-03-28T01:00", "2027-03-29T00:00"],
}


class Clock:
    def __init__(self, now: str) -> None:
        self.now = datetime.fromisoformat(now).replace(tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class Process:
    """What one `serve` has: a scheduler with a session of its own, and a launcher."""

    def __init__(self, pair: Pair, config: Path, clock: Clock) -> None:
        settings = load_settings(config)
        self.launcher = Launcher(settings, pair.target_dsn, config)
        self.scheduler = Scheduler(settings, pair.target_dsn, self.launcher, clock=clock)

    def tick(self) -> None:
        self.scheduler.tick()
        wait_until(lambda: not self.launcher.list_alive(), 60, what="the run ends")

    def close(self) -> None:
        self.launcher.drain()
        self.scheduler.close()


def read_nights(pair: Pair) -> list[str]:
    query = "select scheduled_for, exit_code from replicator.started_run order by 1"
    rows = pair.target.execute(query).fetchall()
    assert {code for _, code in rows} <= {0}
    return [night.astimezone(UTC).strftime("%Y-%m-%dT%H:%M") for night, _ in rows]


class Recorder(Launcher):
    """A launcher that only notes what it is to start: its runs never take their lock."""

    def start(self, order: Order) -> None:
        self.started = [*getattr(self, "started", []), order]


def test_of_two_processes_that_are_asked_at_once_only_one_starts_a_run(pair: Pair) -> None:
    """A moment passes until a run has its lock, and another process must not start one meanwhile."""
    write_config(pair)
    settings = Settings.model_validate(tomllib.loads((pair.dir / "replicator.toml").read_text()))
    desks = [Desk(settings, pair.target_dsn, Recorder(settings, pair.target_dsn, None)) for _ in range(4)]

    def ask(desk: Desk) -> bool:
        try:
            return desk.take("sync", []).command == "sync"
        except LockHeldError:
            return False

    with ThreadPoolExecutor(len(desks)) as pool:
        assert sorted(pool.map(ask, desks)) == [False, False, False, True]
    pair.target.execute("update replicator.started_run set started_at = now() - interval '1 minute'")
    assert ask(desks[0]), "a run that never took its lock keeps nobody out for long"


def test_a_run_that_outlives_the_process_that_started_it_is_recorded_as_it_ended(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.source.execute("create table t (id int primary key); create table u (id int primary key, n int)")
    pair.grant()
    write_config(pair, logs={"dir": ""})
    for name in [name for name in os.environ if name.startswith("REPLICATOR_")]:
        monkeypatch.delenv(name)
    whole, part, silent = (uuid4() for _ in range(3))
    pair.run("sync", "--execution-id", str(whole))
    pair.source.execute("insert into u values (1, 1)")
    pair.as_writer.execute("alter table u add check (n > 1)")
    pair.run("sync", "--execution-id", str(part), check=6)
    for execution_id in (whole, part, silent):
        pair.target.execute(
            "insert into replicator.started_run (execution_id, pipeline, command, triggered_by, started_at)"
            " values (%s, 'default', 'sync', 'api', now() - interval '1 minute')",
            [execution_id],
        )
    process = Process(pair, pair.dir / "replicator.toml", Clock("2026-10-24T00:00"))
    process.tick()
    process.close()
    query = "select execution_id, exit_code, error_message from replicator.started_run where scheduled_for is null"
    found = {execution_id: (code, message) for execution_id, code, message in pair.target.execute(query).fetchall()}
    assert found[whole] == (0, None)
    assert found[part] == (6, pair.control_rows(status="failed")[0]["error_message"])
    assert (found[silent][0], "without a word" in found[silent][1]) == (1, True)


@pytest.mark.hazard("O6")
@pytest.mark.parametrize("season", NIGHTS)
def test_helsinki_has_one_run_a_night_whatever_its_clock_does(
    pair: Pair, season: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O7 too: after three days switched off only the last of the missed nights is made up for."""
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    pair.grant()
    write_config(pair, schedule={"timezone": "Europe/Helsinki"}, logs={"dir": ""})
    # The runs take our environment, which holds settings of the tests.
    for name in [name for name in os.environ if name.startswith("REPLICATOR_")]:
        monkeypatch.delenv(name)
    nights = list(NIGHTS[season])
    clock = Clock(nights[0])
    clock.now -= timedelta(hours=5)
    processes = [Process(pair, pair.dir / "replicator.toml", clock) for _ in range(2)]
    try:
        end = clock.now + timedelta(hours=66)
        while clock.now < end:
            for process in processes:
                process.tick()
            clock.now += STEP
        assert read_nights(pair) == nights
        processes[0].scheduler.close()
        clock.now += timedelta(days=3)
        for process in reversed(processes):
            process.tick()
        made_up = clock.now.replace(hour=int(nights[-1][11:13]), minute=0)
        assert read_nights(pair) == [*nights, made_up.strftime("%Y-%m-%dT%H:%M")]
        assert len(pair.control_rows(triggered_by="scheduler", status="success")) == len(nights) + 1
    finally:
        for process in processes:
            process.close()
