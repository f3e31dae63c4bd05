"""Run commands where there is no configuration, or one that is named ahead of the command."""

from __future__ import annotations

import pytest

from tests.pair import Pair

PRINTED = {".stdout", ".stderr"}
COMMANDS = [
    ("status",),
    ("health",),
    ("history",),
    ("sync",),
    ("listen",),
    ("verify",),
    ("resync", "--yes"),
    ("check",),
    ("plan",),
    ("serve",),
    ("schedule",),
    ("quarantine", "list"),
    ("slot", "list"),
    ("target", "up"),
    ("target", "dsn"),
    ("forget", "public.t", "--yes"),
    ("why", "public.t", "1"),
    ("alert", "test"),
]


def list_made(pair: Pair) -> list[str]:
    """Return what a command left in the directory, apart from what it printed."""
    return sorted(path.name for path in pair.dir.iterdir() if path.suffix not in PRINTED)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_without_a_configuration_says_so_and_makes_nothing(pair: Pair, command: tuple[str, ...]) -> None:
    before = list_made(pair)
    finished = pair.run(*command, check=3)
    assert f"There is no replicator.toml in {pair.dir}" in finished.stderr
    assert "replicator init --source DSN, or --config PATH" in finished.stderr
    assert list_made(pair) == before


@pytest.mark.parametrize("command", ["sync", "status", "verify", "listen", "serve"])
def test_a_configuration_without_a_source_makes_no_embedded_target(pair: Pair, command: str) -> None:
    pair.write_config(source=None, target=None, data_dir="data", logs={"dir": ""})
    before = list_made(pair)
    finished = pair.run(command, check=3)
    assert "source.dsn is not set" in finished.stderr
    assert list_made(pair) == before


def test_the_environment_alone_is_a_configuration(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    pair.grant()
    environment = {"REPLICATOR_SOURCE__DSN": pair.source_dsn, "REPLICATOR_TARGET__DSN": pair.target_dsn}
    pair.run("sync", env=environment)
    pair.assert_equal("public.t")


def test_a_configuration_may_be_named_before_the_command_and_after_it(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    pair.grant()
    pair.write_config(tables=["public.t"]).rename(pair.dir / "other.toml")
    pair.run("--config", "other.toml", "sync")
    pair.assert_equal("public.t")
    for group in (("status",), ("slot", "list"), ("quarantine", "list")):
        assert pair.run("--config", "other.toml", *group).stdout == pair.run(*group, "--config", "other.toml").stdout
    assert "absent.toml does not exist" in pair.run("--config", "absent.toml", "status", check=3).stderr
    pair.run("--config", "absent.toml", "status", "--config", "other.toml")
