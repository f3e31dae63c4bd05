"""The tables of a stream made ready: rules compiled, identity checked, target looked at, layout decided."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from replicator.apply.job import Job
from replicator.apply.sequence import Fed, find_sequences
from replicator.apply.target import (
    FittedTarget,
    describe_target,
    has_rewritten_columns,
    plan_renames,
    plan_target,
    record_columns,
)
from replicator.apply.target_catalog import TargetCatalog, read_target_catalog
from replicator.batch import Shape
from replicator.capture.intake import Intake, Layout
from replicator.capture.pgoutput import Relation as RelationMessage
from replicator.capture.raw_intake import RawIntake, find_codec
from replicator.catalog import format_types
from replicator.db import Connection
from replicator.digest import Digest
from replicator.errors import ConfigError
from replicator.relation import PARTITIONED, Column, Relation
from replicator.rules import TEXT_OID, Output, compile_cell_rule, expression_masks, is_zoned, needs_source
from replicator.sync.inventory import Chosen

GENERATED_SINCE = 180000
"""The server version from which a publication can hold stored generated columns."""
VERSION = 1
"""Of the shape that a table has when a session begins; one that is read again beside the stream gets another."""


@dataclass(frozen=True)
class StreamedTable:
    """A table of the stream.

    expected: (type OID, type modifier) of the columns that should come, by name. fitted: the target as it is,
    None where an index of it is made anew with the first changes.
    sequences: of the target, to be moved.
    """

    chosen: Chosen
    job: Job
    layout: Layout
    shape: Shape
    expected: dict[str, tuple[int, int]]
    fitted: FittedTarget | None
    sequences: tuple[Fed, ...] = ()

    def make_intake(self, message: RelationMessage, *, encoding: str | None = None) -> Intake | None:
        """Return the intake for a relation of this table. encoding: of texts that come as the source stores them.

        None when its shape is not the one that was copied, or when it does not say which row changed: the table is then
        to be read again. What an identity that was mended since has left in the WAL cannot be mended any more.
        """
        relation = self.job.mapping.relation
        if not self._fits({c.name: (c.type_oid, c.type_modifier) for c in message.columns}):
            return None
        is_part = message.oid != relation.oid or relation.has_children
        if not self._names_rows(message):
            return None
        codec = None if encoding is None else find_codec(encoding)
        if encoding is None or codec is None:
            return Intake(message, self.layout, is_part=is_part)
        return RawIntake(message, self.layout, is_part=is_part, encoding=encoding, codec=codec)

    def _fits(self, told: dict[str, tuple[int, int]]) -> bool:
        """Say whether a shape is the copied one, as far as columns are copied; others may come or not.

        The WAL may be older than a change of the publication's columns. A column that nobody knows is a new one.
        """
        relation = self.job.mapping.relation
        if not told.keys() <= relation.by_name.keys():
            return False
        for name in self.layout.columns:
            column = relation.by_name[name]
            if name in told and told[name] != (column.type_oid, column.typmod):
                return False
            if name in self.expected and name not in told:
                return False
        return True

    def _names_rows(self, message: RelationMessage) -> bool:
        if message.identity == "f":
            return True
        key = {output.source.name for output in self.job.mapping.key_outputs}
        relation = self.job.mapping.relation
        if key and message.oid == relation.oid and relation.kind == PARTITIONED:
            # The message has the root's identity, the rows those of the partitions.
            return True
        named = {column.name for column in message.columns if column.is_key}
        return bool(key) and message.identity != "n" and key <= named


class Newcomers:
    """Notices changes of partitions that the catalog did not show when the tables were made ready.

    They come under the name of their root, and once such a partition is detached again no catalog tells of it. pgoutput
    describes the root ahead of each of its partitions, with nothing but types in between (pgoutput.c,
    maybe_send_schema).
    """

    def __init__(self, tables: Mapping[str, StreamedTable]) -> None:
        self._roots: dict[int, str] = {}
        self._root: RelationMessage | None = None
        for name, table in tables.items():
            self.expect(name, table.job.mapping.relation)

    def expect(self, table: str, relation: Relation) -> None:
        """Look out for new partitions of one more table."""
        if relation.kind == PARTITIONED:
            self._roots[relation.oid] = table

    def find_root(self, message: RelationMessage, *, is_known: bool) -> str | None:
        """Return the table that a relation is a new partition of, if it is one. Is told of every relation in order."""
        before, self._root = self._root, message if message.oid in self._roots else None
        if is_known or before is None or _list_columns(before) != _list_columns(message):
            return None
        return self._roots[before.oid]


def list_members(table: StreamedTable) -> list[int]:
    """Return the OIDs of the relations that make a table up."""
    relation = table.job.mapping.relation
    return [relation.oid, *(member.oid for member in relation.members)]


def _list_columns(message: RelationMessage) -> set[tuple[str, int]]:
    return {(column.name, column.type_oid) for column in message.columns}


def make_streamed(
    target: Connection,
    chosen: Chosen,
    job: Job,
    published: tuple[str, ...] | None,
    *,
    version: int,
    mask_key: bytes | None,
    digest: Digest,
    layout_version: int = VERSION,
    catalog: TargetCatalog | None = None,
) -> StreamedTable | None:
    """Return the table made ready; None when its target asks for more than the stream can bring: it is read again.

    published: columns of the publication's list, None for all. version: the source's. layout_version: another one for
    every shape that the table has in a session. catalog: what was read of this target and others, with their
    sequences; else it is read now.
    """
    if plan_renames(target, job):
        return None
    catalog = catalog or read_target_catalog(target, [job], with_sequences=True)
    evolution, existing, types = plan_target(target, job, catalog=catalog)
    if existing is None or evolution.before or evolution.after or evolution.rekeyed:
        return None
    if has_rewritten_columns(job, existing):
        return None
    shaped, shape = describe_target(target, job, existing, types, evolution, digest, catalog=catalog)
    mapping = job.mapping
    by_name = {output.name: output for output in mapping.outputs}
    outputs = [by_name[column.name] for column in shaped.columns]
    check_key(job)
    from_source = needs_source(mapping, job.settings)
    rules = {
        place: rule
        for place, output in enumerate(outputs)
        if (rule := compile_cell_rule(output, mapping.relation, job.settings, mask_key)) is not None
    }
    names = [output.name for output in outputs]
    layout = Layout(
        table=job.table,
        version=layout_version,
        columns=tuple(output.source.name for output in outputs),
        rules=rules,
        constant=frozenset(n for n, o in enumerate(outputs) if job.settings.mask.get(o.source.name) == "null"),
        key=tuple(names.index(name) for name in mapping.key),
        from_source=from_source,
    )
    expected = {column.name: (column.type_oid, column.typmod) for column in expect_columns(job, published, version)}
    check_rereads(job, find_unsent(job, layout.columns, expected))
    spellings = {column.name: column.spelling for column in shaped.columns}
    follows = job.settings.sync_sequences
    fed = find_sequences(target, job.table, existing, spellings, catalog.sequences) if follows else []
    columns = record_columns(job, existing, types, evolution)
    fitted = None if evolution.reindexes else FittedTarget(existing, shaped, columns)
    return StreamedTable(chosen, job, layout, shape, expected, fitted, tuple(fed))


def streams_binary(table: StreamedTable) -> bool:
    """Say whether a table can take its cells in binary: rules need their text, and so does a key in quarantine."""
    return (
        table.shape.binary
        and not table.layout.rules
        and not table.layout.from_source
        and table.job.settings.on_row_error != "quarantine"
    )


def expect_columns(job: Job, published: tuple[str, ...] | None, version: int) -> list[Column]:
    """Return the columns that the stream brings. published, version: see `make_streamed`."""
    lists_generated = published is not None and version >= GENERATED_SINCE
    return [
        column
        for column in job.mapping.relation.columns
        if (published is None or column.name in published) and (not column.generated or lists_generated)
    ]


def find_unsent(job: Job, columns: Iterable[str], expected: Collection[str]) -> list[str]:
    """Return which of the columns that are written the stream does not bring, though their values are wanted."""
    return [name for name in columns if job.settings.mask.get(name) != "null" and name not in expected]


def check_rereads(job: Job, unsent: Sequence[str]) -> None:
    """Raise ConfigError for a table without a key whose rows the stream does not bring whole."""
    if job.mapping.key or not (unsent or needs_source(job.mapping, job.settings)):
        return
    raise ConfigError(
        f"{job.table} has no key, and the stream does not bring its rows whole",
        why=f"column {unsent[0]} is generated, and not published"
        if unsent
        else "`where` and masks with an SQL expression are computed by the source, which finds a row by its key",
        hint=f'configure its key, or exclude = ["{unsent[0]}"]' if unsent else "configure its key, or drop the rule",
        id="key_missing",
        table=job.table,
    )


def spell_key(source: Connection, job: Job) -> list[str]:
    """Return the source's types of the key's expressions, in key order."""
    return spell_keys(source, [job])[job.table]


def spell_keys(source: Connection, jobs: Iterable[Job]) -> dict[str, list[str]]:
    """Return by table the source's types of the key's expressions, in key order, in one round trip."""
    wanted = {job.table: [_type_key(job, output) for output in job.mapping.key_outputs] for job in jobs}
    oids = sorted({oid for own in wanted.values() for oid in own})
    spellings = dict(zip(oids, format_types(source, [(oid, -1) for oid in oids]), strict=True))
    return {table: [spellings[oid] for oid in own] for table, own in wanted.items()}


def _type_key(job: Job, output: Output) -> int:
    if job.settings.mask.get(output.source.name):
        return TEXT_OID
    return output.type_oid if is_zoned(output) else output.source.type_oid


def check_key(job: Job) -> None:
    """Raise ConfigError for a key that the stream cannot follow."""
    masks = expression_masks(job.settings)
    masked = [output.source.name for output in job.mapping.key_outputs if output.source.name in masks]
    if masked:
        raise ConfigError(
            f"{job.table}: key column {masked[0]} is masked with an SQL expression",
            why="of a deleted row the stream knows the key alone, and cannot compute what it became",
            hint="mask it with hash, or configure another key",
            table=job.table,
        )
