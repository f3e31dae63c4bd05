"""Statements that take a staging table apart, and keys out of one. Pure: composes SQL, runs nothing.

Names: `s` is the staging, `k` a table of keys. Both have the target's types.
"""

from __future__ import annotations

from psycopg import sql

from replicator.apply.merge import Place, Target, same_columns, staging_name


def create_part(target: Target, staging: Place, part: str, first: int, rows: int) -> sql.Composed:
    """Return the statement that copies `rows` rows of a staging table from the place `first` on, in their order."""
    names = [sql.Identifier("s", column.name) for column in target.columns]
    return sql.SQL(
        "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} AS s ORDER BY s.ctid OFFSET {} LIMIT {}"
    ).format(
        sql.Identifier(part),
        sql.SQL(", ").join(names),
        staging_name(staging),
        sql.Literal(first),
        sql.Literal(rows),
    )


def append_part(target: Target, staging: Place, part: str, first: int) -> sql.Composed:
    """Return the statement that adds the row at the place `first` of a staging table to a part."""
    names = [sql.Identifier("s", column.name) for column in target.columns]
    return sql.SQL("INSERT INTO {} SELECT {} FROM {} AS s ORDER BY s.ctid OFFSET {} LIMIT 1").format(
        staging_name(part), sql.SQL(", ").join(names), staging_name(staging), sql.Literal(first)
    )


def add_keys(target: Target, staging: Place, keys: str) -> sql.Composed:
    """Return the statement that adds the keys of staged rows to a table of keys."""
    names = sql.SQL(", ").join(sql.Identifier("s", name) for name in target.key)
    return sql.SQL("INSERT INTO {} SELECT {} FROM {} AS s").format(staging_name(keys), names, staging_name(staging))


def read_keys(target: Target, staging: Place) -> sql.Composed:
    """Return the query for staged keys, as the types' output functions write them."""
    # A cast to text would write booleans and blank-padded strings otherwise than everybody who reads them.
    texts = sql.SQL(", ").join(sql.SQL("format('%s', s.{})").format(sql.Identifier(name)) for name in target.key)
    return sql.SQL("SELECT ARRAY[{}] AS key FROM {} AS s").format(texts, staging_name(staging))


def drop_keys(target: Target, staging: Place, keys: str) -> sql.Composed:
    """Return the statement that deletes staged rows that have one of the keys."""
    return sql.SQL("DELETE FROM {} AS s WHERE {}").format(staging_name(staging), _has_key(target, keys))


def keep_keys(target: Target, staging: Place, keys: str) -> sql.Composed:
    """Return the statement that deletes staged rows that have none of the keys."""
    return sql.SQL("DELETE FROM {} AS s WHERE NOT {}").format(staging_name(staging), _has_key(target, keys))


def list_buckets(keys: str, bucket: sql.Composable) -> sql.Composed:
    """Return the query for the buckets that the keys fall into; bucket: an expression over `s`."""
    return sql.SQL("SELECT DISTINCT {} AS bucket FROM {} AS s ORDER BY 1").format(bucket, staging_name(keys))


def _has_key(target: Target, keys: str) -> sql.Composed:
    return sql.SQL("EXISTS (SELECT FROM {} AS k WHERE {})").format(
        staging_name(keys), same_columns(target.key, target.equality, "s", "k")
    )
