"""kill -9 at any moment of a sync: readers of the target never see a half of it, and the next run puts it right."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psycopg
import pytest
from psycopg.rows import TupleRow

from tests.chaos.scale import SCALE
from tests.pair import Pair, Running
from tests.wait import wait_until

KILLS = round(50 * SCALE)
STARTS = {"the process": 15, "the running rows": 20, "the locks": 65}
"""What a kill's random delay is counted from, and how often in a hundred: most kills shall fall into the read."""

VERSIONS = ("version_a", "version_b")
ACCOUNTS = ("account_a", "account_b")
TABLES = VERSIONS + ACCOUNTS
VERSION_ROWS, ACCOUNT_ROWS = 6_000, 60_000

LOCKED = """
    select count(*) from pg_locks l join pg_stat_activity a using (pid)
    where a.usename = %s and l.relation = any (%s::regclass[])"""
LOADING = "select count(*) from pg_stat_activity where usename = %s and backend_xid is not null"
SESSIONS = "select count(*) from pg_stat_activity where usename = %s"


@pytest.mark.hazard("F1")
def test_a_killed_sync_never_shows_a_half_of_itself(pair: Pair, record_property: Callable[[str, object], None]) -> None:
    seed = random.SystemRandom().getrandbits(32)
    record_property("measured", f"kill seed: {seed}")
    killer = Killer(pair, random.Random(seed))
    create_tables(pair)
    pair.run("sync", "--jobs", "2")
    killer.calibrate()
    with Audience(pair) as audience:
        while killer.kills < KILLS:
            killer.kill_one()
        finished = pair.run("sync", "--jobs", "2")
    assert not audience.complaints, (seed, audience.complaints[:5])
    for table in TABLES:
        pair.assert_equal(table)
    assert not pair.control_rows(status="running"), finished
    record_property(
        "measured",
        f"kill -9: {killer.kills} syncs killed, {killer.reading} of them between the start of the read and COMMIT"
        f" ({killer.loading} with a transaction open on the target), {killer.partly} with some tables landed;"
        f" {audience.looks} looks at the target in the meantime",
    )
    assert killer.reading >= KILLS / 2, killer
    assert audience.looks >= KILLS
    statuses = Counter(row["error_code"] for row in pair.control_rows(status="failed"))
    assert set(statuses) == {"interrupted"}, statuses


def create_tables(pair: Pair) -> None:
    for table in VERSIONS:
        pair.source.execute(
            f"create table {table} (id int primary key, version int not null, note text);"
            f"insert into {table} select g, 0, repeat('x', 100) from generate_series(1, {VERSION_ROWS}) g"
        )
    for table in ACCOUNTS:
        pair.source.execute(
            f"create table {table} (id bigint primary key, balance int not null);"
            f"insert into {table} select g, 100 from generate_series(0, {ACCOUNT_ROWS - 1}) g"
        )
    pair.grant()
    pair.write_config(tables=[f"public.{table}" for table in TABLES])


def change_tables(connection: psycopg.Connection[TupleRow]) -> None:
    """Give every row of the versions the next version, move money between neighbours, and re-key some accounts."""
    statements = [f"update {table} set version = version + 1" for table in VERSIONS]
    for table in ACCOUNTS:
        pick = f"(select (random() * {ACCOUNT_ROWS // 2})::bigint from generate_series(1, 400))"
        statements += [
            f"update {table} set balance = balance + case id % 2 when 0 then 7 else -7 end where id / 2 in {pick}",
            f"update {table} set id = id + 2 * {ACCOUNT_ROWS} where id / 2 in (select min(id) / 2 from {table})",
        ]
    connection.execute("begin; " + "; ".join(statements) + "; commit")


@dataclass
class Killer:
    """Runs syncs and kills them; counts what each kill hit."""

    pair: Pair
    chance: random.Random
    kills: int = 0
    reading: int = 0
    loading: int = 0
    partly: int = 0
    known: set[object] = field(default_factory=set)
    left_s: dict[str, float] = field(default_factory=dict)

    def calibrate(self) -> None:
        """Learn how long a sync still takes from each of the starts."""
        change_tables(self.pair.source)
        self._remember_runs()
        began: dict[str, float] = {}
        with self.pair.popen("sync", "--jobs", "2") as running:
            for start in STARTS:
                self._await(start, running)
                began[start] = time.monotonic()
            running.wait(check=0)
        self.left_s = {start: time.monotonic() - since for start, since in began.items()}

    def _remember_runs(self) -> None:
        query = "select distinct execution_id from replicator.etl_control"
        self.known = {identifier for (identifier,) in self.pair.target.execute(query).fetchall()}

    def _await(self, start: str, running: Running) -> None:
        """Wait until the run has got so far, or has ended."""
        conditions = {
            "the process": lambda: True,
            "the running rows": lambda: bool(self._new_statuses()),
            "the locks": self._is_reading,
        }
        wait_until(lambda: conditions[start]() or not running.running, what=start)

    def _new_statuses(self) -> list[str]:
        """Return the statuses of the batches of runs not known before."""
        query = "select status from replicator.etl_control where execution_id <> all (%s)"
        return [status for (status,) in self.pair.target.execute(query, [list(self.known)]).fetchall()]

    def kill_one(self) -> None:
        """Change the source, start a sync and kill it, unless it is faster."""
        change_tables(self.pair.source)
        self._remember_runs()
        (start,) = self.chance.choices(list(STARTS), list(STARTS.values()))
        with self.pair.popen("sync", "--jobs", "2") as running:
            self._await(start, running)
            began = time.monotonic()
            wait_or_end(running, self.chance.uniform(0.0, self.left_s[start]))
            was_reading, was_loading = self._is_reading(), self._is_loading()
            running.send(signal.SIGKILL)
            exit_code = running.wait().exit_code
        if exit_code == 0:
            self.left_s[start] = min(self.left_s[start], time.monotonic() - began)
            return
        assert exit_code == -signal.SIGKILL
        wait_until(self._is_gone, what="the servers noticed that the killed sync is gone")
        statuses = Counter(self._new_statuses())
        self.kills += 1
        self.reading += was_reading and statuses["running"] > 0
        self.loading += was_loading and statuses["running"] > 0
        self.partly += statuses["running"] > 0 and statuses["success"] > 0

    def _is_reading(self) -> bool:
        """Say whether the tables are locked for reading, which comes before the snapshot."""
        return count(self.pair.source, LOCKED, self.pair.reader, list(TABLES)) > 0

    def _is_loading(self) -> bool:
        return count(self.pair.target, LOADING, self.pair.writer) > 0

    def _is_gone(self) -> bool:
        source, target = self.pair.source, self.pair.target
        return count(source, SESSIONS, self.pair.reader) == count(target, SESSIONS, self.pair.writer) == 0


def wait_or_end(running: Running, seconds: float) -> None:
    """Wait so long, or until the command has ended."""
    deadline = time.monotonic() + seconds
    while running.running and time.monotonic() < deadline:
        time.sleep(0.005)


def count(connection: psycopg.Connection[TupleRow], query: str, *parameters: object) -> int:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return int(row[0])


class Audience(threading.Thread):
    """Somebody who reads the target all the time and writes down whatever cannot be."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(daemon=True)
        self.looks = 0
        self.complaints: list[str] = []
        self._versions = dict.fromkeys(VERSIONS, 0)
        self._stopped = threading.Event()
        self._connection = pair.target_server.connect(pair.target_db)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self.join()
        self._connection.close()

    def run(self) -> None:
        while not self._stopped.wait(0.2):
            for table in VERSIONS:
                self._look_at_versions(table)
            for table in ACCOUNTS:
                self._look_at_accounts(table)
            self.looks += 1

    def _look_at_versions(self, table: str) -> None:
        query = f"select count(*), min(version), max(version) from {table}"
        ((rows, least, most),) = self._connection.execute(query).fetchall()
        if rows != VERSION_ROWS or least != most or least < self._versions[table]:
            self.complaints.append(f"{table}: {rows} rows of versions {least} to {most} after {self._versions[table]}")
        self._versions[table] = most

    def _look_at_accounts(self, table: str) -> None:
        ((rows, total),) = self._connection.execute(f"select count(*), sum(balance) from {table}").fetchall()
        if (rows, total) != (ACCOUNT_ROWS, ACCOUNT_ROWS * 100):
            self.complaints.append(f"{table}: {rows} rows with {total} in all")
