"""Exceptions are told without their messages, except our own."""

from __future__ import annotations

import psycopg
import pytest

from replicator.errors import DataRefused, ReplicatorError
from replicator.selection import parse_table_name
from replicator.telemetry.trace import MAX_FRAMES, describe_error, error_fields, find_sqlstate, scrub_traceback

CELL = "cell-value-4711"


def catch(raise_it: object) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        raise_it()  # type: ignore[operator]
    return caught.value


def refuse_row() -> None:
    try:
        raise psycopg.errors.UniqueViolation(f"Key (email)=({CELL}) already exists")
    except psycopg.Error as error:
        raise DataRefused("public.t: the target refused a row", why="users_email_key", table="public.t") from error


def test_the_chain_is_told_without_the_drivers_message() -> None:
    text = scrub_traceback(catch(refuse_row))
    assert CELL not in text
    assert "psycopg.errors.UniqueViolation [23505]\nled to\n" in text
    assert text.endswith("replicator.errors.DataRefused: public.t: the target refused a row: users_email_key")
    assert "test_trace.py:" in text
    assert ":refuse_row" in text


def test_a_context_is_a_cause_unless_it_was_suppressed() -> None:
    def stumble() -> None:
        try:
            {}[CELL]  # type: ignore[index]
        except KeyError:
            raise TypeError(CELL)  # noqa: B904

    def hide() -> None:
        try:
            stumble()
        except TypeError:
            raise ReplicatorError("it failed") from None

    assert "KeyError\nled to" in scrub_traceback(catch(stumble))
    assert CELL not in scrub_traceback(catch(stumble))
    assert "KeyError" not in scrub_traceback(catch(hide))


def test_paths_begin_at_the_package() -> None:
    text = scrub_traceback(catch(lambda: parse_table_name("a b")))
    assert "  replicator/selection.py:" in text
    assert "  /" not in text


def test_paths_of_libraries_begin_at_the_library() -> None:
    text = scrub_traceback(catch(lambda: psycopg.conninfo.conninfo_to_dict(CELL)))
    assert "  psycopg/conninfo.py:" in text
    assert CELL not in text


def test_a_deep_recursion_keeps_the_innermost_frames() -> None:
    def dig(depth: int) -> None:
        if depth == 0:
            raise ValueError(CELL)
        dig(depth - 1)

    lines = scrub_traceback(catch(lambda: dig(200))).splitlines()
    assert "frames left out" in lines[0]
    assert len(lines) == MAX_FRAMES + 2


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError(CELL), TypeError(CELL)
    first.__cause__, second.__cause__ = second, first
    assert scrub_traceback(first) == "TypeError\nled to\nValueError"


def test_the_fields_of_our_own_error_carry_its_words_and_the_causes_sqlstate() -> None:
    error = catch(refuse_row)
    assert error_fields(error) == {
        "error_type": "DataRefused",
        "error_message": "public.t: the target refused a row: users_email_key",
        "sqlstate": "23505",
        "table": "public.t",
    }
    assert find_sqlstate(error) == "23505"


def test_the_fields_of_a_foreign_error_carry_its_class_alone() -> None:
    assert error_fields(ValueError(CELL)) == {"error_type": "ValueError", "error_message": "ValueError"}
    assert describe_error(psycopg.errors.DeadlockDetected(CELL)) == "psycopg.errors.DeadlockDetected [40P01]"
