"""One life of the listener's connections, and what its start and its stream both need of them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from replicator.apply.control import Control
from replicator.apply.job import Job
from replicator.apply.stream_control import ParkedTable, StreamControl
from replicator.capture.publication import read_memberships
from replicator.capture.pull import Access
from replicator.config.settings import Settings
from replicator.db import Connection, connect, translated
from replicator.errors import ReplicatorError, choose_exit_code
from replicator.patience import outlast
from replicator.position import Lsn
from replicator.sync.inventory import Chosen
from replicator.sync.preparation import prepare_jobs

_T = TypeVar("_T")


class Outcome(Enum):
    """How a session ended."""

    DONE = "done"
    AGAIN = "again"


@dataclass
class ListenResult:
    """What a bounded listener did. position: all before it is in the target and confirmed.

    live: tables that the stream keeps. parked: those that it left out, and why; errors: as they were met.
    """

    execution_id: uuid.UUID
    position: Lsn | None = None
    transactions: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    parked: dict[str, ParkedTable] = field(default_factory=dict)
    errors: dict[str, ReplicatorError] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """Return 0, 6 when tables were left out, their gravest error's own code when all were."""
        errors = [error for table, error in self.errors.items() if table in self.parked]
        return choose_exit_code(errors, some_landed=bool(self.live - self.parked.keys()))


@dataclass
class Memory:
    """What a listener keeps from one session to the next.

    needs_text: a table cannot take its cells in binary. by_slot: tables that have to be copied ahead of the stream, in
    a slot's snapshot. skipped: tables that have no stream.
    unwritable: tables with names that the target cannot write down.
    """

    needs_text: bool = False
    by_slot: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    unwritable: set[str] = field(default_factory=set)


@dataclass
class ListenSession:
    """The sessions that live as long as `stack`, and what they are for.

    control, streams: of the session on the target that holds the listener's lock; watcher: on the source. version: the
    source's. jobs: tables that are copied at a time. is_bounded: the listener ends by itself. has_begun: the
    stream has begun, so that a table that ends it can be left out.
    """

    settings: Settings
    access: Access
    log: FilteringBoundLogger
    stop: threading.Event
    target_conninfo: str
    jobs: int
    result: ListenResult
    stack: ExitStack
    control: Control
    streams: StreamControl
    watcher: Connection
    version: int
    is_bounded: bool
    memory: Memory
    has_begun: bool = False

    @property
    def parks(self) -> bool:
        """Say whether a table in trouble is left out, and does not end the listener."""
        return self.settings.listen.on_table_error == "park"

    def park(self, refused: Mapping[str, ReplicatorError]) -> None:
        """Leave tables out until their trouble is over; the first one's error is raised where none may be left out."""
        for error in refused.values() if not self.parks else ():
            raise error
        with translated("target"):
            known = self.streams.read_parked() if refused else {}
            for table, error in refused.items():
                self.streams.park_table(table, error)
                self.result.errors[table] = error
                before = known.get(table)
                if before is None or (before.id, before.message) != (error.id, error.message):
                    self._tell_parked(table, error)

    def _tell_parked(self, table: str, error: ReplicatorError) -> None:
        self.streams.record_failure(self.result.execution_id, table, error)
        self.log.error(
            "table_parked", path="listen", table=table, error_type=error.id, error_message=error.message,
            error_hint=error.hint, sqlstate=error.sqlstate, lsn=error.lsn,
        )  # fmt: skip

    def connect_target(self) -> Connection:
        """Open another session on the target."""
        return connect(self.target_conninfo, side="target", timeout_s=self.access.connect_timeout_s)

    def outlast(self, act: Callable[[], _T], slot: str) -> _T:
        """Do something with a slot that a listener which was killed may still hold. Raises LockHeldError at last."""
        return outlast(
            act,
            self.settings.lock_wait.total_seconds(),
            self.stop,
            lambda error: self.log.info("slot_held", path="listen", slot=slot, reason=error.why),
        )

    def prepare_jobs(self, chosen: Sequence[Chosen]) -> dict[str, Job]:
        """Return the tables' jobs as the source defines them now."""
        with translated("target"):
            records = self.control.read_records()
        return prepare_jobs(
            self.watcher, chosen, records, mask_key=self.access.mask_key, target=self.control.connection
        )

    def read_memberships(self, connection: Connection, jobs: Mapping[str, Job]) -> dict[int, str]:
        """Return by root what ties it to the publication."""
        oids = [job.mapping.relation.oid for job in jobs.values()]
        return read_memberships(connection, self.settings.publication_name, oids)
