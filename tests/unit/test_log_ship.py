"""Shipping logs: what a collector is told, and that nothing waits for it."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from pydantic import SecretStr

from replicator.config.settings import LogSettings
from replicator.errors import ExtraMissing
from replicator.telemetry.log import configure_logging, count_dropped, get_logger
from replicator.telemetry.log_ship import LogShipper
from tests.receiver import Request, Silence, Webhook, free_port
from tests.wait import wait_until

EVENT = {"timestamp": "2026-03-01T03:00:00.250000Z", "level": "warning", "event": "retry_scheduled", "attempt": 2}


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    yield
    configure_logging(LogSettings(dir=None), pipeline="default", version="1", stderr=io.StringIO())
    structlog.reset_defaults()


def read(request: Request) -> list[dict[str, Any]]:
    """Return the events of a request, resource and all, flat."""
    assert request.headers["content-type"] == "application/x-protobuf"
    message = ExportLogsServiceRequest.FromString(gzip.decompress(request.body))
    events = []
    for group in message.resource_logs:
        resource = {one.key: one.value.string_value for one in group.resource.attributes}
        for scope in group.scope_logs:
            for record in scope.log_records:
                fields = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in record.attributes}
                own = {
                    "body": record.body.string_value,
                    "severity": record.severity_number,
                    "at": record.time_unix_nano,
                }
                events.append(resource | fields | own)
    return events


def test_a_collector_gets_name_severity_time_and_every_field() -> None:
    with Webhook() as collector:
        shipper = LogShipper(f"http://127.0.0.1:{collector.port}/v1/logs")
        shipper.put(EVENT | {"service.name": "replicator", "table": "public.t", "tables": ["a", "b"], "lsn": None})
        assert shipper.close(10) == 0
    (request,) = collector.requests
    assert request.path == "/v1/logs"
    assert read(request) == [
        {"service.name": "replicator", "table": "public.t", "tables": '["a", "b"]', "attempt": 2,
         "body": "retry_scheduled", "severity": 13, "at": 1772334000250000000}
    ]  # fmt: skip


def test_what_the_collector_refuses_is_counted_and_the_next_is_tried() -> None:
    with Webhook(status=400) as collector:
        shipper = LogShipper(f"http://127.0.0.1:{collector.port}/v1/logs")
        shipper.put(EVENT)
        wait_until(lambda: shipper.dropped == 1, what="the first is refused")
        collector.status = 200
        shipper.put(EVENT)
        assert shipper.close(10) == 1
    assert len(collector.requests) == 2


def test_a_collector_that_hangs_holds_nobody_up_and_what_is_lost_is_counted() -> None:
    with Silence() as collector:
        shipper = LogShipper(f"http://127.0.0.1:{collector.port}/v1/logs", queue_events=100)
        begun = time.monotonic()
        for _ in range(5000):
            shipper.put(EVENT)
        assert time.monotonic() - begun < 1.0
        assert shipper.close(0.2) == 5000


def test_events_reach_the_collector_and_stderr_alike_without_the_secret() -> None:
    stderr = io.StringIO()
    with Webhook() as collector:
        logs = LogSettings(dir=None, ship_url=SecretStr(f"http://127.0.0.1:{collector.port}/v1/logs"))
        configure_logging(logs, pipeline="night", version="1.2.3", stderr=stderr)
        get_logger().info("run_started", dsn="host=x password=hunter2", table="public.t")
        configure_logging(LogSettings(dir=None), pipeline="night", version="1.2.3", stderr=stderr)
    (event,) = [event for request in collector.requests for event in read(request)]
    assert (event["body"], event["pipeline"], event["service.version"]) == ("run_started", "night", "1.2.3")
    assert "hunter2" not in str(event)
    assert "run_started" in stderr.getvalue()


def test_a_dead_collector_costs_one_line_at_the_end_and_no_loop_of_complaints() -> None:
    stderr = io.StringIO()
    logs = LogSettings(dir=None, ship_url=SecretStr(f"http://user:hunter2@127.0.0.1:{free_port()}/v1/logs"))
    configure_logging(logs, pipeline="night", version="1", stderr=stderr)
    get_logger().info("run_started")
    wait_until(lambda: count_dropped() == 1, 30, what="the event is given up")
    configure_logging(LogSettings(dir=None), pipeline="night", version="1", stderr=stderr)
    assert [
        line for line in stderr.getvalue().splitlines() if "run_started" not in line and "logs_dropped" not in line
    ] == []
    assert stderr.getvalue().count("logs_dropped") == 1
    assert "hunter2" not in stderr.getvalue()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.telemetry.log_ship.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraMissing) as caught:
        LogShipper("http://127.0.0.1:1/v1/logs")
    assert caught.value.hint == "pip install 'replicator[otel]'"
