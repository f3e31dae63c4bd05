"""Positions compare as PostgreSQL compares them, also across 2^32."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.position import FIRST_NORMAL_XID, Lsn, Origin, Seen, is_within_horizon, step_before_header, wrap_xid

XIDS = st.integers(min_value=FIRST_NORMAL_XID, max_value=1 << 40)


def age(xid: int, now: int) -> int:
    """PostgreSQL's age(xid) for normal xids: a signed 32-bit distance (backend/utils/adt/xid.c)."""
    distance = (now - xid) % (1 << 32)
    return distance - (1 << 32) if distance >= 1 << 31 else distance


@given(st.integers(min_value=0, max_value=(1 << 64) - 1))
def test_a_wal_position_survives_its_own_spelling(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == value


@pytest.mark.parametrize("segment", [1 << 20, 1 << 24, 1 << 30])
def test_a_page_header_is_no_part_of_the_wal_that_was_written_and_a_record_is(segment: int) -> None:
    """A segment begins with a header of 40 bytes, every other page with one of 24: behind that a record may end."""
    page = 8192
    found = [int(step_before_header(Lsn(5 * segment + at), segment)) - 5 * segment for at in (40, 48, page)]
    assert found == [0, 48, page]
    for start in (page, 3 * page, segment - page):
        found = [int(step_before_header(Lsn(5 * segment + start + at), segment)) for at in (24, 32, 40)]
        assert found == [5 * segment + start + at for at in (0, 32, 40)]


@pytest.mark.parametrize("text", ["", "0", "/", "0/", "/0", "123456789/0", "0/123456789", "g/0"])
def test_what_is_no_wal_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a WAL position"):
        Lsn.parse(text)


@given(XIDS, st.integers(0, (1 << 31) - (1 << 24) - 1), st.data())
def test_a_window_of_ages_selects_just_the_xids_from_the_position_on(
    position: int, gone: int, data: st.DataObject
) -> None:
    """B10: the comparison holds on either side of 2^32, where the bare numbers start again."""
    now = position + gone
    assert is_within_horizon(position, now)
    xid = data.draw(st.integers(max(FIRST_NORMAL_XID, now - (1 << 31) + 1), now), label="xid")
    selected = 0 <= age(xid % (1 << 32), now % (1 << 32)) <= age(wrap_xid(position), now % (1 << 32))
    may_wrap_onto_special = position % (1 << 32) < FIRST_NORMAL_XID
    assert selected == (xid >= position) or may_wrap_onto_special


@given(XIDS, st.integers(min_value=(1 << 31) - (1 << 24), max_value=1 << 41))
def test_beyond_the_horizon_nothing_is_compared(position: int, gone: int) -> None:
    assert not is_within_horizon(position, position + gone)


@given(XIDS, st.integers(min_value=1, max_value=1 << 20))
def test_a_position_ahead_of_the_source_is_out_of_the_horizon(position: int, ahead: int) -> None:
    assert not is_within_horizon(position + ahead, position)


def test_a_table_has_what_its_read_saw_and_nothing_that_was_open_or_came_later() -> None:
    seen = Seen.parse("100:105:101,103", Lsn(9000))
    origin = Origin(Lsn(500), seen)
    assert origin.has(Lsn(400), 4_000_000_000)
    assert origin.has(Lsn(600), 99)
    assert origin.has(Lsn(600), 102)
    assert not origin.has(Lsn(600), 101)
    # Committed by its record, and invisible still: the read saw the row as it was before.
    assert not origin.has(Lsn(8999), 103)
    assert not origin.has(Lsn(600), 105)
    assert not origin.has(Lsn(9000), 102)
    assert origin.end == Lsn(9000)


def test_what_a_read_saw_is_told_across_the_wrap_of_transaction_ids() -> None:
    seen = Seen.parse(f"{2**32 - 2}:{2**32 + 3}:{2**32 + 1}", Lsn(9000))
    assert seen.has(Lsn(1), 2**32 - 1)
    assert seen.has(Lsn(1), 2)
    assert not seen.has(Lsn(1), 1)
    assert not seen.has(Lsn(1), 3)
