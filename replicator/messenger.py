"""Sends notices to the addresses of `[alerts]`, each on its own and none for longer than its time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

from pydantic import SecretStr

from replicator.incident import Notice
from replicator.log import get_logger

TIME_LIMIT_S = 20.0


class Messenger:
    """Knows the addresses. They are secrets: what is told of one is its number and its scheme."""

    def __init__(self, urls: Sequence[SecretStr]) -> None:
        self._urls = [url.get_secret_value() for url in urls if url.get_secret_value().strip()]

    @property
    def is_empty(self) -> bool:
        """Say whether there is no address."""
        return not self._urls

    def send(self, notice: Notice) -> bool:
        """Send to every address; return whether one of them took it."""
        results = self.send_each(notice)
        for name, is_sent in results:
            if not is_sent:
                get_logger().warning("alert_failed", address=name)
        return any(is_sent for _, is_sent in results)

    def send_each(self, notice: Notice) -> list[tuple[str, bool]]:
        """Send to every address at once; return each one's name, like `1 mailto`, and whether it took the notice.

        One that has not answered after TIME_LIMIT_S counts as failed; its thread does not keep the process from ending.
        """
        taken = [False] * len(self._urls)

        def deliver(number: int) -> None:
            taken[number] = _deliver(self._urls[number], notice)

        threads = [
            threading.Thread(target=deliver, args=(number,), name="alert", daemon=True)
            for number in range(len(self._urls))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIME_LIMIT_S)
        return [(f"{n + 1} {_scheme(url)}", taken[n]) for n, url in enumerate(self._urls)]


def _deliver(url: str, notice: Notice) -> bool:
    """Send to one address. A plugin's error may carry the address, so it is not even told."""
    with suppress(Exception):
        import apprise

        asset = apprise.AppriseAsset(app_id="replicator", app_desc="replicator", app_url="", async_mode=False)
        sender = apprise.Apprise(asset=asset)
        kind = apprise.NotifyType.SUCCESS if notice.is_good else apprise.NotifyType.FAILURE
        return sender.add(url) and bool(
            sender.notify(body=notice.body, title=notice.title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT)
        )
    return False


def _scheme(url: str) -> str:
    scheme = url.partition("://")[0]
    return scheme if scheme.isalnum() and len(scheme) <= 20 else "unreadable"
