"""The target ahead of a load: schemas, enums, the DDL a table needs, the order that foreign keys ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from replicator.apply.evolve import (
    Evolution,
    Recorded,
    create_schema,
    describe_storage,
    is_rewritten,
    plan_creation,
    plan_evolution,
)
from replicator.apply.job import Job
from replicator.apply.merge import Target, TargetColumn
from replicator.apply.rekey import fit_rows
from replicator.apply.target_catalog import TargetCatalog, read_target_catalog
from replicator.apply.types import EnumChange, Resolved, may_have_moved, plan_enums
from replicator.batch import Shape
from replicator.catalog import (
    RowChangers,
    find_missing_schemas,
    find_relations,
    format_types,
    list_row_changers,
    read_foreign_keys,
)
from replicator.db import Connection
from replicator.digest import Digest
from replicator.errors import ConfigError, ReplicatorError, SafetyStop, SchemaDrift
from replicator.reading import Reading
from replicator.relation import PARTITIONED, Relation
from replicator.rules import find_naming_columns
from replicator.selection import format_table_name
from replicator.statement import statement
from replicator.strategy import FULL, WATERMARK, XMIN


@dataclass(frozen=True, slots=True)
class FittedTarget:
    """A target that takes a job's rows as it is. columns: as they are copied, to be recorded."""

    relation: Relation
    target: Target
    columns: tuple[Recorded, ...]


def take_replica_role(connection: Connection) -> bool:
    """Switch triggers and foreign keys off in this session where the role may; say whether it worked."""
    try:
        connection.execute("SET session_replication_role = replica")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def list_unwritable(connection: Connection, texts: Sequence[str]) -> list[str]:
    """Return those texts that the target's encoding cannot hold. connection: outside any transaction."""
    if len(texts) > 1 and not list_unwritable(connection, ["".join(texts)]):
        return []
    return [text for text in texts if not _takes(connection, text)]


def _takes(connection: Connection, text: str) -> bool:
    try:
        connection.execute(statement("session.take_text"), {"text": text})
    except psycopg.errors.UntranslatableCharacter:
        return False
    return True


def prepare_schemas(connection: Connection, jobs: Sequence[Job]) -> None:
    """Make the schemas of new tables ahead of the loads: of two transactions that make one, the second fails.

    Where that is not allowed, the table's own load says so.
    """
    for name in find_missing_schemas(connection, sorted({job.target[0] for job in jobs})):
        with suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute(create_schema(name))


def prepare_enums(connection: Connection, job: Job) -> None:
    """Bring the target's enums up to the source's ahead of the data: labels are of no use before their commit.

    Raises SchemaDrift where on_schema_change = "freeze" forbids it.
    """
    for ddl in write_enum_ddl(connection, plan_job_enums(connection, job)):
        connection.execute(ddl)


def plan_job_enums(connection: Connection, job: Job) -> list[EnumChange]:
    """Return what the target's enums lack for a job."""
    types = job.mapping.relation.types
    used = [types[oid] for oid in _used_types(job) if types[oid].kind == "e"]
    changes = plan_enums(connection, used, job.record.enum_labels) if used else []
    frozen = [change for change in changes if not change.create and job.settings.on_schema_change == "freeze"]
    if frozen:
        raise SchemaDrift(
            f"the {'name' if frozen[0].moved_from else 'labels'} of enum {frozen[0].schema}.{frozen[0].name} changed",
            why='on_schema_change is "freeze"',
            hint="; ".join(ddl.as_string() for ddl in frozen[0].statements()),
            table=job.table,
        )
    return changes


def plan_renames(connection: Connection, job: Job) -> list[EnumChange]:
    """Return what the target's enums lack for a job if one of them is to be renamed; else nothing, without a look."""
    if not may_have_moved(job.mapping.relation.types.values(), job.record.enum_labels):
        return []
    changes = plan_job_enums(connection, job)
    return changes if any(change.moved_from for change in changes) else []


def write_enum_ddl(connection: Connection, changes: Sequence[EnumChange]) -> list[sql.Composed]:
    """Return the statements of the changes, with the schemas that new enums need."""
    schemas = find_missing_schemas(
        connection, sorted({change.schema for change in changes if change.create or change.moved_from})
    )
    return [*map(create_schema, schemas), *(ddl for change in changes for ddl in change.statements())]


def _used_types(job: Job) -> list[int]:
    types, waiting, used = job.mapping.relation.types, [o.type_oid for o in job.mapping.outputs], []
    while waiting:
        oid = waiting.pop()
        if oid in types and oid not in used:
            used.append(oid)
            waiting += [types[oid].element, types[oid].base]
    return used


def check_apart(connection: Connection, job: Job, *, is_source: bool) -> None:
    """Raise ConfigError if the target is the source's own table, or a part of it. is_source: of the database."""
    if not is_source:
        return
    relation = job.mapping.relation
    oid = find_relations(connection, [job.target]).get(job.target)
    if oid == relation.oid or oid in [member.oid for member in relation.members]:
        raise ConfigError(
            f"the target {format_table_name(*job.target)} is the source's own table",
            why="source.dsn and target.dsn lead to one database, and what is copied would overwrite what is read",
            hint="correct source.dsn or target.dsn, or name another target for the table",
            id="same_table",
            table=job.table,
        )


def plan_target(
    connection: Connection,
    job: Job,
    planned_enums: Sequence[EnumChange] = (),
    *,
    catalog: TargetCatalog | None = None,
    rebuilds: bool = False,
) -> tuple[Evolution, Relation | None, dict[str, Resolved]]:
    """Return the DDL that the job's target needs, the target as it stands, and the wanted types by name.

    catalog: what was read of this target and others; else it is read now. rebuilds: all rows are read again, so that
    columns may be emptied for another type. Raises our errors as `plan_evolution` does, each with the job's table.
    """
    try:
        catalog = catalog or read_target_catalog(connection, [job], planned=planned_enums)
        return _plan_target(connection, job, planned_enums, catalog, rebuilds)
    except ReplicatorError as error:
        error.table = error.table or job.table
        raise


def _plan_target(
    connection: Connection, job: Job, planned_enums: Sequence[EnumChange], catalog: TargetCatalog, rebuilds: bool
) -> tuple[Evolution, Relation | None, dict[str, Resolved]]:
    types = catalog.resolve_types(job, planned_enums)
    existing = catalog.relations.get(job.target)
    if existing is None:
        makes_schema = job.target[0] in catalog.missing_schemas
        return plan_creation(job.mapping, job.settings, job.target, types, makes_schema=makes_schema), None, types
    if existing.row_security:
        raise _hidden_target(job)
    current = catalog.spell_columns(existing)
    evolution = plan_evolution(
        job.mapping,
        job.settings,
        existing,
        types,
        current,
        job.record.columns,
        same_source=job.record.source_oid == job.mapping.relation.oid,
        had_key=job.record.state.strategy in (XMIN, WATERMARK),
        created_by_us=job.record.created_by_us,
        rebuilds=rebuilds,
    )
    if evolution.rekeyed:
        evolution = fit_rows(connection, job, existing, evolution)
    return evolution, existing, types


def _hidden_target(job: Job) -> SafetyStop:
    target = format_table_name(*job.target)
    return SafetyStop(
        f"row security hides rows of {target} from the target role",
        why="hidden rows would be taken for missing ones",
        hint=f"alter table {target} no force row level security, by its owner; or alter role ... bypassrls",
        id="row_security",
        table=job.table,
    )


def spell_columns(connection: Connection, relation: Relation) -> dict[str, str]:
    """Return how the server spells the type of each column, by name; a domain is spelled as its base type."""
    bases = [relation.find_base(column) for column in relation.columns]
    return dict(zip((column.name for column in relation.columns), format_types(connection, bases), strict=True))


def describe_target(
    connection: Connection,
    job: Job,
    existing: Relation,
    types: dict[str, Resolved],
    evolution: Evolution,
    digest: Digest,
    *,
    catalog: TargetCatalog | None = None,
) -> tuple[Target, Shape]:
    """Return a target table as the merge needs it, and the shape in which its rows must arrive.

    catalog: what `existing` was read with, if nothing changed since.
    """
    mapping = job.mapping
    current = catalog.spell_columns(existing) if catalog else spell_columns(connection, existing)
    outputs = [
        output
        for output in mapping.outputs
        if output.name not in evolution.left_out and not existing.by_name[output.name].generated
    ]
    columns = tuple(
        TargetColumn(o.name, current[o.name], fixed=existing.by_name[o.name].identity == "a") for o in outputs
    )
    written = {output.name for output in mapping.outputs}
    extra = tuple(c.name for c in existing.columns if c.name not in written and not c.generated)
    target = Target(
        existing.schema,
        existing.name,
        columns,
        mapping.key,
        find_equality(existing, mapping.key),
        extra,
        job.settings.deletes == "soft",
        existing.kind == PARTITIONED,
        not mapping.key or existing.find_key_index(mapping.key) is not None,
    )
    casts = {
        o.name: current[o.name]
        for o in outputs
        if current[o.name] != types[o.name].spelling and current[o.name] != "text"
    }
    is_binary = all(
        types[o.name].binary and o.name not in casts and current[o.name] == types[o.name].spelling for o in outputs
    )
    return target, Shape(is_binary, {o.name: current[o.name] for o in outputs}, casts, digest)


def find_triggers(connection: Connection, job: Job, existing: Relation) -> list[str]:
    """Return the target's triggers that can change or drop a row on its way in. Raises ConfigError for such a rule."""
    changers = list_row_changers(connection, [existing]).get(existing.oid, RowChangers([], []))
    refuse_rules(job, changers.rules)
    return changers.triggers


def refuse_rules(job: Job, rules: Sequence[str]) -> None:
    """Raise ConfigError for a target that has rules in the way."""
    if not rules:
        return
    drop, target = sql.SQL("drop rule {} on {}"), sql.Identifier(*job.target)
    raise ConfigError(
        f"the target {format_table_name(*job.target)} has rules",
        why="a rule puts something else in the place of what is written, or keeps ON CONFLICT from the table",
        hint="; ".join(drop.format(sql.Identifier(name), target).as_string() for name in rules),
        id="target_rules",
        table=job.table,
    )


def find_equality(existing: Relation, key: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the operator (schema, name) by which each key column is compared: its own index's, else "="."""
    index = existing.find_key_index(key) or existing.find_leading_index(key)
    if index is None:
        return tuple(("pg_catalog", "=") for _ in key)
    operators = dict(zip(index.columns, index.equality, strict=True))
    return tuple(operators[name] for name in key)


def record_columns(
    job: Job, existing: Relation, types: dict[str, Resolved], evolution: Evolution
) -> tuple[Recorded, ...]:
    """Return the columns as they are copied now, for the next time to compare with. existing: after the DDL."""
    naming, storage = find_naming_columns(job.mapping, job.settings), describe_storage(existing)
    return tuple(
        Recorded(
            o.source.number,
            o.source.name,
            o.name,
            types[o.name].spelling,
            o.source.name in naming or "where" in naming,
            storage[o.name],
        )
        for o in job.mapping.outputs
        if o.name not in evolution.left_out
    )


def has_rewritten_columns(job: Job, existing: Relation) -> bool:
    """Say whether DDL on the target changed values since the last sync: no row of the source tells of it."""
    before = {column.target: column for column in job.record.columns}
    numbers = {column.number: column for column in job.record.columns}
    is_same_source = job.record.source_oid == job.mapping.relation.oid
    storage = describe_storage(existing)
    for output in job.mapping.outputs:
        known = numbers.get(output.source.number) if is_same_source else before.get(output.name)
        if known is not None and output.name in storage and is_rewritten(known.storage, storage[output.name]):
            return True
    return False


def fit_reading(reading: Reading, job: Job, evolution: Evolution, existing: Relation | None) -> Reading:
    """Return the reading, a full one where the position belongs to rows that are not in this target.

    existing: the target, None before it is made.
    """
    reason = ""
    if evolution.creates:
        reason = "the target table is not there"
    elif evolution.replaces:
        reason = "the key changed, and no row that is here can have the new one: all are replaced"
    elif evolution.rekeyed:
        reason = "the key changed"
    elif evolution.adds:
        reason = "the target lacks a column"
    elif evolution.retypes:
        reason = "a column of the target gets another type"
    elif job.record.target not in (None, format_table_name(*job.target)):
        reason = "the target was another table"
    elif existing is not None and has_rewritten_columns(job, existing):
        reason = "a column of the target was changed or made anew there"
    if not reason or reading.load_type == FULL:
        return reading
    return read_in_full(reading, reason)


def read_in_full(reading: Reading, reason: str) -> Reading:
    """Return the reading of every row."""
    return replace(reading, load_type=FULL, since_xid=None, since_mark=None, audit=False, reason=reason)


def order_by_foreign_keys(connection: Connection, jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the jobs in groups that must share a transaction, parents before children inside each.

    Among tables in a cycle the order is that of their names; the target then has to defer the constraint.
    """
    oids = find_relations(connection, [job.target for job in jobs])
    by_oid = {oids[job.target]: job for job in jobs if job.target in oids}
    ties = [pair for pair in read_foreign_keys(connection, by_oid) if pair[0] != pair[1]]
    group_of = {oid: {oid} for oid in by_oid}
    for child, parent in ties:
        joined = group_of[child] | group_of[parent]
        for oid in joined:
            group_of[oid] = joined
    seen: set[int] = set()
    groups = [[job] for job in jobs if job.target not in oids]
    for oid in by_oid:
        if oid not in seen:
            seen |= group_of[oid]
            groups.append([by_oid[o] for o in _parents_first(group_of[oid], ties)])
    return groups


def find_tied(connection: Connection, targets: Mapping[str, tuple[str, str]]) -> list[set[str]]:
    """Return the groups of tables whose targets foreign keys tie together. targets: by table, those that there are."""
    oids = find_relations(connection, targets.values())
    tables = {oids[target]: table for table, target in targets.items() if target in oids}
    group_of = {oid: {table} for oid, table in tables.items()}
    for child, parent in read_foreign_keys(connection, tables):
        joined = group_of[child] | group_of[parent]
        for oid, table in tables.items():
            if table in joined:
                group_of[oid] = joined
    return [set(group) for group in {frozenset(group) for group in group_of.values()}]


def _parents_first(oids: set[int], ties: Sequence[tuple[int, int]]) -> list[int]:
    parents: defaultdict[int, set[int]] = defaultdict(set)
    for child, parent in ties:
        if child in oids:
            parents[child].add(parent)
    ordered: list[int] = []
    waiting = sorted(oids)
    while waiting:
        left = set(waiting)
        free = [oid for oid in waiting if left.isdisjoint(parents[oid])] or waiting[:1]
        ordered += free
        left -= set(free)
        waiting = [oid for oid in waiting if oid in left]
    return ordered
