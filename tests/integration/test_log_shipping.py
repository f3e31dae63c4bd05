"""Logs on their way out: by Debian's rsyslog with the configuration of deploy/logs, and by the tool itself."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.pair import ROOT, Pair
from tests.receiver import Silence, free_port
from tests.wait import wait_until

LOGS = ROOT / "deploy" / "logs"
MESSAGE = re.compile(r"<(?P<pri>\d+)>1 (?P<at>\S+) \S+ replicator - (?P<event>\S+) - (?P<json>\{.*\})")
SEVERITY = {"debug": 135, "info": 134, "warning": 132, "error": 131}


class Collector:
    """Takes lines over TCP."""

    def __init__(self, port: int) -> None:
        self.lines: list[str] = []
        self._server = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, connection.makefile("r", encoding="utf-8", newline="\n") as stream:
                self.lines += (line.rstrip("\n") for line in stream)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)


@contextmanager
def rsyslog(folder: Path, logs: Path, port: int) -> Iterator[None]:
    """Run Debian's rsyslog with our configuration, its places changed, as a plain process."""
    program = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin")
    assert program, "rsyslogd is missing: apt-get install rsyslog"
    text = (LOGS / "rsyslog.conf").read_text()
    changes = {
        "/var/log/replicator": str(logs),
        'target="logs.example.com"': 'target="127.0.0.1"',
        'port="601"': f'port="{port}"',
        'resumeInterval="5"': 'resumeInterval="1"',
    }
    for before, after in changes.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    config = folder / "rsyslog.conf"
    config.write_text(f'global(workDirectory="{folder}" net.enableDNS="off")\n{text}')
    checked = subprocess.run([program, "-N1", "-f", config], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    with (folder / "stderr").open("wb") as err:
        process = subprocess.Popen([program, "-n", "-f", config, "-i", folder / "pid"], stdout=err, stderr=err)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture
def logged(pair: Pair) -> list[dict[str, Any]]:
    """Run a good and a bad sync, and return what the file of the day holds."""
    pair.source.execute("create table t (id int primary key, n int); insert into t values (1, 1)")
    pair.source.execute('create table "odd ""{name}\\" (id int primary key)')
    pair.grant()
    pair.write_config(logs={"level": "debug", "dir": "logs"})
    pair.run("sync")
    pair.as_writer.execute("alter table t add check (n < 9)")
    pair.source.execute("insert into t values (2, 10)")
    pair.run("sync", check=6)
    (file,) = (pair.dir / "logs").glob("etl_2*.log")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rsyslog_brings_every_line_with_its_severity_however_late_the_receiver(
    pair: Pair, logged: list[dict[str, Any]], tmp_path: Path
) -> None:
    port = free_port()
    folder = tmp_path / "rsyslog"
    folder.mkdir()
    with rsyslog(folder, pair.dir / "logs", port):
        # The receiver comes late: what was read meanwhile waits.
        wait_until(lambda: list(folder.glob("imfile-state*")), 30, what="rsyslog has read the file")
        collector = Collector(port)
        wait_until(lambda: len(collector.lines) >= len(logged), 40, what="the lines arrive")
        pair.run("status")
        pair.source.execute("delete from t where id = 2")
        pair.run("sync")
        (file,) = (pair.dir / "logs").glob("etl_2*.log")
        logged = [json.loads(line) for line in file.read_text().splitlines()]
        wait_until(lambda: len(collector.lines) >= len(logged), 30, what="new lines arrive")
    collector.close()
    arrived = [MESSAGE.fullmatch(line) for line in collector.lines]
    assert all(arrived), collector.lines
    told = [match for match in arrived if match is not None]
    # After an outage rsyslog sends again what it had in hand: in a table by content, each line is there once.
    first = {match["json"]: match for match in told}
    assert [json.loads(line) for line in first] == logged
    assert len(told) - len(first) <= 1
    for match, event in zip(first.values(), logged, strict=True):
        assert (match["at"], match["event"]) == (event["timestamp"], event["event"])
        assert int(match["pri"]) == SEVERITY[event["level"]]
    assert {event["level"] for event in logged} >= {"info", "error"}


def test_a_collector_that_hangs_keeps_no_sync_waiting(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); insert into t select generate_series(1, 100)")
    pair.grant()
    with Silence() as silence:
        pair.write_config(tables=["public.t"], logs={"ship_url": f"http://127.0.0.1:{silence.port}/v1/logs"})
        began = time.monotonic()
        finished = pair.run("sync")
    assert time.monotonic() - began < 15
    events = [json.loads(line) for line in finished.stderr.splitlines()]
    shipped = [event for event in events if event["event"] != "logs_dropped"]
    assert [event["events"] for event in events if event["event"] == "logs_dropped"] == [len(shipped)]
    pair.assert_equal("public.t")


def test_the_other_collectors_read_the_same_files() -> None:
    vector = YAML(typ="safe").load(LOGS / "vector.yaml")
    assert vector["sources"]["files"]["include"] == ["${VECTOR_LOG_DIR:-/var/log/replicator}/etl_2*.log"]
    known = {*vector["sources"], *vector["transforms"]}
    for part in (*vector["transforms"].values(), *vector["sinks"].values()):
        assert set(part["inputs"]) <= known
    fluent = (LOGS / "fluent-bit.conf").read_text()
    assert re.search(r"path +\$\{REPLICATOR_LOGS\}/etl_2\*\.log", fluent)
    (parser,) = re.findall(r"^ +parser +(\S+)", fluent, re.MULTILINE)
    parsers = (LOGS / "fluent-bit-parsers.conf").read_text()
    assert re.search(rf"^ +name +{parser}$", parsers, re.MULTILINE)
    assert re.search(r"^ +format +json$", parsers, re.MULTILINE)
