"""What is measured: contenders take turns on the same servers, and each result is proved equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.benchmarks.arena import Arena
from tests.benchmarks.contender import Contender, Floor, Project
from tests.benchmarks.meter import Measured


@dataclass
class Result:
    """The runs of one contender at one workload, in their order. rows: that were changed, where that is told."""

    workload: str
    contender: str
    runs: list[Measured] = field(default_factory=list)
    rows: int = 0

    @property
    def seconds(self) -> float:
        """Return the median."""
        return median(run.seconds for run in self.runs)

    @property
    def rss_bytes(self) -> int:
        """Return the highest peak of all runs."""
        return max(run.rss_bytes for run in self.runs)


def take_turns(runs: int, contenders: Sequence[Contender]) -> Iterator[tuple[int, Contender]]:
    """Yield (run, contender): floor, peers, project, and again. Peers take part once, some take minutes."""
    for number in range(runs):
        for contender in contenders:
            if number == 0 or not contender.once:
                yield number, contender


def measure_full(arena: Arena, contenders: Sequence[Contender], runs: int) -> list[Result]:
    """Measure a first load of the whole table, into a database that knows nothing."""
    results = {c.name: Result("full", c.name) for c in contenders}
    for _, contender in take_turns(runs, contenders):
        contender.reset()
        arena.settle()
        results[contender.name].runs.append(contender.load())
        contender.check()
    return list(results.values())


def measure_incremental(arena: Arena, contenders: Sequence[Contender], runs: int) -> list[Result]:
    """Measure the pull of a tenth of the rows, freshly changed."""
    results = {c.name: Result("incremental", c.name) for c in contenders}
    for contender in contenders:
        if not contender.is_loaded:
            contender.reset()
            contender.load()
    since = ""
    for number, contender in take_turns(runs, contenders):
        if contender is contenders[0]:
            since = arena.change_tenth(number)
        arena.settle(*(c.database for c in contenders))
        results[contender.name].runs.append(contender.pull(since))
        contender.check()
    return list(results.values())


def measure_verify(arena: Arena, floor: Floor, project: Project, runs: int) -> list[Result]:
    """Measure the proof that the whole table is equal, beside reading it at both ends."""
    for contender in (floor, project):
        contender.reset()
        contender.load()
    results = [Result("verify", floor.name), Result("verify", project.name)]
    for _ in range(runs):
        arena.settle(floor.database, project.database)
        results[0].runs.append(floor.read_both())
        results[1].runs.append(project.verify())
    return results


def measure_idle(arena: Arena, project: Project, runs: int, tables: int) -> list[Result]:
    """Measure a sync of many tables in which nothing changed."""
    arena.fill_idle(tables)
    project.configure({"name": "idle.*", "watermark": "updated_at"})
    project.sync()
    result = Result("idle", project.name)
    for _ in range(runs):
        arena.settle(project.database)
        result.runs.append(project.sync())
    arena.assert_equal(project.database, "idle", "conversations_00")
    return [result]
