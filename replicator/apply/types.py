"""Which type of the target holds a column of the source.

Built-in types stand for themselves, extension types for the same extension's, enums for an enum of the same name (made
when it is missing), domains for their base. Whatever the target lacks becomes text. The spelling always comes from the
target's own catalog or from quoted identifiers: the source is not trusted with a word of DDL.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replicator.catalog import FoundType, find_types, format_types
from replicator.db import Connection
from replicator.relation import NAMING_TYPES, Type
from replicator.rules import Output

TEXT = "text"
XML_OID = 142
# Types whose text names objects of one server, or that have no input function at all.
_LOCAL_TYPES = NAMING_TYPES | {
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "gtsvector",
    "pg_ddl_command",
}


@dataclass(frozen=True, slots=True)
class EnumChange:
    """What must happen to an enum of the target: created with all labels, labels renamed, labels added."""

    schema: str
    name: str
    create: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str | None], ...] = ()

    def statements(self) -> list[sql.Composed]:
        """Return the DDL. An added label is of no use before its commit (PostgreSQL documentation, ALTER TYPE)."""
        name = sql.Identifier(self.schema, self.name)
        if self.create:
            labels = sql.SQL(", ").join(sql.Literal(label) for label in self.create)
            return [sql.SQL("CREATE TYPE {} AS ENUM ({})").format(name, labels)]
        changes = [
            sql.SQL("ALTER TYPE {} RENAME VALUE {} TO {}").format(name, sql.Literal(old), sql.Literal(new))
            for old, new in self.rename
        ]
        for label, before in self.add:
            place = sql.SQL(" BEFORE {}").format(sql.Literal(before)) if before else sql.SQL("")
            changes.append(
                sql.SQL("ALTER TYPE {} ADD VALUE IF NOT EXISTS {}{}").format(name, sql.Literal(label), place)
            )
        return changes


@dataclass(frozen=True, slots=True)
class Resolved:
    """The target's type of one output. binary: COPY's binary format means the same on both sides."""

    spelling: str
    binary: bool
    downgraded: bool


def plan_enums(connection: Connection, types: Iterable[Type], recorded: dict[str, dict[str, str]]) -> list[EnumChange]:
    """Return what the target's enums lack.

    recorded: labels at the last sync, by "schema.name" and the source's OID of the label: an OID whose label changed
    was renamed, since RENAME VALUE keeps it.
    """
    enums = [t for t in types if t.kind == "e" and t.extension is None]
    changes = []
    for enum, found in zip(enums, find_types(connection, enums), strict=True):
        labels = [label for _, label in enum.labels]
        if found is None:
            if labels:
                changes.append(EnumChange(enum.schema, enum.name, create=tuple(labels)))
        elif found.kind == "e":
            change = _follow_labels(enum, found, recorded.get(f"{enum.schema}.{enum.name}", {}))
            if change.rename or change.add:
                changes.append(change)
    return changes


def _follow_labels(enum: Type, found: FoundType, recorded: dict[str, str]) -> EnumChange:
    here = list(found.labels)
    renames = []
    for oid, label in enum.labels:
        old = recorded.get(str(oid))
        if old is not None and old != label and old in here and label not in here:
            renames.append((old, label))
            here[here.index(old)] = label
    added: list[tuple[str, str | None]] = []
    following: str | None = None
    for _, label in reversed(enum.labels):
        if label not in here:
            added.append((label, following))
        following = label
    return EnumChange(enum.schema, enum.name, rename=tuple(renames), add=tuple(added))


def resolve_types(
    connection: Connection, outputs: Iterable[Output], types: dict[int, Type], planned: Iterable[EnumChange] = ()
) -> dict[str, Resolved]:
    """Return the target's type of each output by name. planned: enums that will exist when the DDL has run."""
    known = list(types.values())
    found = dict(zip((t.oid for t in known), find_types(connection, known), strict=True))
    if XML_OID in found and not _can_read_xml(connection):
        found[XML_OID] = None
    made = {(change.schema, change.name) for change in planned if change.create}
    wanted = {output.name: _resolve(output.type_oid, output.typmod, types, found, made) for output in outputs}
    by_oid = [(name, place) for name, place in wanted.items() if isinstance(place, tuple)]
    spellings = format_types(connection, [(oid, typmod) for _, (oid, typmod, _) in by_oid])
    resolved = {
        name: Resolved(spelling, binary, downgraded=False)
        for (name, (_, _, binary)), spelling in zip(by_oid, spellings, strict=True)
    }
    for name, place in wanted.items():
        if isinstance(place, str):
            resolved[name] = Resolved(place, place != TEXT, downgraded=place == TEXT)
    return resolved


def _can_read_xml(connection: Connection) -> bool:
    """Say whether the target was built with libxml: without it the type is there, and takes nothing but NULL."""
    try:
        with connection.transaction():
            connection.execute("SELECT '<a/>'::pg_catalog.xml")
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


def _resolve(
    oid: int, typmod: int, types: dict[int, Type], found: dict[int, FoundType | None], made: set[tuple[str, str]]
) -> tuple[int, int, bool] | str:
    kind = types.get(oid)
    if kind is None:
        return TEXT
    if kind.base:
        return _resolve(kind.base, kind.base_typmod, types, found, made)
    if kind.element:
        return _resolve_array(kind, typmod, types, found, made)
    here = found.get(oid)
    if kind.kind == "e" and here is None and (kind.schema, kind.name) in made:
        return sql.Identifier(kind.schema, kind.name).as_string()
    if here is None or here.kind != kind.kind or kind.kind == "p":
        return TEXT
    if kind.is_builtin:
        return TEXT if kind.name in _LOCAL_TYPES else (here.oid, typmod, kind.binary and here.binary)
    return here.oid, typmod, kind.kind == "e"


def _resolve_array(
    kind: Type, typmod: int, types: dict[int, Type], found: dict[int, FoundType | None], made: set[tuple[str, str]]
) -> tuple[int, int, bool] | str:
    element = types[kind.element]
    if element.base:
        typmod = element.base_typmod
    inner = _resolve(kind.element, typmod, types, found, made)
    if isinstance(inner, str):
        return TEXT if inner == TEXT else inner + "[]"
    while element.base:
        element = types[element.base]
    if element.element:
        return TEXT
    here = found.get(element.oid)
    if here is None or not here.array_oid:
        return TEXT
    return here.array_oid, inner[1], inner[2] and element.is_builtin
