"""Names of tables, patterns, and which entry wins."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.selection import (
    check_target,
    format_table_name,
    parse_pattern,
    parse_table_name,
    select_entry,
    target_name,
)

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63)


@dataclass(frozen=True)
class Line:
    name: str
    target: str | None = None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("public.t", ("public", "t")),
        ("t", ("public", "t")),
        (" Public.Conversations ", ("public", "conversations")),
        ('"Odd.Schema"."ta""ble"', ("Odd.Schema", 'ta"ble')),
        ('"T"', ("public", "T")),
        ("_a1.b$2", ("_a1", "b$2")),
        ("größe.ÄPFEL", ("größe", "Äpfel")),
        ('public."50%* off?"', ("public", "50%* off?")),
    ],
)
def test_a_name_is_read_as_sql_reads_it(text: str, expected: tuple[str, str]) -> None:
    assert parse_table_name(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a.b.c",
        "1a",
        "my-table",
        'a"b"',
        '"a',
        '""',
        "a b",
        "a;b",
        "public.*",
        "t?",
        '"\0"',
    ],
)
def test_what_names_no_table_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="should") as caught:
        parse_table_name(text)
    assert len(text) < 3 or text not in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (("public", "t"), "public.t"),
        (("Odd", "T"), '"Odd"."T"'),
        (("public", 'a"b'), 'public."a""b"'),
        (("public", "a.b"), 'public."a.b"'),
        (("public", "1a"), 'public."1a"'),
        (("public", "äpfel"), 'public."äpfel"'),
        (("public", '"x"; DROP TABLE etl_control; --'), 'public."""x""; DROP TABLE etl_control; --"'),
    ],
)
def test_a_name_is_quoted_only_when_needed(pair: tuple[str, str], text: str) -> None:
    assert format_table_name(*pair) == text


@given(NAMES, NAMES)
def test_every_name_survives_being_written_and_read(schema: str, name: str) -> None:
    assert parse_table_name(format_table_name(schema, name)) == (schema, name)


@given(NAMES, NAMES)
def test_a_written_name_matches_its_own_table(schema: str, name: str) -> None:
    assert parse_pattern(format_table_name(schema, name)).matches(schema, name)


@pytest.mark.parametrize(
    ("pattern", "pair", "matches"),
    [
        ("public.*", ("public", "t"), True),
        ("public.*", ("public", "A\nb"), True),
        ("public.*", ("private", "t"), False),
        ("*.*", ("Odd", "T"), True),
        ("*.*", ("pg_catalog", "pg_class"), False),
        ("*.*", ("information_schema", "tables"), False),
        ("pg_catalog.*", ("pg_catalog", "pg_class"), True),
        ('"Odd".*', ("Odd", "T"), True),
        ('"Odd".*', ("odd", "T"), False),
        ("Odd.*", ("odd", "t"), True),
        ("public.conv_*", ("public", "conv_2024"), True),
        ("public.conv_*", ("public", "conv"), False),
        ("public.Conv_*", ("public", "conv_a"), True),
        ("conv_?", ("public", "conv_1"), True),
        ("conv_?", ("public", "conv_12"), False),
        ("public.a", ("public", "a"), True),
        ('public."a*"', ("public", "ab"), False),
        ("public.a$*", ("public", "a$b"), True),
        ("shard_*.t", ("shard_7", "t"), True),
    ],
)
def test_a_pattern_matches_what_a_shell_would(pattern: str, pair: tuple[str, str], matches: bool) -> None:
    assert parse_pattern(pattern).matches(*pair) is matches


def test_an_exact_name_wins_over_every_pattern_wherever_it_stands() -> None:
    entries = [Line("*.*"), Line("public.conversation*"), Line("public.conversations"), Line("public.*")]
    chosen = select_entry(entries, "public", "conversations", "r")
    assert chosen == Line("public.conversations")


def test_of_two_patterns_the_more_specific_wins() -> None:
    entries = [Line("*.*"), Line("public.*"), Line("public.c*"), Line("public.conv_*"), Line("*.conv_*")]
    assert select_entry(entries, "public", "conv_1", "r") == Line("public.conv_*")
    assert select_entry(entries, "raw", "conv_1", "r") == Line("*.conv_*")
    assert select_entry(entries, "public", "other", "r") == Line("public.*")
    assert select_entry(entries, "raw", "other", "r") == Line("*.*")


def test_of_equal_patterns_the_first_written_wins() -> None:
    entries = [Line("public.a*"), Line("public.*b")]
    assert select_entry(entries, "public", "ab", "r") == Line("public.a*")


@pytest.mark.parametrize(("relkind", "taken"), [("r", True), ("p", True), ("v", False), ("m", False), ("f", False)])
def test_a_pattern_takes_tables_and_partitioned_tables_only(relkind: str, taken: bool) -> None:
    assert (select_entry([Line("public.*")], "public", "t", relkind) is not None) is taken


@pytest.mark.parametrize("relkind", ["r", "p", "v", "m", "f"])
def test_an_exact_name_takes_any_relation(relkind: str) -> None:
    assert select_entry([Line("public.t")], "public", "t", relkind) == Line("public.t")


def test_what_no_entry_names_is_not_selected() -> None:
    assert select_entry([Line("public.a")], "public", "b", "r") is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (Line("public.*"), ("public", "T")),
        (Line("public.*", "raw.*"), ("raw", "T")),
        (Line("public.*", '"Raw".*'), ("Raw", "T")),
        (Line('public."T"', "other"), ("public", "other")),
        (Line('public."T"', 'a."B"'), ("a", "B")),
        (None, ("public", "T")),
    ],
)
def test_the_target_is_the_same_name_unless_the_entry_says_otherwise(
    line: Line | None, expected: tuple[str, str]
) -> None:
    assert target_name(line, "public", "T") == expected


@pytest.mark.parametrize(
    ("name", "target"), [("public.*", "raw.t"), ("public.*", "*.*"), ("public.*", "raw.t_*"), ("public.t", "raw.*")]
)
def test_a_target_that_cannot_go_with_the_name_is_refused(name: str, target: str) -> None:
    with pytest.raises(ValueError, match="should"):
        check_target(name, target)


@pytest.mark.parametrize(("name", "target"), [("public.*", "raw.*"), ("conv_*", "raw.*"), ("public.t", "raw.t")])
def test_a_target_that_goes_with_the_name_is_taken(name: str, target: str) -> None:
    check_target(name, target)
