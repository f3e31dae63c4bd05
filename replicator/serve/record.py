"""The runs that `serve` starts, and the nights they are for, in the control schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

import psycopg

from replicator.apply.control import Control
from replicator.statement import statement

Row = dict[str, Any]
Command = Literal["sync", "resync", "verify"]

GRACE_S = 30.0
"""How long a run whose process is not ours may take to show itself, by its lock or by a row of `etl_control`."""


@dataclass(frozen=True, slots=True)
class Order:
    """A run to be started. tables: source names, all when empty. scheduled_for: its night, if it is for one."""

    command: Command
    triggered_by: Literal["scheduler", "api"]
    tables: Sequence[str] = ()
    full: bool = False
    scheduled_for: datetime | None = None
    execution_id: UUID = field(default_factory=uuid4)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. verdicts: counts by table of a verification; messages are our own words."""

    exit_code: int
    verdicts: Sequence[Row] = ()
    error_message: str | None = None
    error_hint: str | None = None


@dataclass(frozen=True, slots=True)
class OpenNight:
    """A scheduled run without an end. batches: rows of `etl_control`; unfinished: cut off or running."""

    execution_id: UUID
    scheduled_for: datetime
    attempts: int
    batches: int
    unfinished: int
    failed: int
    age_s: float


class StartedRuns:
    """The rows of `started_run` and `schedule`, on one connection."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def _execute(self, name: str, /, **parameters: Any) -> psycopg.Cursor[Row]:
        parameters = {"pipeline": self.control.pipeline, **parameters}
        return self.control.connection.execute(statement(f"serve.{name}", self.control.schema), parameters)

    def save_schedule(self, cron: str, timezone: str, now: datetime) -> datetime:
        """Note the schedule and return from when on its nights are due."""
        (row,) = self._execute("save_schedule", cron=cron, timezone=timezone, now=now).fetchall()
        since: datetime = row["since"]
        return since

    def read_last_night(self) -> datetime | None:
        """Return the latest night that has a run."""
        (row,) = self._execute("last_scheduled").fetchall()
        night: datetime | None = row["scheduled_for"]
        return night

    def start(self, order: Order) -> bool:
        """Note a run that is about to start; False when its night has one already."""
        started = self._execute(
            "start_run",
            execution_id=str(order.execution_id),
            command=order.command,
            triggered_by=order.triggered_by,
            scheduled_for=order.scheduled_for,
            tables=list(order.tables),
            is_full=order.full,
        )
        return started.fetchone() is not None

    def start_alone(self, order: Order, grace_s: float) -> bool:
        """Note a run that writes and is about to start; False when another one is at work, or about to be.

        grace_s: how long a run that was noted may take until it has the run's lock.
        """
        with self.control.connection.transaction():
            key = self.control.lock_key("start")
            self.control.connection.execute(statement("control.lock_transaction", self.control.schema), {"key": key})
            if self.is_run_locked() or self._execute("starting", grace_seconds=grace_s).fetchone() is not None:
                return False
            return self.start(order)

    def read_open_night(self) -> OpenNight | None:
        """Return the newest scheduled run that has no end yet."""
        row = self._execute("open_night").fetchone()
        return None if row is None else OpenNight(**row)

    def restart(self, night: OpenNight) -> Order | None:
        """Return the order that takes an interrupted night up again; None when another process did."""
        order = Order("sync", "scheduler", scheduled_for=night.scheduled_for)
        done = self._execute("restart_night", execution_id=str(night.execution_id), new_id=str(order.execution_id))
        return None if done.fetchone() is None else order

    def finish(self, execution_id: UUID, outcome: Outcome) -> None:
        """Note how a run ended."""
        self._execute(
            "finish_run",
            execution_id=str(execution_id),
            exit_code=outcome.exit_code,
            verdicts=json.dumps(list(outcome.verdicts)),
            error_message=outcome.error_message,
            error_hint=outcome.error_hint,
        )

    def close_asked(self, alive: Iterable[UUID], commands: Sequence[Command], grace_s: float) -> None:
        """Note the end of runs that were asked for, but for those alive or younger than `grace_s`.

        Their batches tell how it went, as far as those have an end; the others ended without a word.
        """
        self._execute(
            "close_asked",
            alive=[str(one) for one in alive],
            commands=list(commands),
            grace_seconds=grace_s,
            error_message="the run ended without a word: the process that had started it went away",
        )

    def delete_expired(self, keep_s: float) -> None:
        """Delete what is older than the retention; the last night stays."""
        self._execute("delete_expired_runs", keep_seconds=keep_s)

    def is_run_locked(self) -> bool:
        """Say whether a sync, resync or repair of this pipeline is at work."""
        found = self.control.connection.execute(
            statement("listener.lock_is_held", self.control.schema), {"key": self.control.lock_key("run")}
        ).fetchone()
        return bool(found and found["held"])
