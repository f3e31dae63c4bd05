"""Hashes of keys and rows as SQL expressions, equal on two servers for equal values.

A row's hash is the exclusive or of its columns' hashes, each seeded with the column's place; a set of rows is hashed by
the sum of theirs, so order does not matter and a multiset is told from a set. NULL has a value of its own.

`FAST` uses the functions behind hash partitioning, whose results PostgreSQL keeps across major versions; they see
bytes, so both databases must be UTF-8 and of one byte order: `probe` on both servers tells. `PORTABLE` uses md5 over
`convert_to(..., 'UTF8')` and holds everywhere.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence

from psycopg import sql

_INTEGERS = frozenset({"smallint", "integer", "bigint"})
_NULL_STEP = 0x9E3779B97F4A7C15


class Digest(enum.Enum):
    """Which functions hash."""

    FAST = "fast"
    PORTABLE = "portable"


def hash_columns(values: Sequence[tuple[sql.Composable, str]], digest: Digest) -> sql.Composable:
    """Return the hash (bigint, never NULL) of columns given as (expression, type of the target's column)."""
    if not values:
        return sql.SQL("0::bigint")
    hashes = [
        sql.SQL("coalesce({}, {}::bigint)").format(
            _hash_value(expression, spelling, seed, digest), sql.Literal(_null_hash(seed))
        )
        for seed, (expression, spelling) in enumerate(values, 1)
    ]
    return sql.SQL(" # ").join(hashes)


def _hash_value(expression: sql.Composable, spelling: str, seed: int, digest: Digest) -> sql.Composable:
    if spelling == "bpchar":
        # Its cast to text drops trailing blanks, which its output function and everybody who reads it keep.
        expression = sql.SQL("(CASE WHEN {0} IS NOT NULL THEN format('%s', {0}) END)").format(expression)
    if digest is Digest.PORTABLE:
        return sql.SQL(
            "('x' || substr(md5({seed}::bytea || convert_to(({value})::text, 'UTF8')), 1, 16))::bit(64)::bigint"
        ).format(seed=sql.Literal(f"{seed}:"), value=expression)
    if spelling in _INTEGERS:
        return sql.SQL("hashint8extended(({})::bigint, {})").format(expression, sql.Literal(seed))
    return sql.SQL('hashtextextended(({})::text COLLATE "C", {})').format(expression, sql.Literal(seed))


def _null_hash(seed: int) -> int:
    value = (seed * _NULL_STEP) % (1 << 64)
    return value - (1 << 64) if value >= 1 << 63 else value


def bucket_of(hashed: sql.Composable, buckets: int) -> sql.Composable:
    """Return the number of the bucket (a power of two) that a hash falls into."""
    return sql.SQL("(({}) & {})::int").format(hashed, sql.Literal(buckets - 1))


def count_buckets(rows: int) -> int:
    """Return how many buckets to compare `rows` in: about 500 rows each, at most 65,536."""
    buckets = 16
    while buckets < 65536 and buckets * 500 < rows:
        buckets *= 2
    return buckets


SLOTS = 64
"""Shares of a table, by the hash of the key: what a nightly run proves in turn, and the first look of a comparison."""
BUCKETS = 65536
"""The second look: about 15 rows each of a million."""


def in_slots(hashed: sql.Composable, slots: Collection[int]) -> sql.Composable | None:
    """Return the condition that a hash falls into one of the slots; None when they are all."""
    if len(slots) == SLOTS:
        return None
    return sql.SQL("{} = ANY ({}::int[])").format(bucket_of(hashed, SLOTS), sql.Literal(sorted(slots)))


def in_pages(pages: tuple[int, int | None]) -> sql.Composable:
    """Return the condition that a row lies in pages (first, end) of its heap, of each where there are several.

    end: None for all that follow, so that a heap may be larger than it was thought to be.
    """
    first, end = pages
    condition = sql.SQL("ctid >= {}::tid").format(sql.Literal(f"({first},0)"))
    if end is not None:
        condition += sql.SQL(" AND ctid < {}::tid").format(sql.Literal(f"({end},0)"))
    return condition


def in_buckets(hashed: sql.Composable, buckets: int, chosen: Sequence[int]) -> sql.Composable | None:
    """Return the condition that a hash falls into one of the chosen buckets; None when that is most of them."""
    if len(chosen) * 2 > buckets:
        return None
    return sql.SQL("{} = ANY ({}::int[])").format(bucket_of(hashed, buckets), sql.Literal(list(chosen)))
