"""Keeps the listener running: a process of its own, started again when it ends, with growing pauses."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from replicator.serve.launcher import build_command
from replicator.telemetry.log import get_logger

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 300.0
# A listener that has lived this long did its work: the next pause is a short one again.
_SETTLED_S = 120.0
# For so long a process that does not lead leaves a free lock to the one that does: two at once would race for it.
_YIELD_S = 6.0
_TOLD_S = 4.0


class Supervisor:
    """The process of `replicator listen`."""

    def __init__(self, config: Path | None) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._next_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._held_since: float | None = None
        self._free_since: float | None = None
        self._has_told = False
        self._log = get_logger()

    @property
    def is_alive(self) -> bool:
        """Say whether the listener's process runs."""
        return self._process is not None and self._process.poll() is None

    def ensure(self, *, is_held: bool, leads: bool) -> None:
        """Start the listener if none runs and its pause is over.

        is_held: whether some listener has the lock, another process's too. leads: whether this process leads.
        """
        if self.is_alive:
            self._held_since = self._free_since = None
            self._has_told = False
            return
        now = time.monotonic()
        if self._process is not None:
            self._note_end(self._process.returncode, now)
        if is_held:
            self._note_other(now)
            return
        self._held_since, self._has_told = None, False
        self._free_since = now if self._free_since is None else self._free_since
        if now >= self._next_at and (leads or now - self._free_since >= _YIELD_S):
            self._process = subprocess.Popen(
                build_command(self._config, "listen"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            self._started_at = now
            self._log.info("listener_launched", path="listen")

    def _note_other(self, now: float) -> None:
        """Tell once of a listener that is not ours; of one that has just died the server may not know yet."""
        self._free_since = None
        self._held_since = now if self._held_since is None else self._held_since
        if not self._has_told and now - self._held_since >= _TOLD_S:
            self._has_told = True
            self._log.warning("listener_elsewhere", path="listen")

    def _note_end(self, exit_code: int, now: float) -> None:
        self._process = None
        if now - self._started_at > _SETTLED_S:
            self._pause_s = _FIRST_PAUSE_S
        self._next_at = now + self._pause_s
        self._log.error("listener_ended", path="listen", exit_code=exit_code, pause_seconds=self._pause_s)
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)

    def ask_to_end(self) -> None:
        """Ask the listener to end, and return at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def stop(self, limit_s: float) -> None:
        """Ask the listener to end, and wait until it has confirmed what it wrote; kill it after `limit_s`."""
        process = self._process
        if process is None:
            return
        self.ask_to_end()
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            process.wait()

    def kill(self) -> None:
        """End the listener at once: it goes on from its position, wherever that is."""
        if self._process is not None and self.is_alive:
            self._log.warning("listener_killed", path="listen")
            with suppress(ProcessLookupError):
                self._process.kill()
