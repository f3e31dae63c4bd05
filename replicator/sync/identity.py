"""Whether source and target are one database, which no number tells: a clone of a server has all of its numbers."""

from __future__ import annotations

import secrets
import time
from typing import Any

from replicator.capture.history import knows, make_marker, shows_marker
from replicator.capture.source_state import read_timeline
from replicator.db import Connection, translated
from replicator.errors import PassingError
from replicator.statement import statement

REPLAY_WAIT_S = 10.0
_POLL_S = 0.05


def is_same_database(source: Connection, target: Connection) -> bool:
    """Say whether what is written to the target shows in the source. Both outside of any transaction.

    Equal numbers are followed up live: by a lock of one session that the other sees, and where the source is a standby
    by transactions of the target that arrive there. Raises PassingError while a standby is too far behind to tell.
    """
    with translated("source"):
        here = _read_database(source)
    with translated("target"):
        there = _read_database(target)
    if any(here[name] != there[name] for name in ("oid", "system_identifier")):
        return False
    if _shares_locks(source, target):
        return True
    return here["is_standby"] and not there["is_standby"] and _follows(source, target)


def _read_database(connection: Connection) -> dict[str, Any]:
    row = connection.execute(statement("source.database"), {}).fetchone()
    assert row is not None
    return row


def _shares_locks(source: Connection, target: Connection) -> bool:
    token = {"token": secrets.randbits(62)}
    with translated("source"):
        source.execute(statement("source.show_token"), token)
    try:
        with translated("target"):
            row = target.execute(statement("source.sees_token"), token).fetchone()
    finally:
        with translated("source"):
            source.execute(statement("source.hide_token"), token)
    return bool(row and row["is_seen"])


def _follows(standby: Connection, primary: Connection) -> bool:
    """Say whether a standby receives what this primary writes."""
    with translated("source"):
        theirs = read_timeline(standby)
    with translated("target"):
        if read_timeline(primary) != theirs:
            return False
        marker = make_marker(primary)
    deadline = time.monotonic() + REPLAY_WAIT_S
    with translated("source"):
        while not knows(standby, marker):
            if time.monotonic() >= deadline:
                raise PassingError(
                    "the source may be a standby of the target, and lags",
                    why=f"it shows no transaction of the last {REPLAY_WAIT_S:g} s",
                    hint="it is tried again by itself; point source.dsn at another server than the target's",
                    id="standby_lags",
                )
            time.sleep(_POLL_S)
        return shows_marker(standby, marker)
