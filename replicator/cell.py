"""Cells of the stream: the bytes PostgreSQL sent, NULL, or a value that was not sent."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, TypeAlias


class Unchanged(Enum):
    """The type of UNCHANGED."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
"""A large value that the update did not touch and the server did not send. It is not NULL."""

Cell: TypeAlias = bytes | Literal[Unchanged.UNCHANGED] | None
Cells: TypeAlias = tuple[Cell, ...]


def is_text(cell: bytes | None) -> bool:
    """Say whether a cell in text format is UTF-8, as every text is but those of a database without encoding."""
    try:
        (cell or b"").decode()
    except UnicodeDecodeError:
        return False
    return True
