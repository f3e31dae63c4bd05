"""What a connection tells of its server: version, role, encryption, pooler, standby."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from psycopg import sql

from replicator.apply.target import take_replica_role
from replicator.db import Connection
from replicator.digest import Digest
from replicator.errors import ReplicatorError
from replicator.pooler import is_pooled
from replicator.preflight.finding import Finding, find_error
from replicator.statement import statement

Side = Literal["source", "target"]
OLDEST_TESTED, NEWEST_TESTED = 15, 18
_VERIFIED = "verify-full"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself. version_number: as in 150004."""

    version_number: int
    version: str
    role: str
    database: str
    encoding: str
    is_standby: bool

    @property
    def major(self) -> int:
        """Return the major version."""
        return self.version_number // 10000


def read_server_facts(connection: Connection) -> ServerFacts:
    """Ask the server about itself."""
    row = connection.execute(statement("preflight.server_facts"), {}).fetchone()
    assert row is not None
    return ServerFacts(**row)


def find_connect_error(error: ReplicatorError, side: Side) -> Finding:
    """Return the finding for a connection that could not be opened, or whose session cannot be pinned."""
    return find_error(error, id=f"{side}_reachable" if error.id == "no_connection" else None)


def check_server(connection: Connection, facts: ServerFacts, side: Side) -> Iterator[Finding]:
    """Find what the server and the way to it tell."""
    yield check_version(facts, side)
    info = connection.info
    yield from check_encryption(side, info.host, info.hostaddr, read_sslmode(connection))
    yield from _find_pooler(connection, side)
    if facts.is_standby and side == "source":
        yield Finding(
            "source_standby",
            "ok",
            "the source is a standby: open transactions cannot be observed there, so no table is read by watermark",
        )
    if facts.is_standby and side == "target":
        yield Finding(
            "target_standby",
            "error",
            "the target is a standby: nothing can be written to it",
            "connect to its primary; with several hosts in target.dsn add target_session_attrs=read-write",
        )


def check_version(facts: ServerFacts, side: Side) -> Finding:
    """Say which server it is, and whether its version is among those that are tested."""
    name = f"PostgreSQL {facts.version}, database {facts.database}, role {facts.role}"
    if facts.major < OLDEST_TESTED:
        untested, hint = f"older than {OLDEST_TESTED}", f"upgrade the {side}, or try a table first and compare it"
    elif facts.major > NEWEST_TESTED:
        untested, hint = f"newer than {NEWEST_TESTED}", "look for a newer release of replicator"
    else:
        return Finding(f"{side}_reachable", "ok", name)
    return Finding(f"{side}_reachable", "warn", f"{name}; a version {untested} is not tested", hint)


def read_sslmode(connection: Connection) -> str:
    """Return the sslmode in use, with defaults, service file and environment filled in."""
    # PQconninfo has the password as well: nothing but this one value may leave here.
    values = {option.keyword: option.val for option in connection.pgconn.info if option.keyword == b"sslmode"}
    return (values.get(b"sslmode") or b"prefer").decode()


def check_encryption(side: Side, host: str, address: str, sslmode: str) -> Iterator[Finding]:
    """Find a way over the network on which the server's name is not proved."""
    if sslmode == _VERIFIED or is_local(host, address):
        return
    yield Finding(
        "ssl_unverified",
        "warn",
        f"the connection to {host} ({side}) uses sslmode={sslmode}: another machine could answer in its place",
        f"add sslmode={_VERIFIED} to {side}.dsn, with sslrootcert=FILE if the authority is your own",
    )


def is_local(host: str, address: str) -> bool:
    """Say whether a connection stays on this machine: by socket (a path, or @ for an abstract one) or loopback."""
    if host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _find_pooler(connection: Connection, side: Side) -> Iterator[Finding]:
    """Find a pooler; one that does not leave a session its server was refused with the connection."""
    if is_pooled(connection):
        yield Finding(
            "pooler",
            "warn",
            f"the {side} is reached through a pooler, which can end long reads and idle sessions",
            f"point {side}.dsn at PostgreSQL itself, not at the pooler",
        )


def check_replica_role(target: Connection, facts: ServerFacts) -> tuple[bool, Finding]:
    """Try to switch triggers and foreign keys off in the session; return whether it worked, and the finding."""
    if take_replica_role(target):
        return True, Finding(
            "replica_role", "ok", "triggers and foreign keys of the target rest while rows are written"
        )
    return False, Finding(
        "replica_role",
        "warn",
        f"role {facts.role} may not set session_replication_role: triggers of the target fire, tables tied by foreign "
        "keys are written together, and rows that take over a unique value of one that others refer to are refused",
        grant_replica_role(facts),
    )


def grant_replica_role(facts: ServerFacts) -> str:
    """Return the SQL that lets the target's role set session_replication_role."""
    name = sql.Identifier(facts.role)
    if facts.major < 15:
        return sql.SQL("alter role {} superuser -- before PostgreSQL 15 nobody else may").format(name).as_string()
    return sql.SQL("grant set on parameter session_replication_role to {}").format(name).as_string()


_NO_ENCODING = "SQL_ASCII"


def check_encodings(source: ServerFacts, target: ServerFacts, digest: Digest) -> Iterator[Finding]:
    """Find encodings that cost time or characters."""
    if target.encoding not in ("UTF8", source.encoding):
        yield Finding(
            "encoding",
            "warn",
            f"the source is {source.encoding}, the target {target.encoding}: a character that it lacks is refused",
            "create the target database with encoding 'UTF8' template template0",
        )
    elif source.encoding == _NO_ENCODING:
        yield Finding(
            "encoding",
            "warn",
            "the source is SQL_ASCII, which lets any bytes in: a row with a text that is not UTF-8 cannot be copied",
            'on_row_error = "quarantine" lets `listen` go on without such a row; a sync stops at its table',
        )
    elif digest is Digest.PORTABLE:
        yield Finding(
            "encoding",
            "ok",
            f"the source is {source.encoding}, the target {target.encoding}: rows are compared by portable hashes, "
            "which are slower",
        )
