"""Statements that bring folded changes into a target table. Pure: composes SQL, runs nothing.

Names: `t` is the target, `s` the staging. Which rows are written is decided ahead by the fold, so that here

    whole rows      are upserted
    partial rows    update the columns that were sent, under the same key
    moved rows      are joined with the target's row of their old key first, then inserted under the new one
    gone keys       are deleted ahead of all that is written
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from replicator.apply import merge
from replicator.apply.merge import DELETED_AT, Target, staging_name


def base_name(place: int) -> str:
    """Return the staging column that holds a key cell of the row that a moved row was."""
    return f"replicator base {place}"


def create_moved(target: Target, name: str, known: Sequence[str]) -> sql.Composed:
    """Return the statement that makes a staging table for moved rows: the columns sent, and the old key."""
    picked: list[sql.Composable] = [sql.Identifier(column) for column in known]
    picked += [
        sql.SQL("{} AS {}").format(sql.Identifier(key), sql.Identifier(base_name(n)))
        for n, key in enumerate(target.key)
    ]
    return sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA").format(
        sql.Identifier(name), sql.SQL(", ").join(picked), target.table
    )


def update_partial(target: Target, staging: str, known: Sequence[str]) -> sql.Composed:
    """Return the statement that writes the columns that were sent into the rows that are there."""
    fixed = {column.name for column in target.columns if column.fixed}
    written = [name for name in known if name not in fixed]
    sets = [sql.SQL("{0} = s.{0}").format(sql.Identifier(name)) for name in written]
    differs: sql.Composable = sql.SQL("row({})::record OPERATOR(pg_catalog.*<>) row({})::record").format(
        _qualified("t", written), _qualified("s", written)
    )
    if target.has_mark:
        sets.append(sql.SQL("{} = NULL").format(sql.Identifier(DELETED_AT)))
        differs = sql.SQL("({} OR t.{} IS NOT NULL)").format(differs, sql.Identifier(DELETED_AT))
    return sql.SQL("UPDATE {} AS t SET {} FROM {} AS s WHERE {} AND {}").format(
        target.table, sql.SQL(", ").join(sets), staging_name(staging), merge.same_key(target, "s"), differs
    )


def copy_absent_keys(target: Target, staging: str) -> sql.Composed:
    """Return the COPY of the staged keys that the target does not have."""
    return sql.SQL("COPY (SELECT {} FROM {} AS s WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {})) TO STDOUT").format(
        _qualified("s", target.key), staging_name(staging), target.table, merge.same_key(target, "s")
    )


def copy_keys(target: Target, staging: str) -> sql.Composed:
    """Return the COPY of the staged keys."""
    return sql.SQL("COPY {} ({}) TO STDOUT").format(staging_name(staging), _names(target.key))


def resolve_moved(target: Target, staging: str, known: Sequence[str], resolved: str, *, by_base: bool) -> sql.Composed:
    """Return the statement that joins staged rows with the target's rows they come from.

    by_base: by the old key, else by their own. The result has every column, those only of the target too, and
    `replicator found`: whether there was such a row.
    """
    sent = set(known)
    own = [sql.Identifier("s" if c.name in sent else "t", c.name) for c in target.columns]
    extra = [sql.Identifier("t", name) for name in _extra(target)]
    key = [base_name(n) for n in range(len(target.key))] if by_base else list(target.key)
    return sql.SQL(
        "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {}, t.ctid IS NOT NULL AS {} FROM {} AS s"
        " LEFT JOIN {} AS t ON {}"
    ).format(
        sql.Identifier(resolved),
        sql.SQL(", ").join([*own, *extra]),
        sql.Identifier(_FOUND),
        staging_name(staging),
        target.table,
        merge.same_columns(target.key, target.equality, "t", "s", right_names=key),
    )


_FOUND = "replicator found"


def copy_unfound_keys(target: Target, resolved: str) -> sql.Composed:
    """Return the COPY of the keys of resolved rows whose old row the target does not have."""
    return sql.SQL("COPY (SELECT {} FROM {} AS s WHERE NOT {}) TO STDOUT").format(
        _qualified("s", target.key), staging_name(resolved), sql.Identifier("s", _FOUND)
    )


def insert_resolved(target: Target, resolved: str, *, found: bool) -> sql.Composed:
    """Return the statement that writes resolved rows: with the target's own columns where an old row had them."""
    insert = _insert_resolved(target, resolved, found=found)
    if not target.has_unique_key:
        absent = sql.SQL(" AND NOT EXISTS (SELECT FROM {} AS x WHERE {})")
        return insert + absent.format(target.table, merge.same_columns(target.key, target.equality, "x", "s"))
    return insert + sql.SQL(" ON CONFLICT ({}) DO UPDATE SET {}").format(
        _names(target.key), _sets_resolved(target, "excluded", found=found)
    )


def update_resolved(target: Target, resolved: str, *, found: bool) -> sql.Composed:
    """Return the statement that writes resolved rows over those that have their keys, where no unique index tells."""
    return sql.SQL("UPDATE {} AS t SET {} FROM {} AS s WHERE s.{} = {} AND {}").format(
        target.table,
        _sets_resolved(target, "s", found=found),
        staging_name(resolved),
        sql.Identifier(_FOUND),
        sql.Literal(found),
        merge.same_key(target, "s"),
    )


def _insert_resolved(target: Target, resolved: str, *, found: bool) -> sql.Composed:
    names = _resolved_names(target, found=found)
    return sql.SQL("INSERT INTO {} AS t ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s WHERE s.{} = {}").format(
        target.table,
        _names(names),
        _qualified("s", names),
        staging_name(resolved),
        sql.Identifier(_FOUND),
        sql.Literal(found),
    )


def _resolved_names(target: Target, *, found: bool) -> list[str]:
    own = [column.name for column in target.columns]
    return [*own, *_extra(target)] if found else own


def _sets_resolved(target: Target, alias: str, *, found: bool) -> sql.Composed:
    fixed = {column.name for column in target.columns if column.fixed}
    names = [name for name in _resolved_names(target, found=found) if name not in fixed]
    sets = [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier(alias, name)) for name in names]
    if target.has_mark:
        sets.append(sql.SQL("{} = NULL").format(sql.Identifier(DELETED_AT)))
    return sql.SQL(", ").join(sets)


def delete_resolved(target: Target, resolved: str) -> sql.Composed:
    """Return the statement that takes the rows out of the way that resolved ones are about to replace."""
    return sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE {}").format(
        target.table, staging_name(resolved), merge.same_key(target, "s")
    )


def delete_gone(target: Target, staging: str, spared: Sequence[str] = ()) -> sql.Composed:
    """Return the statement that deletes, or marks as deleted, the rows of the staged keys.

    spared: staging tables of rows that have been written already, whose keys an index may take as equal to a gone one.
    """
    condition: sql.Composable = merge.same_key(target, "s")
    for name in spared:
        condition += sql.SQL(" AND NOT EXISTS (SELECT FROM {} AS kept WHERE {})").format(
            staging_name(name), merge.same_columns(target.key, target.equality, "t", "kept")
        )
    if target.soft:
        return sql.SQL("UPDATE {} AS t SET {deleted} = now() FROM {} AS s WHERE {} AND t.{deleted} IS NULL").format(
            target.table, staging_name(staging), condition, deleted=sql.Identifier(DELETED_AT)
        )
    return sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE {}").format(target.table, staging_name(staging), condition)


def delete_all(target: Target) -> sql.Composed:
    """Return the statement that empties the table row by row: readers with an older snapshot go on seeing theirs."""
    if target.soft:
        return sql.SQL("UPDATE {} AS t SET {deleted} = now() WHERE t.{deleted} IS NULL").format(
            target.table, deleted=sql.Identifier(DELETED_AT)
        )
    return sql.SQL("DELETE FROM {}").format(target.table)


def drop_found_keys(target: Target, keys: str, rows: str) -> sql.Composed:
    """Return the statement that takes from staged keys those of staged rows: what is left is gone."""
    return sql.SQL("DELETE FROM {} AS k USING {} AS s WHERE {}").format(
        staging_name(keys), staging_name(rows), merge.same_columns(target.key, target.equality, "k", "s")
    )


def insert_images(target: Target, staging: str) -> sql.Composed:
    """Return the statement that inserts staged rows as they are, into a table without a key."""
    names = [column.name for column in target.columns]
    return sql.SQL("INSERT INTO {} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM {}").format(
        target.table, staging_name(staging), names=_names(names)
    )


def delete_images(target: Target, staging: str) -> sql.Composed:
    """Return the statement that takes from a table without a key one row for each staged image."""
    names = [column.name for column in target.columns]
    image = sql.SQL("row({})::text")
    live = sql.SQL(" AND t.{} IS NULL").format(sql.Identifier(DELETED_AT)) if target.soft else sql.SQL("")
    surplus = sql.SQL(
        "WITH s (image, number) AS (SELECT {image_s}, row_number() OVER (PARTITION BY {image_s}) FROM {staging} AS s),"
        " x (image, number, place, leaf) AS (SELECT {image_t}, row_number() OVER (PARTITION BY {image_t}), t.ctid,"
        " t.tableoid FROM {table} AS t WHERE {image_t} IN (SELECT image FROM s){live}),"
        " gone AS (SELECT x.place, x.leaf FROM x JOIN s ON s.image = x.image AND s.number = x.number)"
    ).format(
        image_s=image.format(_qualified("s", names)) + sql.SQL(' COLLATE "C"'),
        image_t=image.format(_qualified("t", names)) + sql.SQL(' COLLATE "C"'),
        staging=staging_name(staging),
        table=target.table,
        live=live,
    )
    act = (
        sql.SQL(" UPDATE {} AS t SET {} = now() FROM gone").format(target.table, sql.Identifier(DELETED_AT))
        if target.soft
        else sql.SQL(" DELETE FROM {} AS t USING gone").format(target.table)
    )
    return surplus + act + sql.SQL(" WHERE t.ctid = gone.place AND t.tableoid = gone.leaf")


def insert_empty(target: Target, rows: int) -> sql.Composed:
    """Return the statement that inserts rows without columns."""
    return sql.SQL("INSERT INTO {} SELECT FROM generate_series(1, {})").format(target.table, sql.Literal(rows))


def delete_empty(target: Target, rows: int) -> sql.Composed:
    """Return the statement that deletes as many rows of a table without columns."""
    return sql.SQL("DELETE FROM {0} WHERE ctid IN (SELECT ctid FROM {0} LIMIT {1})").format(
        target.table, sql.Literal(rows)
    )


def empty_staging(name: str) -> sql.Composed:
    """Return the statement that empties a staging table inside a transaction."""
    return sql.SQL("TRUNCATE {}").format(staging_name(name))


def measure_staging(name: str, column: str) -> sql.Composed:
    """Return the statements that tell the planner how many rows a page of a staging table holds, and nothing else.

    column: any. Its values are not looked at: their distribution would mislead once the table is filled anew.
    """
    return sql.SQL("ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0; ANALYZE {table} ({column})").format(
        table=staging_name(name), column=sql.Identifier(column)
    )


def _extra(target: Target) -> list[str]:
    return [name for name in target.extra if name != DELETED_AT]


def _names(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _qualified(alias: str, names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)
