"""What pages and API read of the control schema, on one connection each request."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import BoundedSemaphore
from typing import Any
from uuid import UUID

import psycopg

from replicator.apply.control import Control
from replicator.config.settings import Settings
from replicator.db import Connection, connect, translated
from replicator.errors import PassingError
from replicator.monitor.dead_runs import read_alive
from replicator.statement import statement

Row = dict[str, Any]

# Batches that are looked at for a list of runs, and executions by the runs wanted: first few, then more.
_DEPTHS = ((12_000, 1), (60_000, 3))
# A run of this status has a batch of that one, and an index leads there.
_BATCH_STATUS = {"running": "running", "failed": "failed", "partial": "failed"}
_CONNECT_S = 2.0
_MOST_CONNECTIONS = 8
_IDLE_S = 60.0
# A page that takes longer than this tells so, rather than hold a connection.
_STATEMENT_TIMEOUT = "15s"


class View:
    """Reads of one pipeline."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def _rows(self, name: str, /, **parameters: Any) -> list[Row]:
        parameters = {"pipeline": self.control.pipeline, **parameters}
        query = statement(f"serve.{name}", self.control.schema)
        return self.control.connection.execute(query, parameters).fetchall()

    def read_tables(self, *, contains: str | None = None, table: str | None = None) -> list[Row]:
        """Return where every table stands; last_run: its newest batch as JSON has it."""
        return read_alive(
            self.control,
            lambda: self._rows("tables", contains=contains or None, table_name=table),
            within="last_run",
        )

    def read_runs(
        self,
        *,
        table: str | None = None,
        status: str | None = None,
        path: str | None = None,
        triggered_by: str | None = None,
        execution_id: UUID | None = None,
        limit: int = 50,
    ) -> list[Row]:
        """Return the newest runs first; of a status that is rare, those among the newest that are looked at."""
        found: list[Row] = []
        is_rare = execution_id is not None or status not in (None, "success")
        for depth, more in _DEPTHS[-1:] if is_rare else _DEPTHS:
            found = self._rows(
                "runs",
                table_name=table,
                status=status,
                batch_status=_BATCH_STATUS.get(status or ""),
                path=path,
                triggered_by=triggered_by,
                execution_id=None if execution_id is None else str(execution_id),
                run_lock=self.control.lock_key("run"),
                limit=limit,
                depth=depth,
                candidates=limit * more,
            )
            if len(found) >= limit:
                break
        return found

    def read_run(self, execution_id: UUID) -> Row | None:
        """Return one run."""
        return next(iter(self.read_runs(execution_id=execution_id, limit=1)), None)

    def read_batches(self, execution_id: UUID, limit: int) -> list[Row]:
        """Return the batches of one run, the failed ones first."""
        return read_alive(self.control, lambda: self._rows("batches", execution_id=str(execution_id), limit=limit))

    def read_history(self, table: str, limit: int) -> list[Row]:
        """Return the newest batches of a table first."""
        return read_alive(self.control, lambda: self.control.read_history(table, limit))

    def read_copying(self) -> Row:
        """Return how many rows and bytes the COPY commands under way have brought."""
        (row,) = self._rows("copying")
        return row

    def read_points(self, table: str | None = None) -> list[Row]:
        """Return the figures of the last 30 days' runs, oldest first."""
        return self._rows("points", table_name=table)[::-1]

    def read_schema_changes(self, table: str) -> list[Row]:
        """Return what became of a table's columns, newest first."""
        return self._rows("schema_changes", table_name=table)

    def read_waiting(self, table: str) -> list[Row]:
        """Return why rows of a table wait in quarantine, and how many."""
        return self._rows("waiting", table_name=table)

    def read_last_verdict(self, table: str) -> Row | None:
        """Return what the last verification started here found of a table."""
        return next(iter(self._rows("last_verdict", table_name=table)), None)


class Views:
    """Views for requests. A few connections are kept: making one costs more than most of what it is asked."""

    def __init__(self, settings: Settings, target_conninfo: str) -> None:
        self._settings, self._target_conninfo = settings, target_conninfo
        self._idle: deque[tuple[float, Connection]] = deque()
        self._room = BoundedSemaphore(_MOST_CONNECTIONS)

    @contextmanager
    def open(self) -> Iterator[View]:
        """Yield a view for one request. Raises PassingError when the target does not answer or is not ready yet."""
        if not self._room.acquire(timeout=_CONNECT_S):
            raise PassingError("too many requests at a time", why="every connection is in use", id="busy")
        try:
            with translated("target"):
                connection = self._take()
                try:
                    yield View(self._control(connection))
                except BaseException:
                    connection.close()
                    raise
                self._idle.append((time.monotonic(), connection))
        finally:
            self._room.release()

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop()[1].close()

    def _control(self, connection: Connection) -> Control:
        return Control(connection, self._settings.target.control_schema, self._settings.pipeline)

    def _take(self) -> Connection:
        """Return a connection that has just answered."""
        with suppress(IndexError):
            since, connection = self._idle.pop()
            if time.monotonic() - since < _IDLE_S:
                with suppress(psycopg.Error):
                    if not self._control(connection).list_pending():
                        return connection
            connection.close()
        connection = connect(self._target_conninfo, side="target", timeout_s=_CONNECT_S)
        try:
            # A plan for all values of a filter would use no index.
            connection.prepare_threshold = None
            connection.execute("SELECT set_config('statement_timeout', %s, false)", [_STATEMENT_TIMEOUT])
            self._check_ready(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_ready(self, connection: Connection) -> None:
        control = self._control(connection)
        if not control.exists() or control.list_pending():
            raise PassingError(
                "the control schema is not ready",
                why="its migrations have not run yet",
                hint="wait for a moment: `serve` makes them as soon as the target answers",
                id="not_ready",
            )
