"""Hold a sync at a moment that a test wants to strike at, and say when it has got there.

held_merge and wait_for_merge: its next write waits. held_read and wait_for_lock: its LOCK TABLE does. SLOWLY,
slowed and wait_for_copy: it reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.rows import TupleRow

from replicator.config.settings import Settings, load_settings
from tests.pair import Pair
from tests.wait import wait_until

PACE = 7
"""The advisory lock that `slowed` holds in the source database."""

SLOWLY = f"case when pg_try_advisory_xact_lock_shared({PACE}) then '' else pg_sleep(0.015)::text end = ''"
"""A `where` that is true for every row, and takes its time over it within `slowed`."""

_WAITING = "select 1 from pg_stat_activity where usename = %s and wait_event_type = 'Lock' and wait_event = 'relation'"
_COPYING = "select 1 from pg_stat_activity where usename = %s and state = 'active' and query ilike 'copy%%'"
_SESSIONS = "select 1 from pg_stat_activity where usename = %s"


@contextmanager
def held_merge(pair: Pair, table: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """Let nobody write to a table of the target, while everybody may read it."""
    with pair.target_server.connect(pair.target_db) as holder, holder.transaction():
        holder.execute(f"lock table {table} in share mode")
        yield holder


@contextmanager
def held_read(pair: Pair, table: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """Let nobody touch a table of the source."""
    with pair.source_server.connect(pair.source_db) as holder, holder.transaction():
        holder.execute(f"lock table {table} in access exclusive mode")
        yield holder


@contextmanager
def slowed(pair: Pair) -> Iterator[None]:
    """Let reads with SLOWLY take 15 ms a row; what is left of them when the block ends takes none."""
    with pair.source_server.connect(pair.source_db) as holder:
        holder.execute("select pg_advisory_lock(%s)", [PACE])
        yield


def wait_for_merge(pair: Pair) -> None:
    """Wait until a session of the tool waits for a table of the target."""
    wait_until(lambda: pair.target.execute(_WAITING, [pair.writer]).rowcount, what="the sync waits for the target")


def wait_for_lock(pair: Pair) -> None:
    """Wait until a session of the tool waits for a table of the source."""
    wait_until(lambda: pair.source.execute(_WAITING, [pair.reader]).rowcount, what="the sync waits for the source")


def wait_for_copy(pair: Pair, *, tables: int = 1) -> None:
    """Wait until so many sessions of the tool copy from the source."""
    wait_until(lambda: pair.source.execute(_COPYING, [pair.reader]).rowcount >= tables, what="the sync copies")


def wait_for_silence(pair: Pair) -> None:
    """Wait until no session of the tool is left on either server."""
    wait_until(lambda: not pair.source.execute(_SESSIONS, [pair.reader]).rowcount, what="the source is left alone")
    wait_until(lambda: not pair.target.execute(_SESSIONS, [pair.writer]).rowcount, what="the target is left alone")


def terminate_sessions(connection: psycopg.Connection[TupleRow], role: str, which: str = "true") -> int:
    """End the sessions of a role, all or those for which `which` is true, and return how many that were."""
    query = "select pg_terminate_backend(pid, 5000) from pg_stat_activity a where usename = %s and " + which
    return connection.execute(query.encode(), [role]).rowcount


def read_settings(pair: Pair) -> Settings:
    """Return the settings of the pair's configuration file, for a run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("REPLICATOR_")]:
            patch.delenv(name)  # the tests' own, which the tool would take for misspelt keys
        return load_settings(pair.dir / "replicator.toml")
