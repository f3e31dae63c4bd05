"""The running stream: one thread reads and answers the source, one loads, one watches the source beside them.

    reading thread  ── Changes ──►  loading thread  ── COMMIT ──►  confirm(position)

While the loader works, whole transactions pile up and are folded; when it is free it takes what is there. So under low
load every commit lands at once, and under high load in large batches. Past the memory cap nothing more is read, while
keepalives go on being answered; a transaction larger than the cap lands piece by piece in one open transaction.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from structlog.typing import FilteringBoundLogger

from replicator.apply.stream_load import Landed, StreamLoader
from replicator.capture.collector import Collector
from replicator.capture.envelope import Keepalive
from replicator.capture.source_state import Pair, SlotFacts, read_pair, read_slot, send_heartbeat
from replicator.capture.walsender import WalSender
from replicator.changes import Changes
from replicator.continuity import check_advance
from replicator.db import Connection, translated
from replicator.errors import PassingError, ReplicatorError, unexpected
from replicator.position import Lsn
from replicator.stream.candidate import went_away
from replicator.stream.join import TableJoiner
from replicator.stream.join_board import JoinBoard, LoadedTable

_TICK_S = 1.0
_IDLE_SAVE_S = 1.0
_ASK_S = 0.05
_WATCH_S = 1.0
_DEFINITIONS_S = 10.0
_NARROWING = 8
_MOST_FAILURES = 5
"""Looks at a catalog that is changing, one after the other, before a new session makes them."""


class LoadingThread(threading.Thread):
    """Loads one batch at a time. position: the last that is committed in the target.

    error: what ended it; failed: the batch that it ended at. leave_out: says whether a batch is loaded without the
    table that an error is about. left_out: those tables, of which nothing more is to be taken.
    """

    def __init__(
        self,
        loader: StreamLoader,
        sender: WalSender,
        position: Lsn,
        tell: Callable[[Landed, float], None],
        note_joined: Callable[[set[str]], None],
        leave_out: Callable[[ReplicatorError, Changes], bool],
    ) -> None:
        super().__init__(name="load", daemon=True)
        self._loader, self._sender, self._tell, self._note_joined = loader, sender, tell, note_joined
        self._leave_out = leave_out
        self._queue: queue.SimpleQueue[Changes | None] = queue.SimpleQueue()
        self.position = position
        self.is_free = True
        self.error: ReplicatorError | None = None
        self.failed: Changes | None = None
        self.landed_stale: set[str] = set()
        self.left_out: set[str] = set()

    def submit(self, changes: Changes) -> None:
        """Hand a batch over. Only while it is free."""
        self.is_free = False
        self._queue.put(changes)

    def finish(self) -> None:
        """End the thread once the batch in hand has landed, and roll back what is open."""
        self._queue.put(None)
        self.join()

    def run(self) -> None:
        """Load until told to finish, or until an error."""
        try:
            while (changes := self._queue.get()) is not None:
                begun = time.monotonic()
                self.failed = changes
                landed = self._load(changes)
                self.failed = None
                if landed is not None:
                    self.position = landed.position
                    self._sender.confirm(landed.position)
                    self.landed_stale |= changes.stale
                    if changes.joined:
                        self._note_joined(set(changes.joined))
                    self._tell(landed, time.monotonic() - begun)
                self.is_free = True
                self._sender.wake()
        except ReplicatorError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  # a thread has nobody above it; the reading thread raises it
            self.error = unexpected(error)
        finally:
            self._loader.abandon()
            self._sender.wake()

    def _load(self, changes: Changes) -> Landed | None:
        while True:
            is_begun = self._loader.is_open
            try:
                return self._loader.load(changes)
            except ReplicatorError as error:
                # What has landed piece by piece is rolled back with the rest, and is here no more.
                if is_begun or error.table is None or not self._leave_out(error, changes):
                    raise
                self.left_out.add(error.table)


@dataclass(frozen=True, slots=True)
class Changed:
    """What a look at the catalogs found. redefined: tables to be read again; new: tables to be taken in."""

    redefined: frozenset[str] = frozenset()
    new: frozenset[str] = frozenset()

    def __or__(self, other: Changed) -> Changed:
        return Changed(self.redefined | other.redefined, self.new | other.new)


class Watch(threading.Thread):
    """Looks at the source beside the stream: pairs, heartbeat, the slot's health, definitions that changed.

    find_changed: returns the tables whose definition is not the one they were copied with, and new ones. error: what
    ended it: a stream that nobody watches would miss what no message tells.
    """

    def __init__(
        self,
        connection: Connection,
        slot_name: str,
        heartbeat_s: float,
        find_changed: Callable[[Connection], Changed],
        log: FilteringBoundLogger,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._connection, self._slot_name, self._heartbeat_s = connection, slot_name, heartbeat_s
        self._find_changed, self._log = find_changed, log
        self._ended = threading.Event()
        self._pairs: deque[Pair] = deque(maxlen=600)
        self._failures = 0
        self._found: queue.SimpleQueue[Changed] = queue.SimpleQueue()
        self._end = Lsn(0)
        self.slot: SlotFacts | None = None
        self.error: ReplicatorError | None = None

    def run(self) -> None:
        """Watch until `finish`, or until an error."""
        try:
            with translated("source"):
                self._watch()
        except ReplicatorError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  # a thread has nobody above it; the reading thread raises it
            self.error = unexpected(error)

    def _watch(self) -> None:
        beat = looked = time.monotonic()
        can_beat = self._heartbeat_s > 0
        while True:
            pair = read_pair(self._connection)
            check_advance(self._end, pair.lsn)
            self._end = pair.lsn
            self._pairs.append(pair)
            self.slot = read_slot(self._connection, self._slot_name)
            now = time.monotonic()
            if can_beat and now - beat >= self._heartbeat_s:
                beat, can_beat = now, self._beat()
            if now - looked >= _DEFINITIONS_S and self._look():
                looked = now
            if self._ended.wait(_WATCH_S):
                return

    def _look(self) -> bool:
        """Look at the definitions; False when the catalog was changing in that moment. Raises what does not pass."""
        try:
            with translated("source"):
                self._found.put(self._find_changed(self._connection))
        except ReplicatorError as error:
            if not (isinstance(error, PassingError) or went_away(error)):
                raise
            self._failures += 1
            if self._connection.closed or self._failures >= _MOST_FAILURES:
                raise
            return False
        self._failures = 0
        return True

    def _beat(self) -> bool:
        try:
            send_heartbeat(self._connection)
        except psycopg.Error as error:
            if self._connection.closed:
                raise
            self._log.info("heartbeat_unavailable", sqlstate=error.sqlstate)
            return False
        return True

    def take_found(self) -> Changed:
        """Return what was found since the last call."""
        found = Changed()
        while not self._found.empty():
            found = found | self._found.get()
        return found

    def take_pair(self, position: Lsn) -> Pair | None:
        """Return the newest pair that holds at a position, and forget the older ones."""
        found = None
        while self._pairs and self._pairs[0].lsn <= position:
            found = self._pairs.popleft()
        return found

    def finish(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join(timeout=5.0)


@dataclass
class Until:
    """When a bounded stream ends. lsn: once all up to there is in the target and confirmed; None: never."""

    lsn: Lsn | None = None


@dataclass(frozen=True)
class Search:
    """The search for the transaction of a refused row, by ever smaller batches. Cells come as text, for the row's key.

    transactions: most in a batch. until: the search is over once all up to here has landed. is_raw: the source cannot
    convert one of the texts, so they come as it stores them.
    """

    transactions: int
    until: Lsn
    is_raw: bool = False


def narrow(search: Search | None, failed: Changes) -> Search | None:
    """Return the search that goes on from a batch that failed; None when that was one transaction, in text."""
    transactions = failed.transactions + failed.is_open
    if failed.commit_lsn is None or (search is not None and transactions <= 1):
        return None
    is_raw = search is not None and search.is_raw
    return Search(max(1, transactions // _NARROWING), failed.commit_lsn, is_raw)


class Stream:
    """One run of the stream, from its start to its end."""

    def __init__(
        self,
        sender: WalSender,
        collector: Collector,
        loading: LoadingThread,
        watch: Watch,
        *,
        cap_bytes: int,
        until: Until,
        search: Search | None,
        stop: threading.Event,
        joiner: TableJoiner | None,
        board: JoinBoard,
        admit: Callable[[LoadedTable, Lsn], bool],
    ) -> None:
        self.joiner, self.board, self.admit = joiner, board, admit
        self.received = loading.position
        self._handed: set[str] = set()
        self.sender, self.collector, self.loading, self.watch = sender, collector, loading, watch
        self.cap_bytes, self.until, self.search, self.stop = cap_bytes, until, search, stop
        # Batches of a search that wait for the loader.
        self._short: deque[Changes] = deque()
        self._keepalive: Keepalive | None = None
        self._saved_at = self._asked_at = 0.0
        self._confirmed_end = loading.position

    def run(self) -> None:
        """Follow the stream until it is stopped, has reached its end or a search's, or has to begin anew.

        Raises what ended the loading thread, the watch, the joiner, or the connection.
        """
        while not (self.stop.is_set() or self._is_done()):
            error = self.loading.error or self.watch.error or (self.joiner and self.joiner.error)
            if error:
                raise error
            self._discard_redefined()
            self._serve_joiner()
            if self._holds_enough() and not self.loading.is_free:
                self.sender.hold(_TICK_S)
            elif not self._short:
                self._receive()
            self._hand_over_if_due()
            self._save_idle()
        if self.loading.error is not None:
            raise self.loading.error

    def _discard_redefined(self) -> None:
        found = self.watch.take_found()
        for table in found.redefined | self.loading.left_out:
            self.loading.left_out.discard(table)
            if self.collector.is_live(table):
                self.collector.discard(table)
        if found.new and self.joiner is not None:
            self.joiner.add(set(found.new))

    def _serve_joiner(self) -> None:
        """Do what the thread that reads tables beside the stream waits for."""
        collector, board = self.collector, self.board
        if not collector.expectation.is_met:
            return
        landed = self.loading.landed_stale - self._handed
        if landed and self.joiner is not None:
            self._handed |= landed
            self.joiner.add(set(landed))
        if not board.is_busy and not board.has_closed:
            return
        for table in board.take_closed():
            collector.close_window(table)
        if collector.in_transaction:
            # A window that opened here would lack the first half of the transaction's changes.
            return
        for window in board.list_asked():
            if self._is_clear_of(window.table):
                collector.open_window(window)
                board.note_open(window)
        for loaded in board.take_offered(self.received):
            if self.admit(loaded, self.received):
                self._handed.discard(loaded.table)
                self.loading.landed_stale.discard(loaded.table)
            else:
                board.reject(loaded.table)

    def _is_clear_of(self, table: str) -> bool:
        """Say whether no change of a table is in hand: a batch with it would wait for the table's own load."""
        is_landed = table not in self.collector.stale or table in self.loading.landed_stale
        return is_landed and table not in self.collector.changes.segments

    def _unlanded_stale(self) -> set[str]:
        return self.collector.stale - self.loading.landed_stale

    def _is_done(self) -> bool:
        if not (self.loading.is_free and self.collector.expectation.is_met):
            return False
        if self.board.needs_restart or (self.search is not None and self.loading.position >= self.search.until):
            return True
        if self.until.lsn is None or self.loading.position < self.until.lsn:
            return False
        if self.joiner is None:
            return True
        is_settled = self.board.is_settled and not self.board.is_busy and self.collector.changes.is_empty
        return is_settled and self.collector.stale <= self._handed

    def _holds_enough(self) -> bool:
        return bool(self._short) or self.collector.changes.held_bytes >= self.cap_bytes

    def _is_urgent(self) -> bool:
        """Say whether somebody waits for the source to say how far it has come."""
        waits = self.until.lsn is not None or not self.collector.expectation.is_met
        return waits or self.board.is_busy or bool(self._unlanded_stale())

    def _receive(self) -> None:
        busy = self._is_urgent()
        collector, loading = self.collector, self.loading
        for item in self.sender.receive(_ASK_S if busy else _TICK_S):
            if isinstance(item, Keepalive):
                collector.expectation.pass_by(item.wal_end)
                self._keepalive = item
                if not collector.in_transaction:
                    self.received = max(self.received, item.wal_end)
                continue
            collector.take(item)
            if not collector.in_transaction and collector.changes.position is not None:
                self.received = max(self.received, collector.changes.position)
            if self.search is not None:
                self._cut(self.search)
            if loading.is_free:
                self._hand_over_if_due()

    def _cut(self, search: Search) -> None:
        if self.collector.changes.transactions >= search.transactions and not self.collector.in_transaction:
            self._short.append(self.collector.hand_over())

    def _hand_over_if_due(self) -> None:
        """Give the loader what is whole, or what is too much to hold."""
        if not self.loading.is_free or self.loading.error is not None:
            return
        changes = self.collector.changes
        if self._short:
            self._submit(self._short.popleft())
        elif self.collector.in_transaction:
            if changes.held_bytes >= self.cap_bytes:
                self._submit(self.collector.hand_over())
        elif changes.position is not None:
            self._submit(self.collector.hand_over())

    def _submit(self, changes: Changes) -> None:
        if not changes.is_open and changes.position is not None:
            self._seal(changes, changes.position)
        self._keepalive = None
        self.loading.submit(changes)

    def _seal(self, changes: Changes, position: Lsn) -> None:
        """Put in what the position makes true."""
        pair = self.watch.take_pair(position)
        if pair is not None:
            changes.fresh_at, changes.repair_xid = pair.clock, pair.xid
            self.collector.forget_visible(pair.xid)
        changes.stale = frozenset(self.collector.stale - self.loading.landed_stale)

    def _save_idle(self) -> None:
        """With nothing in hand, go on to where the source says that all was sent: idle tables must not pin its WAL."""
        now = time.monotonic()
        wants = self._is_urgent()
        if wants and self.loading.is_free and now - self._asked_at >= _ASK_S:
            self._asked_at = now
            self.sender.ask()
        keepalive = self._keepalive
        if keepalive is None or not self.loading.is_free or self.collector.in_transaction:
            return
        if not self.collector.expectation.is_met:
            return
        if self._short or not self.collector.changes.is_empty:
            return
        is_news = keepalive.wal_end > self.loading.position or bool(self._unlanded_stale())
        if is_news and (keepalive.reply_requested or wants or now - self._saved_at >= _IDLE_SAVE_S):
            self._saved_at = now
            self._keepalive = None
            changes = Changes(position=max(keepalive.wal_end, self.loading.position))
            assert changes.position is not None
            self._seal(changes, changes.position)
            self.loading.submit(changes)
