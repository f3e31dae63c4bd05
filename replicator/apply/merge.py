"""Statements that bring a target table to what staging says. Pure: composes SQL, runs nothing.

Names: `t` is the target, `s` the staging table. Staging holds at most one row per key, keys unlike NULL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg import sql

from replicator.digest import Digest, hash_columns

DELETED_AT = "_deleted_at"

Place = str | sql.Identifier
"""Where rows are staged: the name of a temporary table of this session, or the qualified name of a shadow."""


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of the target that is written. fixed: GENERATED ALWAYS AS IDENTITY, which no UPDATE may set."""

    name: str
    spelling: str
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A target table as the merge needs it.

    columns: those that are written, in the order in which the source sends them. key: names; equality: the key
    index's own operator (schema, name) of each. extra: columns that only the target has. soft: deletes set _deleted_at.
    partitioned: rows are routed to partitions, which hides their system columns from RETURNING. has_unique_key: false
    where the target is partitioned by something else than the key, so that only an ordinary index finds its rows.
    """

    schema: str
    name: str
    columns: tuple[TargetColumn, ...]
    key: tuple[str, ...]
    equality: tuple[tuple[str, str], ...]
    extra: tuple[str, ...]
    soft: bool
    partitioned: bool
    has_unique_key: bool = True

    @property
    def table(self) -> sql.Identifier:
        """Return the qualified name."""
        return sql.Identifier(self.schema, self.name)

    @property
    def has_mark(self) -> bool:
        """Say whether rows may be marked as deleted, if only from an earlier time: one that is written is not."""
        return self.soft or DELETED_AT in self.extra


def staging_name(name: Place) -> sql.Identifier:
    """Return the qualified name of what rows are staged in."""
    return name if isinstance(name, sql.Identifier) else sql.Identifier("pg_temp", name)


def create_staging(
    target: Target,
    name: str,
    columns: Sequence[str],
    marks: Sequence[str] = (),
    *,
    numbers: Sequence[str] = (),
    lasting: bool = False,
) -> sql.Composed:
    """Return the statement that makes an empty staging table with the target's types.

    marks, numbers: extra columns, boolean and bigint.

    It goes with its transaction, or, lasting, is emptied by it.
    """
    picked: list[sql.Composable] = [sql.Identifier(column) for column in columns]
    picked += [sql.SQL("false AS {}").format(sql.Identifier(mark)) for mark in marks]
    picked += [sql.SQL("0::bigint AS {}").format(sql.Identifier(number)) for number in numbers]
    return sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT {} AS SELECT {} FROM {} WITH NO DATA").format(
        sql.Identifier(name), sql.SQL("DELETE ROWS" if lasting else "DROP"), _list(picked), target.table
    )


def create_shadow(target: Target, shadow: sql.Identifier) -> sql.Composed:
    """Return the statement that makes an empty staging table for every session to see.

    Nothing vacuums or analyzes it by itself: the load does what is needed, and drops it.
    """
    return sql.SQL(
        "CREATE UNLOGGED TABLE {} WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false)"
        " AS SELECT {} FROM {} WITH NO DATA"
    ).format(shadow, _names(_column_names(target)), target.table)


def drop_left(shadow: sql.Identifier) -> sql.Composed:
    """Return the statement that drops a shadow if it is there."""
    return sql.SQL("DROP TABLE IF EXISTS {}").format(shadow)


def stage_differing(target: Target, shadow: sql.Identifier, name: str) -> sql.Composed:
    """Return the statement that stages those rows of a shadow that the target lacks or holds otherwise.

    ON CONFLICT locks each row of the target before it finds that most are equal, and so writes to every page and to the
    WAL. This reads, and may do so in parallel, which no statement over a temporary table may.
    """
    return sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} AS s WHERE {}").format(
        sql.Identifier(name), _qualified("s", _column_names(target)), shadow, _unlike_target(target)
    )


def count_unlike(target: Target, shadow: sql.Identifier, percent: float) -> sql.Composed:
    """Return (rows, differing) of a sample of a shadow: rows that the target lacks or holds otherwise."""
    return sql.SQL(
        "SELECT count(*) AS rows, count(*) FILTER (WHERE {}) AS differing FROM {} AS s TABLESAMPLE SYSTEM ({})"
    ).format(_unlike_target(target), shadow, sql.Literal(percent))


def _unlike_target(target: Target) -> sql.Composed:
    return sql.SQL("NOT EXISTS (SELECT FROM {} AS t WHERE {} AND NOT {})").format(
        target.table, same_key(target, "s"), _differs(target, "s")
    )


def count_staged(staging: Place) -> sql.Composed:
    """Return how many rows are staged."""
    return sql.SQL("SELECT count(*) AS rows FROM {}").format(staging_name(staging))


def drop_staging(*names: Place) -> sql.Composed:
    """Return the statement that drops staging tables before their transaction ends."""
    return sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(map(staging_name, names)))


def copy_into(table: sql.Identifier, columns: Sequence[str], *, binary: bool, freeze: bool = False) -> sql.Composed:
    """Return the COPY ... FROM STDIN. freeze: only for a table that this very transaction created."""
    names = sql.SQL(" ({})").format(_names(columns)) if columns else sql.SQL("")
    options = [sql.SQL("FORMAT binary" if binary else "FORMAT text")]
    if freeze:
        options.append(sql.SQL("FREEZE"))
    return sql.SQL("COPY {}{} FROM STDIN ({})").format(table, names, _list(options))


def hash_key(target: Target, alias: str, digest: Digest) -> sql.Composable:
    """Return the hash of the key of `t` or `s`."""
    spellings = {column.name: column.spelling for column in target.columns}
    return hash_columns([(sql.Identifier(alias, name), spellings[name]) for name in target.key], digest)


def hash_row(target: Target, alias: str, digest: Digest) -> sql.Composable:
    """Return the hash of all copied columns of `t` or `s`."""
    return hash_columns([(sql.Identifier(alias, c.name), c.spelling) for c in target.columns], digest)


def sum_target(target: Target, hashed: sql.Composable) -> sql.Composed:
    """Return count and hash sum of the target's live rows."""
    return sql.SQL("SELECT count(*) AS rows, coalesce(sum({}), 0)::text AS digest FROM {} AS t WHERE {}").format(
        hashed, target.table, live(target)
    )


def sum_target_buckets(
    target: Target, hashed: sql.Composable, bucket: sql.Composable, conditions: Iterable[sql.Composable | None] = ()
) -> sql.Composed:
    """Return (bucket, rows, digest) of the target's live rows that fulfil the conditions."""
    wheres = [live(target), *(condition for condition in conditions if condition is not None)]
    return sql.SQL(
        "SELECT {bucket} AS bucket, count(*) AS rows, sum({hashed})::text AS digest"
        " FROM {table} AS t WHERE {where} GROUP BY 1"
    ).format(bucket=bucket, hashed=hashed, table=target.table, where=sql.SQL(" AND ").join(wheres))


def count_new(target: Target, staging: Place) -> sql.Composed:
    """Return how many staged keys are no live row of the target yet."""
    return sql.SQL("SELECT count(*) AS rows FROM {} AS s WHERE {}").format(
        staging_name(staging), _absent_from_target(target)
    )


def count_missed(target: Target, staging: Place, mark: str | None) -> sql.Composed:
    """Return how many staged rows the target lacks or holds otherwise; mark: only rows where it is false."""
    unmarked = sql.SQL("NOT s.{}").format(sql.Identifier(mark)) if mark else sql.SQL("true")
    return sql.SQL(
        "SELECT count(*) AS rows FROM {staging} AS s LEFT JOIN {table} AS t ON {same}"
        " WHERE {unmarked} AND ({absent} OR {differs})"
    ).format(
        staging=staging_name(staging),
        table=target.table,
        same=same_key(target, "s"),
        unmarked=unmarked,
        absent=sql.SQL("t.{} IS NULL").format(sql.Identifier(target.key[0])),
        differs=_differs(target, "s"),
    )


def count_vanished(target: Target, keys: Place, only: sql.Composable | None) -> sql.Composed:
    """Return how many live rows of the target are not among the keys; only: a condition on `t`."""
    return sql.SQL("SELECT count(*) AS rows FROM {} AS t WHERE {}").format(target.table, _vanished(target, keys, only))


def delete_vanished(target: Target, keys: Place, only: sql.Composable | None) -> sql.Composed:
    """Return the statement that deletes them, or marks them as deleted."""
    condition = _vanished(target, keys, only)
    if target.soft:
        return sql.SQL("UPDATE {} AS t SET {} = now() WHERE {}").format(
            target.table, sql.Identifier(DELETED_AT), condition
        )
    return sql.SQL("DELETE FROM {} AS t WHERE {}").format(target.table, condition)


def upsert(target: Target, staging: Place) -> sql.Composed:
    """Return the statement that inserts new rows and rewrites those that differ in any byte.

    Equal rows are left alone by record_image_ne: IS DISTINCT FROM has no operator for json and point, and takes 1.0
    and 1.00, 0 and -0 as equal (PostgreSQL documentation, 9.25.6).
    """
    written = [column.name for column in target.columns if not column.fixed]
    sets = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in written]
    if target.has_mark:
        sets.append(sql.SQL("{} = NULL").format(sql.Identifier(DELETED_AT)))
    action: sql.Composable = (
        sql.SQL("UPDATE SET {} WHERE {}").format(_list(sets), _differs(target, "excluded"))
        if sets
        else sql.SQL("NOTHING")
    )
    return sql.SQL(
        "INSERT INTO {} AS t ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s ON CONFLICT ({}) DO {}"
    ).format(
        target.table,
        _names(_column_names(target)),
        _qualified("s", _column_names(target)),
        staging_name(staging),
        _names(target.key),
        action,
    )


def count_upsert(target: Target, staging: Place) -> sql.Composed:
    """Return the upsert as a query for (written, inserted) rows. A partitioned table cannot tell xmax: use `upsert`."""
    return sql.SQL(
        "WITH w AS ({} RETURNING t.xmax = '0'::xid AS is_new)"
        " SELECT count(*) AS written, count(*) FILTER (WHERE is_new) AS inserted FROM w"
    ).format(upsert(target, staging))


def update_matched(target: Target, staging: Place) -> sql.Composed:
    """Return the statement that rewrites rows that differ, for a key without unique index: some change partitions."""
    written = [column.name for column in target.columns if not column.fixed]
    sets = [sql.SQL("{0} = s.{0}").format(sql.Identifier(name)) for name in written]
    if target.has_mark:
        sets.append(sql.SQL("{} = NULL").format(sql.Identifier(DELETED_AT)))
    return sql.SQL("UPDATE {} AS t SET {} FROM {} AS s WHERE {} AND {}").format(
        target.table, _list(sets), staging_name(staging), same_key(target, "s"), _differs(target, "s")
    )


def insert_unmatched(target: Target, staging: Place) -> sql.Composed:
    """Return the statement that inserts the rows whose key no row of the target has, deleted ones neither."""
    return sql.SQL(
        "INSERT INTO {0} ({1}) OVERRIDING SYSTEM VALUE SELECT {2} FROM {3} AS s"
        " WHERE NOT EXISTS (SELECT FROM {0} AS t WHERE {4})"
    ).format(
        target.table,
        _names(_column_names(target)),
        _qualified("s", _column_names(target)),
        staging_name(staging),
        same_key(target, "s"),
    )


def count_ambiguous(target: Target, staging: Place) -> sql.Composed:
    """Return how many staged keys several rows of the target have."""
    return sql.SQL(
        "SELECT count(*) AS rows FROM (SELECT FROM {} AS t JOIN {} AS s ON {} GROUP BY {} HAVING count(*) > 1) AS x"
    ).format(target.table, staging_name(staging), same_key(target, "s"), _qualified("t", target.key))


def count_repeated(table: Place, key: Sequence[str]) -> sql.Composed:
    """Return how many keys several rows of a table have. table: a staging table, or the target's qualified name."""
    return sql.SQL("SELECT count(*) AS rows FROM (SELECT FROM {} AS x GROUP BY {} HAVING count(*) > 1) AS y").format(
        staging_name(table), _qualified("x", key)
    )


def keep_extra(target: Target, staging: Place, kept: str) -> sql.Composed:
    """Return the statement that sets aside the rows an exchange is about to replace, with what only the target has."""
    return sql.SQL(
        "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} AS t JOIN {} AS s ON {} WHERE {}"
    ).format(
        sql.Identifier(kept),
        _qualified("t", [*target.key, *target.extra]),
        target.table,
        staging_name(staging),
        same_key(target, "s"),
        _differs(target, "s"),
    )


def delete_kept(target: Target, kept: str) -> sql.Composed:
    """Return the statement that deletes the rows set aside."""
    return sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE {}").format(
        target.table, staging_name(kept), same_key(target, "s")
    )


def insert_kept(target: Target, staging: Place, kept: str) -> sql.Composed:
    """Return the statement that puts their new versions in, with the target's own columns carried over."""
    extra = [name for name in target.extra if name != DELETED_AT]
    same = same_columns(target.key, target.equality, "t", "s")
    return sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s JOIN {} AS t ON {}").format(
        target.table,
        _names([*_column_names(target), *extra]),
        _list([_qualified("s", _column_names(target)), *([_qualified("t", extra)] if extra else [])]),
        staging_name(staging),
        staging_name(kept),
        same,
    )


def insert_plain(target: Target, staging: str) -> sql.Composed:
    """Return the statement that inserts the staged rows that a target without key lacks, as often as it lacks them."""
    names = _column_names(target)
    # Numbers instead of names: a column may have any name, those of the two columns ahead of it too.
    numbers = [sql.Identifier(str(number)) for number in range(len(names))]
    return sql.SQL(
        "WITH s (image, number{kept}) AS ({numbered_s}), t (image, number) AS ({numbered_t})"
        " INSERT INTO {table}{into} OVERRIDING SYSTEM VALUE SELECT {picked} FROM s"
        " WHERE NOT EXISTS (SELECT FROM t WHERE t.image = s.image AND t.number = s.number)"
    ).format(
        kept=sql.SQL("").join(sql.SQL(", {}").format(number) for number in numbers),
        numbered_s=_numbered(
            "s", staging_name(staging), names, sql.SQL("true"), [_qualified("s", names)] if names else []
        ),
        numbered_t=_numbered("t", target.table, names, live(target)),
        table=target.table,
        into=sql.SQL(" ({})").format(_names(names)) if names else sql.SQL(""),
        picked=_list(sql.SQL("s.{}").format(number) for number in numbers),
    )


def delete_plain(target: Target, staging: str) -> sql.Composed:
    """Return the statement that takes from a target without key the rows that staging lacks, as often as it does."""
    names = _column_names(target)
    surplus = sql.SQL(
        "WITH s (image, number) AS ({numbered_s}), x (image, number, place, leaf) AS ({numbered_t}),"
        " gone AS (SELECT x.place, x.leaf FROM x"
        " WHERE NOT EXISTS (SELECT FROM s WHERE s.image = x.image AND s.number = x.number))"
    ).format(
        numbered_s=_numbered("s", staging_name(staging), names, sql.SQL("true")),
        numbered_t=_numbered("t", target.table, names, live(target), [sql.SQL("t.ctid, t.tableoid")]),
    )
    if target.soft:
        act = sql.SQL(" UPDATE {} AS t SET {} = now() FROM gone WHERE t.ctid = gone.place AND t.tableoid = gone.leaf")
        return surplus + act.format(target.table, sql.Identifier(DELETED_AT))
    act = sql.SQL(" DELETE FROM {} AS t USING gone WHERE t.ctid = gone.place AND t.tableoid = gone.leaf")
    return surplus + act.format(target.table)


def _numbered(
    alias: str,
    table: sql.Identifier,
    names: Sequence[str],
    condition: sql.Composable,
    further: Sequence[sql.Composable] = (),
) -> sql.Composed:
    # The image of a row as text, then which of the equal ones it is: they are numbered 1, 2, 3 on either side.
    image = sql.SQL("row({})::text").format(_qualified(alias, names) if names else sql.SQL(""))
    number = sql.SQL('row_number() OVER (PARTITION BY {} COLLATE "C")').format(image)
    return sql.SQL("SELECT {} FROM {} AS {} WHERE {}").format(
        _list([image, number, *further]), table, sql.Identifier(alias), condition
    )


def _column_names(target: Target) -> list[str]:
    return [column.name for column in target.columns]


def live(target: Target) -> sql.Composable:
    return sql.SQL("t.{} IS NULL").format(sql.Identifier(DELETED_AT)) if target.soft else sql.SQL("true")


def same_columns(
    key: Sequence[str],
    equality: Sequence[tuple[str, str]],
    left: str,
    right: str,
    *,
    right_names: Sequence[str] | None = None,
) -> sql.Composable:
    """Return the condition that two rows have the same key, by the key index's own operators."""
    pairs = [
        sql.SQL("{} OPERATOR({}.{}) {}").format(
            sql.Identifier(left, name), sql.Identifier(schema), _operator(operator), sql.Identifier(right, other)
        )
        for name, other, (schema, operator) in zip(key, right_names or key, equality, strict=True)
    ]
    return sql.SQL(" AND ").join(pairs)


def same_value(left: sql.Composable, equality: tuple[str, str], right: sql.Composable) -> sql.Composed:
    """Return the condition that two values are the same by an operator (schema, name)."""
    schema, operator = equality
    return sql.SQL("{} OPERATOR({}.{}) {}").format(left, sql.Identifier(schema), _operator(operator), right)


_OPERATOR_CHARACTERS = frozenset("+-*/<>=~!@#%^&|`?")


def _operator(name: str) -> sql.SQL:
    # Operators cannot be quoted: let through only the characters that CREATE OPERATOR allows.
    if not name or not _OPERATOR_CHARACTERS.issuperset(name):
        raise ValueError("not an operator's name")
    return sql.SQL(name)


def same_key(target: Target, alias: str) -> sql.Composable:
    """Return the condition that a row of the target has the key of another row."""
    return same_columns(target.key, target.equality, "t", alias)


def _absent_from_target(target: Target) -> sql.Composed:
    return sql.SQL("NOT EXISTS (SELECT FROM {} AS t WHERE {} AND {})").format(
        target.table, same_key(target, "s"), live(target)
    )


def _vanished(target: Target, keys: Place, only: sql.Composable | None) -> sql.Composed:
    condition = sql.SQL("{} AND NOT EXISTS (SELECT FROM {} AS s WHERE {})").format(
        live(target), staging_name(keys), same_key(target, "s")
    )
    return sql.SQL("{} AND ").format(only) + condition if only is not None else condition


def _differs(target: Target, alias: str) -> sql.Composed:
    names = [column.name for column in target.columns if not column.fixed]
    image = sql.SQL("row({})::record OPERATOR(pg_catalog.*<>) row({})::record").format(
        _qualified("t", names), _qualified(alias, names)
    )
    if target.has_mark:
        return sql.SQL("({} OR t.{} IS NOT NULL)").format(image, sql.Identifier(DELETED_AT))
    return image


def _names(names: Iterable[str]) -> sql.Composed:
    return _list(sql.Identifier(name) for name in names)


def _qualified(alias: str, names: Iterable[str]) -> sql.Composed:
    return _list(sql.Identifier(alias, name) for name in names)


def _list(items: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(items)
