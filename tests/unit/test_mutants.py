"""The mutants keep up with the code that they change and the tests that they name."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.mutant import Change, Mutant, StaleChangeError
from tests.mutants.table import MUTANTS
from tests.pair import ROOT

EACH = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.bug} {mutant.title}")


@EACH
def test_what_a_mutant_replaces_is_there_just_once(mutant: Mutant, tmp_path: Path) -> None:
    for file in {change.file for change in mutant.changes}:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    for change in mutant.changes:
        change.apply(tmp_path)
        if change.file.endswith(".py"):
            compile((tmp_path / change.file).read_text("utf-8"), change.file, "exec")


@EACH
def test_the_tests_that_a_mutant_names_are_there(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text("utf-8"), test


def test_each_mutant_has_a_line_of_its_own() -> None:
    counts = Counter((mutant.bug, mutant.title) for mutant in MUTANTS)
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("text", ["", "a a"])
def test_a_text_that_is_gone_or_not_unique_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(StaleChangeError):
        Change("f", "a", "b").apply(tmp_path)
    assert (tmp_path / "f").read_text() == text
