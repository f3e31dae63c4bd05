"""Which type of the target holds a column of the source.

Built-in types stand for themselves, extension types for the same extension's, enums for an enum of the same name (made
when it is missing), domains for their base. Whatever the target lacks becomes text. The spelling always comes from the
target's own catalog or from quoted identifiers: the source is not trusted with a word of DDL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replicator.catalog import FoundType, find_types, format_types
from replicator.db import Connection
from replicator.relation import NAMING_TYPES, Type
from replicator.rules import Output

TEXT = "text"
XML_OID = 142
Place = tuple[int, int, bool] | str
"""(OID, typmod, whether binary means the same) of a type that is here; else the name of one that is not, or text."""
TypeName = tuple[str, str, str | None]
"""Schema, name and extension."""
StandIns = Mapping[TypeName, FoundType | None]
"""What stands here for types of the source, by their names there."""

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
    outputs = list(outputs)
    found = find_stand_ins(connection, types.values())
    wanted = choose_types(outputs, types, found, planned)
    named = list(list_named(wanted))
    spellings = dict(zip(named, format_types(connection, named), strict=True))
    return spell_types(wanted, spellings)


def find_stand_ins(connection: Connection, types: Iterable[Type]) -> StandIns:
    """Return what stands here for each of the source's types, each looked for once."""
    wanted = {_name(one): one for one in types}
    found = dict(zip(wanted, find_types(connection, list(wanted.values())), strict=True))
    xml = next((_name(one) for one in wanted.values() if one.oid == XML_OID), None)
    if xml is not None and not _can_read_xml(connection):
        found[xml] = None
    return found


def choose_types(
    outputs: Iterable[Output], types: dict[int, Type], found: StandIns, planned: Iterable[EnumChange] = ()
) -> dict[str, Place]:
    """Return where each output goes, by name: a type that is here, or the name of one that is not."""
    here = {oid: found[_name(one)] for oid, one in types.items()}
    made = {(change.schema, change.name) for change in planned if change.create}
    return {output.name: _resolve(output.type_oid, output.typmod, types, here, made) for output in outputs}


def list_named(wanted: Mapping[str, Place]) -> Iterator[tuple[int, int]]:
    """Yield (OID, typmod) of those types that are here: the target spells them."""
    return ((place[0], place[1]) for place in wanted.values() if isinstance(place, tuple))


def spell_types(wanted: Mapping[str, Place], spellings: Mapping[tuple[int, int], str]) -> dict[str, Resolved]:
    """Return the types by name. spellings: the target's own, of (OID, typmod)."""
    return {
        name: Resolved(place, place != TEXT, downgraded=place == TEXT)
        if isinstance(place, str)
        else Resolved(spellings[place[0], place[1]], place[2], downgraded=False)
        for name, place in wanted.items()
    }


def _name(one: Type) -> TypeName:
    return one.schema, one.name, one.extension


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
) -> Place:
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
) -> Place:
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
