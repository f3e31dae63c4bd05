"""What the two roles may not do although a sync needs it, with the exact statement that grants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from replicator.apply.evolve import Evolution
from replicator.apply.types import EnumChange
from replicator.db import Connection, not_populated
from replicator.errors import PreflightError
from replicator.relation import Relation
from replicator.selection import format_table_name
from replicator.statement import statement

SOURCE, TARGET = "source", "target"


def find_read_gaps(connection: Connection, oids: Iterable[int]) -> dict[int, PreflightError]:
    """Return, by OID, the relations of the source that cannot be read, by the role or by anybody."""
    gaps = {}
    for row in _rows(connection, "read_rights", oids=list(oids)):
        grants = []
        if not row["may_use"]:
            grants.append(_grant("usage", "schema", sql.Identifier(row["schema"]), row["role"]))
        if not row["may_select"]:
            grants.append(_grant("select", "", sql.Identifier(row["schema"], row["name"]), row["role"]))
        if grants:
            table = format_table_name(row["schema"], row["name"])
            gaps[row["oid"]] = _gap(SOURCE, row["role"], f"read {table}", grants, table)
        elif not row["is_populated"]:
            table = format_table_name(row["schema"], row["name"])
            gaps[row["oid"]] = not_populated(table, "it is a materialized view WITH NO DATA")
    return gaps


@dataclass(frozen=True, slots=True)
class SchemaRight:
    """What the role may do in a schema of the target."""

    may_use: bool
    may_create: bool


class TargetRights:
    """What the target's role may do, asked as far as a table needs it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        database = _rows(connection, "database_rights")[0]
        self.role: str = database["role"]
        self.database: str = database["database"]
        self.may_create_schema: bool = database["may_create"]
        self.may_stage: bool = database["may_stage"]
        self.schemas = {
            row["name"]: SchemaRight(row["may_use"], row["may_create"]) for row in _rows(connection, "schema_rights")
        }

    def find_database_gap(self, control_schema: str) -> PreflightError | None:
        """Return what the role lacks before any table: staging tables and the control schema."""
        grants = []
        if not self.may_stage:
            grants.append(self._grant_on_database("temporary"))
        # The migrations ask for CREATE on the database once, when they make the schema.
        if control_schema not in self.schemas and not self.may_create_schema:
            grants.append(self._grant_on_database("create"))
        elif control_schema in self.schemas:
            grants += self._missing_in_schema(control_schema, creates=False)
        return _gap(TARGET, self.role, "keep its records", grants, None) if grants else None

    def find_table_gap(
        self,
        table: str,
        target: tuple[str, str],
        evolution: Evolution,
        existing: Relation | None,
        enums: Sequence[EnumChange],
    ) -> PreflightError | None:
        """Return what the role lacks to write a table and to run its DDL."""
        grants = [grant for change in enums for grant in self._missing_for_enum(change)]
        grants += self._missing_in_schema(target[0], creates=existing is None)
        if existing is not None:
            grants += self._missing_on_table(
                existing, alters=bool(evolution.before or evolution.reindexes or evolution.after)
            )
        unique = {grant.as_string(): grant for grant in grants}
        return _gap(TARGET, self.role, f"write {table}", list(unique.values()), table) if grants else None

    def _missing_in_schema(self, name: str, *, creates: bool) -> list[sql.Composed]:
        right = self.schemas.get(name)
        if right is None:
            return [] if self.may_create_schema else [self._grant_on_database("create")]
        lacking = [*([] if right.may_use else ["usage"]), *(["create"] if creates and not right.may_create else [])]
        return [_grant(", ".join(lacking), "schema", sql.Identifier(name), self.role)] if lacking else []

    def _missing_on_table(self, existing: Relation, *, alters: bool) -> list[sql.Composed]:
        right = _rows(self._connection, "write_rights", oid=existing.oid)[0]
        name = sql.Identifier(existing.schema, existing.name)
        if alters and not right["is_owner"]:
            return [sql.SQL("alter table {} owner to {}").format(name, sql.Identifier(self.role))]
        return [_grant(", ".join(right["lacking"]), "", name, self.role)] if right["lacking"] else []

    def _missing_for_enum(self, change: EnumChange) -> list[sql.Composed]:
        if change.create:
            return self._missing_in_schema(change.schema, creates=True)
        owned = _rows(self._connection, "type_owner", schema=change.schema, name=change.name)
        if owned and owned[0]["is_owner"]:
            return []
        name = sql.Identifier(change.schema, change.name)
        return [sql.SQL("alter type {} owner to {}").format(name, sql.Identifier(self.role))]

    def _grant_on_database(self, privilege: str) -> sql.Composed:
        return _grant(privilege, "database", sql.Identifier(self.database), self.role)


def _rows(connection: Connection, name: str, /, **parameters: Any) -> list[dict[str, Any]]:
    return connection.execute(statement(f"rights.{name}"), parameters).fetchall()


def _grant(privileges: str, kind: str, name: sql.Identifier, role: str) -> sql.Composed:
    return sql.SQL("grant {} on {}{} to {}").format(
        sql.SQL(privileges), sql.SQL(f"{kind} " if kind else ""), name, sql.Identifier(role)
    )


def _gap(side: str, role: str, act: str, grants: Sequence[sql.Composed], table: str | None) -> PreflightError:
    return PreflightError(
        f"role {role} may not {act}",
        why=f"it lacks rights on the {side}",
        hint="; ".join(grant.as_string() for grant in grants),
        id="grant_missing",
        sqlstate="42501",
        table=table,
    )
