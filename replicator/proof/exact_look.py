"""Compares a table without a key exactly while a listener keeps it, without pausing the stream.

Its rows have no names, so none of them can be looked at once more. But a new slot exports a snapshot that shows all
that was committed before the slot's own stream begins. The target is read later, rows and position in one snapshot.
What the new stream brings up to this position is put upon the source's rows: then both sides are as of one point of the
stream, and whatever differs is wrong.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from replicator.apply import difference, merge
from replicator.apply.change_load import LiveTable, MultisetChanges
from replicator.apply.job import Job, Session
from replicator.apply.merge import Target
from replicator.apply.staging import Staging
from replicator.apply.stream_control import StreamControl
from replicator.batch import Figures, Totals
from replicator.capture import pgoutput
from replicator.capture.collector import Collector
from replicator.capture.envelope import Keepalive
from replicator.capture.intake import Intake
from replicator.capture.lookup import Delivered
from replicator.capture.publication import read_published
from replicator.capture.pull import Reader, TableReader, list_rewritten, take_snapshot
from replicator.capture.source_state import check_source
from replicator.capture.walsender import NewSlot, WalSender
from replicator.changes import Segment
from replicator.db import Connection, translated
from replicator.errors import LockHeldError, OperatorError, PassingError
from replicator.position import Lsn, Origin
from replicator.proof.judgement import TargetTable, make_source, open_target_table
from replicator.proof.verdict import Verdict
from replicator.stream.table import VERSION, Newcomers, StreamedTable, make_streamed
from replicator.sync.inventory import take_inventory
from replicator.sync.run import Run

UNDECIDABLE = "undecidable"
_SLOT_LIMIT_S = 10.0
"""How long transactions that are open on the source are waited for: a slot begins once they have ended."""
_STREAM_LIMIT_S = 60.0
_TICK_S = 0.2
_BEGIN, _CANCELED = b"B", "57014"


@dataclass(frozen=True)
class Point:
    """A table as the source had it where a slot's stream begins. sender: whose slot it is."""

    sender: WalSender
    slot: NewSlot
    source: TableReader
    streamed: StreamedTable

    @property
    def begins(self) -> Lsn:
        """Return where the stream begins."""
        return self.slot.consistent_point


class ExactLook:
    """Looks at one table without a key that a listener keeps."""

    def __init__(self, run: Run, session: Session, job: Job) -> None:
        self.run, self.session, self.job = run, session, job
        self.control = StreamControl(session.connection, session.control.schema, session.control.pipeline)

    @contextmanager
    def open(self, watcher: Connection) -> Iterator[Point]:
        """Read the source at the beginning of a stream of its own. Raises PassingError, `undecidable`, if it cannot."""
        streamed = self._make_streamed(watcher)
        relation = self.job.mapping.relation
        name = f"{self.run.settings.slot_name[:46]}_look_{relation.oid}"
        with WalSender.open(self.run.access.conninfo, timeout_s=self.run.access.connect_timeout_s) as sender:
            slot = self._make_slot(sender, name)
            with translated("source", self.job.table):
                place = (relation.schema, relation.name, relation.kind)
                snapshot = take_snapshot(self.run.access, watcher, [place], exported=slot.snapshot)
            try:
                if list_rewritten(snapshot, [member.oid for member in relation.members]):
                    raise undecidable(self.job.table, "it was emptied or rewritten at the moment of the look")
                reader = Reader(snapshot)
                try:
                    yield Point(sender, slot, make_source(self.job, reader), streamed)
                finally:
                    reader.close()
            finally:
                snapshot.close()

    def _make_streamed(self, watcher: Connection) -> StreamedTable:
        with translated("source", self.job.table):
            chosen = take_inventory(watcher, self.run.settings, [self.job.table]).tables
            published = read_published(watcher, self.run.settings.publication_name)
            version = check_source(watcher)
        relation = self.job.mapping.relation
        streamed = chosen and make_streamed(
            self.session.connection,
            chosen[0],
            self.job,
            published.get((relation.schema, relation.name)),
            version=version,
            mask_key=self.run.access.mask_key,
            digest=self.session.digest,
        )
        if not streamed:
            raise undecidable(self.job.table, "its definition is changing")
        return streamed

    def _make_slot(self, sender: WalSender, name: str) -> NewSlot:
        timer = threading.Timer(_SLOT_LIMIT_S, sender.cancel)
        timer.start()
        try:
            return sender.create_slot(name, temporary=True, export=True)
        except LockHeldError:
            raise undecidable(self.job.table, "another command looks at it") from None
        except OperatorError as error:
            is_late = error.sqlstate == _CANCELED
            why = f"a transaction of the source was open for {_SLOT_LIMIT_S:g} s" if is_late else error.message
            raise undecidable(self.job.table, why) from error
        finally:
            timer.cancel()

    def compare(self, point: Point) -> Verdict:
        """Compare both sides as of one position, in the caller's transaction on the target, which holds still.

        The target must have all up to where the point's stream begins. Raises PassingError as `open` does.
        """
        upto, table = self.read_position(), open_target_table(self.session, self.job)
        changes, staging = self.read_changes(point, upto), Staging(self.session.connection)
        ours = self._sum(table, table.target)
        theirs = self._sum_expected(point, table, changes, staging)
        verdict = Verdict(self.job.table, theirs.rows, ours.rows)
        verdict.digests = (theirs.digest, ours.digest)
        if theirs != ours:
            name = self.stage_source(point, table)
            self.apply(point, changes, table, name, staging)
            row = self.session.connection.execute(difference.count_multiset(table.target, name)).fetchone()
            assert row is not None
            verdict.missing_rows = row["missing"]
            verdict.extra_rows = 0 if self.job.settings.deletes == "ignore" else row["extra"]
        return verdict

    def read_position(self) -> Lsn:
        """Return the position that the table's rows are of, as this transaction sees them."""
        state, table = self.control.read_state(), self.control.read_tables().get(self.job.table)
        if state is None or state.position is None or table is None or table.is_stale:
            raise undecidable(self.job.table, "the listener is about to read it again")
        if state.position < table.origin.end and table.origin.seen is not None:
            raise undecidable(self.job.table, "the listener has not come up to where it was read")
        return max(state.position, table.origin.since)

    def read_changes(self, point: Point, upto: Lsn, limit_s: float = _STREAM_LIMIT_S) -> Segment | None:
        """Return what the stream of the slot brings to the table up to a position; None where that is nothing."""
        collector, deadline = self._make_collector(point), time.monotonic() + limit_s
        publications = [self.run.settings.publication_name]
        point.sender.start(point.slot.name, publications=publications, at=point.begins, binary=_is_binary(point))
        while not _take_all(point.sender, collector, upto):
            if collector.stale:
                raise undecidable(self.job.table, "its definition is changing")
            if collector.changes.held_bytes > self.run.settings.listen.batch_bytes:
                raise undecidable(self.job.table, "too much of it changed during the look")
            if time.monotonic() > deadline or self.run.stop.is_set():
                raise undecidable(self.job.table, "the source did not send its changes in time")
            point.sender.ask()
        if collector.stale:
            raise undecidable(self.job.table, "its definition is changing")
        segments = collector.changes.segments.get(self.job.table, [])
        if any(segment.fold.truncated for segment in segments):
            raise undecidable(self.job.table, "it was emptied at the moment of the look")
        return segments[0] if segments else None

    def _make_collector(self, point: Point) -> Collector:
        table, relation = self.job.table, self.job.mapping.relation
        oids = {relation.oid, *(member.oid for member in relation.members)}
        newcomers = Newcomers({table: point.streamed})

        def resolve(message: pgoutput.Relation) -> Intake | None:
            is_known = message.oid in oids
            is_new_part = newcomers.find_root(message, is_known=is_known) is not None
            intake = point.streamed.make_intake(message) if is_known else None
            if is_new_part or (is_known and intake is None):
                collector.discard(table)
            return intake

        collector = Collector(resolve, point.begins, {table: Origin(point.begins)}, Delivered())
        return collector

    def _sum_expected(self, point: Point, table: TargetTable, changes: Segment | None, staging: Staging) -> Totals:
        """Return the totals of the source's rows as they were at the target's position."""
        totals = point.source.sum_rows(table.shape, by_row=True)
        if changes is None:
            return totals
        load = self._load(point, changes, table.target, staging)
        load.stage()
        if not table.target.columns:
            return Totals(totals.rows + sum(load.coming.values()) - sum(load.going.values()), totals.digest)
        if load.coming:
            totals += self._sum(table, _as_target(table.target, load.arrivals))
        if load.going:
            gone = self._sum(table, _as_target(table.target, load.departures))
            totals += Totals(-gone.rows, -gone.digest)
        return totals

    def _sum(self, table: TargetTable, target: Target) -> Totals:
        query = merge.sum_target(target, merge.hash_row(target, "t", table.shape.digest))
        row = self.session.connection.execute(query).fetchone()
        assert row is not None
        # Rows without columns have nothing that could differ.
        return Totals(row["rows"], int(row["digest"]) if target.columns else 0)

    def stage_source(self, point: Point, table: TargetTable) -> str:
        """Stage the source's rows as they were where the point's stream begins; return the staging table's name."""
        connection, names = self.session.connection, [column.name for column in table.target.columns]
        staging = f"replicator_exact_{self.job.mapping.relation.oid}"
        connection.execute(merge.create_staging(table.target, staging, names))
        into = merge.copy_into(merge.staging_name(staging), names, binary=table.shape.binary)
        with connection.cursor() as cursor, cursor.copy(into) as copy:
            for piece in point.source.read_all(table.shape):
                copy.write(piece)
        return staging

    def apply(self, point: Point, changes: Segment | None, table: TargetTable, name: str, staging: Staging) -> None:
        """Put changes upon the staged rows, as the listener puts them upon the target's."""
        if changes is None:
            return
        load = self._load(point, changes, _as_target(table.target, name), staging)
        load.stage()
        load.remove(spare=False)
        load.write()

    def _load(self, point: Point, changes: Segment, target: Target, staging: Staging) -> MultisetChanges:
        live = LiveTable(self.job, VERSION, target, _is_binary(point))
        return MultisetChanges(self.session.connection, staging, live, changes, Figures())


def undecidable(table: str, why: str) -> PassingError:
    """Return the transient error of a look that cannot decide now."""
    return PassingError(
        f"whether {table} is equal cannot be decided now",
        why=why,
        hint=f"replicator verify '{table}', once more",
        id=UNDECIDABLE,
        table=table,
    )


def _take_all(sender: WalSender, collector: Collector, upto: Lsn) -> bool:
    """Take what has arrived; say whether all commits up to a position have come. No later one is taken."""
    for item in sender.receive(_TICK_S):
        if isinstance(item, Keepalive):
            if item.wal_end >= upto and not collector.in_transaction:
                return True
            continue
        if item[:1] == _BEGIN:
            begin = pgoutput.decode(item)
            if isinstance(begin, pgoutput.Begin) and begin.final_lsn >= upto:
                return True
        collector.take(item)
    return False


def _as_target(target: Target, staging: str) -> Target:
    """Return a staging table in the place of a target."""
    return replace(target, schema="pg_temp", name=staging, extra=(), soft=False, partitioned=False)


def _is_binary(point: Point) -> bool:
    """Say whether the stream's cells come in the binary format of their types: rules need their text."""
    layout = point.streamed.layout
    return point.streamed.shape.binary and not layout.rules and not layout.from_source
