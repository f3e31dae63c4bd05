"""The log file of the day, the link to the newest, and the end of the oldest."""

from __future__ import annotations

import os
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

LATEST = "etl_latest.log"

_NAME = re.compile(r"etl_(\d{8})\.log", re.ASCII)


class DailyFile:
    """Appends lines to `etl_YYYYMMDD.log`, a file a UTC day.

    Each line is one write to a descriptor in append mode, so several processes can share the file. Methods
    return the reason when the file cannot be used, once; then lines are dropped until the next day.
    """

    def __init__(self, folder: Path, retention_days: int) -> None:
        self._folder = folder
        self._retention_days = retention_days
        self._day = ""
        self._descriptor: int | None = None

    def open_today(self) -> str | None:
        """Open the file of today and delete files past their retention."""
        return self._switch(datetime.now(UTC).strftime("%Y%m%d"))

    def write(self, line: str, timestamp: str) -> str | None:
        """Append a line to the file of its day; `timestamp` begins with the UTC date as YYYY-MM-DD."""
        day = timestamp[:10].replace("-", "")
        problem = self._switch(day) if day > self._day else None
        if self._descriptor is None:
            return problem
        try:
            os.write(self._descriptor, line.encode())
        except OSError as error:
            self.close()
            return error.strerror
        return problem

    def close(self) -> None:
        """Close the file; it opens again with the first line of another day."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.close()

    def _switch(self, day: str) -> str | None:
        self.close()
        self._day = day
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"etl_{day}.log"
            self._descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            replace_link(self._folder / LATEST, name)
            delete_old_files(self._folder, self._retention_days, datetime.strptime(day + "+0000", "%Y%m%d%z").date())
        except OSError as error:
            return error.strerror or "the folder cannot be written"
        return None


def replace_link(link: Path, name: str) -> None:
    """Point the link at the file in one step, so that a reader never finds it missing."""
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    new.replace(link)


def delete_old_files(folder: Path, retention_days: int, today: date) -> None:
    """Delete the log files of days more than `retention_days` before today; other files are let be."""
    oldest = (today - timedelta(days=retention_days)).strftime("%Y%m%d")
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is not None and match[1] < oldest:
            path.unlink(missing_ok=True)
