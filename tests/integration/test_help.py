"""The command tree answers at once and in the order of the contract."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pair import ROOT

HEAVY = ("apprise", "fastapi", "prometheus_client", "psycopg", "pydantic_settings", "rich", "structlog", "tenacity")
COMMANDS = (
    "demo",
    "init",
    "check",
    "plan",
    "sync",
    "status",
    "history",
    "health",
    "target",
    "serve",
    "schedule",
    "forget",
)
SHOW_MODULES = """
import atexit, sys
atexit.register(lambda: print("\\nmodules:", *sys.modules, file=sys.stderr))
from replicator.cli import main
main()
"""


def run_help(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SHOW_MODULES, *command, "--help"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("target", "up")], ids=" ".join)
def test_help_loads_nothing_heavy(tmp_path: Path, command: tuple[str, ...]) -> None:
    finished = run_help(tmp_path, *command)
    assert finished.returncode == 0, finished.stderr
    assert "Usage: replicator" in finished.stdout
    loaded = set(finished.stderr.rpartition("modules:")[2].split())
    # typer itself reads a command's options with pydantic; that much fits into the 300 ms.
    heavy = {*HEAVY, "replicator.config.settings"} | (set() if command else {"pydantic"})
    assert loaded & heavy == set()
    assert list(tmp_path.iterdir()) == []


def test_commands_stand_in_the_order_of_their_use(tmp_path: Path) -> None:
    listed = re.findall(r"^  ([a-z]+) ", run_help(tmp_path).stdout.partition("Commands:")[2], re.MULTILINE)
    ours = [name for name in listed if name in COMMANDS]
    assert ours[:8] == list(COMMANDS[:8])
