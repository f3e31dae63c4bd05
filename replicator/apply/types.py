"""Which type of the target holds a column of the source.

Built-in types stand for themselves, extension types for the same extension's, enums for an enum of the same name (made
when it is missing), domains for their base. Whatever the target lacks becomes text. The spelling always comes from the
target's own catalog or from quoted identifiers: the source is not trusted with a word of DDL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from replicator.catalog import FoundType, find_types, format_types
from replicator.db import Connection
from replicator.relation import Type
from replicator.rules import Output

TEXT = "text"
XML_OID = 142
# Types whose text names objects of one server, or that have no input function at all.
_LOCAL_TYPES = frozenset(
    [
        "regproc",
        "regprocedure",
        "regoper",
        "regoperator",
        "regclass",
        "regtype",
        "regrole",
        "regnamespace",
        "regconfig",
        "regdictionary",
        "regcollation",
        "regdatabase",
        "aclitem",
        "pg_node_tree",
        "pg_ndistinct",
        "pg_dependencies",
        "pg_mcv_list",
        "pg_brin_bloom_summary",
        "pg_brin_minmax_multi_summary",
        "gtsvector",
        "pg_ddl_command",
    ]
)


@dataclass(frozen=True, slots=True)
class EnumChange:
    """What must happen to an enum of the target: created with all labels, renamed, labels renamed, labels added.

    moved_from: its schema and name until now.
    """

    schema: str
    name: str
    create: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str | None], ...] = ()
    moved_from: tuple[str, str] | None = None

    def statements(self) -> list[sql.Composed]:
        """Return the DDL. An added label is of no use before its commit (PostgreSQL documentation, ALTER TYPE)."""
        name = sql.Identifier(self.schema, self.name)
        if self.create:
            labels = sql.SQL(", ").join(sql.Literal(label) for label in self.create)
            return [sql.SQL("CREATE TYPE {} AS ENUM ({})").format(name, labels)]
        changes = self._move()
        changes += [
            sql.SQL("ALTER TYPE {} RENAME VALUE {} TO {}").format(name, sql.Literal(old), sql.Literal(new))
            for old, new in self.rename
        ]
        for label, before in self.add:
            place = sql.SQL(" BEFORE {}").format(sql.Literal(before)) if before else sql.SQL("")
            changes.append(
                sql.SQL("ALTER TYPE {} ADD VALUE IF NOT EXISTS {}{}").format(name, sql.Literal(label), place)
            )
        return changes

    def _move(self) -> list[sql.Composed]:
        if self.moved_from is None:
            return []
        schema, name = self.moved_from
        moves = []
        if name != self.name:
            old, new = sql.Identifier(schema, name), sql.Identifier(self.name)
            moves.append(sql.SQL("ALTER TYPE {} RENAME TO {}").format(old, new))
        if schema != self.schema:
            now, to = sql.Identifier(schema, self.name), sql.Identifier(self.schema)
            moves.append(sql.SQL("ALTER TYPE {} SET SCHEMA {}").format(now, to))
        return moves


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
    here = dict(zip(enums_by_name(enums), find_types(connection, enums), strict=True))
    moved = _find_moved(connection, enums, here, recorded)
    gone = {(old.schema, old.name) for old, _ in moved.values()}
    changes = []
    for enum in enums:
        name = (enum.schema, enum.name)
        old, found = moved.get(name, (enum, None if name in gone else here[name]))
        labels = [label for _, label in enum.labels]
        if found is None:
            if labels:
                changes.append(EnumChange(enum.schema, enum.name, create=tuple(labels)))
        elif found.kind == "e":
            change = _follow_labels(enum, found, recorded.get(f"{old.schema}.{old.name}", {}))
            if old is not enum:
                change = replace(change, moved_from=(old.schema, old.name))
            if change.rename or change.add or change.moved_from:
                changes.append(change)
    # A name is free once what had it has moved away.
    return sorted(changes, key=lambda change: change.moved_from is None)


def enums_by_name(enums: Iterable[Type]) -> list[tuple[str, str]]:
    """Return (schema, name) of each."""
    return [(enum.schema, enum.name) for enum in enums]


def _find_moved(
    connection: Connection,
    enums: Sequence[Type],
    here: dict[tuple[str, str], FoundType | None],
    recorded: dict[str, dict[str, str]],
) -> dict[tuple[str, str], tuple[Type, FoundType]]:
    """Return the enums that had another name at the last sync, with their old self and what the target has of that.

    Their labels' OIDs tell: those survive ALTER TYPE ... RENAME TO and SET SCHEMA. here: by the names of now.
    """
    moved: dict[tuple[str, str], tuple[Type, FoundType]] = {}
    for enum in enums:
        label_oids = {str(oid) for oid, _ in enum.labels}
        olds = [name for name, labels in recorded.items() if label_oids & labels.keys()]
        is_known = f"{enum.schema}.{enum.name}" in olds
        if is_known or len(olds) != 1:
            continue
        schema, name = olds[0].split(".", 1)
        old = replace(enum, schema=schema, name=name)
        (found,) = find_types(connection, [old])
        is_free = here[enum.schema, enum.name] is None or (enum.schema, enum.name) in {
            (other.schema, other.name) for other, _ in moved.values()
        }
        if found is not None and found.kind == "e" and is_free:
            moved[enum.schema, enum.name] = (old, found)
    return moved


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
    planned = list(planned)
    made = {(change.schema, change.name) for change in planned if change.create}
    found |= _find_by_old_names(connection, known, planned)
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


def _find_by_old_names(
    connection: Connection, types: Iterable[Type], planned: Iterable[EnumChange]
) -> dict[int, FoundType | None]:
    """Return what stands for the enums that are yet to be renamed."""
    moves = {(change.schema, change.name): change.moved_from for change in planned if change.moved_from}
    olds = {t.oid: replace(t, schema=old[0], name=old[1]) for t in types if (old := moves.get((t.schema, t.name)))}
    return dict(zip(olds, find_types(connection, list(olds.values())), strict=True))


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
