"""By which key a stream matches the rows of a target that is partitioned by a column outside the source's key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from replicator.apply.narrow_key import find_narrow_key
from replicator.capture.publication import has_identity, read_identities
from replicator.catalog import find_relations, read_relations
from replicator.db import translated
from replicator.errors import ReplicatorError
from replicator.relation import PARTITIONED, TABLE
from replicator.stream.session import ListenSession
from replicator.sync.inventory import Chosen
from replicator.sync.preparation import prepare_jobs


def match_by_identity(session: ListenSession, tables: Sequence[Chosen]) -> tuple[Chosen, ...]:
    """Return the tables, those with the source's own key whose configured one the WAL does not hold."""
    wide = [table for table in tables if table.settings.key and table.kind in (TABLE, PARTITIONED)]
    if not wide:
        return tuple(tables)
    with translated("target"):
        records = session.control.read_records()
    with translated("source"):
        failed: dict[str, ReplicatorError] = {}
        jobs = prepare_jobs(session.watcher, wide, records, mask_key=session.access.mask_key, failed=failed)
    wide = [table for table in wide if table.table in jobs]
    with translated("target"):
        found = find_relations(session.streams.connection, [table.target for table in wide])
        existing = read_relations(session.streams.connection, found.values())
    with translated("source"):
        identities = read_identities(session.watcher, [job.mapping.relation.oid for job in jobs.values()])
    narrowed: dict[str, Chosen] = {}
    for table in wide:
        mapping = jobs[table.table].mapping
        key = find_narrow_key(mapping, existing.get(found.get(table.target, 0)))
        if key is not None and not has_identity(table.table, mapping, identities[mapping.relation.oid]):
            narrowed[table.table] = replace(table, settings=table.settings.model_copy(update={"key": key}))
    return tuple(narrowed.get(table.table, table) for table in tables)
