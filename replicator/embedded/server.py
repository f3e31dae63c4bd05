"""Run one PostgreSQL server on the cluster under `data_dir/postgres`.

Who may connect: the server listens on a Unix socket alone, in a directory that only the server's own account (and
root) can enter, so everybody who reaches the socket could read the cluster's files as well. That is why local
connections need no password (`trust`): a password would lie beside the files it guards. Over TCP, which is off
unless `ServerOptions.port` is given, only roles with a password get in (`scram-sha-256`), and `replicator` has none.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from replicator.embedded.binary import choose_user, find_binaries, first_closed, run_program
from replicator.embedded.cluster import (
    NAME,
    Cluster,
    ServerOptions,
    find_reason,
    make_data_dir,
    make_socket_dir,
    write_private,
)
from replicator.errors import OperatorError, PassingError, PreflightError

PING_TIMEOUT_S = 5
LOG_LIMIT_BYTES = 10_000_000


class EmbeddedServer:
    """One server; superuser and database are both called `replicator`.

    Does not lock: `lease` keeps two processes from starting or stopping it at the same moment.
    """

    def __init__(self, data_dir: Path, options: ServerOptions | None = None) -> None:
        """Look at what is there, change nothing; raise PreflightError when it belongs to another user."""
        self.data_dir = data_dir.resolve()
        self.log = self.data_dir / "postgres.log"
        self._user = choose_user(self.data_dir)
        self._cluster = Cluster(self.data_dir, self._user, options or ServerOptions())

    @property
    def dsn(self) -> str:
        """Return a libpq connection string of the running server, or of the next one if none runs.

        The port is always named: PGPORT in the environment is meant for somebody else's server.
        """
        host, port = self._read_address() or (str(self._cluster.socket_dir), self._cluster.port)
        return make_conninfo(host=host, port=port, user=NAME, dbname=NAME)

    def is_running(self) -> bool:
        """Say whether the server answers and takes connections."""
        return self._ping() is Ping.OK

    def start(self, timeout_s: float = 60) -> None:
        """Start the server, making the cluster first if there is none; do nothing if it runs.

        Raise PreflightError when the files are out of reach, OperatorError when it does not start, and PassingError
        when it is still recovering after `timeout_s`.
        """
        if self._ping() is Ping.OK:
            return
        binaries = self._prepare()
        deadline = time.monotonic() + timeout_s
        while (state := self._ping()) is not Ping.OK:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._explain_timeout(state, timeout_s)
            if state is Ping.NO_RESPONSE and self._launch(binaries, left_s):
                return
            time.sleep(0.2)

    def stop(self, timeout_s: float = 60) -> bool:
        """Stop the server, rolling back what is open; return False if it did not run.

        SIGINT is PostgreSQL's fast shutdown, and the pid file's end is what pg_ctl waits for too; without pg_ctl a
        server can be stopped after its package was uninstalled.
        """
        pid = self._read_pid()
        if pid is None or self._ping() is Ping.NO_RESPONSE:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + timeout_s
        while self._read_pid() == pid:
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"The embedded PostgreSQL in {self.data_dir} did not stop within {timeout_s:.0f} seconds",
                    why=f"what it waits for is in {self.log}",
                    hint="replicator target down",
                    id="embedded_stop",
                )
            time.sleep(0.02)
        return True

    def _ping(self) -> Ping:
        """Ask for the state at the running server's address; needs neither a password nor a free connection."""
        if self._read_address() is None:
            return Ping.NO_RESPONSE
        conninfo = make_conninfo(self.dsn, connect_timeout=PING_TIMEOUT_S)
        return Ping(PGconn.ping(conninfo.encode()))

    def _read_address(self) -> tuple[str, int] | None:
        """Read socket directory and port from postmaster.pid (lines 5 and 4), None when nothing runs there."""
        lines = self._read_pid_file()
        if len(lines) < 5 or not lines[3].isdigit() or not lines[4]:
            return None
        return lines[4], int(lines[3])

    def _read_pid(self) -> int | None:
        lines = self._read_pid_file()
        return int(lines[0]) if lines and lines[0].isdigit() else None

    def _read_pid_file(self) -> list[str]:
        try:
            return (self._cluster.path / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _prepare(self) -> Path:
        """Make everything ready for a start and return the directory of the programs."""
        make_data_dir(self.data_dir)
        self._check_reachable()
        binaries = find_binaries(self.data_dir, self._user)
        self._cluster.make(binaries)
        self._cluster.check_version(binaries)
        make_socket_dir(self._cluster.socket_dir, self._user)
        self._open_log()
        if self._ping() is Ping.NO_RESPONSE:
            self._disown_stale_locks()
            self._cluster.write_settings()
        return binaries

    def _check_reachable(self) -> None:
        closed = first_closed(self.data_dir, self._user)
        if closed is not None:
            raise PreflightError(
                f"The embedded PostgreSQL cannot reach its data directory {self.data_dir}",
                why=f"PostgreSQL refuses to run as root, so it runs as uid {self._user.uid}, "
                f"which may not pass {closed}",
                hint="set `data_dir` to a directory below one that every user may pass, such as /var/lib/replicator, "
                "or run replicator as an ordinary user",
                id="embedded_closed_directory",
            )

    def _open_log(self) -> None:
        """Make the log for the server's user, who may not create files in root's directory; keep one older one."""
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            if self._user.switch:
                os.fchown(handle, self._user.uid, self._user.gid)
        finally:
            os.close(handle)

    def _disown_stale_locks(self) -> None:
        """Make way for a start when the pid in a crashed server's lock files now belongs to some other program.

        PostgreSQL refuses to start while that pid lives, which after a restart of a container is the rule. The socket's
        lock goes: its directory is this cluster's alone. The pid file is pointed at ourselves: the pid of the program
        that calls pg_ctl counts as stale, and by the rest of the file PostgreSQL looks whether children of the crashed
        server still hold its shared memory (CreateLockFile in miscinit.c).
        """
        pid = self._read_pid()
        if pid is not None and self._is_our_postmaster(pid):
            return
        for left_over in self._cluster.socket_dir.glob(".s.PGSQL.*"):
            left_over.unlink(missing_ok=True)
        if pid is not None:
            lines = [str(os.getpid()), *self._read_pid_file()[1:], ""]
            write_private(self._cluster.path / "postmaster.pid", "\n".join(lines), self._user)

    def _is_our_postmaster(self, pid: int) -> bool:
        """Say whether `pid` may be this cluster's server: a postmaster works in its cluster's directory.

        Without /proc, or where it tells us nothing, PostgreSQL's own judgement stands.
        """
        if not Path("/proc/self").exists():
            return True
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == self._cluster.path
        except FileNotFoundError:
            return False
        except PermissionError:
            return self._user.switch

    def _launch(self, binaries: Path, timeout_s: float) -> bool:
        """Start the server and wait for it; return False when what kept it from starting will pass.

        That is: children of a crashed server that still end, or a server whose starter was killed meanwhile.
        """
        mark_bytes = self.log.stat().st_size
        args: list[str | Path] = [
            binaries / "pg_ctl",
            "-D",
            ".",
            "-l",
            f"../{self.log.name}",
            "-s",
            "-w",
            "-t",
            f"{timeout_s:.0f}",
        ]
        done = run_program([*args, "start"], self._user, cwd=self._cluster.path, timeout_s=timeout_s + 10)
        if done.returncode == 0:
            return True
        said = self.log.read_bytes()[mark_bytes:].decode(errors="replace")
        if "shared memory block" in said or '"postmaster.pid" already exists' in said or self._ping() is Ping.REJECT:
            return False
        raise OperatorError(
            f"The embedded PostgreSQL in {self.data_dir} did not start",
            why=find_reason(f"{said}\n{done.stderr}") or f"pg_ctl ended with {done.returncode}",
            hint=f"the whole story is in {self.log}",
            id="embedded_start",
        )

    def _explain_timeout(self, state: Ping, timeout_s: float) -> OperatorError | PassingError:
        what = f"The embedded PostgreSQL in {self.data_dir} took no connections for {timeout_s:.0f} seconds"
        if state is Ping.REJECT:
            return PassingError(what, why="it is recovering or stopping", hint=f"try again; its log is {self.log}")
        pid = self._read_pid()
        return OperatorError(
            what,
            why=f"process {pid} holds the cluster but does not answer at its socket",
            hint=f"kill -INT {pid}, then try again; its log is {self.log}",
            id="embedded_start",
        )
