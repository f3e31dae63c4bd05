"""Rows of `etl_control` that say that they run, though whoever wrote them has died."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from replicator.apply.control import RUN_PATHS, Control
from replicator.apply.stream_control import StreamControl

Row = dict[str, Any]
MESSAGE = "the run died: killed, or its server went away"
HINT = "replicator sync: it begins where the dead one stood"


def read_alive(control: Control, read: Callable[[], list[Row]], *, within: str | None = None) -> list[Row]:
    """Return what `read` finds, its rows of dead runs as failed ones without an end.

    Their locks went with them, and the next run closes their rows; until then nobody else says so. within: the member
    that has the row of `etl_control`, where it is not what `read` finds itself.
    """

    def batch_of(row: Row) -> Row:
        found: Row = row if within is None else row[within] or {}
        return found

    rows = read()
    running = [batch for batch in map(batch_of, rows) if batch.get("status") == "running"]
    dead = _find_dead_paths(control, {batch["path"] for batch in running})
    if not dead:
        return rows
    # A run writes its end ahead of giving its lock back: whose row still says that it runs has died.
    suspects = {batch["batch_id"] for batch in running if batch["path"] in dead}
    rows = read()
    for row in rows:
        batch = batch_of(row)
        if batch.get("batch_id") in suspects and batch["status"] == "running":
            batch.update(_close(batch))
    return rows


def has_died(batch: Row) -> bool:
    """Say whether a row that `read_alive` returned is of a dead run that nobody has closed yet."""
    return batch.get("status") == "failed" and batch.get("completed_at") is None


def _find_dead_paths(control: Control, paths: Iterable[str]) -> set[str]:
    """Return the paths whose lock nobody holds."""
    streams = StreamControl(control.connection, control.schema, control.pipeline)
    found = set(paths)
    if found.intersection(RUN_PATHS) and streams.is_held("run"):
        found -= set(RUN_PATHS)
    if "listen" in found and streams.is_listening():
        found.remove("listen")
    return found


def _close(batch: Row) -> Row:
    """Return what the next run will write."""
    return {
        "status": "failed",
        "error_code": "interrupted",
        "error_message": batch.get("error_message") or MESSAGE,
        "error_hint": batch.get("error_hint") or HINT,
    }
