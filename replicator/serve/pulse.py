"""Whether a stream moves: its lock alone is no sign of life."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence

from replicator.monitor.health import MOVED

MOVED_S = MOVED.total_seconds()


class Pulse:
    """Remembers when a stream was last seen to move. For several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._seen: Sequence[Hashable] | None = None
        self._moved_at: float | None = None

    def judge(self, mark: Sequence[Hashable], now: float) -> bool | None:
        """Say that the stream moves, or None where that has to be asked: an idle source moves nothing for a while.

        mark: the listener's epoch, then where it stands; of a new epoch nothing is known yet. now: monotonic seconds.
        """
        with self._mutex:
            if self._seen is None or self._seen[0] != mark[0]:
                self._moved_at = None
            elif self._seen != mark:
                self._moved_at = now
            self._seen = mark
            return True if self._moved_at is not None and now - self._moved_at < MOVED_S else None

    def forget(self) -> None:
        """Note that there is no stream."""
        with self._mutex:
            self._seen = self._moved_at = None
