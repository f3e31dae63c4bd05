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
from replicator.apply.stream_control import StreamControl
from replicator.capture.publication import read_memberships
from replicator.capture.pull import Access
from replicator.config.settings import Settings
from replicator.db import Connection, connect, translated
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
    """What a bounded listener did. position: all before it is in the target and confirmed."""

    execution_id: uuid.UUID
    position: Lsn | None = None
    transactions: int = 0
    rows: dict[str, int] = field(default_factory=dict)


@dataclass
class ListenSession:
    """The sessions that live as long as `stack`, and what they are for.

    control, streams: of the session on the target that holds the listener's lock; watcher: on the source. version: the
    source's. jobs: tables that are copied at a time.
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
