"""Keep the embedded server alive exactly as long as somebody needs it.

Each command that uses the server holds a shared lock on `postgres.lock` for its life; the kernel drops it however the
command ends. Who leaves tries for the exclusive lock: if he gets it he was the last, and stops the server, unless the
file `postgres.up` says that it was brought up to stay. Starting, stopping and these two steps happen under the
exclusive lock on `postgres.guard`, one process at a time. A command killed with -9 leaves the server running; the next
one finds it, uses it, and stops it at its end.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from replicator.embedded.binary import find_installed
from replicator.embedded.cluster import ServerOptions, make_data_dir
from replicator.embedded.server import EmbeddedServer
from replicator.errors import ExtraMissing, LockHeldError, OperatorError

# A start or a stop takes up to 60 s, and both may be ahead of us.
GUARD_WAIT_S = 150
GUARD_POLL_S = 0.05


class TakenDown(StrEnum):
    """What `take_down` did."""

    STOPPED = "stopped"
    NOT_RUNNING = "not_running"
    IN_USE = "in_use"  # the last command that uses the server stops it


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """How an embedded server is: `up` says that it stays between commands, `psql` how a person looks inside."""

    data_dir: Path
    running: bool
    up: bool
    dsn: str
    psql: str

    @property
    def summary(self) -> str:
        """Tell a person in one line whether it runs and how to connect."""
        if self.running:
            return f"The embedded target is running: {self.psql}"
        return f"The embedded target in {self.data_dir} is not running; start it with: replicator target up"


@contextmanager
def lease(data_dir: Path, options: ServerOptions | None = None) -> Iterator[str]:
    """Yield the connection string of a server that runs at least until the block ends.

    Raise what `EmbeddedServer.start` raises, and LockHeldError when another command holds the guard for too long.
    """
    server = EmbeddedServer(data_dir, options)
    make_data_dir(server.data_dir)
    with _open_lock(server.data_dir / "postgres.lock") as held:
        with _guard(server.data_dir):
            fcntl.flock(held, fcntl.LOCK_SH)
            try:
                server.start()
            except BaseException:
                _stop_if_last(server, held)
                raise
        try:
            yield server.dsn
        finally:
            _leave(server, held)


def bring_up(data_dir: Path, options: ServerOptions | None = None) -> str:
    """Start the server if needed, let it stay until `take_down`, and return its connection string."""
    server = EmbeddedServer(data_dir, options)
    make_data_dir(server.data_dir)
    with _guard(server.data_dir):
        server.start()
        _marker(server.data_dir).touch()
    return server.dsn


def take_down(data_dir: Path) -> TakenDown:
    """Let the server stay no longer: stop it now, or leave that to the last of the commands that use it."""
    server = EmbeddedServer(data_dir)
    if not server.data_dir.exists():
        return TakenDown.NOT_RUNNING
    with _guard(server.data_dir), _open_lock(server.data_dir / "postgres.lock") as mine:
        _marker(server.data_dir).unlink(missing_ok=True)
        if not server.is_running():
            return TakenDown.NOT_RUNNING
        return TakenDown.STOPPED if _stop_if_last(server, mine) else TakenDown.IN_USE


def is_made(data_dir: Path) -> bool:
    """Say whether a server was ever made there, as far as this user can see."""
    return os.path.exists(EmbeddedServer(data_dir).data_dir / "postgres")  # noqa: PTH110  # Path's raises for a closed one


def describe(data_dir: Path) -> EmbeddedStatus:
    """Say how the server is, without starting or changing anything."""
    server = EmbeddedServer(data_dir)
    dsn = server.dsn
    return EmbeddedStatus(
        data_dir=server.data_dir,
        running=server.is_running(),
        up=_marker(server.data_dir).exists(),
        dsn=dsn,
        psql=shlex.join([_find_psql(), dsn]),
    )


def _find_psql() -> str:
    """Return `psql` where the shell finds one, otherwise the path of the one in the package."""
    if shutil.which("psql"):
        return "psql"
    try:
        return str(find_installed() / "bin" / "psql")
    except ExtraMissing:
        return "psql"


def _leave(server: EmbeddedServer, held: int) -> None:
    """Stop the server after the last lease.

    A server that does not stop is no failure of the work that was done: it is logged, and the next lease tries again.
    """
    try:
        with _guard(server.data_dir):
            _stop_if_last(server, held)
    except OperatorError as error:
        structlog.get_logger().warning("embedded_server_left_running", reason=error.message)


def _stop_if_last(server: EmbeddedServer, lock: int) -> bool:
    """Stop the server unless somebody else holds `lock` or it is to stay up; say whether it was stopped."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return not _marker(server.data_dir).exists() and server.stop()


def _marker(data_dir: Path) -> Path:
    return data_dir / "postgres.up"


@contextmanager
def _guard(data_dir: Path) -> Iterator[None]:
    """Let one process at a time start or stop the server; raise LockHeldError after GUARD_WAIT_S."""
    deadline = time.monotonic() + GUARD_WAIT_S
    with _open_lock(data_dir / "postgres.guard") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LockHeldError(
                        f"The embedded PostgreSQL in {data_dir} is being started or stopped by another command",
                        why=f"it has been at it for {GUARD_WAIT_S} seconds",
                        hint=f"see who holds {data_dir / 'postgres.guard'} (lslocks), end that process and try again",
                    ) from None
            time.sleep(GUARD_POLL_S)
        yield


@contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    """Open a lock file; closing it drops the lock. Root leaves it to the owner of the directory to use as well."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(handle, owner.st_uid, owner.st_gid)
        yield handle
    finally:
        os.close(handle)
