"""What the control schema tells to metrics and alerts, and the incidents that it keeps."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import psycopg

from replicator.db import Connection
from replicator.monitor.health import Kind, LastBatch
from replicator.monitor.incident import Incident, Kept, Key
from replicator.monitor.metrics import OPERATIONS, PipelineFigures, SlotFigures, Total
from replicator.statement import statement

Row = dict[str, Any]


class Operation:
    """The operating tables of the control schema, on one connection to the target."""

    def __init__(self, connection: Connection, schema: str, pipeline: str) -> None:
        self.connection, self.schema, self.pipeline = connection, schema, pipeline

    def _execute(self, name: str, /, **parameters: Any) -> psycopg.Cursor[Row]:
        parameters = {"pipeline": self.pipeline, **parameters}
        return self.connection.execute(statement(f"operation.{name}", self.schema), parameters)

    def read_figures(self, slot: SlotFigures | None = None, *, logs_dropped: int = 0) -> PipelineFigures:
        """Return all that is told of the pipeline. The control schema must be of this version."""
        (lag,) = self._execute("lag").fetchall()
        return PipelineFigures(
            pipeline=self.pipeline,
            totals=[_total(row) for row in self._execute("totals").fetchall()],
            success_at=self._read_pairs("successes", "success_at"),
            lag_s=lag["lag_seconds"],
            quarantined=self._read_pairs("waiting", "rows"),
            mismatched=self.read_mismatches(),
            parked=self._count_parked(),
            slot=slot,
            logs_dropped=logs_dropped,
        )

    def save_mismatch(self, table: str, rows: int) -> None:
        """Note how many rows of a table differed at a comparison and were left as they are."""
        self._execute("save_mismatch", table_name=table, rows_mismatched=rows)

    def read_tables(self) -> dict[str, bool]:
        """Return the tables that are known, and whether each is part of the stream."""
        return self._read_pairs("known_tables", "is_streamed")

    def read_last_batches(self, tables: Iterable[str]) -> dict[str, LastBatch]:
        """Return how each table's newest batch ended that did end; `-` stands for the listener itself."""
        rows = self._execute("ended_batches", tables=list(tables)).fetchall()
        return {row.pop("table_name"): LastBatch(**row) for row in rows}

    def read_successes(self) -> dict[str, datetime]:
        """Return up to when each table of the pipeline is known to be right."""
        pairs = self._read_pairs("successes", "success_at")
        return {table: datetime.fromtimestamp(at, UTC) for table, at in pairs.items()}

    def read_waiting(self) -> dict[str, tuple[int, str]]:
        """Return rows and SQLSTATE of the quarantine, by table."""
        return {row["table_name"]: (row["rows"], row["error_code"]) for row in self._execute("waiting").fetchall()}

    def read_mismatches(self) -> dict[str, int]:
        """Return how many rows each table's last comparison found and left, of those compared."""
        return self._read_pairs("mismatches", "rows_mismatched")

    def _count_parked(self) -> int:
        (row,) = self._execute("count_parked").fetchall()
        return int(row["tables"])

    def count_running(self) -> int:
        """Return how many batches say that they run, outside of the stream."""
        (row,) = self._execute("count_running").fetchall()
        return int(row["batches"])

    def read_incidents(self) -> dict[Key, Kept]:
        """Return what is remembered as wrong."""
        return {kept.incident.key: kept for kept in map(_kept, self._execute("list_incidents").fetchall())}

    def save_incident(self, kept: Kept) -> None:
        """Remember an incident, or that somebody was told of it."""
        incident = kept.incident
        self._execute(
            "save_incident",
            kind=incident.kind.value,
            table_name=incident.table,
            code=incident.code,
            message=incident.message,
            seen_at=kept.seen_at,
            told_at=kept.told_at,
        )

    def delete_incident(self, key: Key) -> None:
        """Forget an incident that is over."""
        self._execute("delete_incident", kind=str(key[0]), table_name=key[1])

    def _read_pairs(self, name: str, column: str) -> dict[str, Any]:
        rows = self._execute(name).fetchall()
        return {row["table_name"]: row[column] for row in rows if row[column] is not None}


def _total(row: Row) -> Total:
    inserted, updated, unchanged, deleted = (int(row[f"rows_{operation}"]) for operation in OPERATIONS)
    return Total(
        table=row["table_name"],
        path=row["path"],
        status=row["status"],
        error_code=row["error_code"],
        bucket=row["duration_bucket"],
        batches=row["batches"],
        attempts=row["attempts"],
        seconds=row["duration_seconds"],
        rows=(inserted, updated, unchanged, deleted),
        bytes_copied=row["bytes_copied"],
    )


def _kept(row: Row) -> Kept:
    incident = Incident(Kind(row["kind"]), row["code"], row["message"], row["table_name"])
    return Kept(incident, row["seen_at"], row["told_at"])
