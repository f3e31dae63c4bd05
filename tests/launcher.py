"""Start the tool as a process of its own without starting Python for it.

A server process imports the package and builds the command tree once, and forks for each command
(`multiprocessing`'s forkserver). A command has its own pid, session, environment and exit code, and its death frees
what it holds: only what every start does alike before it reads its arguments is spared, 0.4 of 0.5 seconds.
REPLICATOR_TEST_AFRESH=1 starts Python each time, as `make test-all` does.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

AFRESH = "REPLICATOR_TEST_AFRESH"


class Command(Protocol):
    """A command at work: the part of `subprocess.Popen` that tests use."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit code, minus the signal that ended it, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired."""

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone."""


class Forked:
    """A command that the server process forked."""

    def __init__(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        exit_code = self.poll()
        if exit_code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return exit_code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start_command(
    args: tuple[str, ...],
    folder: Path,
    environment: Mapping[str, str],
    out: Path,
    err: Path,
    *,
    afresh: bool = False,
    constants: Mapping[str, float] | None = None,
) -> Command:
    """Start `replicator ARGS` in `folder`, streams to files, as the leader of a session of its own.

    constants: what a forked command has instead of the package's, by full names.
    """
    out.touch()
    err.touch()
    if not afresh and not os.environ.get(AFRESH):
        return _fork(args, folder, dict(environment), out, err, dict(constants or {}))
    with out.open("wb") as stdout, err.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "replicator", *args],
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=folder, env=environment,
            start_new_session=True,
        )  # fmt: skip


def kill_group(command: Command) -> None:
    """Kill -9 a command and all that it started; one that was forked just now leads no group yet."""
    try:
        os.killpg(command.pid, signal.SIGKILL)
    except ProcessLookupError:
        command.send_signal(signal.SIGKILL)


def _fork(
    args: tuple[str, ...], folder: Path, environment: dict[str, str], out: Path, err: Path, constants: dict[str, float]
) -> Forked:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    process = context.Process(target=run_command, args=(args, folder, environment, out, err, constants), daemon=True)
    process.start()
    return Forked(process)


def run_command(
    args: tuple[str, ...], folder: Path, environment: dict[str, str], out: Path, err: Path, constants: dict[str, float]
) -> None:
    """Become the command: session, directory, environment and streams as a shell would set them, then `main`."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    for number, path, mode in ((0, Path(os.devnull), os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        opened = os.open(path, mode)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["replicator", *args]
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        holder = importlib.import_module(module)
        assert hasattr(holder, constant), name
        setattr(holder, constant, value)
    from replicator.cli import main

    main()


WITHIN_COMMANDS = ("_strptime", "apprise", "cronsim", "dotenv", "pydantic_settings.main", "resource", "uvicorn")
"""Imported by a function of the tool, or by a package of its: in nearly every command."""


def import_package() -> None:
    """Import every module of the tool, and with them the packages that it needs, as far as they are installed."""
    import replicator

    modules = (module.name for module in pkgutil.walk_packages(replicator.__path__, "replicator."))
    for name in (*modules, *WITHIN_COMMANDS):
        if not name.endswith("__main__"):
            with suppress(ImportError):
                importlib.import_module(name)


def build_commands() -> None:
    """Make of typer's declarations what parses a command line: typer would do it anew at each call (20 ms)."""
    from typer.main import get_command

    from replicator.cli import app as tree

    tree.app = get_command(tree.app)  # type: ignore[assignment]
