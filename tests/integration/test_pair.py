"""The pair: two fresh databases, two roles with no right too many, and an oracle that can say no."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import MakePair
from tests.pair import Pair, Running
from tests.servers import is_alive
from tests.wait import wait_until

pytestmark = pytest.mark.versions


def test_the_reader_reads_what_is_granted_and_writes_nothing(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        pair.as_reader.execute("select * from t")
    pair.grant()
    assert pair.as_reader.execute("select id from t").fetchall() == [(1,)]
    for forbidden in ("insert into t values (2)", "create temporary table x ()", "create table public.x ()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            pair.as_reader.execute(forbidden)


def test_the_writer_owns_the_target_and_is_no_superuser(pair: Pair) -> None:
    pair.as_writer.execute("create schema raw; create table raw.t (id int)")
    pair.as_writer.execute("set session_replication_role = replica")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        pair.as_writer.execute("create role other")


def test_the_right_to_replica_is_left_out_on_request(make_pair: MakePair) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        make_pair(replica=False).as_writer.execute("set session_replication_role = replica")


def test_a_wrong_password_is_refused(pair: Pair) -> None:
    for dsn in (pair.dsn_of_source(password="wrong"), pair.dsn_of_target(password="wrong")):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(dsn)


def test_equal_tables_are_found_equal_in_spite_of_order_and_settings(pair: Pair) -> None:
    rows = "(1, '2024-02-29', 0.1, null), (2, null, 'nan', E'tab\\t\\\\'), (2, null, 'nan', E'tab\\t\\\\')"
    pair.source.execute("create table t (id int, day date, ratio float8, note text)")
    pair.target.execute("create schema raw; create table raw.other (name text, ratio float8, id int, day date)")
    pair.source.execute(f"insert into t values {rows}")
    pair.target.execute(f"insert into raw.other (id, day, ratio, name) values {rows}")
    pair.assert_equal("t", "raw.other", {"id": "id", "day": "day", "ratio": "ratio", "note": "name"})


@pytest.mark.parametrize(
    "change",
    [
        "delete from t where id = 1",
        "insert into t values (1, 'a')",
        "update t set note = '' where note is null",
        "update t set note = 'A' where note = 'a'",
    ],
)
def test_any_difference_is_found(pair: Pair, change: str) -> None:
    for connection in (pair.source, pair.target):
        connection.execute("create table t (id int, note text); insert into t values (1, 'a'), (2, null)")
    pair.assert_equal("public.t")
    pair.target.execute(change)
    with pytest.raises(AssertionError, match="t differs"):
        pair.assert_equal("public.t")


def test_tables_without_columns_are_compared_by_their_number_of_rows(pair: Pair) -> None:
    for connection in (pair.source, pair.target):
        connection.execute('create table "No ""columns" (); insert into "No ""columns" default values')
    pair.assert_equal('"No ""columns"')
    pair.source.execute('insert into "No ""columns" default values')
    with pytest.raises(AssertionError, match="1 rows missing"):
        pair.assert_equal('"No ""columns"')


def test_a_database_of_another_encoding_is_compared_in_utf8(make_pair: MakePair) -> None:
    pair = make_pair(source_encoding="LATIN1")
    for connection in (pair.source, pair.target):
        connection.execute("create table t (name text); insert into t values ('Zoë')")
    pair.assert_equal("t")


def test_a_command_with_another_exit_code_than_expected_shows_both_streams(pair: Pair) -> None:
    with pytest.raises(AssertionError, match=r"(?s)expected exit code 77.*--- stdout.*--- stderr"):
        pair.run("no-such-command", check=77)


def test_what_a_test_leaves_behind_does_not_outlive_its_pair(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.source.execute("create table t (id int)")
    pair.source.execute("select pg_create_logical_replication_slot('left_behind', 'pgoutput')")
    pair.source.execute("begin; insert into t values (1); prepare transaction 'left behind'")
    pair.as_writer.execute("create table t (id int)")
    running = pair.popen("no-such-command")
    pair.close()
    assert not running.running
    query = "select count(*) from pg_database where datname = %s"
    assert pair.source_server.execute(query, [pair.source_db]) == [(0,)]
    assert pair.target_server.execute(query, [pair.target_db]) == [(0,)]


def test_a_killed_command_takes_its_children_along(pair: Pair) -> None:
    (pair.dir / "replicator").mkdir()
    (pair.dir / "replicator" / "__init__.py").touch()
    (pair.dir / "replicator" / "__main__.py").write_text(
        "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\nprint(child.pid, flush=True)\nchild.wait()\n"
    )
    running = Running((), pair.dir, pair.environment(PYTHONPATH=str(pair.dir)), afresh=True)
    child = int(wait_until(lambda: running.stdout.strip(), what="the child's pid"))
    assert running.kill().exit_code == -9
    wait_until(lambda: not is_alive(child), what="the child ended")
