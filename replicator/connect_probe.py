"""The SQLSTATE of a refused connection, whatever language the server speaks.

A server's message is in its `lc_messages`, and libpq hands out nothing else of a connection that was never made. One
of its verbosities replaces the message by the SQLSTATE (PostgreSQL documentation, 32.11, PQsetErrorVerbosity).
psycopg does not wrap that call, but gives the pointer for it.
"""

from __future__ import annotations

import ctypes
import functools
import re
import select
import sys
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq

_SQLSTATE_ONLY = 3
_SERVER_SAID = re.compile(r":\s+([0-9A-Z]{5})$", re.MULTILINE)
_LONGEST_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is not to be had. sqlstates: of the servers that answered; said: what libpq itself says."""

    sqlstates: tuple[str, ...] = ()
    said: str = ""
    is_answered: bool = False
    """The probe itself was let in."""


def probe_refusal(conninfo: str, timeout_s: float) -> Refusal:
    """Connect once more, and return the SQLSTATE with which each server refuses."""
    set_verbosity = _load_verbosity()
    if set_verbosity is None or timeout_s <= 0:
        return Refusal()
    try:
        attempt: Any = pq.PGconn.connect_start(conninfo.encode())
    except psycopg.Error:
        return Refusal()
    try:
        set_verbosity(attempt.pgconn_ptr, _SQLSTATE_ONLY)
        is_answered = _wait_for_answer(attempt, time.monotonic() + timeout_s)
        said = attempt.get_error_message("utf-8")
    finally:
        attempt.finish()
    states = tuple(_SERVER_SAID.findall(said))
    return Refusal(states, "" if states else said, is_answered)


@functools.cache
def _load_verbosity() -> Any:
    """Return PQsetErrorVerbosity of the very libpq that psycopg uses; None where it cannot be reached."""
    try:
        if pq.__impl__ == "python":
            from psycopg.pq import _pq_ctypes

            library: Any = _pq_ctypes.__dict__["pq"]
        else:
            # A handle of psycopg's own module finds the symbols of the libpq that it is linked to.
            library = ctypes.CDLL(sys.modules[pq.PGconn.__module__].__file__)
        found = library.PQsetErrorVerbosity
    except (AttributeError, ImportError, KeyError, OSError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_int]
    found.restype = ctypes.c_int
    return found


def _wait_for_answer(attempt: Any, deadline: float) -> bool:
    """Carry a connection attempt on until it is made or refused; say whether it was made."""
    wanted = pq.PollingStatus.WRITING
    while attempt.status != pq.ConnStatus.BAD and time.monotonic() < deadline:
        reads = [attempt.socket] if wanted == pq.PollingStatus.READING else []
        writes = [attempt.socket] if wanted == pq.PollingStatus.WRITING else []
        select.select(reads, writes, [], min(_LONGEST_POLL_S, max(0.0, deadline - time.monotonic())))
        wanted = attempt.connect_poll()
        if wanted in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
            return bool(wanted == pq.PollingStatus.OK)
    return False
