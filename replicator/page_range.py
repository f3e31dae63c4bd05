"""Ranges of pages in which a heap is read part by part. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import pairwise

Pages = tuple[int, int | None]
"""First page, and the one after the last; None for all that follow."""

PAGE_BYTES = 8192


def divide_pages(heaps: Iterable[int], most_bytes: int) -> list[Pages]:
    """Return the ranges that together hold every page of heaps of so many bytes, each range of about `most_bytes`.

    A range is that of each heap, as a condition on a partitioned table's `ctid` is: where many heaps reach, it is
    narrow. The last one has no end, for a heap may be larger than it was thought to be.
    """
    sizes = sorted(-(-heap_bytes // PAGE_BYTES) for heap_bytes in heaps)
    firsts, last = [0], sizes[-1] if sizes else 0
    while True:
        reaching = len(sizes) - bisect_right(sizes, firsts[-1])
        following = firsts[-1] + max(1, most_bytes // PAGE_BYTES // max(1, reaching))
        if following >= last:
            return [*pairwise(firsts), (firsts[-1], None)]
        firsts.append(following)
