"""Log events: their shape, their sinks, and what never gets into them."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from pydantic import SecretStr

from replicator.config.settings import LogSettings
from replicator.errors import SafetyStop
from replicator.telemetry.log import LibraryHandler, bind_run, configure_logging, get_logger
from replicator.telemetry.log_file import DailyFile, delete_old_files, replace_link

SECRET = "hunter2-topsecret"
NO_FILE = LogSettings(dir=None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, LibraryHandler)]
    driver = logging.getLogger("psycopg")
    driver.handlers, driver.propagate, driver.level = [], True, logging.NOTSET


def start(logs: LogSettings = NO_FILE, stderr: io.StringIO | None = None, **options: str) -> io.StringIO:
    stream = io.StringIO() if stderr is None else stderr
    level = options.get("level_override")
    configure_logging(logs, pipeline="default", version="1.2.3", level_override=level, stderr=stream)
    return stream


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def one_event(stream: io.StringIO) -> dict[str, Any]:
    (event,) = events(stream.getvalue())
    return event


def test_an_event_is_one_json_object_a_line_with_the_contracts_fields() -> None:
    stream = start()
    run_id = uuid.uuid4()
    with bind_run(run_id=run_id):
        get_logger().info("table_synced", table="public.t", path="sync", rows_inserted=3, duration_seconds=0.5)
    event = one_event(stream)
    timestamp = event.pop("timestamp")
    assert timestamp.endswith("Z")
    assert abs(datetime.fromisoformat(timestamp) - datetime.now(UTC)) < timedelta(minutes=1)
    assert event == {
        "level": "info",
        "event": "table_synced",
        "service.name": "replicator",
        "service.version": "1.2.3",
        "pipeline": "default",
        "run_id": str(run_id),
        "table": "public.t",
        "path": "sync",
        "rows_inserted": 3,
        "duration_seconds": 0.5,
    }


def test_the_run_is_bound_for_its_block_or_for_good() -> None:
    stream = start()
    with bind_run(run_id="a"):
        get_logger().info("run_started")
    get_logger().info("run_finished")
    bind_run(run_id="b")
    get_logger().info("run_started")
    assert [event.get("run_id") for event in events(stream.getvalue())] == ["a", None, "b"]


def test_names_with_dots_come_from_keywords() -> None:
    stream = start()
    get_logger().error("run_failed", error_type="A", error_message="b", sqlstate="57P01")
    event = one_event(stream)
    assert (event["error.type"], event["error.message"], event["db.response.status_code"]) == ("A", "b", "57P01")


def test_an_exception_is_logged_without_its_message() -> None:
    stream = start()
    try:
        raise psycopg.errors.InvalidTextRepresentation(f'invalid input syntax for type integer: "{SECRET}"')
    except psycopg.Error as error:
        get_logger().exception("run_failed", error=error, errors=[error])
        get_logger().error("run_failed", exc_info=error)
        get_logger().error("run_failed", exc_info=(type(error), error, None), stack_info=True)
    assert SECRET not in stream.getvalue()
    for event in events(stream.getvalue()):
        assert event["error.type"] == "InvalidTextRepresentation"
        assert event["db.response.status_code"] == "22P02"
        assert "test_log.py:" in event["error.stack_trace"]


def test_our_own_error_is_logged_with_its_words() -> None:
    stream = start()
    get_logger().error("run_failed", exc_info=SafetyStop("public.t: 5 rows would go", why="limit"))
    assert one_event(stream)["error.message"] == "public.t: 5 rows would go: limit"


def test_an_object_is_told_by_its_class_alone() -> None:
    class Row:
        def __repr__(self) -> str:
            return SECRET

    stream = start(level_override="debug")
    get_logger().debug(
        "x", a=Row(), b=SECRET.encode(), c=SecretStr(SECRET), d={"k": [Row()]}, e={Row}, f=lambda: SECRET
    )
    assert SECRET not in stream.getvalue()
    event = one_event(stream)
    assert event["a"].endswith("Row>")
    assert event["b"] == "<bytes>"


def test_plain_values_become_json() -> None:
    stream = start()
    get_logger().info(
        "x",
        a=Decimal("1.5"),
        b=timedelta(seconds=90),
        c=datetime(2026, 1, 2, tzinfo=UTC),
        d=Path("a/b"),
        e=float("nan"),
        f=(1, None, True),
        g=date(2026, 1, 2),
    )
    event = one_event(stream)
    values = [event[key] for key in "abcdefg"]
    assert values == [1.5, 90.0, "2026-01-02T00:00:00+00:00", "a/b", "nan", [1, None, True], "2026-01-02"]


def test_passwords_are_hidden_wherever_they_stand() -> None:
    stream = start()
    get_logger().warning(
        f"connecting to postgresql://u:{SECRET}@h/d",
        dsn=f"host=h password={SECRET}",
        nested={"list": [f"postgresql://u:{SECRET}@h"], "api_token": SECRET},
        password=SECRET,
    )
    assert SECRET not in stream.getvalue()


def test_the_level_is_the_configured_one_unless_overridden() -> None:
    stream = start(LogSettings(dir=None, level="warning"))
    get_logger().info("hidden")
    get_logger().warning("shown")
    assert one_event(stream)["event"] == "shown"
    stream = start(LogSettings(dir=None, level="warning"), level_override="debug")
    get_logger().debug("shown")
    assert one_event(stream)["event"] == "shown"


def test_a_terminal_gets_colours_and_a_pipe_gets_json() -> None:
    terminal = start(stderr=Terminal())
    get_logger().info("table_synced", table="public.t")
    assert "\x1b[" in terminal.getvalue()
    assert "service" not in terminal.getvalue()
    pipe = start()
    get_logger().info("table_synced", table="public.t")
    assert one_event(pipe)["table"] == "public.t"


def test_the_format_can_be_forced() -> None:
    terminal = start(LogSettings(dir=None, format="json"), stderr=Terminal())
    get_logger().info("table_synced")
    assert one_event(terminal)["event"] == "table_synced"
    pipe = start(LogSettings(dir=None, format="console"))
    get_logger().info("table_synced", rows_inserted=3)
    assert "\x1b" not in pipe.getvalue()
    assert "rows_inserted=3" in pipe.getvalue()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = start(stderr=Terminal())
    get_logger().info("table_synced")
    assert "table_synced" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


def test_a_hostile_name_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = start(stderr=Terminal())
    get_logger().info("table_synced", table="public.\x1b[2J\x9b", list=["\x1b[2J"])
    assert "\x1b" not in terminal.getvalue()
    assert "\x9b" not in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1


def test_the_terminal_shows_the_frames_of_an_exception() -> None:
    terminal = start(stderr=Terminal())
    try:
        raise KeyError(SECRET)
    except KeyError:
        get_logger().exception("run_failed")
    assert "test_log.py:" in terminal.getvalue()
    assert SECRET not in terminal.getvalue()


def test_the_day_s_file_has_json_lines_whatever_stderr_shows(tmp_path: Path) -> None:
    start(LogSettings(dir=tmp_path / "logs" / "etl"), stderr=Terminal())
    get_logger().info("run_started")
    get_logger().info("run_finished")
    today = datetime.now(UTC).strftime("%Y%m%d")
    link = tmp_path / "logs" / "etl" / "etl_latest.log"
    assert link.is_symlink()
    assert str(link.readlink()) in {f"etl_{today}.log", f"etl_{datetime.now(UTC).strftime('%Y%m%d')}.log"}
    assert [event["event"] for event in events(link.read_text())] == ["run_started", "run_finished"]


def test_a_second_process_appends_to_the_same_file(tmp_path: Path) -> None:
    for name in ("first", "second"):
        start(LogSettings(dir=tmp_path))
        get_logger().info(name)
    assert [event["event"] for event in events((tmp_path / "etl_latest.log").read_text())] == ["first", "second"]


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    stream = start(LogSettings(dir=tmp_path))
    threads = [
        threading.Thread(target=lambda: [get_logger().info("x", table="t" * 5_000) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(events(stream.getvalue())) == 200
    assert len(events((tmp_path / "etl_latest.log").read_text())) == 200


def test_the_file_changes_at_midnight(tmp_path: Path) -> None:
    file = DailyFile(tmp_path, 30)
    assert file.write("a\n", "2026-01-01T23:59:59.9Z") is None
    assert file.write("b\n", "2026-01-02T00:00:00.0Z") is None
    assert file.write("late\n", "2026-01-01T23:59:59.9Z") is None
    assert (tmp_path / "etl_20260101.log").read_text() == "a\n"
    assert (tmp_path / "etl_20260102.log").read_text() == "b\nlate\n"
    assert (tmp_path / "etl_latest.log").read_text() == "b\nlate\n"


def test_files_past_their_retention_go_and_others_stay(tmp_path: Path) -> None:
    for name in ("etl_20260101.log", "etl_20260102.log", "etl_20260131.log", "etl_2026.log", "other.log"):
        (tmp_path / name).touch()
    delete_old_files(tmp_path, 30, date(2026, 2, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "etl_2026.log",
        "etl_20260102.log",
        "etl_20260131.log",
        "other.log",
    ]


def test_retention_is_applied_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "etl_20200101.log").touch()
    start(LogSettings(dir=tmp_path))
    assert not (tmp_path / "etl_20200101.log").exists()


def test_the_link_is_replaced_even_when_a_dead_process_left_its_half(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    replace_link(tmp_path / "link", "a")
    replace_link(tmp_path / "link", "b")
    assert (tmp_path / "link").read_text() == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "link"]


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stream = start(LogSettings(dir=tmp_path / "file" / "logs"))
    get_logger().info("run_started")
    get_logger().info("run_finished")
    assert [event["event"] for event in events(stream.getvalue())] == [
        "log_file_unavailable",
        "run_started",
        "run_finished",
    ]


def test_a_file_that_fails_later_costs_one_warning(tmp_path: Path) -> None:
    stream = start(LogSettings(dir=tmp_path))
    file = structlog.get_config()["logger_factory"]()._file
    with Path("/dev/full").open("wb") as device:
        os.dup2(device.fileno(), file._descriptor)
    get_logger().info("a")
    get_logger().info("b")
    assert [event["event"] for event in events(stream.getvalue())] == ["a", "log_file_unavailable", "b"]


def test_a_closed_stderr_stops_nobody() -> None:
    stream = start()
    stream.close()
    get_logger().info("run_started")


def test_before_it_is_configured_nothing_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()
    try:
        raise KeyError(SECRET)
    except KeyError:
        get_logger().exception("run_failed")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "run_failed" in captured.err
    assert SECRET not in captured.err


def test_a_library_s_warning_is_told_without_its_message() -> None:
    stream = start()
    logging.getLogger("some.library").warning("row %s refused", SECRET)
    logging.getLogger("some.library").info("never shown")
    logging.getLogger("some.library").log(35, "own level")
    try:
        raise KeyError(SECRET)
    except KeyError:
        logging.getLogger("some.library").exception(SECRET)
    first, second, third = events(stream.getvalue())
    assert (first["event"], first["level"], first["logger"]) == ("library_warned", "warning", "some.library")
    assert second["level"] == "warning"
    assert (third["level"], third["error.type"]) == ("error", "KeyError")
    assert SECRET not in stream.getvalue()


def test_a_library_that_warns_without_end_is_told_seldom_and_with_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = start()
    now = [1000.0]
    monkeypatch.setattr("replicator.telemetry.log.time.monotonic", lambda: now[0])
    for _ in range(3):
        for _ in range(500):
            logging.getLogger("some.library").warning("no room")
        logging.getLogger("other.library").warning("no room")
        now[0] += 61
    told = [(event["logger"], event.get("repeated")) for event in events(stream.getvalue())]
    assert told == [
        ("some.library", n) if is_some else ("other.library", None) for n in (None, 499, 499) for is_some in (1, 0)
    ]


def test_the_driver_s_own_log_is_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = start()
    logging.getLogger("psycopg").critical("error ignored: %s", SECRET)
    monkeypatch.setattr(logging.getLogger("psycopg.pool"), "level", logging.DEBUG)
    logging.getLogger("psycopg.pool").error("error ignored: %s", SECRET)
    assert stream.getvalue() == ""
    assert capsys.readouterr().err == ""


def test_configuring_twice_writes_each_event_once() -> None:
    first = start()
    second = start()
    get_logger().info("x")
    logging.getLogger("some.library").warning("x")
    assert first.getvalue() == ""
    assert [event["event"] for event in events(second.getvalue())] == ["x", "library_warned"]


def test_capture_logs_sees_the_keywords() -> None:
    start()
    with structlog.testing.capture_logs() as captured:
        get_logger().info("batch_loaded", rows_inserted=1)
    assert captured == [{"event": "batch_loaded", "rows_inserted": 1, "log_level": "info"}]
