"""Tell systemd how a daemon is: the protocol of sd_notify(3), a datagram to $NOTIFY_SOCKET.

    notify_ready()                        # once, when it serves
    heart = Heart()                       # WATCHDOG_USEC, halved
    heart.beat()                          # where the work goes on, and nowhere else: a thread of its own would lie
    notify_stopping()

Without systemd every call does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


def notify(*lines: str) -> bool:
    """Send assignments like `READY=1`; return whether somebody took them. A missing socket is no error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # @ stands for the NUL byte that begins an abstract address.
    path = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto("\n".join(lines).encode(), path)
        return True
    return False


def notify_ready(status: str = "") -> None:
    """Tell that the daemon serves. status: a line for `systemctl status`."""
    notify("READY=1", *_status(status))


def notify_status(status: str) -> None:
    """Tell what it does now, in a line of our own words."""
    notify(*_status(status))


def notify_stopping() -> None:
    """Tell that it ends by itself: systemd then waits for its TimeoutStopSec."""
    notify("STOPPING=1")


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())}"] if text else []


class Heart:
    """Feeds systemd's watchdog, at most once in a third of its time, however often it is called.

    Call `beat` where work is known to go on. is_watched: whether the unit sets WatchdogSec for this very process.
    """

    def __init__(self) -> None:
        limit_s = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6
        is_mine = os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._pause_s = limit_s / 3
        self._beat_at = float("-inf")
        self.is_watched = limit_s > 0 and is_mine

    def beat(self) -> None:
        """Tell that work goes on."""
        now = time.monotonic()
        if self.is_watched and now - self._beat_at >= self._pause_s:
            self._beat_at = now
            notify("WATCHDOG=1")
