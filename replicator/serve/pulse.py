"""Whether a stream moves: its lock alone is no sign of life."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence

MOVED_S = 30.0
"""For how long a stream that has moved counts as streaming."""

_ASKED_S = 5.0


class Pulse:
    """Remembers when a stream was last seen to move, and what its source last said. For several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._seen: Sequence[Hashable] | None = None
        self._moved_at: float | None = None
        self._asked_at: float | None = None
        self._is_active = False

    def judge(self, mark: Sequence[Hashable], now: float) -> bool | None:
        """Say that the stream moves, or None where that has to be asked: an idle source moves nothing for a while.

        mark: the listener's epoch, then where it stands; of a new epoch nothing is known yet. now: monotonic seconds.
        """
        with self._mutex:
            if self._seen is None or self._seen[0] != mark[0]:
                self._moved_at = self._asked_at = None
            elif self._seen != mark:
                self._moved_at = now
            self._seen = mark
            return True if self._moved_at is not None and now - self._moved_at < MOVED_S else None

    def ask(self, is_active: Callable[[], bool], now: float) -> bool:
        """Return what the source says, asked every few seconds at most."""
        with self._mutex:
            if self._asked_at is None or now - self._asked_at >= _ASKED_S:
                self._is_active, self._asked_at = is_active(), now
            return self._is_active

    def forget(self) -> None:
        """Note that there is no stream."""
        with self._mutex:
            self._seen = self._moved_at = self._asked_at = None
