"""One thing that a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from replicator.errors import ReplicatorError

Severity = Literal["ok", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A stable id, how bad it is, the table (None: it is about no single one), what it is, and what mends it."""

    id: str
    severity: Severity
    message: str
    hint: str | None = None
    table: str | None = None


def find_error(error: ReplicatorError, *, table: str | None = None, id: str | None = None) -> Finding:
    """Return the finding that stands for what would stop a sync."""
    return Finding(id or error.id, "error", error.message, error.hint, error.table or table)
