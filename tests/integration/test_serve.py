"""`replicator serve`: scheduler and API of the real command on real servers."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg.rows import dict_row

from replicator.config.settings import load_settings
from replicator.serve.launcher import Launcher
from replicator.serve.record import Order
from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.serving import Serving, write_config
from tests.streaming import catch_up, wait_for_stream
from tests.wait import wait_until


def make_source(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, v text); insert into t values (1, 'a'), (2, 'b')")
    pair.grant()


def read_nights(pair: Pair) -> list[dict[str, Any]]:
    with pair.target.cursor(row_factory=dict_row) as cursor:
        query = "select * from replicator.started_run where scheduled_for is not null order by scheduled_for"
        return cursor.execute(query).fetchall()


def miss_a_night(pair: Pair) -> None:
    """Let the schedule know of a time before last night, as if the machine had been off since."""
    pair.run("sync")
    cron = "insert into replicator.schedule values ('default', '0 3 * * *', 'UTC', now() - interval '3 days')"
    pair.target.execute(cron)


def latest_night() -> datetime:
    now = datetime.now(UTC)
    night = now.replace(hour=3, minute=0, second=0, microsecond=0)
    return night if night <= now else night - timedelta(days=1)


def test_a_run_that_is_asked_for_is_told_to_its_end_and_copies_the_table(pair: Pair) -> None:
    make_source(pair)
    write_config(pair)
    with Serving(pair).wait_ready() as serving:
        accepted = serving.api.post("/runs", json={"tables": ["public.t"]})
        assert accepted.status_code == 202, accepted.text
        document = serving.wait_for_run(accepted.json()["execution_id"])
        assert document["run"]["status"] == "success"
        assert document["run"]["triggered_by"] == "api"
        pair.assert_equal("public.t")
        (row,) = pair.control_rows()
        assert str(row["execution_id"]) == accepted.json()["execution_id"]

        pair.target.execute("delete from t where id = 1")
        looked = serving.wait_for_run(serving.api.post("/verify", json={}).json()["execution_id"])
        assert (looked["run"]["status"], looked["verdicts"][0]["missing"]) == ("different", 1)
        assert (looked["run"]["tables"], looked["run"]["tables_done"]) == (1, 1)
        again = serving.wait_for_run(serving.api.post("/resync", json={}).json()["execution_id"])
        assert (again["run"]["path"], again["run"]["status"]) == ("resync", "success")
        pair.assert_equal("public.t")
        assert "replicator_run_last_success_timestamp_seconds" in serving.web.get("/metrics").text
        serving.running.send(signal.SIGTERM)
        finished = serving.running.wait(check=0)
        assert serving.token not in finished.stdout + finished.stderr
        pair.guard(finished)


@pytest.mark.hazard("O7")
def test_a_missed_night_is_caught_up_once_by_whichever_of_two_processes_leads(pair: Pair) -> None:
    make_source(pair)
    write_config(pair)
    miss_a_night(pair)
    with Serving(pair).wait_ready() as one, Serving(pair).wait_ready() as two:
        (night,) = wait_until(
            lambda: [night for night in read_nights(pair) if night["completed_at"]], 60, what="the night has run"
        )
        assert (night["scheduled_for"], night["exit_code"], night["attempts"]) == (latest_night(), 0, 1)
        first, second = (one, two) if "schedule_led" in one.running.stderr else (two, one)
        assert "schedule_led" not in second.running.stderr
        first.close()
        wait_until(lambda: "schedule_led" in second.running.stderr, 30, what="the other one leads")
        assert second.api.get("/runs", params={"status": "success"}).json()["runs"][0]["triggered_by"] == "scheduler"
    assert len(read_nights(pair)) == 1
    assert len(pair.control_rows(triggered_by="scheduler")) == 1


def test_a_run_beside_another_is_refused(pair: Pair) -> None:
    make_source(pair)
    write_config(pair)
    pair.run("sync")
    with Serving(pair).wait_ready() as serving:
        pair.target.execute("begin; lock table t")
        first = serving.api.post("/runs", json={"full": True})
        assert first.status_code == 202
        refused = serving.api.post("/resync", json={"tables": []})
        assert refused.status_code == 409
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:replicator:error:run_held"
        pair.target.execute("commit")
        assert serving.wait_for_run(first.json()["execution_id"])["run"]["status"] == "success"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_night_that_is_cut_off_is_taken_up_again_by_the_next_process(pair: Pair, number: signal.Signals) -> None:
    make_source(pair)
    write_config(pair)
    miss_a_night(pair)
    pair.target.execute("begin; lock table t")
    with Serving(pair) as serving:
        wait_until(lambda: pair.control_rows(triggered_by="scheduler"), 60, what="the night began")
        if number == signal.SIGTERM:
            serving.running.send(number)
            serving.running.wait(check=0)
        serving.close()
        pair.target.execute("rollback")
    (night,) = read_nights(pair)
    assert night["completed_at"] is None
    with Serving(pair):
        (night,) = wait_until(
            lambda: [night for night in read_nights(pair) if night["completed_at"]], 60, what="the night has run"
        )
    assert (night["exit_code"], night["attempts"]) == (0, 2)


@pytest.mark.parametrize("is_asked_twice", [False, True])
def test_a_run_that_does_not_end_is_killed_with_the_process_that_started_it(
    pair: Pair, is_asked_twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a limit, which is shortened here, and by a second signal at once."""
    # The runs take our environment, which holds settings of the tests.
    for name in [name for name in os.environ if name.startswith("REPLICATOR_")]:
        monkeypatch.delenv(name)
    make_source(pair)
    write_config(pair, logs={"dir": ""})
    pair.run("sync")
    pair.target.execute("begin; lock table t")
    if is_asked_twice:
        with Serving(pair).wait_ready() as serving:
            execution = serving.api.post("/runs", json={"full": True}).json()["execution_id"]
            wait_until(lambda: pair.control_rows(status="running"), 30, what="the run began")
            child = find_process(execution)
            os.kill(child, signal.SIGSTOP)
            serving.running.send(signal.SIGTERM)
            wait_until(lambda: "serve_draining" in serving.running.stderr, 30, what="it drains")
            serving.running.send(signal.SIGTERM)
            finished = serving.running.wait(30, check=0)
        assert "run_killed" in finished.stderr
    else:
        config = pair.dir / "replicator.toml"
        launcher = Launcher(load_settings(config), pair.target_dsn, config)
        order = Order("sync", "api", full=True)
        launcher.start(order)
        wait_until(lambda: pair.control_rows(status="running"), 30, what="the run began")
        child = find_process(str(order.execution_id))
        os.kill(child, signal.SIGSTOP)
        launcher.drain(limit_s=0.5)
        assert launcher.list_alive() == []
    assert not Path(f"/proc/{child}").exists()


def find_process(execution_id: str) -> int:
    """Return the process of a run."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if execution_id.encode() in path.read_bytes():
                return int(path.parent.name)
    raise AssertionError("the run has no process")


def test_with_listen_the_listener_is_kept_running(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key, v text); insert into t values (1, 'a')")
    streamed.publish()
    write_config(streamed)
    with Serving(streamed, "--listen").wait_ready() as serving:
        streamed.source.execute("insert into t values (2, 'b')")
        wait_until(lambda: streamed.target.execute("select from t").rowcount == 2, what="the row arrived")
        wait_until(lambda: serving.api.get("/status").json()["slot"]["active"], what="the slot is told as active")
        serving.running.send(signal.SIGTERM)
        serving.running.wait(check=0)


def test_a_listener_is_kept_running_by_whoever_serves_once_no_other_runs(streamed: Pair) -> None:
    """Another's is left alone, told once, and followed by one of our own, whoever leads the schedule."""
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    write_config(streamed)
    other = streamed.popen("listen")
    wait_for_stream(other)
    with streamed.target_server.connect(streamed.target_db) as leader:
        leader.execute("select pg_advisory_lock(hashtextextended('replicator/replicator/default/serve', 7264811))")
        with Serving(streamed, "--listen").wait_ready() as serving:
            log = serving.running
            wait_until(lambda: "listener_elsewhere" in log.stderr, 30, what="the other listener is told")
            assert "listener_launched" not in log.stderr
            other.kill()
            wait_until(lambda: "listener_launched" in log.stderr, 30, what="a listener of its own")
            streamed.source.execute("insert into t values (1)")
            wait_until(lambda: streamed.target.execute("select from t").rowcount == 1, 40, what="the row arrived")
        assert log.stderr.count("listener_elsewhere") == 1
        assert "schedule_led" not in log.stderr


def test_a_listener_that_holds_its_lock_and_does_not_stream_is_not_ready(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    write_config(streamed)
    catch_up(streamed)
    with streamed.target_server.connect(streamed.target_db) as frozen:
        frozen.execute("select pg_advisory_lock(hashtextextended('replicator/replicator/default/listener', 7264811))")
        with Serving(streamed, "--listen") as serving:
            told = serving.web.get("/readyz")
            assert (told.status_code, told.json()["reasons"]) == (503, ["the listener does not stream"])
            streamed.target.execute("update replicator.listener set fresh_at = fresh_at + interval '1 second'")
            assert serving.web.get("/readyz").status_code == 200
            streamed.target.execute("update replicator.listener set epoch = epoch + 1")
            assert serving.web.get("/readyz").status_code == 503


def test_only_whom_the_contract_names_gets_in(pair: Pair) -> None:
    make_source(pair)
    write_config(pair)
    with Serving(pair).wait_ready() as serving:
        web = serving.web
        for path in ("/api/v1/status", "/api/v1/openapi.json", "/api/anything", "/api"):
            refused = web.get(path)
            assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
        for header in ("Bearer wrong", f"Basic {serving.token}", serving.token, f"Bearer {serving.token}x", "Bearer"):
            assert web.post("/api/v1/runs", json={}, headers={"Authorization": header}).status_code == 401
        assert web.post("/api/v1/runs", json={}, headers={"Cookie": f"token={serving.token}"}).status_code == 401
        for host in ("evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "localhost@evil", "[::1"):
            assert serving.api.get("/status", headers={"Host": host}).status_code == 400
            assert web.get("/livez", headers={"Host": host}).status_code == 400
        page = web.get("/")
        assert page.status_code == 200
        assert "set-cookie" not in page.headers
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert serving.api.get("/status", headers={"Host": "localhost:1"}).status_code == 200
    assert pair.control_rows() == []


def test_the_token_lies_beside_the_configuration_and_is_read_again_when_it_changes(pair: Pair) -> None:
    """O4: its path is told, the token never."""
    make_source(pair)
    write_config(pair)
    folder = pair.dir / "etc"
    folder.mkdir()
    (pair.dir / "replicator.toml").rename(folder / "replicator.toml")
    path = folder / "api.token"
    with Serving(pair, "--config", "etc/replicator.toml") as serving:
        started = next(line for line in serving.running.stderr.splitlines() if '"serve_started"' in line)
        assert json.loads(started)["token_set"] is False
        assert json.loads(started)["token_file"] == str(path)
        assert str(path) in serving.api.get("/status").json()["detail"]
        path.write_text(serving.token)
        assert serving.api.get("/status").status_code == 200
        wrong = serving.web.get("/api/v1/status")
        assert (wrong.status_code, str(path) in wrong.text) == (401, True)
        path.write_text("y" * 40)
        assert serving.api.get("/status").status_code == 401
        new = {"Authorization": "Bearer " + "y" * 40}
        assert serving.api.get("/status", headers=new).status_code == 200
        path.write_text("short")
        assert serving.api.get("/status", headers=new).status_code == 401
        path.unlink()
        assert serving.api.get("/status", headers=new).status_code == 401
        assert "y" * 40 not in serving.running.stderr + wrong.text
    with Serving(pair, "--config", "etc/replicator.toml") as serving:
        assert serving.token not in serving.running.stderr


def test_beyond_loopback_every_page_needs_the_token_and_without_a_file_nothing_starts(pair: Pair) -> None:
    make_source(pair)
    write_config(pair, serve={"port": 0, "host": "0.0.0.0"})  # noqa: S104  # that is what is tested
    refused = pair.run("serve", check=3)
    assert "token_missing" in refused.stderr
    (pair.dir / "api.token").write_text("short")
    assert "token_weak" in pair.run("serve", check=3).stderr
    (pair.dir / "api.token").write_text("x" * 32)
    (pair.dir / "api.token").chmod(0o644)
    serving = Serving(pair)
    assert "token_file_exposed" in serving.running.stderr
    port = httpx.URL(serving.url).port
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as web:
        wait_until(lambda: web.get("/readyz").status_code == 200, what="serve is ready")
        token = {"Authorization": f"Bearer {serving.token}"}
        for path in ("/", "/runs", "/charts", "/table?name=public.t", "/metrics", "/fragments/tables", "/nothing"):
            asked = web.get(path)
            assert asked.status_code == 401, path
            assert "default -" not in asked.text
            assert "public.t" not in asked.text
        assert web.get("/", headers=token).status_code == 200
        assert web.get("/metrics", headers=token).status_code == 200
        assert web.get("/static/app.js").status_code == 200
    serving.close()


def test_hostile_names_are_harmless_in_every_page(make_pair: MakePair) -> None:
    """H4: names that would be markup, script or another page."""
    pair = make_pair()
    names = ['<img src=x onerror="alert(1)">', "a\"'b", "</td><script>alert(2)</script>", "{{ 7 * 7 }}", "a/../b?c#d&e"]
    for number, name in enumerate(names):
        quoted = '"' + name.replace('"', '""') + '"'
        pair.source.execute(f'create table {quoted} (id int primary key, "<b>{number}</b>" int)'.encode())
    pair.grant()
    write_config(pair)
    pair.run("sync")
    tables = [row["table_name"] for row in pair.control_rows()]
    execution = pair.control_rows()[0]["execution_id"]
    with Serving(pair).wait_ready() as serving:
        pages = [serving.web.get(path).text for path in ("/", "/runs", f"/runs/{execution}", "/fragments/tables")]
        for table in tables:
            assert serving.api.get("/runs", params={"table": table}).json()["runs"]
            for path in ("/table", "/fragments/plan"):
                page = serving.web.get(path, params={"name": table})
                assert page.status_code == 200
                pages.append(page.text)
        pages.append(serving.web.get("/", params={"q": names[2]}).text)
        pages.append(serving.web.get("/runs", params={"table": names[0]}).text)
    assert any("{{ 7 * 7 }}" in text for text in pages)
    for text in pages:
        for markup in ("<img", "<script>", "<b>", "<style", " onclick", " style="):
            assert markup not in text


CANARY = "canary-4711"


@pytest.mark.hazard("O4")
def test_no_cell_value_and_no_secret_is_shown_by_anything_that_serves(pair: Pair) -> None:
    """At debug level, with a row that the target refuses and keys that differ."""
    pair.source.execute(
        f"create table t (id text primary key, v text); insert into t values ('{CANARY}-1', '{CANARY}-2');"
        f"create table gone (id text primary key); insert into gone values ('{CANARY}-3')".encode()
    )
    pair.as_writer.execute("create table t (id text primary key, v text check (length(v) < 3))")
    pair.grant()
    write_config(pair, logs={"level": "debug"})
    pair.run("sync", check=6)
    pair.target.execute("delete from gone")
    seen: list[str] = []
    with Serving(pair).wait_ready() as serving:
        for path in ("verify", "runs", "resync"):
            accepted = serving.api.post(f"/{path}", json={}).json()["execution_id"]
            seen += read_command_lines(serving.running.process.pid)
            seen += [str(serving.wait_for_run(accepted)), serving.web.get(f"/runs/{accepted}").text]
        assert [text for text in seen if "--execution-id" in text]
        for page in ("/", "/runs", "/charts", "/table?name=public.t", "/fragments/plan?name=public.t", "/metrics"):
            seen.append(serving.web.get(page).text)
        seen += [serving.api.get(path).text for path in ("/status", "/tables", "/runs", "/openapi.json")]
        serving.running.send(signal.SIGTERM)
        finished = serving.running.wait(check=0)
    seen += [finished.stdout, finished.stderr, *(path.read_text() for path in pair.dir.glob("logs/etl/*.log"))]
    seen += [str(row) for row in pair.target.execute("select r::text from replicator.started_run r").fetchall()]
    for text in seen:
        for secret in (CANARY, serving.token, pair.reader_password, pair.writer_password):
            assert secret not in text


def read_command_lines(pid: int) -> list[str]:
    """Return the command lines of a process and of those that its threads started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    found = [Path(f"/proc/{one}/cmdline") for one in (str(pid), *children)]
    return [path.read_bytes().replace(b"\0", b" ").decode() for path in found if path.exists()]


def test_a_target_that_goes_away_and_comes_back_is_waited_for(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    cluster = make_cluster()
    pair = make_pair(target_server=cluster)
    make_source(pair)
    write_config(pair)
    with Serving(pair).wait_ready() as serving:
        cluster.stop("immediate")
        assert serving.web.get("/livez").status_code == 200
        assert serving.web.get("/readyz").status_code == 503
        gone = serving.web.get("/")
        assert (gone.status_code, "Not to be had" in gone.text) == (503, True)
        refused = serving.api.get("/status")
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert serving.api.post("/runs", json={}).status_code == 503
        cluster.start()
        serving.wait_ready()
        wait_until(lambda: serving.running.stderr.count("schedule_led") == 2, 60, what="it leads again")
        pair.target.close()
        pair.target = cluster.connect(pair.target_db)
        run = serving.wait_for_run(serving.api.post("/runs", json={}).json()["execution_id"])
        assert run["run"]["status"] == "success"


def test_changes_of_columns_and_progress_are_told(pair: Pair) -> None:
    make_source(pair)
    write_config(pair)
    pair.run("sync")
    pair.source.execute("alter table t add column w int, drop column v; update t set w = id")
    pair.run("sync")
    with Serving(pair).wait_ready() as serving:
        page = serving.web.get("/table", params={"name": "public.t"}).text
        assert "w int4 was added" in page or "w integer was added" in page
        assert "v was dropped" in page
        pair.target.execute("begin; lock table t")
        execution = serving.api.post("/runs", json={"full": True}).json()["execution_id"]

        def shows_progress() -> bool:
            text = serving.web.get("/fragments/progress").text
            return execution in text and "0 of 1 tables done" in text

        wait_until(shows_progress, what="the run shows its progress")
        pair.target.execute("commit")
        serving.wait_for_run(execution)
        assert "No run is under way" in serving.web.get("/fragments/progress").text


def test_schedule_tells_the_next_runs_and_where_daylight_saving_bites(pair: Pair) -> None:
    write_config(pair, schedule={"timezone": "Europe/Helsinki"})
    told = pair.json("schedule")
    assert (len(told["runs"]), len(told["daylight_saving"])) == (5, 2)
    assert all(run[11:16] in ("03:00", "04:00") for run in told["runs"])
    assert "daylight saving, 20" in pair.run("schedule").stdout


def test_a_run_that_was_killed_counts_as_failed_and_not_as_under_way(pair: Pair) -> None:
    make_source(pair)
    write_config(pair)
    pair.run("sync")
    pair.target.execute("begin; lock table t")
    killed = pair.popen("sync", "--full")
    wait_until(lambda: pair.control_rows(status="running"), what="the run began")
    with Serving(pair).wait_ready() as serving:
        assert len(serving.api.get("/runs", params={"status": "running"}).json()["runs"]) == 1
        killed.kill()
        pair.target.execute("rollback")
        wait_until(lambda: not serving.api.get("/runs", params={"status": "running"}).json()["runs"], what="it ended")
        assert serving.api.get("/runs").json()["runs"][0]["status"] == "failed"
        assert serving.api.post("/runs", json={}).status_code == 202
