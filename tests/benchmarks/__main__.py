"""`python -m tests.benchmarks`: this project beside the hand-written pipe, and beside its goals, in one run.

Exit code 0 also when a goal is missed (machines are noisy), 1 with `--strict`.
"""

from __future__ import annotations

import argparse
import compileall
import os
import sys
from pathlib import Path

from tests.benchmarks.arena import open_arena
from tests.benchmarks.contender import Contender, Floor, Project
from tests.benchmarks.many_tables import measure_many_tables
from tests.benchmarks.peer import find_peers
from tests.benchmarks.report import Line, format_table, judge, judge_latencies, judge_many_tables, write_report
from tests.benchmarks.stream import Latency, measure_stream
from tests.benchmarks.workload import Result, measure_full, measure_idle, measure_incremental, measure_verify
from tests.pair import ROOT

WORKLOADS = ("full", "incremental", "verify", "idle", "listen")
BY_NAME_ONLY = ("many-tables",)
"""Workloads that take minutes, and run only where they are asked for."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the big table")
    parser.add_argument("--runs", type=int, default=3, help="how often each takes its turn; the median counts")
    parser.add_argument("--tables", type=int, default=50, help="idle tables")
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        help=f"some of {', '.join(WORKLOADS)}, which are the default, or of {', '.join(BY_NAME_ONLY)}",
    )
    parser.add_argument("--many", type=int, default=3000, help="tables of many-tables")
    parser.add_argument("--peers", action="store_true", help="also the peers that are installed, once each")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a goal is missed")
    parser.add_argument("--out", type=Path, default=ROOT / ".artefacts" / "bench", help="where the report is written")
    options = parser.parse_args()
    unknown = set(options.workloads) - {*WORKLOADS, *BY_NAME_ONLY}
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join((*WORKLOADS, *BY_NAME_ONLY))}")
    return options


def run(options: argparse.Namespace) -> tuple[list[Result], list[Latency], list[Line]]:
    """Run the chosen workloads on servers of their own."""
    wanted = options.workloads or WORKLOADS
    results: list[Result] = []
    latencies: list[Latency] = []
    lines: list[Line] = []
    with open_arena(options.rows) as arena:
        project = Project(arena)
        floor = Floor(arena)
        contenders: list[Contender] = [floor, *find_peers(arena, wanted=options.peers), project]
        if {"full", "incremental", "verify", "listen"} & set(wanted):
            arena.fill_conversations()
        if "full" in wanted:
            results += measure_full(arena, contenders, options.runs)
        if "incremental" in wanted:
            pulling = [contender for contender in contenders if contender.pulls]
            results += measure_incremental(arena, pulling, options.runs)
        if "verify" in wanted:
            results += measure_verify(arena, floor, project, options.runs)
        if "idle" in wanted:
            results += measure_idle(arena, project, options.runs, options.tables)
        if "listen" in wanted:
            caught_up, latencies = measure_stream(arena)
            results += caught_up
        if "many-tables" in wanted:
            lines += judge_many_tables(measure_many_tables(arena, options.many))
    return results, latencies, lines


def main() -> int:
    """Measure, write the report, print the table."""
    options = parse_arguments()
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    # As an installation has it: without byte code every start would compile the package again.
    compileall.compile_dir(ROOT / "replicator", quiet=1)
    results, latencies, more = run(options)
    lines = judge(results) + judge_latencies(latencies) + more
    facts = {"rows": options.rows, "runs": options.runs, "idle_tables": options.tables}
    write_report(options.out, results, latencies, lines, facts)
    sys.stdout.write(format_table(lines))
    return 1 if options.strict and not all(line.met for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
