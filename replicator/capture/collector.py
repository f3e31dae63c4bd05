"""Collects the stream's messages into folded changes, transaction by transaction.

    Begin, Relation, Insert ... Commit   ──►  Changes, handed over at a commit or, past the cap, in between

What the target has already is passed over: whole transactions up to its position, and for a table up to where its copy
was taken. A table whose shape is not the known one any more is passed over too and named in `stale`: it is read again.
"""

from __future__ import annotations

from collections.abc import Callable

from replicator.capture import pgoutput
from replicator.capture.intake import Intake
from replicator.capture.lookup import Delivered
from replicator.capture.window import Emptied, Window
from replicator.changes import Changes, Segment
from replicator.continuity import Expectation, LastCommit
from replicator.errors import StreamError
from replicator.fold import Fold, KeyedFold
from replicator.position import Lsn, Origin

# What a message costs in memory beyond its own bytes: the row's tuple, a header for each cell, the key's place.
_ROW_BYTES, _CELL_BYTES = 300, 40

HEARTBEAT = "replicator"
"""The prefix of our own messages: nobody misses the transaction of one."""

_ROWS = frozenset({pgoutput.Insert, pgoutput.PartialInsert, pgoutput.Update, pgoutput.PartialUpdate, pgoutput.Delete})
_Sink = tuple["Intake | _Keeper", Segment, int]
Resolve = Callable[[pgoutput.Relation], "Intake | None"]


class Collector:
    """The reading thread's side of the changelog in memory.

    resolve: finds the intake of a relation, None for one that is not ours. position: all before it is in the target.
    origins: what each table has beyond that. expectation: what proves the source's history, ahead of all that counts.
    """

    def __init__(
        self,
        resolve: Resolve,
        position: Lsn,
        origins: dict[str, Origin],
        delivered: Delivered,
        expectation: Expectation | None = None,
    ) -> None:
        self._resolve, self._position, self._origins, self._delivered = resolve, position, origins, delivered
        self.expectation = expectation or Expectation(None)
        self._intakes: dict[int, Intake | None] = {}
        self._row_bytes: dict[int, int] = {}
        self._sinks: dict[int, _Sink | None] = {}
        # Up to here some changes are in the target already, so each transaction has to be looked at.
        self._all_since = max([position, *(origin.end for origin in origins.values())])
        self._picky = True
        self._begin: pgoutput.Begin | None = None
        # The last transaction of those in hand that a source without it would lack.
        self._last: tuple[pgoutput.Begin, pgoutput.Commit] | None = None
        self._is_heartbeat = False
        self._skips = False
        self.changes = Changes()
        self.stale: set[str] = set()
        self.windows: dict[str, Window] = {}
        self._keepers: dict[int, _Keeper] = {}
        self._described: dict[int, pgoutput.Relation] = {}
        self._unfit: dict[int, str] = {}

    @property
    def in_transaction(self) -> bool:
        """Say whether a transaction has begun and not ended."""
        return self._begin is not None

    def take(self, payload: bytes) -> None:
        """Take one message in. Raises StreamError on what is not understood."""
        message = pgoutput.decode(payload)
        kind = type(message)
        if kind in _ROWS:
            self._take_row(message, len(payload))  # type: ignore[arg-type]  # its kind was looked at
        elif kind is pgoutput.Begin:
            self._open(message)  # type: ignore[arg-type]
        elif kind is pgoutput.Commit:
            self._close(message)  # type: ignore[arg-type]
        elif kind is pgoutput.Relation:
            self._learn(message)  # type: ignore[arg-type]
        elif kind is pgoutput.Truncate:
            self._truncate(message)  # type: ignore[arg-type]
        elif kind is pgoutput.LogicalMessage:
            self._is_heartbeat = message.transactional and message.prefix == HEARTBEAT  # type: ignore[union-attr]
        elif kind is pgoutput.StreamAbort:
            self._check_abort(message)  # type: ignore[arg-type]
        # Of the other kinds (origins, types, messages of others) nothing is wanted.

    def _open(self, begin: pgoutput.Begin) -> None:
        if self._begin is not None:
            raise _out_of_order("a transaction begins inside another one")
        self._begin = begin
        if not self.expectation.is_met:
            self.expectation.meet(begin.final_lsn, begin.xid, begin.commit_time_us)
        for window in self.windows.values():
            window.begin = begin
        # A position is the end of a commit record, or of something else; a commit that begins before it ended there.
        self._skips = begin.final_lsn < self._position
        if not self._skips:
            self.changes.commit_lsn = begin.final_lsn
        if begin.final_lsn < self._all_since or self._picky:
            self._sinks.clear()
            self._picky = begin.final_lsn < self._all_since

    def _close(self, commit: pgoutput.Commit) -> None:
        if self._begin is None or commit.commit_lsn != self._begin.final_lsn:
            raise _out_of_order("a commit belongs to no transaction")
        self._delivered.add(self._begin.xid)
        if not self._skips:
            self.changes.position = commit.end_lsn
            self.changes.commit_time_us = commit.commit_time_us
            self.changes.transactions += 1
            if not self._is_heartbeat:
                self._last = self._begin, commit
        self._begin = None
        self._is_heartbeat = False
        self._skips = False

    def _check_abort(self, abort: pgoutput.StreamAbort) -> None:
        """Pass over a rolled back transaction, of which nothing was sent. Raises StreamError if it is the open one."""
        if self._begin is not None and abort.xid == self._begin.xid:
            raise _out_of_order("a transaction is rolled back after its commit")

    def _learn(self, relation: pgoutput.Relation) -> None:
        self._described[relation.oid] = relation
        self._unfit.pop(relation.oid, None)
        self._intakes[relation.oid] = self._resolve(relation)
        keeper = self._keepers.get(relation.oid)
        if keeper is not None:
            keeper.window.keep(relation)
        self._row_bytes[relation.oid] = _ROW_BYTES + _CELL_BYTES * len(relation.columns)
        self._sinks.clear()

    def _take_row(self, message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete, size: int) -> None:
        """Take a row in: the hot path, in which each table's place is looked up once a batch."""
        try:
            sink = self._sinks[message.relation]
        except KeyError:
            sink = self._sinks[message.relation] = self._find_sink(message.relation)
        if sink is None:
            return
        if self._begin is None:
            raise _out_of_order("a row changes outside of a transaction")
        intake, segment, row_bytes = sink
        segment.count += 1
        self.changes.held_bytes += size + row_bytes
        kind = type(message)
        if kind is pgoutput.Insert or kind is pgoutput.PartialInsert:
            intake.insert(segment.fold, message)  # type: ignore[arg-type]  # its kind was looked at
        elif kind is pgoutput.Delete:
            intake.delete(segment.fold, message)  # type: ignore[arg-type]
        else:
            intake.update(segment.fold, message)  # type: ignore[arg-type]

    def _find_sink(self, relation: int) -> _Sink | None:
        """Return where a relation's rows go in this transaction; None when they are passed over."""
        begin = self._begin
        if begin is None:
            raise _out_of_order("a row changes outside of a transaction")
        try:
            intake = self._intakes[relation]
        except KeyError:
            raise _out_of_order("a row of a table that was not described") from None
        keeper = self._keepers.get(relation)
        if keeper is not None and not self._skips:
            return keeper, keeper.segment, self._row_bytes[relation]
        if relation in self._unfit and not self._skips:
            self.discard(self._unfit[relation])
        if intake is None or self._skips or self._has(intake.layout.table, begin):
            return None
        return intake, self._segment(intake), self._row_bytes[relation]

    def _segment(self, intake: Intake) -> Segment:
        segments = self.changes.segments.get(intake.layout.table)
        if segments is None:
            segments = self.changes.segments[intake.layout.table] = []
        if not segments or segments[-1].version != intake.layout.version:
            segments.append(Segment(intake.layout.version, intake.make_fold()))
        return segments[-1]

    def _truncate(self, message: pgoutput.Truncate) -> None:
        if self._begin is None:
            raise _out_of_order("a table is emptied outside of a transaction")
        for oid in message.relations:
            keeper = self._keepers.get(oid)
            if keeper is not None and not self._skips:
                keeper.window.keep(Emptied(oid))
            intake = self._intakes.get(oid)
            if intake is None or self._skips or self._has(intake.layout.table, self._begin):
                continue
            if intake.is_part:
                # Of a partition nobody knows which rows were in it.
                self.discard(intake.layout.table)
                continue
            segment = self._segment(intake)
            segment.count += 1
            segment.fold.truncate()

    def passes_over(self, table: str) -> bool:
        """Say whether the target has all of the table that the open transaction tells: a shape of then is no news."""
        begin = self._begin
        return begin is not None and (self._skips or self._has(table, begin))

    def _has(self, table: str, begin: pgoutput.Begin) -> bool:
        return self._origins[table].has(begin.final_lsn, begin.xid)

    def discard(self, table: str) -> None:
        """Take nothing more of a table: it is to be read again, later than this."""
        self.stale.add(table)
        self._sinks.clear()
        window = self.windows.get(table)
        if window is not None:
            window.void()
        for oid, intake in self._intakes.items():
            if intake is not None and intake.layout.table == table:
                self._intakes[oid] = None

    def is_live(self, table: str) -> bool:
        """Say whether the table's changes are taken as they come."""
        return table not in self.stale and table not in self.windows

    def keeps(self, relation: int) -> bool:
        """Say whether a relation's changes are kept in a window."""
        return relation in self._keepers

    def open_window(self, window: Window) -> None:
        """Keep a table's changes from now on. Only between transactions: the rest of one alone would be wrong.

        Of the table nothing may be in hand, here or on its way into the target.
        """
        if self._begin is not None:
            raise _out_of_order("a window opens inside a transaction")
        self.close_window(window.table)
        window.described = {oid: self._described[oid] for oid in window.oids if oid in self._described}
        self.windows[window.table] = window
        self._keepers |= {oid: _Keeper(window) for oid in window.oids}
        self._sinks.clear()

    def close_window(self, table: str) -> None:
        """Keep nothing more of a table's changes."""
        window = self.windows.pop(table, None)
        if window is not None:
            for oid in window.oids:
                del self._keepers[oid]
            self._sinks.clear()

    def adopt(
        self,
        window: Window,
        make_intake: Callable[[pgoutput.Relation], Intake | None],
        is_seen: Callable[[Lsn, int], bool],
        origin: Origin,
    ) -> bool:
        """Make a table live whose rows are in the target, with what its window kept; False: it is to be read again.

        Only between transactions. origin: what the rows have once the changes in hand have landed.
        """
        replayed = window.replay(make_intake, is_seen)
        if replayed is None:
            return False
        self.close_window(window.table)
        if replayed.segment is not None:
            self.changes.segments[window.table] = [replayed.segment]
        self.stale.discard(window.table)
        self._origins[window.table] = origin
        self._intakes |= replayed.intakes
        # Rows of a shape that does not fit come only after another description: without one they are not understood.
        self._unfit |= {oid: window.table for oid, intake in replayed.intakes.items() if intake is None}
        self._sinks.clear()
        return True

    def forget_visible(self, oldest_xid: int) -> None:
        """Take note that all transactions older than this one are visible: a listener runs for months."""
        self._delivered.forget(oldest_xid)

    def hand_over(self) -> Changes:
        """Return what was collected, and begin anew. Inside a transaction the changes are marked as open."""
        changes, self.changes = self.changes, Changes()
        if self._last is not None:
            begin, commit = self._last
            changes.last_commit = LastCommit(commit.commit_lsn, commit.end_lsn, begin.xid, begin.commit_time_us)
            self._last = None
        self._sinks.clear()
        if self._begin is not None and not self._skips:
            changes.is_open = True
            self.changes.commit_lsn = self._begin.final_lsn
        return changes


class _Keeper:
    """Stands where an intake does for a table whose changes are kept in a window."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.segment = Segment(0, KeyedFold())

    def insert(self, _fold: Fold, message: pgoutput.Insert) -> None:
        """Keep a new row."""
        self.window.keep(message)

    def update(self, _fold: Fold, message: pgoutput.Update) -> None:
        """Keep a new version of a row."""
        self.window.keep(message)

    def delete(self, _fold: Fold, message: pgoutput.Delete) -> None:
        """Keep the end of a row."""
        self.window.keep(message)


def _out_of_order(why: str) -> StreamError:
    return StreamError(
        "the stream's messages are out of order",
        why=why,
        hint="please report this with the server's version",
    )
