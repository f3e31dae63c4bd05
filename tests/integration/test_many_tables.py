"""A listener over many tables asks the servers no more than one over few, when it starts and when changes come."""

from __future__ import annotations

import pytest
from psycopg import sql

from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.servers import Cluster
from tests.streaming import catch_up, listening, wait_until_equal

FEW, MANY = 4, 40
MOST_EXTRA = 12
"""Statements that more tables may cost: those that are sent every second, in a start that takes a little longer."""


@pytest.fixture
def servers(make_cluster: MakeCluster) -> tuple[Cluster, Cluster]:
    """Return a source and a target that log every statement."""
    settings = {"log_statement": "all"}
    return make_cluster(settings={"wal_level": "logical", **settings}), make_cluster(settings=settings)


@pytest.fixture
def pair(servers: tuple[Cluster, Cluster], make_pair: MakePair) -> Pair:
    source, target = servers
    return make_pair(source_server=source, target_server=target, listens=True)


def add_tables(pair: Pair, first: int, last: int) -> None:
    for number in range(first, last):
        pair.source.execute(
            sql.SQL(
                "create table {0} (id serial primary key, v text, n numeric(8,2), m mood);"
                "insert into {0} (v) select 'v' from generate_series(1, 3)"
            ).format(sql.Identifier(f"t{number}"))
        )
    pair.grant()


def begin(pair: Pair) -> None:
    pair.source.execute("create type mood as enum ('sad', 'fine')")
    add_tables(pair, 0, FEW)
    pair.publish()
    pair.write_config(tables=["public.*"], defaults={"sync_sequences": True})
    catch_up(pair)


def count_statements(server: Cluster, role: str, since: int) -> int:
    """Return how many statements a role has sent since the log had a length."""
    lines = [line for line in server.log_text()[since:].splitlines() if f" {role}@" in line]
    return sum("LOG:  statement: " in line or "LOG:  execute " in line for line in lines)


def count_start(pair: Pair, servers: tuple[Cluster, Cluster]) -> list[int]:
    """Return how many statements an idle listener sends to each side."""
    (source, target), before = servers, [len(server.log_text()) for server in servers]
    catch_up(pair)
    return [count_statements(source, pair.reader, before[0]), count_statements(target, pair.writer, before[1])]


def touch_all(pair: Pair, target: Cluster) -> tuple[int, str]:
    """Change every table in one transaction; return how many statements it takes at the target, and what it logs."""
    since = len(target.log_text())
    with pair.source.transaction():
        for number in range(MANY):
            pair.source.execute(f"update t{number} set v = v || 'x' where id = 1".encode())
    wait_until_equal(pair, *(f"public.t{number}" for number in range(MANY)))
    return count_statements(target, pair.writer, since), target.log_text()[since:]


@pytest.mark.hazard("S39")
def test_a_start_asks_no_more_for_forty_tables_than_for_four(pair: Pair, servers: tuple[Cluster, Cluster]) -> None:
    """Both catalogs are read in sets, whatever the number of tables."""
    begin(pair)
    few = count_start(pair, servers)
    add_tables(pair, FEW, MANY)
    catch_up(pair)
    many = count_start(pair, servers)
    for here, there in zip(few, many, strict=True):
        assert there <= here + MOST_EXTRA, (few, many)


@pytest.mark.hazard("S39")
def test_the_first_change_of_a_table_costs_no_look_at_the_catalog(pair: Pair, servers: tuple[Cluster, Cluster]) -> None:
    """What the start has read is handed on."""
    begin(pair)
    add_tables(pair, FEW, MANY)
    catch_up(pair)
    _, target = servers
    with listening(pair):
        first, logged = touch_all(pair, target)
        assert "a.attrelid::bigint as relation" not in logged
        following, _ = touch_all(pair, target)
        # A staging table for each, and what is asked once.
        assert first <= following + MANY + MOST_EXTRA


@pytest.mark.parametrize("is_touched", [False, True], ids=["ahead of its first change", "after its first change"])
def test_a_target_that_changes_under_the_listener_is_looked_at_again(pair: Pair, is_touched: bool) -> None:
    """T3: a column or the whole table dropped on the target, and one added: nothing stops, and nothing is missing."""
    begin(pair)
    with listening(pair):
        if is_touched:
            pair.source.execute("update t1 set n = 1; update t2 set n = 1; update t3 set n = 1")
            wait_until_equal(pair, "public.t1", "public.t2", "public.t3")
        pair.target.execute("alter table t1 drop column n; alter table t2 add column mine int default 7; drop table t3")
        pair.source.execute(
            "update t1 set n = 5 where id = 1; update t2 set v = 'y' where id = 2; delete from t3 where id = 3"
        )
        wait_until_equal(pair, "public.t1", "public.t2", "public.t3")
        assert pair.target.execute("select mine from t2").fetchall() == [(7,), (7,), (7,)]
