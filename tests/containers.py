"""Take shared servers from a docker engine, where one answers.

Only the servers that all tests share come from here: nobody stops or kills those. A test that does asks
`make_cluster` for a server of its own, which is always a local process. `REPLICATOR_TEST_DOCKER=0` keeps
everything local.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import subprocess

from psycopg.conninfo import make_conninfo

from tests.servers import SETTINGS, SUPERUSER, Server


@functools.cache
def engine_answers() -> bool:
    """Say whether a docker engine answers within five seconds."""
    docker = shutil.which("docker")
    if docker is None or os.environ.get("REPLICATOR_TEST_DOCKER") == "0":
        return False
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        command = [docker, "version", "--format", "{{.Server.Version}}"]
        return subprocess.run(command, capture_output=True, timeout=5, check=False).returncode == 0
    return False


class Container(Server):
    """One PostgreSQL from the image `postgres:VERSION`, with the settings that `Cluster` has."""

    def __init__(self, version: int) -> None:
        # Importing it costs half a second, and most machines that run the tests have no engine.
        from testcontainers.community.postgres import PostgresContainer

        super().__init__()
        self.version = version
        self._password = secrets.token_urlsafe(18)
        settings = SETTINGS | {"listen_addresses": "*"}
        command = ["postgres", *(part for pair in settings.items() for part in ("-c", "=".join(pair)))]
        self._container = PostgresContainer(
            f"postgres:{version}", username=SUPERUSER, password=self._password, dbname="postgres", driver=None
        ).with_command(command)
        self._container.start()
        self.host = self._container.get_container_host_ip()
        self.port = int(self._container.get_exposed_port(5432))

    def admin_dsn(self, dbname: str = "postgres") -> str:
        return make_conninfo(host=self.host, port=self.port, dbname=dbname, user=SUPERUSER, password=self._password)

    def log_text(self) -> str:
        return b"".join(self._container.get_logs()).decode(errors="replace")

    def remove(self) -> None:
        self._container.stop()
