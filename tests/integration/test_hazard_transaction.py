"""Rows of transactions that end late, in pieces, or in another order than they began."""

from __future__ import annotations

import pytest

from tests.pair import Pair
from tests.strategy_case import BOTH, TABLE, WATERMARK, Case, hold_target, source_session, wait_for_waiter


@pytest.mark.versions
@BOTH
@pytest.mark.hazard("W1")
def test_a_late_commit_with_an_old_stamp_is_not_lost(case: Case) -> None:
    pair = case.pair
    with source_session(pair) as late:
        late.execute("insert into t values (100, 'late'); update t set note = 'late', updated_at = now() where id = 1")
        pair.source.execute("insert into t values (101, 'early')")
        case.catch_up()
        pair.source.execute("insert into t values (102, 'early')")
        case.catch_up()
        late.commit()
    pair.source.execute("insert into t values (103, 'early')")
    case.catch_up()
    case.settle()


@BOTH
@pytest.mark.hazard("W2")
def test_a_transaction_that_only_read_for_hours_writes_its_old_stamp_at_the_end(case: Case) -> None:
    pair = case.pair
    with source_session(pair) as late:
        late.execute("select count(*) from t")
        for night in range(3):
            pair.source.execute("insert into t values (%s, 'early')", [100 + night])
            case.catch_up()
        assert late.execute("select pg_current_xact_id_if_assigned()").fetchone() == (None,)
        late.execute("insert into t values (200, 'late'); update t set note = 'late', updated_at = now() where id = 1")
        late.commit()
    case.catch_up()
    case.settle()


@BOTH
@pytest.mark.hazard("W3")
def test_a_row_stamped_exactly_at_the_boundary_is_not_lost(case: Case) -> None:
    pair = case.pair
    for key in (100, 101, 102):
        boundary = case.state()["watermark_mark"] or case.state()["snapshot_at"]
        pair.source.execute("insert into t values (%s, 'same', %s)", [key, boundary])
        pair.source.execute("update t set note = 'same', updated_at = %s where id = %s", [boundary, key - 99])
        case.catch_up()


@BOTH
@pytest.mark.hazard("W3")
def test_the_oldest_transaction_that_was_open_is_inside_the_next_read(case: Case) -> None:
    """The xid of that transaction is the boundary itself."""
    pair = case.pair
    with source_session(pair) as late:
        late.execute("insert into t values (100, 'at the boundary')")
        row = late.execute("select pg_current_xact_id()::text").fetchone()
        batch = case.catch_up()
        late.commit()
    assert row is not None
    assert int(batch["xid_end"]) <= int(row[0])
    case.catch_up()


@BOTH
@pytest.mark.hazard("W4")
def test_what_commits_between_the_snapshot_and_the_read_comes_the_next_night(case: Case) -> None:
    pair = case.pair
    pair.source.execute("insert into t values (100, 'before')")
    with hold_target(pair) as holder:
        running = case.start()
        wait_for_waiter(pair.target)
        pair.source.execute(
            "insert into t values (101, 'between');"
            "update t set note = 'between', updated_at = now() where id in (1, 100);"
            "delete from t where id = 2"
        )
        holder.rollback()
        batch = case.finish(running)
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 0, 0)
    assert pair.target.execute("select note from t where id = 100").fetchall() == [("before",)]
    case.catch_up()


@pytest.mark.versions
@BOTH
@pytest.mark.hazard("W15")
def test_a_prepared_transaction_that_is_pending_over_two_nights_is_not_lost(case: Case) -> None:
    pair = case.pair
    gid = f"pending in {pair.source_db}"
    with source_session(pair) as late:
        late.execute("insert into t values (100, 'pending'); delete from t where id = 2")
        late.execute("update t set note = 'pending', updated_at = now() where id = 1")
        late.execute(f"prepare transaction '{gid}'")
    for night in range(2):
        pair.source.execute("insert into t values (%s, 'early')", [101 + night])
        case.catch_up()
    pair.source.execute(f"commit prepared '{gid}'")
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 1, 1)
    case.settle()


@BOTH
@pytest.mark.hazard("W15")
def test_a_transaction_that_was_prepared_before_the_first_load_is_not_lost(pair: Pair, strategy: str) -> None:
    pair.source.execute(TABLE)
    gid = f"pending in {pair.source_db}"
    with source_session(pair) as late:
        late.execute("insert into t values (100, 'pending')")
        late.execute(f"prepare transaction '{gid}'")
    case = Case(pair, strategy)
    pair.grant()
    # Nothing is proved while it is pending, so there is no mark to start from.
    load = "full" if strategy == WATERMARK else "incremental"
    case.catch_up(load="full")
    case.catch_up(load=load)
    pair.source.execute(f"commit prepared '{gid}'")
    case.catch_up(load=load)
    case.catch_up()


@BOTH
@pytest.mark.hazard("W16")
def test_savepoints_released_and_rolled_back_in_a_late_transaction(case: Case) -> None:
    pair = case.pair
    with source_session(pair) as late:
        late.execute("savepoint a; insert into t values (100, 'kept'); release a")
        late.execute("savepoint b; update t set note = 'undone', updated_at = now(); delete from t where id = 3")
        case.catch_up()
        late.execute("rollback to b; update t set note = 'kept', updated_at = now() where id = 1")
        pair.source.execute("insert into t values (101, 'early')")
        case.catch_up()
        late.execute(
            "savepoint c; insert into t values (102, 'undone'); rollback to c; insert into t values (102, 'kept');"
            "savepoint d; delete from t where id = 2; savepoint e; insert into t values (2, 'kept'); release d"
        )
        late.commit()
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (2, 2, 0)
    case.settle()


@pytest.mark.versions
@BOTH
@pytest.mark.hazard("W16")
def test_more_subtransactions_than_a_snapshot_lists(case: Case) -> None:
    """Beyond 64 of them a snapshot only says that there are more."""
    pair = case.pair
    with source_session(pair) as late:
        late.execute(
            "do $$ begin for n in 1..200 loop"
            "   begin insert into public.t values (1000 + n, 'sub'); if n % 3 = 0 then raise 'undone'; end if;"
            "   exception when raise_exception then null; end;"
            " end loop; end $$"
        )
        pair.source.execute("insert into t values (100, 'early')")
        case.catch_up()
        late.commit()
    batch = case.catch_up()
    assert batch["rows_inserted"] == 134
    case.settle()
