"""What the listener asks the source besides its stream: rights, slot, ends of the WAL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from replicator.continuity import SourcePresent
from replicator.db import Connection
from replicator.errors import LockHeldError, OperatorError, PreflightError
from replicator.position import Lsn, step_before_header
from replicator.statement import statement

STANDBY_SINCE = 160000


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """A slot as the source shows it.

    lag_bytes: of WAL that is not confirmed; safe_wal_bytes: until it is lost. invalidation: the server's word for why
    it was lost, if it has one.
    """

    name: str
    active: bool
    wal_status: str | None
    database: str | None
    plugin: str | None
    confirmed: Lsn | None
    restart: Lsn | None
    safe_wal_bytes: int | None
    lag_bytes: int | None
    invalidation: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Once all up to `lsn` is in the target, so is everything older than `xid` and all committed before `clock`."""

    xid: int
    clock: datetime
    lsn: Lsn


def _ask(connection: Connection, name: str, **parameters: Any) -> dict[str, Any] | None:
    return connection.execute(statement(f"replication.{name}"), parameters).fetchone()


def check_source(connection: Connection) -> int:
    """Return the server's version number. Raises PreflightError where no stream can be had."""
    facts = read_source(connection)
    for error in facts.gaps:
        raise error
    return facts.version_number


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the source is to a listener. gaps: what keeps it from having a stream there."""

    version_number: int
    may_replicate: bool
    is_standby: bool
    gaps: tuple[PreflightError, ...]


def read_source(connection: Connection) -> SourceFacts:
    """Ask the source, and the role there, about what every stream needs."""
    row = _ask(connection, "facts")
    assert row is not None
    gaps = []
    if row["wal_level"] != "logical":
        gaps.append(
            PreflightError(
                f"the source's wal_level is {row['wal_level']}",
                why="the stream needs logical",
                hint="alter system set wal_level = 'logical'; then restart the source",
                id="wal_level",
            )
        )
    if not row["may_replicate"]:
        role = sql.Identifier(row["role"]).as_string()
        gaps.append(
            PreflightError(
                f"role {row['role']} may not replicate",
                why="it lacks the attribute REPLICATION",
                hint=f"alter role {role} replication; or: psql -v replication=on -f sql/source/roles.sql",
                id="replication_missing",
            )
        )
    if row["is_standby"] and row["version_number"] < STANDBY_SINCE:
        gaps.append(
            PreflightError(
                "the source is a standby without logical decoding",
                why="PostgreSQL has it on a standby from version 16 on",
                hint="point source.dsn at the primary, or upgrade",
                id="standby_stream",
            )
        )
    return SourceFacts(int(row["version_number"]), row["may_replicate"], row["is_standby"], tuple(gaps))


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What bounds a stream on the source.

    sender_timeout_ms, keep_mb: as PostgreSQL has wal_sender_timeout and max_slot_wal_keep_size, 0 and -1 for none.
    idle_timeout: idle_replication_slot_timeout as it is written, None before PostgreSQL 18.
    """

    most_slots: int
    slots: int
    has_slot: bool
    is_streaming: bool
    most_senders: int
    senders: int
    sender_timeout_ms: int
    keep_mb: int
    idle_timeout: str | None


def read_stream_facts(connection: Connection, slot_name: str) -> StreamFacts:
    """Ask the source how much room a stream has there."""
    row = _ask(connection, "stream_facts", slot=slot_name)
    assert row is not None
    return StreamFacts(**row)


def read_slot(connection: Connection, name: str) -> SlotFacts | None:
    """Return a slot, or None."""
    row = _ask(connection, "slot", slot=name)
    if row is None:
        return None
    return SlotFacts(
        row["name"], row["active"], row["wal_status"], row["database"], row["plugin"],
        None if row["confirmed"] is None else Lsn.parse(row["confirmed"]),
        None if row["restart"] is None else Lsn.parse(row["restart"]),
        row["safe_wal_bytes"], row["lag_bytes"], row["invalidation"],
    )  # fmt: skip


def drop_slot(connection: Connection, name: str) -> bool:
    """Drop a slot; False when there was none. Raises LockHeldError while somebody reads it."""
    try:
        connection.execute(statement("replication.drop_slot"), {"slot": name})
    except psycopg.errors.UndefinedObject:
        return False
    except psycopg.errors.ObjectInUse as error:
        raise _slot_active(name, error.sqlstate) from error
    return True


def check_free(connection: Connection, name: str) -> None:
    """Raise LockHeldError while somebody reads the slot."""
    slot = read_slot(connection, name)
    if slot is not None and slot.active:
        raise _slot_active(name, None)


def _slot_active(name: str, sqlstate: str | None) -> LockHeldError:
    return LockHeldError(
        f"the replication slot {name} is in use",
        why="another session reads it, or the server has not noticed yet that one has died",
        hint="stop the listener, or wait: the server notices after wal_sender_timeout",
        id="slot_active",
        sqlstate=sqlstate,
    )


def read_timeline(connection: Connection) -> int:
    """Return the source's timeline."""
    row = _ask(connection, "timeline")
    assert row is not None
    return int(row["timeline"])


def read_present(connection: Connection, slot_name: str, slot: SlotFacts | None) -> SourcePresent:
    """Return where the source stands. slot: as it was read just before, None where there is none."""
    row = _ask(connection, "present")
    assert row is not None
    return SourcePresent(
        system_identifier=row["system_identifier"],
        timeline=read_timeline(connection),
        end_of_wal=read_end_of_wal(connection),
        is_standby=row["is_standby"],
        slot=slot_name,
        has_slot=slot is not None,
        is_lost=slot is not None and slot.wal_status == "lost",
        confirmed=None if slot is None else slot.confirmed,
    )


def read_end_of_wal(connection: Connection) -> Lsn:
    """Return where the WAL ends now. A page's header is no part of it: no record ends there, and none may follow."""
    row = _ask(connection, "end_of_wal")
    assert row is not None
    return step_before_header(Lsn.parse(row["lsn"]), row["segment_bytes"])


def read_pair(connection: Connection) -> Pair:
    """Read a pair, in the order that makes it true: the end of the WAL last."""
    row = _ask(connection, "oldest_xid")
    assert row is not None
    return Pair(int(row["xid"]), row["clock"], read_end_of_wal(connection))


def read_next_xid(connection: Connection) -> int:
    """Return the transaction id up to which all have begun by now, 64 bits wide."""
    row = _ask(connection, "xid_bounds")
    assert row is not None
    return int(row["next_xid"])


def read_oldest_xid(connection: Connection) -> int:
    """Return the oldest transaction id that is still running, prepared ones included; the next one if none is."""
    row = _ask(connection, "xid_bounds")
    assert row is not None
    return int(row["oldest_xid"])


def send_heartbeat(connection: Connection) -> None:
    """Write a message into the WAL, so that the stream of an idle database moves on."""
    _ask(connection, "heartbeat")


def check_slot(slot: SlotFacts, database: str) -> None:
    """Raise OperatorError for a slot that cannot serve."""
    if slot.plugin == "pgoutput" and slot.database != database:
        raise OperatorError(
            f"the replication slot {slot.name} belongs to database {slot.database}",
            why=f"source.dsn names {database}: a database was renamed, or another pipeline has a slot of this name",
            hint=f"if {slot.database} is the one that was copied, name it in source.dsn; "
            "otherwise set listen.slot to another name",
            id="slot_foreign",
        )
    if slot.plugin != "pgoutput":
        raise OperatorError(
            f"the replication slot {slot.name} is somebody else's",
            why=f"it is of plugin {slot.plugin} and database {slot.database}",
            hint="set listen.slot to another name",
            id="slot_foreign",
        )
