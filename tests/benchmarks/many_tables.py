"""A listener over thousands of small tables: how it starts, and what the first transaction over all of them costs."""

from __future__ import annotations

import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from tests.benchmarks.arena import Arena
from tests.benchmarks.contender import Project
from tests.benchmarks.follower import PUBLICATION
from tests.benchmarks.meter import Command, measure
from tests.pair import Running
from tests.servers import find_free_port
from tests.wait import wait_until

_TURNS = 3
_AT_ONCE = 100
_PATIENCE_S = 900.0
_MAKE = (
    "create table many.t{n} (id int primary key, note text, kind varchar(20), amount numeric(10,2),"
    " made_at timestamptz default now(), n int default 0);"
    "insert into many.t{n} (id, note) select i, 'note ' || i from generate_series(1, 10) i;"
)


@dataclass(frozen=True)
class ManyTables:
    """What a listener over so many tables takes.

    start_s: from the command to the stream, with nothing to do; statements: of the same at the target. ready_s: of
    `serve --listen`. touches_s: of transactions that each change one row of every table, from COMMIT to COMMIT.
    altered_lag_s: how far one table falls behind at most while another one is altered and read again.
    """

    tables: int
    start_s: float
    statements: int
    ready_s: float
    touches_s: tuple[float, ...]
    altered_lag_s: float


def measure_many_tables(arena: Arena, tables: int) -> ManyTables:
    """Measure one listener over so many tables, after its initial copy."""
    project = _prepare(arena, tables)
    measure(
        Command(
            [sys.executable, "-m", "replicator", "listen", "--until-caught-up"], _environment(arena), arena.pair.dir
        )
    )
    arena.settle(project.database)
    begun = time.perf_counter()
    with _running(arena, "listen") as running:
        _wait_for_stream(running)
        start_s = time.perf_counter() - begun
        touches_s = tuple(_touch_all(arena, project, tables, running) for _ in range(_TURNS))
        lag_s = _alter_one(arena, project, running)
    return ManyTables(tables, start_s, _count_statements(arena), _time_serve(arena), touches_s, lag_s)


def _alter_one(arena: Arena, project: Project, running: Running) -> float:
    """Alter a table and change it, while another one changes all the time; return how far that fell behind."""
    worst_s, stopped = 0.0, threading.Event()

    def beat() -> None:
        with arena.source_cluster.connect(arena.pair.source_db) as session:
            while not stopped.wait(0.02):
                session.execute("update many.t1 set made_at = clock_timestamp() where id = 1")

    writer = threading.Thread(target=beat, daemon=True)
    writer.start()
    joined = running.stderr.count("table_joined")
    with arena.cluster.connect(project.database) as reader:

        def has_joined() -> bool:
            nonlocal worst_s
            worst_s = max(worst_s, _read_lag(reader))
            return running.stderr.count("table_joined") > joined or not running.running

        # What was to land before has landed.
        wait_until(lambda: _read_lag(reader) < 1, _PATIENCE_S, what="the listener is near", interval_s=0.02)
        arena.source.execute("alter table many.t5 add column z int default 3; update many.t5 set note = 'd'")
        wait_until(has_joined, _PATIENCE_S, what="the altered table joins", interval_s=0.02)
    stopped.set()
    writer.join()
    return worst_s


def _read_lag(reader: psycopg.Connection[TupleRow]) -> float:
    query = "select extract(epoch from clock_timestamp() - made_at) from many.t1 where id = 1"
    ((lag_s,),) = reader.execute(query).fetchall()
    return float(lag_s)


def _prepare(arena: Arena, tables: int) -> Project:
    arena.source.execute("create schema many")
    for first in range(0, tables, _AT_ONCE):
        arena.source.execute("".join(_MAKE.format(n=n) for n in range(first, min(first + _AT_ONCE, tables))))
    arena.pair.grant()
    arena.source.execute(sql.SQL("alter role {} replication").format(sql.Identifier(arena.pair.reader)))
    arena.source.execute(
        sql.SQL("create publication {} for tables in schema many with (publish_via_partition_root)").format(
            sql.Identifier(PUBLICATION)
        )
    )
    project = Project(arena)
    arena.pair.write_config(
        tables=[{"name": "many.*"}],
        target={"dsn": project.target_dsn},
        listen={"publication": PUBLICATION},
        serve={"port": find_free_port()},
    )
    return project


def _environment(arena: Arena) -> Mapping[str, str]:
    return arena.pair.environment(REPLICATOR_LOGS__LEVEL="info")


@contextmanager
def _running(arena: Arena, *args: str) -> Iterator[Running]:
    with Running(args, arena.pair.dir, _environment(arena), afresh=True) as running:
        yield running
        running.send(signal.SIGTERM)
        running.wait(120, check=0)


def _wait_for_stream(running: Running) -> None:
    wait_until(
        lambda: "stream_started" in running.stderr or not running.running, _PATIENCE_S, what="the stream starts",
        interval_s=0.05,
    )  # fmt: skip
    assert running.running, running.wait()


def _touch_all(arena: Arena, project: Project, tables: int, running: Running) -> float:
    """Change one row of every table in one transaction, and wait until it has landed."""
    last = f"select n from many.t{tables - 1} where id = 1"
    ((before,),) = arena.pair.target_server.execute(last, dbname=project.database)
    arena.source.execute(
        f"do $$ begin for i in 0 .. {tables - 1} loop execute format('update many.t%s set n = n + 1 where id = 1', i);"
        " end loop; end $$"
    )
    begun = time.perf_counter()
    with arena.cluster.connect(project.database) as connection:
        wait_until(
            lambda: connection.execute(last).fetchall() != [(before,)] or not running.running, _PATIENCE_S,
            what="the transaction lands", interval_s=0.02,
        )  # fmt: skip
    assert running.running, running.wait()
    return time.perf_counter() - begun


def _count_statements(arena: Arena) -> int:
    """Return how many statements an idle start sends to the target."""
    role = sql.Identifier(arena.pair.writer)
    arena.cluster.execute(sql.SQL("alter role {} set log_statement = 'all'").format(role))
    before = len(arena.cluster.log_text())
    with _running(arena, "listen") as running:
        _wait_for_stream(running)
        logged = arena.cluster.log_text()[before:]
    arena.cluster.execute(sql.SQL("alter role {} reset log_statement").format(role))
    return logged.count("LOG:  statement: ") + logged.count("LOG:  execute ")


def _time_serve(arena: Arena) -> float:
    """Return how long `serve --listen` takes until it says that it is ready."""
    begun = time.perf_counter()
    with _running(arena, "serve", "--listen") as running:
        port = _read_port(arena)
        wait_until(lambda: _is_ready(port) or not running.running, _PATIENCE_S, what="serve is ready", interval_s=0.1)
        assert running.running, running.wait()
        return time.perf_counter() - begun


def _read_port(arena: Arena) -> int:
    text = (arena.pair.dir / "replicator.toml").read_text()
    (line,) = [line for line in text.splitlines() if "port" in line and "=" in line and "dsn" not in line]
    return int(line.partition("=")[2])


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
