"""`demo --serve`: the dashboard on a pipeline in which something happens all the time."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import get_args

import psycopg

from replicator.cli.sync import stop_on_signal
from replicator.db import Connection
from replicator.demo.data import READER, Change, change_demo
from replicator.errors import EXIT_OK, OperatorError

PUBLICATION = "replicator_default"
_PAUSE_S = 1.0
_CONFIG = """
[serve]
port = {port}
"""


def serve_demo(folder: Path, source: Connection, environment: Mapping[str, str], *, port: int) -> None:
    """Serve the demo's pipeline, with its listener, and change the source until a signal.

    source: a superuser's session. port: 0 takes a free one.
    """
    token = _write_token(folder)
    with (folder / "replicator.toml").open("a", encoding="utf-8") as config:
        config.write(_CONFIG.format(port=port))
    _publish(source)
    command = [sys.executable, "-m", "replicator", "serve", "--listen"]
    with stop_on_signal() as stop:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            if not url:
                raise OperatorError(
                    "the demo's dashboard did not start",
                    why=f"exit code {server.wait()}",
                    hint="its message is above; --port 0 takes a free port",
                    id="demo_failed",
                )
            print(f"The dashboard: {url}\nThe token for its buttons and its API: {token}")
            print("The source changes every second. Ctrl-C ends all of it.", flush=True)
            _change_until(source, server, stop)
        finally:
            with suppress(ProcessLookupError):
                server.send_signal(signal.SIGTERM)
            server.wait()


def _write_token(folder: Path) -> str:
    token = secrets.token_hex(32)
    path = folder / "api.token"
    path.touch(mode=0o600)
    path.write_text(token)
    return token


def _publish(source: Connection) -> None:
    """Do what a source's owner does once for a listener."""
    name = psycopg.sql.Identifier(READER)
    source.execute(psycopg.sql.SQL("ALTER ROLE {} REPLICATION").format(name))
    with suppress(psycopg.errors.DuplicateObject):
        source.execute(
            psycopg.sql.SQL("CREATE PUBLICATION {} FOR TABLES IN SCHEMA public").format(
                psycopg.sql.Identifier(PUBLICATION)
            )
        )


def _change_until(source: Connection, server: subprocess.Popen[str], stop: threading.Event) -> None:
    """Change the source until it is told to stop. Raises OperatorError if the server ends by itself."""
    for change in cycle(("insert", *get_args(Change))):
        if stop.wait(_PAUSE_S):
            return
        change_demo(source, change)
        if server.poll() not in (None, EXIT_OK):
            raise OperatorError(
                "the demo's dashboard ended", why=f"exit code {server.returncode}", hint="its message is above"
            )
