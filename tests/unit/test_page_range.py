"""Ranges of pages hold every page of every heap once, and none is much larger than asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.page_range import PAGE_BYTES, divide_pages

HEAPS = st.lists(st.integers(min_value=0, max_value=300), max_size=8)


@given(HEAPS, st.integers(min_value=1, max_value=50))
def test_every_page_is_in_one_range_and_ranges_are_of_one_size(heaps: list[int], most: int) -> None:
    ranges = divide_pages([pages * PAGE_BYTES for pages in heaps], most * PAGE_BYTES)
    ends = [end for _, end in ranges]
    assert [first for first, _ in ranges] == [0, *ends[:-1]]
    assert ends[-1] is None
    for first, end in ranges:
        sizes = [max(0, min(pages, pages if end is None else end) - first) for pages in heaps]
        assert sum(sizes) <= max(most, sum(pages > first for pages in heaps))


def test_a_large_heap_is_cut_into_as_many_ranges_as_it_takes() -> None:
    assert divide_pages([10 * PAGE_BYTES], 4 * PAGE_BYTES) == [(0, 4), (4, 8), (8, None)]
    assert divide_pages([6 * PAGE_BYTES, 3 * PAGE_BYTES], 4 * PAGE_BYTES) == [(0, 2), (2, 4), (4, None)]
    assert divide_pages([], PAGE_BYTES) == [(0, None)]
