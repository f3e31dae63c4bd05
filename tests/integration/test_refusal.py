"""What a run must not pass over in silence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.pair import Pair
from tests.strategy_case import hold_target, wait_for_waiter


def start_with_two_rows(pair: Pair, **table: object) -> None:
    pair.source.execute("create table t (a int, v text); insert into t values (1, 'a'), (2, 'b')")
    pair.grant()
    pair.write_config(lock_wait="1s", tables=[{"name": "public.t", **table}])
    pair.run("sync")


@pytest.mark.parametrize("arguments", [(), ("--full",)], ids=["incremental", "full"])
def test_a_configured_key_that_stops_being_unique_stops_the_table(pair: Pair, arguments: tuple[str, ...]) -> None:
    start_with_two_rows(pair, key=["a"])
    pair.source.execute("insert into t values (1, 'c')")
    refused = pair.run("sync", *arguments, check=1)
    assert "key_not_unique" in refused.stderr
    assert pair.target.execute("select a, v from t order by a").fetchall() == [(1, "a"), (2, "b")]


def test_a_locked_target_table_keeps_itself_from_a_run_and_no_other(pair: Pair) -> None:
    pair.source.execute("create table free (a int primary key)")
    pair.source.execute("create table t (a int primary key, v text); insert into t values (1, 'a')")
    pair.grant()
    pair.write_config(lock_wait="1s")
    pair.run("sync")
    pair.source.execute("insert into t values (2, 'b'); insert into free values (1)")
    with pair.as_writer.transaction():
        pair.as_writer.execute("lock table t in access exclusive mode")
        pair.run("sync", check=6)
    pair.assert_equal("public.free")
    pair.run("sync")
    pair.assert_equal("public.t")


def test_a_table_without_columns_takes_soft_deletes(pair: Pair) -> None:
    """V7."""
    pair.source.execute("create table n (); insert into n select from generate_series(1, 3)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.n", "deletes": "soft"}])
    pair.run("sync")
    assert pair.target.execute("select count(*) from n").fetchone() == (3,)
    pair.run("sync")
    assert pair.target.execute("select count(*) from n where _deleted_at is null").fetchone() == (3,)


def test_a_pattern_that_selects_nothing_is_an_error(pair: Pair) -> None:
    """W29: a wrong database must not look like a quiet night."""
    pair.grant()
    pair.write_config(tables=[{"name": "nosuch.*"}])
    assert "no_tables" in pair.run("sync", check=3).stderr


def test_health_says_unhealthy_when_the_target_is_out_of_reach(pair: Pair) -> None:
    pair.write_config(target={"dsn": "host=127.0.0.1 port=1 dbname=x user=y"}, source={"connect_timeout": "1s"})
    document = pair.run("health", "--json", check=1).json()
    assert document["healthy"] is False
    assert document["reasons"]


MISUSES = [("sync", "--bogus"), ("sync", "--jobs", "none"), ("sink",), ("history", "--limit", "0"), ("forget",)]


@pytest.mark.parametrize("arguments", MISUSES, ids=" ".join)
def test_a_command_line_that_is_not_understood_is_one_json_document_too(pair: Pair, arguments: tuple[str, ...]) -> None:
    finished = pair.run(*arguments, "--json", check=2)
    assert finished.json()["error"]["id"] == "usage"
    assert "Error: " in finished.stderr
    assert pair.run(*arguments, check=2).stdout == ""


def test_a_reader_that_goes_away_does_not_change_how_a_command_ends(pair: Pair) -> None:
    start_with_two_rows(pair, key=["a"])
    command = f"set -o pipefail; {sys.executable} -m replicator"
    for arguments, code in (
        ("sync", 0),
        ("sync --json", 0),
        ("status", 0),
        ("check", 0),
        ("plan", 0),
        ("sync nope", 2),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{command} {arguments} | true"],
            cwd=pair.dir, env=pair.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, (arguments, done.stderr)
        assert "Broken" not in done.stderr


def test_a_table_is_not_forgotten_under_a_running_sync(pair: Pair) -> None:
    start_with_two_rows(pair, key=["a"])
    pair.source.execute("insert into t values (3, 'c')")
    pair.write_config(lock_wait="60s", tables=[{"name": "public.t", "key": ["a"]}])
    with hold_target(pair) as held:
        running = pair.popen("sync")
        wait_for_waiter(held)
        pair.write_config(lock_wait="1s", tables=[{"name": "public.t", "key": ["a"]}])
        finished = pair.run("forget", "public.t", "--yes", "--json", check=5)
        assert finished.json()["error"]["id"] == "lock_held"
        ended = pair.target.execute(
            "select pg_terminate_backend(pid) from pg_locks join pg_stat_activity a using (pid)"
            " where locktype = 'advisory' and granted and a.state = 'idle' and a.datname = current_database()"
        )
        assert ended.rowcount == 1, "the session that holds the run's lock"
        pair.run("forget", "public.t", "--yes", check=5)
    running.wait(check=None)
    pair.run("sync")
    pair.assert_equal("public.t")
    assert pair.json("status")["tables"][0]["table"] == "public.t"
    pair.run("forget", "public.t", "--yes")
    assert pair.json("status")["tables"] == []
