"""Limits of a server or a role that were met, told by the setting that has to be raised.

That a connection met one its SQLSTATE tells, in every language; which one it was, words alone. For all else the
server's source file tells the limit: lock.c has the lock table, fd.c the temporary files, slot.c the replication slots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from replicator.connect_probe import Refusal

_OUT_OF_MEMORY, _NO_CONNECTION, _CONFIGURED_LIMIT = "53200", "53300", "53400"


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit: its name, and what raises it."""

    name: str
    hint: str


_SETTINGS = {
    (_OUT_OF_MEMORY, "lock.c"): Limit(
        "max_locks_per_transaction",
        "alter system set max_locks_per_transaction = 256; then restart it; or name fewer tables and partitions",
    ),
    (_CONFIGURED_LIMIT, "fd.c"): Limit(
        "temp_file_limit",
        "a superuser: alter role ... set temp_file_limit = -1; or alter system set work_mem = '64MB', for fewer files",
    ),
    (_CONFIGURED_LIMIT, "slot.c"): Limit(
        "max_replication_slots",
        "drop a slot that nobody needs (select * from pg_replication_slots); "
        "or alter system set max_replication_slots = 20; then restart it",
    ),
}


def find_limit(error: psycopg.Error) -> Limit | None:
    """Return the limit that a statement met; None for none, or one that passes by itself."""
    if error.sqlstate == _CONFIGURED_LIMIT:
        unnamed = Limit("a limit of its configuration", "the server's log names it, at the time of this line")
        return _SETTINGS.get((_CONFIGURED_LIMIT, error.diag.source_file or ""), unnamed)
    return _SETTINGS.get((error.sqlstate or "", error.diag.source_file or ""))


def find_connection_limit(refusal: Refusal, said: str, conninfo: str, *, replication: bool = False) -> Limit | None:
    """Return the limit that kept a connection out; None for another cause.

    said: by the server, in its own language. Where it is not understood the hint names what it may be.
    """
    named = _find_named(said, conninfo)
    if _NO_CONNECTION in refusal.sqlstates:
        return named or _name_any(conninfo, replication=replication)
    return None if refusal.sqlstates or refusal.said else named


def _name_any(conninfo: str, *, replication: bool) -> Limit:
    role = conninfo_to_dict(conninfo).get("user")
    senders = "max_wal_senders, " if replication else ""
    return Limit(
        f"{senders}max_connections, or a CONNECTION LIMIT",
        f"the server's log names it, at the time of this line; lower --jobs, or {_raise('role', role)}",
    )


def _find_named(said: str, conninfo: str) -> Limit | None:
    role = conninfo_to_dict(conninfo).get("user")
    database = conninfo_to_dict(conninfo).get("dbname")
    if "max_wal_senders" in said:
        return Limit("max_wal_senders", "alter system set max_wal_senders = 10; then restart it")
    if re.search("too many connections for role", said, re.IGNORECASE):
        return Limit(f"the CONNECTION LIMIT of role {role or '...'}", _raise("role", role))
    if re.search("too many connections for database", said, re.IGNORECASE):
        return Limit(f"the CONNECTION LIMIT of database {database or '...'}", _raise("database", database))
    if re.search("max_client_conn|no more connections allowed", said, re.IGNORECASE):
        return Limit("max_client_conn of the pooler", "raise max_client_conn of the pooler, or lower --jobs")
    if re.search("too many|connection slots", said, re.IGNORECASE):
        return Limit("max_connections", "lower --jobs; or alter system set max_connections = 200; then restart it")
    return None


def _raise(kind: str, name: object) -> str:
    named = sql.Identifier(str(name)).as_string() if name else "..."
    return f"alter {kind} {named} connection limit 20; a run needs 2 connections and one for each of --jobs"
