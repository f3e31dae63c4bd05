"""Copies tables in the snapshot of a replication slot: from there on the stream follows, without gap or overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from replicator.apply.job import Incoming, Job, Session
from replicator.apply.stream_control import StreamControl
from replicator.capture.pull import LOCKS_SHORT, Snapshot, list_rewritten, take_snapshot
from replicator.capture.walsender import NewSlot
from replicator.continuity import Standing
from replicator.db import translated
from replicator.errors import PassingError, ReplicatorError
from replicator.reading import Reading, SnapshotFacts, distrust_stream
from replicator.stream.candidate import is_of_one_table, name_table
from replicator.stream.definition import define
from replicator.sync.inventory import Chosen
from replicator.sync.preparation import decide_job
from replicator.sync.round import Round, gave_way


@dataclass
class SlotRound(Round):
    """A round in a slot's snapshot.

    slot: its exported snapshot lives as long as its connection says nothing else. repair_xid: everything older is in
    the target already, None for nothing. is_proven: the source has all that the target has; else a repair looks at all
    rows. memberships: of the publication, as they were ahead of the slot.
    """

    slot: NewSlot | None = None
    repair_xid: int | None = None
    is_proven: bool = True
    epoch: int = 0
    memberships: Mapping[int, str] = field(default_factory=dict)

    def _take_snapshot(self, relations: list[tuple[str, str, str]]) -> Snapshot:
        assert self.slot is not None
        return take_snapshot(self.run.access, self.run.watcher, relations, exported=self.slot.snapshot)

    def _check_unmoved(self) -> None:
        heaps = [member.oid for relation in self.relations.values() for member in relation.members]
        with translated("source"):
            if list_rewritten(self.snapshot, heaps):
                raise PassingError(
                    "a table was emptied or rewritten while the copy began",
                    why="the slot's snapshot is older than that",
                    hint="the copy begins anew by itself",
                    id="snapshot_outdated",
                )

    def _work(self) -> None:
        self._check_unmoved()
        super()._work()

    def _decide(self, job: Job) -> Reading:
        if self.repair_xid is None:
            return decide_job(job, self.snapshot.facts, self.observations, full=True)
        known = replace(job.record.state, xid_position=self.repair_xid)
        job = replace(job, record=replace(job.record, state=known))
        reading = decide_job(job, self.snapshot.facts, self.observations, full=False, lost_markers=self.lost_markers)
        return reading if self.is_proven else distrust_stream(reading, Standing.UNPROVEN)

    def _ahead(self, session: Session, incoming: Incoming) -> None:
        """Do nothing: this is the listener itself."""

    def _also(self, session: Session, incoming: Incoming) -> None:
        assert self.slot is not None
        control = StreamControl(session.connection, session.control.schema, session.control.pipeline, self.epoch)
        control.fence()
        control.join_table(incoming.job.table, self.slot.consistent_point, define(incoming.job, self.memberships))


_ROUNDS = 3
_OF_ONE_TABLE = {"23505", "40001", "40P01", "53200", "55P03"}
"""What ends the load of one table and neither the snapshot nor anybody's connection."""


def copy_in_slot(
    make_round: Callable[[list[Chosen]], SlotRound], tables: Sequence[Chosen]
) -> tuple[SnapshotFacts, dict[str, ReplicatorError]]:
    """Copy the tables in the slot's snapshot; return the snapshot's facts, and the errors of tables by themselves.

    A table that somebody else waits for is tried again in the same snapshot, and so is one that met a deadlock or the
    like. Raises an error that concerns all tables, and the transient error that left tables out: then all begins anew
    with another slot.
    """
    left = list(tables)
    refused: dict[str, ReplicatorError] = {}
    passing: PassingError | None = None
    rounds = _ROUNDS
    while rounds:
        round_ = make_round(left)
        round_.execute()
        for table, error in round_.run.errors.items():
            if not is_of_one_table(name_table(error, table)):
                raise error
            refused[table] = error
        if not round_.left:
            return round_.snapshot.facts, refused
        passing = round_.passing
        if passing is not None and passing.sqlstate not in _OF_ONE_TABLE:
            raise passing
        # Tables that take turns at the server's lock table need as many rounds as they are.
        rounds -= passing is None or passing.id != LOCKS_SHORT
        left = round_.left
    raise passing or gave_way()
