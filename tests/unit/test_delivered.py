"""What the stream has delivered lately: kept only as long as some snapshot may not see it."""

from __future__ import annotations

from replicator.capture.lookup import Delivered


def test_a_transaction_is_kept_until_every_snapshot_sees_it() -> None:
    """S25: and no longer, or a listener that runs for months fills its memory."""
    delivered = Delivered()
    for xid in (10, 11, 12):
        delivered.add(xid)
    delivered.forget(11)
    assert delivered.xids == {11, 12}
    assert not delivered.are_visible(20, [12])
    assert delivered.are_visible(20, [13])
    assert delivered.xids == set()


def test_transaction_ids_are_compared_around_their_circle() -> None:
    delivered = Delivered()
    before, after = (1 << 32) - 2, 3
    delivered.add(before)
    delivered.add(after)
    delivered.forget((1 << 32) + after)
    assert delivered.xids == {after}
    assert not delivered.are_visible((1 << 32) + after, [])
    assert delivered.are_visible((1 << 32) + after + 1, [])
