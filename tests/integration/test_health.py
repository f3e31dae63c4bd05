"""One judgement: `status`, `health`, `/readyz`, the dashboard and the metrics say the same of a pipeline."""

from __future__ import annotations

import html
import signal
from typing import Any

import pytest
from psycopg import sql

from replicator.monitor.observe import PipelineMetrics
from tests.conftest import MakeCluster, MakePair
from tests.exposition import value_of
from tests.integration.test_metrics import settings_of
from tests.pair import Pair
from tests.parking import MESSAGE, park
from tests.serving import Serving, write_config
from tests.streaming import catch_up, listening
from tests.wait import wait_until

HINT = 'alter table "public"."Odd one" replica identity full'
ODD = 'public."Odd one"'


def find_reasons(pair: Pair) -> list[str]:
    """Return the ids of the reasons, once `health` and `status` have told the same."""
    health = pair.json("health", check=None)
    status = pair.json("status")
    assert status["reasons"] == health["reasons"]
    assert health["healthy"] is (status["state"] == "healthy")
    assert all(reason["hint"] for reason in health["reasons"])
    text = pair.run("health", check=0 if health["healthy"] else 1).stdout
    assert len(text.splitlines()) == 1
    for reason in health["reasons"]:
        assert reason["message"] in text
    return [reason["id"] for reason in health["reasons"]]


def find_table(pair: Pair, name: str) -> Any:
    return next(table for table in pair.json("status")["tables"] if table["table"] == name)


@pytest.mark.hazard("S30")
def test_a_parked_table_is_named_with_its_hint_by_everything_and_keeps_nothing_from_being_ready(
    streamed: Pair,
) -> None:
    """S30: one table of three is parked, and was never copied."""
    streamed.source.execute(
        'create table t (id int primary key); create table u (id int primary key); create table "Odd one" (a int)'
    )
    streamed.publish()
    write_config(streamed)
    streamed.constants["replicator.stream.join._LOOK_AGAIN_S"] = 0.5
    with Serving(streamed, "--listen").wait_ready() as serving:
        wait_until(lambda: streamed.json("status")["state"] == "attention", 30, what="one table is parked")
        assert find_reasons(streamed) == ["parked"]
        document = streamed.json("status")
        assert document["state"] == "attention"
        (reason,) = document["reasons"]
        assert (reason["scope"], reason["table"], reason["hint"]) == ("table", ODD, HINT)
        assert "identity_missing" in reason["message"]
        assert {table["table"]: table["state"] for table in document["tables"]} == STATES
        odd = find_table(streamed, ODD)["parked"]
        assert (odd["id"], odd["hint"]) == ("identity_missing", HINT)
        assert odd["since"]
        assert find_table(streamed, "public.t")["parked"] is None
        assert find_table(streamed, "public.t")["position"]
        printed = streamed.run("status").stdout
        assert printed.splitlines()[2].startswith(ODD), "trouble comes first"
        assert f"{ODD}: parked: {odd['message']}" in printed
        assert f"hint: {HINT}" in printed
        expect_served(serving, document)

        streamed.source.execute(sql.SQL(HINT))
        wait_until(lambda: streamed.json("status")["state"] == "healthy", 30, what="the table is back")
        assert find_reasons(streamed) == []
        assert find_table(streamed, ODD)["state"] == "live"
        assert value_of(serving.web.get("/metrics").text, "replicator_parked_tables", pipeline="default") == 0
        assert "badge parked" not in serving.web.get("/").text


STATES = {"public.t": "live", "public.u": "live", ODD: "parked"}


def expect_served(serving: Serving, document: dict[str, Any]) -> None:
    """Prove that API, pages and metrics tell of the parked table what `status` does."""
    # What it heard of the source may be a second old.
    wait_until(lambda: serving.api.get("/status").json()["reasons"] == document["reasons"], 15, what="the same reasons")
    answer = serving.api.get("/status").json()
    assert answer["state"] == document["state"]
    assert {table["table"]: table["state"] for table in answer["tables"]} == STATES
    assert answer["tables"][0]["parked"]["hint"] == HINT
    assert serving.web.get("/readyz").status_code == 200
    pages = [serving.web.get(page).text for page in ("/", "/fragments/health", "/fragments/tables", "/runs")]
    pages.append(serving.web.get("/table", params={"name": ODD}).text)
    for text in pages:
        assert html.escape(HINT, quote=True).replace("&quot;", "&#34;") in text
        assert "Odd one" in text
    assert value_of(serving.web.get("/metrics").text, "replicator_parked_tables", pipeline="default") == 1


def test_a_table_that_is_being_copied_or_was_parked_is_known_until_it_is_forgotten(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    write_config(streamed)
    catch_up(streamed)
    park(streamed, "public.gone", None)
    streamed.target.execute(
        "insert into replicator.copying_table (pipeline, table_name) values ('default', 'public.t')"
    )
    assert {table["table"]: table["state"] for table in streamed.json("status")["tables"]} == {
        "public.gone": "parked",
        "public.t": "copying",
    }
    gone = find_table(streamed, "public.gone")["parked"]
    assert (gone["message"], gone["hint"], gone["lsn"]) == (MESSAGE, None, "0/16B3748")
    reasons = {reason["id"]: reason for reason in streamed.json("health", check=1)["reasons"]}
    assert reasons["parked"]["hint"] == "replicator resync public.gone --yes"
    streamed.run("forget", "public.gone", "--yes")
    assert [reason["id"] for reason in streamed.json("health", check=1)["reasons"]] == ["listener_down"]
    streamed.run("forget", "public.t", "--yes")
    assert streamed.json("status")["tables"] == []
    streamed.run("forget", "public.t", "--yes", check=2)


def test_rows_that_a_comparison_left_make_the_pipeline_unhealthy_until_they_are_repaired(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, n int); insert into t values (1, 1), (2, 2)")
    pair.grant()
    write_config(pair)
    pair.run("sync")
    assert find_reasons(pair) == []
    pair.target.execute("update t set n = 0 where id = 1")
    pair.run("verify", check=7)
    assert find_reasons(pair) == ["verify_differs"]
    (reason,) = pair.json("health", check=1)["reasons"]
    assert reason["hint"] == "replicator verify public.t --repair"
    with Serving(pair).wait_ready() as serving:
        assert "replicator verify public.t --repair" in serving.web.get("/").text
    pair.run("verify", "--repair")
    assert find_reasons(pair) == []


@pytest.mark.hazard("F8")
@pytest.mark.parametrize("streams", [False, True])
def test_a_password_of_the_source_that_no_longer_works_is_told_by_all(streamed: Pair, streams: bool) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    write_config(streamed)
    _ = catch_up(streamed) if streams else streamed.run("sync").stderr
    write_config(streamed, source={"dsn": streamed.dsn_of_source(password="not this one")})
    assert find_reasons(streamed) == ["source_unreachable"]
    document = streamed.json("status")
    assert document["state"] == ("failing" if streams else "attention")
    assert document["reasons"][0]["scope"] == "process"
    with Serving(streamed, *(["--listen"] if streams else [])) as serving:
        wait_until(lambda: serving.web.get("/").status_code == 200, what="it serves")
        assert serving.web.get("/readyz").status_code == (503 if streams else 200)
        page = serving.web.get("/").text
        assert document["reasons"][0]["message"] in html.unescape(page)


@pytest.mark.hazard("F8")
def test_a_password_of_the_target_that_no_longer_works_is_told_by_all(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    write_config(pair, target={"dsn": pair.dsn_of_target(password="not this one")}, source={"connect_timeout": "1s"})
    (reason,) = pair.json("health", check=1)["reasons"]
    assert (reason["id"], reason["scope"]) == ("target_unreachable", "process")
    with Serving(pair) as serving:
        assert serving.web.get("/readyz").status_code == 503
        assert "badge failing" in serving.web.get("/fragments/health").text


@pytest.mark.hazard("O3")
def test_nothing_is_green_while_nothing_flows(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    """O3: the listener has ended; its slot is dropped; the source is down."""
    cluster = make_cluster(settings={"wal_level": "logical"})
    pair = make_pair(source_server=cluster, listens=True)
    pair.source.execute("create table t (id int primary key)")
    pair.publish()
    write_config(pair, source={"connect_timeout": "1s"})
    with listening(pair):
        assert find_reasons(pair) == []
    assert find_reasons(pair) == ["listener_down"]
    with Serving(pair) as serving:
        assert "listener does not run" in serving.web.get("/").text
        pair.source.execute("select pg_drop_replication_slot(%s)", [pair.slot])
        assert find_reasons(pair) == ["listener_down", "slot_missing"]
        assert "slot" in pair.run("status").stdout

        def shows(text: str) -> bool:
            return text in serving.web.get("/").text

        wait_until(lambda: shows("replicator listen --repair-gap"), 15, what="the slot is told with its command")
        pair.source.close()
        cluster.stop("immediate")
        wait_until(lambda: shows("no connection to the source"), 15, what="the source is told")
        assert find_reasons(pair) == ["source_unreachable"]
        assert pair.json("status")["state"] == "failing"
    cluster.start()
    pair.source = cluster.connect(pair.source_db)


@pytest.mark.hazard("F3")
def test_a_listener_that_holds_its_lock_and_does_not_stream_is_told(streamed: Pair) -> None:
    """F3: frozen for so long that the source has ended its session."""
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    write_config(streamed)
    catch_up(streamed)
    with streamed.target_server.connect(streamed.target_db) as frozen:
        frozen.execute("select pg_advisory_lock(hashtextextended('replicator/replicator/default/listener', 7264811))")
        streamed.target.execute("update replicator.listener set fresh_at = now() - interval '1 minute'")
        assert find_reasons(streamed) == ["listener_not_streaming"]


@pytest.mark.hazard("F1")
def test_a_run_that_was_killed_is_said_to_have_died_by_whoever_reads(pair: Pair) -> None:
    """F1: `kill -9`, and no run since that could close its rows."""
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    pair.grant()
    write_config(pair)
    pair.run("sync")
    pair.target.execute("begin; lock table t")
    killed = pair.popen("sync", "--full")
    wait_until(lambda: pair.control_rows(status="running"), what="the run began")
    assert pair.json("history")["batches"][0]["status"] == "running"
    assert find_reasons(pair) == []
    killed.kill()
    pair.target.execute("rollback")
    wait_until(lambda: pair.json("history")["batches"][0]["status"] == "failed", what="the server noticed")
    (newest, _) = pair.json("history")["batches"]
    assert (newest["error_code"], newest["completed_at"]) == ("interrupted", None)
    assert "died" in newest["error_message"]
    assert pair.control_rows()[-1]["status"] == "running", "who reads writes nothing"
    for command in ("history", "status"):
        printed = pair.run(command).stdout
        assert "died" in printed
        assert "running" not in printed
    assert find_reasons(pair) == ["run_died"]
    with Serving(pair).wait_ready() as serving:
        for page in ("/", "/table?name=public.t", f"/runs/{newest['execution_id']}"):
            assert "badge running" not in serving.web.get(page).text
    pair.run("sync")
    assert find_reasons(pair) == []


@pytest.mark.hazard("F1")
def test_a_listener_that_was_killed_at_its_first_copy_is_said_to_have_died(streamed: Pair) -> None:
    """F1: rows of the path `listen` are the listener's, whose lock is another."""
    streamed.source.execute("create table t (id int primary key); insert into t values (1)")
    streamed.publish()
    write_config(streamed)
    streamed.run("sync")
    streamed.target.execute("begin; lock table t")
    killed = streamed.popen("listen")
    wait_until(lambda: streamed.control_rows(status="running"), 40, what="the copy began")
    assert find_table(streamed, "public.t")["last_run"]["status"] == "running"
    killed.send(signal.SIGKILL)
    killed.wait()
    streamed.target.execute("rollback")
    wait_until(lambda: find_table(streamed, "public.t")["last_run"]["status"] == "failed", what="the server noticed")
    assert "listener_down" in find_reasons(streamed)


def test_a_lag_goes_on_growing_while_the_target_is_down(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    cluster = make_cluster()
    pair = make_pair(target_server=cluster, listens=True)
    pair.source.execute("create table t (id int primary key)")
    pair.publish()
    write_config(pair, source={"connect_timeout": "1s"})
    catch_up(pair)
    metrics = PipelineMetrics(settings_of(pair), pair.target_dsn)
    before = value_of(metrics.render(), "replicator_lag_seconds")
    pair.target.close()
    cluster.stop("immediate")
    pair.source.execute("insert into t select generate_series(1, 100)")
    text = metrics.render()
    assert value_of(text, "replicator_target_up") == 0
    assert (value_of(text, "replicator_lag_seconds") or 0) > (before or 0)
    assert (value_of(text, "replicator_slot_lag_bytes", kind="confirmed") or 0) > 0
    assert value_of(text, "replicator_rows_total", table="public.t", op="inserted") == 0
    assert value_of(text, "replicator_errors_total", sqlstate="") == 0
    cluster.start()
    pair.target = cluster.connect(pair.target_db)


def test_a_control_schema_of_the_version_before_is_said_to_wait_for_its_migrations(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    write_config(pair)
    pair.run("sync")
    pair.target.execute(
        sql.SQL(
            "delete from replicator.migration where version > 7; drop table replicator.parked_table;"
            "drop table replicator.copying_table; alter table replicator.etl_control rename error_hint to error_mend;"
            "alter table replicator.started_run rename error_hint to error_mend;"
            "drop function replicator.count_batches cascade; drop index replicator.etl_control_age;"
            "alter table replicator.batch_total rename to expired_total;"
            "alter table replicator.table_state drop marker; alter table replicator.listener drop commit_lsn,"
            " drop commit_end, drop commit_xid, drop commit_time_us"
        )
    )
    assert find_reasons(pair) == ["not_ready"]
    pair.run("sync")
    assert find_reasons(pair) == []
