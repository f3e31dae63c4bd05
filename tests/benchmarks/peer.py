"""Other tools for the same work, each with the settings that its documentation recommends for it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping

from psycopg.conninfo import conninfo_to_dict

from tests.benchmarks.arena import Arena
from tests.benchmarks.contender import TABLE, Contender
from tests.benchmarks.meter import Measured, measure


class Peer(Contender):
    """A tool that is measured where it is installed, once. Its rows are not checked: some change types on the way."""

    once = True

    def check(self) -> None:
        """Let it be."""

    @property
    def urls(self) -> Mapping[str, str]:
        """Return both DSNs as URLs, by the names that the commands expect in their environment."""
        return {
            "SOURCE_URL": write_url(self.arena.pair.source_dsn),
            "TARGET_URL": write_url(self.target_dsn),
        }

    def run(self, *args: str, **environment: str) -> Measured:
        """Run the tool; its programs of PostgreSQL are those of the servers."""
        path = f"{self.arena.cluster.bin}:{self.arena.pair.environment()['PATH']}"
        env = self.arena.pair.environment(PATH=path, **self.urls, **environment)
        return measure(self.command(*args, env=env))

    @classmethod
    def is_installed(cls) -> bool:
        """Say whether its program is on the path."""
        return shutil.which(cls.name) is not None


class Pgcopydb(Peer):
    name = "pgcopydb"
    pulls = False

    def load(self) -> Measured:
        urls = self.urls
        options = ["--table-jobs", "2", "--index-jobs", "2", "--no-owner", "--no-acl", "--not-consistent", "--restart"]
        return self.run(
            "pgcopydb", "clone", "--source", urls["SOURCE_URL"], "--target", urls["TARGET_URL"],
            "--dir", str(self.arena.pair.dir / "pgcopydb"), *options,
        )  # fmt: skip

    def pull(self, since: str) -> Measured:
        raise NotImplementedError


class Sling(Peer):
    name = "sling"

    def load(self) -> Measured:
        return self._replicate("full-refresh")

    def pull(self, since: str) -> Measured:
        return self._replicate("incremental")

    def _replicate(self, mode: str) -> Measured:
        return self.run(
            "sling", "run", "--src-conn", "SOURCE_URL", "--src-stream", f"public.{TABLE}",
            "--tgt-conn", "TARGET_URL", "--tgt-object", f"public.{TABLE}", "--mode", mode,
            "--primary-key", "id", "--update-key", "updated_at",
        )  # fmt: skip


class Ingestr(Peer):
    name = "ingestr"

    def load(self) -> Measured:
        return self._ingest("--incremental-strategy", "replace")

    def pull(self, since: str) -> Measured:
        return self._ingest(
            "--incremental-strategy", "merge", "--incremental-key", "updated_at", "--interval-start", since
        )

    def _ingest(self, *options: str) -> Measured:
        urls = self.urls
        return self.run(
            "ingestr", "ingest", "--yes", "--source-uri", urls["SOURCE_URL"], "--source-table", f"public.{TABLE}",
            "--dest-uri", urls["TARGET_URL"], "--dest-table", f"public.{TABLE}", "--primary-key", "id", *options,
        )  # fmt: skip


class Dlt(Peer):
    name = "dlt"

    def load(self) -> Measured:
        return self._pipeline()

    def pull(self, since: str) -> Measured:
        return self._pipeline(since)

    def _pipeline(self, *since: str) -> Measured:
        return self.run(sys.executable, "-m", "tests.benchmarks.dlt_pipeline", *since, DLT_TELEMETRY="false")

    @classmethod
    def is_installed(cls) -> bool:
        return importlib.util.find_spec("dlt") is not None


def find_peers(arena: Arena, *, wanted: bool) -> list[Contender]:
    """Return the peers that are installed, none unless wanted."""
    kinds: tuple[type[Peer], ...] = (Pgcopydb, Ingestr, Sling, Dlt)
    return [kind(arena) for kind in kinds if wanted and kind.is_installed()]


def write_url(dsn: str) -> str:
    """Return a conninfo as the URL that other tools understand."""
    parts = conninfo_to_dict(dsn)
    return "postgresql://{user}:{password}@{host}:{port}/{dbname}?sslmode=disable".format(**parts)
