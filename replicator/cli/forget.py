"""The command `forget`."""

from __future__ import annotations

from pathlib import Path

from replicator.cli.output import print_json
from replicator.cli.session import open_control, open_settings
from replicator.db import translated
from replicator.errors import EXIT_OK, UsageError
from replicator.selection import format_table_name, parse_table_name


def forget_table(config: Path | None, table: str, *, yes: bool, as_json: bool) -> int:
    """Drop a table's state. Raises UsageError without --yes, or for a table of which nothing is known."""
    settings = open_settings(config)
    try:
        name = format_table_name(*parse_table_name(table))
    except ValueError as error:
        raise UsageError("TABLE is not a table's name", why=str(error), hint="write schema.table") from None
    if not yes:
        raise UsageError(
            f"forgetting {name} drops its position: its next sync would read everything",
            why="nothing is destroyed without --yes",
            hint=f"replicator forget '{name}' --yes",
        )
    with open_control(settings) as control:
        wait_s = settings.lock_wait.total_seconds()
        with translated("target"):
            control.take_lock("run", wait_s)
            # A run that lost the session with its lock may still be loading: then it holds the table's row.
            with control.waiting(wait_s):
                is_known = control.exists()
                if is_known:
                    control.migrate()
                    is_known = control.forget(name)
        if not is_known:
            raise UsageError(f"nothing is known of {name}", hint="replicator status lists the known tables")
    if as_json:
        print_json({"forgotten": name})
    else:
        print(f"forgot {name}; the target's rows stay")
    return EXIT_OK
