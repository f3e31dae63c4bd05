"""Rules as text for the fingerprint, and foreign keys as an order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from replicator.apply.target import _parents_first
from replicator.config.table_setting import TableSettings
from replicator.rules import describe_rules, map_relation
from tests.unit.test_suggestion import TEXT, TIMESTAMPTZ, make_relation


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rename": {"id": 'odd "name"'}},
        {"exclude": ("100%",)},
        {"mask": {'a "b"': "null", "100%": "'x%' || \"100%\"", "updated_at": "hash"}},
        {"where": "id <> 'x' -- 5%"},
        {"nan_as_null": True, "empty_as_null": True},
    ],
)
def test_the_text_of_rules_is_the_select_that_they_make(settings: dict[str, Any]) -> None:
    """Fingerprints of earlier versions stay what they are: a table is not read again for another spelling."""
    relation = make_relation({"id": TEXT, 'a "b"': TEXT, "100%": TEXT, "updated_at": TIMESTAMPTZ})
    relation = replace(relation, schema='sch"ema', name="T able%")
    known = {name: value for name, value in settings.items() if name in TableSettings.model_fields}
    mapping = map_relation(relation, TableSettings(key=("id",), **known))
    assert describe_rules(mapping, None) == mapping.select_rows().as_string()


@pytest.mark.parametrize(
    ("ties", "expected"),
    [
        ([], [1, 2, 3]),
        ([(1, 2), (2, 3)], [3, 2, 1]),
        ([(1, 3), (2, 3)], [3, 1, 2]),
        ([(1, 2), (2, 1), (3, 1)], [1, 2, 3]),
        ([(1, 9)], [1, 2, 3]),
    ],
)
def test_parents_come_ahead_of_their_children_and_a_ring_in_the_order_of_numbers(
    ties: list[tuple[int, int]], expected: list[int]
) -> None:
    assert _parents_first({1, 2, 3}, ties) == expected


def test_thousands_of_tied_tables_are_ordered_at_once() -> None:
    ties = [(n, n // 2) for n in range(2, 6000)]
    ordered = _parents_first(set(range(1, 6000)), ties)
    places = {oid: place for place, oid in enumerate(ordered)}
    assert all(places[parent] < places[child] for child, parent in ties)
