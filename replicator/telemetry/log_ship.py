"""Ship log events to an OTLP/HTTP collector: from a bounded queue, in a thread, never in anybody's way.

An event that finds the queue full, or whose request fails, is dropped and counted. What is dropped here stands on
stderr and in the daily file all the same.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from replicator.errors import ExtraMissing

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import ReadableLogRecord

QUEUE_EVENTS = 2048
BATCH_EVENTS = 256
REQUEST_TIMEOUT_S = 5.0
GATHER_S = 0.5
"""How long the first event of a batch waits for others."""

_LIBRARIES = ("opentelemetry", "urllib3", "requests")
_RESOURCE = ("service.name", "service.version")
_SEVERITY = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}

Event = Mapping[str, Any]


class LogShipper:
    """Ships events until it is closed. dropped: events that nobody will see at the other end.

    url: the endpoint, path included. Raises ExtraMissing without the extra `otel`.
    """

    def __init__(self, url: str, *, queue_events: int = QUEUE_EVENTS) -> None:
        if not _is_installed():
            raise ExtraMissing(
                "logs.ship_url is set, and the extra otel is not installed",
                why="logs are shipped by OpenTelemetry's exporter",
                hint="pip install 'replicator[otel]'",
            )
        self._url = url
        self._queue: queue.Queue[Event | None] = queue.Queue(queue_events)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._unsent = 0
        self.dropped = 0
        _silence_libraries()
        self._thread = threading.Thread(target=self._run, name="ship", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Hand an event over, or drop it; returns at once either way."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._drop(1)

    def close(self, timeout_s: float) -> int:
        """Ship what waits for at most `timeout_s`; return how many events were dropped in all."""
        self._closing.set()
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(timeout_s)
        self._drop(self._unsent + self._count_waiting())
        return self.dropped

    def _count_waiting(self) -> int:
        """Empty the queue, and return how many events were in it."""
        count = 0
        with suppress(queue.Empty):
            while True:
                count += self._queue.get_nowait() is not None
        return count

    def _drop(self, count: int) -> None:
        with self._lock:
            self.dropped += count

    def _run(self) -> None:
        exporter = None
        while not (self._closing.is_set() and self._queue.empty()):
            batch = self._gather()
            self._unsent = len(batch)
            try:
                exporter = exporter or _open(self._url)
                is_shipped = _export(exporter, batch)
            except Exception:  # noqa: BLE001  # whatever a library raises, the next batch gets its try
                is_shipped = False
            if not is_shipped:
                self._drop(len(batch))
            self._unsent = 0

    def _gather(self) -> list[Event]:
        """Wait for an event, then for others that come soon."""
        batch: list[Event] = []
        timeout_s: float | None = None
        with suppress(queue.Empty):
            while len(batch) < BATCH_EVENTS:
                event = self._queue.get(timeout=timeout_s)
                if event is None:
                    break
                batch.append(event)
                timeout_s = 0.001 if self._closing.is_set() else GATHER_S
        return batch


def _is_installed() -> bool:
    find = importlib.util.find_spec
    return find("opentelemetry") is not None and find("opentelemetry.exporter") is not None


def _open(url: str) -> OTLPLogExporter:
    """Return the exporter. Imported here, in the thread: the libraries take a third of a second."""
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter

    return OTLPLogExporter(endpoint=url, timeout=REQUEST_TIMEOUT_S, compression=Compression.Gzip)


def _export(exporter: OTLPLogExporter, batch: Sequence[Event]) -> bool:
    from opentelemetry.sdk._logs.export import LogRecordExportResult

    return not batch or exporter.export([_record(event) for event in batch]) is LogRecordExportResult.SUCCESS


def _record(event: Event) -> ReadableLogRecord:
    """Return an event as OpenTelemetry has it: the event's name as body, its fields as attributes."""
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.resources import Resource

    at = int(datetime.fromisoformat(event["timestamp"]).timestamp() * 1e6) * 1000
    resource = Resource({key: str(event[key]) for key in _RESOURCE if key in event})
    own = {"timestamp", "level", "event", *_RESOURCE}
    record = LogRecord(
        timestamp=at,
        observed_timestamp=at,
        severity_text=event["level"],
        severity_number=SeverityNumber(_SEVERITY.get(event["level"], 0)),
        body=event["event"],
        attributes={key: _plain(value) for key, value in event.items() if key not in own and value is not None},
    )
    return ReadableLogRecord(record, resource)


def _plain(value: Any) -> str | bool | int | float:
    return value if isinstance(value, str | bool | int | float) else json.dumps(value)


def _silence_libraries() -> None:
    """Keep the exporter's own complaints out of the logs: they would be shipped in their turn, and fail again."""
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
