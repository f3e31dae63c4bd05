"""A target that an older revision made is taken over in place."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.pair import ROOT, Pair
from tests.streaming import catch_up, wait_until_equal
from tests.wait import wait_until

BEFORE = "fe4af0b"
"""The last revision whose control schema ended with its seventh migration."""


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Return a checkout of the older revision."""
    archive = subprocess.run(["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"this checkout does not have revision {BEFORE}")
    folder = tmp_path / "older"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def start_older(pair: Pair, older: Path, *args: str) -> subprocess.Popen[bytes]:
    with (pair.dir / f"older-{args[0]}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "replicator", *args],
            cwd=pair.dir, env=pair.environment(PYTHONPATH=str(older)), stdout=log, stderr=log,
        )  # fmt: skip


def test_a_listener_and_a_sync_go_on_where_an_older_revision_stopped(streamed: Pair, older: Path) -> None:
    """Stopped amid a stream; the new one copies nothing again, and all is equal at the end."""
    streamed.source.execute(
        "create table t (id int primary key, n int, note text);"
        "insert into t select g, 0, 'n' || g from generate_series(1, 3000) g;"
        "create table k (a int); alter table k replica identity full;"
        "insert into k select g % 5 from generate_series(1, 50) g;"
        "create table p (id int primary key, n numeric) partition by range (id);"
        "create table p1 partition of p for values from (0) to (1000);"
        "create table p2 partition of p for values from (1000) to (9999);"
        "insert into p select g, 1 from generate_series(1, 2000) g;"
        "create view v as select id, n from t"
    )
    streamed.publish()
    streamed.write_config(tables=["public.*", {"name": "public.v", "key": ["id"], "target": "public.v_copy"}])
    stopped = threading.Event()

    def write() -> None:
        with streamed.source_server.connect(streamed.source_db) as session:
            while not stopped.wait(0.002):
                session.execute(
                    "update t set n = n + 1 where id = 1 + (random() * 2999)::int; insert into k values (1)"
                )
                session.execute("update p set n = n + 1 where id = 1 + (random() * 1999)::int")

    writer = threading.Thread(target=write, daemon=True)
    assert start_older(streamed, older, "sync").wait(60) == 0
    with start_older(streamed, older, "listen") as listener:
        log = streamed.dir / "older-listen.log"
        wait_until(lambda: b"stream_started" in log.read_bytes(), 40, what="the older listener streams")
        writer.start()
        query = "select sum(n) > 50 from t"
        wait_until(lambda: streamed.target.execute(query).fetchone() == (True,), what="it is amid the stream")
        listener.send_signal(signal.SIGTERM)
        assert listener.wait(30) == 0
    before = len(streamed.control_rows())
    threading.Event().wait(0.5)
    with streamed.popen("listen") as running:
        wait_until(lambda: "stream_started" in running.stderr, 40, what="the new listener streams")
        threading.Event().wait(1.0)
        stopped.set()
        writer.join(30)
        wait_until_equal(streamed, "public.t", "public.k", "public.p")
        running.send(signal.SIGTERM)
        running.wait(30, check=0)
    catch_up(streamed)
    copied = [row for row in streamed.control_rows()[before:] if row["load_type"] != "stream"]
    assert copied == []
    streamed.run("sync")
    (view,) = [row for row in streamed.control_rows(path="sync")[-4:] if row["table_name"] == "public.v"]
    assert view["status"] == "success"
    for table in ("t", "k", "p"):
        streamed.assert_equal(f"public.{table}")
    streamed.assert_equal("public.v", "public.v_copy")


def test_a_nightly_sync_reads_only_what_changed_after_an_upgrade(pair: Pair, older: Path) -> None:
    pair.source.execute(
        "create table t (id int primary key, n int); insert into t select g, 0 from generate_series(1, 500) g"
    )
    pair.grant()
    pair.write_config(tables=["public.t"])
    assert start_older(pair, older, "sync").wait(60) == 0
    pair.source.execute("update t set n = 1 where id <= 3; delete from t where id = 9")
    pair.run("sync")
    pair.assert_equal("public.t")
    row = pair.control_rows("public.t")[-1]
    assert (row["load_type"], row["rows_extracted"], row["rows_deleted"]) == ("incremental", 3, 1)
