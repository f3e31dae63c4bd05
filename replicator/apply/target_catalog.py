"""What the target's catalog says of the targets of jobs, read in sets: a few round trips for any number of tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from replicator.apply.job import Job
from replicator.apply.sequence import read_fed
from replicator.apply.types import (
    EnumChange,
    Resolved,
    StandIns,
    choose_types,
    find_stand_ins,
    list_named,
    spell_types,
)
from replicator.catalog import (
    find_missing_schemas,
    find_relations,
    format_types,
    read_relations,
)
from replicator.db import Connection
from replicator.relation import Relation


@dataclass(frozen=True, slots=True)
class TargetCatalog:
    """One look at the catalog of the target, for some jobs.

    relations: the targets that are there, by (schema, name). missing_schemas: of those that are not. stand_ins: the
    target's types for the source's. spellings: the target's own of (type OID, typmod). sequences: what
    `read_fed` says; None where nobody asked.
    """

    relations: dict[tuple[str, str], Relation]
    missing_schemas: frozenset[str]
    stand_ins: StandIns
    spellings: dict[tuple[int, int], str]
    sequences: dict[int, list[dict[str, Any]]] | None = None

    def resolve_types(self, job: Job, planned: Sequence[EnumChange] = ()) -> dict[str, Resolved]:
        """Return the target's type of each output of a job by name, as `types.resolve_types` does."""
        mapping = job.mapping
        wanted = choose_types(mapping.outputs, mapping.relation.types, self.stand_ins, planned)
        return spell_types(wanted, self.spellings)

    def spell_columns(self, relation: Relation) -> dict[str, str]:
        """Return how the server spells the type of each column, by name; a domain is spelled as its base type."""
        return {column.name: self.spellings[relation.find_base(column)] for column in relation.columns}


def read_target_catalog(connection: Connection, jobs: Sequence[Job], *, with_sequences: bool = False) -> TargetCatalog:
    """Return what the catalog says of the jobs' targets now, in round trips that do not grow with the jobs."""
    targets = [job.target for job in jobs]
    oids = find_relations(connection, targets)
    by_oid = read_relations(connection, oids.values())
    relations = {target: by_oid[oid] for target, oid in oids.items() if oid in by_oid}
    schemas = sorted({schema for schema, name in targets if (schema, name) not in relations})
    missing = frozenset(find_missing_schemas(connection, schemas)) if schemas else frozenset()
    types = {one.oid: one for job in jobs for one in job.mapping.relation.types.values()}
    stand_ins = find_stand_ins(connection, types.values())
    named = set(_list_named(jobs, stand_ins))
    named |= {one.find_base(column) for one in relations.values() for column in one.columns}
    ordered = sorted(named)
    spellings = dict(zip(ordered, format_types(connection, ordered), strict=True))
    sequences = read_fed(connection, by_oid) if with_sequences else None
    return TargetCatalog(relations, missing, stand_ins, spellings, sequences)


def _list_named(jobs: Sequence[Job], stand_ins: StandIns) -> Iterator[tuple[int, int]]:
    for job in jobs:
        yield from list_named(choose_types(job.mapping.outputs, job.mapping.relation.types, stand_ins))
