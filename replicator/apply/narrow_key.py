"""A configured key that is wider than the source's own, for the sake of a target partitioned by one of its columns.

Unless the identity is full, the WAL names a changed row by the source's own key alone. So a stream matches rows by it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from replicator.apply.job import Job
from replicator.relation import PARTITIONED, Relation
from replicator.rules import Mapping


def find_narrow_key(mapping: Mapping, existing: Relation | None) -> tuple[str, ...] | None:
    """Return the source's own key where it is a part of the configured one that cannot be unique in the target.

    existing: the target. The key's columns have the source's names. None where the configured key is as good.
    """
    index = mapping.relation.identity_index
    if existing is None or existing.kind != PARTITIONED or index is None or index.deferrable:
        return None
    names = {output.source.name: output.name for output in mapping.key_outputs}
    is_wider = set(index.columns) < set(names) and not mapping.relation.has_children
    if not is_wider or existing.may_be_unique([names[column] for column in index.columns]):
        return None
    return index.columns


def narrow_job(job: Job, key: Collection[str]) -> Job:
    """Return the job with a key of these columns of the source."""
    names = {output.source.name: output.name for output in job.mapping.outputs}
    return replace(job, mapping=replace(job.mapping, key=tuple(names[column] for column in key)))
