"""A mutant: one bug, written as exact replacements of text, and the tests that must fail because of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class StaleChangeError(Exception):
    """A text to be replaced does not occur exactly once, so the code has moved on without its mutant."""


@dataclass(frozen=True, slots=True)
class Change:
    """One replacement. file: relative to the checkout; old: must occur in it exactly once."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Replace the text in the file below `root`. Raises StaleChangeError unless it is there exactly once."""
        path = root / self.file
        text = path.read_text("utf-8")
        count = text.count(self.old)
        if count != 1:
            raise StaleChangeError(f"{self.file} has the text {count} times: {self.old.strip().splitlines()[0]}")
        path.write_text(text.replace(self.old, self.new), "utf-8")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to plant a bug.

    bug: its id in `tests/hazards.py`; a bug may have several mutants. tests: pytest's node ids, as few and as fast as
    will do.
    """

    bug: str
    title: str
    tests: tuple[str, ...]
    changes: tuple[Change, ...]
