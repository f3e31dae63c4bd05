"""The tests' own TOML writer, read back by Python's reader."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.pair import format_toml, merge_config

SCALARS = (
    st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
SECTIONS = st.dictionaries(st.text(), VALUES, max_size=3)


@given(st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), VALUES | st.lists(SECTIONS, min_size=1), max_size=4))
def test_what_is_written_reads_back_the_same(config: dict[str, Any]) -> None:
    assert tomllib.loads(format_toml(config)) == config


def test_a_layer_changes_single_keys_of_a_section_and_none_removes() -> None:
    config = {"source": {"dsn": "a", "max_hold": "1s"}, "target": {"dsn": "b"}}
    merge_config(config, {"source": {"max_hold": "2s"}, "target": {"dsn": None}, "pipeline": "p"})
    assert config == {"source": {"dsn": "a", "max_hold": "2s"}, "target": {}, "pipeline": "p"}
