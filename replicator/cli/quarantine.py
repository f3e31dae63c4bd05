"""The commands `quarantine list|show|retry|discard`. Keys are cell values: they are printed here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replicator.apply.stream_control import StreamControl
from replicator.cli.output import as_text, describe_error, print_error, print_json, print_table
from replicator.cli.session import open_control, open_run, open_settings
from replicator.config.settings import Settings
from replicator.errors import EXIT_FAILED, EXIT_OK, UsageError
from replicator.stream.quarantine import retry_rows

Row = dict[str, Any]


def list_rows(config: Path | None, *, as_json: bool) -> int:
    """Print the rows that wait, and the one that the listener cannot get past."""
    rows, refused = _read(open_settings(config))
    if as_json:
        print_json(_document(rows, refused))
        return EXIT_OK
    columns = ("id", "table", "key", "error", "since", "changes")
    print_table(columns, [_row(row) for row in rows], right=("changes",))
    for one in refused:
        key = "" if one["key"] is None else f", key {', '.join(map(str, one['key']))}"
        print(as_text(f"the listener stopped at a row of {one['table_name']}{key}: replicator quarantine show"))
    return EXIT_OK


def _document(rows: list[Row], refused: list[Row]) -> dict[str, Any]:
    return {"rows": rows, "stopped_at": refused[0] if refused else None, "stopped": refused}


def show_row(config: Path | None, number: int | None, *, as_json: bool) -> int:
    """Print one of the rows that wait whole; without a number, the one that the listener cannot get past."""
    rows, refused = _read(open_settings(config))
    chosen = [] if number is None else _choose(rows, [number])
    if as_json:
        print_json(_document(chosen, refused))
        return EXIT_OK
    for row in chosen or refused:
        print_table(("what", "is"), list(row.items()))
    if not chosen and not refused:
        print("the listener stopped at no refused row; replicator quarantine list shows those that wait")
    return EXIT_OK


def _row(row: Row) -> tuple[object, ...]:
    key = ", ".join(map(str, row["key"]))
    return str(row["quarantine_id"]), row["table_name"], key, row["error_code"], row["first_at"], row["changes"]


def retry(config: Path | None, ids: Sequence[int], *, as_json: bool) -> int:
    """Try rows again; 1 when some were refused once more."""
    settings = open_settings(config)
    rows = _choose(_read(settings)[0], ids)
    with open_run(settings) as conninfo:
        result = retry_rows(settings, conninfo, rows)
    if as_json:
        refused = [describe_error(error) | {"id": number} for number, error in result.refused.items()]
        print_json({"landed": result.landed, "refused": refused})
    else:
        print(f"{len(result.landed)} rows landed, {len(result.refused)} were refused again")
    for error in result.refused.values():
        print_error(error)
    return EXIT_FAILED if result.refused else EXIT_OK


def discard(config: Path | None, ids: Sequence[int], *, yes: bool, as_json: bool) -> int:
    """Give rows up. Raises UsageError without --yes."""
    settings = open_settings(config)
    rows = _choose(_read(settings)[0], ids)
    if not yes:
        raise UsageError(
            f"{len(rows)} rows would be given up",
            why="nothing is destroyed without --yes",
            hint="replicator quarantine discard ID --yes",
        )
    with open_control(settings) as control:
        streams = StreamControl(control.connection, control.schema, control.pipeline)
        gone = [row["quarantine_id"] for row in rows if streams.release(row["quarantine_id"])]
    if as_json:
        print_json({"discarded": gone})
    else:
        print(f"{len(gone)} rows given up; `replicator sync --full` of their tables would bring them")
    return EXIT_OK


def _read(settings: Settings) -> tuple[list[Row], list[Row]]:
    """Return the rows that wait, and the changes that the listener cannot get past."""
    with open_control(settings) as control:
        if not control.exists() or control.list_pending():
            return [], []
        streams = StreamControl(control.connection, control.schema, control.pipeline)
        return streams.read_quarantine(), streams.read_refused()


def _choose(rows: list[Row], ids: Sequence[int]) -> list[Row]:
    """Return the rows of these numbers, all without any. Raises UsageError for a number that is not there."""
    unknown = sorted(set(ids) - {row["quarantine_id"] for row in rows})
    if unknown:
        raise UsageError(f"no row {unknown[0]} is in quarantine", hint="replicator quarantine list")
    return [row for row in rows if not ids or row["quarantine_id"] in ids]
