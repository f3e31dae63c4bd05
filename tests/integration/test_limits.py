"""Limits of servers and roles: adapted to where that is possible, else named with the setting within seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from tests.conftest import MakeCluster, MakePair
from tests.pair import Finished, Pair
from tests.servers import Server
from tests.wait import wait_until

SOON_S = 40.0


def fill(pair: Pair, tables: int = 6) -> None:
    """Make some tables, and let the reader read them."""
    for n in range(tables):
        pair.source.execute(sql.SQL("create table {} as select g as id from generate_series(1, 50) g").format(
            sql.Identifier(f"t{n}")))  # fmt: skip
        pair.source.execute(sql.SQL("alter table {} add primary key (id)").format(sql.Identifier(f"t{n}")))
    pair.grant()
    pair.write_config(tables=["public.*"])


def limit_role(server: Server, role: str, connections: int) -> None:
    """Give a role a CONNECTION LIMIT."""
    with server.connect() as admin:
        admin.execute(sql.SQL("alter role {} connection limit {}").format(sql.Identifier(role), connections))


def run_soon(pair: Pair, *args: str, check: int) -> Finished:
    """Run a command that must end within seconds."""
    began = time.monotonic()
    finished = pair.run(*args, check=check)
    assert time.monotonic() - began < SOON_S
    return finished


@pytest.mark.parametrize("most", [2, 3, 4])
def test_a_sync_gets_by_with_the_connections_that_a_role_may_have(pair: Pair, most: int) -> None:
    """F10: CONNECTION LIMIT of either role; with two the coordinator reads by itself."""
    fill(pair)
    limit_role(pair.source_server, pair.reader, most)
    limit_role(pair.target_server, pair.writer, most)
    for command in (["sync", "--jobs", "4"], ["sync", "--full", "--jobs", "4"]):
        run_soon(pair, *command, check=0)
    for n in range(6):
        pair.assert_equal(f"public.t{n}")


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("most", [0, 1])
def test_a_role_that_may_have_too_few_connections_is_named(pair: Pair, side: str, most: int) -> None:
    """F10: nothing is retried for minutes, and the statement that raises the limit is there."""
    fill(pair)
    role, server = (pair.reader, pair.source_server) if side == "source" else (pair.writer, pair.target_server)
    limit_role(server, role, most)
    finished = run_soon(pair, "sync", check=1 if most else 4)
    assert "limit_reached" in finished.stderr
    assert f"CONNECTION LIMIT of role {role}" in finished.stderr
    if not most:
        assert f'alter role "{role}" connection limit' in finished.stderr


def test_a_server_without_connections_to_spare_is_named(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    """F10: max_connections; with one to spare for each of the run's first needs, the sync gets by."""
    pair = make_pair(source_server=make_cluster(18, settings={"max_connections": "9"}))
    fill(pair)
    # Three are reserved for superusers, and the test itself has one.
    others = [psycopg.connect(pair.source_dsn) for _ in range(3)]
    run_soon(pair, "sync", "--jobs", "4", check=0)
    others.append(psycopg.connect(pair.source_dsn))
    finished = run_soon(pair, "sync", "--full", check=1)
    assert "max_connections is reached" in finished.stderr
    for other in others:
        other.close()


@pytest.mark.versions
def test_a_listener_names_max_wal_senders_and_goes_on_once_one_is_free(
    make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """F10: a daemon goes on trying, and says what it waits for; a bounded run ends."""
    pair = make_pair(source_server=make_cluster(18, settings={"max_wal_senders": "1"}), listens=True)
    pair.source.execute("create table t (id int primary key)")
    pair.publish()
    pair.write_config(tables=["public.t"])
    other = psycopg.connect(
        pair.dsn_of_source(replication="database"), cursor_factory=psycopg.ClientCursor, autocommit=True
    )
    other.execute("IDENTIFY_SYSTEM")
    finished = run_soon(pair, "listen", "--until-caught-up", check=1)
    assert "max_wal_senders" in finished.stderr
    with pair.popen("listen") as running:
        wait_until(lambda: "max_wal_senders is reached" in running.stderr, what="the listener names the setting")
        other.close()
        wait_until(lambda: "stream_started" in running.stderr, 40, what="the stream starts")


@pytest.mark.versions
def test_a_listener_names_max_replication_slots(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    """F10: 53400 of a slot that cannot be made."""
    pair = make_pair(source_server=make_cluster(18, settings={"max_replication_slots": "1"}), listens=True)
    pair.source.execute("create table t (id int primary key)")
    pair.publish()
    pair.write_config(tables=["public.t"])
    pair.source.execute("select pg_create_logical_replication_slot('other', 'pgoutput')")
    finished = run_soon(pair, "listen", check=1)
    assert "max_replication_slots is reached" in finished.stderr


@pytest.mark.versions
@pytest.mark.parametrize("command", ["sync", "listen"])
def test_more_tables_than_the_server_has_locks_for_are_read_in_groups(
    make_cluster: MakeCluster, make_pair: MakePair, command: str
) -> None:
    """F10: max_locks_per_transaction, of a source with thousands of partitions."""
    pair = make_pair(
        source_server=make_cluster(18, settings={"max_locks_per_transaction": "10", "max_connections": "20"}),
        listens=True,
    )
    for n in range(8):
        root = sql.Identifier(f"t{n}")
        pair.source.execute(sql.SQL("create table {} (id int primary key) partition by range (id)").format(root))
        for part in range(120):
            pair.source.execute(
                sql.SQL("create table {} partition of {} for values from ({}) to ({})").format(
                    sql.Identifier(f"t{n}_{part}"), root, part, part + 1
                )
            )
        pair.source.execute(sql.SQL("insert into {} select generate_series(0, 119)").format(root))
    pair.grant()
    pair.write_config(tables=["public.*"])
    if command == "sync":
        pair.run("sync", check=0)
    else:
        pair.publish(*[f"t{n}" for n in range(8)])
        pair.run("listen", "--until-caught-up", check=0)
    for n in range(8):
        pair.assert_equal(f"public.t{n}")


@pytest.mark.versions
def test_a_table_that_alone_needs_too_many_locks_is_named(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    """F10: 53200 of the lock table; the other tables land."""
    pair = make_pair(
        source_server=make_cluster(18, settings={"max_locks_per_transaction": "10", "max_connections": "10"})
    )
    pair.source.execute(
        "create table t (id int primary key) partition by range (id); create table u (id int primary key)"
    )
    for part in range(3000):
        pair.source.execute(
            sql.SQL("create table {} partition of t for values from ({}) to ({})").format(
                sql.Identifier(f"t_{part}"), part, part + 1
            )
        )
    pair.grant()
    pair.write_config(tables=["public.*"])
    finished = run_soon(pair, "sync", check=6)
    assert "max_locks_per_transaction" in finished.stderr
    pair.assert_equal("public.u")


@pytest.mark.versions
def test_a_limit_of_temporary_files_is_named(make_pair: MakePair) -> None:
    """F10: temp_file_limit, met by a view that sorts."""
    pair = make_pair()
    pair.source.execute(
        "create table t (id int primary key, note text);"
        "insert into t select g, repeat(md5(g::text), 20) from generate_series(1, 20000) g;"
        "create view v as select * from t order by note"
    )
    pair.source.execute(
        sql.SQL("alter role {0} set temp_file_limit = '1MB'; alter role {0} set work_mem = '64kB'").format(
            sql.Identifier(pair.reader)
        )
    )
    pair.grant()
    pair.write_config(tables=[{"name": "public.v", "key": ["id"]}])
    finished = run_soon(pair, "sync", check=1)
    assert "temp_file_limit" in finished.stderr


Revoke = Callable[[Pair], None]


@pytest.mark.versions
@pytest.mark.parametrize("command", ["sync", "listen"])
@pytest.mark.parametrize("right", ["temporary", "create"])
def test_a_target_role_without_a_right_on_the_database_gets_the_grant(streamed: Pair, command: str, right: str) -> None:
    """F10, F11: TEMPORARY or CREATE is missing; the GRANT is what it takes."""
    pair = streamed
    pair.source.execute("create table t (id int primary key)")
    pair.publish()
    pair.write_config(tables=["public.t"])
    names = (sql.Identifier(pair.target_db), sql.Identifier(pair.writer))
    other = sql.SQL("create" if right == "temporary" else "temporary")
    pair.target.execute(
        sql.SQL(
            "alter database {0} owner to postgres; revoke all on database {0} from public, {1};"
            "grant connect, {2} on database {0} to {1}; grant usage, create on schema public to {1}"
        ).format(*names, other)
    )
    finished = run_soon(pair, command, check=4)
    grant = f'grant {right} on database "{pair.target_db}" to "{pair.writer}"'
    assert grant in finished.stderr
    pair.target.execute(sql.SQL(grant))
    pair.run(command, *([] if command == "sync" else ["--until-caught-up"]))
    pair.assert_equal("public.t")


@pytest.mark.versions
def test_a_target_role_without_create_in_a_schema_gets_the_grant(pair: Pair) -> None:
    """F10: found by the table's own load."""
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    pair.target.execute("create schema held")
    pair.write_config(tables=[{"name": "public.t", "target": "held.t"}])
    finished = run_soon(pair, "sync", check=4)
    assert f'grant usage, create on schema "held" to "{pair.writer}"' in finished.stdout + finished.stderr
