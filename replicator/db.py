"""Connections: opened with patience, their session pinned and read back; PostgreSQL's errors in our words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import Diagnostic
from psycopg.rows import dict_row

from replicator.connect_probe import Refusal, probe_refusal
from replicator.errors import (
    ConfigError,
    DataRefused,
    LimitReached,
    OperatorError,
    PassingError,
    PreflightError,
    ReplicatorError,
    SafetyStop,
    SchemaDrift,
)
from replicator.limits import Limit, find_connection_limit, find_limit
from replicator.pooler import check_pooler, ended_by_pooler, no_stream_through_pooler, note_server_pid
from replicator.refusal import explain_escape, explain_refusal, is_ambiguous, is_final, is_made_anew
from replicator.statement import statement

Connection = psycopg.Connection[dict[str, Any]]

# Everything that changes how a value is written or read as text, ends a long read, or lets a commit be lost. A database
# or role may set any of these: extra_float_digits = 0 turns 0.30000000000000004 into 0.3, array_nulls = off turns
# {NULL} into {"NULL"}.
PINNED = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "TimeZone": "UTC",
    "search_path": "",
    "lc_monetary": "C",
    "xmloption": "content",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "restrict_nonsystem_relation_kind": "",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",
    "synchronous_commit": "on",
}

_OF_SESSIONS = frozenset(
    {"client_encoding", "transaction_timeout", "restrict_nonsystem_relation_kind", "synchronous_commit"}
)
"""What is not pinned again in a transaction: younger than some server, or nothing that changes a value there."""

_PASSING_CLASSES = ("08", "53")
_LASTING_STATES = {"53400"}
# Where PostgreSQL refuses to read a materialized view WITH NO DATA.
_UNPOPULATED = "ExecOpenScanRelation"
# Of class 08, but what was sent is wrong, and will be again.
_PROTOCOL_VIOLATION = "08P01"
_PASSING_STATES = {"40001", "40P01", "57P01", "57P02", "57P03", "57P05", "25P03", "55P03"}
_REFUSED_CLASSES = ("22", "23", "44")
_RETRY_PAUSE_S = 0.2
# Sessions of ours that have just ended count for a moment more. Whatever else holds a connection will not hurry.
_LIMIT_WAIT_S = 2.0
TAKEN = (psycopg.errors.UniqueViolation, psycopg.errors.ExclusionViolation)
"""Another row holds the value, or the place, of this one; perhaps only until it is written too, or gone."""
TAKEN_STATES = frozenset(error.sqlstate for error in TAKEN)
# A walsender knows the simple protocol only (PostgreSQL documentation, 55.4): values are merged into the statement on
# this side, and nothing is prepared.
_REPLICATION: dict[str, Any] = {
    "replication": "database",
    "cursor_factory": psycopg.ClientCursor,
    "prepare_threshold": None,
}

# A peer that went away without a word is noticed within two minutes, not in the two hours that Linux takes; the
# connection string may say otherwise.
_KEEPALIVE = {"keepalives_idle": "60", "keepalives_interval": "10", "keepalives_count": "6"}


def check_conninfo(conninfo: str, key: str) -> None:
    """Raise ConfigError, which does not repeat it, if libpq could not read the connection string as it was meant."""
    try:
        ambiguous = is_ambiguous(conninfo)
    except psycopg.ProgrammingError:
        raise ConfigError(
            f"{key} is not a connection string",
            why="libpq could not read it",
            hint=f'write {key} = "postgresql://user@host:5432/database" or "host=... dbname=..."',
        ) from None
    if ambiguous:
        why, hint = explain_escape(key)
        raise ConfigError(f"{key} is not a connection string that can be understood", why=why, hint=hint)


def connect(
    conninfo: str, *, side: str, timeout_s: float = 10.0, first: bool = False, replication: bool = False
) -> Connection:
    """Open an autocommit connection with a pinned session; one for `replication` speaks to a walsender.

    `side` (source or target) is for messages. Refused or silent servers are asked again until `timeout_s` is over; a
    server that says no (password, database, pg_hba.conf) is not, but for a database that was there before: it may be
    in the middle of a restore. Raises PreflightError for a `first` connection, PassingError for a later one that only
    did not answer, OperatorError for a later one that was refused.
    """
    started = time.monotonic()
    deadline = started + timeout_s
    while True:
        try:
            connection = _open(conninfo, deadline, replication=replication)
        except psycopg.OperationalError as error:
            wanted = make_conninfo(conninfo, replication="database") if replication else conninfo
            refusal = probe_refusal(wanted, deadline - time.monotonic())
            if replication and _PROTOCOL_VIOLATION in refusal.sqlstates:
                raise no_stream_through_pooler() from None
            limit = find_connection_limit(refusal, str(error), conninfo, replication=replication)
            give_up_at = deadline if limit is None or first else min(deadline, started + _LIMIT_WAIT_S)
            is_awaited = not is_final(refusal) or (not first and is_made_anew(refusal))
            if not is_awaited or time.monotonic() + _RETRY_PAUSE_S >= give_up_at:
                if limit is not None:
                    raise _connection_limit(limit, side, first=first) from None
                raise _connect_error(refusal, conninfo, side, first, timeout_s, replication=replication) from None
            time.sleep(_RETRY_PAUSE_S)
        else:
            try:
                pin_session(connection)
                if not replication:
                    check_pooler(
                        connection, conninfo, lambda: _open(conninfo, deadline), side=side, timeout_s=timeout_s
                    )
            except psycopg.Error as error:
                # The connection was made, and cut before its first answer.
                connection.close()
                raise translate(error, side=side) from error
            except ReplicatorError:
                connection.close()
                raise
            return connection


def _open(conninfo: str, deadline: float, *, replication: bool = False) -> Connection:
    kept = {k: v for k, v in _KEEPALIVE.items() if k not in conninfo_to_dict(conninfo)}
    return psycopg.connect(
        make_conninfo(conninfo, **kept),
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=max(2, int(deadline - time.monotonic())),
        client_encoding="UTF8",
        application_name="replicator",
        **(_REPLICATION if replication else {}),
    )


def _connection_limit(limit: Limit, side: str, *, first: bool) -> ReplicatorError:
    family = PreflightError if first else LimitReached
    return family(
        f"no connection to the {side} is to spare",
        why=f"{limit.name} is reached",
        hint=f"on the {side}: {limit.hint}",
        id="limit_reached",
        sqlstate="53300",
    )


def _connect_error(
    refusal: Refusal, conninfo: str, side: str, first: bool, timeout_s: float, *, replication: bool
) -> ReplicatorError:
    is_last_word = is_final(refusal)
    what = f"no connection to the {side}" if is_last_word else f"no connection to the {side} within {timeout_s:g} s"
    family = PreflightError if first else OperatorError if is_last_word else PassingError
    return family(
        what,
        why=explain_refusal(refusal, conninfo, replication=replication),
        hint=f"check {side}.dsn: psql must be able to connect with the same string",
        id="no_connection",
    )


def pin_session(connection: Connection) -> None:
    """Set every setting of PINNED that the server knows, and read it back. Raises OperatorError if one did not take."""
    names, values = list(PINNED), list(PINNED.values())
    with connection.cursor() as cursor:
        rows = cursor.execute(statement("session.pin"), {"names": names, "values": values}).fetchall()
    note_server_pid(connection, rows[0]["pid"])
    wrong = [row["name"] for row in rows if row["now"] != row["wanted"]]
    if wrong:
        raise OperatorError(
            f"the session does not keep {', '.join(wrong)}",
            why="a pooler or an extension answers SET with something else",
            hint="connect to PostgreSQL directly, not through a pooler in transaction mode",
            id="session_not_pinned",
        )


def pin_transaction() -> sql.Composed:
    """Return the statements that pin what PINNED says of values, until the transaction ends.

    SET takes no snapshot, so they may come ahead of a LOCK that has to. The session is pinned already: this holds for
    a server that a pooler lent to somebody else in between.
    """
    one = sql.SQL("SET LOCAL {} = {}")
    settings = [(name, value) for name, value in PINNED.items() if name not in _OF_SESSIONS]
    return sql.SQL("; ").join(one.format(sql.Identifier(name), sql.Literal(value)) for name, value in settings)


@contextmanager
def closing(connection: Connection) -> Iterator[Connection]:
    """Close the connection at the end, without a word when the server is gone already."""
    try:
        yield connection
    finally:
        connection.close()


def is_passing(sqlstate: str | None) -> bool:
    """Say whether an error with this SQLSTATE passes by itself. None: the connection broke without a word."""
    if sqlstate == _PROTOCOL_VIOLATION or sqlstate in _LASTING_STATES:
        return False
    return sqlstate is None or sqlstate in _PASSING_STATES or sqlstate[:2] in _PASSING_CLASSES


def translate(error: psycopg.Error, *, side: str, table: str | None = None) -> ReplicatorError:
    """Return our error for one of PostgreSQL's, without its message: messages carry values of rows.

    Kept are SQLSTATE, table, column and constraint.
    """
    state, facts = error.sqlstate, error.diag
    if (limit := find_limit(error)) is not None:
        return _limit_error(limit, error, side, table)
    if state == _PROTOCOL_VIOLATION and facts.source_function is None:
        return ended_by_pooler(side, state)
    # Two sessions made an object of one name at a time: both looked, neither saw the other's yet.
    is_name_taken = state == "23505" and facts.schema_name == "pg_catalog"
    if is_name_taken or (is_passing(state) and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)):
        return _passing(error, side, table)
    where = ", ".join(
        f"{label} {value}"
        for label, value in (
            ("table", facts.table_name),
            ("column", facts.column_name),
            ("constraint", facts.constraint_name),
        )
        if value
    )
    why = f"SQLSTATE {state} ({type(error).__name__})" + (f", {where}" if where else "")
    if state == "42501":
        return _not_permitted(error, side, table, why)
    if state == "25006":
        return read_only_error(side, why)
    if side == "target" and state in _FUNCTION_STATES and "function" in (facts.context or ""):
        return DataRefused(
            f"a trigger of the target failed for {table}",
            why=why,
            sqlstate=state,
            table=table,
            id="target_trigger",
            hint="our sessions have an empty search_path: alter function ... set search_path = ...; "
            "or alter table ... disable trigger ...",
        )
    if state in ("42P01", "3F000"):
        return PreflightError(
            f"{table or 'a table'} is missing on the {side}",
            why=why,
            id="table_missing",
            sqlstate=state,
            table=table,
            hint="create it, or take it out of the configuration",
        )
    if side == "target" and state == "23514" and facts.table_name and not facts.constraint_name:
        return _no_partition(facts, table, why)
    if state == "55000" and table and side == "source":
        return not_populated(table, why) if facts.source_function == _UNPOPULATED else _not_ready(table, why)
    if state is not None and state[:2] in _REFUSED_CLASSES:
        return _refused(state, side, table, why)
    if side == "target" and state == "2BP01":
        return SchemaDrift(
            f"something depends on what has to change in the target of {table}",
            why=why,
            sqlstate=state,
            table=table,
            id="dependent_object",
            hint="drop the view or foreign key that depends on it, go on, and make it again",
        )
    return OperatorError(
        f"the {side} answered with an error" + (f" for {table}" if table else ""),
        why=why,
        sqlstate=state,
        table=table,
        id=f"{side}_error",
        hint="the server's log has the whole message at the time of this line",
    )


CONFLICT = "recovery_conflict"


def recovery_conflict(table: str | None, why: str) -> PassingError:
    """Return the error of a read that a standby cancelled. Nothing else cancels a read-only snapshot like that."""
    return PassingError(
        f"the source, a standby, cancelled a read of {table}" if table else "the source, a standby, cancelled a read",
        why=f"{why}: a recovery conflict; the read kept it from replaying what its primary had done",
        hint="on the standby: alter system set hot_standby_feedback = on (the primary then keeps what is read), or "
        "alter system set max_standby_streaming_delay = '15min'; then select pg_reload_conf()",
        id=CONFLICT,
        sqlstate="40001",
        table=table,
    )


def _not_ready(table: str, why: str) -> OperatorError:
    return OperatorError(
        f"the source could not read {table}",
        why=f"{why}: something that it uses is not in the state for that, as currval() in a new session",
        hint=f"read {table} in psql with the same role: the server's message names it; correct that",
        id="source_error",
        sqlstate="55000",
        table=table,
    )


def not_populated(table: str, why: str) -> PreflightError:
    """Return the error of a materialized view that cannot be read yet."""
    return PreflightError(
        f"{table} has never been filled, or reads a materialized view that was not",
        why=why,
        hint=f"refresh materialized view {table} -- on the source, or the one that it reads",
        id="not_populated",
        table=table,
    )


def _no_partition(facts: Diagnostic, table: str | None, why: str) -> DataRefused:
    name = facts.table_name or ""
    root = sql.Identifier(facts.schema_name or "public", name)
    default = sql.Identifier(facts.schema_name or "public", f"{name}_default")
    return DataRefused(
        f"no partition of the target takes a row of {table or name}",
        why=why,
        hint=sql.SQL("create table ... partition of {0} for values ...; or create table {1} partition of {0} default")
        .format(root, default)
        .as_string(),
        id="partition_missing",
        sqlstate="23514",
        table=table,
    )


def _refused(state: str, side: str, table: str | None, why: str) -> DataRefused:
    if side == "source":
        what = f"the source could not compute a row of {table}" if table else "the source could not compute a value"
        hint = _COMPUTE_HINT
        if state in _ENCODING_STATES:
            what, hint = f"a text of {table or 'a table'} has no place in UTF-8", _find_bytes(table)
    else:
        what = f"the target refused a row of {table}" if table else "the target refused a value"
        if state == "22P05":
            what = f"a name or a value of {table or 'a table'} has a character that the target's encoding lacks"
        if state == "22021":
            what = f"a text of {table or 'a table'} holds bytes that are not UTF-8"
        has_constraint = ", constraint " in why
        hint = _REFUSAL_HINTS.get(state, _CONSTRAINT_HINT if has_constraint else _TYPE_HINT)
        if state == "22021":
            hint = _find_bytes(table)
    return DataRefused(what, why=why, sqlstate=state, table=table, id=f"{side}_refused_row", hint=hint)


# Bytes that are none of an encoding; a character that the other encoding lacks.
_ENCODING_STATES = ("22021", "22P05")


def _find_bytes(table: str | None) -> str:
    """Return what to do about texts that are not UTF-8, with the statement that lists the rows that may hold them."""
    rows = f"from {table or '...'} as t where t::text ~ '[\\x80-\\xff]'"
    return (
        "correct the text in the source, where a SQL_ASCII database lets any bytes in "
        f"(select ctid, t.* {rows} lists the rows with bytes beyond ASCII), "
        "or leave the column or such rows out with exclude or where"
    )


_COMPUTE_HINT = (
    "an expression fails for a row's value: of where or mask, of the view, or of a cast to the target's type; "
    "try it in psql, or leave such rows out with where"
)
_CONSTRAINT_HINT = "look at the constraint named above; `replicator plan` shows types and columns"
_TYPE_HINT = "the target's column cannot hold a value of the source: `replicator check` tells of its type and encoding"

# What a function that runs inside our statement says: raise_exception, or a name that it does not find.
_FUNCTION_STATES = frozenset({"P0001", "42P01", "42703", "42704", "42883"})


def read_only_error(side: str, why: str) -> PreflightError:
    """Return the error of a server that takes no writes."""
    return PreflightError(
        f"the {side} takes no writes",
        why=f"{why}: it is a standby, or read-only",
        hint=f"point {side}.dsn at the primary; psql: select pg_is_in_recovery()",
        id="read_only",
        sqlstate="25006",
    )


_REFUSAL_HINTS = {
    "23505": "a row that only the target has holds the same unique value: change or delete that row in the target",
    "23P01": "a row that only the target has is in the exclusion constraint's way: change or delete that row there",
    "23503": "sync the referenced table as well; where tables refer to each other in a circle: "
    "grant set on parameter session_replication_role to the target's role",
    "23502": "drop the NOT NULL of the target's column (where it is in a primary key that is not the table's key here, "
    "drop that first), or give it a default",
    "23514": "a CHECK of the target does not hold for the source's rows: relax it; or no partition takes them: make it",
    "22001": "widen the target's column: its length is smaller than the source's",
    "22003": "widen the target's column: its range is smaller than the source's",
    "22P05": "create the target database with encoding 'UTF8' template template0; or rename, mask or exclude it",
    "21000": "the configured key is not unique in the source: choose another key",
}


def _passing(error: psycopg.Error, side: str, table: str | None) -> PassingError:
    state = error.sqlstate
    if side == "source" and state == "40001":
        return recovery_conflict(table, f"SQLSTATE {state}")
    what = {
        "40P01": f"a deadlock on the {side}",
        "40001": f"a serialization failure on the {side}",
        "23505": f"two sessions made an object of the same name on the {side}",
        "55P03": f"a lock on {table or 'a table'} was not to be had on the {side}",
        "53100": f"the disk of the {side} is full",
        "53200": f"the {side} is out of memory",
        "53300": f"the {side} has no connection to spare",
    }.get(state or "", f"the connection to the {side} was lost")
    return PassingError(
        what,
        why=f"SQLSTATE {state} ({type(error).__name__})" if state else type(error).__name__,
        hint=f"it is tried again by itself; if it lasts, look at the {side}'s server log",
        id="lock_timeout" if state == "55P03" else "connection_lost" if state is None else "passing",
        sqlstate=state,
        table=table,
    )


def _limit_error(limit: Limit, error: psycopg.Error, side: str, table: str | None) -> OperatorError:
    return OperatorError(
        f"the {side} met {limit.name}" + (f" for {table}" if table else ""),
        why=f"SQLSTATE {error.sqlstate} ({type(error).__name__})",
        hint=f"on the {side}: {limit.hint}",
        id="limit_reached",
        sqlstate=error.sqlstate,
        table=table,
    )


def _not_permitted(error: psycopg.Error, side: str, table: str | None, why: str) -> ReplicatorError:
    # row_security = off turns a hidden row into this error; the function's name is the same in every language.
    if error.diag.source_function == "check_enable_rls":
        return row_security_stop(table or "a table", error.sqlstate)
    return PreflightError(
        f"not permitted on the {side}" + (f": {table}" if table else ""),
        why=why,
        hint="grant what is missing: sql/source/roles.sql and sql/target/roles.sql have the whole list",
        id="grant_missing",
        sqlstate=error.sqlstate,
        table=table,
    )


def row_security_stop(table: str, sqlstate: str | None = None) -> SafetyStop:
    """Return the stop for a table whose policies would hide rows from the source role: they would look deleted."""
    return SafetyStop(
        f"row security hides rows of {table} from the source role",
        why="hidden rows would be taken for deleted ones",
        hint="a superuser of the source: alter role ... bypassrls, for the role of source.dsn; "
        "or replicate a view that the table's owner defines",
        id="row_security",
        sqlstate=sqlstate,
        table=table,
    )


@contextmanager
def translated(side: str, table: str | None = None) -> Iterator[None]:
    """Turn PostgreSQL's errors inside the block into ours."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, side=side, table=table) from error


@contextmanager
def reading_catalog() -> Iterator[None]:
    """Turn the internal error of a catalog query into a passing one.

    Functions like pg_get_indexdef look at the catalog of this very moment, the query at that of its snapshot: of what
    was dropped in between they say "cache lookup failed" (XX000).
    """
    try:
        yield
    except psycopg.errors.InternalError_ as error:
        raise PassingError(
            "the catalog changed while it was read",
            why=f"SQLSTATE {error.sqlstate} ({type(error).__name__}): something was dropped in that moment",
            hint="it is read again by itself; if it lasts, the server's log has the whole message",
            id="catalog_changed",
            sqlstate=error.sqlstate,
        ) from error
