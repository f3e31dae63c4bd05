"""Read and write durations ("26h") and sizes ("8GB") as they stand in the configuration.

Sizes mean what they mean to PostgreSQL (`pg_size_bytes`): powers of 1024, the unit's case does not matter.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

MICROSECONDS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
BYTES = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}

_QUANTITY = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)\s*", re.ASCII)
_BYTES_BY_LOWER = {unit.lower(): factor for unit, factor in BYTES.items()}


def parse_duration(text: str) -> timedelta:
    """Return the duration that "500ms", "30s", "2m", "26h" or "7d" names.

    Raises ValueError, without the text, when it is no such thing, finer than a microsecond or too long.
    """
    count = _count_units(text, MICROSECONDS)
    if count is None:
        raise ValueError("should be a number and a unit (ms, s, m, h or d), like 30s, 500ms or 7d")
    try:
        return timedelta(microseconds=count)
    except OverflowError:
        raise ValueError("is longer than a duration can be") from None


def format_duration(duration: timedelta) -> str:
    """Return the shortest whole form; `parse_duration` reads it back to the same value.

    A unit above the second is used from two of it upwards ("60s" and "26h" stay, "120s" becomes "2m").
    """
    microseconds = duration // timedelta(microseconds=1)
    for unit in ("d", "h", "m"):
        if microseconds % MICROSECONDS[unit] == 0 and microseconds >= 2 * MICROSECONDS[unit]:
            return f"{microseconds // MICROSECONDS[unit]}{unit}"
    if microseconds % MICROSECONDS["s"] == 0:
        return f"{microseconds // MICROSECONDS['s']}s"
    return f"{(Decimal(microseconds) / 1_000).normalize():f}ms"


def parse_size(text: str) -> int:
    """Return the bytes that "8GB", "64MB" or "50kB" names.

    Raises ValueError, without the text, when it is no such thing or no whole number of bytes.
    """
    count = _count_units(text, _BYTES_BY_LOWER, fold=True)
    if count is None:
        raise ValueError("should be a number and a unit (B, kB, MB, GB or TB; powers of 1024), like 64MB")
    return count


def format_size(size_bytes: int) -> str:
    """Return the size in the largest unit that divides it; `parse_size` reads it back to the same value."""
    for unit, factor in reversed(BYTES.items()):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"


def _count_units(text: str, factors: dict[str, int], *, fold: bool = False) -> int | None:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    factor = factors.get(match[2].lower() if fold else match[2])
    if factor is None:
        return None
    count = Decimal(match[1]) * factor
    return int(count) if count == count.to_integral_value() else None
