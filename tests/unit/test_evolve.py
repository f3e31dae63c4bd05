"""Which changes of a column's type can be followed without losing anything."""

from __future__ import annotations

import pytest

from replicator.apply.evolve import accepts, order_moves, widens

WIDER = [
    ("smallint", "integer"),
    ("integer", "bigint"),
    ("integer", "numeric"),
    ("integer", "numeric(10,0)"),
    ("real", "double precision"),
    ("character varying(10)", "character varying(20)"),
    ("character varying(10)", "character varying"),
    ("character varying(10)", "text"),
    ("bigint", "text"),
    ("numeric(10,2)", "numeric(12,2)"),
    ("numeric(10,2)", "numeric(12,4)"),
    ("numeric(10,2)", "numeric"),
    ("timestamp(3) with time zone", "timestamp with time zone"),
    ("integer[]", "bigint[]"),
    ("bit varying(3)", "bit varying(5)"),
]
NARROWER = [
    *((new, old) for old, new in WIDER),
    ("numeric(10,2)", "numeric(10,4)"),
    ("bigint", "numeric(10,0)"),
    ("double precision", "numeric"),
    ("timestamp without time zone", "timestamp with time zone"),
    ("character(3)", "character(5)"),
    ("bit(3)", "bit(5)"),
    ("text", "integer"),
    ("integer[]", "integer"),
    ("jsonb", "json"),
]


@pytest.mark.parametrize(("old", "new"), WIDER)
def test_a_widened_column_is_followed(old: str, new: str) -> None:
    assert widens(old, new)
    assert accepts(new, old)


@pytest.mark.parametrize(("old", "new"), NARROWER)
def test_a_narrowed_or_rewritten_column_is_not(old: str, new: str) -> None:
    assert not widens(old, new)


def test_a_text_column_takes_the_text_of_anything() -> None:
    assert accepts("text", "integer[]")
    assert accepts("text", '"public"."point3d"')


@pytest.mark.parametrize(
    "moves",
    [
        {"a": "b"},
        {"a": "b", "b": "c"},
        {"b": "c", "a": "b"},
        {"a": "b", "b": "a"},
        {"a": "b", "b": "c", "c": "a", "d": "replicator_0"},
        {"replicator_0": "a", "a": "replicator_0"},
    ],
    ids=str,
)
def test_columns_are_renamed_in_an_order_in_which_each_new_name_is_free(moves: dict[str, str]) -> None:
    names = {name: name for name in ("a", "b", "c", "d", "replicator_0") if name in moves or name not in moves.values()}
    for old, new in order_moves(moves, list(names)):
        assert new not in names
        names[new] = names.pop(old)
    assert {was: now for now, was in names.items() if was != now} == moves
