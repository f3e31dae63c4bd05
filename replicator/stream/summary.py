"""What a stream tells at level info: one line a minute, however many batches land in it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from structlog.typing import FilteringBoundLogger

from replicator.apply.stream_load import Landed
from replicator.position import Lsn

SUMMARY_S = 60.0


class StreamSummary:
    """Counts the batches that land, and logs each minute's. Idle minutes log nothing."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._since = self._busy_s = 0.0
        self._batches = self._rows = self._transactions = 0
        self._position: Lsn | None = None
        self._lag_s: float | None = None

    def add(self, landed: Landed, duration_s: float) -> None:
        """Count a batch; one without rows only lets time pass."""
        if landed.figures:
            self._since = self._since or time.monotonic()
            self._batches += 1
            self._rows += sum(figures.rows_extracted for figures in landed.figures.values())
            self._transactions += landed.transactions
            self._busy_s += duration_s
            self._position = landed.position
            if landed.committed_at is not None:
                self._lag_s = max(0.0, (datetime.now(UTC) - landed.committed_at).total_seconds())
        if self._since and time.monotonic() - self._since >= SUMMARY_S:
            self.flush()

    def flush(self) -> None:
        """Log what was counted since the last time, if anything."""
        if self._batches:
            self._log.info(
                "stream_advanced",
                path="listen",
                lsn=str(self._position),
                batches=self._batches,
                transactions=self._transactions,
                rows_extracted=self._rows,
                lag_seconds=None if self._lag_s is None else round(self._lag_s, 3),
                duration_seconds=round(self._busy_s, 3),
            )
        self._clear()

    def _clear(self) -> None:
        self._since = self._busy_s = 0.0
        self._batches = self._rows = self._transactions = 0
        self._position = self._lag_s = None
