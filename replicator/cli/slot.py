"""The commands `slot list` and `slot drop`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from psycopg import sql

from replicator.apply.stream_control import StreamControl
from replicator.capture.publication import PUBLICATION_STAYS, drop_publication
from replicator.capture.source_state import SlotFacts, check_free, drop_slot, read_end_of_wal, read_slot
from replicator.cli.output import print_json, print_table
from replicator.cli.session import open_control, open_settings
from replicator.config.settings import Settings
from replicator.db import Connection, closing, translated
from replicator.errors import EXIT_OK, OperatorError, UsageError
from replicator.sync.preparation import open_access


def describe_slot(slot: SlotFacts, invalid_in_s: float | None = None) -> dict[str, Any]:
    """Return a slot as JSON has it."""
    return {
        "name": slot.name,
        "active": slot.active,
        "wal_status": slot.wal_status,
        "lag_bytes": slot.lag_bytes,
        "safe_wal_bytes": slot.safe_wal_bytes,
        "invalid_in_seconds": invalid_in_s,
    }


_SAMPLE_S = 0.5


def watch_slot(settings: Settings) -> tuple[SlotFacts, float | None] | None:
    """Return the slot, and in how many seconds it will be invalid at the rate at which WAL is written now.

    None for the second where the source sets no limit, or nothing is written.
    """
    access = open_access(settings)
    with closing(access.open_at_slot(settings.slot_name, first=True)) as connection, translated("source"):
        slot = read_slot(connection, settings.slot_name)
        if slot is None or slot.safe_wal_bytes is None:
            return None if slot is None else (slot, None)
        before = read_end_of_wal(connection)
        time.sleep(_SAMPLE_S)
        written = read_end_of_wal(connection) - before
    return slot, (slot.safe_wal_bytes * _SAMPLE_S / written if written > 0 else None)


def list_slots(config: Path | None, *, as_json: bool) -> int:
    """Print the pipeline's slot."""
    settings = open_settings(config)
    found = watch_slot(settings)
    slot = None if found is None else found[0]
    if as_json:
        print_json({"slots": [] if found is None else [describe_slot(*found)]})
        return EXIT_OK
    columns = ("slot", "active", "wal status", "confirmed", "lag bytes", "safe wal bytes")
    rows = [] if slot is None else [
        (slot.name, slot.active, slot.wal_status, slot.confirmed and str(slot.confirmed), slot.lag_bytes,
         slot.safe_wal_bytes)
    ]  # fmt: skip
    print_table(columns, rows, right=columns[4:])
    return EXIT_OK


def drop_slots(config: Path | None, *, yes: bool, as_json: bool) -> int:
    """Drop the slot and what belongs to it. Raises UsageError without --yes, LockHeldError beside a listener."""
    settings = open_settings(config)
    name = settings.slot_name
    if not yes:
        raise UsageError(
            f"without its slot {name} the stream cannot go on: the next `listen` copies everything",
            why="nothing is destroyed without --yes",
            hint="replicator slot drop --yes",
        )
    access = open_access(settings)
    with open_control(settings) as control, closing(access.open_at_slot(settings.slot_name, first=True)) as source:
        with translated("target"):
            control.migrate()
            control.take_lock("listener", settings.lock_wait.total_seconds())
        with translated("source"):
            check_free(source, name)
        # First: whatever happens now, the next `listen` knows that this was us, and that all is to be copied.
        with translated("target"):
            StreamControl(control.connection, control.schema, control.pipeline).drop_stream()
        with translated("source"):
            is_dropped = drop_slot(source, name)
            stays = _drop_publication(source, settings.publication_name)
    if as_json:
        gone = stays is None
        hint = None if stays is None else stays.hint
        print_json({"dropped": name if is_dropped else None, "publication_dropped": gone, "hint": hint})
    else:
        print(f"dropped slot {name}" if is_dropped else f"there is no slot {name} on the source")
    if stays is not None:
        print(f"{stays.message}; hint: {stays.hint}", file=sys.stderr)
    return EXIT_OK


def _drop_publication(source: Connection, name: str) -> OperatorError | None:
    """Drop the publication, if it is ours; else return why it stays: the slot's end does not depend on it."""
    try:
        return None if drop_publication(source, name) else _not_ours(name)
    except OperatorError as error:
        if error.id != PUBLICATION_STAYS:
            raise
        return error


def _not_ours(name: str) -> OperatorError:
    statement = sql.SQL("drop publication {}").format(sql.Identifier(name)).as_string()
    return OperatorError(
        f"publication {name} stays",
        why="this tool did not make it",
        hint=f"once nothing else reads it, as its owner: {statement}",
        id=PUBLICATION_STAYS,
    )
