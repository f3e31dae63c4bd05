"""Medians against goals, as lines for people, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from tests.benchmarks.follower import CaughtUp
from tests.benchmarks.many_tables import ManyTables
from tests.benchmarks.stream import Latency
from tests.benchmarks.workload import Result

PROJECT, FLOOR, NATIVE, LIMIT = "replicator", "psql pipe", "subscription", "pg_recvlogical"
MEMORY_GOAL_BYTES = 200 << 20
IDLE_GOAL_S = 2.0
LAG_GOAL_S = 1.0
START_GOAL_S = 5.0
FIRST_TOUCH_GOAL = 2.0
LIMIT_GOAL = 1.5
CPU_GOAL_US = 8.0
MEAN_GOAL = 1 / 1.6
LATENCY_GOALS_MS = ((1_000, 5.0, 20.0), (10_000, 0.0, 100.0))
"""(up to so many rows a second, median, p99); a median of 0 has no goal."""

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
    ("catch-up, updates", NATIVE): 1 / 1.3,
    ("catch-up, inserts", NATIVE): 1 / 1.3,
    ("catch-up, one-row transactions", NATIVE): 1 / 1.5,
    ("catch-up, one big transaction", NATIVE): 1 / 1.3,
    ("catch-up, hot keys", NATIVE): 1 / 3.5,
    ("catch-up, deletes", NATIVE): 1.0,
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
    lines += _judge_mean(mine, results)
    lines += [line for result in mine.values() for line in _judge_cpu(result)]
    return lines + [_judge_memory(result) for result in mine.values()]


def _judge_ratio(mine: Result, other: Result) -> Line:
    ratio = mine.seconds / other.seconds
    goal = LIMIT_GOAL if other.contender == LIMIT else RATIO_GOALS[mine.workload, other.contender]
    return Line(
        mine.workload,
        _tell(mine),
        other.contender,
        _tell(other),
        round(ratio, 3),
        f"at most {goal:.2f} x",
        ratio <= goal,
    )


def _tell(result: Result) -> str:
    rate = f", {result.rows / result.seconds:,.0f} rows/s" if result.rows else ""
    return f"{result.seconds:.2f} s{rate}"


def _judge_mean(mine: Mapping[str, Result], results: Sequence[Result]) -> list[Line]:
    """Return the line of the geometric mean over all backlogs, if there were any."""
    ratios = [mine[r.workload].seconds / r.seconds for r in results if r.contender == NATIVE]
    if not ratios:
        return []
    mean = geometric_mean(ratios)
    goal = f"at most {MEAN_GOAL:.2f} x"
    return [Line("catch-up, geometric mean", "", NATIVE, "", round(mean, 3), goal, mean <= MEAN_GOAL)]


def judge_latencies(latencies: Sequence[Latency]) -> list[Line]:
    """Return a line for each rate: median and 99th percentile, beside the subscription's."""
    beside = {latency.workload: latency for latency in latencies if latency.contender == NATIVE}
    return [_judge_latency(latency, beside[latency.workload]) for latency in latencies if latency.contender == PROJECT]


def _judge_latency(mine: Latency, other: Latency) -> Line:
    median_goal, p99_goal = next(goal[1:] for goal in LATENCY_GOALS_MS if mine.rows_per_s <= goal[0])
    goal = (f"median {median_goal:g} ms, " if median_goal else "") + f"p99 {p99_goal:g} ms"
    met = mine.p99_ms <= p99_goal and (not median_goal or mine.median_ms <= median_goal)
    return Line(mine.workload, _tell_latency(mine), NATIVE, _tell_latency(other), None, f"at most {goal}", met)


def _tell_latency(latency: Latency) -> str:
    return f"median {latency.median_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms"


def _judge_cpu(result: Result) -> list[Line]:
    """Return the line of what a change costs the client, where that was measured."""
    run = result.runs[0]
    if not isinstance(run, CaughtUp) or not run.cpu_s:
        return []
    microseconds = run.cpu_s / result.rows * 1e6
    told = f"{microseconds:.1f} us a change"
    return [
        Line(f"{result.workload}, CPU", told, "", "", None, f"at most {CPU_GOAL_US:g} us", microseconds <= CPU_GOAL_US)
    ]


def _judge_idle(mine: Result) -> Line:
    return Line("idle", f"{mine.seconds:.2f} s", "", "", None, f"under {IDLE_GOAL_S:g} s", mine.seconds < IDLE_GOAL_S)


def judge_many_tables(many: ManyTables) -> list[Line]:
    """Return the lines of a listener over many tables: how it starts, and its first transaction beside the next."""
    work, (first, *later) = f"{many.tables} tables", many.touches_s
    ratio = first / min(later)
    limit = f"under {START_GOAL_S:g} s"
    told = f"{many.start_s:.2f} s, {many.statements} statements at the target"
    lag, is_near = f"{many.altered_lag_s:.2f} s behind", many.altered_lag_s < LAG_GOAL_S
    return [
        Line(f"{work}, start of listen", told, "", "", None, limit, many.start_s < START_GOAL_S),
        Line(f"{work}, the others while one is altered", lag, "", "", None, "under 1 s", is_near),
        Line(f"{work}, serve is ready", f"{many.ready_s:.2f} s", "", "", None, limit, many.ready_s < START_GOAL_S),
        Line(
            f"{work}, first transaction over all", f"{first:.2f} s", "the next", f"{min(later):.2f} s", round(ratio, 2),
            f"at most {FIRST_TOUCH_GOAL:g} x", ratio <= FIRST_TOUCH_GOAL,
        ),
    ]  # fmt: skip


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


def write_report(
    folder: Path,
    results: Sequence[Result],
    latencies: Sequence[Latency],
    lines: Sequence[Line],
    facts: Mapping[str, Any],
) -> None:
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
        "latencies": list(map(asdict, latencies)),
        "goals": [asdict(line) for line in lines],
    }
    (folder / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "bench.md").write_text(format_table(lines))


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"
