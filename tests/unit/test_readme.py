"""The README's tables come from the code they describe."""

from __future__ import annotations

import re

from replicator import errors
from tests.readme import README, render


def test_the_generated_parts_are_what_the_code_says() -> None:
    text = README.read_text("utf-8")
    assert render(text) == text, "run: .venv/bin/python -m tests.readme"


def test_every_exit_code_is_explained() -> None:
    text = README.read_text("utf-8")
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")} - {errors.EXIT_DIFFERENT}
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert codes <= explained
