"""Park tables in the control schema as the listener does, for tests of what shows them."""

from __future__ import annotations

from tests.pair import Pair

MESSAGE = "the stream would not name the changed rows: it has no key"


def park(pair: Pair, table: str, hint: str | None, *, error_id: str = "identity_missing") -> None:
    """Note that the listener leaves a table out."""
    pair.target.execute(
        "with gone as (delete from replicator.stream_table where table_name = %(table)s)"
        " insert into replicator.parked_table (pipeline, table_name, lsn, error_id, error_message, error_hint)"
        " values ('default', %(table)s, '0/16B3748', %(id)s, %(message)s, %(hint)s)",
        {"table": table, "id": error_id, "message": MESSAGE, "hint": hint},
    )
