"""TRUNCATE and rewriting ALTER are not seen through snapshots: an older one finds the table empty. Locks keep them out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.pair import Pair
from tests.strategy_case import BOTH, TABLE, WATERMARK, Case, hold_target, source_session, wait_for_waiter
from tests.wait import wait_until

TRUNCATE = "truncate t; insert into t select g, 'refilled' from generate_series(1, 25) g"
REWRITE = "alter table t alter id type bigint; insert into t values (100, 'rewritten')"
PARTITIONED = """
create table t (id int, part int, note text, updated_at timestamptz default now(), primary key (id, part))
    partition by list (part);
create table t_one partition of t for values in (1);
create table t_two partition of t for values in (2);
insert into t select g, 1 + g % 2, 'row ' || g, now() - interval '1 day' from generate_series(1, 20) g;
"""
CHANGES = pytest.mark.parametrize("change", [TRUNCATE, REWRITE], ids=["truncate", "rewrite"])


@contextmanager
def changing(pair: Pair, change: str) -> Iterator[threading.Thread]:
    """Run `change` in a transaction of its own beside the test, and see it through."""
    with source_session(pair) as application:

        def work() -> None:
            application.execute(change)
            application.commit()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield thread
        finally:
            thread.join(60)
    assert not thread.is_alive()


def count_target(pair: Pair) -> int:
    """Return the rows of t that a reader of the target finds."""
    ((count,),) = pair.target.execute("select count(*) from t").fetchall()
    return int(count)


@BOTH
@CHANGES
@pytest.mark.hazard("W27")
def test_a_change_that_is_under_way_is_waited_for(case: Case, change: str) -> None:
    """A snapshot from before its commit would find no row in the new file."""
    pair = case.pair
    with source_session(pair) as application:
        application.execute(change)
        running = case.start()
        wait_for_waiter(pair.source)
        assert count_target(pair) == 20
        application.commit()
        batch = case.finish(running)
    pair.assert_equal("t")
    assert batch["load_type"] == "full"
    case.catch_up()


@BOTH
@CHANGES
@pytest.mark.hazard("W27")
def test_a_change_waits_for_a_read_that_is_under_way(case: Case, change: str) -> None:
    pair = case.pair
    pair.source.execute("insert into t values (50, 'new')")
    with hold_target(pair) as holder:
        running = case.start()
        wait_for_waiter(pair.target)
        with changing(pair, change):
            wait_for_waiter(pair.source)
            holder.rollback()
            case.finish(running)
            assert count_target(pair) == 21
    case.catch_up(load="full")


@BOTH
@pytest.mark.hazard("W27")
@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_a_read_gives_way_to_a_change_that_waits_too_long(pair: Pair, strategy: str, fraction: float) -> None:
    """The table is read again after the change, and no half of an emptied partition lands on the way."""
    pair.source.execute(PARTITIONED)
    case = Case(pair, strategy, max_delete_fraction=fraction).configure(sections={"source": {"max_hold": "1s"}})
    case.begin()
    pair.source.execute("update t set note = 'before', updated_at = now() where id <= 4")
    with hold_target(pair) as holder:
        running = case.start()
        wait_for_waiter(pair.target)
        with changing(
            pair, "truncate t_one; insert into t select g, 1, 'refilled' from generate_series(100, 130) g"
        ) as it:
            wait_until(lambda: not it.is_alive(), what="the change went ahead of the read")
        holder.rollback()
        batch = case.finish(running)
    pair.assert_equal("t")
    assert (batch["load_type"], batch["rows_inserted"], batch["rows_deleted"]) == ("full", 31, 10)
    assert batch["attempts"] == 2


@BOTH
@pytest.mark.hazard("W27")
def test_a_read_that_holds_its_lock_gives_way_too(pair: Pair, strategy: str) -> None:
    """While the target takes its time the read is over, and its lock would still keep the application waiting."""
    pair.source.execute(TABLE)
    case = Case(pair, strategy).configure(sections={"source": {"max_hold": "1s"}})
    case.begin()
    pair.source.execute("update t set note = 'before', updated_at = now() where id <= 4")
    with hold_target(pair) as holder:
        holder.rollback()
        holder.execute("lock table t in share row exclusive mode")
        running = case.start()
        wait_for_waiter(pair.target)
        with changing(pair, TRUNCATE) as it:
            wait_until(lambda: not it.is_alive(), what="the change went ahead of the merge")
        holder.rollback()
        case.finish(running)
    pair.assert_equal("t")


@pytest.mark.hazard("W27")
def test_the_read_of_a_view_gives_way_to_a_change_of_its_table(pair: Pair) -> None:
    pair.source.execute(TABLE + "create view v as select * from t")
    case = Case(pair, WATERMARK, "public.v", key=["id"]).configure(sections={"source": {"max_hold": "1s"}})
    case.begin()
    pair.source.execute("update t set note = 'before', updated_at = now() where id <= 4")
    with hold_target(pair, "v") as holder:
        running = case.start()
        wait_for_waiter(pair.target, "v")
        with changing(pair, TRUNCATE) as it:
            wait_until(lambda: not it.is_alive(), what="the change went ahead of the read")
        holder.rollback()
        case.finish(running)
    pair.assert_equal("v")


@BOTH
@pytest.mark.hazard("W27")
def test_a_table_that_stays_locked_is_left_as_it_was(case: Case) -> None:
    pair = case.pair
    case.configure(sections={"source": {"lock_timeout": "200ms"}})
    with source_session(pair) as application:
        application.execute(TRUNCATE)
        batch = case.stop(75, "lock_timeout")
        assert (batch["error_code"], batch["attempts"]) == ("55P03", 3)
        application.commit()
    case.catch_up(load="full")


@pytest.mark.hazard("W27")
def test_a_first_load_is_not_taken_for_complete_before_a_truncate_ends(pair: Pair) -> None:
    pair.source.execute(TABLE)
    pair.grant()
    case = Case(pair, WATERMARK)
    with source_session(pair) as application:
        application.execute(TRUNCATE)
        running = case.start()
        wait_for_waiter(pair.source)
        application.commit()
        batch = case.finish(running)
    assert batch["rows_inserted"] == 25
    pair.assert_equal("t")
