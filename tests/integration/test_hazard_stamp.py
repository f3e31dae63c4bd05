"""Stamps that say something else than when their row changed: `xmin` never asks, the audit of `watermark` counts."""

from __future__ import annotations

import pytest

from tests.pair import Pair
from tests.strategy_case import BOTH, TABLE, WATERMARK, Case, source_session


@BOTH
@pytest.mark.hazard("W5")
@pytest.mark.parametrize("precision", [3, 0])
def test_stamps_without_microseconds_are_not_below_the_watermark(pair: Pair, strategy: str, precision: int) -> None:
    """A stamp of now, cut to milliseconds or seconds, is older than the clock that was read a moment before."""
    pair.source.execute(TABLE)
    pair.source.execute(f"alter table t alter updated_at type timestamptz({precision})")
    case = Case(pair, strategy, watermark_slack=None)
    case.begin()
    cut = "date_trunc('second', now())" if precision == 0 else "date_trunc('milliseconds', now())"
    pair.source.execute(f"insert into t values (100, 'cut', {cut}); update t set note = 'a', updated_at = {cut}")
    case.catch_up()
    pair.source.execute(f"update t set note = 'b', updated_at = {cut} where id in (1, 100)")
    case.catch_up()


@BOTH
@pytest.mark.hazard("W5")
def test_microseconds_of_the_boundary_are_kept(case: Case) -> None:
    """A boundary that went through milliseconds would lie up to one above or below."""
    pair = case.pair
    boundary = case.state()["watermark_mark"] or case.state()["snapshot_at"]
    pair.source.execute(
        "insert into t values (100, 'at', %(mark)s), (101, 'after', %(mark)s + interval '1 microsecond'),"
        " (102, 'before', %(mark)s - interval '1 microsecond')",
        {"mark": boundary},
    )
    case.catch_up(missed=1)


@BOTH
@pytest.mark.hazard("W6")
@pytest.mark.parametrize("stamp", ["9999-12-31", "infinity", "-infinity", "4713-01-01 BC"])
def test_a_stamp_at_the_end_of_time_blinds_nobody(pair: Pair, strategy: str, stamp: str) -> None:
    pair.source.execute(TABLE)
    pair.source.execute("insert into t values (100, 'odd', %s)", [stamp])
    case = Case(pair, strategy)
    case.begin()
    pair.source.execute("insert into t values (101, 'odd', %s)", [stamp])
    pair.source.execute("update t set note = 'x', updated_at = now() where id = 1")
    is_old = stamp in ("-infinity", "4713-01-01 BC")
    case.catch_up(missed=1 if is_old else 0)
    pair.source.execute("insert into t values (102, 'plain'); update t set note = 'x', updated_at = now() where id = 2")
    case.catch_up()


@BOTH
@pytest.mark.hazard("W7")
@pytest.mark.parametrize(("lag_s", "missed"), [(45, 0), (-3600, 0), (600, 2)])
def test_stamps_of_another_host_s_clock(pair: Pair, strategy: str, lag_s: int, missed: int) -> None:
    """Within watermark_slack its lag is harmless; beyond, the audit finds and counts what the watermark missed."""
    pair.source.execute(TABLE)
    case = Case(pair, strategy, watermark_slack="60s")
    case.begin()
    stamp = "clock_timestamp() - make_interval(secs => %(lag)s)"
    for note in ("a", "b"):
        pair.source.execute(f"update t set note = '{note}', updated_at = {stamp} where id = 1", {"lag": lag_s})
        pair.source.execute(f"insert into t values ({ord(note)}, 'new', {stamp})", {"lag": lag_s})
        case.catch_up(missed=missed)


def step_clock_back(pair: Pair, by: str) -> None:
    """Leave the target with what a source would have left whose clock was ahead until now.

    No clock of a machine is turned for a test; to the tool a clock that steps back and a past that lies in the future
    are the same.
    """
    pair.target.execute(
        "update replicator.table_state set snapshot_at = snapshot_at + %(by)s::interval,"
        " watermark_mark = watermark_mark + %(by)s::interval",
        {"by": by},
    )
    pair.target.execute("update replicator.observation set observed_at = observed_at + %s::interval", [by])


@BOTH
@pytest.mark.hazard("W8")
def test_a_clock_that_stepped_back_hides_no_row(case: Case) -> None:
    pair = case.pair
    step_clock_back(pair, "1 hour")
    pair.source.execute("update t set note = 'after', updated_at = now() where id = 1; delete from t where id = 2")
    is_watermark = case.strategy == WATERMARK
    case.catch_up(load="full" if is_watermark else "incremental")
    for note in ("b", "c"):
        pair.source.execute("update t set note = %s, updated_at = now() where id = 1", [note])
        case.catch_up()
    case.settle()


@BOTH
@pytest.mark.hazard("W8")
def test_observations_of_a_clock_that_stepped_back_prove_nothing(case: Case) -> None:
    """With a transaction open all night the mark comes from an older observation, none of them of the old clock."""
    pair = case.pair
    step_clock_back(pair, "1 hour")
    with source_session(pair) as late:
        late.execute("select count(*) from t")
        load = "full" if case.strategy == WATERMARK else "incremental"
        case.catch_up(load=load)
        pair.source.execute("insert into t values (100, 'early')")
        case.catch_up(load=load)
        late.execute("insert into t values (101, 'late')")
        late.commit()
    case.catch_up(load=load)
    pair.source.execute("insert into t values (102, 'early')")
    case.catch_up()


@BOTH
@pytest.mark.hazard("W9")
def test_rows_without_a_stamp_are_read_every_night(case: Case) -> None:
    pair = case.pair
    pair.source.execute("insert into t values (100, 'none', null); update t set updated_at = null where id = 1")
    case.catch_up()
    pair.source.execute("update t set note = 'changed' where updated_at is null")
    batch = case.catch_up()
    assert batch["rows_updated"] == 2
    pair.source.execute("update t set updated_at = '2001-01-01' where id = 1")
    case.catch_up(missed=1)


@BOTH
@pytest.mark.hazard("W10")
def test_an_update_that_leaves_the_stamp_alone(case: Case) -> None:
    pair = case.pair
    pair.source.execute("update t set note = 'silent' where id <= 3")
    case.catch_up(missed=3)
    pair.source.execute("insert into t values (100, 'new'); update t set note = 'silent' where id = 4")
    case.catch_up(missed=1)


@BOTH
@pytest.mark.hazard("W11")
def test_a_backdated_import(case: Case) -> None:
    pair = case.pair
    pair.source.execute(
        "insert into t select g, 'import', now() - interval '3 years' from generate_series(1000, 1499) g"
    )
    batch = case.catch_up(missed=500)
    assert batch["rows_inserted"] == 500


LOCAL = "(now() at time zone interval '{offset}')"


@BOTH
@pytest.mark.hazard("W12")
@pytest.mark.parametrize(("summer", "winter"), [("+02:00", "+01:00"), ("-04:00", "-05:00"), ("+14:00", "+13:00")])
def test_local_stamps_that_are_set_back_in_a_dst_night(pair: Pair, strategy: str, summer: str, winter: str) -> None:
    """The hour between two and three comes twice, and the zone is nowhere written."""
    before, after = LOCAL.format(offset=summer), LOCAL.format(offset=winter)
    pair.source.execute("create table t (id int primary key, note text, updated_at timestamp)")
    pair.source.execute(f"insert into t select g, 'summer', {before} from generate_series(1, 20) g")
    case = Case(pair, strategy, watermark_slack=None)
    case.begin()
    pair.source.execute(f"insert into t values (100, 'winter', {after})")
    pair.source.execute(f"update t set note = 'winter', updated_at = {after} where id <= 3")
    case.catch_up()
    pair.source.execute(f"update t set note = 'spring', updated_at = {before} where id = 1")
    case.catch_up()


@BOTH
@pytest.mark.hazard("W12")
def test_a_date_as_watermark_covers_the_whole_day(pair: Pair, strategy: str) -> None:
    pair.source.execute("create table t (id int primary key, note text, updated_at date)")
    pair.source.execute("insert into t select g, 'old', current_date - 1 from generate_series(1, 20) g")
    case = Case(pair, strategy, watermark_slack=None)
    case.begin()
    pair.source.execute("update t set note = 'today', updated_at = current_date where id = 1")
    case.catch_up()
    pair.source.execute("update t set note = 'again' where id = 1; insert into t values (100, 'new', current_date)")
    case.catch_up()
