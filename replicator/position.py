"""Positions in a source's history: WAL positions and transaction ids."""

from __future__ import annotations

import re
from dataclasses import dataclass

FIRST_NORMAL_XID = 3
_PAGE_BYTES = 8192
# Of a segment's first page, and of every other one (PostgreSQL source, access/xlog_internal.h).
_FIRST_HEADER_BYTES, _HEADER_BYTES = 40, 24
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_XID_MODULUS = 1 << 32
# Comparing 32-bit xids is right for distances below 2^31 (PostgreSQL documentation, 24.1.5); the margin leaves room for
# the transactions that begin while a read is under way.
_XID_HORIZON = (1 << 31) - (1 << 24)


class Lsn(int):
    """A byte position in the WAL, ordered as such and written `X/Y` in hexadecimal."""

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read PostgreSQL's spelling. Raises ValueError on anything else."""
        found = _LSN.fullmatch(text)
        if found is None:
            raise ValueError(f"not a WAL position: {text!r}")
        return cls((int(found[1], 16) << 32) | int(found[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    __repr__ = __str__


def step_before_header(lsn: Lsn, segment_bytes: int) -> Lsn:
    """Return where the last record ends, given where the next one will begin.

    Between the two a page's header may lie, which is not sent before there is a record behind it.
    """
    within = lsn % _PAGE_BYTES
    header_bytes = _FIRST_HEADER_BYTES if (lsn - within) % segment_bytes == 0 else _HEADER_BYTES
    return Lsn(lsn - within) if within == header_bytes else lsn


def measure_xid(xid: int, other: int) -> int:
    """Return how far the 32 bits of an xid are ahead of those of another one, within half of their circle."""
    ahead = (xid - other) % _XID_MODULUS
    return ahead - _XID_MODULUS if ahead >= _XID_MODULUS // 2 else ahead


@dataclass(frozen=True, slots=True)
class Seen:
    """Which transactions a snapshot saw: by the 32 bits of xids. until: no commit from there on is among them."""

    next_xid: int
    open_xids: frozenset[int]
    until: Lsn

    @classmethod
    def parse(cls, snapshot: str, until: Lsn) -> Seen:
        """Read PostgreSQL's spelling of a snapshot, `xmin:xmax:xip_list`. Raises ValueError on anything else."""
        _, next_xid, listed = snapshot.split(":")
        running = frozenset(int(xid) % _XID_MODULUS for xid in listed.split(",") if xid)
        return cls(int(next_xid) % _XID_MODULUS, running, until)

    def has(self, final_lsn: Lsn, xid: int) -> bool:
        """Say whether the snapshot saw a transaction, by the place of its commit record and 32 bits of its xid."""
        return final_lsn < self.until and measure_xid(xid, self.next_xid) < 0 and xid not in self.open_xids


@dataclass(frozen=True, slots=True)
class Origin:
    """What a table's rows have already: all commits before `since`, and what a later read by itself saw."""

    since: Lsn
    seen: Seen | None = None

    @property
    def end(self) -> Lsn:
        """Return the position from which on the table has nothing."""
        return self.since if self.seen is None else max(self.since, self.seen.until)

    def has(self, final_lsn: Lsn, xid: int) -> bool:
        """Say whether the rows have a transaction already."""
        return final_lsn < self.since or (self.seen is not None and self.seen.has(final_lsn, xid))


def wrap_xid(xid: int) -> int:
    """Return the 32 bits of a 64-bit xid that a row's `xmin` carries."""
    return max(xid % _XID_MODULUS, FIRST_NORMAL_XID)


def is_within_horizon(position: int, now: int) -> bool:
    """Say whether `xmin` values can still be compared with a 64-bit position, `now` being the next xid."""
    return 0 <= now - position < _XID_HORIZON
