"""How long a run bears errors that pass by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from structlog.typing import FilteringBoundLogger
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from replicator.errors import LockHeldError, OperatorError, PassingError, ReplicatorError

PASSING_LIMIT_S = 300.0
_HELD_PAUSE_S = 0.2
_T = TypeVar("_T")


class Patience:
    """Tries again after passing errors, with jitter, until five minutes of them, or `limit_s`, have brought nothing.

    stop: once it is set, nothing is tried again.
    """

    def __init__(self, stop: threading.Event, log: FilteringBoundLogger, *, limit_s: float | None = None) -> None:
        self._stop, self._log = stop, log
        self._limit_s = PASSING_LIMIT_S if limit_s is None else limit_s
        self._failing_since: float | None = None

    def attempts(self) -> Retrying:
        """Return the loop over attempts, which raises the last passing error when it gives up."""
        return Retrying(
            wait=wait_random_exponential(multiplier=0.5, max=20),
            stop=self._note_failure,
            retry=retry_if_exception_type(PassingError),
            sleep=self._sleep,
            reraise=True,
            before_sleep=self._log_retry,
        )

    def renew(self) -> None:
        """Begin the five minutes anew: something was brought forward."""
        self._failing_since = None

    @property
    def is_over(self) -> bool:
        """Say whether no further attempt will be made after an error now."""
        since = self._failing_since
        return self._stop.is_set() or (since is not None and time.monotonic() - since > self._limit_s)

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _note_failure(self, _state: RetryCallState) -> bool:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        return self.is_over

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ReplicatorError):
            self._log.warning(
                "retry_scheduled",
                attempt=state.attempt_number,
                error_type=error.id,
                error_message=error.message,
                sqlstate=error.sqlstate,
            )


FAILOVER = frozenset({"read_only"})
"""What a server that took our writes says while another one takes its place."""
DAEMON = FAILOVER | {"no_connection", "standby_stream"}
"""What a daemon that was at work waits out for ever: whoever keeps it out may let it in again, and alerts tell."""


@contextmanager
def waiting_out(ids: Collection[str]) -> Iterator[None]:
    """Turn the errors of these ids into passing ones, for a process that was let in before."""
    try:
        yield
    except OperatorError as error:
        if error.id not in ids:
            raise
        raise as_passing(error) from error


def as_passing(error: OperatorError) -> PassingError:
    """Return the passing error that stands for one that is waited out."""
    return PassingError(
        error.what,
        why=error.why,
        hint=f"it is tried again by itself; if it lasts: {error.hint}",
        id=error.id,
        sqlstate=error.sqlstate,
        table=error.table,
    )


def outlast(act: Callable[[], _T], wait_s: float, stop: threading.Event, tell: Callable[[LockHeldError], None]) -> _T:
    """Do what the session of a process that was killed may still stand in the way of, until the server has noticed.

    tell: called once, ahead of the wait. Raises the last LockHeldError after `wait_s`, or once `stop` is set.
    """
    deadline = time.monotonic() + wait_s
    has_told = False
    while True:
        try:
            return act()
        except LockHeldError as error:
            if not has_told:
                has_told = True
                tell(error)
            if time.monotonic() >= deadline or stop.wait(_HELD_PAUSE_S):
                raise
