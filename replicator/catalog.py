"""Reads a server's catalog into `relation`'s facts. The same reads serve the source and the target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from replicator.db import Connection, reading_catalog
from replicator.relation import Column, Index, Member, Relation, Type
from replicator.statement import statement

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Listed:
    """A relation that could be replicated, before it is looked into. is_text: all names in it are UTF-8."""

    oid: int
    schema: str
    name: str
    kind: str
    is_partition: bool
    is_text: bool = True


@dataclass(frozen=True, slots=True)
class FoundType:
    """A type of this server that stands for one of another server."""

    oid: int
    array_oid: int
    kind: str
    labels: tuple[str, ...]
    binary: bool


@dataclass(frozen=True, slots=True)
class RowChangers:
    """Names of a table's triggers, and of its rules, that can change or drop a row on its way in."""

    triggers: list[str]
    rules: list[str]


@dataclass(frozen=True, slots=True)
class Dependent:
    """A view (kind v or m) over a table, or a foreign key (kind f, with the table that has it) that refers to one."""

    kind: str
    schema: str
    name: str
    constraint_name: str | None


def _read(connection: Connection, name: str, /, **parameters: Any) -> list[Row]:
    with reading_catalog(), connection.cursor() as cursor:
        return cursor.execute(statement(f"catalog.{name}"), parameters).fetchall()


def read_expressions(connection: Connection, oids: Iterable[int]) -> dict[tuple[int, str], str]:
    """Return what computes the generated columns of relations, by (oid, column)."""
    rows = _read(connection, "list_expressions", oids=list(oids))
    return {(row["relation"], row["name"]): row["expression"] for row in rows}


def list_relations(connection: Connection) -> list[Listed]:
    """Return everything that a SELECT could name outside the system schemas, sorted by schema and name."""
    return [Listed(**row) for row in _read(connection, "list_relations")]


def find_relations(connection: Connection, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return the OIDs of those (schema, name) that exist."""
    wanted = list(names)
    rows = _read(connection, "find_relations", schemas=[s for s, _ in wanted], names=[n for _, n in wanted])
    return {(row["schema"], row["name"]): row["oid"] for row in rows}


def find_missing_schemas(connection: Connection, names: Sequence[str]) -> list[str]:
    """Return those of the schemas that do not exist."""
    return [row["name"] for row in _read(connection, "missing_schemas", names=list(names))]


def read_relations(connection: Connection, oids: Iterable[int]) -> dict[int, Relation]:
    """Return the relations by OID, with columns, indexes, members and types, in five reads for any number of them."""
    wanted = list(oids)
    columns, indexes, members = defaultdict(list), defaultdict(list), defaultdict(list)
    for row in _read(connection, "describe_columns", oids=wanted):
        columns[row.pop("relation")].append(Column(**row))
    for row in _read(connection, "describe_indexes", oids=wanted):
        indexes[row["relation"]].append(_index(row))
    sizes: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for row in _read(connection, "describe_members", oids=wanted):
        root = row["root"]
        members[root].append(Member(row["oid"], row["filenode"], row["kind"], row["access_method"], row["heap_bytes"]))
        sizes[root][0] += row["heap_bytes"]
        sizes[root][1] += row["estimated_rows"] if row["kind"] != "p" else 0
    types = read_types(connection, {c.type_oid for own in columns.values() for c in own})
    return {
        row["oid"]: Relation(
            database=row["database"],
            oid=row["oid"],
            schema=row["schema"],
            name=row["name"],
            kind=row["kind"],
            columns=tuple(columns[row["oid"]]),
            indexes=tuple(indexes[row["oid"]]),
            members=tuple(members[row["oid"]]),
            types=_needed_types(types, columns[row["oid"]]),
            heap_bytes=sizes[row["oid"]][0],
            estimated_rows=sizes[row["oid"]][1],
            row_security=row["row_security"],
            definition=row["definition"],
            persistence=row["persistence"],
            partition_columns=tuple(row["partition_columns"]),
        )
        for row in _read(connection, "describe_relations", oids=wanted)
    }


def read_relation(connection: Connection, schema: str, name: str) -> Relation | None:
    """Return one relation by name, or None."""
    found = find_relations(connection, [(schema, name)])
    oid = found.get((schema, name))
    return read_relations(connection, [oid]).get(oid) if oid is not None else None


def read_types(connection: Connection, oids: Iterable[int]) -> dict[int, Type]:
    """Return the types by OID, with element and base types."""
    return {row["oid"]: _type(row) for row in _read(connection, "describe_types", oids=sorted(oids))}


def find_types(connection: Connection, types: Sequence[Type]) -> list[FoundType | None]:
    """Return for each type of another server the one that stands for it here, or None."""
    rows = _read(
        connection,
        "find_types",
        schemas=[t.schema for t in types],
        names=[t.name for t in types],
        extensions=[t.extension for t in types],
    )
    found = {
        row["position"]: FoundType(row["oid"], row["array_oid"], row["kind"], tuple(row["labels"]), row["is_binary"])
        for row in rows
    }
    return [found.get(position) for position in range(1, len(types) + 1)]


def format_types(connection: Connection, types: Sequence[tuple[int, int]]) -> list[str]:
    """Return this server's spelling of each (oid, typmod)."""
    rows = _read(connection, "format_types", oids=[oid for oid, _ in types], typmods=[mod for _, mod in types])
    return [row["spelling"] for row in rows]


def list_row_changers(connection: Connection, relations: Iterable[Relation]) -> dict[int, RowChangers]:
    """Return by OID what can change or drop a row on its way in in this session; nothing for most tables."""
    parts = [(one.oid, oid) for one in relations for oid in {one.oid, *(member.oid for member in one.members)}]
    rows = _read(connection, "row_changers", roots=[root for root, _ in parts], oids=[oid for _, oid in parts])
    found: dict[int, RowChangers] = {}
    for row in rows:
        changers = found.setdefault(row["root"], RowChangers([], []))
        (changers.rules if row["is_rule"] else changers.triggers).append(row["name"])
    return found


def read_foreign_keys(connection: Connection, oids: Iterable[int]) -> list[tuple[int, int]]:
    """Return (child, parent) for every foreign key among the tables."""
    return [(row["child"], row["parent"]) for row in _read(connection, "foreign_keys", oids=list(oids))]


def is_referenced(connection: Connection, oid: int) -> bool:
    """Say whether a foreign key refers to the table, its own rows' too."""
    return bool(_read(connection, "is_referenced", oid=oid)[0]["is_referenced"])


def list_dependents(connection: Connection, oid: int) -> list[Dependent]:
    """Return what keeps the table's columns and key from changing."""
    return [Dependent(**row) for row in _read(connection, "dependents", oid=oid)]


def deletes_go_on(connection: Connection, oids: Iterable[int]) -> bool:
    """Say whether a delete in one of the tables would change rows that refer to it, instead of being refused."""
    return bool(_read(connection, "deletes_go_on", oids=list(oids))[0]["go_on"])


def _index(row: Row) -> Index:
    operators = tuple(zip(row["operator_schemas"], row["operator_names"], strict=True))
    return Index(
        columns=tuple(row["columns"]),
        unique=row["is_unique"],
        primary=row["is_primary"],
        replica_identity=row["is_replica_identity"],
        deferrable=row["is_deferrable"],
        equality=operators,
        name=row["name"],
        definition=row["definition"],
        covers_all=row["covers_all"],
        method=row["method"],
        is_period=row["is_period"],
        is_constraint=row["is_constraint"],
    )


def _type(row: Row) -> Type:
    return Type(
        oid=row["oid"],
        schema=row["schema"],
        name=row["name"],
        kind=row["kind"],
        extension=row["extension"],
        element=row["element"],
        base=row["base"],
        base_typmod=row["base_typmod"],
        labels=tuple(zip(row["label_oids"], row["labels"], strict=True)),
        binary=row["is_binary"],
        parts=tuple((name, oid, typmod) for name, oid, typmod in row["parts"]),
    )


def _needed_types(types: dict[int, Type], columns: list[Column]) -> dict[int, Type]:
    needed: dict[int, Type] = {}
    waiting = [column.type_oid for column in columns]
    while waiting:
        oid = waiting.pop()
        if oid and oid not in needed and oid in types:
            needed[oid] = types[oid]
            waiting += [types[oid].element, types[oid].base, *(part for _, part, _ in types[oid].parts)]
    return needed
