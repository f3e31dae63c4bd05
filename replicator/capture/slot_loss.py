"""Why a slot cannot serve any longer, as far as the source tells."""

from __future__ import annotations

from replicator.capture.source_state import SlotFacts
from replicator.errors import OperatorError

REPAIR = "replicator listen --repair-gap"
LOST = "lost"
# The words of pg_replication_slots.invalidation_reason: why, and what keeps it from happening again.
_REASONS = {
    "wal_removed": (
        "the source kept too little WAL for it: max_slot_wal_keep_size",
        "alter system set max_slot_wal_keep_size = '50GB'",
    ),
    "rows_removed": (
        "the primary removed catalog rows that the slot on this standby still needed",
        "on the standby: alter system set hot_standby_feedback = on, and a physical slot in primary_slot_name",
    ),
    "wal_level_insufficient": (
        "wal_level of the primary was lowered",
        "on the primary: alter system set wal_level = 'logical', and restart it",
    ),
    "idle_timeout": (
        "no listener ran for longer than idle_replication_slot_timeout",
        "alter system set idle_replication_slot_timeout = 0",
    ),
}
_UNTOLD = (
    "the source kept too little WAL for it (max_slot_wal_keep_size), or its WAL was removed",
    "alter system set max_slot_wal_keep_size = '50GB'",
)


def describe_lost(slot: SlotFacts) -> OperatorError:
    """Return the error of a slot that the source has invalidated."""
    why, advice = _REASONS.get(slot.invalidation or "", _UNTOLD)
    return OperatorError(
        f"the replication slot {slot.name} was invalidated",
        why=f"{why}; changes in between would be lost",
        hint=f"{REPAIR}; against the next time, on the source: {advice}",
        id="slot_lost",
    )


def describe_missing(
    name: str, *, known_as: str | None, timelines: tuple[int | None, int], is_standby: bool
) -> OperatorError:
    """Return the error of a slot that is not there.

    known_as: the slot that the stream had; timelines: that of its position, and the source's own.
    """
    before, now = timelines
    advice = REPAIR
    if known_as not in (None, name):
        why = f"the stream had slot {known_as}: listen.slot, or the pipeline's name, was changed"
        advice = f'listen.slot = "{known_as}", if that slot is still there; otherwise {REPAIR}'
    elif before not in (None, now):
        why = f"the source failed over (timeline {before} to {now}), and the slot did not come along"
        advice = f"{REPAIR}; slots follow a failover from PostgreSQL 17 on, with sync_replication_slots = on there"
    elif is_standby:
        why = "this standby does not have it: slots are each server's own, or somebody dropped it"
        advice = f"name the server that has it in source.dsn; or {REPAIR}"
    else:
        why = "somebody dropped it, or source.dsn leads to another server or database than before"
    return OperatorError(
        f"the replication slot {name} is gone", why=f"{why}; changes in between would be lost", hint=advice,
        id="slot_missing",
    )  # fmt: skip
