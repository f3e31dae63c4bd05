"""The command `sync`."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from replicator.cli.output import describe_error, print_error, print_json, print_table, shows_progress
from replicator.cli.session import open_run, open_settings
from replicator.sync.pipeline import sync
from replicator.sync.run import ProgressHook, RunResult

_COLUMNS = ("table", "status", "load", "strategy", "read", "inserted", "updated", "unchanged", "deleted", "seconds")


def run_sync(
    config: Path | None,
    tables: Sequence[str],
    *,
    full: bool,
    allowed_deletes: int,
    jobs: int | None,
    triggered_by: str,
    as_json: bool,
    execution_id: uuid.UUID | None = None,
) -> int:
    """Run the sync and print what it did; return the exit code."""
    settings = open_settings(config)
    with open_run(settings) as conninfo, stop_on_signal() as stop:
        with progress_bar() as progress:
            result = sync(
                settings,
                conninfo,
                tables=tables,
                full=full,
                allowed_deletes=allowed_deletes,
                jobs=jobs,
                triggered_by=triggered_by,
                execution_id=execution_id,
                progress=progress,
                stop=stop,
            )
            if any(row["status"] == "skipped" for row in result.rows):
                from replicator.proof.verify import audit_streamed

                audit_streamed(settings, conninfo, result, jobs=jobs, triggered_by=triggered_by, stop=stop)
        print_run(result, as_json=as_json)
    return result.exit_code


def print_run(result: RunResult, *, as_json: bool) -> None:
    """Print what a run did, table by table."""
    if as_json:
        print_json(
            {
                "execution_id": result.execution_id,
                "status": result.status,
                "tables": result.rows,
                "errors": {table: describe_error(error) | {"table": table} for table, error in result.errors.items()},
            }
        )
    else:
        print_table(_COLUMNS, [_row(row) for row in result.rows], right=_COLUMNS[4:])
    for error in result.errors.values():
        print_error(error)


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        row["table_name"],
        row["status"],
        row["load_type"],
        row["strategy"],
        row["rows_extracted"],
        row["rows_inserted"],
        row["rows_updated"],
        row["rows_unchanged"],
        row["rows_deleted"],
        f"{row['duration_seconds'] or 0:.2f}",
    )


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(counted: str = "tables", *, of_bytes: bool = False) -> Iterator[ProgressHook | None]:
    """Yield a hook that moves a bar on the terminal; None where there is no terminal. counted: what it counts."""
    if not shows_progress():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    count = DownloadColumn() if of_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(counted, total=None)
        yield lambda _table, done, total: bar.update(task, completed=done, total=total)
