"""The fault proxy: each fault is the one it says it is."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.fault_proxy import FaultProxy
from tests.pair import Pair
from tests.wait import wait_until


@pytest.fixture
def proxy(pair: Pair) -> Iterator[FaultProxy]:
    with FaultProxy(pair.source_server.host, pair.source_server.port) as proxy:
        yield proxy


def test_what_passes_is_unchanged(pair: Pair, proxy: FaultProxy) -> None:
    with psycopg.connect(pair.dsn_of_source(port=proxy.port)) as connection:
        text = "Zoë" * 1_000_000
        assert connection.execute("select %s::text", [text]).fetchone() == (text,)
    wait_until(lambda: proxy.live == 0, what="the connection closed")


def test_one_byte_at_a_time_is_slow_but_complete(pair: Pair, proxy: FaultProxy) -> None:
    proxy.trickle()
    with psycopg.connect(pair.dsn_of_source(port=proxy.port)) as connection:
        assert connection.execute("select repeat('x', 1000)").fetchone() == ("x" * 1000,)


def test_a_reset_ends_the_connections_of_now_and_no_others(pair: Pair, proxy: FaultProxy) -> None:
    dsn = pair.dsn_of_source(port=proxy.port)
    connection = psycopg.connect(dsn)
    proxy.reset()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("select 1")
    with psycopg.connect(dsn) as again:
        assert again.execute("select 1").fetchone() == (1,)
    assert proxy.connections == 2


def test_a_refusing_proxy_lets_nobody_in_until_it_is_healed(pair: Pair, proxy: FaultProxy) -> None:
    dsn = pair.dsn_of_source(port=proxy.port)
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    proxy.heal()
    psycopg.connect(dsn).close()


def test_a_black_hole_keeps_the_connection_and_delivers_late(pair: Pair, proxy: FaultProxy) -> None:
    connection = psycopg.connect(pair.dsn_of_source(port=proxy.port), autocommit=True)
    channel = connection.pgconn

    def answered() -> bool:
        channel.consume_input()
        return not channel.is_busy()

    proxy.black_hole()
    channel.send_query(b"select 1")
    channel.flush()
    with pytest.raises(AssertionError, match="in vain"):
        wait_until(answered, timeout_s=0.5)
    assert proxy.live == 1
    proxy.heal()
    wait_until(answered)
    result = channel.get_result()
    assert result is not None
    assert result.get_value(0, 0) == b"1"
    connection.close()


def test_the_answer_to_commit_is_lost_after_the_commit_happened(pair: Pair, proxy: FaultProxy) -> None:
    pair.source.execute("create table t (id int)")
    pair.source.execute(f"grant all on t to {pair.reader}")
    connection = psycopg.connect(pair.dsn_of_source(port=proxy.port))
    connection.execute("insert into t values (1)")
    proxy.lose_answer_to(b"COMMIT")
    with pytest.raises(psycopg.OperationalError):
        connection.commit()
    assert proxy.lost_answers == 1
    assert pair.source.execute("select id from t").fetchall() == [(1,)]


def test_only_what_is_sent_after_the_order_loses_its_answer(pair: Pair, proxy: FaultProxy) -> None:
    with psycopg.connect(pair.dsn_of_source(port=proxy.port)) as connection:
        connection.execute("select 'ON COMMIT DROP'")
        proxy.lose_answer_to(b"COMMIT")
        assert connection.execute("select 1").fetchone() == (1,)
        proxy.heal()
    assert proxy.lost_answers == 0
