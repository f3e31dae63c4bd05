"""The commands `target up`, `target down` and `target dsn`."""

from __future__ import annotations

from pathlib import Path

from replicator.cli.output import print_json
from replicator.cli.session import open_settings
from replicator.config.settings import Settings, target_dsn
from replicator.embedded import TakenDown, bring_up, describe, take_down
from replicator.errors import EXIT_OK, UsageError

_TAKEN_DOWN = {
    TakenDown.STOPPED: "stopped the embedded target",
    TakenDown.NOT_RUNNING: "the embedded target was not running",
    TakenDown.IN_USE: "another command uses the embedded target; it stops with the last of them",
}


def up(config: Path | None, *, as_json: bool) -> int:
    """Start the embedded target and leave it running."""
    settings = _open_embedded(config)
    bring_up(settings.data_dir)
    return _print_dsn(settings, as_json=as_json)


def down(config: Path | None, *, as_json: bool) -> int:
    """Stop the embedded target, or leave that to the last command that uses it."""
    settings = _open_embedded(config)
    done = take_down(settings.data_dir)
    if as_json:
        print_json({"target": done.value})
    else:
        print(_TAKEN_DOWN[done])
    return EXIT_OK


def dsn(config: Path | None, *, as_json: bool) -> int:
    """Print how to connect to the embedded target."""
    return _print_dsn(_open_embedded(config), as_json=as_json)


def _print_dsn(settings: Settings, *, as_json: bool) -> int:
    found = describe(settings.data_dir)
    if as_json:
        print_json({"dsn": found.dsn, "running": found.running, "up": found.up, "psql": found.psql})
    else:
        print(found.dsn)
    return EXIT_OK


def _open_embedded(config: Path | None) -> Settings:
    settings = open_settings(config)
    if target_dsn(settings) is not None:
        raise UsageError(
            "the target of this configuration is not embedded",
            why="target.dsn names a server of yours",
            hint="leave target.dsn out to keep an embedded PostgreSQL in data_dir",
        )
    return settings
