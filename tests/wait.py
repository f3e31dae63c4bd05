"""Wait for a condition, never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float = 20.0, *, what: str = "", interval_s: float = 0.02) -> T:
    """Poll `condition` until it returns something truthy, and return that.

    Raises AssertionError after `timeout_s`, naming `what` (or the condition) and its last answer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"waited {timeout_s:g} s in vain for: {name} (last answer: {answer!r})")
        time.sleep(interval_s)
