"""Poolers between us and a server: known by their greeting, judged by how they share the server's sessions.

A pooler's greeting holds a process id of its own invention, so `pg_backend_pid()` answers something else. One that
gives a session's server to others between transactions takes settings, temporary tables and advisory locks with it.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq

from replicator.errors import PassingError, PreflightError

Connection = psycopg.Connection[dict[str, Any]]

_ROUNDS = 16
"""A pool that hands its servers out in turn, or is busy, gives the one that tells only at a later question."""
_PID = b"SELECT pg_catalog.pg_backend_pid()"
_REFUSED = "08P01"
_TRUSTED_S = 60.0
_server_pids: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
_trusted_until: dict[str, float] = {}


class PoolExhausted(Exception):
    """The pooler had no second server to give."""


def note_server_pid(connection: Connection, pid: int) -> None:
    """Keep the id of the server process that answered a connection."""
    _server_pids[connection] = pid


def server_pid(connection: Connection) -> int:
    """Return the id of the server process behind a connection; a pooler shows the client another one."""
    return _server_pids.get(connection, connection.info.backend_pid)


def is_pooled(connection: Connection) -> bool:
    """Say whether something stands between the connection and its server."""
    return server_pid(connection) != connection.info.backend_pid


def check_pooler(
    connection: Connection, conninfo: str, reopen: Callable[[], Connection], *, side: str, timeout_s: float
) -> None:
    """Raise an error unless the connection keeps its server; one without a pooler costs nothing.

    reopen: opens a second, unpinned connection like the first. One look holds for a minute of connections.
    """
    if not is_pooled(connection) or time.monotonic() < _trusted_until.get(conninfo, 0.0):
        return
    try:
        is_shared = shares_servers(connection, reopen, timeout_s)
    except PoolExhausted:
        raise pool_exhausted(side) from None
    if is_shared:
        raise not_pinned(side)
    _trusted_until[conninfo] = time.monotonic() + _TRUSTED_S


def shares_servers(connection: Connection, reopen: Callable[[], Connection], timeout_s: float) -> bool:
    """Say whether two sessions are served by one process, or one session by several.

    Should the pool hold a single server, the second session gets it at once, and the first is not asked again: it would
    have to wait. Raises PoolExhausted when the second session gets no server.
    """
    pid = server_pid(connection)
    deadline = time.monotonic() + timeout_s
    try:
        other = reopen()
    except psycopg.OperationalError:
        raise PoolExhausted from None
    try:
        for _ in range(_ROUNDS):
            # Pooling by statement refuses the BEGIN, for which there is no answer then.
            if _ask(other, b"BEGIN; " + _PID, deadline) in (None, pid) or _ask(connection, _PID, deadline) != pid:
                return True
            _ask(other, b"ROLLBACK", deadline)
            if _ask(connection, _PID, deadline) != pid:
                return True
    finally:
        other.close()
    return False


def _ask(connection: Connection, query: bytes, deadline: float) -> int | None:
    """Return the number that a query answers; None where a pooler refuses it. Raises PoolExhausted when none comes."""
    pgconn, answer = connection.pgconn, None
    pgconn.send_query(query)
    while (result := _next_result(pgconn, deadline)) is not None:
        if result.status == pq.ExecStatus.TUPLES_OK:
            answer = int(result.get_value(0, 0) or b"0")
        elif result.status == pq.ExecStatus.FATAL_ERROR:
            error = psycopg.errors.error_from_result(result)
            if error.sqlstate != _REFUSED:
                raise error
            return None
    return answer


def _next_result(pgconn: pq.abc.PGconn, deadline: float) -> pq.abc.PGresult | None:
    while pgconn.is_busy():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise PoolExhausted
        select.select([pgconn.socket], [], [], left_s)
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            # What came ahead of the end says more than the end.
            break
    return pgconn.get_result()


def not_pinned(side: str) -> PreflightError:
    """Return the error of a pooler that does not let a session keep its server."""
    return PreflightError(
        f"the {side} is reached through a pooler that does not leave a session its server",
        why="it pools by transaction or by statement: settings, locks and temporary tables would be another client's",
        hint=f"point {side}.dsn at PostgreSQL itself, not at the pooler; or let it pool by session "
        "(pgbouncer: pool_mode = session for this database)",
        id="session_not_pinned",
    )


def pool_exhausted(side: str) -> PassingError:
    """Return the error of a pool that had no server to give in time."""
    return PassingError(
        f"the pooler in front of the {side} has no server for another session",
        why="every run needs several sessions at a time, and each keeps its server",
        hint=f"raise its pool size (pgbouncer: pool_size of this database), or point {side}.dsn at PostgreSQL itself",
        id="pooler",
    )


def ended_by_pooler(side: str, sqlstate: str) -> PassingError:
    """Return the error of a session that a pooler ended, for a server that left it or for want of one."""
    return PassingError(
        f"the pooler in front of the {side} ended a session",
        why=f"SQLSTATE {sqlstate}, which PostgreSQL itself did not send: its server was lost, or none was free in time",
        hint=f"it is tried again by itself; if it lasts, look at the pooler's log, or point {side}.dsn at PostgreSQL",
        id="pooler",
        sqlstate=sqlstate,
    )


def no_stream_through_pooler() -> PreflightError:
    """Return the error of a pooler that passes no replication connection on."""
    return PreflightError(
        "the source is reached through a pooler that takes no replication connection",
        why="`listen` streams from PostgreSQL itself",
        hint="point source.dsn at PostgreSQL itself, not at the pooler",
        id="pooler",
    )
