"""Reads tables of the source in one exported snapshot, with nothing but SELECT.

A coordinator session locks the tables (LOCK takes no snapshot, so no TRUNCATE can slip between snapshot and read),
takes the snapshot and exports it; reader sessions import it and copy. On a standby the coordinator is the only reader.
A watcher session, outside any transaction, observes open transactions and sees who waits for our locks.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

import psycopg
from psycopg import sql

from replicator.batch import DUE_MARK, VERSION, Shape, Totals
from replicator.capture.copyout import copy_out
from replicator.capture.source_state import read_slot
from replicator.db import Connection, connect, pin_transaction, translate, translated
from replicator.digest import bucket_of, hash_columns, in_buckets, in_pages, in_slots
from replicator.errors import PassingError, ReplicatorError
from replicator.hosts import narrow_conninfo, split_hosts
from replicator.limits import find_limit
from replicator.page_range import Pages
from replicator.pooler import not_pinned, server_pid
from replicator.position import Lsn, step_before_header, wrap_xid
from replicator.reading import Observation, Reading, SnapshotFacts
from replicator.relation import FOREIGN, MATVIEW, Relation
from replicator.rules import MASK_KEY_SETTING, Mapping, Output, name_output
from replicator.statement import statement
from replicator.strategy import XMIN, watermark_type

_OTHER_HOST_S = 2.0
LOCKS_SHORT = "locks_short"
BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the source: conninfo, seconds to wait for a connection and for a lock, the mask key's bytes."""

    conninfo: str
    connect_timeout_s: float
    lock_timeout_s: float
    mask_key: bytes | None = None

    def open(self, *, first: bool = False) -> Connection:
        """Open a pinned session on the source."""
        return connect(self.conninfo, side="source", timeout_s=self.connect_timeout_s, first=first)

    def open_at_slot(self, slot: str, *, first: bool = False) -> Connection:
        """Open a session on the server that has a slot, where the string names several; on any if none has it."""
        connection, others = self.open(first=first), split_hosts(self.conninfo)
        if not others or _has_slot(connection, slot):
            return connection
        for conninfo in others:
            with suppress(ReplicatorError):
                other = connect(conninfo, side="source", timeout_s=_OTHER_HOST_S)
                if _has_slot(other, slot):
                    connection.close()
                    return other
                other.close()
        return connection

    def narrow(self, connection: Connection) -> Access:
        """Return the way to the very server that a session is on: snapshots and slots are a server's own."""
        return replace(self, conninfo=narrow_conninfo(self.conninfo, connection))


def _has_slot(connection: Connection, slot: str) -> bool:
    with translated("source"):
        return read_slot(connection, slot) is not None


def observe(connection: Connection, own: Sequence[int]) -> Observation:
    """Observe the open transactions. own: process ids that do not count. The order of the three reads is the proof."""
    observed_at = _value(connection, "observe_clock")
    transactions = _value(connection, "observe_transactions", own=list(own))
    prepared = _value(connection, "observe_prepared")
    return Observation(observed_at, frozenset(transactions), prepared)


def count_prepared(connection: Connection, moment: datetime) -> int:
    """Return how many transactions of the cluster were prepared by a moment of its clock, and have not ended."""
    return int(_value(connection, "count_prepared", moment=moment))


def is_standby(connection: Connection) -> bool:
    """Say whether the source is in recovery."""
    return bool(_value(connection, "is_standby"))


def count_conflicts(connection: Connection) -> int:
    """Return how many sessions of the database a standby has ended or cancelled to go on replaying; 0 on a primary."""
    return int(_value(connection, "recovery_conflicts"))


def read_system_identifier(connection: Connection) -> str:
    """Return the number that initdb gave the cluster."""
    return str(_value(connection, "system_identifier"))


def _value(connection: Connection, name: str, /, **parameters: Any) -> Any:
    row = connection.execute(statement(f"source.{name}"), parameters).fetchone()
    return next(iter(row.values())) if row else None


@dataclass
class Snapshot:
    """An open, exported snapshot with its locks. failures: tables that could not be locked, by (schema, name)."""

    access: Access
    connection: Connection
    watcher: Connection
    facts: SnapshotFacts
    observation: Observation
    failures: dict[tuple[str, str], ReplicatorError]

    def close(self) -> None:
        """Give the locks back."""
        self.connection.close()

    def find_blocked(self, pids: Iterable[int]) -> dict[int, set[int]]:
        """Return which of these sessions stand in the way of waiting ones, by the OID of the relation waited for."""
        rows = self.watcher.execute(statement("source.lock_waiters"), {"own": list(pids)}).fetchall()
        blockers: dict[int, set[int]] = {}
        for row in rows:
            blockers.setdefault(row["oid"], set()).update(row["blockers"])
        return blockers

    def end_sessions(self, pids: Iterable[int]) -> None:
        """End sessions of this role on the server, whatever they are at, and with them their locks."""
        self.watcher.execute(statement("source.end_sessions"), {"pids": list(pids)})


def take_snapshot(
    access: Access,
    watcher: Connection,
    relations: Sequence[tuple[str, str, str]],
    *,
    exported: str | None = None,
) -> Snapshot:
    """Lock the relations (schema, name, kind), observe, then take and export a snapshot.

    The lock comes first: a TRUNCATE or rewriting ALTER between snapshot and read would show as an empty table.
    exported: a snapshot that exists already, of a replication slot; `list_rewritten` then tells what came too late.
    """
    connection = access.open()
    pid = server_pid(connection)
    try:
        connection.execute(BEGIN_READ)
        if exported is not None:
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(exported)))
        set_up_read(connection, access)
        failures = _lock(connection, relations)
        observation = observe(watcher, [pid, server_pid(watcher)])
        failures = _lock_by_column(connection, failures)
        row = connection.execute(statement("source.snapshot_facts"), {}).fetchone()
        if row is not None and row["pid"] != pid:
            raise not_pinned("source")
    except psycopg.Error as error:
        connection.close()
        raise translate(error, side="source") from error
    except ReplicatorError:
        connection.close()
        raise
    assert row is not None
    facts = SnapshotFacts(
        exported=row["exported"],
        xmin=int(row["xmin"]),
        next_xid=int(row["next_xid"]),
        clock=row["clock"],
        system_identifier=row["system_identifier"],
        timeline=row["timeline"],
        lsn=step_before_header(Lsn.parse(row["lsn"]), row["segment_bytes"]),
        is_standby=row["is_standby"],
        snapshot=row["snapshot"],
    )
    return Snapshot(access, connection, watcher, facts, observation, failures)


def list_rewritten(snapshot: Snapshot, oids: Iterable[int]) -> list[int]:
    """Return which heaps were truncated or rewritten after the snapshot was taken and before they were locked."""
    rows = snapshot.connection.execute(statement("replication.visible_filenodes"), {"oids": list(oids)}).fetchall()
    return [row["oid"] for row in rows if not row["is_same"]]


def set_up_read(connection: Connection, access: Access) -> None:
    """Make a read see all rows or fail, pin how values are spelled, bound waits for locks. First in its transaction."""
    # Several statements at once, which cannot be prepared.
    connection.execute(pin_transaction() + sql.SQL("; SET LOCAL row_security = off"), prepare=False)
    connection.execute(
        sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{int(access.lock_timeout_s * 1000)}ms"))
    )


def _lock(connection: Connection, relations: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str], ReplicatorError]:
    lockable = [(schema, name) for schema, name, kind in relations if kind not in (MATVIEW, FOREIGN)]
    if not lockable:
        return {}
    connection.execute("SAVEPOINT locking")
    try:
        connection.execute(lock_statement(lockable))
    except psycopg.Error as error:
        if connection.closed:
            raise
        connection.execute("ROLLBACK TO SAVEPOINT locking")
        if len(lockable) == 1:
            return {lockable[0]: translate(error, side="source", table=".".join(lockable[0]))}
        if find_limit(error) is not None:
            return _lock_some(connection, lockable)
    else:
        return {}
    finally:
        if not connection.closed:
            connection.execute("RELEASE SAVEPOINT locking")
    failures: dict[tuple[str, str], ReplicatorError] = {}
    for relation in lockable:
        failures.update(_lock(connection, [(*relation, "r")]))
    return failures


def _lock_by_column(
    connection: Connection, failures: dict[tuple[str, str], ReplicatorError]
) -> dict[tuple[str, str], ReplicatorError]:
    """Lock those relations that the role may read by columns alone; return the failures that are left.

    LOCK TABLE asks for a grant on the whole table. A SELECT locks as well, but takes the snapshot ahead of that; so it
    comes after the observation, and what was emptied or rewritten in between is found by its files.
    """
    left = dict(failures)
    for name in [name for name, error in failures.items() if error.sqlstate == "42501"]:
        try:
            with connection.transaction():
                connection.execute(select_nothing(*name))
                is_same = is_unmoved(connection, *name)
        except psycopg.Error as error:
            if connection.closed:
                raise
            left[name] = translate(error, side="source", table=".".join(name))
            continue
        if is_same:
            del left[name]
        else:
            left[name] = _moved(".".join(name))
    return left


def select_nothing(schema: str, name: str) -> sql.Composed:
    """Return the statement that locks a relation of which the role may read some columns."""
    return sql.SQL("SELECT FROM {} LIMIT 0").format(sql.Identifier(schema, name))


def is_unmoved(connection: Connection, schema: str, name: str) -> bool:
    """Say whether a locked relation's heaps are those that the transaction's snapshot shows."""
    families = connection.execute(statement("replication.families"), {"schemas": [schema], "names": [name]}).fetchall()
    oids = [oid for family in families for oid in family["members"]]
    rows = connection.execute(statement("replication.visible_filenodes"), {"oids": oids}).fetchall()
    return all(row["is_same"] for row in rows)


def _moved(table: str) -> PassingError:
    return PassingError(
        f"{table} was emptied or rewritten while it was locked",
        why="the snapshot is older than that",
        hint="it is read in a new snapshot, by itself",
        id="snapshot_outdated",
        sqlstate="55000",
        table=table,
    )


def _lock_some(connection: Connection, lockable: Sequence[tuple[str, str]]) -> dict[tuple[str, str], ReplicatorError]:
    """Lock as many as leave room in the server's lock table, which all its sessions share; the others have to wait."""
    now = lockable[: max(1, len(lockable) // 4)]
    failures = _lock(connection, [(*relation, "r") for relation in now])
    return failures | {relation: locks_short(".".join(relation)) for relation in lockable[len(now) :]}


def locks_short(table: str | None = None) -> PassingError:
    """Return the transient error of tables that have to wait until others are read and their locks given back."""
    return PassingError(
        "the source has no room for as many locks",
        why="max_locks_per_transaction is reached",
        hint="the tables are read in smaller groups, by itself",
        id=LOCKS_SHORT,
        sqlstate="53200",
        table=table,
    )


def lock_statement(relations: Sequence[tuple[str, str]]) -> sql.Composed:
    """Return the statement that keeps relations (schema, name) from being truncated or rewritten."""
    return sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(
        sql.SQL(", ").join(sql.Identifier(schema, name) for schema, name in relations)
    )


class Reader:
    """A session that reads in a snapshot: one that imports it, or the coordinator's own: on a standby, or where asked.

    A snapshot exported on a standby forgets what is running once a transaction has more than 64 subtransactions:
    whoever imports it takes all that for aborted, and leaves hint bits that hide those rows on the standby after their
    commit, from everybody. Seen on PostgreSQL 15 and 18.
    """

    def __init__(self, snapshot: Snapshot, *, shares_coordinator: bool = False) -> None:
        self._access = access = snapshot.access
        imports = not (snapshot.facts.is_standby or shares_coordinator)
        self.connection = access.open() if imports else snapshot.connection
        self.pid = server_pid(self.connection)
        try:
            if imports:
                self._import(snapshot)
            if access.mask_key is not None:
                self.connection.execute(
                    statement("session.set_local"), {"name": MASK_KEY_SETTING, "value": access.mask_key.hex()}
                )
        except psycopg.Error as error:
            self.connection.close()
            raise translate(error, side="source") from error

    def _import(self, snapshot: Snapshot) -> None:
        """Enter the snapshot. Raises PassingError when the session that exported it has lost its connection."""
        self.connection.execute(BEGIN_READ)
        try:
            self.connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot.facts.exported)))
        except (psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState) as error:
            self.connection.close()
            raise PassingError(
                "the snapshot is gone",
                why="the session on the source that held it has ended",
                hint="it is tried again by itself",
                id="snapshot_gone",
            ) from error
        set_up_read(self.connection, snapshot.access)

    def try_lock(self, relation: Relation) -> bool:
        """Lock a table until this session ends; False when somebody stands in the way.

        The coordinator's lock may be given up before this session reads, and after a TRUNCATE its snapshot would find
        the table empty. NOWAIT: behind somebody who waits for the coordinator, the run would wait for itself.
        """
        if relation.kind in (MATVIEW, FOREIGN):
            return True
        try:
            with translated("source"):
                self._lock_now(relation)
        except PassingError as error:
            if error.sqlstate != "55P03":
                raise
            return False
        return True

    def _lock_now(self, relation: Relation) -> None:
        if relation.has_grant:
            lock = lock_statement([(relation.schema, relation.name)])
            self.connection.execute(lock + sql.SQL(" NOWAIT"))
            return
        self.connection.execute("SET LOCAL lock_timeout = '1ms'")
        self.connection.execute(select_nothing(relation.schema, relation.name))
        set_up_read(self.connection, self._access)

    def cancel(self) -> None:
        """Ask the server to end what this session reads; from any thread."""
        self.connection.cancel_safe(timeout=5.0)

    def close(self) -> None:
        """End the session."""
        self.connection.close()


class HasConnection(Protocol):
    """Whoever has a session on the source that is inside its snapshot."""

    connection: Connection


class TableReader:
    """One table as a reader sees it: the `TableSource` of a pull."""

    def __init__(self, reader: HasConnection, mapping: Mapping, reading: Reading, table: str) -> None:
        self.reader, self.mapping, self.reading, self.table = reader, mapping, reading, table

    def _outputs(self, shape: Shape) -> list[Output]:
        return [output for output in self.mapping.outputs if output.name in shape.spellings]

    def _copy(self, query: sql.Composed, shape: Shape) -> Generator[bytes, None, int]:
        options = sql.SQL("FORMAT binary" if shape.binary else "FORMAT text")
        statement = sql.SQL("COPY ({}) TO STDOUT ({})").format(query, options)
        try:
            return (yield from copy_out(self.reader.connection, statement, binary=shape.binary))
        except psycopg.Error as error:
            raise translate(error, side="source", table=self.table) from error

    def _rows(self, query: sql.Composed) -> list[dict[str, Any]]:
        try:
            return self.reader.connection.execute(query).fetchall()
        except psycopg.Error as error:
            raise translate(error, side="source", table=self.table) from error

    def _hash(self, shape: Shape, outputs: Sequence[Output]) -> sql.Composable:
        return hash_columns([(_as_target(o, shape), shape.spellings[o.name]) for o in outputs], shape.digest)

    def _hash_key(self, shape: Shape) -> sql.Composable:
        return self._hash(shape, self.mapping.key_outputs)

    def read_all(self, shape: Shape) -> Iterator[bytes]:
        """Yield every row."""
        return self._copy(self._select(shape), shape)

    def read_pages(self, shape: Shape, pages: Pages) -> Generator[bytes, None, int]:
        """Yield the rows that lie in a range of pages of each heap; return how many the source sent."""
        return self._copy(self._select(shape, in_pages(pages)), shape)

    def _select(
        self, shape: Shape, *conditions: sql.Composable | None, due: sql.Composable | None = None
    ) -> sql.Composed:
        columns: list[sql.Composable] = [name_output(output) for output in self._outputs(shape)]
        if due is not None:
            columns.append(sql.SQL("{} AS {}").format(due, sql.Identifier(DUE_MARK)))
        return self.mapping.select(columns, *conditions)

    def read_changes(self, shape: Shape) -> Iterator[bytes]:
        """Yield the rows that may have changed since the last read."""
        reading = self.reading
        if reading.strategy == XMIN:
            return self._copy(self._select(shape, since_xid(reading)), shape)
        due = since_mark(self.mapping, reading)
        if reading.since_xid is None:
            return self._copy(self._select(shape, due), shape)
        either = sql.SQL("({}) OR ({})").format(due, since_xid(reading))
        return self._copy(self._select(shape, either, due=due), shape)

    def count_rows(self) -> int:
        """Return how many rows the table has, whatever its columns."""
        return int(self._rows(self.mapping.select([sql.SQL("count(*) AS rows")]))[0]["rows"])

    def sum_rows(self, shape: Shape, *, by_row: bool) -> Totals:
        """Return the totals of the whole table."""
        hashed = self._hash(shape, self._outputs(shape)) if by_row else self._hash_key(shape)
        row = self._rows(
            self.mapping.select([sql.SQL("count(*) AS rows, coalesce(sum({}), 0)::text AS digest").format(hashed)])
        )[0]
        return Totals(row["rows"], int(row["digest"]))

    def sum_buckets(
        self,
        shape: Shape,
        buckets: int,
        *,
        by_row: bool,
        slots: Collection[int] | None = None,
        pages: tuple[int, int | None] | None = None,
    ) -> dict[int, Totals]:
        """Return the totals of each bucket of keys that holds a row."""
        key = self._hash_key(shape)
        hashed = self._hash(shape, self._outputs(shape)) if by_row else key
        picked = sql.SQL("{} AS bucket, count(*) AS rows, sum({})::text AS digest").format(
            bucket_of(key, buckets), hashed
        )
        conditions = [None if slots is None else in_slots(key, slots), None if pages is None else in_pages(pages)]
        rows = self._rows(self.mapping.select([picked], *conditions) + sql.SQL(" GROUP BY 1"))
        return {row["bucket"]: Totals(row["rows"], int(row["digest"])) for row in rows}

    @property
    def heap_bytes(self) -> int | None:
        """Return how large the table is on disk; None where its rows have no place in a heap."""
        relation = self.mapping.relation
        return relation.heap_bytes if relation.is_heap else None

    def read_keys(self, shape: Shape) -> Iterator[bytes]:
        """Yield every key."""
        return self._copy(self._select_keys(), shape)

    def read_bucket_keys(self, shape: Shape, buckets: int, chosen: Sequence[int]) -> Iterator[bytes]:
        """Yield the keys that fall into the chosen buckets."""
        return self._copy(self._select_keys(in_buckets(self._hash_key(shape), buckets, chosen)), shape)

    def _select_keys(self, *conditions: sql.Composable | None) -> sql.Composed:
        return self.mapping.select([name_output(output) for output in self.mapping.key_outputs], *conditions)

    def read_bucket_rows(
        self, shape: Shape, buckets: int, chosen: Sequence[int], *, with_version: bool = False
    ) -> Iterator[bytes]:
        """Yield the rows whose keys fall into the chosen buckets.

        with_version: the xid that wrote each as last column.
        """
        columns: list[sql.Composable] = [name_output(output) for output in self._outputs(shape)]
        if with_version:
            columns.append(name_version())
        condition = in_buckets(self._hash_key(shape), buckets, chosen)
        return self._copy(self.mapping.select(columns, condition), shape)


def name_version() -> sql.Composable:
    """Return the xid that wrote a row version, as a column: another one tells of another version of equal content."""
    return sql.SQL("xmin::text::bigint AS {}").format(sql.Identifier(VERSION))


def _as_target(output: Output, shape: Shape) -> sql.Composable:
    cast = shape.casts.get(output.name)
    if cast is None:
        return output.expression
    return sql.SQL("({})::{}").format(output.expression, sql.SQL(cast))


def since_xid(reading: Reading) -> sql.Composable:
    """Return the condition that a row version is not older than the reading's xid."""
    # age() counts back from the next xid, so a window of ages stays right across 2^32; frozen xids are 2^31-1 old.
    assert reading.since_xid is not None
    return sql.SQL("age(xmin) BETWEEN 0 AND age({}::xid)").format(sql.Literal(str(wrap_xid(reading.since_xid))))


def since_mark(mapping: Mapping, reading: Reading) -> sql.Composable:
    """Return the condition that a row is stamped at or after the reading's mark, or not at all."""
    assert mapping.watermark is not None
    assert reading.since_mark is not None
    column = sql.Identifier(mapping.watermark.name)
    mark: sql.Composable = sql.SQL("{}::timestamptz").format(sql.Literal(reading.since_mark.isoformat()))
    kind = watermark_type(mapping)
    if kind != "timestamptz":
        # The session's zone is UTC; watermark_slack covers that the column may be somebody's local time.
        mark = sql.SQL("({} AT TIME ZONE 'UTC')::{}").format(mark, sql.SQL("date" if kind == "date" else "timestamp"))
    return sql.SQL("{column} >= {mark} OR {column} IS NULL").format(column=column, mark=mark)
