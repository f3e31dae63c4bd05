"""The listener's part of the control schema: its epoch and position, the tables it keeps, its rows of `etl_control`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID

import psycopg

from replicator.apply.control import lock_key
from replicator.batch import Figures
from replicator.cell import is_text
from replicator.changes import KeyText
from replicator.continuity import LastCommit, StreamRecord
from replicator.db import Connection
from replicator.errors import FencedError, LockHeldError, PassingError, ReplicatorError
from replicator.position import Lsn, Origin, Seen
from replicator.statement import statement
from replicator.strategy import EXACT
from replicator.telemetry.trace import scrub_traceback

Row = dict[str, Any]
STREAM_LOCK = "stream"
"""Of the session that loads the stream: it writes on for a while if only the one with the listener's lock has ended."""


@dataclass(frozen=True, slots=True)
class ListenerState:
    """Where the stream stands. position: None before the initial copy is complete, and after a gap was found.

    last_commit: what the stream brought last; None before anything.
    """

    epoch: int
    slot_name: str | None
    system_identifier: str | None
    timeline: int | None
    consistent_point: Lsn | None
    position: Lsn | None
    fresh_at: datetime | None
    repair_xid: int | None
    last_commit: LastCommit | None = None

    @property
    def record(self) -> StreamRecord | None:
        """Return what is compared with the source; None before the initial copy is complete."""
        if self.position is None:
            return None
        return StreamRecord(
            self.system_identifier, self.timeline, self.consistent_point, self.position, self.last_commit
        )


@dataclass(frozen=True, slots=True)
class StreamTable:
    """A table of the stream. origin: what its rows have already. is_stale: it is to be read again."""

    table: str
    origin: Origin
    definition: str
    is_stale: bool


@dataclass(frozen=True, slots=True)
class ParkedTable:
    """A table that the listener leaves out for now, and why.

    since: when it was parked. lsn: where the source's transaction commits that parked it; None: the catalog did.
    attempts: how often the same reason was found. is_requested: somebody asked for a resync.
    """

    table: str
    since: datetime
    lsn: Lsn | None
    id: str
    message: str
    hint: str | None
    attempts: int
    is_requested: bool


class StreamControl:
    """The listener's tables of the control schema, on one connection."""

    def __init__(self, connection: Connection, schema: str, pipeline: str, epoch: int = 0) -> None:
        self.connection, self.schema, self.pipeline, self.epoch = connection, schema, pipeline, epoch
        self._batches: dict[str, tuple[int, datetime]] = {}
        self._fresh: dict[str, tuple[int, datetime]] = {}

    def _execute(self, name: str, /, **parameters: Any) -> psycopg.Cursor[Row]:
        parameters = {"pipeline": self.pipeline, "epoch": self.epoch, **parameters}
        return self.connection.execute(statement(f"listener.{name}", self.schema), parameters)

    def claim(self, wait_s: float) -> ListenerState:
        """Take the pipeline over from any older listener, and return where it stands.

        Raises LockHeldError when an older one, frozen or cut off, still has a transaction open after `wait_s`.
        """
        try:
            with self.connection.transaction():
                self.connection.execute(
                    "SELECT set_config('lock_timeout', %s, true)", [f"{max(1, int(wait_s * 1000))}ms"]
                )
                row = self._execute("claim").fetchone()
        except psycopg.errors.LockNotAvailable as error:
            raise LockHeldError(
                "an older listener of this pipeline still has a transaction open on the target",
                why="it is frozen or cut off, and the server has not noticed yet",
                hint="wait, or end its sessions on the target (pg_terminate_backend), then run it again",
                id="listener_open",
                sqlstate=error.sqlstate,
            ) from error
        assert row is not None
        state = _state(row)
        self.epoch = state.epoch
        return state

    def read_state(self) -> ListenerState | None:
        """Return where the stream stands; None when no listener has ever run."""
        row = self._execute("read_state").fetchone()
        return None if row is None else _state(row)

    def read_tables(self) -> dict[str, StreamTable]:
        """Return the tables of the stream."""
        rows = self._execute("list_tables").fetchall()
        return {r["table_name"]: StreamTable(r["table_name"], _origin(r), r["definition"], r["is_stale"]) for r in rows}

    def begin_copy(self, slot_name: str) -> None:
        """Note, ahead of making a slot, that no position counts until the copy is complete."""
        self._check(self._execute("begin_copy", slot_name=slot_name).rowcount)

    def finish_copy(
        self, position: Lsn, *, system_identifier: str, timeline: int, fresh_at: datetime, repair_xid: int
    ) -> None:
        """Note that every table is there as of the slot's consistent point."""
        done = self._execute(
            "finish_copy",
            position=str(position),
            system_identifier=system_identifier,
            timeline=timeline,
            fresh_at=fresh_at,
            repair_xid=str(repair_xid),
        )
        self._check(done.rowcount)

    def fence(self) -> None:
        """Lock the listener's row. Raises FencedError if a younger listener has taken over."""
        self._check(len(self._execute("fence").fetchall()))

    def hold(self) -> None:
        """Keep the stream from landing anything until this transaction ends. It may go on reading meanwhile."""
        self._execute("hold")

    def resume(self, timeline: int, *, keeps_repair: bool) -> None:
        """Note that the stream goes on, on this timeline. keeps_repair: False forgets where a repair would begin."""
        self._check(self._execute("resume", timeline=timeline, keeps_repair=keeps_repair).rowcount)

    def save_position(
        self, position: Lsn, fresh_at: datetime | None, repair_xid: int | None, last_commit: LastCommit | None
    ) -> None:
        """Write the position, inside the transaction of the data. last_commit: None where nothing was brought."""
        saved = self._execute(
            "save_position",
            position=str(position),
            fresh_at=fresh_at,
            repair_xid=None if repair_xid is None else str(repair_xid),
            commit_lsn=None if last_commit is None else str(last_commit.lsn),
            commit_end=None if last_commit is None else str(last_commit.end),
            commit_xid=None if last_commit is None else last_commit.xid,
            commit_time_us=None if last_commit is None else last_commit.time_us,
        )
        # In a pipeline only an answer that is fetched is there.
        self._check(len(saved.fetchall()))

    def save_table(self, table: str, since: Lsn, definition: str, *, is_stale: bool = False) -> None:
        """Make a table part of the stream."""
        self._execute("save_table", table_name=table, since=str(since), definition=definition, is_stale=is_stale)

    def join_table(self, table: str, since: Lsn, definition: str) -> None:
        """Make a table part of the stream that was read beside it, and note that its trouble is over."""
        self.save_table(table, since, definition)
        self.unpark_table(table)
        self.end_table_copy(table)

    def save_seen(self, table: str, snapshot: str, until: Lsn, epoch: int) -> None:
        """Note what a read of the table by itself saw, inside the transaction of its rows.

        epoch: the listener's when the snapshot was taken. Raises PassingError when one has begun since: it does not
        know of the read.
        """
        row = self._execute("share_state").fetchone()
        if row is not None and row["epoch"] != epoch:
            raise overtaken(table)
        self._execute("save_seen", table_name=table, snapshot=snapshot, until=str(until))

    def mark_stale(self, table: str) -> None:
        """Note that a table is to be read again."""
        self._execute("mark_stale", table_name=table)

    def save_definition(self, table: str, definition: str) -> None:
        """Note what a table is defined as from now on, though nothing of it changed."""
        self._execute("save_definition", table_name=table, definition=definition)

    def drop_table(self, table: str) -> None:
        """Take a table out of the stream."""
        self._execute("drop_table", table_name=table)

    def park_table(self, table: str, error: ReplicatorError) -> None:
        """Take a table out of the stream because of its own trouble, and note why."""
        self._execute(
            "park_table",
            table_name=table,
            lsn=error.lsn,
            error_id=error.id,
            error_message=error.message,
            error_hint=error.hint,
        )

    def unpark_table(self, table: str) -> None:
        """Note that a table's trouble is over."""
        self._execute("unpark_table", table_name=table)

    def read_parked(self) -> dict[str, ParkedTable]:
        """Return the tables that the listener leaves out for now."""
        return {row["table_name"]: _parked(row) for row in self._execute("list_parked").fetchall()}

    def request_parked(self, table: str) -> bool:
        """Ask the listener to read a parked table at once; False when it is not parked."""
        return self._execute("request_parked", table_name=table).fetchone() is not None

    def begin_table_copy(self, table: str) -> None:
        """Note that the listener reads a table beside the stream."""
        self._execute("begin_table_copy", table_name=table)

    def end_table_copy(self, table: str) -> None:
        """Note that the reading of a table is over."""
        self._execute("end_table_copy", table_name=table)

    def end_table_copies(self) -> None:
        """Note that no table is being read: the listener that did has ended."""
        self._execute("end_table_copies")

    def read_copying(self) -> dict[str, datetime]:
        """Return since when the listener reads which tables beside the stream."""
        return {row["table_name"]: row["started_at"] for row in self._execute("list_copying").fetchall()}

    def drop_stream(self) -> None:
        """Forget the stream: its slot is gone for good."""
        self._execute("drop_stream")

    def is_listening(self) -> bool:
        """Say whether a listener of this pipeline is at work, or its end has not been noticed yet."""
        return self.is_held("listener") or self.is_held(STREAM_LOCK)

    def is_held(self, lock: str) -> bool:
        """Say whether some session holds a lock of this pipeline: `listener`, or `run`."""
        row = self._execute("lock_is_held", key=lock_key(self.schema, self.pipeline, lock)).fetchone()
        return bool(row and row["held"])

    def add_figures(
        self,
        execution_id: UUID,
        figures: Mapping[str, Figures],
        *,
        guarantees: Mapping[str, str],
        started_at: datetime,
        lsn: Lsn,
        fresh_at: datetime | None,
    ) -> None:
        """Count a batch in the tables' rows of this minute, in two statements for any number of them."""
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        known = {table: self._fresh.get(table) or self._batches.get(table) for table in figures}
        grown = {table: row[0] for table, row in known.items() if row is not None and row[1] == minute}
        told = {"started_at": started_at, "lsn": str(lsn), "watermark_end": fresh_at}
        if grown:
            more = [{"batch_id": batch_id, **figures[table].counts()} for table, batch_id in grown.items()]
            self._execute("grow_batches", batches=json.dumps(more), **told)
        if len(grown) < len(figures):
            added = [
                {"table_name": table, "guarantee": guarantees.get(table, EXACT), **one.counts()}
                for table, one in figures.items()
                if table not in grown
            ]
            rows = self._execute("add_batches", execution_id=str(execution_id), batches=json.dumps(added), **told)
            self._fresh.update({row["table_name"]: (row["batch_id"], minute) for row in rows.fetchall()})

    def settle(self, *, committed: bool) -> None:
        """Keep the rows of `etl_control` that the transaction made, or drop them with it."""
        if committed:
            self._batches.update(self._fresh)
        self._fresh.clear()

    def record_failure(self, execution_id: UUID, table: str, error: ReplicatorError) -> None:
        """Record a failure in a transaction of its own; the same one again raises its `attempts`."""
        self._execute(
            "record_failure",
            execution_id=str(execution_id),
            table_name=table,
            error_code=error.code,
            error_message=error.message,
            error_hint=error.hint,
            error_traceback=scrub_traceback(error),
            lsn=error.lsn,
        )

    def save_refused(self, table: str, key: KeyText | None, lsn: Lsn, error: ReplicatorError) -> None:
        """Note the change that the stream cannot get past, in a transaction of its own, until it has."""
        self._execute(
            "save_refused",
            table_name=table,
            key=json.dumps(None if key is None else write_key(key)),
            lsn=str(lsn),
            error_code=error.code,
            error_message=error.message,
        )

    def read_refused(self) -> list[Row]:
        """Return the changes that the stream could not get past, at most one a table, the newest first."""
        rows = self._execute("read_refused").fetchall()
        return [row if row["key"] is None else row | {"key": show_key(row["key"])} for row in rows]

    def read_quarantine(self) -> list[Row]:
        """Return the rows that wait."""
        rows = self._execute("read_quarantine").fetchall()
        return [row | {"key": show_key(row["key"])} for row in rows]

    def list_unreadable(self) -> set[int]:
        """Return the numbers of the rows that wait under keys which are no text: no statement can name those."""
        rows = self._execute("read_quarantine").fetchall()
        return {row["quarantine_id"] for row in rows if not all(map(is_text, read_key(row["key"])))}

    def quarantine(self, table: str, key: KeyText, lsn: Lsn | None, error: ReplicatorError) -> None:
        """Put a row aside."""
        self._execute(
            "quarantine_row",
            table_name=table,
            key=json.dumps(write_key(key)),
            lsn=None if lsn is None else str(lsn),
            error_code=error.code,
            error_message=error.message,
        )

    def read_waiting_keys(self, table: str) -> set[KeyText]:
        """Return the keys of a table that are in quarantine."""
        rows = self._execute("read_waiting", table_name=table).fetchall()
        return {read_key(row["key"]) for row in rows}

    def touch_waiting(self, table: str, key: KeyText, lsn: Lsn | None) -> None:
        """Count one more change of a row in quarantine."""
        self._execute(
            "touch_waiting",
            table_name=table,
            key=json.dumps(write_key(key)),
            lsn=None if lsn is None else str(lsn),
        )

    def release_others(self, table: str, keys: Iterable[KeyText]) -> None:
        """Take all rows of a table out of quarantine but those of these keys."""
        self._execute("release_others", table_name=table, keys=json.dumps([write_key(key) for key in keys]))

    def release(self, quarantine_id: int) -> bool:
        """Take a row out of quarantine; False when it is not there."""
        return self._execute("release_row", quarantine_id=quarantine_id).fetchone() is not None

    @staticmethod
    def _check(rows: int) -> None:
        if not rows:
            raise FencedError(
                "a younger listener has taken this pipeline over",
                why="this one was paused or cut off meanwhile",
                hint="nothing: the younger one goes on from the last position",
            )


def overtaken(table: str) -> PassingError:
    """Return the passing error of a read that a listener got ahead of."""
    return PassingError(
        f"a listener was at {table} in the meantime",
        why="the snapshot may be older than what it brought",
        hint="it is read again by itself",
        id="snapshot_outdated",
        table=table,
    )


def _parked(row: Row) -> ParkedTable:
    return ParkedTable(
        table=row["table_name"],
        since=row["parked_at"],
        lsn=None if row["lsn"] is None else Lsn.parse(row["lsn"]),
        id=row["error_id"],
        message=row["error_message"],
        hint=row["error_hint"],
        attempts=row["attempts"],
        is_requested=row["is_requested"],
    )


def _origin(row: Row) -> Origin:
    seen = None if row["seen"] is None else Seen.parse(row["seen"], Lsn.parse(row["seen_until"]))
    return Origin(Lsn.parse(row["since"]), seen)


_BYTES = "bytes"
KeyJson: TypeAlias = Sequence[str | dict[str, str] | None]
"""A key in the quarantine table: the text of each cell, or its bytes in hex where they are not UTF-8."""


def write_key(key: Sequence[bytes | None]) -> KeyJson:
    """Return a key as the quarantine table has it."""
    return [None if cell is None else cell.decode() if is_text(cell) else {_BYTES: cell.hex()} for cell in key]


def read_key(key: KeyJson) -> KeyText:
    """Return the cells of a key in the quarantine table."""
    return tuple([None if c is None else c.encode() if isinstance(c, str) else bytes.fromhex(c[_BYTES]) for c in key])


def show_key(key: KeyJson) -> list[str | None]:
    """Return a key for people and in JSON: bytes that are not UTF-8 stand as their escapes."""
    return [None if cell is None else cell.decode("utf-8", "backslashreplace") for cell in read_key(key)]


def _state(row: Row) -> ListenerState:
    def lsn(name: str) -> Lsn | None:
        return None if row[name] is None else Lsn.parse(row[name])

    return ListenerState(
        epoch=row["epoch"],
        slot_name=row["slot_name"],
        system_identifier=row["system_identifier"],
        timeline=row["timeline"],
        consistent_point=lsn("consistent_point"),
        position=lsn("position"),
        fresh_at=row["fresh_at"],
        repair_xid=None if row["repair_xid"] is None else int(row["repair_xid"]),
        last_commit=_last_commit(row),
    )


def _last_commit(row: Row) -> LastCommit | None:
    if row["commit_lsn"] is None:
        return None
    lsn, end = Lsn.parse(row["commit_lsn"]), Lsn.parse(row["commit_end"])
    return LastCommit(lsn, end, row["commit_xid"], row["commit_time_us"])
