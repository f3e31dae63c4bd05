"""What one run knows: its configuration, its claims on tables, and how each table ended."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from replicator.apply.control import Control, TableRecord
from replicator.config.settings import Settings
from replicator.db import Connection, closing, connect
from replicator.errors import EXIT_OK, EXIT_PARTIAL, LimitReached, ReplicatorError, choose_exit_code
from replicator.reading import Observation
from replicator.sync.preparation import open_access
from replicator.telemetry.log import get_logger

ProgressHook = Callable[[str, int, int], None]


def _no_progress(table: str, done: int, total: int) -> None:
    pass


@dataclass
class RunResult:
    """What a run did: one row of `etl_control` for each table, and the errors of those that failed."""

    execution_id: uuid.UUID
    rows: list[dict[str, Any]]
    errors: dict[str, ReplicatorError]

    @property
    def exit_code(self) -> int:
        """Return 0, 6 when only some tables landed, else the gravest error's own code."""
        some_landed = any(row["status"] == "success" for row in self.rows)
        return choose_exit_code(self.errors.values(), some_landed=some_landed)

    @property
    def status(self) -> str:
        """Return success, partial or failed."""
        return {EXIT_OK: "success", EXIT_PARTIAL: "partial"}.get(self.exit_code, "failed")


class Run:
    """The state of one run, shared by its rounds and their workers."""

    def __init__(
        self,
        settings: Settings,
        target_conninfo: str,
        *,
        full: bool,
        jobs: int,
        progress: ProgressHook | None = None,
        stop: threading.Event | None = None,
        path: str = "sync",
        execution_id: uuid.UUID | None = None,
        allowed_deletes: int = 0,
    ) -> None:
        self.path, self.allowed_deletes = path, allowed_deletes
        self.settings, self.target_conninfo = settings, target_conninfo
        self.full, self.jobs, self.progress = full, jobs, progress or _no_progress
        self.stop = stop or threading.Event()
        self.execution_id = execution_id or uuid.uuid4()
        self.access = self._way = open_access(settings)
        self.watcher: Connection
        self.records: dict[str, TableRecord] = {}
        self.batch_ids: dict[str, int] = {}
        self.errors: dict[str, ReplicatorError] = {}
        self.started: dict[str, datetime] = {}
        self.attempts: dict[str, int] = {}
        self.strategies: dict[str, str] = {}
        self.own_control: Control | None = None
        self.most_locked: int | None = None
        self.early: list[Observation] = []
        self.reached: set[str] = set()
        self.has_written = False
        self.conflicts: Counter[str] = Counter()
        self.log = get_logger().bind(run_id=str(self.execution_id))

    @contextmanager
    def open_control(self) -> Iterator[Control]:
        """Yield the control schema on a connection of its own: its session holds the run's locks."""
        first = "target" not in self.reached
        connection = connect(self.target_conninfo, side="target", timeout_s=self.timeout_s, first=first)
        self.reached.add("target")
        with closing(connection):
            yield Control(connection, self.settings.target.control_schema, self.settings.pipeline)

    def open_watcher(self) -> None:
        """Connect the watcher to the source, and all that follows to the same server."""
        self.watcher = self._way.open(first="source" not in self.reached)
        self.access = self._way.narrow(self.watcher)
        self.reached.add("source")

    @property
    def timeout_s(self) -> float:
        """Return how long a connection may take."""
        return self.settings.source.connect_timeout.total_seconds()

    @property
    def lock_wait_s(self) -> float:
        """Return how long a lock is waited for."""
        return self.settings.lock_wait.total_seconds()

    def close_watcher(self) -> None:
        """End the watcher's session, whichever it is by now."""
        if "source" in self.reached:
            self.watcher.close()

    def claim(self, control: Control, names: Sequence[str], triggered_by: str) -> None:
        """Raise the tables' epochs, close what dead runs left, and commit a running row for each table.

        Doing it again, after a COMMIT without an answer, keeps the rows that are there. Raises LockHeldError when a
        session of an earlier run still works on a table.
        """
        with control.waiting(self.lock_wait_s), control.connection.transaction():
            self.records = control.claim_tables(names)
            control.close_dead_runs(self.execution_id)
            rows = control.read_batches(self.execution_id)
            mine = {row["table_name"]: row["batch_id"] for row in rows if row["status"] == "running"}
            new = [name for name in names if name not in mine]
            self.batch_ids = mine | control.start_batches(
                self.execution_id, new, path=self.path, triggered_by=triggered_by
            )

    def claim_again(self, control: Control, names: Sequence[str]) -> None:
        """Raise the tables' epochs once more, so that sessions of ours that were lost cannot write any longer."""
        with control.waiting(self.lock_wait_s):
            self.records.update(control.claim_tables(names))

    def fail(self, table: str, error: ReplicatorError) -> None:
        """Record a table's failure, in a transaction of its own, and log it once."""
        self.errors[table] = error
        self.log.error(
            "table_failed",
            table=table,
            path=self.path,
            error_type=error.id,
            error_message=error.message,
            sqlstate=error.sqlstate,
        )
        if table not in self.batch_ids:
            return
        with suppress(ReplicatorError, psycopg.Error), self._open_record(error) as control:
            control.fail_batch(
                self.batch_ids[table],
                error,
                started_at=self.started.get(table),
                attempts=self.attempts.get(table, 1),
                strategy=self.strategies.get(table),
            )

    @contextmanager
    def _open_record(self, error: ReplicatorError) -> Iterator[Control]:
        """Yield a connection of its own: the one that failed may be in an aborted transaction, or gone.

        Where no connection is to spare, the one that holds the locks.
        """
        if isinstance(error, LimitReached) and self.own_control is not None:
            yield self.own_control
            return
        with self.open_control() as control:
            yield control

    def skip(self, table: str, reason: str) -> None:
        """Record that a table was left to the listener."""
        self.log.info("table_skipped", table=table, path=self.path, reason=reason)
        with suppress(ReplicatorError, psycopg.Error), self.open_control() as control:
            control.skip_batch(self.batch_ids[table], reason)
