"""What a server's catalog says of a relation: plain facts, read by `catalog`, understood everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

TABLE, PARTITIONED, VIEW, MATVIEW, FOREIGN = "r", "p", "v", "m", "f"
LOGGED = "p"
"""The persistence of what is in the WAL."""
_RANGE_METHODS = ("btree", "brin")
KIND_NAMES = {
    TABLE: "table",
    PARTITIONED: "partitioned table",
    VIEW: "view",
    MATVIEW: "materialized view",
    FOREIGN: "foreign table",
}

NAMING_TYPES = frozenset(
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
    ]
)
"""Built-in types that hold numbers of objects and are written as their names: a rename makes no row version."""


@dataclass(frozen=True, slots=True)
class Type:
    """One row of pg_type. kind: typtype. element: 0 unless the type is an array; base: 0 unless it is a domain.

    parts: (name, type OID, typmod) of the attributes of a composite type, or of what a range is of.
    """

    oid: int
    schema: str
    name: str
    kind: str
    extension: str | None
    element: int
    base: int
    base_typmod: int
    labels: tuple[tuple[int, str], ...]
    binary: bool
    parts: tuple[tuple[str, int, int], ...] = ()

    @property
    def is_builtin(self) -> bool:
        """Say whether initdb made the type: such OIDs mean the same on every server that has them."""
        return self.schema == "pg_catalog" and self.oid < 16384


@dataclass(frozen=True, slots=True)
class Column:
    """One row of pg_attribute. missing: what rows show that no row version tells of; version: of the catalog's row."""

    number: int
    name: str
    type_oid: int
    typmod: int
    not_null: bool
    generated: str
    identity: str
    missing: str | None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A relation whose rows a SELECT on the root returns; `filenode` changes with TRUNCATE and rewrites."""

    oid: int
    filenode: int
    kind: str
    access_method: str | None
    heap_bytes: int


@dataclass(frozen=True, slots=True)
class Index:
    """A valid index over plain columns.

    columns: names in index order. unique: a unique B-tree. is_period: a key WITHOUT OVERLAPS, which is no B-tree: no
    two rows share a key and a moment. equality: (schema, operator) of each column, empty names unless it is a B-tree.
    covers_all: not partial. is_constraint: it belongs to a constraint, and goes with that alone.
    """

    columns: tuple[str, ...]
    unique: bool
    primary: bool
    replica_identity: bool
    deferrable: bool
    equality: tuple[tuple[str, str], ...]
    name: str
    definition: str
    covers_all: bool
    method: str = "btree"
    is_period: bool = False
    is_constraint: bool = False


@dataclass(frozen=True)
class Relation:
    """A table, partitioned table, view, materialized view or foreign table as it stood at one moment.

    database: the OID of its database, which a copy under the same name does not have. partition_columns: from which a
    row's partition follows, at every level; an empty name stands for an expression.
    """

    database: int
    oid: int
    schema: str
    name: str
    kind: str
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]
    members: tuple[Member, ...]
    types: dict[int, Type]
    heap_bytes: int
    estimated_rows: int
    row_security: bool
    definition: str | None
    persistence: str
    partition_columns: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Return the columns by name."""
        return {column.name: column for column in self.columns}

    @cached_property
    def identity_index(self) -> Index | None:
        """Return the primary key, else the replica identity index; None where neither can serve as a key.

        Also a key WITHOUT OVERLAPS: PostgreSQL lets no empty range into it, so equal values would overlap.
        """
        unique = [index for index in self.indexes if (index.unique or index.is_period) and index.covers_all]
        for wanted in ("primary", "replica_identity"):
            for index in unique:
                if getattr(index, wanted):
                    return index
        return None

    @property
    def has_children(self) -> bool:
        """Say whether this is an inheritance parent: its SELECT returns rows its key knows nothing of."""
        return self.kind == TABLE and len(self.members) > 1

    @property
    def is_heap(self) -> bool:
        """Say whether every row lives in a heap, so that `xmin` tells when it was written."""
        if self.kind not in (TABLE, PARTITIONED):
            return False
        leaves = [member for member in self.members if member.kind != PARTITIONED]
        return all(member.kind == TABLE and member.access_method == "heap" for member in leaves)

    def find_base(self, column: Column) -> tuple[int, int]:
        """Return (type OID, typmod) of a column, of the base type where its own is a domain."""
        oid, typmod = column.type_oid, column.typmod
        while (found := self.types.get(oid)) is not None and found.base:
            oid, typmod = found.base, found.base_typmod
        return oid, typmod

    def names_objects(self, type_oid: int) -> bool:
        """Say whether values of a type are written with names of objects: by itself, or in an array, a part, a base."""
        waiting, seen = [type_oid], set()
        while waiting:
            found = self.types.get(waiting.pop())
            if found is None or found.oid in seen:
                continue
            seen.add(found.oid)
            if found.schema == "pg_catalog" and found.name in NAMING_TYPES:
                return True
            waiting += [found.element, found.base, *(part for _, part, _ in found.parts)]
        return False

    def index_on(self, column: str) -> Index | None:
        """Return an index that starts with the column and finds ranges of it, if there is one."""
        starting = [index for index in self.indexes if index.columns[:1] == (column,)]
        return next((index for index in starting if index.method in _RANGE_METHODS), None)

    def find_key_index(self, key: Collection[str]) -> Index | None:
        """Return the unique index on exactly these columns, which makes them a key here."""
        return next((i for i in self.indexes if i.unique and i.covers_all and set(i.columns) == set(key)), None)

    def find_leading_index(self, key: Collection[str]) -> Index | None:
        """Return a B-tree that begins with these columns, in any order, and so finds the rows that have them."""
        size = len(key)
        leading = (
            i for i in self.indexes if set(i.columns[:size]) == set(key) and i.method == "btree" and i.covers_all
        )
        return next(leading, None)

    def may_be_unique(self, columns: Collection[str]) -> bool:
        """Say whether PostgreSQL could make a unique index on columns: it needs all that partitions follow from."""
        return set(self.partition_columns) <= set(columns)

    def fingerprint(self, rules: str) -> str:
        """Return a hash of all that can change a row's output without a new row version.

        ADD COLUMN ... DEFAULT, ALTER TYPE ... RENAME VALUE or ADD ATTRIBUTE, ATTACH PARTITION, INHERIT, a table swapped
        in by rename, a database swapped in by rename, TRUNCATE, a rewriting ALTER, another view definition, other
        rules: each changes it. `rules` is the compiled SELECT, so a rule that ends in the same SQL is the same rule.
        """
        facts = {
            "kind": self.kind,
            "database": self.database,
            "oid": self.oid,
            "members": sorted((m.oid, m.filenode, m.kind) for m in self.members),
            "columns": [(c.number, c.name, c.type_oid, c.typmod, c.missing) for c in self.columns],
            "types": sorted((t.oid, t.name, t.kind, t.base, t.element, t.labels, t.parts) for t in self.types.values()),
            "definition": self.definition,
            "rules": rules,
        }
        return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
