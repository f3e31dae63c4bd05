"""What commands print: results on stdout, as JSON or as tables; errors and progress on stderr."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from replicator.errors import ReplicatorError

SCHEMA_VERSION = 1


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout, in UTF-8: where stdout has another encoding, in ASCII, which is both."""
    encoding = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name
    text = json.dumps({"schema": SCHEMA_VERSION, **document}, default=_encode, ensure_ascii=encoding != "utf-8")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def describe_error(error: ReplicatorError) -> dict[str, Any]:
    """Return an error as JSON has it."""
    return {
        "id": error.id,
        "message": error.message,
        "hint": error.hint,
        "sqlstate": error.sqlstate,
        "table": error.table,
    }


def print_error(error: ReplicatorError, *, as_json: bool = False) -> None:
    """Print what happened, why, and what mends it."""
    if as_json:
        print_json({"error": describe_error(error)})
    lines = [f"error [{error.id}]: {error.what}"]
    if error.why:
        lines.append(f"  why:  {error.why}")
    if error.hint:
        lines.append(f"  hint: {error.hint}")
    print("\n".join(lines), file=sys.stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print rows as a plain table on stdout; `right`: columns that are aligned to the right."""
    cells = [[as_text(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    aligned = [str.rjust if name in right else str.ljust for name in columns]
    print("  ".join(align(name, width) for align, name, width in zip(aligned, columns, widths, strict=True)).rstrip())
    print("  ".join("-" * width for width in widths))
    for row in cells:
        print("  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)).rstrip())


def as_text(value: object) -> str:
    """Return a value as a line for people shows it."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    # A hostile table name must not move the reader's cursor.
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))


def shows_progress() -> bool:
    """Say whether a progress bar has a terminal to live on."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
