"""What every command begins with: settings, logs, and the way to the target."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from replicator import __version__
from replicator.apply.control import Control
from replicator.capture.pull import Access
from replicator.config.settings import Settings, load_settings, source_dsn, target_dsn
from replicator.config.settings_source import FILE_NAME, find_config
from replicator.db import Connection, check_conninfo, closing, connect
from replicator.errors import ConfigError
from replicator.telemetry.log import configure_logging


def open_settings(config: Path | None) -> Settings:
    """Load the settings and start the logs. Raises ConfigError."""
    settings = load_settings(config)
    if not settings.names_database and find_config(config, Path.cwd()) is None:
        raise ConfigError(
            f"There is no {FILE_NAME} in {Path.cwd()}",
            why="neither --config nor REPLICATOR_CONFIG names a configuration",
            hint="replicator init --source DSN, or --config PATH",
            id="config_missing",
        )
    for key, dsn in (("source.dsn", settings.source.dsn), ("target.dsn", settings.target.dsn)):
        if dsn is not None:
            check_conninfo(dsn.get_secret_value(), key)
    configure_logging(settings.logs, pipeline=settings.pipeline, version=__version__)
    return settings


@contextmanager
def open_target(settings: Settings) -> Iterator[str]:
    """Yield the target's connection string; the embedded target runs for as long as the block, if it is the target."""
    conninfo = target_dsn(settings)
    if conninfo is not None:
        yield conninfo
        return
    from replicator.embedded import is_made, lease

    if not is_made(settings.data_dir):
        # Nothing is made for a command that would then say that it has no source.
        source_dsn(settings)
    with lease(settings.data_dir) as embedded:
        yield embedded


@contextmanager
def open_run(settings: Settings) -> Iterator[str]:
    """Yield the target's connection string to a command whose end is told: in the metrics file, and by alerts.

    What it did or raised stays as it is, whatever becomes of the telling.
    """
    error: Exception | None = None
    told = False
    try:
        with open_target(settings) as conninfo:
            try:
                yield conninfo
            except Exception as raised:
                error = raised
                raise
            finally:
                told = True
                _tell_end(settings, conninfo, error)
    except Exception as raised:
        if not told:
            _tell_end(settings, None, raised)
        raise


def _tell_end(settings: Settings, conninfo: str | None, error: Exception | None) -> None:
    if conninfo is not None and settings.metrics_textfile is not None:
        from replicator.monitor.observe import write_metrics

        write_metrics(settings, conninfo)
    if settings.alerts.urls:
        from replicator.monitor.alerts import check_after

        check_after(settings, conninfo, error)


@contextmanager
def alarm_beside(settings: Settings, conninfo: str) -> Iterator[None]:
    """Look for incidents beside the block for as long as it runs, if there is anybody to tell."""
    if not settings.alerts.urls:
        yield
        return
    from replicator.monitor.alerts import Alarm
    from replicator.monitor.messenger import Messenger

    # Here, and not wherever settings are read: it takes a third of a second.
    Messenger(settings.alerts.urls).check()
    ended = threading.Event()
    thread = threading.Thread(target=Alarm(settings, conninfo).watch, args=(ended,), name="alarm", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=30.0)


@contextmanager
def open_control(settings: Settings) -> Iterator[Control]:
    """Yield the control schema for a command that only reads it."""
    with open_target(settings) as conninfo:
        timeout_s = settings.source.connect_timeout.total_seconds()
        with closing(connect(conninfo, side="target", timeout_s=timeout_s, first=True)) as connection:
            yield Control(connection, settings.target.control_schema, settings.pipeline)


@contextmanager
def open_pair(settings: Settings, access: Access) -> Iterator[tuple[Connection, Connection]]:
    """Yield a session on the source and one on the target, for a command that looks at both."""
    with ExitStack() as stack:
        source = stack.enter_context(closing(access.open(first=True)))
        conninfo = stack.enter_context(open_target(settings))
        target = connect(conninfo, side="target", timeout_s=access.connect_timeout_s, first=True)
        yield source, stack.enter_context(closing(target))
