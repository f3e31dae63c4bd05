"""Catching up with a backlog, and latency from commit to sight, beside a subscription in the same run."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import quantiles
from typing import Any

import psycopg
from psycopg import sql

from tests.benchmarks.arena import Arena
from tests.benchmarks.backlog import BACKLOGS, Backlog, pile_up
from tests.benchmarks.follower import LIVE, PUBLICATION, Drain, Follower, Listening, Native
from tests.benchmarks.workload import Result
from tests.wait import wait_until

_SECONDS = 15.0
_WARM_UP_S = 2.0
_LOOK_S = 0.0005
_TURN_IDS = 10_000_000
RATES = ((200, 1), (200, 25))
"""Transactions a second, and rows in each."""


@dataclass(frozen=True)
class Latency:
    """From the answer to COMMIT on the source until the target shows the rows, in milliseconds."""

    workload: str
    contender: str
    transactions: int
    rows_per_s: float
    median_ms: float
    p99_ms: float
    most_ms: float


def measure_stream(arena: Arena) -> tuple[list[Result], list[Latency]]:
    """Measure each backlog and each rate, everybody in turn."""
    arena.source.execute(f"create table {LIVE} (id bigint primary key, note text)")
    arena.pair.grant()
    arena.source.execute(sql.SQL("alter role {} replication").format(sql.Identifier(arena.pair.reader)))
    arena.source.execute(
        sql.SQL("create publication {} for tables in schema public with (publish_via_partition_root)").format(
            sql.Identifier(PUBLICATION)
        )
    )
    native, listening = Native(arena), Listening(arena)
    timed: tuple[Native | Listening, ...] = (native, listening)
    followers: Sequence[Follower] = (Drain(arena), native, listening)
    for follower in followers:
        follower.prepare()
    try:
        results = [result for backlog in BACKLOGS for result in _catch_up(arena, followers, backlog)]
        latencies = [
            _time_commits(arena, follower, rate, rows, turn * _TURN_IDS)
            for turn, ((rate, rows), follower) in enumerate(product(RATES, timed), 1)
        ]
    finally:
        native.close()
    return results, latencies


def _catch_up(arena: Arena, followers: Sequence[Follower], backlog: Backlog) -> list[Result]:
    rows = max(backlog.per_transaction, backlog.rows * arena.rows // 1_000_000)
    if backlog.per_transaction > arena.rows // 2:
        rows = arena.rows // 2
    pile_up(arena, backlog, rows)
    # The last commit, by which a subscription's end is known.
    arena.source.execute(f"insert into {LIVE} select coalesce(min(id), 0) - 1, 'last' from {LIVE}")
    results = []
    for follower in followers:
        arena.settle(*(f.database for f in followers if isinstance(f, Native | Listening)))
        result = Result(f"catch-up, {backlog.name}", follower.name, rows=rows)
        result.runs.append(follower.catch_up())
        follower.check()
        results.append(result)
    return results


def _time_commits(arena: Arena, follower: Native | Listening, rate: int, rows: int, after: int) -> Latency:
    """Write at a steady rate, and note when the answer to each COMMIT came and when the target showed its rows.

    after: the highest id that there is; the row with this one says that the follower has come so far.
    """
    arena.settle(follower.database)
    arena.source.execute(f"insert into {LIVE} values (%s, 'begun')", [after])
    with follower.following(), arena.pair.target_server.connect(follower.database) as connection:
        sight = Sight(connection)
        wait_until(lambda: sight.last == after, 60, what="the follower has caught up")
        committed: list[float] = []
        begun = time.perf_counter()
        while (passed := time.perf_counter() - begun) < _WARM_UP_S + _SECONDS:
            ahead_s = len(committed) / rate - passed
            if ahead_s > 0:
                time.sleep(ahead_s)
            first = after + len(committed) * rows
            arena.source.execute(
                f"insert into {LIVE} select n, 'note ' || n from generate_series(%s::bigint, %s) n",
                [first + 1, first + rows],
            )
            committed.append(time.perf_counter())
        elapsed_s = time.perf_counter() - begun
        wait_until(lambda: sight.last >= after + len(committed) * rows, 60, what="every row has come")
        sight.finish()
    late_ms = sorted(
        (sight.seen(after + n * rows) - at) * 1000 for n, at in enumerate(committed, 1) if at > begun + _WARM_UP_S
    )
    marks = quantiles(late_ms, n=100)
    return Latency(
        f"latency, {rate * rows} rows/s in {rate} transactions/s", follower.name, len(late_ms),
        round(len(committed) * rows / elapsed_s), round(marks[49], 2), round(marks[98], 2), round(late_ms[-1], 2),
    )  # fmt: skip


class Sight(threading.Thread):
    """Asks the target again and again how far it shows the rows; ids grow."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(name="sight", daemon=True)
        self._connection = connection
        self._ended = threading.Event()
        self._ids: list[int] = []
        self._times: list[float] = []
        self.start()

    @property
    def last(self) -> int:
        """Return the highest id that was seen."""
        return self._ids[-1] if self._ids else 0

    def run(self) -> None:
        """Ask until `finish`."""
        while not self._ended.is_set():
            ((last,),) = self._connection.execute(f"select coalesce(max(id), 0) from {LIVE}").fetchall()
            if last > self.last:
                self._times.append(time.perf_counter())
                self._ids.append(last)
            time.sleep(_LOOK_S)

    def seen(self, id: int) -> float:
        """Return when a row was first seen."""
        return self._times[bisect_left(self._ids, id)]

    def finish(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join()
