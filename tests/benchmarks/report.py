"""Medians against goals, as lines for people, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.workload import Result

PROJECT, FLOOR = "replicator", "psql pipe"
MEMORY_GOAL_BYTES = 200 << 20
IDLE_GOAL_S = 2.0

RATIO_GOALS: Mapping[tuple[str, str], float] = {
    ("full", FLOOR): 1.1,
    ("full", "pgcopydb"): 1.0,
    ("full", "ingestr"): 1.0,
    ("full", "sling"): 1.0,
    ("full", "dlt"): 1.0,
    ("incremental", FLOOR): 1.25,
    ("verify", FLOOR): 2.0,
    ("incremental", "sling"): 1 / 2,
    ("incremental", "ingestr"): 1 / 1.3,
    ("incremental", "dlt"): 1 / 8,
}
"""The most that the project may take, as a share of what the other takes in the same run."""


@dataclass(frozen=True)
class Line:
    """One comparison: what was measured of the project, beside whom, the ratio, the goal."""

    workload: str
    project: str
    beside: str
    other: str
    ratio: float | None
    goal: str
    met: bool


def judge(results: Sequence[Result]) -> list[Line]:
    """Return a line for each comparison that has a goal, then one for each workload's memory."""
    mine = {result.workload: result for result in results if result.contender == PROJECT}
    lines = [_judge_ratio(mine[r.workload], r) for r in results if r.contender != PROJECT]
    if "idle" in mine:
        lines.append(_judge_idle(mine["idle"]))
    return lines + [_judge_memory(result) for result in mine.values()]


def _judge_ratio(mine: Result, other: Result) -> Line:
    ratio, goal = mine.seconds / other.seconds, RATIO_GOALS[mine.workload, other.contender]
    return Line(
        mine.workload,
        f"{mine.seconds:.2f} s",
        other.contender,
        f"{other.seconds:.2f} s",
        round(ratio, 3),
        f"at most {goal:.2f} x",
        ratio <= goal,
    )


def _judge_idle(mine: Result) -> Line:
    return Line("idle", f"{mine.seconds:.2f} s", "", "", None, f"under {IDLE_GOAL_S:g} s", mine.seconds < IDLE_GOAL_S)


def _judge_memory(mine: Result) -> Line:
    met = mine.rss_bytes <= MEMORY_GOAL_BYTES
    return Line(f"{mine.workload}, memory", _mebibytes(mine.rss_bytes), "", "", None, "at most 200 MiB", met)


def format_table(lines: Iterable[Line]) -> str:
    """Return the comparisons as a Markdown table; a missed goal is bold."""
    rows = [("work", PROJECT, "beside", "took", "ratio", "goal", "met")]
    rows += [
        (
            line.workload,
            line.project,
            line.beside,
            line.other,
            "" if line.ratio is None else f"{line.ratio:.2f}",
            line.goal,
            "yes" if line.met else "**missed**",
        )
        for line in lines
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    texts = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:], ""])


def write_report(folder: Path, results: Sequence[Result], lines: Sequence[Line], facts: Mapping[str, Any]) -> None:
    """Write bench.json and bench.md."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": 1,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        **facts,
        "results": [
            {"workload": r.workload, "contender": r.contender, "median_s": r.seconds, "runs": list(map(asdict, r.runs))}
            for r in results
        ],
        "goals": [asdict(line) for line in lines],
    }
    (folder / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "bench.md").write_text(format_table(lines))


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"
