"""A stdout whose reader may go away: what a command did, and its exit code, do not depend on who reads of it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class PatientFile(io.FileIO):
    """A file that takes what nobody reads any more for written."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write; return how many bytes need not be written again."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def outlive_reader() -> None:
    """Let `replicator ... | head -1` end as if somebody had read it all."""
    out = sys.stdout
    # None, when the caller closed it.
    if not isinstance(out, io.TextIOWrapper) or out.isatty():
        return
    patient = io.BufferedWriter(PatientFile(out.fileno(), "w", closefd=False))
    sys.stdout = io.TextIOWrapper(patient, encoding=out.encoding, errors=out.errors, newline=None)
