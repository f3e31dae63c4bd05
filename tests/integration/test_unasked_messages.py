"""Messages that the source sends though nobody asked for them: the stream reads them and goes on."""

from __future__ import annotations

import pytest
from psycopg import sql

from tests.pair import Pair
from tests.streaming import catch_up

FEW = "select g, repeat('r', 500) from generate_series(2, 6000) g"
KEPT = "insert into seen values (default, 'kept'); commit"
# What is done before the bulk of a transaction, and how it ends.
SHAPES = {
    "whole": ("savepoint a; {first}; release a", "rollback"),
    "whole, of several parts": (
        "savepoint a; {first}; release a; savepoint b; {first}; savepoint c; {first}",
        "rollback",
    ),
    "to a savepoint": ("savepoint undone; savepoint a; {first}; release a", f"rollback to undone; {KEPT}"),
    "to an earlier savepoint": ("savepoint undone; savepoint a; {first}", f"rollback to undone; {KEPT}"),
}
FIRST = {"unpublished": "insert into unseen values (1)", "published": "insert into seen values (default, 'first')"}
BULK = {
    "unpublished": f"insert into unseen {FEW}",
    "published": f"insert into seen (v) select x.v from ({FEW}) x(n, v)",
}


def begin(pair: Pair) -> None:
    """Make and copy the tables; the source then keeps little of a transaction in memory."""
    role = sql.Identifier(pair.reader)
    pair.source.execute(sql.SQL("alter role {} set logical_decoding_work_mem = '64kB'").format(role))
    pair.source.execute("create table seen (id int generated always as identity primary key, v text)")
    pair.source.execute("create table unseen (n int, v text)")
    pair.publish("seen")
    pair.write_config(tables=["public.seen"])
    catch_up(pair)


@pytest.mark.versions
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("bulk", BULK)
def test_a_large_transaction_that_was_rolled_back_does_not_end_the_stream(
    streamed: Pair, first: str, bulk: str, shape: str
) -> None:
    """S26: its subtransaction begins in a published table or another, and all of it is undone, or a part."""
    begin(streamed)
    opening, ending = SHAPES[shape]
    streamed.source.execute(f"begin; {opening.format(first=FIRST[first])}; {BULK[bulk]}; {ending}")
    streamed.source.execute("insert into seen values (default, 'after')")
    catch_up(streamed)
    streamed.assert_equal("public.seen")


@pytest.mark.versions
def test_a_large_prepared_transaction_that_was_rolled_back_does_not_end_the_stream(streamed: Pair) -> None:
    """S26: also without savepoints, in many of them, and with messages of an application amid."""
    begin(streamed)
    if streamed.source.execute("show max_prepared_transactions").fetchone() != ("0",):
        bulk = f"{BULK['unpublished']}; {BULK['published']}"
        streamed.source.execute(
            f"begin; savepoint a; {FIRST['unpublished']}; release a; {bulk}; prepare transaction 'undone'"
        )
        streamed.source.execute("rollback prepared 'undone'")
    many = "; ".join(f"savepoint s{n}; {BULK['published'].replace('6000', '300')}; release s{n}" for n in range(20))
    streamed.source.execute(
        f"begin; {BULK['published']}; rollback;"
        f"begin; {many}; select pg_logical_emit_message(true, 'app', repeat('m', 100000)); rollback;"
        "insert into seen values (default, 'after')"
    )
    catch_up(streamed)
    streamed.assert_equal("public.seen")


def test_a_transaction_that_came_from_elsewhere_is_taken_like_any_other(streamed: Pair) -> None:
    """S26: its origin is told ahead of its rows."""
    begin(streamed)
    name = f"origin_{streamed.source_db}"
    with streamed.source_server.connect(streamed.source_db) as elsewhere:
        elsewhere.execute("select pg_replication_origin_create(%s)", [name])
        elsewhere.execute("select pg_replication_origin_session_setup(%s)", [name])
        elsewhere.execute("begin; select pg_replication_origin_xact_setup('0/ABCDEF', now())")
        elsewhere.execute("insert into seen values (default, 'from elsewhere'); commit")
        elsewhere.execute("begin; insert into seen values (default, 'without a place'); commit")
        elsewhere.execute("select pg_replication_origin_session_reset()")
        catch_up(streamed)
        streamed.assert_equal("public.seen")
        elsewhere.execute("select pg_replication_origin_drop(%s)", [name])
