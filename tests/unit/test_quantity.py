"""Durations and sizes as they are written in the configuration."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.config.quantity import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("2m", 120),
        ("26h", 93_600),
        ("7d", 604_800),
        ("1.5h", 5_400),
        (" 1 s ", 1),
        ("0s", 0),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1h30m", "1 fortnight", "1M", "1S", "0.0001ms", "1e3s", "٣s"])
def test_what_is_no_duration_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"should be a number and a unit \(ms, s, m, h or d\)"):
        parse_duration(text)


def test_a_duration_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(ValueError, match="is longer than a duration can be"):
        parse_duration("999999999999999d")


@pytest.mark.parametrize("text", ["10s", "60s", "26h", "7d", "500ms", "0s", "2m", "90m", "0.5ms"])
def test_a_duration_is_written_as_people_write_it(text: str) -> None:
    assert format_duration(parse_duration(text)) == text


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=100_000)))
def test_every_duration_survives_being_written_and_read(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("8GB", 8 * 2**30), ("64MB", 64 * 2**20), ("50kB", 50 * 2**10), ("50KB", 51_200), ("1TB", 2**40), ("7B", 7)],
)
def test_a_size_has_postgresqls_meaning(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "64", "GB", "-1GB", "0.3B", "1PiB", "1 GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"should be a number and a unit \(B, kB"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**49))
def test_every_size_survives_being_written_and_read(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes
