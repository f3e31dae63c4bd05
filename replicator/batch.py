"""What travels between a capture and the loader, and the figures of one table's batch."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from replicator.digest import Digest

DUE_MARK = "replicator due"
VERSION = "replicator version"


@dataclass(frozen=True, slots=True)
class Totals:
    """Number of rows and the sum of their hashes: equal totals mean equal multisets."""

    rows: int = 0
    digest: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.rows + other.rows, self.digest + other.digest)


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows must arrive: the target decides.

    binary: COPY's binary format, else text. spellings: the target's type of each output, by target name. casts: outputs
    whose target type differs, with that type, so that hashes are taken over what the target will hold.
    """

    binary: bool
    spellings: dict[str, str]
    casts: dict[str, str]
    digest: Digest


class TableSource(Protocol):
    """One table in one snapshot of the source.

    Every iterator yields COPY data in large pieces, in the columns' order. `by_row`: hashes of rows, else of keys.
    """

    def read_changes(self, shape: Shape) -> Iterator[bytes]:
        """Yield the rows that may have changed; with the due mark as last column while an audit is on."""

    def read_all(self, shape: Shape) -> Iterator[bytes]:
        """Yield every row."""

    def count_rows(self) -> int:
        """Return how many rows there are."""

    def sum_rows(self, shape: Shape, *, by_row: bool) -> Totals:
        """Return the totals of the whole table."""

    @property
    def heap_bytes(self) -> int | None:
        """Return how large the table is on disk; None where its rows have no place in a heap."""

    def sum_buckets(
        self,
        shape: Shape,
        buckets: int,
        *,
        by_row: bool,
        slots: Collection[int] | None = None,
        pages: tuple[int, int | None] | None = None,
    ) -> dict[int, Totals]:
        """Return the totals of each bucket of keys that holds a row.

        slots: only keys of these; pages: only rows in these pages (first, end) of the heap.
        """

    def read_keys(self, shape: Shape) -> Iterator[bytes]:
        """Yield every key."""

    def read_bucket_keys(self, shape: Shape, buckets: int, chosen: Sequence[int]) -> Iterator[bytes]:
        """Yield the keys that fall into the chosen buckets of keys."""

    def read_bucket_rows(
        self, shape: Shape, buckets: int, chosen: Sequence[int], *, with_version: bool = False
    ) -> Iterator[bytes]:
        """Yield the rows whose keys fall into the chosen buckets.

        with_version: the xid that wrote each as last column.
        """


@dataclass
class Figures:
    """What one batch did; fills its `etl_control` row and its log line alike."""

    rows_extracted: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_unchanged: int = 0
    rows_deleted: int = 0
    rows_missed_before: int = 0
    rows_quarantined: int = 0
    bytes_copied: int = 0
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent_s = time.monotonic() - started
            self.phases[name] = round(self.phases.get(name, 0.0) + spent_s, 4)

    def restore(self, before: Figures) -> None:
        """Take back what was counted since `before` was copied: it was rolled back."""
        for name, count in before.counts().items():
            setattr(self, name, count)

    def counts(self) -> dict[str, int]:
        """Return the counters by the names of `etl_control`'s columns."""
        return {
            "rows_extracted": self.rows_extracted,
            "rows_inserted": self.rows_inserted,
            "rows_updated": self.rows_updated,
            "rows_unchanged": self.rows_unchanged,
            "rows_deleted": self.rows_deleted,
            "rows_missed_before": self.rows_missed_before,
            "rows_quarantined": self.rows_quarantined,
            "bytes_copied": self.bytes_copied,
        }
