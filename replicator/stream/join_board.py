"""Where the thread that reads tables beside the stream, and the stream's own threads, hand tables to each other.

joiner ── ask for windows ──► reading thread ── opened ──► joiner ── offer a loaded table ──► reading thread
                                                                  ◄── landed, or to be read again ──
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from replicator.capture.window import Window
from replicator.position import Lsn, Seen
from replicator.stream.table import StreamedTable


@dataclass(frozen=True)
class LoadedTable:
    """A table whose rows are in the target as one snapshot of the source saw them.

    high: the end of the WAL after the snapshot was taken: all that it sees was committed ahead of that. seen: of a
    table without a key, which transactions the rows have already. spellings: the source's types of the key.
    """

    streamed: StreamedTable
    window: Window
    definition: str
    high: Lsn
    seen: Seen | None
    spellings: list[str]

    @property
    def table(self) -> str:
        """Return the source's name of the table."""
        return self.streamed.chosen.table

    def has(self, final_lsn: Lsn, xid: int) -> bool:
        """Say whether what the window kept of a transaction is left out, by the place of its commit and its xid.

        With a key the last image of each row wins, whoever saw the ones before.
        """
        return self.seen is not None and self.seen.has(final_lsn, xid)


@dataclass
class JoinBoard:
    """The hand-over of tables between threads.

    is_settled: nothing is waiting to be read, or everything that does was tried. needs_restart: a table can join only
    a stream that begins anew.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    news: threading.Event = field(default_factory=threading.Event)
    is_settled: bool = False
    needs_restart: bool = False
    _asked: dict[str, Window] = field(default_factory=dict)
    _opened: set[str] = field(default_factory=set)
    _offered: dict[str, LoadedTable] = field(default_factory=dict)
    _landed: set[str] = field(default_factory=set)
    _rejected: set[str] = field(default_factory=set)
    _closed: set[str] = field(default_factory=set)

    # The joiner's side.

    def ask_for_windows(self, windows: list[Window]) -> None:
        """Ask the reading thread to keep the changes of tables from its next commit on."""
        with self.lock:
            for window in windows:
                self._asked[window.table] = window
                self._opened.discard(window.table)

    def are_open(self, tables: set[str]) -> bool:
        """Say whether the windows of all these tables are open."""
        with self.lock:
            return tables <= self._opened

    def give_up(self, table: str) -> None:
        """Close the window of a table that is not going to join now."""
        with self.lock:
            self._asked.pop(table, None)
            self._offered.pop(table, None)
            self._closed.add(table)

    def offer(self, loaded: LoadedTable) -> None:
        """Offer a table that is loaded; it joins once the stream has passed what its snapshot saw."""
        with self.lock:
            self._offered[loaded.table] = loaded

    def take_results(self) -> tuple[set[str], set[str]]:
        """Return the tables that have landed since the last call, and those that are to be read again."""
        with self.lock:
            landed, rejected = self._landed, self._rejected
            self._landed, self._rejected = set(), set()
            return landed, rejected

    # The stream's side.

    @property
    def is_busy(self) -> bool:
        """Say whether the joiner waits for the stream to move on."""
        return bool(self._asked or self._offered)

    @property
    def has_closed(self) -> bool:
        """Say whether windows are to be closed."""
        return bool(self._closed)

    def list_asked(self) -> list[Window]:
        """Return the windows that are to be opened."""
        with self.lock:
            return list(self._asked.values())

    def note_open(self, window: Window) -> None:
        """Note that a window is open."""
        with self.lock:
            if self._asked.pop(window.table, None) is not None:
                self._opened.add(window.table)
        self.news.set()

    def take_closed(self) -> set[str]:
        """Return the tables whose windows are to be closed."""
        with self.lock:
            closed, self._closed = self._closed, set()
            return closed

    def take_offered(self, received: Lsn) -> list[LoadedTable]:
        """Return the tables whose snapshot saw nothing beyond a position that the stream has passed."""
        with self.lock:
            ready = [loaded for loaded in self._offered.values() if loaded.high <= received]
            for loaded in ready:
                del self._offered[loaded.table]
            return ready

    def reject(self, table: str) -> None:
        """Note that a table is to be read again."""
        with self.lock:
            self._rejected.add(table)
        self.news.set()

    def note_landed(self, tables: set[str]) -> None:
        """Note that tables are live, with all that they need, in the target."""
        with self.lock:
            self._landed |= tables
        self.news.set()
