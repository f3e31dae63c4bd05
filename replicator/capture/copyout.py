"""COPY ... TO STDOUT at libpq's level: large pieces out, no Python object per row beyond libpq's own message.

psycopg's `Copy` drives a generator for each row; reading the messages from the PGconn directly costs a third of that.
"""

from __future__ import annotations

import select
from collections.abc import Generator

import psycopg
from psycopg import pq, sql

from replicator.db import Connection
from replicator.errors import PassingError

PIECE_BYTES = 1 << 18
_WAIT_S = 60.0
# Signature, flags, header extension length, and the trailer: all that a binary COPY of no rows sends.
_BINARY_EMPTY_BYTES = 11 + 4 + 4 + 2


def copy_out(connection: Connection, statement: sql.Composed, *, binary: bool) -> Generator[bytes, None, int]:
    """Yield the data of a COPY TO STDOUT in pieces of about 256 kB; nothing at all when there is no row.

    Returns how many rows the server says that it sent. An iterator that is not read to its end leaves the connection in
    the middle of a COPY: close it then. Raises psycopg errors of the server, PassingError when the connection breaks.
    """
    pgconn = connection.pgconn
    pgconn.send_query(statement.as_bytes(connection))
    result = _next_result(pgconn)
    if result is None or result.status != pq.ExecStatus.COPY_OUT:
        return _finish(pgconn, result)
    waiting: list[bytes] = []
    size = total = 0
    get, descriptor = pgconn.get_copy_data, [pgconn.socket]
    while True:
        received, data = get(1)
        if received > 0:
            waiting.append(bytes(data))
            size += received
            if size > PIECE_BYTES:
                total += size
                yield b"".join(waiting)
                waiting.clear()
                size = 0
        elif received == 0:
            select.select(descriptor, [], [], _WAIT_S)
            pgconn.consume_input()
        else:
            break
    rows = _finish(pgconn, _next_result(pgconn))
    if waiting and (total or not binary or size > _BINARY_EMPTY_BYTES):
        yield b"".join(waiting)
    return rows


def _next_result(pgconn: pq.abc.PGconn) -> pq.abc.PGresult | None:
    pgconn.flush()
    while pgconn.is_busy():
        select.select([pgconn.socket], [], [], _WAIT_S)
        pgconn.consume_input()
    return pgconn.get_result()


def _finish(pgconn: pq.abc.PGconn, result: pq.abc.PGresult | None) -> int:
    failed: pq.abc.PGresult | None = None
    rows = 0
    while result is not None:
        rows += result.command_tuples or 0
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            failed = result
        result = _next_result(pgconn)
    if pgconn.status == pq.ConnStatus.BAD:
        raise PassingError(
            "the connection to the source was lost",
            why="it broke in the middle of a COPY",
            hint="it is tried again by itself; if it lasts, look at the source's server log",
        )
    if failed is not None:
        raise psycopg.errors.error_from_result(failed, encoding="utf-8")
    return rows
