"""Starts runs as processes of their own, by the user's own commands, and notes how they end.

A run that crashes or eats all memory takes nothing else with it, and what it does is what the same command does at a
prompt.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from replicator.apply.control import Control
from replicator.config.settings import Settings
from replicator.db import closing, connect
from replicator.errors import EXIT_LOCKED, EXIT_OK, LockHeldError, PassingError, ReplicatorError
from replicator.patience import Patience
from replicator.serve.record import Order, Outcome, StartedRuns
from replicator.telemetry.log import get_logger

DRAIN_S = 40.0
"""How long a run that was asked to end may take: a table under way is finished or undone within."""

_RECORD_S = 15.0
_COUNTED = ("missing", "extra", "different", "undecided")


def build_command(config: Path | None, command: str, *arguments: str) -> list[str]:
    """Return the command line of one of the tool's own commands."""
    options = [] if config is None else ["--config", str(config)]
    return [sys.executable, "-m", "replicator", command, *options, *arguments]


class Launcher:
    """Processes of runs, by execution id."""

    def __init__(self, settings: Settings, target_conninfo: str, config: Path | None) -> None:
        self._settings, self._target_conninfo, self._config = settings, target_conninfo, config
        self._processes: dict[UUID, tuple[Order, subprocess.Popen[bytes]]] = {}
        self._threads: list[threading.Thread] = []
        self._mutex = threading.Lock()
        self._draining = threading.Event()
        self._log = get_logger()

    @property
    def is_draining(self) -> bool:
        """Say whether no run may be started any more."""
        return self._draining.is_set()

    def list_alive(self, *commands: str) -> list[Order]:
        """Return the runs under way or not recorded yet, of some commands or all."""
        with self._mutex:
            return [order for order, _ in self._processes.values() if not commands or order.command in commands]

    def is_busy(self, *commands: str) -> bool:
        """Say whether a process of one of these commands is at work."""
        with self._mutex:
            return any(o.command in commands and p.poll() is None for o, p in self._processes.values())

    def start(self, order: Order) -> None:
        """Start a run. Raises LockHeldError once this process is about to end, OSError when no process can be made."""
        if self.is_draining:
            raise LockHeldError("this process is about to end", hint="ask again in a moment", id="draining")
        process = subprocess.Popen(
            build_command(self._config, order.command, *_arguments(order)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=os.environ.copy(),
        )
        with self._mutex:
            self._processes[order.execution_id] = (order, process)
            thread = threading.Thread(target=self._attend, args=(order, process), name=f"run {order.execution_id}")
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        self._log.info(
            "run_launched",
            run_id=str(order.execution_id),
            path=order.command,
            triggered_by=order.triggered_by,
            scheduled_for=order.scheduled_for,
        )
        thread.start()

    def drain(self, limit_s: float = DRAIN_S) -> None:
        """Ask the runs to end and wait for them: each table has either landed or is as it was.

        A run that still goes on after `limit_s` is killed: what it has not committed is undone by the server.
        """
        self._draining.set()
        with self._mutex:
            processes = [process for _, process in self._processes.values()]
            threads = list(self._threads)
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        if not join_all(threads, limit_s):
            self.kill()
            join_all(threads, _RECORD_S)

    def kill(self) -> None:
        """End the runs at once."""
        with self._mutex:
            alive = [(order, process) for order, process in self._processes.values() if process.poll() is None]
        for order, process in alive:
            self._log.warning("run_killed", run_id=str(order.execution_id), path=order.command)
            with suppress(ProcessLookupError):
                process.kill()

    def _attend(self, order: Order, process: subprocess.Popen[bytes]) -> None:
        out, _ = process.communicate()
        outcome = read_outcome(process.returncode, out)
        # A night that was cut short by the end of this process is taken up again by the next one.
        is_unfinished = self._draining.is_set() and order.scheduled_for is not None and outcome.exit_code != EXIT_OK
        try:
            if not is_unfinished and not _is_waiting(order, outcome):
                self._record(order, outcome)
        finally:
            with self._mutex:
                del self._processes[order.execution_id]
        self._log.info("run_ended", run_id=str(order.execution_id), path=order.command, exit_code=outcome.exit_code)

    def _record(self, order: Order, outcome: Outcome) -> None:
        patience = Patience(self._draining, self._log)
        try:
            patience.attempts()(self._finish, order, outcome)
        except (ReplicatorError, psycopg.Error) as error:
            self._log.error("run_not_recorded", run_id=str(order.execution_id), error_type=type(error).__name__)

    def _finish(self, order: Order, outcome: Outcome) -> None:
        try:
            with closing(connect(self._target_conninfo, side="target")) as connection:
                control = Control(connection, self._settings.target.control_schema, self._settings.pipeline)
                StartedRuns(control).finish(order.execution_id, outcome)
        except psycopg.OperationalError as error:
            raise PassingError("the connection to the target was lost", why=type(error).__name__) from error


def join_all(threads: Collection[threading.Thread], limit_s: float) -> bool:
    """Wait for threads, for at most `limit_s` in all; say whether they have ended."""
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _arguments(order: Order) -> Sequence[str]:
    options = ["--json", "--execution-id", str(order.execution_id), "--triggered-by", order.triggered_by]
    if order.full and order.command == "sync":
        options.append("--full")
    if order.command == "resync":
        options.append("--yes")
    return [*options, "--", *order.tables]


def _is_waiting(order: Order, outcome: Outcome) -> bool:
    """Say whether a night found another run at work: it stays open, and is tried again once that one has ended."""
    return order.scheduled_for is not None and outcome.exit_code == EXIT_LOCKED


def read_outcome(exit_code: int, out: bytes) -> Outcome:
    """Return how a run ended, from its exit code and the one JSON document on its stdout; of keys only how many."""
    try:
        document = json.loads(out)
    except ValueError:
        document = {}
    error: dict[str, Any] = document.get("error") or next(iter(document.get("errors", {}).values()), {})
    message, hint = error.get("message"), error.get("hint")
    if exit_code < 0:
        message = f"the process was ended by {signal.Signals(-exit_code).name}"
    verdicts = [_count(table) for table in document.get("tables", []) if "equal" in table]
    return Outcome(exit_code, verdicts, message, hint)


def _count(verdict: dict[str, Any]) -> dict[str, Any]:
    kept = {name: verdict.get(name) for name in ("table", "equal", "rows_source", "rows_target", "repaired")}
    return kept | {name: len(verdict.get(name) or ()) for name in _COUNTED}
