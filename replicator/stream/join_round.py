"""One snapshot in which tables are read beside the stream, large ones range by range."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from replicator.apply.control import Control
from replicator.apply.job import Incoming, Job, Session
from replicator.apply.keyed import KeyedLoad
from replicator.apply.stream_control import StreamControl
from replicator.batch import Figures
from replicator.capture.lookup import Delivered
from replicator.capture.pull import Snapshot, take_snapshot
from replicator.config.settings import Settings
from replicator.errors import PassingError, ReplicatorError
from replicator.position import Lsn
from replicator.reading import Reading
from replicator.strategy import FULL, XMIN, audits_by_xmin
from replicator.stream.definition import define
from replicator.sync.exchange import ExchangeRound
from replicator.sync.inventory import Chosen
from replicator.sync.preparation import decide_job
from replicator.sync.run import Run

_PAUSE_S = 0.005


class JoinRun(Run):
    """A run beside the stream. It claims its tables alone, and a failure is the joiner's to record."""

    def __init__(
        self, settings: Settings, target_conninfo: str, *, jobs: int, stop: threading.Event, execution_id: UUID
    ) -> None:
        super().__init__(
            settings, target_conninfo, full=False, jobs=jobs, stop=stop, path="listen", execution_id=execution_id
        )

    def claim(self, control: Control, names: Sequence[str], triggered_by: str) -> None:
        """Raise the tables' epochs and commit a running row for each. Other runs may be at work on other tables."""
        with control.waiting(self.lock_wait_s), control.connection.transaction():
            self.records = control.claim_tables(names)
            self.batch_ids = control.start_batches(self.execution_id, names, path=self.path, triggered_by=triggered_by)

    def fail(self, table: str, error: ReplicatorError) -> None:
        """Keep a table's error."""
        self.errors[table] = error


class JoinRound(ExchangeRound):
    """A round whose snapshot sees every transaction that the stream had delivered when the windows opened.

    exact: tables whose rows are those of a whole read, as of the position that is recorded: what changed since is
    enough, whatever their strategy. landed: by table, its definition and facts of the snapshot.
    """

    def __init__(
        self,
        run: Run,
        control: Control,
        pending: list[Chosen],
        *,
        delivered: Delivered,
        epoch: int,
        memberships: Mapping[int, str],
        exact: frozenset[str],
    ) -> None:
        super().__init__(run, control, pending)
        self.delivered, self.epoch, self.memberships, self.exact = delivered, epoch, memberships, exact
        self.landed: dict[str, Incoming] = {}

    def _take_snapshot(self, relations: list[tuple[str, str, str]]) -> Snapshot:
        while True:
            snapshot = take_snapshot(self.run.access, self.run.watcher, relations)
            _, next_xid, open_xids = snapshot.facts.snapshot.split(":")
            if self.delivered.are_visible(int(next_xid), [int(xid) for xid in open_xids.split(",") if xid]):
                return snapshot
            snapshot.close()
            if self.run.stop.wait(_PAUSE_S):
                raise PassingError("the listener was stopped", why="it waited for a commit to become visible")

    def _decide(self, job: Job) -> Reading:
        if job.table in self.exact and job.choice.strategy != XMIN and audits_by_xmin(job.mapping, job.settings):
            job = replace(job, choice=replace(job.choice, strategy=XMIN))
        full = job.choice.strategy != XMIN
        return decide_job(job, self.snapshot.facts, self.observations, full=full, lost_markers=self.lost_markers)

    def _make_load(self, session: Session, incoming: Incoming, attempts: int) -> KeyedLoad:
        if incoming.reading.load_type != FULL:
            return KeyedLoad(session, incoming, attempts)
        return super()._make_load(session, incoming, attempts)

    def _ahead(self, session: Session, incoming: Incoming) -> None:
        """Do nothing: this is the listener itself."""

    def _also(self, session: Session, incoming: Incoming) -> None:  # noqa: ARG002  # the table's own part is done
        StreamControl(session.connection, session.control.schema, session.control.pipeline, self.epoch).fence()

    def _land(self, incoming: Incoming, figures: Figures) -> None:
        super()._land(incoming, figures)
        self.landed[incoming.job.table] = incoming

    def describe(self, table: str) -> tuple[str, Lsn]:
        """Return the definition of a table that landed, and the end of the WAL after the snapshot."""
        return define(self.landed[table].job, self.memberships), self.end_of_wal
