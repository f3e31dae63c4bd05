"""What `replicator check` finds, for its tests."""

from __future__ import annotations

from typing import Any

from tests.pair import Pair

Finding = dict[str, Any]


def check(pair: Pair, *, exit_code: int | None = None) -> list[Finding]:
    """Run the check and return its findings; its exit code must be 4 for an error among them, else 0."""
    finished = pair.run("check", "--json", check=exit_code)
    findings: list[Finding] = finished.json()["findings"]
    has_error = any(finding["severity"] == "error" for finding in findings)
    assert finished.exit_code == (4 if has_error else 0), finished
    return findings


def find(pair: Pair, id: str, table: str | None = None) -> Finding:
    """Return the one finding of this id (and table)."""
    findings = check(pair)
    found = [f for f in findings if f["id"] == id and (table is None or f["table"] == table)]
    assert len(found) == 1, findings
    return found[0]


def ids(findings: list[Finding], *severities: str) -> set[str]:
    """Return the ids of findings of these severities."""
    return {finding["id"] for finding in findings if finding["severity"] in severities}
