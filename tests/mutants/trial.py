"""The trial of a mutant: a copy of the checkout with the bug in it, and pytest run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant, StaleChangeError
from tests.pair import ROOT

COPIED = ("replicator", "sql", "tests", "pyproject.toml", "README.md")
TESTS_FAILED = 1
"""pytest's exit code; 2 and above say that the tests did not run."""

# Node ids name the versions; and without byte code each start of the tool would compile the copy anew.
_OURS = {"PYTEST_ADDOPTS", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "REPLICATOR_TEST_VERSIONS"}
_FAILED = re.compile(r"^FAILED (.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a trial ended. caught: a test failed; told: its name, or what is wrong; output: what pytest printed."""

    caught: bool
    told: str
    output: str = ""


def try_mutant(mutant: Mutant) -> Verdict:
    """Plant the bug and run its tests."""
    with copied_checkout() as root:
        try:
            for change in mutant.changes:
                change.apply(root)
        except StaleChangeError as error:
            return Verdict(caught=False, told=f"DOES NOT APPLY: {error}")
        code, output = run_tests(root, mutant.tests)
    failed = _FAILED.search(output)
    if code == TESTS_FAILED and failed:
        return Verdict(caught=True, told=failed[1].rpartition("/")[2], output=output)
    return Verdict(
        caught=False, told="SURVIVED" if code == 0 else f"NOT TRIED: pytest ended with {code}", output=output
    )


@contextmanager
def copied_checkout() -> Iterator[Path]:
    """Yield a folder that holds what the tests need of this checkout; it is thrown away."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / name, root / name)
        yield root


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run the tests of a copy up to the first failure; return pytest's exit code and output."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    finished = subprocess.run(command, cwd=root, env=kept, capture_output=True, text=True)
    return finished.returncode, finished.stdout + finished.stderr
