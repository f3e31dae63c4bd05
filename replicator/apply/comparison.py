"""Compares a target table with its source by hashes, and names the rows that differ.

First the sums of 64 slots of keys on both sides at once, page range by page range; then, of the slots that differ,
those of 65,536 buckets; then the rows of the buckets that differ are staged and compared byte by byte.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from replicator.apply import merge
from replicator.apply.difference import EXTRA, Key, find_differences
from replicator.apply.merge import Target
from replicator.batch import VERSION, Shape, TableSource, Totals
from replicator.db import Connection
from replicator.digest import BUCKETS, SLOTS, bucket_of, in_buckets, in_pages, in_slots
from replicator.page_range import PAGE_BYTES, Pages
from replicator.relation import Relation
from replicator.strategy import MOST_COLUMNS

_PIECE_BYTES = 64 << 20
_LEAST_PIECE_BYTES = 1 << 20
_FETCHED_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Finding:
    """One row that differs. theirs, ours: hashes of the source's and the target's; columns: those that differ.

    versions: the xids that wrote the two rows, 0 where there is none or it was not asked for.

    values: (source's, target's) as text, in the order of the target's columns, where they were asked for.
    """

    kind: str
    key: Key
    columns: tuple[str, ...] = ()
    theirs: int | None = None
    ours: int | None = None
    versions: tuple[int, int] = (0, 0)
    values: tuple[list[str | None] | None, list[str | None] | None] = (None, None)


@dataclass(frozen=True, slots=True)
class Compared:
    """What the sums of hashes tell. buckets: the numbers of those that differ."""

    rows_source: int
    rows_target: int
    buckets: tuple[int, ...]


class Pace:
    """How fast a comparison may read, and who is told how far it is.

    bytes_per_s: of each side's heap, None without limit. told: called with the bytes read and those to be read. stop:
    once it is set, nothing is waited for.
    """

    def __init__(
        self,
        bytes_per_s: float | None = None,
        told: Callable[[int, int], None] = lambda _done, _all: None,
        stop: threading.Event | None = None,
    ) -> None:
        self.bytes_per_s, self.told, self.stop = bytes_per_s, told, stop or threading.Event()

    def divide(self, heap_bytes: int | None) -> list[Pages | None]:
        """Return the page ranges in which a heap is read; [None] for what has no pages."""
        if heap_bytes is None:
            return [None]
        limit = self.bytes_per_s or float(_PIECE_BYTES)
        step = int(max(_LEAST_PIECE_BYTES, min(_PIECE_BYTES, limit))) // PAGE_BYTES
        firsts = list(range(0, max(1, heap_bytes // PAGE_BYTES), step))
        return [*itertools.pairwise(firsts), (firsts[-1], None)]

    def walk(self, heap_bytes: int | None, *, tells: bool) -> Iterator[Pages | None]:
        """Yield the ranges, waiting after each for as long as the limit asks."""
        pieces = self.divide(heap_bytes)
        size = (heap_bytes or 0) / len(pieces)
        for number, piece in enumerate(pieces, 1):
            started = time.monotonic()
            yield piece
            if tells:
                self.told(int(size * number), heap_bytes or 0)
            if self.bytes_per_s is not None and number < len(pieces):
                self.stop.wait(max(0.0, size / self.bytes_per_s - (time.monotonic() - started)))


class Comparison:
    """The comparison of one keyed table in one transaction of the target, which must hold still.

    staging: the name of the temporary table for the rows of buckets that differ. with_version: also tell of each row
    which transaction wrote it.
    """

    def __init__(
        self,
        connection: Connection,
        target: Target,
        shape: Shape,
        staging: str,
        heap_bytes: int | None,
        pace: Pace,
        *,
        with_version: bool = False,
    ) -> None:
        self.with_version = with_version and has_room(target)
        self.connection, self.target, self.shape, self.staging = connection, target, shape, staging
        self.heap_bytes, self.pace = heap_bytes, pace
        self._key = merge.hash_key(target, "t", shape.digest)
        self._row = merge.hash_row(target, "t", shape.digest)

    def compare(self, source: TableSource, slots: Iterable[int] = range(SLOTS)) -> Compared:
        """Sum both sides, and descend where they differ. slots: only keys of these."""
        chosen = sorted(slots)
        theirs, ours = self._sum(source, SLOTS, chosen)
        uneven = _uneven(theirs, ours)
        buckets: list[int] = []
        if uneven:
            buckets = _uneven(*self._sum(source, BUCKETS, uneven))
        return Compared(
            sum(total.rows for total in theirs.values()), sum(total.rows for total in ours.values()), tuple(buckets)
        )

    def _sum(self, source: TableSource, buckets: int, slots: list[int]) -> tuple[dict[int, Totals], dict[int, Totals]]:
        """Return the totals by bucket of both sides, which sum at the same time."""
        with ThreadPoolExecutor(1) as beside:
            summing = beside.submit(self._sum_source, source, buckets, slots)
            try:
                ours = self._sum_target(buckets, slots)
            except psycopg.Error:
                summing.cancel()
                raise
            return summing.result(), ours

    def _sum_source(self, source: TableSource, buckets: int, slots: list[int]) -> dict[int, Totals]:
        pieces = self.pace.walk(source.heap_bytes, tells=True)
        return _add(source.sum_buckets(self.shape, buckets, by_row=True, slots=slots, pages=pages) for pages in pieces)

    def _sum_target(self, buckets: int, slots: list[int]) -> dict[int, Totals]:
        only = in_slots(self._key, slots)
        return _add(
            self._totals(buckets, [only, None if pages is None else in_pages(pages)])
            for pages in self.pace.walk(self.heap_bytes, tells=False)
        )

    def _totals(self, buckets: int, conditions: list[sql.Composable | None]) -> dict[int, Totals]:
        query = merge.sum_target_buckets(self.target, self._row, bucket_of(self._key, buckets), conditions)
        rows = self.connection.execute(query).fetchall()
        return {row["bucket"]: Totals(row["rows"], int(row["digest"])) for row in rows}

    def stage(self, source: TableSource, buckets: Iterable[int]) -> int:
        """Bring the source's rows of the buckets into the staging table, which is made here; return their number."""
        names = [column.name for column in self.target.columns]
        numbers = [VERSION] if self.with_version else []
        self.connection.execute(merge.create_staging(self.target, self.staging, names, numbers=numbers))
        into = merge.copy_into(merge.staging_name(self.staging), [*names, *numbers], binary=self.shape.binary)
        with self.connection.cursor() as cursor:
            with cursor.copy(into) as copy:
                pieces = source.read_bucket_rows(self.shape, BUCKETS, list(buckets), with_version=self.with_version)
                for piece in pieces:
                    copy.write(piece)
            return cursor.rowcount

    def find(
        self,
        buckets: Iterable[int],
        *,
        with_values: bool = False,
        with_extra: bool = True,
        most: int | None = None,
    ) -> tuple[list[Finding], Counter[str]]:
        """Return the rows in which the staged buckets differ from the target's, and how many more there are, by kind.

        with_extra: also those of the target alone. most: how many are returned, None for all.
        """
        query = find_differences(
            self.target,
            self.staging,
            self.shape.digest,
            self.among(buckets),
            with_values=with_values,
            with_version=self.with_version,
        )
        found: list[Finding] = []
        more: Counter[str] = Counter()
        # A cursor of the server: millions of rows may differ, and only so many are kept here.
        with self.connection.cursor(f"{self.staging}_cursor") as cursor:
            cursor.itersize = _FETCHED_ROWS
            for row in cursor.execute(query):
                if row["kind"] == EXTRA and not with_extra:
                    continue
                if most is not None and len(found) >= most:
                    more[row["kind"]] += 1
                else:
                    found.append(_finding(row))
        return found, more

    def among(self, buckets: Iterable[int]) -> sql.Composable | None:
        """Return the condition on `t` that its key is in one of these buckets; None when they are most of them."""
        return in_buckets(self._key, BUCKETS, list(buckets))


def has_room(target: Target) -> bool:
    """Say whether staging can hold the version of a row beside its columns."""
    return len(target.columns) < MOST_COLUMNS and VERSION not in {column.name for column in target.columns}


def find_heap_bytes(relation: Relation) -> int | None:
    """Return how large a table is on disk; None where its rows have no place in a heap."""
    return relation.heap_bytes if relation.is_heap else None


def _finding(row: dict[str, Any]) -> Finding:
    return Finding(
        row["kind"],
        tuple(row["key"]),
        tuple(row["columns"] or ()),
        row["theirs"],
        row["ours"],
        tuple(row["versions"]),
        (row["source_values"], row["target_values"]),
    )


def _uneven(theirs: dict[int, Totals], ours: dict[int, Totals]) -> list[int]:
    return sorted(bucket for bucket in theirs.keys() | ours.keys() if theirs.get(bucket) != ours.get(bucket))


def _add(parts: Iterable[dict[int, Totals]]) -> dict[int, Totals]:
    total: dict[int, Totals] = {}
    for part in parts:
        for bucket, more in part.items():
            total[bucket] = total.get(bucket, Totals()) + more
    return total
