"""What a walsender and its client say to each other inside COPY_BOTH, around the messages of the output plugin.

Layout (PostgreSQL documentation, 55.4 "Streaming Replication Protocol"); integers are big-endian:

    from     kind                   then
    server   'w' XLogData           u64 start of the data, u64 end of WAL, i64 clock, payload to the end
    server   'k' Primary keepalive  u64 end of WAL, i64 clock, u8 reply requested (0 or 1)
    client   'r' Standby status     u64 written, u64 flushed, u64 applied, i64 clock, u8 reply requested (0 or 1)

Clocks are microseconds since 2000-01-01 UTC. "End of WAL" is as far as this walsender has come: all before it that
concerns the stream has been sent.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from replicator.errors import StreamError
from replicator.position import Lsn

EPOCH_OFFSET_S = 946_684_800
"""Seconds from 1970-01-01 to 2000-01-01, where PostgreSQL's clock begins."""

_DATA, _KEEPALIVE = b"wk"
_DATA_HEAD = struct.Struct(">cQQq")
_DATA_HEAD_BYTES = _DATA_HEAD.size
_KEEPALIVE_BODY = struct.Struct(">cQqB")
_STATUS = struct.Struct(">cQQQqB")


class Keepalive(NamedTuple):
    """The server's sign of life. wal_end: all before it was sent. clock_us: microseconds since 2000-01-01."""

    wal_end: Lsn
    clock_us: int
    reply_requested: bool


class Header(NamedTuple):
    """The head of XLogData. start is where the change stands in the WAL: several changes may share it."""

    start: Lsn
    wal_end: Lsn
    clock_us: int


def read_envelope(envelope: memoryview) -> bytes | Keepalive:
    """Return the payload of XLogData, or a keepalive. Raises StreamError on anything else."""
    size = len(envelope)
    if size >= _DATA_HEAD_BYTES and envelope[0] == _DATA:
        return envelope[_DATA_HEAD_BYTES:].tobytes()
    if size == _KEEPALIVE_BODY.size and envelope[0] == _KEEPALIVE:
        _, wal_end, clock_us, reply = _KEEPALIVE_BODY.unpack(envelope)
        if reply <= 1:
            return Keepalive(Lsn(wal_end), clock_us, reply == 1)
    raise _not_understood(envelope)


def read_header(envelope: memoryview) -> Header:
    """Return the head of XLogData. Raises StreamError when there is none."""
    if len(envelope) < _DATA_HEAD_BYTES or envelope[0] != _DATA:
        raise _not_understood(envelope)
    _, start, wal_end, clock_us = _DATA_HEAD.unpack_from(envelope)
    return Header(Lsn(start), Lsn(wal_end), clock_us)


def encode_status(*, written: int, flushed: int, clock_us: int, reply_requested: bool = False) -> bytes:
    """Return a standby status update. What is flushed here is also applied: it is committed in the target."""
    return _STATUS.pack(b"r", written, flushed, flushed, clock_us, reply_requested)


def _not_understood(envelope: memoryview) -> StreamError:
    kind = f"kind 0x{envelope[0]:02x}" if envelope else "no kind"
    return StreamError(
        "the source's walsender said something unknown",
        why=f"{kind}, {len(envelope)} bytes",
        hint="connect to PostgreSQL 13 to 18 directly, without a pooler or proxy that answers for it",
    )
