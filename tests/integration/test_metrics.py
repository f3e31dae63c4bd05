"""Metrics of real runs: the text file after a command, counters that outlive their rows, the stream's slot."""

from __future__ import annotations

import time
import tomllib

from replicator.config.settings import Settings
from replicator.monitor.observe import PipelineMetrics
from tests.exposition import value_of
from tests.pair import Pair
from tests.streaming import catch_up


def read_file(pair: Pair) -> str:
    return (pair.dir / "metrics" / "replicator.prom").read_text()


def configure(pair: Pair, **sections: object) -> None:
    pair.write_config('metrics_textfile = "metrics/replicator.prom"\n', **sections)


def settings_of(pair: Pair) -> Settings:
    return Settings.model_validate(tomllib.loads((pair.dir / "replicator.toml").read_text()))


def ask(pair: Pair) -> str:
    return PipelineMetrics(settings_of(pair), pair.target_dsn).render()


def test_a_sync_leaves_its_figures_for_node_exporter(pair: Pair) -> None:
    pair.source.execute("create table good (id int primary key); create table bad (id int primary key, n int)")
    pair.source.execute("insert into good select generate_series(1, 40); insert into bad values (1, 1)")
    pair.grant()
    configure(pair, tables=["public.good", "public.bad"])
    started = time.time()
    pair.run("sync")
    text = read_file(pair)
    assert value_of(text, "replicator_rows_total", table="public.good", op="inserted") == 40
    assert value_of(text, "replicator_runs_total", status="success") == 2
    assert value_of(text, "replicator_run_duration_seconds_count") == 2
    assert (value_of(text, "replicator_bytes_copied_total", table="public.good") or 0) > 0
    assert (value_of(text, "replicator_run_last_success_timestamp_seconds", table="public.bad") or 0) >= started
    assert 0 < (value_of(text, "replicator_lag_seconds") or 0) < 60
    assert value_of(text, "replicator_slot_lag_bytes", kind="confirmed") is None

    pair.as_writer.execute("alter table bad add check (n < 9)")
    pair.source.execute("insert into bad values (2, 10)")
    pair.run("sync", check=6)
    text = read_file(pair)
    assert value_of(text, "replicator_errors_total", sqlstate="23514") == 1
    assert value_of(text, "replicator_runs_total", status="failed") == 1
    assert value_of(text, "replicator_runs_total", status="success") == 3


def test_counters_outlive_the_rows_that_they_were_counted_from(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); insert into t select generate_series(1, 7)")
    pair.grant()
    configure(pair, tables=["public.t"], defaults={"retention_days": 1})
    pair.run("sync")
    pair.source.execute("insert into t select generate_series(8, 9)")
    pair.run("sync")
    before = {line for line in ask(pair).splitlines() if line.startswith("replicator_run") and "timestamp" not in line}
    pair.target.execute("update replicator.etl_control set started_at = started_at - interval '2 days'")
    pair.run("sync")
    assert len(pair.control_rows()) == 1, "the older rows are gone"
    after = ask(pair)
    assert value_of(after, "replicator_rows_total", op="inserted") == 9
    assert value_of(after, "replicator_runs_total", status="success") == 3
    assert value_of(after, "replicator_run_duration_seconds_count") == 3
    assert any("_count" in line and line.endswith(" 2.0") for line in before)


def test_the_stream_tells_what_its_slot_holds_back(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    configure(streamed, tables=["public.t"])
    catch_up(streamed)
    streamed.source.execute("insert into t select generate_series(1, 500)")
    text = ask(streamed)
    confirmed = value_of(text, "replicator_slot_lag_bytes", kind="confirmed")
    retained = value_of(text, "replicator_slot_lag_bytes", kind="retained")
    assert confirmed is not None
    assert retained is not None
    assert 0 < confirmed <= retained
    catch_up(streamed)
    assert value_of(read_file(streamed), "replicator_rows_total", op="inserted") == 500


def test_a_metrics_file_that_cannot_be_written_costs_a_warning_and_no_run(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    configure(pair, tables=["public.t"])
    (pair.dir / "metrics").write_text("in the way")
    assert "metrics_file_unavailable" in pair.run("sync").stderr


def test_of_a_dead_target_the_metrics_tell_that_it_is_dead(pair: Pair) -> None:
    configure(pair, source={"connect_timeout": "1s"})
    text = PipelineMetrics(settings_of(pair), pair.dsn_of_target(port=1)).render()
    assert value_of(text, "replicator_target_up") == 0


def test_what_verify_finds_and_mends_is_told(pair: Pair) -> None:
    pair.source.execute(
        "create table t (id int primary key, n int); insert into t select g, g from generate_series(1, 9) g"
    )
    pair.grant()
    configure(pair, tables=["public.t"])
    pair.run("sync")
    assert value_of(read_file(pair), "replicator_verify_mismatched_rows") == 0
    pair.target.execute("update t set n = 0 where id < 4")
    pair.run("verify", check=7)
    assert value_of(read_file(pair), "replicator_verify_mismatched_rows", table="public.t") == 3
    pair.run("verify", "--repair")
    assert value_of(read_file(pair), "replicator_verify_mismatched_rows", table="public.t") == 0
