"""One serving process: HTTP in the main thread, the scheduler and what it keeps running beside it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from replicator.config.settings import Settings
from replicator.config.settings_source import find_config
from replicator.errors import ConfigError
from replicator.serve.app import build_app
from replicator.serve.desk import Desk
from replicator.serve.guard import FileToken, token_is_exposed
from replicator.serve.launcher import DRAIN_S, Launcher
from replicator.serve.notify import Heart, notify_ready, notify_stopping
from replicator.serve.scheduler import Scheduler
from replicator.serve.service import Service
from replicator.serve.supervisor import Supervisor
from replicator.serve.view import Views
from replicator.telemetry.log import get_logger

# Requests under way get this long once the process is told to end.
_GRACE_S = 5


def serve(
    settings: Settings,
    target_conninfo: str,
    config: Path | None,
    *,
    listens: bool,
    stop: threading.Event,
    on_start: Callable[[str], None],
) -> None:
    """Serve until a signal; then let requests, runs and the listener end. on_start: gets the URL.

    stop: set by the signal's handler. Raises ConfigError for a bind that is refused.
    """
    import uvicorn

    from replicator.serve.connection import HttpConnection

    host = settings.serve.host
    token_file = place_token(settings.serve.token_file, config)
    token = FileToken(token_file, host)
    listening = _bind(host, settings.serve.port)
    log = get_logger()
    if token_is_exposed(token_file):
        log.warning("token_file_exposed", file=str(token_file), hint=f"chmod 600 {token_file}, and make a new token")
    launcher = Launcher(settings, target_conninfo, config)
    supervisor = Supervisor(config) if listens else None

    heart = Heart()

    def on_tick(leads: bool) -> None:
        is_held = None if supervisor is None else scheduler.is_held("listener")
        if supervisor is not None and is_held is not None and not stop.is_set():
            supervisor.ensure(is_held=is_held, leads=leads)
        heart.beat()

    scheduler = Scheduler(settings, target_conninfo, launcher, on_tick=on_tick)
    thread = threading.Thread(target=scheduler.run, args=(stop,), name="scheduler", daemon=True)
    views = Views(settings, target_conninfo)
    service = Service(
        settings,
        target_conninfo,
        Desk(settings, target_conninfo, launcher),
        scheduler,
        listens,
        thread.is_alive,
        views,
    )
    app = build_app(service, token, host)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE_S,
            http=HttpConnection,
            ws="none",
            h11_max_incomplete_event_size=64 * 1024,
        )
    )
    url = _name_url(host, listening)
    thread.start()
    log.info("serve_started", url=url, listens=listens, token_file=str(token_file or ""), token_set=token.is_set)
    on_start(url)
    notify_ready(f"serving {url}")
    try:
        server.run(sockets=[listening])
    finally:
        notify_stopping()
        stop.set()
        log.info("serve_draining", runs=len(launcher.list_alive()))
        with _killing_on_signal(*([launcher] if supervisor is None else [launcher, supervisor])):
            # It may be in the middle of a question to a target that is away.
            thread.join(_GRACE_S)
            since = time.monotonic()
            if supervisor is not None:
                supervisor.ask_to_end()
            launcher.drain()
            if supervisor is not None:
                supervisor.stop(max(1.0, DRAIN_S - (time.monotonic() - since)))
        views.close()
        log.info("serve_ended")


def place_token(path: Path | None, config: Path | None) -> Path | None:
    """Return where the token's file is: beside the configuration, wherever the process was started."""
    if path is None:
        return None
    found = find_config(config, Path.cwd())
    return (Path.cwd() if found is None else found.parent) / path.expanduser()


class _Killable(Protocol):
    def kill(self) -> None: ...


@contextmanager
def _killing_on_signal(*parts: _Killable) -> Iterator[None]:
    """Let a second signal end at once what this process has started, so that the process itself may end."""

    def kill(_number: int, _frame: FrameType | None) -> None:
        # In a thread: a handler that waits for a lock of the code that it interrupts would wait for ever.
        for part in parts:
            threading.Thread(target=part.kill, name="kill", daemon=True).start()

    before = {number: signal.signal(number, kill) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bind(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises ConfigError when the address is not to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With its protocol named, asyncio sets TCP_NODELAY: answers would else wait 40 ms for an acknowledgement.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"serve.host and serve.port: nothing can listen at {host}, port {port}",
            why=error.strerror or type(error).__name__,
            hint="choose another port, or end what listens there",
            id="port_taken",
        ) from None
    return bound


def _name_url(host: str, bound: socket.socket) -> str:
    port = bound.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
