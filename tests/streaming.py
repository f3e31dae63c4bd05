"""Run the listener in the ways that its tests need: to the end of what is there, or for as long as a block lasts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from tests.pair import Finished, Pair, Running
from tests.wait import wait_until


def catch_up(pair: Pair, *args: str, check: int | None = 0) -> str:
    """Run `replicator listen --until-caught-up ARGS` and return what it logged."""
    return pair.run("listen", "--until-caught-up", *args, check=check).stderr


@contextmanager
def listening(pair: Pair, *args: str, exit_code: int = 0) -> Iterator[Running]:
    """Keep a listener at its stream while the block lasts, then ask it to end."""
    with pair.popen("listen", *args) as running:
        wait_for_stream(running)
        yield running
        running.send(signal.SIGTERM)
        pair.guard(running.wait(60, check=exit_code))


def wait_for_stream(running: Running, *, times: int = 1) -> None:
    """Wait until a listener has started its stream so many times."""
    wait_until(
        lambda: running.stderr.count("stream_started") >= times or not running.running, 40, what="the stream starts"
    )
    assert running.running, running.wait()


def wait_until_equal(pair: Pair, *tables: str, timeout_s: float = 30.0) -> None:
    """Wait until the tables are equal; say what differs if they never are."""

    def are_equal() -> bool:
        try:
            for table in tables:
                pair.assert_equal(table)
        except (AssertionError, psycopg.Error):
            return False
        return True

    try:
        wait_until(are_equal, timeout_s, what="the tables are equal", interval_s=0.1)
    except AssertionError:
        for table in tables:
            pair.assert_equal(table)


def read_slot(pair: Pair) -> dict[str, Any]:
    """Return what the source says of the pair's slot: active, wal_status, confirmed, and how much WAL it holds."""
    query = (
        "select active, wal_status, confirmed_flush_lsn::text, pg_current_wal_lsn() - restart_lsn,"
        " pg_current_wal_lsn() - confirmed_flush_lsn from pg_replication_slots where slot_name = %s"
    )
    row = pair.source.execute(query, [pair.slot]).fetchone()
    assert row is not None, "the slot is gone"
    return dict(zip(("active", "wal_status", "confirmed", "held_bytes", "lag_bytes"), row, strict=True))


def wait_for_free_slot(pair: Pair) -> None:
    """Wait until no walsender serves the slot."""
    wait_until(lambda: not read_slot(pair)["active"], what="the slot is free")


def expect_refusal(finished: Finished, *words: str) -> None:
    """Prove that a run said each of `words` and showed no traceback."""
    for word in words:
        assert word in finished.stderr, f"{word!r} is not in the message\n{finished}"
    assert "Traceback" not in finished.stderr, finished


def set_synchronous(pair: Pair, names: str) -> None:
    """Let commits of the source wait for a standby of this name; for none, end the wait."""
    pair.source.execute(sql.SQL("alter system set synchronous_standby_names = {}").format(names))
    pair.source.execute("select pg_reload_conf()")
    wait_until(lambda: waits_for_standby(pair) == bool(names), what="the setting is in force")


def waits_for_standby(pair: Pair) -> bool:
    """Say whether a commit of the source waits for a standby: the checkpointer tells sessions, not the setting."""
    with pair.source_server.connect(pair.source_db) as session:
        pid = session.info.backend_pid
        commit = threading.Thread(
            target=session.execute, args=["select pg_logical_emit_message(true, 'test', '')"], daemon=True
        )
        commit.start()

        def is_waiting() -> bool:
            query = "select from pg_stat_activity where pid = %s and wait_event = 'SyncRep'"
            return pair.source.execute(query, [pid]).rowcount == 1

        wait_until(lambda: is_waiting() or not commit.is_alive(), what="the commit waits or has ended")
        waits = commit.is_alive()
        pair.source.execute("select pg_cancel_backend(%s)", [pid])
        commit.join()
        return waits
