"""Positions in a source's history: WAL positions and transaction ids."""

from __future__ import annotations

import re

FIRST_NORMAL_XID = 3
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


def wrap_xid(xid: int) -> int:
    """Return the 32 bits of a 64-bit xid that a row's `xmin` carries."""
    return max(xid % _XID_MODULUS, FIRST_NORMAL_XID)


def is_within_horizon(position: int, now: int) -> bool:
    """Say whether `xmin` values can still be compared with a 64-bit position, `now` being the next xid."""
    return 0 <= now - position < _XID_HORIZON
