"""Follow one table night after night under one strategy.

case = Case(pair, "watermark")     writes the configuration; the table is public.t, stamped in updated_at
case.begin()                       grants, loads it all, and goes on until the watermark stands
case.catch_up(missed=0)            one sync: equal, incremental, and what the pull itself missed is counted
case.stop(8, "source_empty")       one sync that must stop: exit code, id, record, target untouched
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg
import pytest
from psycopg.rows import TupleRow, dict_row

from tests.pair import Columns, Finished, Pair, Running
from tests.servers import Rows, Server
from tests.wait import wait_until

XMIN, WATERMARK = "xmin", "watermark"
BOTH = pytest.mark.parametrize("strategy", [XMIN, WATERMARK])

TABLE = """
create table t (id int primary key, note text, updated_at timestamptz default now());
insert into t select g, 'row ' || g, now() - interval '1 day' from generate_series(1, 20) g;
"""

Batch = dict[str, Any]
Connection = psycopg.Connection[TupleRow]


class Case:
    """One table and its strategy; rules are keys of its [[tables]] entry, None takes one out.

    The slack is zero unless a test says otherwise: with a minute of it, no test of a few seconds could lose a row.
    """

    def __init__(self, pair: Pair, strategy: str, table: str = "public.t", **rules: Any) -> None:
        self.pair, self.table = pair, table
        self.rules = {"name": table, "strategy": strategy, "watermark": "updated_at", "watermark_slack": "0s"} | rules
        self.configure()

    @property
    def strategy(self) -> str:
        """Return the strategy that the configuration asks for."""
        return str(self.rules["strategy"])

    def configure(self, *, sections: dict[str, Any] | None = None, **rules: Any) -> Self:
        """Write the configuration anew with some rules changed."""
        self.rules |= rules
        kept = {key: value for key, value in self.rules.items() if value is not None}
        self.pair.write_config(tables=[kept], **(sections or {}))
        return self

    def begin(self) -> None:
        """Let the reader read, and sync until there is a mark: a stranger's open transaction may put it off."""
        self.pair.grant()
        wait_until(lambda: self.sync() and self.is_marked())

    def is_marked(self) -> bool:
        """Say whether the next read can be incremental."""
        state = self.state()
        return state["strategy"] != WATERMARK or state["watermark_mark"] is not None

    def sync(self, *args: str) -> Batch:
        """Run a sync that lands, and return its row of `etl_control`."""
        return self._batch(self.pair.json("sync", *args))

    def start(self) -> Running:
        """Start a sync that the test is going to hold up."""
        return self.pair.popen("sync", "--json")

    def finish(self, running: Running, *, check: int = 0) -> Batch:
        """Wait for a sync that was started, and return its row of `etl_control`."""
        finished: Finished = self.pair.guard(running.wait(check=check))
        return self._batch(finished.json())

    def _batch(self, document: Any) -> Batch:
        batch: Batch = {row["table_name"]: row for row in document["tables"]}[self.table]
        return batch

    def catch_up(self, *, missed: int = 0, load: str = "incremental", columns: Columns | None = None) -> Batch:
        """Sync, and prove that nothing was lost; missed: what only the audit of `watermark` could find."""
        batch = self.sync()
        self.pair.assert_equal(self.table, columns=columns)
        expected = {"load_type": load, "rows_missed_before": missed if batch["strategy"] == WATERMARK else 0}
        assert {name: batch[name] for name in expected} == expected
        return batch

    def settle(self) -> None:
        """Sync until a run reads no row at all: the position follows the source, so tests of it mean something."""
        wait_until(lambda: self.sync()["rows_extracted"] == 0)

    def stop(self, exit_code: int, error: str, *args: str) -> Batch:
        """Run a sync that must stop, change nothing, and leave a record; return its row of `etl_control`."""
        before, state = self.image(), self.state()
        document = self.pair.json("sync", *args, check=exit_code)
        found = document["errors"][self.table]
        assert (found["id"], found["table"]) == (error, self.table), found
        assert found["message"], found
        assert found["hint"], found
        assert self.image() == before, "the target was changed"
        assert self.state() | {"epoch": 0} == state | {"epoch": 0}, "the position moved"
        batch = self.pair.control_rows(self.table)[-1]
        recorded = (batch["status"], batch["error_code"], batch["error_message"])
        assert recorded == ("failed", found["sqlstate"] or error, found["message"])
        return batch

    def state(self) -> dict[str, Any]:
        """Return what the control schema knows of the table."""
        with self.pair.target.cursor(row_factory=dict_row) as cursor:
            query = "select * from replicator.table_state where table_name = %s"
            return cursor.execute(query, [self.table]).fetchone() or {}

    def image(self) -> Rows:
        """Return the target's rows with their places and writers: a row that was rewritten shows."""
        query = f"select ctid::text, xmin::text, t::text from {self.table} t order by tableoid, ctid"
        return self.pair.target.execute(query).fetchall()


@contextmanager
def session(server: Server, dbname: str) -> Iterator[Connection]:
    """Yield a connection outside autocommit, so that its first statement opens a transaction."""
    connection = server.connect(dbname)
    try:
        connection.autocommit = False
        yield connection
    finally:
        connection.close()


@contextmanager
def source_session(pair: Pair) -> Iterator[Connection]:
    """Yield a session of the application's own on the source."""
    with session(pair.source_server, pair.source_db) as connection:
        yield connection


@contextmanager
def hold_target(pair: Pair, table: str = "public.t") -> Iterator[Connection]:
    """Lock a table of the target: a sync then stands still between its snapshot and its first read."""
    with session(pair.target_server, pair.target_db) as connection:
        connection.execute(f"lock table {table} in access exclusive mode")
        yield connection


def wait_for_waiter(connection: Connection, table: str = "public.t") -> int:
    """Wait until somebody waits for a lock on the table, and return the process id."""
    query = "select pid from pg_locks where not granted and relation = %s::regclass"

    def find() -> Rows:
        return connection.execute(query, [table]).fetchall()

    return int(wait_until(find, what=f"somebody waits for {table}")[0][0])
