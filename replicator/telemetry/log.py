"""Logs: one event a line, to stderr and to a file a day; never a password, never a cell value.

    get_logger().info("table_synced", table="public.t", rows_inserted=3)

Values of fields are numbers, names and our own words. An exception is told by class, SQLSTATE and frames
(`replicator.telemetry.trace`); of an object that is no plain value only the class is told; messages of other libraries
are not told at all.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from threading import RLock
from typing import TYPE_CHECKING, Any, TextIO, cast
from uuid import UUID

from replicator.telemetry.lean import without

with without("rich"):
    # structlog takes rich along, and that takes a quarter of a command's start, for tracebacks never shown here.
    import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from replicator.config.settings import LogSettings
from replicator.telemetry.log_file import DailyFile
from replicator.telemetry.redaction import HIDDEN, is_secret_key, redact_text
from replicator.telemetry.trace import describe_error, error_fields, scrub_traceback

if TYPE_CHECKING:
    from replicator.telemetry.log_ship import LogShipper

SERVICE_NAME = "replicator"

DOTTED = {
    "service_name": "service.name",
    "service_version": "service.version",
    "error_type": "error.type",
    "error_message": "error.message",
    "error_traceback": "error.stack_trace",
    "sqlstate": "db.response.status_code",
}
FIRST = ("timestamp", "level", "event", "service.name", "service.version", "pipeline", "run_id")


def configure_logging(
    logs: LogSettings,
    *,
    pipeline: str,
    version: str,
    level_override: str | None = None,
    stderr: TextIO | None = None,
) -> None:
    """Send events of `level` and above to stderr and, as JSON lines, to the daily file under `logs.dir`.

    stderr gets console text on a terminal and JSON otherwise, or what `logs.format` says. A folder that cannot
    be written costs one warning. With `logs.ship_url` they also go there. Calling it again replaces the former setup.
    Raises ExtraMissing where shipping needs a package that is not installed.
    """
    stream = sys.stderr if stderr is None else stderr
    console = logs.format == "console" or (logs.format == "auto" and stream.isatty())
    file = DailyFile(logs.dir, logs.retention_days) if logs.dir is not None else None
    service = {"service_name": SERVICE_NAME, "service_version": version, "pipeline": pipeline}
    close_logging()
    shipper = None if logs.ship_url is None else _open_shipper(logs.ship_url.get_secret_value())
    _configure(Output(stream, console=console, file=file, shipper=shipper), service, level_override or logs.level)
    _quiet_libraries()
    if file is not None and (problem := file.open_today()):
        get_logger().warning("log_file_unavailable", dir=logs.dir, error_message=problem)


def get_logger() -> FilteringBoundLogger:
    """Return the logger. Before `configure_logging` it writes to stderr: stdout belongs to results."""
    if not structlog.is_configured():
        _configure(Output(sys.stderr, console=False), {"service_name": SERVICE_NAME}, "info")
    return cast(FilteringBoundLogger, structlog.get_logger())


def bind_run(*, run_id: UUID | str) -> AbstractContextManager[object]:
    """Put `run_id` on every event from now on, or of a `with` block.

    A thread started later does not see it unless it runs in a copy of the context (`contextvars.copy_context`).
    """
    unbind = ExitStack()
    tokens = structlog.contextvars.bind_contextvars(run_id=str(run_id))
    unbind.callback(lambda: structlog.contextvars.reset_contextvars(**tokens))
    return unbind


_SHIP_END_S = 3.0
_shippers: list[LogShipper] = []


def count_dropped() -> int:
    """Return how many events of this process were not shipped, though they should have been."""
    return sum(shipper.dropped for shipper in _shippers)


def _open_shipper(url: str) -> LogShipper:
    from replicator.telemetry.log_ship import LogShipper

    shipper = LogShipper(url)
    _shippers.append(shipper)
    atexit.register(close_logging)
    return shipper


def close_logging() -> None:
    """Ship what waits, for three seconds at most, and tell what was lost of all.

    A command calls this when it ends; at the interpreter's own end nothing can be imported any more.
    """
    atexit.unregister(close_logging)
    while _shippers:
        if dropped := _shippers.pop().close(_SHIP_END_S):
            get_logger().warning("logs_dropped", events=dropped)


class Output:
    """Where finished events go. Threads may share it; each event is written whole."""

    def __init__(
        self, stream: TextIO, *, console: bool, file: DailyFile | None = None, shipper: LogShipper | None = None
    ) -> None:
        self._stream = stream
        self._file = file
        self._shipper = shipper
        self._lock = RLock()
        self._console = structlog.dev.ConsoleRenderer(colors=_wants_colours(stream)) if console else None

    def write(self, event: EventDict) -> None:
        """Write one event to the file and to stderr. A sink that fails never fails the caller."""
        line = json.dumps(event) + "\n"
        with self._lock:
            problem = self._file.write(line, event["timestamp"]) if self._file is not None else None
            self._write_stderr(self._render(self._console, event) if self._console else line)
        if self._shipper is not None:
            self._shipper.put(event)
        if problem:
            get_logger().warning("log_file_unavailable", error_message=problem)

    debug = info = warning = error = critical = write

    def _write_stderr(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()

    @staticmethod
    def _render(console: structlog.dev.ConsoleRenderer, event: EventDict) -> str:
        shown = {key: _escape_controls(value) for key, value in event.items() if not key.startswith("service.")}
        if "error.stack_trace" in shown:
            shown["exception"] = shown.pop("error.stack_trace")
        return f"{console(None, '', shown)}\n"


def _configure(output: Output, service: Mapping[str, str], level: str) -> None:
    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**service, **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_service,
            _replace_exception,
            _plain_event,
            _finish_event,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,
    )


def _replace_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take `exc_info` out and put in what may be told of it. structlog's own rendering shows messages and locals."""
    event.pop("stack_info", None)
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is None:
        return event
    return {**error_fields(error), **event, "error_traceback": scrub_traceback(error)}


def _plain_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {DOTTED.get(key, key): plain_field(key, v) for key, v in event.items()}


def _finish_event(_logger: WrappedLogger, _method: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    first = {key: event[key] for key in FIRST if key in event}
    return ({**first, **event},), {}


def plain_value(value: object) -> Any:
    """Return a value that JSON has, redacted; of an object that is none of the known kinds only its class."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, BaseException):
        return describe_error(value)
    if isinstance(value, Enum):
        return plain_value(value.value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, str | UUID | PurePath):
        return redact_text(str(value))
    if isinstance(value, Mapping):
        return {str(key): plain_field(str(key), item) for key, item in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain_value(item) for item in value]
    return f"<{type(value).__qualname__}>"


def plain_field(key: str, value: object) -> Any:
    """Return a field's value as JSON has it; hidden by its name, unless it only says whether there is one."""
    return plain_value(value) if isinstance(value, bool) or not is_secret_key(key) else HIDDEN


_LIBRARY_PAUSE_S = 60.0


class LibraryHandler(logging.Handler):
    """Tells that a library warned, and where; its message may carry anything. A line is told once a minute at most."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._told: dict[tuple[str, str, int], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Log `library_warned` with the library's logger and line, without the message.

        repeated: how often it warned there since it was last told.
        """
        place = (record.name, record.module, record.lineno)
        told_at, repeated = self._told.get(place, (float("-inf"), 0))
        now = time.monotonic()
        if now - told_at < _LIBRARY_PAUSE_S:
            self._told[place] = (told_at, repeated + 1)
            return
        self._told[place] = (now, 0)
        fields: dict[str, object] = {"repeated": repeated} if repeated else {}
        fields |= error_fields(record.exc_info[1]) if record.exc_info and record.exc_info[1] else {}
        tell = get_logger().error if record.levelno >= logging.ERROR else get_logger().warning
        tell("library_warned", logger=record.name, line=f"{record.module}:{record.lineno}", **fields)


def _quiet_libraries() -> None:
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, LibraryHandler)]
    root.addHandler(LibraryHandler(logging.WARNING))
    driver = logging.getLogger("psycopg")
    driver.handlers = [logging.NullHandler()]
    driver.setLevel(logging.CRITICAL + 1)
    driver.propagate = False


def _wants_colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _escape_controls(value: object) -> object:
    """Escape what would steer the terminal: names come from a database that is not ours."""
    if not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in value)
