"""How pages write values: for people, in one line, with nothing hidden in it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_NONE = "-"
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def write_name(text: object) -> str:
    """Return a name with what cannot be seen escaped: controls, and marks that turn the direction of writing."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text))


def write_time(moment: datetime | str | None) -> str:
    """Return a moment in UTC."""
    if moment is None:
        return _NONE
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def write_span(seconds: float | None) -> str:
    """Return a duration with at most two units."""
    if seconds is None:
        return _NONE
    seconds = float(seconds)
    if abs(seconds) < 60:
        return f"{seconds:.1f} s" if abs(seconds) < 10 else f"{seconds:.0f} s"
    for index, (size, unit) in enumerate(_UNITS):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            if index + 1 < len(_UNITS):
                smaller, name = _UNITS[index + 1]
                if rest >= smaller:
                    return f"{whole:.0f} {unit} {rest // smaller:.0f} {name}"
            return f"{whole:.0f} {unit}"
    return f"{seconds:.0f} s"


def write_number(number: float | None) -> str:
    """Return a number with thousands apart."""
    return _NONE if number is None else f"{int(number):,}"


def write_size(size_bytes: float | None) -> str:
    """Return a size in bytes."""
    if size_bytes is None:
        return _NONE
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def describe_columns(before: list[list[Any]], after: list[list[Any]]) -> list[str]:
    """Return what became of a table's columns, each as [number, source name, target name, type]."""
    old, new = ({column[0]: column for column in columns} for columns in (before, after))
    told = [f"{write_name(new[n][1])} {write_name(new[n][3])} was added" for n in new if n not in old]
    told += [f"{write_name(old[n][1])} was dropped" for n in old if n not in new]
    for n in old.keys() & new.keys():
        if old[n][1] != new[n][1]:
            told.append(f"{write_name(old[n][1])} was renamed to {write_name(new[n][1])}")
        if old[n][3] != new[n][3]:
            name = write_name(new[n][1])
            told.append(f"{name} changed from {write_name(old[n][3])} to {write_name(new[n][3])}")
    return told
