"""Pages over a long history."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.benchmarks.pages import NIGHTS, TABLES, fill_history, measure_pages
from tests.pair import Pair
from tests.serving import Serving, write_config

LIMIT_MS = 300


@pytest.mark.slow
def test_every_page_over_five_hundred_tables_and_a_hundred_thousand_batches_answers_at_once(
    pair: Pair, record_property: Callable[[str, object], None]
) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    write_config(pair)
    pair.run("sync")
    fill_history(pair)
    with Serving(pair).wait_ready() as serving:
        figures = measure_pages(serving)
    told = ", ".join(f"{name} {spent:.0f}" for name, spent in figures.items())
    record_property("measured", f"pages, {TABLES} tables, {TABLES * NIGHTS:,} batches, ms: {told}")
    assert {name: spent for name, spent in figures.items() if spent > LIMIT_MS} == {}
