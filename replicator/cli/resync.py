"""The command `resync`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from replicator.cli.session import open_run, open_settings
from replicator.cli.sync import print_run, progress_bar, stop_on_signal
from replicator.errors import UsageError
from replicator.proof.resync import resync


def run_resync(
    config: Path | None,
    tables: Sequence[str],
    *,
    yes: bool,
    jobs: int | None,
    triggered_by: str,
    as_json: bool,
    execution_id: UUID | None = None,
) -> int:
    """Read the tables whole again and print what that did; return the exit code."""
    settings = open_settings(config)
    if not yes:
        raise UsageError(
            "resync replaces the contents of " + (", ".join(tables) if tables else "every table"),
            why="rows of the target that the source does not have are deleted",
            hint="say --yes; `replicator verify` shows what differs, and writes nothing",
        )
    with open_run(settings) as conninfo, stop_on_signal() as stop:
        with progress_bar("parts") as progress:
            result = resync(
                settings,
                conninfo,
                tables=tables,
                jobs=jobs,
                triggered_by=triggered_by,
                execution_id=execution_id,
                progress=progress,
                stop=stop,
            )
        print_run(result, as_json=as_json)
    return result.exit_code
