"""Rows of the stream as COPY wants them, in text or in binary. Pure."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence

from replicator.cell import Cell

PIECE_BYTES = 1 << 18
_NULL = b"\\N"
_SPECIAL = re.compile(rb"[\\\n\r\t]")
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_UNESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_UNESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


# COPY's binary format (PostgreSQL documentation, COPY): signature, flags, no extension; a count ends it.
_BINARY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_BINARY_END = b"\xff\xff"
_BINARY_NULL = b"\xff\xff\xff\xff"
_count, _length = struct.Struct(">h").pack, struct.Struct(">i").pack
_LENGTHS = [_length(size) for size in range(1024)]


def encode_rows(rows: Iterable[Sequence[Cell]], *, binary: bool = False) -> Iterator[bytes]:
    """Yield COPY data of the rows, in pieces of about 256 kB. Cells are bytes or None; none may be UNCHANGED."""
    encode = encode_binary_row if binary else encode_row
    lines: list[bytes] = [_BINARY_HEAD] if binary else []
    size = 0
    for cells in rows:
        line = encode(cells)
        lines.append(line)
        size += len(line)
        if size > PIECE_BYTES:
            yield b"".join(lines)
            lines.clear()
            size = 0
    if binary:
        lines.append(_BINARY_END)
    if lines:
        yield b"".join(lines)


def encode_binary_row(cells: Sequence[Cell]) -> bytes:
    """Return one row in COPY's binary format."""
    parts = [_count(len(cells))]
    for cell in cells:
        if cell is None:
            parts.append(_BINARY_NULL)
        else:
            size = len(cell)  # type: ignore[arg-type]  # none is UNCHANGED
            parts.append(_LENGTHS[size] if size < 1024 else _length(size))
            parts.append(cell)  # type: ignore[arg-type]
    return b"".join(parts)


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
