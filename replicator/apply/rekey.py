"""A new key for a table that has rows: they stay where they can have it, and go only where nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from psycopg import sql

from replicator.apply.evolve import Evolution
from replicator.apply.job import Job
from replicator.db import Connection
from replicator.errors import SchemaDrift
from replicator.relation import Relation


def fit_rows(connection: Connection, job: Job, existing: Relation, evolution: Evolution) -> Evolution:
    """Return the evolution with the new key made ahead of the load, so that rows are matched by it.

    Where the rows that are here cannot have it, they are replaced, if the target holds nothing beside them that the
    source lacks. Raises SchemaDrift otherwise.
    """
    table = sql.Identifier(existing.schema, existing.name)
    why, hint = _find_obstacle(connection, job, table, evolution)
    if not why:
        return replace(evolution, before=(*evolution.before, *evolution.after), after=())
    if not _is_copy(job, existing):
        raise unfit_rows(job, why, hint)
    return replace(evolution, replaces=True)


def _find_obstacle(
    connection: Connection, job: Job, table: sql.Identifier, evolution: Evolution
) -> tuple[str, sql.Composed]:
    """Return why the rows cannot have the new key, and the SQL that mends it; an empty reason if they can."""
    if not connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(table)).rowcount:
        return "", clear_rows(table)
    key = evolution.key_now
    if len(key) < len(job.mapping.key):
        return "a column of it is new, so no row has a value for it", clear_rows(table)
    if _has_nulls(connection, table, key):
        return "it is NULL in some of them", sql.SQL("delete from {} where {}").format(table, _any_null(key))
    if _has_duplicates(connection, table, key):
        return "some of them have it in common", _delete_duplicates(table, key)
    return "", clear_rows(table)


def _is_copy(job: Job, existing: Relation) -> bool:
    """Say whether the target's rows are the source's and no more: nothing kept, no column of its own."""
    numbers = {output.source.number for output in job.mapping.outputs}
    recorded = {column.target for column in job.record.columns if column.number in numbers}
    written = {output.name for output in job.mapping.outputs} | recorded
    is_same_source = job.record.source_oid == job.mapping.relation.oid
    has_extra = any(column.name not in written and not column.generated for column in existing.columns)
    return job.settings.deletes == "hard" and is_same_source and not has_extra


def _has_nulls(connection: Connection, table: sql.Identifier, key: Iterable[str]) -> bool:
    query = sql.SQL("SELECT FROM {} WHERE {} LIMIT 1").format(table, _any_null(key))
    return connection.execute(query).rowcount > 0


def _has_duplicates(connection: Connection, table: sql.Identifier, key: Iterable[str]) -> bool:
    query = sql.SQL("SELECT FROM {} GROUP BY {} HAVING count(*) > 1 LIMIT 1").format(table, _names(key))
    return connection.execute(query).rowcount > 0


def _any_null(key: Iterable[str]) -> sql.Composed:
    return sql.SQL(" or ").join(sql.SQL("{} is null").format(sql.Identifier(name)) for name in key)


def _names(key: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in key)


def _delete_duplicates(table: sql.Identifier, key: Iterable[str]) -> sql.Composed:
    """Return the statement that leaves one row of each key: the next load makes it the source's."""
    same = sql.SQL(" and ").join(sql.SQL("a.{0} = b.{0}").format(sql.Identifier(name)) for name in key)
    return sql.SQL("delete from {0} as a using {0} as b where {1} and a.ctid > b.ctid").format(table, same)


def clear_rows(table: sql.Identifier) -> sql.Composed:
    """Return the statement with which somebody gives the target's rows up."""
    return sql.SQL("delete from {}").format(table)


def unfit_rows(job: Job, why: str, hint: sql.Composed) -> SchemaDrift:
    """Return the stop for rows that can neither have the new key nor be replaced."""
    return SchemaDrift(
        f"rows of {sql.Identifier(*job.target).as_string()} cannot have the new key ({', '.join(job.mapping.key)})",
        why=f"{why}, and the target may hold more than the source can give back",
        hint=f"{hint.as_string()} -- the next sync brings back what the source has",
        id="new_key",
        table=job.table,
    )
