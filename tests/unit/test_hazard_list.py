"""Every known hazard has a test that names it, and every known bug a mutant, or a reason why not yet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from tests.hazards import HAZARDS, UNTESTED
from tests.mutants.table import MUTANTS
from tests.pair import ROOT

Function = ast.FunctionDef | ast.AsyncFunctionDef
_ID = re.compile(r"\b[A-Z][1-9]\d?\b")


@cache
def list_tests() -> tuple[tuple[str, Function], ...]:
    """Return every test function with the name of its file."""
    return tuple(
        (path.name, node)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, Function) and node.name.startswith("test_")
    )


def read_markers(test: Function) -> Iterator[str]:
    """Yield the ids in the test's `pytest.mark.hazard(...)`."""
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.hazard":
            yield from (str(ast.literal_eval(argument)) for argument in decorator.args)


def find_covered() -> set[str]:
    """Return the hazards that a test names, and the bugs that are planted."""
    tests = [test for _, test in list_tests()]
    named = {name for test in tests for name in (*read_markers(test), *_ID.findall(ast.get_docstring(test) or ""))}
    return {name for name in named if not name.startswith("B")} | {mutant.bug for mutant in MUTANTS}


def test_every_hazard_has_a_test_or_a_reason() -> None:
    assert set(HAZARDS) - find_covered() - set(UNTESTED) == set()


def test_what_is_excused_has_no_test_yet() -> None:
    assert find_covered() & set(UNTESTED) == set(), "take them out of UNTESTED"


def test_only_known_hazards_are_named() -> None:
    assert set(UNTESTED) - set(HAZARDS) == set()
    assert {mutant.bug for mutant in MUTANTS} - set(HAZARDS) == set()
    for file, test in list_tests():
        assert set(read_markers(test)) <= set(HAZARDS), (file, test.name)
