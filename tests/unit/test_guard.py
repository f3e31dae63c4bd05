"""What `serve` says where its packages are missing, and how it reads names of hosts and tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from replicator.cli.serve import require_extra
from replicator.errors import ConfigError, ExtraMissing
from replicator.serve.guard import Hosts, Token, read_token, token_is_exposed


class FindNothing:
    def find_spec(self, *_: object) -> None:
        return None


def test_a_missing_package_is_told_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [FindNothing()])
    for name in ("fastapi", "jinja2", "uvicorn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ExtraMissing) as raised:
        require_extra()
    assert "replicator[serve]" in (raised.value.hint or "")


@pytest.mark.parametrize("header", ["127.0.0.1:8321", "localhost", "LOCALHOST:1", "[::1]:8321", "127.0.0.1"])
def test_a_loopback_bind_answers_to_its_own_names(header: str) -> None:
    assert Hosts("127.0.0.1").accepts(header)


@pytest.mark.parametrize(
    "header",
    ["", "evil.example", "127.0.0.1.evil.example", "localhost:evil", "10.0.0.1", "[::1", "[::1]x", "a@localhost"],
)
def test_a_loopback_bind_refuses_every_other_name(header: str) -> None:
    assert not Hosts("127.0.0.1").accepts(header)


def test_beyond_loopback_addresses_are_accepted_and_names_of_strangers_are_not() -> None:
    hosts = Hosts("10.1.2.3")
    assert hosts.accepts("10.9.9.9:8321")
    assert not hosts.accepts("evil.example")


def test_only_the_whole_token_matches_and_without_one_nothing_does() -> None:
    assert not Token(None).matches(b"Bearer ")
    assert not Token(None).matches(b"")
    assert not Token("x" * 32).matches(b"Bearer " + b"x" * 31)
    assert Token("x" * 32).matches(b"bearer " + b"x" * 32)


@pytest.mark.parametrize(
    ("mode", "is_exposed"), [(0o600, False), (0o640, False), (0o644, True), (0o666, True), (0o602, True)]
)
def test_a_token_file_that_others_may_read_or_write_is_exposed(tmp_path: Path, mode: int, is_exposed: bool) -> None:
    file = tmp_path / "token"
    assert not token_is_exposed(file)
    file.write_text("x" * 32)
    file.chmod(mode)
    assert token_is_exposed(file) is is_exposed


@pytest.mark.parametrize("text", ["short", "x y" * 20, "\u00e9" * 40])
def test_a_token_that_can_be_guessed_or_not_sent_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_token(file, "127.0.0.1")
    assert raised.value.id == "token_weak"
    assert text not in raised.value.message
