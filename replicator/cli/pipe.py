"""Streams that fail no command: what it did, and its exit code, do not depend on who reads of it.

not UTF-8            a character that the encoding lacks is printed as its escape
closed at the start  written nowhere
reader gone          the rest is dropped without a word
disk full and such   the rest is dropped, and stderr says so
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_FAILING_HANDLERS = frozenset({"strict", "surrogateescape", "surrogatepass"})


class PatientFile(io.FileIO):
    """A file that takes what cannot be written for written.

    problem: the errno of the first write that failed. ends: nothing is written after that one; else each is tried.
    """

    def __init__(self, number: int, *, ends: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.problem: int | None = None
        self._ends = ends

    def write(self, data: ReadableBuffer, /) -> int:
        """Write; return how many bytes need not be written again."""
        size = memoryview(data).nbytes
        if self._ends and self.problem is not None:
            return size
        try:
            return self._write_out(data)
        except OSError as error:
            self.problem = self.problem or error.errno
            return size

    def _write_out(self, data: ReadableBuffer) -> int:
        written: int | None
        # FileIO says None of a pipe that does not block and is full.
        while (written := super().write(data)) is None:
            select.select([], [self], [])
        return written


def open_streams() -> PatientFile:
    """Replace stdout and stderr of the process; return the file that stdout goes to."""
    _fill_closed()
    out, err = PatientFile(1, ends=True), PatientFile(2, ends=False)
    sys.stdout = _wrap(sys.stdout, out)
    sys.stderr = _wrap(sys.stderr, err, by_line=True)
    return out


def _fill_closed() -> None:
    """Open what the caller closed of stdin, stdout and stderr: else the next file or socket would take its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _wrap(stream: TextIO | None, file: PatientFile, *, by_line: bool = False) -> TextIO:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    errors = getattr(stream, "errors", None) or "strict"
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=encoding,
        errors="backslashreplace" if errors in _FAILING_HANDLERS else errors,
        line_buffering=by_line or file.isatty() or getattr(stream, "write_through", False),
    )


def explain_lost(out: PatientFile) -> str | None:
    """Return what to say of results that could not be written; None where they were, or nobody reads them any more."""
    sys.stdout.flush()
    if out.problem in (None, errno.EPIPE):
        return None
    return f"warning: stdout could not be written ({os.strerror(out.problem)}); the exit code is the command's own"
