"""What a source offers: its tables under some patterns, with the keys and watermarks that could serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replicator.catalog import list_relations, read_relations
from replicator.config.settings import Settings
from replicator.db import Connection
from replicator.errors import UsageError
from replicator.preflight.suggestion import suggest_key, suggest_watermark
from replicator.relation import KIND_NAMES, Relation
from replicator.selection import PATTERN_RELKINDS, Pattern, format_table_name, parse_pattern
from replicator.sync.inventory import take_inventory


@dataclass(frozen=True, slots=True)
class Found:
    """A table as `init` writes it down. key: what names a row; says_key: the catalog alone does not tell it."""

    table: str
    kind: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    says_key: bool
    watermark: str | None
    estimated_rows: int


@dataclass(frozen=True, slots=True)
class Introspection:
    """The tables that the patterns select, and the views that they would take if they named them."""

    tables: tuple[Found, ...]
    views: tuple[Found, ...]


def introspect(connection: Connection, settings: Settings, *, each_pattern: bool) -> Introspection:
    """Look at what the settings' entries select.

    each_pattern: every one of them has to match something. Raises PreflightError for a named table that is missing,
    UsageError for a pattern without a match.
    """
    inventory = take_inventory(connection, settings)
    for error in inventory.missing.values():
        raise error
    names = {(chosen.schema, chosen.name) for chosen in inventory.tables}
    listed = {(one.schema, one.name): one for one in list_relations(connection)}
    patterns = [parse_pattern(entry.name) for entry in settings.tables]
    for entry, pattern in zip(settings.tables, patterns, strict=True):
        if each_pattern and not any(pattern.matches(*name) for name in names):
            raise _no_match(entry.name)
    views = [
        name
        for name, one in listed.items()
        if one.kind not in PATTERN_RELKINDS
        and one.is_text
        and name not in names
        and any(p.matches(*name) for p in patterns)
    ]
    relations = read_relations(connection, [listed[name].oid for name in [*names, *views]])
    found = {(relation.schema, relation.name): describe(relation) for relation in relations.values()}
    return Introspection(tuple(found[name] for name in sorted(names)), tuple(found[name] for name in sorted(views)))


def _no_match(pattern: str) -> UsageError:
    return UsageError(
        f"no table of the source matches {pattern}",
        why="patterns take tables and partitioned tables; a view has to be named",
        hint="correct --tables",
    )


def describe(relation: Relation) -> Found:
    """Return what `init` says of a relation."""
    index = relation.identity_index
    is_known = index is not None and not index.deferrable and not relation.has_children
    key = index.columns if index is not None and is_known else () if relation.has_children else suggest_key(relation)
    return Found(
        table=format_table_name(relation.schema, relation.name),
        kind=KIND_NAMES[relation.kind],
        columns=tuple(relation.by_name),
        key=key,
        says_key=bool(key) and not is_known,
        watermark=suggest_watermark(relation),
        estimated_rows=relation.estimated_rows,
    )


def name_patterns(given: Sequence[str]) -> list[str]:
    """Return the patterns without repetition. Raises UsageError for one that is no pattern."""
    patterns: dict[Pattern, str] = {}
    for text in given:
        try:
            patterns.setdefault(parse_pattern(text), text)
        except ValueError as error:
            raise UsageError(
                "--tables is no table name or pattern", why=str(error), hint="write schema.table or schema.*"
            ) from None
    return list(patterns.values())
