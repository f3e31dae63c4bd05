"""Takes orders for runs: one that changes tables at a time, and one verification beside it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from replicator.apply.control import Control
from replicator.db import closing, connect, translated
from replicator.errors import LockHeldError, UsageError
from replicator.inventory import read_table_argument
from replicator.serve.launcher import Launcher
from replicator.serve.record import GRACE_S, Command, Order, StartedRuns
from replicator.settings import Settings

_WRITING: tuple[Command, ...] = ("sync", "resync")
_CONNECT_S = 2.0
MOST_TABLES = 1000


class Desk:
    """Starts what is asked for, unless something of the kind is under way."""

    def __init__(self, settings: Settings, target_conninfo: str, launcher: Launcher) -> None:
        self._settings, self._target_conninfo, self._launcher = settings, target_conninfo, launcher
        self._mutex = threading.Lock()

    def take(self, command: Command, tables: Sequence[str], *, full: bool = False) -> Order:
        """Start a run and return its order.

        Raises LockHeldError when one is under way, UsageError for names that are none, PassingError when the target
        does not answer.
        """
        order = Order(command, "api", read_names(tables), full)
        with self._mutex:
            self._check_free(command)
            with closing(connect(self._target_conninfo, side="target", timeout_s=_CONNECT_S)) as connection:
                control = Control(connection, self._settings.target.control_schema, self._settings.pipeline)
                with translated("target"):
                    control.migrate()
                    runs = StartedRuns(control)
                    if command not in _WRITING:
                        runs.start(order)
                    elif not runs.start_alone(order, GRACE_S):
                        raise _busy()
            self._launcher.start(order)
        return order

    def _check_free(self, command: Command) -> None:
        if self._launcher.is_draining:
            raise LockHeldError("this process is about to end", mend="ask again in a moment", id="draining")
        rivals = _WRITING if command in _WRITING else ("verify",)
        if self._launcher.is_busy(*rivals):
            raise _busy()


def read_names(tables: Sequence[str]) -> tuple[str, ...]:
    """Return table names as the record has them. Raises UsageError for one that is none."""
    if len(tables) > MOST_TABLES:
        raise UsageError(f"at most {MOST_TABLES} tables can be named", mend="name none: all are taken then")
    for name in tables:
        if "\0" in name or len(name) > 500:
            raise UsageError("a table's name is longer than any, or has a NUL", mend="write schema.table")
    return tuple(sorted({read_table_argument(name) for name in tables}))


def _busy() -> LockHeldError:
    return LockHeldError(
        "a run of this pipeline is under way",
        why="one at a time writes to its tables",
        mend="wait for its end: GET /api/v1/runs?status=running shows it",
        id="run_held",
    )
