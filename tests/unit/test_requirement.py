"""The pinned requirements: complete, hashed, and silent about where they came from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.pair import ROOT

FILES = sorted((ROOT / "requirements").glob("*.txt"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def read_pins(file: Path) -> dict[str, str]:
    """Return version by package; a package may be pinned once only."""
    pins = re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", file.read_text(), re.MULTILINE)
    assert len(pins) == len({name for name, _ in pins})
    return dict(pins)


def read_direct() -> dict[str, set[str]]:
    """Return the packages that pyproject.toml asks for, by the file that must pin them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    base = project["project"]["dependencies"] + extras["embedded"] + groups["build"]
    dev = base + [line for lines in extras.values() for line in lines] + groups["dev"]
    names = {
        name: {re.split(r"[\[<>=!~; ]", line)[0].lower() for line in lines} - {"replicator"}
        for name, lines in {"base.txt": base, "dev.txt": dev, "bench.txt": dev + groups["bench"]}.items()
    }
    assert names.keys() == {file.name for file in FILES}
    return names


@every_file
def test_every_package_that_the_project_asks_for_is_pinned(file: Path) -> None:
    assert read_direct()[file.name] - read_pins(file).keys() == set()


@every_file
def test_every_pin_has_hashes_and_no_line_names_a_place(file: Path) -> None:
    text = file.read_text()
    for pin in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in pin
    assert not re.search(r"://|--(?:extra-)?index|--find-links|^-e|\s/", text, re.MULTILINE)


def test_one_environment_can_hold_all_three_files() -> None:
    base, dev, bench = (read_pins(ROOT / "requirements" / f"{name}.txt") for name in ("base", "dev", "bench"))
    assert base.items() <= dev.items() <= bench.items()
