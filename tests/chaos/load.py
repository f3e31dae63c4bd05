"""Write to the source in every way that is hard on whoever reads it by position.

A writer's transaction idles before its first write, between writes, or as a prepared one after them; it rolls
savepoints back, deletes, changes keys, and stamps its rows with the time of its start. All tables get the same
writes in the same transactions.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import psycopg
from psycopg.rows import TupleRow

from tests.servers import Server

IDLE_S = 2.5
"""The longest that most transactions stay open without a write; one in forty takes three times as long."""

PREPARED_S = 2.0
"""The longest that a prepared transaction waits for its second half."""

PREPARED_SPELL_S = 4.0
"""Transactions are prepared in every second spell: the time between must be free of them for a mark to move."""

REFUSED = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation)
IDS_PER_WRITER = 10_000_000
STAMPS = ("now()", "now()", "now()", "statement_timestamp()", "clock_timestamp()")


def create_tables(connection: psycopg.Connection[TupleRow], tables: Sequence[str], *, writers: int, rows: int) -> None:
    """Create the tables, and give each writer `rows` rows to begin with."""
    for table in tables:
        connection.execute(
            f"create table {table}"
            " (id bigint primary key, n bigint not null, note text, updated_at timestamptz not null);"
            f"insert into {table} select w * {IDS_PER_WRITER} + g, g, 'first', now()"
            f" from generate_series(0, {writers - 1}) w, generate_series(1, {rows}) g"
        )


class Load:
    """Writers at work for as long as the block lasts; `finish` ends them and what they prepared."""

    def __init__(
        self, server: Server, database: str, tables: Sequence[str], *, writers: int, rows: int, seed: int
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.started_at = time.monotonic()
        self._mutex = threading.Lock()
        self._writers = [
            Writer(self, number, server.connect(database, lock_timeout="300ms"), tables, random.Random(seed + number))
            for number in range(writers)
        ]
        for writer in self._writers:
            writer.last = rows

    def __enter__(self) -> Self:
        for writer in self._writers:
            writer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        for writer in self._writers:
            writer.connection.close()

    def count(self, what: str) -> None:
        """Count one transaction by how it ended."""
        with self._mutex:
            self.counts[what] += 1

    def pick_id(self, chance: random.Random) -> int:
        """Return the id of a row that some writer made; the row may be gone."""
        writer = chance.choice(self._writers)
        return writer.number * IDS_PER_WRITER + chance.randint(1, writer.last)

    def stop(self) -> None:
        """Let every writer end its transaction; prepared ones stay pending."""
        self.stopped.set()
        for writer in self._writers:
            writer.join()

    def finish(self) -> int:
        """Commit or roll back every prepared transaction, and return how many there were."""
        return sum(writer.finish_prepared(0.0) for writer in self._writers)


class Writer(threading.Thread):
    """One session that writes; repeatable but for what the others do."""

    def __init__(
        self,
        load: Load,
        number: int,
        connection: psycopg.Connection[TupleRow],
        tables: Sequence[str],
        chance: random.Random,
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.load, self.number, self.connection, self.tables, self.chance = load, number, connection, tables, chance
        self.last = 0
        self._prepared: list[tuple[str, float]] = []
        shapes: dict[Callable[[], None], int] = {
            self._write_and_commit: 6,
            self._idle_then_write: 6,
            self._write_around_idling: 3,
            self._use_savepoints: 5,
            self._roll_back: 1,
            self._prepare: 3 if number % 6 == 0 else 0,
        }
        self._shapes, self._weights = list(shapes), list(shapes.values())

    def run(self) -> None:
        while not self.load.stopped.is_set():
            self.finish_prepared(PREPARED_S)
            (shape,) = self.chance.choices(self._shapes, self._weights)
            try:
                self.connection.execute("begin")
                shape()
            except REFUSED:
                self.connection.execute("rollback")
                self.load.count("refused")
            self._idle(self.chance.uniform(0.0, 0.15))

    def _idle(self, seconds: float) -> None:
        self.load.stopped.wait(seconds)

    def _idle_long(self) -> None:
        """Idle in the transaction, which has no xid yet unless it has written."""
        self._idle(self.chance.uniform(0.05, IDLE_S) * (3 if self.chance.random() < 0.025 else 1))

    def _commit(self) -> None:
        self.connection.execute("commit")
        self.load.count("committed")

    def _write_and_commit(self) -> None:
        self._write()
        self._commit()

    def _idle_then_write(self) -> None:
        self.connection.execute("select now()")
        self._idle_long()
        self._write()
        self._commit()
        self.load.count("idle, then written")

    def _write_around_idling(self) -> None:
        self._write()
        self._idle_long()
        self._write()
        self._commit()

    def _use_savepoints(self) -> None:
        if self.chance.random() < 0.3:
            self._idle_long()
        for name in ("outer", "inner", "last"):
            self.connection.execute(f'savepoint "{name}"')
            self._write()
        self._idle(self.chance.uniform(0.0, 0.3))
        for name in ("inner", "outer"):
            kept = self.chance.random() < 0.5
            self.connection.execute(f'release "{name}"' if kept else f'rollback to "{name}"')
            self._write()
        self._commit()
        self.load.count("with savepoints")

    def _roll_back(self) -> None:
        self._write()
        self._idle(self.chance.uniform(0.0, 0.5))
        self.connection.execute("rollback")
        self.load.count("rolled back")

    def _prepare(self) -> None:
        spell = int((time.monotonic() - self.load.started_at) / PREPARED_SPELL_S)
        if spell % 2 or self._prepared:
            self._write_and_commit()
            return
        if self.chance.random() < 0.5:
            self._idle_long()
        self._write()
        gid = f"{self.connection.info.dbname} {self.number} {self.chance.getrandbits(64):x}"
        self.connection.execute(f"prepare transaction '{gid}'")
        self._prepared.append((gid, time.monotonic()))
        self.load.count("prepared")

    def finish_prepared(self, least_age_s: float) -> int:
        """End the prepared transactions of at least this age, one in four by a rollback; return how many."""
        due = [(gid, since) for gid, since in self._prepared if time.monotonic() - since >= least_age_s]
        for gid, since in due:
            verb = "rollback" if self.chance.random() < 0.25 else "commit"
            self.connection.execute(f"{verb} prepared '{gid}'")
            self._prepared.remove((gid, since))
            self.load.count("rolled back" if verb == "rollback" else "committed")
        return len(due)

    def _write(self) -> None:
        """Write one to four rows."""
        writes = [self._insert, self._update, self._update, self._update, self._delete, self._rekey]
        for _ in range(self.chance.randint(1, 4)):
            write = self.chance.choice(writes)()
            self.connection.execute("; ".join(write.format(table=table) for table in self.tables).encode())

    def _stamp(self) -> str:
        return self.chance.choice(STAMPS)

    def _next_id(self) -> int:
        self.last += 1
        return self.number * IDS_PER_WRITER + self.last

    def _insert(self) -> str:
        note = "repeat('x', 3000)" if self.chance.random() < 0.1 else "'new'"
        return f"insert into {{table}} values ({self._next_id()}, 0, {note}, {self._stamp()})"

    def _update(self) -> str:
        row = self.load.pick_id(self.chance)
        return (
            f"update {{table}} set n = n + {self.chance.randint(1, 9)}, updated_at = {self._stamp()} where id = {row}"
        )

    def _delete(self) -> str:
        return f"delete from {{table}} where id = {self.load.pick_id(self.chance)}"

    def _rekey(self) -> str:
        row = self.load.pick_id(self.chance)
        return f"update {{table}} set id = {self._next_id()}, updated_at = {self._stamp()} where id = {row}"
