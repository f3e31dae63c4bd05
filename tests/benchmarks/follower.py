"""Who follows a stream: this project, PostgreSQL's own subscription, and pg_recvlogical, which throws it away."""

from __future__ import annotations

import resource
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql

from tests.benchmarks.arena import Arena, define_table
from tests.benchmarks.contender import TABLE, Project
from tests.benchmarks.meter import Command, Measured, measure
from tests.pair import Running
from tests.wait import wait_until

PUBLICATION = "bench"
LIVE = "live"
"""The table whose commits are timed."""
_POLL_S = 0.02
_PATIENCE_S = 600.0


@dataclass(frozen=True)
class CaughtUp(Measured):
    """How a backlog was caught up with. cpu_s: of the client's process and its children, 0 where there is none."""

    cpu_s: float = 0.0


class Follower(ABC):
    """One way to follow the source from a slot of its own."""

    name: str

    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    @abstractmethod
    def prepare(self) -> None:
        """Make the slot, and the tables as they are now."""

    @abstractmethod
    def catch_up(self) -> CaughtUp:
        """Bring all that was committed by now, and say what it took."""

    def check(self) -> None:  # noqa: B027  # one that throws everything away has nothing to prove
        """Prove that nothing is missing."""

    def command(self, *args: str) -> Command:
        """Return a command in the arena's folder."""
        return Command(list(args), self.arena.pair.environment(), self.arena.pair.dir)

    def end_of_wal(self) -> str:
        """Return where the source's WAL ends."""
        ((lsn,),) = self.arena.source.execute("select pg_current_wal_insert_lsn()::text").fetchall()
        return str(lsn)


class Drain(Follower):
    """`pg_recvlogical` into nothing: as fast as the source sends, with nobody to write it."""

    name = "pg_recvlogical"
    slot = "bench_drain"

    def prepare(self) -> None:
        self.arena.source.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot])

    def catch_up(self) -> CaughtUp:
        server = self.arena.source_cluster
        args = (
            str(server.bin / "pg_recvlogical"), "--start", "--no-loop", "--slot", self.slot, "--file", "/dev/null",
            "--dbname", server.admin_dsn(self.arena.pair.source_db), "--endpos", self.end_of_wal(),
            "--option", "proto_version=1", "--option", f"publication_names={PUBLICATION}", "--option", "binary=true",
        )  # fmt: skip
        # Past the end there is nothing to read: a message takes it there.
        self.arena.source.execute("select pg_logical_emit_message(true, 'bench', '')")
        done = measure(self.command(*args))
        return CaughtUp(done.seconds, done.rss_bytes)


class Native(Follower):
    """PostgreSQL's subscription: binary, no streaming of open transactions, one worker."""

    name = "subscription"

    def __init__(self, arena: Arena) -> None:
        super().__init__(arena)
        self.database = arena.create_target()

    def prepare(self) -> None:
        server = self.arena.cluster
        copy_tables(self.arena, self.database)
        target = sql.Literal(self.arena.source_cluster.admin_dsn(self.arena.pair.source_db))
        create = sql.SQL(
            "create subscription bench connection {} publication {}"
            " with (copy_data = false, enabled = false, create_slot = true, slot_name = bench_native,"
            " binary = true, streaming = off)"
        )
        server.execute(create.format(target, sql.Identifier(PUBLICATION)), dbname=self.database)

    def catch_up(self) -> CaughtUp:
        ((last,),) = self.arena.source.execute(f"select min(id) from {LIVE}").fetchall()
        query = f"select from {LIVE} where id = %s"
        with self.arena.cluster.connect(self.database) as connection, self.following():
            begun = time.perf_counter()
            while not connection.execute(query, [last]).rowcount:
                if time.perf_counter() - begun > _PATIENCE_S:
                    raise AssertionError("the subscription does not catch up")
                time.sleep(_POLL_S)
            seconds = time.perf_counter() - begun
        return CaughtUp(seconds, 0)

    def check(self) -> None:
        self.arena.assert_equal(self.database, TABLE)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Keep the subscription enabled while the block lasts."""
        self.arena.cluster.execute("alter subscription bench enable", dbname=self.database)
        try:
            yield
        finally:
            self.arena.cluster.execute("alter subscription bench disable", dbname=self.database)
            query = "select from pg_replication_slots where slot_name = 'bench_native' and active"
            wait_until(lambda: not self.arena.source.execute(query).rowcount, 30, what="the subscription's worker ends")

    def close(self) -> None:
        """Drop the subscription with its slot: the database goes after it."""
        self.arena.cluster.execute("drop subscription if exists bench", dbname=self.database)


class Listening(Follower):
    """`replicator listen`, process start included."""

    name = "replicator"

    def __init__(self, arena: Arena) -> None:
        super().__init__(arena)
        self.project = Project(arena)
        self.database = self.project.database

    def prepare(self) -> None:
        copy_tables(self.arena, self.database)
        self.arena.pair.write_config(
            tables=[{"name": f"public.{TABLE}"}, {"name": f"public.{LIVE}"}], target={"dsn": self.project.target_dsn},
            listen={"publication": PUBLICATION},
        )  # fmt: skip
        measure(self._listen("--until-caught-up"))

    def _listen(self, *args: str) -> Command:
        return self.command(sys.executable, "-m", "replicator", "listen", *args)

    def catch_up(self) -> CaughtUp:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = measure(self._listen("--until-caught-up"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return CaughtUp(done.seconds, done.rss_bytes, cpu_s)

    def check(self) -> None:
        self.arena.assert_equal(self.database, TABLE)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Keep a listener running while the block lasts."""
        pair = self.arena.pair
        environment = pair.environment(REPLICATOR_LOGS__LEVEL="info")
        with Running(("listen",), pair.dir, environment) as running:
            wait_until(lambda: "stream_started" in running.stderr or not running.running, 60, what="the stream starts")
            yield
            running.send(signal.SIGTERM)
            running.wait(60, check=0)


def copy_tables(arena: Arena, database: str) -> None:
    """Give a target database both tables as the source has them now, and their indexes."""
    server = arena.cluster
    server.execute(define_table(TABLE), dbname=database)
    server.execute(f"create table {LIVE} (id bigint primary key, note text)", dbname=database)
    with arena.source.cursor() as reader, server.connect(database) as connection, connection.cursor() as writer:
        reading = reader.copy(f"copy {TABLE} to stdout (format binary)")
        with reading as out, writer.copy(f"copy {TABLE} from stdin (format binary)") as into:
            for piece in out:
                into.write(piece)
    for statement in (
        f"alter table {TABLE} add primary key (id)",
        f"create index on {TABLE} (updated_at)",
        f"alter table {TABLE} owner to {arena.pair.writer}",
        f"alter table {LIVE} owner to {arena.pair.writer}",
        f"analyze {TABLE}",
    ):
        server.execute(statement, dbname=database)
