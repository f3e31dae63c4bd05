"""Guesses of keys and watermarks."""

from __future__ import annotations

import pytest

from replicator.preflight.suggestion import suggest_key, suggest_watermark
from replicator.relation import MATVIEW, TABLE, VIEW, Column, Index, Relation, Type

TEXT, TIMESTAMPTZ, TIMESTAMP, DOMAIN = 25, 1184, 1114, 99999


def make_type(oid: int, name: str, base: int = 0) -> Type:
    schema = "public" if base else "pg_catalog"
    return Type(oid, schema, name, "d" if base else "b", None, 0, base, -1, (), binary=True)


TYPES = {
    TEXT: make_type(TEXT, "text"),
    TIMESTAMPTZ: make_type(TIMESTAMPTZ, "timestamptz"),
    TIMESTAMP: make_type(TIMESTAMP, "timestamp"),
    DOMAIN: make_type(DOMAIN, "moment", TIMESTAMPTZ),
}


def make_index(*columns: str, unique: bool = False, deferrable: bool = False, covers_all: bool = True) -> Index:
    return Index(
        columns=columns,
        unique=unique,
        primary=False,
        replica_identity=False,
        deferrable=deferrable,
        equality=(),
        name="_".join(columns),
        definition="",
        covers_all=covers_all,
    )


def make_relation(
    columns: dict[str, int], *indexes: Index, kind: str = TABLE, nullable: tuple[str, ...] = ()
) -> Relation:
    made = [
        Column(number, name, oid, -1, name not in nullable, "", "", None)
        for number, (name, oid) in enumerate(columns.items(), 1)
    ]
    return Relation(
        database=1,
        oid=1,
        schema="public",
        name="t",
        kind=kind,
        columns=tuple(made),
        indexes=indexes,
        members=(),
        types=TYPES,
        heap_bytes=0,
        estimated_rows=0,
        row_security=False,
        definition=None,
        persistence="p",
    )


@pytest.mark.parametrize(
    ("columns", "indexed", "expected"),
    [
        ({"id": TEXT, "created_at": TIMESTAMPTZ}, (), None),
        ({"updated_at": TEXT}, (), None),
        ({"updated_at": TIMESTAMPTZ}, (), "updated_at"),
        ({"updated_at": DOMAIN}, (), "updated_at"),
        ({"modified_at": TIMESTAMP, "updated_at": TIMESTAMP}, (), "updated_at"),
        ({"modified_at": TIMESTAMP, "updated_at": TIMESTAMP}, ("modified_at",), "modified_at"),
        ({"last_message_updated_at": TIMESTAMP, "updated": TIMESTAMP}, (), "updated"),
        (
            {"conversation_updated_at": TIMESTAMPTZ, "conversation_created_at": TIMESTAMPTZ},
            (),
            "conversation_updated_at",
        ),
        ({"UpdatedAt": TIMESTAMPTZ}, (), "UpdatedAt"),
        ({"outdated_at": TIMESTAMPTZ}, (), None),
    ],
)
def test_the_watermark_is_the_time_of_the_last_change(
    columns: dict[str, int], indexed: tuple[str, ...], expected: str | None
) -> None:
    relation = make_relation(columns, *(make_index(name) for name in indexed))
    assert suggest_watermark(relation) == expected


def test_a_key_is_the_smallest_unique_index_that_takes_no_null() -> None:
    columns = {"a": TEXT, "b": TEXT, "c": TEXT}
    both, c = make_index("a", "b", unique=True), make_index("c", unique=True)
    assert suggest_key(make_relation(columns, both, c)) == ("c",)
    assert suggest_key(make_relation(columns, both, c, nullable=("c",))) == ("a", "b")
    for useless in (
        make_index("c"),
        make_index("c", unique=True, deferrable=True),
        make_index("c", unique=True, covers_all=False),
    ):
        assert suggest_key(make_relation(columns, useless)) == ()


def test_a_view_is_guessed_by_the_names_of_its_columns() -> None:
    assert suggest_key(make_relation({"x": TEXT, "id": TEXT}, kind=VIEW)) == ("id",)
    assert suggest_key(make_relation({"conversation_id": TEXT, "x": TEXT}, kind=VIEW)) == ("conversation_id",)
    assert suggest_key(make_relation({"x": TEXT, "other_id": TEXT}, kind=VIEW)) == ()
    assert suggest_key(make_relation({}, kind=VIEW)) == ()
    assert suggest_key(make_relation({"id": TEXT}, kind=TABLE)) == ()


def test_a_materialized_view_has_no_not_null_to_ask_for() -> None:
    index = make_index("x", unique=True)
    assert suggest_key(make_relation({"x": TEXT, "id": TEXT}, index, kind=MATVIEW, nullable=("x", "id"))) == ("x",)
