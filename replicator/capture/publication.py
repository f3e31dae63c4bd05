"""The publication on the source: made and kept where the role may, otherwise the SQL for whoever may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from replicator.db import Connection, reading_catalog
from replicator.errors import OperatorError, PreflightError
from replicator.relation import TABLE, Relation
from replicator.rules import Mapping
from replicator.statement import statement

PUBLICATION_STAYS = "publication_stays"
_OURS = "made by replicator"
_GENERATED_SINCE = 180000
_WISH_WAIT = "2s"


@dataclass(frozen=True, slots=True)
class Published:
    """A table as it is to be published. columns: None for all of them, else in the table's order."""

    schema: str
    name: str
    columns: tuple[str, ...] | None

    def as_sql(self) -> sql.Composed:
        """Return the table as CREATE PUBLICATION has it."""
        name = sql.SQL("TABLE ") + sql.Identifier(self.schema, self.name)
        if self.columns is None:
            return name
        return name + sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, self.columns)))


@dataclass(frozen=True, slots=True)
class PublicationPlan:
    """What has to be run for a publication to be as it should.

    needed: without it changes would be missing. wished: whole tables where it lists columns, or the other way round, by
    (schema, name): the stream goes on without it.
    """

    needed: tuple[sql.Composed, ...] = ()
    wished: dict[tuple[str, str], sql.Composed] = field(default_factory=dict)

    @property
    def statements(self) -> list[sql.Composed]:
        """Return all of it."""
        return [*self.needed, *self.wished.values()]


@dataclass(frozen=True, slots=True)
class Family:
    """A table with all whose rows a SELECT on it returns, itself included. members: OIDs."""

    oid: int
    schema: str
    name: str
    kind: str
    members: frozenset[int]


@dataclass(frozen=True, slots=True)
class Identity:
    """How one heap names its rows in the WAL. kind: d n f i; columns: of the index that does, if one does."""

    oid: int
    schema: str
    name: str
    kind: str
    columns: tuple[str, ...] | None
    is_logged: bool


def _read(connection: Connection, name: str, /, **parameters: Any) -> list[dict[str, Any]]:
    with reading_catalog():
        return connection.execute(statement(f"replication.{name}"), parameters).fetchall()


def read_identities(connection: Connection, oids: Sequence[int]) -> dict[int, list[Identity]]:
    """Return the identities of every heap below each root."""
    found: dict[int, list[Identity]] = {oid: [] for oid in oids}
    for row in _read(connection, "identities", oids=list(oids)):
        columns = None if row["columns"] is None else tuple(row["columns"])
        found[row["root"]].append(
            Identity(row["oid"], row["schema"], row["name"], row["identity"], columns, row["is_logged"])
        )
    return found


def read_families(connection: Connection, names: Sequence[tuple[str, str]]) -> list[Family]:
    """Return the families of those (schema, name) that are in the WAL."""
    rows = _read(connection, "families", schemas=[schema for schema, _ in names], names=[name for _, name in names])
    return [Family(row["oid"], row["schema"], row["name"], row["kind"], frozenset(row["members"])) for row in rows]


def find_publishing_roots(connection: Connection, name: str, oids: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return those tables whose changes the publication tells as those of a root, as (schema, name) by OID."""
    rows = _read(connection, "publishing_roots", publication=name, oids=list(oids))
    return {row["oid"]: (row["schema"], row["name"]) for row in rows}


def check_identity(table: str, mapping: Mapping, identities: Sequence[Identity]) -> None:
    """Raise PreflightError, with the SQL that mends it, where the stream would not say which row changed.

    Publishing such a table would make the application's own UPDATEs and DELETEs fail.
    """
    heaps = {member.oid for member in mapping.relation.members if member.kind == TABLE}
    key = {output.source.name for output in mapping.key_outputs}
    if not key:
        # Under the root's name old rows are marked as whole by the root's own identity.
        heaps.add(mapping.relation.oid)
    for identity in identities:
        _check_virtual(table, mapping, identity)
        _check_logged(table, identity)
        if identity.oid not in heaps or identity.kind == "f":
            continue
        if key and identity.columns is not None and key <= set(identity.columns):
            continue
        raise PreflightError(
            f"the stream would not name the changed rows of {table}",
            why=_why(identity, mapping.relation, key),
            hint=_hint_identity(identity, mapping.relation, key),
            id="identity_missing",
            table=table,
        )


def has_identity(table: str, mapping: Mapping, identities: Sequence[Identity]) -> bool:
    """Say whether the stream would name every changed row by the key."""
    try:
        check_identity(table, mapping, identities)
    except PreflightError:
        return False
    return True


def _check_logged(table: str, identity: Identity) -> None:
    if identity.is_logged:
        return
    name = sql.Identifier(identity.schema, identity.name)
    raise PreflightError(
        f"part of {table} is unlogged: {name.as_string()}",
        why="its changes are not in the WAL, so no stream brings them",
        hint=sql.SQL("alter table {} set logged").format(name).as_string(),
        id="unlogged_part",
        table=table,
    )


def _check_virtual(table: str, mapping: Mapping, identity: Identity) -> None:
    virtual = [column.name for column in mapping.relation.columns if column.generated == "v"]
    if identity.kind != "f" or not virtual:
        return
    name = sql.Identifier(identity.schema, identity.name)
    default = sql.SQL("alter table {} replica identity default").format(name).as_string()
    raise PreflightError(
        f"publishing {table} makes its updates and deletes fail",
        why=f"REPLICA IDENTITY FULL takes in {virtual[0]}, a virtual generated column, and none can be published",
        hint=f"{default}; or make the column stored" if mapping.key else "give the table a key, or make it stored",
        id="identity_virtual",
        table=table,
    )


def _why(identity: Identity, relation: Relation, key: set[str]) -> str:
    name = sql.Identifier(identity.schema, identity.name).as_string()
    index = relation.identity_index
    if identity.columns is None and identity.kind == "d" and index is not None and index.deferrable:
        return f"the primary key of {name} is deferrable, which names no row in the WAL"
    if not key:
        return f"it has no key, and the replica identity of {name} is not FULL"
    if identity.columns is None:
        return f"{name} has no usable primary key, and its replica identity is not FULL"
    return f"the replica identity of {name} does not hold the key ({', '.join(sorted(key))})"


def _hint_identity(identity: Identity, relation: Relation, key: set[str]) -> str:
    table = sql.Identifier(identity.schema, identity.name)
    for index in relation.indexes:
        fits = index.unique and index.covers_all and not index.deferrable and set(index.columns) == key
        if fits and identity.oid == relation.oid and not index.primary:
            return (
                sql.SQL("alter table {} replica identity using index {}")
                .format(table, sql.Identifier(index.name))
                .as_string()
            )
    return sql.SQL("alter table {} replica identity full").format(table).as_string()


def plan_table(mapping: Mapping, identities: Sequence[Identity], *, only_copied: bool) -> Published:
    """Return how a table is to be published: whole, or only with the columns that are copied, where that is possible.

    A column list makes the source refuse ALTER TYPE and DROP COLUMN of what it lists. REPLICA IDENTITY FULL takes none
    (PostgreSQL documentation, 29.5).
    """
    relation = mapping.relation
    excludes = len(mapping.outputs) < len(relation.columns)
    if not only_copied or not excludes or any(identity.kind == "f" for identity in identities):
        return Published(relation.schema, relation.name, None)
    needed = {output.source.name for output in mapping.outputs if not output.source.generated}
    for identity in identities:
        needed |= set(identity.columns or ())
    return Published(
        relation.schema, relation.name, tuple(column.name for column in relation.columns if column.name in needed)
    )


def ensure_publication(connection: Connection, name: str, tables: Sequence[Published], version: int) -> PublicationPlan:
    """Make the publication, or bring it up to the tables; return what could not be done of what is only wished.

    Raises PreflightError with the SQL for the tables' owner where the role may not do what is needed, and where the
    publication that is there leaves out operations or rows.
    """
    plan = plan_publication(connection, name, tables, version)
    if plan.needed:
        _run(connection, name, plan.needed)
    return PublicationPlan(wished={table: one for table, one in plan.wished.items() if not _try(connection, one)})


def plan_publication(connection: Connection, name: str, tables: Sequence[Published], version: int) -> PublicationPlan:
    """Return what has to be run for the publication to be there and to hold the tables.

    Raises PreflightError where the one that is there leaves out operations or rows.
    """
    row = next(iter(_read(connection, "publication", publication=name)), None)
    if row is None:
        return PublicationPlan(tuple(_create(name, tables, version)))
    if not row["publishes_all"]:
        raise PreflightError(
            f"publication {name} does not publish every kind of change",
            why="inserts, updates, deletes and truncates are all needed",
            hint=_sql("alter publication {} set (publish = 'insert, update, delete, truncate')", name).as_string(),
            id="publication_partial",
        )
    rows = _read(connection, "published_tables", publication=name)
    there = {(r["schema"], r["name"]): r for r in rows}
    needed: list[sql.Composed] = []
    wished: dict[tuple[str, str], sql.Composed] = {}
    for table in tables:
        found = there.get((table.schema, table.name))
        if found is None:
            if not row["all_tables"] and not _is_covered(connection, name, table, set(there)):
                needed.append(_sql("alter publication {} add ", name) + table.as_sql())
        elif found["is_filtered"]:
            raise _filters_rows(name, table)
        elif _lacks_columns(found, table):
            needed.append(_exchange_table(name, table))
        elif found["is_listed"] and _differs(found, table):
            wished[table.schema, table.name] = _exchange_table(name, table)
    return PublicationPlan(tuple(needed), wished)


def _lacks_columns(found: dict[str, Any], table: Published) -> bool:
    return table.columns is not None and not set(table.columns) <= set(found["columns"] or ())


def _differs(found: dict[str, Any], table: Published) -> bool:
    """Say whether a table is published with other columns than wished. Only of tables that stand there by name."""
    if table.columns is None:
        return bool(found["has_list"])
    return set(table.columns) != set(found["columns"] or ())


def _filters_rows(name: str, table: Published) -> PreflightError:
    return PreflightError(
        f"publication {name} filters rows of {table.schema}.{table.name}",
        why="rows that it leaves out would look deleted",
        hint=_exchange_table(name, table).as_string(),
        id="publication_partial",
    )


def has_publication(connection: Connection, name: str) -> bool:
    """Say whether the publication is there."""
    return bool(_read(connection, "publication", publication=name))


def may_publish(connection: Connection, name: str, oids: Sequence[int]) -> bool:
    """Say whether the role may make the publication, or change the one that is there, for these tables."""
    return any(row["may_publish"] for row in _read(connection, "publish_rights", publication=name, oids=list(oids)))


def is_published_at_large(connection: Connection, name: str, schema: str) -> bool:
    """Say whether the publication holds the schema's tables without naming them: FOR ALL TABLES, or IN SCHEMA."""
    return bool(_read(connection, "published_at_large", publication=name, schema=schema))


def describe_lack(name: str, statements: Sequence[sql.Composed], sqlstate: str | None = None) -> PreflightError:
    """Return the error of a role that may not make or change the publication, with the SQL for who may."""
    return PreflightError(
        f"publication {name} is to be made or changed, and the role may not",
        why="only an owner of the tables may publish them",
        hint="as their owner: " + "; ".join(one.as_string() for one in statements),
        id="publication_missing",
        sqlstate=sqlstate,
    )


def describe_lack_on_standby(
    name: str, statements: Sequence[sql.Composed], sqlstate: str | None = None
) -> PreflightError:
    """Return the error of a publication that a standby lacks: it comes from the primary, by replay."""
    return PreflightError(
        f"publication {name} is to be made or changed, and the source is a standby",
        why="a standby has the publications of its primary, once it has replayed them",
        hint=f"on the primary, as the tables' owner: {'; '.join(one.as_string() for one in statements)}; "
        "then wait for the standby to replay it",
        id="publication_missing",
        sqlstate=sqlstate,
    )


def read_published(connection: Connection, name: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the columns that are published, by (schema, name) of the table."""
    rows = _read(connection, "published_tables", publication=name)
    return {(row["schema"], row["name"]): tuple(row["columns"] or ()) for row in rows}


def read_memberships(connection: Connection, name: str, oids: Sequence[int]) -> dict[int, str]:
    """Return by root what ties it to the publication: another text once less was published of it for a while."""
    rows = _read(connection, "memberships", publication=name, oids=list(oids))
    return {row["root"]: row["membership"] for row in rows}


def _is_covered(connection: Connection, publication: str, table: Published, there: set[tuple[str, str]]) -> bool:
    """Say whether a table that the view does not show is published: by its leaves, if it has any yet."""
    if _read(connection, "holds_table", publication=publication, schema=table.schema, table=table.name):
        return True
    root = sql.Identifier(table.schema, table.name).as_string()
    rows = _read(connection, "leaves", root=root)
    return bool(rows) and all((row["schema"], row["name"]) in there for row in rows)


def _create(name: str, tables: Sequence[Published], version: int) -> list[sql.Composed]:
    options = [sql.SQL("publish_via_partition_root = true")]
    if version >= _GENERATED_SINCE:
        options.append(sql.SQL("publish_generated_columns = stored"))
    create = sql.SQL("create publication {} for {} with ({})").format(
        sql.Identifier(name), sql.SQL(", ").join(table.as_sql() for table in tables), sql.SQL(", ").join(options)
    )
    return [create, sql.SQL("comment on publication {} is {}").format(sql.Identifier(name), sql.Literal(_OURS))]


def _exchange_table(name: str, table: Published) -> sql.Composed:
    gone = _sql("alter publication {} drop table {}", name, table.schema, table.name)
    return gone + sql.SQL("; ") + _sql("alter publication {} add ", name) + table.as_sql()


def _sql(text: str, name: str, *table: str) -> sql.Composed:
    names = [sql.Identifier(name), *([sql.Identifier(*table)] if table else [])]
    return sql.SQL(text).format(*names)  # every text is a literal of this module


def _run(connection: Connection, name: str, statements: Sequence[sql.Composed]) -> None:
    try:
        with connection.transaction():
            for one in statements:
                connection.execute(one)
    except psycopg.errors.InsufficientPrivilege as error:
        raise describe_lack(name, statements, error.sqlstate) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        raise describe_lack_on_standby(name, statements, error.sqlstate) from error


def _try(connection: Connection, statement: sql.Composed) -> bool:
    """Run what the stream can do without; say whether it worked. Nobody's work on the table is waited for."""
    try:
        with connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_WISH_WAIT)))
            connection.execute(statement)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
        return False
    return True


def drop_publication(connection: Connection, name: str) -> bool:
    """Drop the publication if this tool made it and the role may; say whether it is gone."""
    row = next(iter(_read(connection, "publication", publication=name)), None)
    if row is None:
        return True
    if row["comment"] != _OURS:
        return False
    try:
        connection.execute(_sql("drop publication {}", name))
    except psycopg.errors.InsufficientPrivilege as error:
        raise OperatorError(
            f"publication {name} stays",
            why="only its owner may drop it",
            hint=f"as its owner: {_sql('drop publication {}', name).as_string()}",
            id=PUBLICATION_STAYS,
            sqlstate=error.sqlstate,
        ) from error
    return True
