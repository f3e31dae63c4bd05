"""What a snapshot of the source does not see was seen to be open just before it, or began after that."""

from __future__ import annotations

import itertools
from contextlib import closing
from typing import Any

import psycopg
import pytest

from replicator.capture.pull import Access, Snapshot, take_snapshot
from replicator.db import Connection
from tests.pair import Pair

STATEMENTS = 7
"""How many statements `take_snapshot` sends when there is no table to lock."""

BEGIN = """
begin; insert into t (vxid) select virtualtransaction from pg_locks
    where locktype = 'virtualxid' and pid = pg_backend_pid()"""
PLAIN = (BEGIN, "commit")
PREPARED = (BEGIN, "prepare transaction '{gid}'", "commit prepared '{gid}'")


def take_snapshot_amid(
    pair: Pair, access: Access, watcher: Connection, due: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> Snapshot:
    """Take a snapshot, and let the application act ahead of some of its statements; what was done leaves `due`."""
    execute = psycopg.Connection.execute
    sent = itertools.count()

    def act_first(connection: psycopg.Connection[Any], *args: Any, **kwargs: Any) -> psycopg.Cursor[Any]:
        if connection is not pair.source and (action := due.pop(next(sent), None)):
            execute(pair.source, action.encode())
        return execute(connection, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", act_first)
        snapshot = take_snapshot(access, watcher, [])
    assert next(sent) == STATEMENTS
    return snapshot


@pytest.mark.hazard("W1", "W2", "W15")
@pytest.mark.parametrize("actions", [PLAIN, PREPARED], ids=["plain", "prepared"])
def test_what_a_snapshot_does_not_see_was_observed_or_began_later(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, actions: tuple[str, ...]
) -> None:
    """Whichever of the tool's statements a transaction begins, prepares and commits ahead of."""
    pair.source.execute("create table t (vxid text, at timestamptz default now())")
    pair.grant()
    access = Access(pair.source_dsn, 10.0, 10.0)
    unseen = 0
    with closing(access.open()) as watcher:
        for moments in itertools.combinations(range(STATEMENTS + 1), len(actions)):
            pair.source.execute("delete from t")
            named = [action.format(gid=pair.source_db) for action in actions]
            due = dict(zip(moments, named, strict=True))
            with closing(take_snapshot_amid(pair, access, watcher, due, monkeypatch)) as snapshot:
                seen = snapshot.connection.execute("select from public.t").rowcount
            for action in due.values():
                pair.source.execute(action)
            ((vxid, began_at),) = pair.source.execute("select vxid, at from t").fetchall()
            observed = snapshot.observation
            is_known = vxid in observed.transactions or observed.prepared > 0 or began_at >= observed.observed_at
            assert seen or is_known, f"lost: a transaction with its acts ahead of the statements {moments}"
            unseen += not seen
    assert unseen
