"""What pages and API read of the control schema, on one connection each request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from replicator.apply.control import Control
from replicator.db import closing, connect, translated
from replicator.errors import PassingError
from replicator.settings import Settings
from replicator.statement import statement

Row = dict[str, Any]

_CONNECT_S = 3.0
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
        return self._rows("tables", contains=contains or None, table_name=table)

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
        """Return the newest runs first."""
        return self._rows(
            "runs",
            table_name=table,
            status=status,
            path=path,
            triggered_by=triggered_by,
            execution_id=None if execution_id is None else str(execution_id),
            limit=limit,
        )

    def read_run(self, execution_id: UUID) -> Row | None:
        """Return one run."""
        return next(iter(self.read_runs(execution_id=execution_id, limit=1)), None)

    def read_batches(self, execution_id: UUID, limit: int) -> list[Row]:
        """Return the batches of one run, the failed ones first."""
        return self._rows("batches", execution_id=str(execution_id), limit=limit)

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


@contextmanager
def open_view(settings: Settings, target_conninfo: str) -> Iterator[View]:
    """Yield a view for one request. Raises PassingError when the target does not answer or is not prepared yet."""
    with closing(connect(target_conninfo, side="target", timeout_s=_CONNECT_S)) as connection, translated("target"):
        connection.execute("SELECT set_config('statement_timeout', %s, false)", [_STATEMENT_TIMEOUT])
        control = Control(connection, settings.target.control_schema, settings.pipeline)
        if not control.exists() or control.list_pending():
            raise PassingError(
                "the control schema is not ready",
                why="its migrations have not run yet",
                mend="wait for a moment: `serve` makes them as soon as the target answers",
                id="not_ready",
            )
        yield View(control)
