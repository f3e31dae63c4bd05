"""Debian's PgBouncer in front of a server, in the pool mode that a test asks for.

with PgBouncer(workspace, pair, mode="transaction") as pooler:
    pair.write_config(source={"dsn": pair.dsn_of_source(port=pooler.port)})
"""

from __future__ import annotations

import subprocess
from types import TracebackType
from typing import Self

import psycopg
from psycopg.conninfo import make_conninfo

from tests.pair import Pair
from tests.servers import Server, ServerFailed, Workspace, die_with_parent, find_free_port, server_account
from tests.wait import wait_until

PROGRAM = "/usr/sbin/pgbouncer"
INI = """\
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {home}/users.txt
logfile = {home}/log
pool_mode = {mode}
max_client_conn = 300
default_pool_size = {size}
query_wait_timeout = {wait_s}
server_login_retry = 1
server_round_robin = {round_robin}
ignore_startup_parameters = {ignored}
"""


class PgBouncer:
    """A pooler of one server; both of the pair's roles may come through."""

    def __init__(
        self,
        workspace: Workspace,
        pair: Pair,
        server: Server,
        *,
        mode: str,
        size: int = 20,
        wait_s: int = 120,
        round_robin: bool = False,
        ignored: str = "",
    ) -> None:
        self.home = workspace.reserve("pgbouncer")
        self.port = find_free_port()
        self._process: subprocess.Popen[bytes] | None = None
        users = {pair.reader: pair.reader_password, pair.writer: pair.writer_password}
        (self.home / "users.txt").write_text("".join(f'"{name}" "{word}"\n' for name, word in users.items()))
        ini = INI.format(
            host=server.host, server_port=server.port, port=self.port, home=self.home, mode=mode, size=size,
            wait_s=wait_s, round_robin=int(round_robin), ignored=ignored,
        )  # fmt: skip
        (self.home / "pgbouncer.ini").write_text(ini)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it, and return when it listens."""
        try:
            self._process = subprocess.Popen(
                [*die_with_parent(), PROGRAM, str(self.home / "pgbouncer.ini")], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **server_account(),
            )  # fmt: skip
        except FileNotFoundError:
            raise ServerFailed("no pgbouncer: apt-get install --no-install-recommends pgbouncer") from None
        wait_until(self._answers, what="pgbouncer answers")
        return self

    def stop(self) -> None:
        """End it at once, with all its sessions."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise ServerFailed((self.home / "log").read_text())
        try:
            psycopg.connect(make_conninfo(host="127.0.0.1", port=self.port, user="nobody", dbname="x")).close()
        except psycopg.OperationalError as error:
            return "refused" not in str(error)
        return True
