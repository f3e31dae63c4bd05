"""What a verification says of a table. Pure."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from replicator.apply.comparison import Finding
from replicator.apply.difference import DIFFERENT, EXTRA, MISSING, Key

_INTEGER = re.compile(r"-?[0-9]{1,40}")


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows only the source has, only the target has, and both have otherwise."""

    missing: int
    extra: int
    different: int


def order_key(key: Key) -> list[tuple[int, int, str]]:
    """Return what keys are sorted by: numbers by their value where they look like some, text after them, NULL last."""
    return [
        (2, 0, "") if text is None else (0, int(text), "") if _INTEGER.fullmatch(text) else (1, 0, text) for text in key
    ]


@dataclass
class Verdict:
    """How one table compares.

    findings: its rows that differ, by key; unlisted: how many more, by kind. missing_rows, extra_rows: rows without a
    name, of a table without key or beside a row of the same key; digests: the sums of their hashes on both sides.
    undecided: keys that were being changed at every look of a table that a listener keeps; is_undecided: so was a table
    without key.
    repaired: rows written or deleted. key, columns: names in the target, columns in the order of a finding's
    values.
    """

    table: str
    rows_source: int = 0
    rows_target: int = 0
    findings: list[Finding] = field(default_factory=list)
    unlisted: Counter[str] = field(default_factory=Counter)
    missing_rows: int = 0
    extra_rows: int = 0
    undecided: list[Key] = field(default_factory=list)
    is_undecided: bool = False
    repaired: int = 0
    is_repaired: bool = False
    columns: tuple[str, ...] = ()
    digests: tuple[int, int] = (0, 0)
    key: tuple[str, ...] = ()

    def count(self) -> Counts:
        """Return how many rows differ, by kind."""
        kinds = Counter(finding.kind for finding in self.findings)
        kinds += self.unlisted
        return Counts(kinds[MISSING] + self.missing_rows, kinds[EXTRA] + self.extra_rows, kinds[DIFFERENT])

    @property
    def mismatched(self) -> int:
        """Return how many rows differ."""
        return len(self.findings) + self.unlisted.total() + self.missing_rows + self.extra_rows

    @property
    def equal(self) -> bool:
        """Say whether the table is equal, or is so by now."""
        return (self.is_repaired or not self.mismatched) and not self.undecided and not self.is_undecided

    def keys(self, kind: str) -> list[Key]:
        """Return the keys of one kind of difference."""
        return [finding.key for finding in self.findings if finding.kind == kind]

    def as_json(self, *, with_values: bool) -> dict[str, object]:
        """Return the verdict as JSON has it."""
        document: dict[str, object] = {
            "table": self.table,
            "equal": self.equal,
            "rows_source": self.rows_source,
            "rows_target": self.rows_target,
            "missing": self.keys(MISSING),
            "extra": self.keys(EXTRA),
            "different": [
                {"key": finding.key, "columns": finding.columns}
                | ({"values": self.describe_values(finding)} if with_values else {})
                for finding in self.findings
                if finding.kind == DIFFERENT
            ],
            "undecided": self.undecided,
            "is_undecided": bool(self.undecided) or self.is_undecided,
            "repaired": self.repaired,
            "missing_rows": self.missing_rows,
            "extra_rows": self.extra_rows,
            "unlisted": dict(self.unlisted),
        }
        return document

    def describe_values(self, finding: Finding) -> dict[str, dict[str, str | None]]:
        """Return the source's and the target's value of each differing column, or of all of a row that one side has."""
        theirs, ours = finding.values
        shown = finding.columns or self.columns
        places = {name: place for place, name in enumerate(self.columns)}
        return {
            name: ({} if theirs is None else {"source": theirs[places[name]]})
            | ({} if ours is None else {"target": ours[places[name]]})
            for name in shown
        }
