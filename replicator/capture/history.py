"""What a source with SELECT rights tells of its history, and the mark that a read leaves in it.

A mark is a handful of transactions that write nothing: some commit, some roll back, in an order that is drawn. Every
role may have them, their outcome stays readable (pg_xact_status), and in another history these ids belong to others.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import replace

import psycopg

from replicator.continuity import Marker, list_xids
from replicator.db import Connection
from replicator.position import Lsn
from replicator.reading import SnapshotFacts
from replicator.statement import statement

FLUSH_WAIT_S = 30.0
"""The longest wait for a flush: thrice the longest wal_writer_delay."""
_POLL_S = 0.02
_REFUSED = (
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.FeatureNotSupported,
)
_COMMIT, _ROLLBACK = b"COMMIT", b"ROLLBACK"
_ENDINGS = (_COMMIT, _ROLLBACK) * 6


def settle_history(
    connection: Connection, facts: SnapshotFacts, markers: Collection[str]
) -> tuple[SnapshotFacts, frozenset[str]]:
    """Leave a mark behind a snapshot and wait until all that it sees is on the source's disk.

    connection: outside any transaction. markers: of earlier reads. Returns the facts with their marker, and those
    markers that do not hold. A standby takes no mark: there the transactions ahead of the snapshot serve as one.
    """
    lost = find_lost_markers(connection, markers)
    if facts.is_standby:
        return replace(facts, marker=read_marker(connection, facts.xmin)), lost
    known = next((text for text in markers if text not in lost and Marker.parse(text).covers(facts.next_xid)), None)
    marker = Marker.parse(known) if known is not None else _try_to_mark(connection)
    if marker is None:
        return replace(facts, marker=read_marker(connection, facts.xmin)), lost
    if known is None or not is_flushed(connection, facts.lsn):
        marker = Marker({**marker.is_committed, **force_flush(connection)})
    return replace(facts, marker=str(marker)), lost


def find_lost_markers(connection: Connection, markers: Collection[str]) -> frozenset[str]:
    """Return the markers that do not hold: the source is in another history than when they were made."""
    if not markers:
        return frozenset()
    statuses = _read_statuses(connection, list_xids(markers))
    return frozenset(text for text in markers if not Marker.parse(text).holds(statuses))


def knows(connection: Connection, marker: Marker) -> bool:
    """Say whether a server has come as far as a marker, whoever the transactions belong to there."""
    return marker.is_committed.keys() <= _read_statuses(connection, list(marker.is_committed)).keys()


def shows_marker(connection: Connection, marker: Marker) -> bool:
    """Say whether a server has the transactions of a marker."""
    return marker.holds(_read_statuses(connection, list(marker.is_committed)))


def _read_statuses(connection: Connection, xids: list[int]) -> dict[int, str | None]:
    rows = connection.execute(statement("source.transaction_statuses"), {"xids": xids}).fetchall()
    return {row["xid"]: row["status"] for row in rows}


def _try_to_mark(connection: Connection) -> Marker | None:
    """Leave a mark; None on a server that gives out no transaction ids and does not call itself a standby."""
    try:
        return make_marker(connection)
    except _REFUSED:
        connection.execute("ROLLBACK")
        return None


def make_marker(connection: Connection) -> Marker:
    """Leave a mark in the source's history."""
    endings = list(_ENDINGS)
    secrets.SystemRandom().shuffle(endings)
    own_xid = statement("source.own_xid")
    # In one message: twelve transactions, one way to the server and back.
    cursor = connection.execute(b"".join(b"BEGIN READ WRITE; %b; %b; " % (own_xid, ending) for ending in endings))
    xids = [row["xid"] for result in cursor.results() if result.description for row in result.fetchall()]
    return Marker({xid: ending == _COMMIT for xid, ending in zip(xids, endings, strict=True)})


def read_marker(connection: Connection, xmin: int) -> str:
    """Return the transactions ahead of a snapshot as a marker: they have all ended."""
    rows = connection.execute(statement("source.ended_transactions"), {"xmin": xmin}).fetchall()
    return str(Marker({row["xid"]: row["status"] == "committed" for row in rows}))


def force_flush(connection: Connection) -> dict[int, bool]:
    """Make the source write its WAL to disk, by a commit that waits for it; return that transaction."""
    try:
        with connection.transaction():
            connection.execute("SET TRANSACTION READ WRITE")
            row = connection.execute(statement("source.flush"), {}).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        # Somebody revoked the function: the WAL writer comes round by itself.
        return {}
    assert row is not None
    return {row["xid"]: True}


def is_flushed(connection: Connection, lsn: Lsn) -> bool:
    """Say whether all up to a position is on the disk of a primary."""
    row = connection.execute(statement("source.is_flushed"), {"lsn": str(lsn)}).fetchone()
    return bool(row and row["is_flushed"])


def await_flush(connection: Connection, lsn: Lsn) -> bool:
    """Wait until all up to a position is on the disk of a primary; False when that took too long."""
    deadline = time.monotonic() + FLUSH_WAIT_S
    while not is_flushed(connection, lsn):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
