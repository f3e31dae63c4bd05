"""Reads rows of the source again, in a snapshot that sees every transaction the stream has delivered.

A commit may be delivered while its transaction is still invisible to snapshots: it waits for its flush, or for a
synchronous standby. A row read then would be older than the change that asked for it. So the snapshot is taken anew
until none of the delivered transactions is among those that it takes for running.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from replicator.batch import Shape
from replicator.capture.copyout import copy_out
from replicator.capture.pull import BEGIN_READ, Access, is_unmoved, lock_statement, select_nothing, set_up_read
from replicator.changes import KeyText
from replicator.db import Connection, translate
from replicator.errors import PassingError
from replicator.position import measure_xid
from replicator.relation import FOREIGN, MATVIEW, Relation
from replicator.rules import MASK_KEY_SETTING, Mapping, name_output
from replicator.statement import statement

TRANSACTION_OPEN = "transaction_open"
_XIDS = 1 << 32
_CHUNK_KEYS = 2000
_PAUSE_S = 0.005


@dataclass
class Delivered:
    """The transactions that the stream has delivered lately, by the 32 bits of their xids. Threads may share it."""

    xids: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, xid: int) -> None:
        """Note a transaction whose commit was delivered."""
        with self.lock:
            self.xids.add(xid)

    def forget(self, oldest_xid: int) -> None:
        """Forget those that every snapshot sees: the ones older than the oldest transaction still running (64 bits)."""
        with self.lock:
            self.xids = {xid for xid in self.xids if measure_xid(xid, oldest_xid) >= 0}

    def are_visible(self, next_xid: int, open_xids: Iterable[int]) -> bool:
        """Say whether a snapshot sees them all, and forget those that every later one will see too.

        next_xid, open_xids: the snapshot's, 64 bits wide. Two xids are compared within half of the 32-bit circle.
        """
        running = {xid % _XIDS for xid in open_xids}
        oldest = min([next_xid, *open_xids])
        with self.lock:
            self.xids = {xid for xid in self.xids if measure_xid(xid, oldest) >= 0}
            return not any(xid in running or measure_xid(xid, next_xid) >= 0 for xid in self.xids)


def read_open_xids(connection: Connection) -> list[int]:
    """Return the transactions that have written and not ended, by the 32 bits of their xids.

    A snapshot lists only those below the youngest that has ended; what is above has been handed out, and is open.
    """
    row = connection.execute(statement("replication.open_transactions"), {}).fetchone()
    assert row is not None
    first = int(row["next_xid"]) % _XIDS
    younger = range(max(0, measure_xid(int(row["unassigned_xid"]), first)))
    return [*(int(xid) % _XIDS for xid in row["open_xids"]), *((first + n) % _XIDS for n in younger)]


def read_open_writers(connection: Connection, relation: Relation) -> list[int]:
    """Return which open transactions may have changed rows of a table, by the 32 bits of their xids.

    On a standby, which does not know their locks, all that are open.
    """
    oids = [relation.oid, *(member.oid for member in relation.members)]
    row = connection.execute(statement("replication.open_writers"), {"oids": oids}).fetchone()
    assert row is not None
    return read_open_xids(connection) if row["is_standby"] else [int(xid) for xid in row["xids"]]


def begin_fresh(
    connection: Connection,
    access: Access,
    mapping: Mapping,
    delivered: Delivered,
    stop: threading.Event,
    *,
    limit_s: float = math.inf,
) -> None:
    """Begin a transaction whose snapshot sees every delivered transaction, with the table locked ahead of it.

    Raises PassingError when `stop` is set, or one of the transactions is still open after `limit_s`.
    """
    began = time.monotonic()
    while True:
        connection.execute(BEGIN_READ)
        set_up_read(connection, access)
        is_same = _lock(connection, mapping.relation)
        row = connection.execute(statement("replication.open_transactions"), {}).fetchone()
        assert row is not None
        if is_same and delivered.are_visible(int(row["next_xid"]), [int(xid) for xid in row["open_xids"]]):
            return
        connection.execute("ROLLBACK")
        if stop.wait(_PAUSE_S):
            raise PassingError("the listener was stopped", why="it waited for a commit to become visible")
        if time.monotonic() - began > limit_s:
            raise PassingError(
                "a transaction of the source is still open",
                why=f"it may have changed rows that are looked at; waited {limit_s:g} s",
                hint="it is tried again by itself",
                id=TRANSACTION_OPEN,
                table=f"{mapping.relation.schema}.{mapping.relation.name}",
            )


def _lock(connection: Connection, relation: Relation) -> bool:
    """Lock a table; say whether the transaction's snapshot, if that came first, shows the rows that are there."""
    if relation.kind in (MATVIEW, FOREIGN):
        return True
    if relation.has_grant:
        connection.execute(lock_statement([(relation.schema, relation.name)]))
        return True
    connection.execute(select_nothing(relation.schema, relation.name))
    return is_unmoved(connection, relation.schema, relation.name)


class FreshReader:
    """A session that reads a table in snapshots that see all of some transactions, each in one of its own."""

    def __init__(self, access: Access, stop: threading.Event) -> None:
        self._access, self._stop = access, stop
        self.connection = access.open()
        try:
            set_mask_key(self.connection, access)
        except psycopg.Error as error:
            self.connection.close()
            raise translate(error, side="source") from error

    def begin(self, mapping: Mapping, open_xids: Iterable[int], limit_s: float) -> None:
        """Begin a read that sees these transactions (32 bits each). Raises PassingError as `begin_fresh` does."""
        begin_fresh(self.connection, self._access, mapping, Delivered(set(open_xids)), self._stop, limit_s=limit_s)

    def end(self) -> None:
        """End the read."""
        self.connection.execute("COMMIT")

    def close(self) -> None:
        """End the session."""
        self.connection.close()


def set_mask_key(connection: Connection, access: Access) -> None:
    """Give a session the key of hash masks, if there is one."""
    if access.mask_key is not None:
        secret = {"name": MASK_KEY_SETTING, "value": access.mask_key.hex()}
        connection.execute(statement("session.set"), secret)


class Lookup:
    """Finds rows by key: the loader's `RowFinder`. It has a session of its own, opened at the first question."""

    def __init__(self, access: Access, delivered: Delivered, stop: threading.Event) -> None:
        self._access, self._delivered, self._stop = access, delivered, stop
        self._connection: Connection | None = None
        self._tables: dict[tuple[str, int], tuple[Mapping, Shape, Sequence[str]]] = {}

    def introduce(self, table: str, version: int, mapping: Mapping, shape: Shape, spellings: Sequence[str]) -> None:
        """Tell of a table ahead of its first question. spellings: the source's types of the key, in key order."""
        self._tables[table, version] = (mapping, shape, spellings)

    def find_rows(self, table: str, version: int, keys: Sequence[KeyText]) -> Iterator[bytes]:
        """Yield COPY text of those rows that are there, in the columns of their target."""
        mapping, shape, spellings = self._tables[table, version]
        try:
            connection = self._open()
            begin_fresh(connection, self._access, mapping, self._delivered, self._stop)
            for start in range(0, len(keys), _CHUNK_KEYS):
                chosen = match_keys(mapping, spellings, keys[start : start + _CHUNK_KEYS])
                outputs = [name_output(output) for output in mapping.outputs if output.name in shape.spellings]
                query = sql.SQL("COPY ({}) TO STDOUT").format(mapping.select(outputs, chosen))
                yield from copy_out(connection, query, binary=False)
            connection.execute("COMMIT")
        except psycopg.Error as error:
            self.close()
            raise translate(error, side="source", table=table) from error
        except BaseException:
            # In the middle of a COPY the connection is of no further use.
            self.close()
            raise

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = self._access.open()
            set_mask_key(self._connection, self._access)
        return self._connection

    def close(self) -> None:
        """End the session, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def match_keys(mapping: Mapping, spellings: Sequence[str], keys: Sequence[KeyText]) -> sql.Composable:
    """Return the condition that a row's key is among these; the key's types are spelled by the source itself."""
    columns = [sql.Literal([None if key[n] is None else _text(key[n]) for key in keys]) for n in range(len(spellings))]
    names = [sql.Identifier(f"k{n}") for n in range(len(spellings))]
    return sql.SQL("({}) IN (SELECT {} FROM unnest({}) AS x({}))").format(
        sql.SQL(", ").join(output.expression for output in mapping.key_outputs),
        sql.SQL(", ").join(
            sql.SQL("x.{}::{}").format(name, sql.SQL(spelling)) for name, spelling in zip(names, spellings, strict=True)
        ),
        sql.SQL(", ").join(sql.SQL("{}::text[]").format(column) for column in columns),
        sql.SQL(", ").join(names),
    )


def _text(cell: bytes | None) -> str:
    assert cell is not None
    return cell.decode()
