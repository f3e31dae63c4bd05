"""Keeps the listener running: a process of its own, started again when it ends, with growing pauses."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from replicator.log import get_logger
from replicator.serve.launcher import build_command

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 300.0
# A listener that has lived this long did its work: the next pause is a short one again.
_SETTLED_S = 120.0


class Supervisor:
    """The process of `replicator listen`."""

    def __init__(self, config: Path | None) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._next_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._log = get_logger()

    @property
    def is_alive(self) -> bool:
        """Say whether the listener's process runs."""
        return self._process is not None and self._process.poll() is None

    def ensure(self) -> None:
        """Start the listener if it does not run and its pause is over."""
        if self.is_alive:
            return
        now = time.monotonic()
        if self._process is not None:
            self._note_end(self._process.returncode, now)
        if now >= self._next_at:
            self._process = subprocess.Popen(
                build_command(self._config, "listen"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            self._started_at = now
            self._log.info("listener_launched", path="listen")

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
