"""How the dashboard writes values and draws charts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from replicator.serve.chart import Point, draw_chart
from replicator.serve.phrase import describe_columns, write_name, write_number, write_size, write_span


def test_what_cannot_be_seen_in_a_name_is_written_out() -> None:
    assert write_name("a\u202eb\n\x00c") == "a\\u202eb\\u000a\\u0000c"
    assert write_name("Größe 🐘") == "Größe 🐘"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (59.9, "60 s"),
        (61, "1 min"),
        (3600, "1 h"),
        (3700, "1 h 1 min"),
        (200000, "2 d 7 h"),
    ],
)
def test_a_span_has_at_most_two_units(seconds: float | None, text: str) -> None:
    assert write_span(seconds) == text


def test_numbers_and_sizes_are_written_for_people() -> None:
    assert (write_number(1234567), write_size(999), write_size(1500), write_size(2.5e12)) == (
        "1,234,567",
        "999 B",
        "1.5 kB",
        "2.5 TB",
    )


def test_changes_of_columns_are_told_by_their_number() -> None:
    before = [[1, "id", "id", "integer"], [2, "a", "a", "text"], [3, "b", "b", "integer"]]
    after = [[1, "id", "id", "bigint"], [3, "c", "c", "integer"], [4, "d", "d", "<b>"]]
    assert sorted(describe_columns(before, after)) == [
        "a was dropped",
        "b was renamed to c",
        "d <b> was added",
        "id changed from integer to bigint",
    ]


def test_a_chart_has_a_dot_for_each_point_and_tells_itself_to_who_cannot_see_it() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    points = [Point(start + timedelta(days=n), value) for n, value in enumerate((0, 5, 2))]
    drawing = draw_chart('<script>"', points, write_number)
    assert drawing.count("<circle") == 3
    assert "3 points, the last 2, the highest 5" in drawing
    assert "<script>" not in drawing
    assert "<svg" not in draw_chart("empty", [], write_number)
    assert "nan" not in draw_chart("one", points[:1], write_number)
