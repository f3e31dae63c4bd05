"""DDL on a target that others build on: what is in its way is named, with the SQL that clears it."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from psycopg import sql

from replicator.apply.job import Job
from replicator.catalog import Dependent, list_dependents
from replicator.db import Connection
from replicator.errors import SchemaDrift
from replicator.relation import MATVIEW, VIEW, Relation


def run_ddl(connection: Connection, job: Job, existing: Relation | None, statements: Iterable[sql.Composed]) -> None:
    """Run DDL inside a transaction. Raises SchemaDrift when something of the target's own depends on what changes."""
    for ddl in statements:
        try:
            with connection.transaction():
                connection.execute(ddl)
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.DependentObjectsStillExist) as error:
            if existing is None:
                raise
            found = list_dependents(connection, existing.oid)
            raise _dependent_object(job, ddl, found, error.sqlstate) from error


def _dependent_object(job: Job, ddl: sql.Composed, found: list[Dependent], state: str | None) -> SchemaDrift:
    target = sql.Identifier(*job.target).as_string()
    clear = "; ".join(_drop(dependent).as_string() for dependent in found)
    return SchemaDrift(
        f"something depends on what has to change in {target}",
        why=f"SQLSTATE {state}: {ddl.as_string()}",
        hint=f"{clear} -- sync, then make it again"
        if clear
        else f"psql: \\d+ {target} -- drop what uses the column, sync",
        id="dependent_object",
        sqlstate=state,
        table=job.table,
    )


def _drop(dependent: Dependent) -> sql.Composed:
    name = sql.Identifier(dependent.schema, dependent.name)
    if dependent.kind in (VIEW, MATVIEW):
        kind = sql.SQL("view" if dependent.kind == VIEW else "materialized view")
        return sql.SQL("drop {} {}").format(kind, name)
    return sql.SQL("alter table {} drop constraint {}").format(name, sql.Identifier(dependent.constraint_name or ""))
