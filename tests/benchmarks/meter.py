"""Measure commands from outside: seconds from start to end, and the most memory that they held together."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.servers import read_status

SAMPLE_S = 0.05


class CommandFailed(Exception):
    """A measured command ended with an error; the message ends with what it said."""


@dataclass(frozen=True)
class Measured:
    """Seconds of wall time, and bytes: the sum of the peak resident sets of all processes, children too."""

    seconds: float
    rss_bytes: int


@dataclass(frozen=True)
class Command:
    """A program with its arguments, its environment and its working directory."""

    args: Sequence[str]
    env: Mapping[str, str]
    folder: Path


def measure(*pipe: Command) -> Measured:
    """Run commands, each one's stdout the next one's stdin, and return what they took. Raises CommandFailed."""
    log = pipe[0].folder / "measured.log"
    started = time.perf_counter()
    with log.open("wb") as errors:
        processes = start_pipe(pipe, errors.fileno())
        sampler = Sampler(process.pid for process in processes)
        codes = [process.wait() for process in processes]
        seconds = time.perf_counter() - started
    rss_bytes = sampler.stop()
    if any(codes):
        raise CommandFailed(f"{pipe[-1].args[0]} ended with {codes}:\n{log.read_text(errors='replace')[-4000:]}")
    return Measured(seconds, rss_bytes)


def start_pipe(pipe: Sequence[Command], errors: int) -> list[subprocess.Popen[bytes]]:
    """Start the commands; the last one's output goes where all errors go."""
    processes: list[subprocess.Popen[bytes]] = []
    for command in pipe:
        before = processes[-1].stdout if processes else None
        processes.append(
            subprocess.Popen(
                list(command.args),
                stdin=before or subprocess.DEVNULL,
                stdout=errors if command is pipe[-1] else subprocess.PIPE,
                stderr=errors,
                cwd=command.folder,
                env=dict(command.env),
            )
        )
        if before:
            before.close()
    return processes


class Sampler:
    """Looks at processes and their descendants twenty times a second; Linux keeps each one's peak for it."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._roots = list(pids)
        self._peaks: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler")
        self._thread.start()

    def stop(self) -> int:
        """End the watch and return the sum of all peaks in bytes."""
        self._ended.set()
        self._thread.join()
        return sum(self._peaks.values())

    def _watch(self) -> None:
        while True:
            waiting = list(self._roots)
            while waiting:
                pid = waiting.pop()
                peak_bytes = int(read_status(str(pid)).get("VmHWM", "0 kB").split()[0]) * 1024
                self._peaks[pid] = max(peak_bytes, self._peaks.get(pid, 0))
                waiting += list_children(pid)
            if self._ended.wait(SAMPLE_S):
                return


def list_children(pid: int) -> list[int]:
    """Return the children that any thread of the process started, none for one that is gone."""
    found: list[int] = []
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found
