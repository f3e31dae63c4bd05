"""Statements that name the rows in which a target and what was staged of its source differ. Pure: runs nothing.

Names: `t` is the target, `s` the staging table, which holds all of the source's rows of some buckets of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg import sql

from replicator.apply import merge
from replicator.apply.merge import Target, staging_name
from replicator.batch import VERSION
from replicator.digest import Digest

Key = tuple[str | None, ...]
"""The text of each value of a key, in key order."""

MISSING, EXTRA, DIFFERENT = "missing", "extra", "different"


def find_differences(
    target: Target,
    staging: str,
    digest: Digest,
    only: sql.Composable | None,
    *,
    with_values: bool,
    with_version: bool,
) -> sql.Composed:
    """Return the query for (kind, key, columns, theirs, ours, versions, source_values, target_values).

    only: the condition on `t` that its key is in the staged buckets. key: its values as text, in key order; columns:
    those that differ; theirs, ours: hashes of the two rows, NULL where there is none. Values are text in the order of
    the target's columns, NULL unless `with_values`. versions: of the two rows, the xids that wrote them, where staging
    has the source's.
    """
    theirs, ours = merge.hash_row(target, "s", digest), merge.hash_row(target, "t", digest)
    version = {
        "s": sql.Identifier("s", VERSION) if with_version else sql.SQL("0"),
        "t": sql.SQL("t.xmin::text::bigint") if with_version else sql.SQL("0"),
    }
    values = {a: _texts(a, _names(target)) if with_values else sql.SQL("NULL::text[]") for a in ("s", "t")}
    here = merge.live(target) if only is None else sql.SQL("{} AND {}").format(merge.live(target), only)
    return sql.SQL(
        "SELECT 'missing' AS kind, {s_key} AS key, NULL::text[] AS columns, {theirs} AS theirs, NULL::bigint AS ours,"
        " ARRAY[{s_version}, 0]::bigint[] AS versions, {s_values} AS source_values,"
        " NULL::text[] AS target_values FROM {staging} AS s"
        " WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {same} AND {live})"
        " UNION ALL"
        " SELECT 'extra', {t_key}, NULL, NULL, {ours}, ARRAY[0, {t_version}]::bigint[], NULL, {t_values}"
        " FROM {table} AS t"
        " WHERE {here} AND NOT EXISTS (SELECT FROM {staging} AS s WHERE {same})"
        " UNION ALL"
        " SELECT 'different', {s_key}, {columns}, {theirs}, {ours}, ARRAY[{s_version}, {t_version}]::bigint[],"
        " {s_values}, {t_values}"
        " FROM {staging} AS s JOIN {table} AS t ON {same} WHERE {live} AND {differs}"
    ).format(
        s_key=_texts("s", target.key),
        t_key=_texts("t", target.key),
        theirs=theirs,
        ours=ours,
        s_version=version["s"],
        t_version=version["t"],
        s_values=values["s"],
        t_values=values["t"],
        staging=staging_name(staging),
        table=target.table,
        same=merge.same_key(target, "s"),
        live=merge.live(target),
        here=here,
        columns=_differing(target),
        differs=_image_differs(_names(target)),
    )


def hash_staged(target: Target, staging: str, digest: Digest, *, with_version: bool) -> sql.Composed:
    """Return the query for (key, theirs, version) of every staged row."""
    version: sql.Composable = sql.Identifier("s", VERSION) if with_version else sql.SQL("0::bigint")
    return sql.SQL("SELECT {} AS key, {} AS theirs, {} AS version FROM {} AS s").format(
        _texts("s", target.key), merge.hash_row(target, "s", digest), version, staging_name(staging)
    )


def keep_staged(target: Target, staging: str, keys: Sequence[Key]) -> sql.Composed:
    """Return the statement that takes all rows from staging but those with these keys."""
    return sql.SQL("DELETE FROM {} AS s WHERE NOT EXISTS (SELECT FROM {} WHERE {})").format(
        staging_name(staging), _keys(target, keys), merge.same_columns(target.key, target.equality, "s", "k")
    )


def delete_keys(target: Target, keys: Sequence[Key]) -> sql.Composed:
    """Return the statement that deletes the live rows with these keys, or marks them as deleted."""
    condition = sql.SQL("{} AND {}").format(merge.same_key(target, "k"), merge.live(target))
    if target.soft:
        return sql.SQL("UPDATE {} AS t SET {} = now() FROM {} WHERE {}").format(
            target.table, sql.Identifier(merge.DELETED_AT), _keys(target, keys), condition
        )
    return sql.SQL("DELETE FROM {} AS t USING {} WHERE {}").format(target.table, _keys(target, keys), condition)


def count_multiset(target: Target, staging: str) -> sql.Composed:
    """Return the query for (missing, extra): how many rows a target without key lacks and has too many."""
    image = {alias: _image(alias, _names(target)) for alias in ("s", "t")}
    return sql.SQL(
        "WITH s AS (SELECT {s_image} AS image, count(*) AS rows FROM {staging} AS s GROUP BY 1),"
        " t AS (SELECT {t_image} AS image, count(*) AS rows FROM {table} AS t WHERE {live} GROUP BY 1)"
        " SELECT coalesce(sum(greatest(coalesce(s.rows, 0) - coalesce(t.rows, 0), 0)), 0)::bigint AS missing,"
        " coalesce(sum(greatest(coalesce(t.rows, 0) - coalesce(s.rows, 0), 0)), 0)::bigint AS extra"
        " FROM s FULL JOIN t ON s.image = t.image"
    ).format(
        s_image=image["s"], t_image=image["t"], staging=staging_name(staging), table=target.table,
        live=merge.live(target),
    )  # fmt: skip


def _names(target: Target) -> list[str]:
    return [column.name for column in target.columns]


def _image(alias: str, names: list[str]) -> sql.Composable:
    columns = sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)
    return sql.SQL('row({})::text COLLATE "C"').format(columns)


def _keys(target: Target, keys: Sequence[Key]) -> sql.Composable:
    # One array of texts for each column; the types are the target's own, so each cast gives the very value back.
    spellings = {column.name: column.spelling for column in target.columns}
    numbers = [sql.Identifier(str(n)) for n in range(len(target.key))]
    return sql.SQL("(SELECT {} FROM unnest({}) AS x ({})) AS k").format(
        sql.SQL(", ").join(
            sql.SQL("x.{}::{} AS {}").format(number, sql.SQL(spellings[name]), sql.Identifier(name))
            for number, name in zip(numbers, target.key, strict=True)
        ),
        sql.SQL(", ").join(
            sql.SQL("{}::text[]").format(sql.Literal([key[n] for key in keys])) for n in range(len(target.key))
        ),
        sql.SQL(", ").join(numbers),
    )


def _texts(alias: str, names: Iterable[str]) -> sql.Composable:
    # format('%s') is the type's output function, and nothing but it: a cast of bpchar to text drops its blanks.
    texts = [
        sql.SQL("CASE WHEN {0} IS NOT NULL THEN format('%s', {0}) END").format(sql.Identifier(alias, name))
        for name in names
    ]
    return sql.SQL("ARRAY[{}]::text[]").format(sql.SQL(", ").join(texts))


def _image_differs(names: Iterable[str]) -> sql.Composable:
    columns = list(names)
    return sql.SQL("row({})::record OPERATOR(pg_catalog.*<>) row({})::record").format(
        *(sql.SQL(", ").join(sql.Identifier(alias, name) for name in columns) for alias in ("s", "t"))
    )


def _differing(target: Target) -> sql.Composable:
    cases = [
        sql.SQL("CASE WHEN {} THEN {} END").format(_image_differs([name]), sql.Literal(name)) for name in _names(target)
    ]
    return sql.SQL("array_remove(ARRAY[{}]::text[], NULL)").format(sql.SQL(", ").join(cases))
