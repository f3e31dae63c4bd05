"""Rows of the stream as COPY text, and back. Pure. What binary COPY wants psycopg writes, in C."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from replicator.cell import Cell

PIECE_BYTES = 1 << 18
_NULL = b"\\N"
_SPECIAL = re.compile(rb"[\\\n\r\t]")
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_UNESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_UNESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


def encode_rows(rows: Iterable[Sequence[Cell]]) -> Iterator[bytes]:
    """Yield COPY text of the rows, in pieces of about 256 kB. Cells are bytes or None; none may be UNCHANGED."""
    lines: list[bytes] = []
    size = 0
    for cells in rows:
        line = encode_row(cells)
        lines.append(line)
        size += len(line)
        if size > PIECE_BYTES:
            yield b"".join(lines)
            lines.clear()
            size = 0
    if lines:
        yield b"".join(lines)


def encode_row(cells: Sequence[Cell]) -> bytes:
    """Return one line. A cell that holds what COPY takes as syntax is rare, so the line is looked at whole first."""
    line = b"\t".join([_NULL if cell is None else cell for cell in cells])  # type: ignore[misc]  # none is UNCHANGED
    if line.count(b"\t") == max(len(cells) - 1, 0) and b"\n" not in line and b"\r" not in line:
        backslashes = line.count(b"\\")
        if not backslashes or backslashes == sum(cell is None for cell in cells):
            return line + b"\n"
    return b"\t".join([_NULL if cell is None else _escape(cell) for cell in cells]) + b"\n"  # type: ignore[arg-type]


def _escape(cell: bytes) -> bytes:
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0]], cell)


def decode_rows(data: bytes) -> Iterator[tuple[bytes | None, ...]]:
    """Yield the rows of COPY text."""
    for line in data.split(b"\n")[:-1]:
        yield tuple([None if cell == _NULL else _unescape(cell) for cell in line.split(b"\t")])


def _unescape(cell: bytes) -> bytes:
    if b"\\" not in cell:
        return cell
    return _UNESCAPE.sub(lambda found: _UNESCAPES.get(found[1], found[1]), cell)
