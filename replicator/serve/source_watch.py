"""What the source said last, for requests that must not wait for one that is silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from replicator.monitor.facts import SourceAnswer
from replicator.monitor.health import Problem

_GOOD_S, _BAD_S = 5.0, 1.0
_WAIT_S = 2.0
_SILENT = SourceAnswer(
    problem=Problem("no_connection", "the source has not answered yet", "replicator check says what is wrong with it")
)


class SourceWatch:
    """Asks the source every few seconds at most, in a thread of its own. ask: may take as long as it likes.

    Bad news is looked into again sooner: a slot that was not there a moment ago may be by now.
    """

    def __init__(self, ask: Callable[[], SourceAnswer]) -> None:
        self._ask = ask
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked_at = float("-inf")
        self._answer: SourceAnswer | None = None

    def read(self) -> SourceAnswer:
        """Return the last answer; waits a moment for a fresh one, and no longer."""
        with self._mutex:
            thread = self._thread
            is_due = time.monotonic() - self._asked_at >= (_GOOD_S if self._is_good else _BAD_S)
            if is_due and (thread is None or not thread.is_alive()):
                thread = self._thread = threading.Thread(target=self._look, name="source watch", daemon=True)
                thread.start()
        if thread is not None:
            thread.join(_WAIT_S)
        return self._answer or _SILENT

    @property
    def _is_good(self) -> bool:
        return self._answer is not None and self._answer.slot is not None and self._answer.slot.active

    def _look(self) -> None:
        self._answer = self._ask()
        self._asked_at = time.monotonic()
