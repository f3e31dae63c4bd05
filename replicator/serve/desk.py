"""Takes orders for runs: one that changes tables at a time, and one verification beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from replicator.apply.control import Control, list_landed
from replicator.config.settings import Settings
from replicator.db import closing, connect, translated
from replicator.errors import LockHeldError, ReplicatorError, UsageError
from replicator.relation import TABLE
from replicator.selection import parse_table_name, select_entry
from replicator.serve.launcher import Launcher
from replicator.serve.record import GRACE_S, Command, Order, StartedRuns
from replicator.sync.inventory import read_table_argument, take_inventory
from replicator.sync.preparation import open_access

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
        self._check_free(command)
        self._check_tables(order.tables)
        with self._mutex:
            self._check_free(command)
            with self._open_control() as control, translated("target"):
                runs = StartedRuns(control)
                if command not in _WRITING:
                    runs.start(order)
                elif not runs.start_alone(order, GRACE_S):
                    raise _busy()
            self._launcher.start(order)
        return order

    @contextmanager
    def _open_control(self) -> Iterator[Control]:
        with closing(connect(self._target_conninfo, side="target", timeout_s=_CONNECT_S)) as connection:
            control = Control(connection, self._settings.target.control_schema, self._settings.pipeline)
            with translated("target"):
                control.migrate()
            yield control

    def _check_tables(self, tables: Sequence[str]) -> None:
        """Raise UsageError for a name that is no table of this configuration, as far as source or target can tell."""
        if not tables:
            return
        with self._open_control() as control, translated("target"):
            known = set(list_landed(control.read_records()))
        if all(table in known and self._is_selected(table) for table in tables):
            return
        try:
            with closing(open_access(self._settings).open(first=True)) as connection, translated("source"):
                take_inventory(connection, self._settings, tables)
        except UsageError:
            raise
        except ReplicatorError:
            # The run itself tells what is wrong with the source, or with the configuration.
            return

    def _is_selected(self, table: str) -> bool:
        return select_entry(self._settings.entries, *parse_table_name(table), TABLE) is not None

    def _check_free(self, command: Command) -> None:
        if self._launcher.is_draining:
            raise LockHeldError("this process is about to end", hint="ask again in a moment", id="draining")
        rivals = _WRITING if command in _WRITING else ("verify",)
        if self._launcher.is_busy(*rivals):
            raise _busy()


def read_names(tables: Sequence[str]) -> tuple[str, ...]:
    """Return table names as the record has them. Raises UsageError for one that is none."""
    if len(tables) > MOST_TABLES:
        raise UsageError(f"at most {MOST_TABLES} tables can be named", hint="name none: all are taken then")
    for name in tables:
        if "\0" in name or len(name) > 500:
            raise UsageError("a table's name is longer than any, or has a NUL", hint="write schema.table")
    return tuple(sorted({read_table_argument(name) for name in tables}))


def _busy() -> LockHeldError:
    return LockHeldError(
        "a run of this pipeline is under way",
        why="one at a time writes to its tables",
        hint="wait for its end: GET /api/v1/runs?status=running shows it",
        id="run_held",
    )
