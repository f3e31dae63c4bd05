"""Who copies: this project, the hand-written psql pipe that is its floor, and the peers that are installed."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.benchmarks.arena import COLUMNS, Arena, define_table
from tests.benchmarks.meter import Command, Measured, measure

TABLE = "conversations"


class Contender(ABC):
    """One way to bring `conversations` into a database of its own on the target server."""

    name: str
    once = False
    """Takes one turn only, for it would take minutes more."""
    pulls = True
    """Can bring what changed, not only everything."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.database = arena.create_target()

    @property
    def is_loaded(self) -> bool:
        """Say whether its database has the table."""
        ((found,),) = self.arena.pair.target_server.execute(
            "select to_regclass(%s) is not null", [TABLE], dbname=self.database
        )
        return bool(found)

    def check(self) -> None:
        """Prove that its rows are the source's."""
        self.arena.assert_equal(self.database, TABLE)

    @property
    def target_dsn(self) -> str:
        """Return the conninfo of the contender's database."""
        return self.arena.pair.dsn_of_target(dbname=self.database)

    def reset(self) -> None:
        """Forget everything copied."""
        server = self.arena.pair.target_server
        server.drop_database(self.database)
        server.create_database(self.database, owner=self.arena.pair.writer)

    @abstractmethod
    def load(self) -> Measured:
        """Copy the whole table into an empty database."""

    @abstractmethod
    def pull(self, since: str) -> Measured:
        """Copy the rows stamped at `since` or later into the table as the last run left it."""

    def command(self, *args: str | Path, env: Mapping[str, str] | None = None) -> Command:
        """Return a command in the arena's folder."""
        pair = self.arena.pair
        return Command([str(arg) for arg in args], env or pair.environment(), pair.dir)


class Project(Contender):
    """`replicator sync`, process start included."""

    name = "replicator"

    def configure(self, *tables: Mapping[str, str]) -> None:
        """Write replicator.toml for these tables."""
        self.arena.pair.write_config(tables=[dict(table) for table in tables], target={"dsn": self.target_dsn})

    def sync(self) -> Measured:
        """Run the nightly job once."""
        return measure(self.command(sys.executable, "-m", "replicator", "sync"))

    def load(self) -> Measured:
        self.configure({"name": f"public.{TABLE}", "watermark": "updated_at"})
        return self.sync()

    def pull(self, since: str) -> Measured:
        return self.sync()

    def verify(self) -> Measured:
        """Prove the copy right; the exit code says that it is."""
        return measure(self.command(sys.executable, "-m", "replicator", "verify"))


class Floor(Contender):
    """`psql` COPY piped into `psql` COPY, binary, by somebody who knows what changed: the least that can be done."""

    name = "psql pipe"

    def load(self) -> Measured:
        measure(self._psql(self.target_dsn, define_table(TABLE).as_string()))
        return self._pipe(
            f"copy {TABLE} to stdout (format binary)",
            f"copy {TABLE} from stdin (format binary)",
            f"alter table {TABLE} add primary key (id)",
            f"create index on {TABLE} (updated_at)",
        )

    def pull(self, since: str) -> Measured:
        sets = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in COLUMNS)
        return self._pipe(
            f"copy (select * from {TABLE} where updated_at >= '{since}') to stdout (format binary)",
            f"create temporary table staging (like {TABLE})",
            "copy staging from stdin (format binary)",
            f"insert into {TABLE} select * from staging on conflict (id) do update set {sets.as_string()}",
        )

    def read_both(self) -> Measured:
        """Read the whole table at both ends, one after the other, and throw it away."""
        query = f"copy {TABLE} to stdout (format binary)"
        first = measure(self._psql(self.arena.pair.source_dsn, query))
        second = measure(self._psql(self.target_dsn, query))
        return Measured(first.seconds + second.seconds, max(first.rss_bytes, second.rss_bytes))

    def _pipe(self, read: str, *write: str) -> Measured:
        return measure(self._psql(self.arena.pair.source_dsn, read), self._psql(self.target_dsn, *write))

    def _psql(self, dsn: str, *statements: str) -> Command:
        cluster = self.arena.cluster
        texts = [part for text in statements for part in ("-c", text)]
        return self.command(cluster.bin / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", *texts, env=libpq_environment(dsn))


def libpq_environment(dsn: str) -> dict[str, str]:
    """Return a conninfo as PG* variables, so that no password shows in a list of processes."""
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    parts = conninfo_to_dict(dsn)
    return {"PATH": os.environ["PATH"]} | {variable: str(parts[key]) for key, variable in names.items()}
