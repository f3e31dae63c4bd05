"""The command `alert test`."""

from __future__ import annotations

from pathlib import Path

from replicator.cli.output import print_json
from replicator.cli.session import open_settings
from replicator.errors import EXIT_FAILED, EXIT_OK, ConfigError
from replicator.monitor.incident import Notice
from replicator.monitor.messenger import Messenger


def send_test(config: Path | None, *, as_json: bool) -> int:
    """Send a test alert to every address; return 1 when one did not take it. Raises ConfigError without an address."""
    settings = open_settings(config)
    messenger = Messenger(settings.alerts.urls)
    if messenger.is_empty:
        raise ConfigError(
            "alerts.urls names no address",
            why="a test alert has nowhere to go",
            hint='put an Apprise URL into .env: REPLICATOR_ALERTS__URLS=["mailto://user:password@mail.example"]',
        )
    messenger.check()
    notice = Notice(
        f"replicator {settings.pipeline}: test", "This is a test: alerts of this pipeline arrive here.", True
    )
    results = messenger.send_each(notice)
    if as_json:
        print_json(
            {"addresses": [{"address": name, "sent": not problem, "reason": problem} for name, problem in results]}
        )
    else:
        for name, problem in results:
            print(f"address {name}: {'sent' if problem is None else f'failed: {problem}'}")
    return EXIT_OK if all(problem is None for _, problem in results) else EXIT_FAILED
