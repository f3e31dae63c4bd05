"""What a stream tells at level info: one line a minute, however many batches land in it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from structlog.typing import FilteringBoundLogger

from replicator.apply.stream_load import Landed
from replicator.position import Lsn

SUMMARY_S = 60.0


@dataclass
class _Minute:
    """What landed since the last line. since: on the monotonic clock; busy_s: how long the batches took together."""

    since: float
    batches: int = 0
    transactions: int = 0
    rows: int = 0
    busy_s: float = 0.0
    position: Lsn | None = None
    lag_s: float | None = None


class StreamSummary:
    """Counts the batches that land, and logs each minute's. Idle minutes log nothing."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._minute: _Minute | None = None

    def add(self, landed: Landed, duration_s: float) -> None:
        """Count a batch; one without rows only lets time pass."""
        if landed.figures:
            self._minute = self._minute or _Minute(time.monotonic())
            _count(self._minute, landed, duration_s)
        if self._minute is not None and time.monotonic() - self._minute.since >= SUMMARY_S:
            self.flush()

    def flush(self) -> None:
        """Log what was counted since the last time, if anything."""
        minute, self._minute = self._minute, None
        if minute is not None:
            self._log.info(
                "stream_advanced",
                path="listen",
                lsn=str(minute.position),
                batches=minute.batches,
                transactions=minute.transactions,
                rows_extracted=minute.rows,
                lag_seconds=None if minute.lag_s is None else round(minute.lag_s, 3),
                duration_seconds=round(minute.busy_s, 3),
            )


def _count(minute: _Minute, landed: Landed, duration_s: float) -> None:
    minute.batches += 1
    minute.rows += sum(figures.rows_extracted for figures in landed.figures.values())
    minute.transactions += landed.transactions
    minute.busy_s += duration_s
    minute.position = landed.position
    if landed.committed_at is not None:
        minute.lag_s = max(0.0, (datetime.now(UTC) - landed.committed_at).total_seconds())
