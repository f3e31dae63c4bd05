"""Sends notices to the addresses of `[alerts]`, each on its own and none for longer than its time."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import SecretStr

from replicator.errors import ConfigError
from replicator.monitor.incident import Notice
from replicator.telemetry.log import get_logger

if TYPE_CHECKING:
    import apprise

TIME_LIMIT_S = 20.0
_NOBODY = logging.NullHandler()

_MEANINGS = (
    (r"Connection refused", "the connection was refused"),
    (r"Failed to resolve|Name or service not known|name resolution|getaddrinfo", "its name does not resolve"),
    (r"CERTIFICATE_VERIFY_FAILED|certificate", "its certificate is not trusted"),
    (r"SSLError|SSL:|ssl\.", "TLS failed"),
    (r"unreachable|No route to host", "it cannot be reached"),
    (r"[Tt]imed out|[Tt]imeout", "no answer in time"),
    (r"\berror=(40[13])\b", "it answered {}: the credentials in the address are not right"),
    (r"\berror=(\d{3})\b", "it answered {}"),
    (r"\((53[0-9]), ", "it answered {}: the credentials in the address are not right"),
    (r"\(([45]\d\d), ", "it answered {}"),
    (r"Connection (?:error|reset)|Connection aborted", "the connection failed"),
)
"""What Apprise's plugins say, and what that means; the first that fits. Only a status of three digits is repeated."""


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
        for name, problem in results:
            if problem is not None:
                get_logger().warning("alert_failed", address=name, reason=problem)
        return any(problem is None for _, problem in results)

    def check(self) -> None:
        """Raise ConfigError for addresses that can never be sent to."""
        wrong = [_name(number, url) for number, url in enumerate(self._urls) if _make_sender(url) is None]
        if wrong:
            raise ConfigError(
                f"alerts.urls: address {', '.join(wrong)} cannot be used",
                why="Apprise does not know the scheme, or something that this one needs is not in the address",
                hint="write it as Apprise wants it, like mailto://user:password@mail.example or json://host/path",
                id="alert_address",
            )

    def send_each(self, notice: Notice) -> list[tuple[str, str | None]]:
        """Send to every address at once; return each one's name, like `1 mailto`, and why it did not take the notice.

        One that has not answered after TIME_LIMIT_S counts as failed; its thread does not keep the process from ending.
        """
        problems: list[str | None] = [f"no answer in {TIME_LIMIT_S:g} s"] * len(self._urls)

        def deliver(number: int) -> None:
            problems[number] = _deliver(self._urls[number], notice)

        threads = [
            threading.Thread(target=deliver, args=(number,), name="alert", daemon=True)
            for number in range(len(self._urls))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIME_LIMIT_S)
        return [(_name(number, url), problems[number]) for number, url in enumerate(self._urls)]


def _make_sender(url: str) -> apprise.Apprise | None:
    """Return what sends to an address; None for one that Apprise cannot read."""
    import apprise

    # Why a connection failed is said at this level alone, and to nobody but us.
    logger = logging.getLogger(apprise.LOGGER_NAME)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(_NOBODY)
    with suppress(Exception):
        asset = apprise.AppriseAsset(app_id="replicator", app_desc="replicator", app_url="", async_mode=False)
        sender = apprise.Apprise(asset=asset, log_level=logging.DEBUG)
        return sender if sender.add(url) else None
    return None


def _deliver(url: str, notice: Notice) -> str | None:
    """Send to one address; return why it was not taken. A plugin's words may carry the address: they are not told."""
    words: list[str] = []
    with suppress(Exception):
        import apprise

        sender = _make_sender(url)
        if sender is None:
            return "Apprise cannot use this address"
        kind = apprise.NotifyType.SUCCESS if notice.is_good else apprise.NotifyType.FAILURE
        result = sender.notify(
            body=notice.body, title=notice.title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT
        )
        if result:
            return None
        words = [entry.message for one in result for attempt in one.attempts for entry in attempt.logs]
    return explain(words)


def explain(words: Sequence[str]) -> str:
    """Return in our own words what a sender's words mean."""
    text = "\n".join(words)
    for pattern, meaning in _MEANINGS:
        found = re.search(pattern, text)
        if found:
            return meaning.format(*found.groups())
    return "it did not take the notice"


def _name(number: int, url: str) -> str:
    return f"{number + 1} {_scheme(url)}"


def _scheme(url: str) -> str:
    scheme = url.partition("://")[0]
    return scheme if scheme.isalnum() and len(scheme) <= 20 else "unreadable"
