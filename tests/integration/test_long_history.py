"""A long `etl_control`: what reads it reads a few rows of it, by an index, however many there are."""

from __future__ import annotations

import tomllib

import pytest

from replicator.config.settings import Settings
from replicator.monitor.observe import PipelineMetrics
from tests.exposition import value_of
from tests.pair import Pair
from tests.wait import wait_until

TABLES, BATCHES = 20, 4_000
FEW = 2_000
FILL = f"""
insert into replicator.etl_control (execution_id, pipeline, table_name, path, load_type, triggered_by, status,
    started_at, completed_at, duration_seconds, rows_inserted)
select gen_random_uuid(), 'default', 'public.t' || t, 'sync', 'incremental', 'manual', 'success',
    now() - make_interval(mins => {BATCHES} - n), now() - make_interval(mins => {BATCHES} - n), 1, 1
from generate_series(1, {BATCHES}) n, generate_series(1, {TABLES}) t;
analyze replicator.etl_control;
"""


@pytest.fixture
def old(pair: Pair) -> Pair:
    """A pair whose tables have been synced often."""
    for number in range(1, TABLES + 1):
        pair.source.execute(f"create table t{number} (id int primary key); insert into t{number} values (1)".encode())
    pair.grant()
    pair.write_config('metrics_textfile = "replicator.prom"\n', tables=["public.*"])
    pair.run("sync")
    pair.target.execute(FILL.encode())
    return pair


def count_read(pair: Pair) -> int:
    """Return how many rows of etl_control all ended sessions have read."""
    query = """
        select coalesce(sum(pg_stat_get_tuples_returned(c.oid) + pg_stat_get_tuples_fetched(c.oid)), 0)::bigint
        from (select 'replicator.etl_control'::regclass as oid
              union all select indexrelid from pg_index where indrelid = 'replicator.etl_control'::regclass) c
    """
    ((count,),) = pair.target.execute(query).fetchall()
    return int(count)


def wait_until_told(pair: Pair) -> None:
    """Wait until the sessions of commands are gone: each tells at its end what it read."""
    query = "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    wait_until(lambda: not pair.target.execute(query).rowcount, what="the command's sessions end")
    pair.target.execute("select pg_stat_force_next_flush()")
    pair.target.execute("select pg_stat_clear_snapshot()")


@pytest.mark.parametrize("command", ["status", "health", "sync", "check"])
def test_a_command_reads_few_rows_of_a_long_history(old: Pair, command: str) -> None:
    """O10"""
    wait_until_told(old)
    before = count_read(old)
    old.run(command, check=None)
    wait_until_told(old)
    assert count_read(old) - before < FEW


def test_metrics_read_few_rows_of_a_long_history_and_count_all_of_it(old: Pair) -> None:
    """O10"""
    wait_until_told(old)
    before = count_read(old)
    settings = Settings.model_validate(tomllib.loads((old.dir / "replicator.toml").read_text()))
    text = PipelineMetrics(settings, old.target_dsn).render()
    wait_until_told(old)
    assert count_read(old) - before < FEW
    assert value_of(text, "replicator_rows_total", table="public.t1", op="inserted") == BATCHES + 1
    assert value_of(text, "replicator_runs_total", status="success") == TABLES * (BATCHES + 1)


def test_running_totals_are_the_sums_of_the_rows(old: Pair) -> None:
    """O10: whatever becomes of a row, and under session_replication_role = replica too."""
    old.source.execute("insert into t1 values (2); delete from t2; insert into t3 values (3)")
    old.target.execute("alter table public.t3 add check (id < 3)")
    old.run("sync", check=6)
    old.target.execute("update replicator.etl_control set status = 'failed', error_code = 'x' where batch_id % 7 = 0")
    old.target.execute("update replicator.etl_control set status = 'running' where batch_id % 11 = 0")
    differing = """
        with sums as (
            select table_name, path, status, coalesce(error_code, '') as error_code,
                   replicator.duration_bucket(coalesce(duration_seconds, 0)) as duration_bucket,
                   count(*)::bigint as batches, sum(rows_inserted)::bigint, sum(rows_deleted)::bigint,
                   sum(bytes_copied)::bigint, sum(attempts)::bigint
            from replicator.etl_control where status <> 'running' group by 1, 2, 3, 4, 5),
        totals as (
            select table_name, path, status, error_code, duration_bucket, batches, rows_inserted, rows_deleted,
                   bytes_copied, attempts
            from replicator.batch_total where batches <> 0)
        (select * from sums except select * from totals) union all (select * from totals except select * from sums)
    """
    assert old.target.execute(differing).fetchall() == []
