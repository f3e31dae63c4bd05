"""Faults of the source whose cause is told, not another one that looks alike."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from tests.conftest import MakeCluster, MakePair
from tests.finding import check, find, ids
from tests.pair import Pair
from tests.servers import Cluster
from tests.streaming import catch_up, expect_refusal, read_slot
from tests.wait import wait_until


@pytest.fixture
def standbys() -> Iterator[list[Cluster]]:
    """Return a list to put standbys in, which outlive the pair."""
    found: list[Cluster] = []
    yield found
    for one in found:
        one.remove()


def fill(pair: Pair, *, publishes: bool = True) -> None:
    pair.source.execute("create table t (id int primary key); insert into t select generate_series(1, 10)")
    if publishes:
        pair.publish()
    pair.grant()
    pair.write_config(tables=["public.t"])


def stand_by(pair: Pair, standbys: list[Cluster], **settings: str) -> Cluster:
    """Start a standby of the pair's source, and lead the tool to it."""
    primary = pair.source_server
    assert isinstance(primary, Cluster)
    standby = primary.standby(settings=settings)
    standbys.append(standby)
    standby.wait_for_replay(primary)
    pair.write_config(tables=["public.t"], source={"dsn": pair.dsn_of_source(port=standby.port)})
    return standby


def write_along(pair: Pair) -> bool:
    """Let the primary tell its standby of running transactions, which a new slot there waits for."""
    pair.source.execute("select pg_log_standby_snapshot()")
    return False


def test_a_standby_without_the_publication_is_told_to_have_it_made_on_the_primary(
    standbys: list[Cluster], make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """S36: nothing can be made on a standby, and it is not the wrong server for all that."""
    primary = make_cluster()
    pair = make_pair(source_server=primary, listens=True)
    fill(pair, publishes=False)
    standby = stand_by(pair, standbys)
    finished = pair.run("listen", check=4)
    expect_refusal(finished, "publication_missing", "on the primary", "create publication", "replay")
    assert "point source.dsn at the primary" not in finished.stderr
    finding = find(pair, "publication_missing")
    assert finding["severity"] == "error"
    statement = finding["hint"].split(": ", 1)[1].split("; then wait")[0]
    pair.source.execute(sql.SQL(statement))
    standby.wait_for_replay(primary)
    assert "publication_missing" not in ids(check(pair, exit_code=0))


def test_a_slot_that_idled_for_too_long_is_told_as_that(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    """S19: not as too little WAL."""
    source = make_cluster(18, settings={"idle_replication_slot_timeout": "1s"})
    pair = make_pair(source_server=source, listens=True)
    fill(pair)
    catch_up(pair)

    def is_lost() -> bool:
        pair.source.execute("checkpoint")
        return bool(read_slot(pair)["wal_status"] == "lost")

    wait_until(is_lost, 30, what="the slot is lost", interval_s=0.3)
    expect_refusal(pair.run("listen", check=1), "slot_lost", "idle_replication_slot_timeout", "--repair-gap")
    assert "idle_replication_slot_timeout" in find(pair, "slot_lost")["message"]
    assert "slot_lost" in ids(check(pair, exit_code=4), "error")
    catch_up(pair, "--repair-gap")
    pair.assert_equal("t")


@pytest.mark.parametrize("version", [16, 18])
def test_a_slot_on_a_standby_whose_rows_the_primary_removed_is_told_as_that(
    standbys: list[Cluster], make_cluster: MakeCluster, make_pair: MakePair, version: int
) -> None:
    """S19: hot_standby_feedback is off, and the primary vacuums its catalog."""
    primary = make_cluster(version)
    pair = make_pair(source_server=primary, listens=True)
    fill(pair)
    standby = stand_by(pair, standbys, hot_standby_feedback="off", max_standby_streaming_delay="100ms")
    running = pair.popen("listen", "--until-caught-up")
    wait_until(lambda: write_along(pair) or not running.running, 40, what="the copy", interval_s=0.3)
    running.wait(check=0)
    status = "select wal_status from pg_replication_slots where slot_name = %s"

    def is_lost() -> bool:
        for statement in ("create table brief (id int)", "drop table brief", "vacuum pg_catalog.pg_class"):
            pair.source.execute(statement.encode())
        return bool(standby.execute(status, [pair.slot]) == [("lost",)])

    wait_until(is_lost, 30, what="the slot is lost", interval_s=0.3)
    expect_refusal(pair.run("listen", check=1), "slot_lost", "hot_standby_feedback", "primary_slot_name")
    assert "slot_lost" in ids(check(pair, exit_code=4), "error")


def test_a_failover_without_the_slot_is_told_as_that(
    standbys: list[Cluster], make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """S23: nobody has dropped it."""
    primary = make_cluster()
    pair = make_pair(source_server=primary, listens=True)
    fill(pair)
    catch_up(pair)
    standby = stand_by(pair, standbys)
    expect_refusal(pair.run("listen", check=1), "slot_missing", "this standby does not have it")
    standby.promote()
    finished = pair.run("listen", check=1)
    expect_refusal(finished, "slot_missing", "failed over", "sync_replication_slots")
    assert "somebody dropped it" not in finished.stderr
    assert "failed over" in find(pair, "slot_missing")["message"]
    assert "slot_missing" in ids(check(pair, exit_code=4), "error")


def test_a_slot_that_is_gone_fails_the_check(streamed: Pair) -> None:
    """S19: dropped behind our back, or looked for by another name."""
    fill(streamed)
    catch_up(streamed)
    streamed.write_config(tables=["public.t"], listen={"slot": "another_name"})
    expect_refusal(streamed.run("listen", check=1), "slot_missing", f"had slot {streamed.slot}", "listen.slot")
    assert streamed.slot in find(streamed, "slot_missing")["message"]
    streamed.write_config(tables=["public.t"])
    streamed.source.execute("select pg_drop_replication_slot(%s)", [streamed.slot])
    assert "slot_missing" in ids(check(streamed, exit_code=4), "error")
    expect_refusal(streamed.run("listen", check=1), "slot_missing", "somebody dropped it")


def test_a_database_that_was_renamed_is_named_beside_the_one_that_took_its_name(
    make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """S19: the slot went with the database, and is nobody else's."""
    source = make_cluster()
    pair = make_pair(source_server=source, listens=True)
    fill(pair)
    catch_up(pair)
    pair.source.close()
    old, kept = pair.source_db, f"{pair.source_db}_old"
    names = {"old": sql.Identifier(old), "kept": sql.Identifier(kept)}
    source.execute(sql.SQL("alter database {old} rename to {kept}").format(**names))
    source.execute(sql.SQL("create database {old} template {kept}").format(**names))
    expect_refusal(pair.run("listen", check=1), "slot_foreign", f"belongs to database {kept}", "renamed")
    pair.write_config(tables=["public.t"], source={"dsn": pair.dsn_of_source(dbname=kept)})
    catch_up(pair)
    source.drop_database(old)
    source.execute(sql.SQL("alter database {kept} rename to {old}").format(**names))
    pair.source = source.connect(old)


def test_no_room_for_another_slot_fails_the_check(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    """F10: where a stream is meant to be, as its role and wal_level say, it could not begin."""
    pair = make_pair(source_server=make_cluster(settings={"max_replication_slots": "1"}), listens=True)
    fill(pair)
    pair.source.execute("select pg_create_physical_replication_slot('theirs')")
    assert "no_free_slot" in ids(check(pair, exit_code=4), "error")
    expect_refusal(pair.run("listen", check=1), "no_free_slot", "max_replication_slots")


@pytest.mark.parametrize("side", ["source", "target"])
def test_temp_file_limit_is_named_at_once(pair: Pair, side: str) -> None:
    """F10: it is no lack of walsenders, and does not pass by itself."""
    fill(pair)
    pair.source.execute(
        "create view v as select g as id, md5(g::text) as note from generate_series(1, 200000) g order by 2"
    )
    pair.grant()
    pair.write_config(tables=[{"name": "public.v", "key": ["id"]}])
    connection, role = (pair.source, pair.reader) if side == "source" else (pair.target, pair.writer)
    for setting in ("temp_file_limit = '64kB'", "work_mem = '64kB'"):
        connection.execute(sql.SQL("alter role {} set " + setting).format(sql.Identifier(role)))
    if side == "target":
        pair.target.execute("create table v (id int, note text); insert into v values (0, 'x')")
        pair.target.execute(sql.SQL("alter table v owner to {}").format(sql.Identifier(pair.writer)))
        pair.target.execute("alter table v add primary key (id)")
    began = time.monotonic()
    finished = pair.run("sync", check=1)
    expect_refusal(finished, "temp_file_limit", f"the {side}", "alter role")
    assert "max_wal_senders" not in finished.stderr
    assert time.monotonic() - began < 30


def test_a_view_that_cannot_be_read_is_not_told_to_be_refreshed(pair: Pair) -> None:
    """W26: 55000 is more than a materialized view without data."""
    pair.source.execute("create sequence s; create view v as select 1 as id, currval('s') as n")
    pair.grant()
    pair.source.execute(sql.SQL("grant usage on sequence s to {}").format(sql.Identifier(pair.reader)))
    pair.write_config(tables=[{"name": "public.v", "key": ["id"]}])
    finished = pair.run("sync", check=1)
    expect_refusal(finished, "source_error", "could not read public.v", "currval")
    assert "refresh" not in finished.stderr


def test_a_restriction_to_system_views_is_taken_back_for_our_sessions(pair: Pair) -> None:
    """W26: pg_dump's precaution, set for a role, would make every view unreadable."""
    pair.source.execute("create view v as select 1 as id")
    pair.grant()
    role = sql.Identifier(pair.reader)
    pair.source.execute(sql.SQL("alter role {} set restrict_nonsystem_relation_kind = 'view'").format(role))
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        pair.as_reader.execute("select from v")
    pair.write_config(tables=[{"name": "public.v", "key": ["id"]}])
    pair.run("sync")
    pair.assert_equal("v")


def test_a_view_over_an_unfilled_materialized_view_is_told_so(pair: Pair) -> None:
    """W26."""
    pair.source.execute("create materialized view m as select 1 as id with no data; create view v as select * from m")
    pair.grant()
    pair.write_config(tables=[{"name": "public.v", "key": ["id"]}])
    expect_refusal(pair.run("sync", check=4), "not_populated", "or reads a materialized view")


def test_one_of_several_hosts_is_kept_to(
    standbys: list[Cluster], make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """S36: with load_balance_hosts = random, walsender, observer and readers are on one server: that of the slot."""
    primary = make_cluster()
    pair = make_pair(source_server=primary, listens=True)
    fill(pair)
    catch_up(pair)
    standby = stand_by(pair, standbys)
    hosts = {"host": "127.0.0.1,127.0.0.1", "port": f"{primary.port},{standby.port}"}
    pair.write_config(tables=["public.t"], source={"dsn": pair.dsn_of_source(**hosts, load_balance_hosts="random")})
    assert ids(check(pair, exit_code=0), "warn") >= {"several_hosts"}
    for number in range(6):
        pair.source.execute("insert into t values (%s)", [100 + number])
        catch_up(pair)
        pair.assert_equal("t")
        assert pair.json("slot", "list")["slots"]
    pair.run("slot", "drop", "--yes")
    for number in range(6):
        pair.source.execute("insert into t values (%s)", [200 + number])
        standby.wait_for_replay(primary)
        pair.run("sync", "--jobs", "2")
    pair.assert_equal("t")
