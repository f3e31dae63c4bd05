"""Servers, databases and options that every test may ask for.

    pair            source and target database on the shared servers of this worker
    make_pair       the same with options, as often as needed
    streamed        a pair for the listener
    make_cluster    a server of the test's own, to stop, restart or kill

Tests run on PostgreSQL 18 at both ends; those marked `versions` also on one of 15 → 18, 16 → 16
and 18 → 15.
`--matrix` runs every one of them on all nine crossings of 15, 16 and 18.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers import Container, engine_answers
from tests.launcher import AFRESH
from tests.pair import Pair
from tests.servers import VERSIONS, Cluster, Server, Workspace, find_versions, open_workspace

NEWEST = VERSIONS[-1]
CROSSINGS = ((15, 18), (16, 16), (18, 15))
WORKSPACE = "REPLICATOR_TEST_WORKSPACE"

MakePair = Callable[..., Pair]
MakeCluster = Callable[..., Cluster]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="run every test on all nine crossings of 15, 16 and 18")


def pytest_configure(config: pytest.Config) -> None:
    """Make one workspace for all workers, and keep the caller's PostgreSQL settings out of the tests."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    if config.getoption("--matrix"):
        os.environ[AFRESH] = "1"
    if not hasattr(config, "workerinput"):
        stack = contextlib.ExitStack()
        config.add_cleanup(stack.close)
        os.environ[WORKSPACE] = str(stack.enter_context(open_workspace(in_memory=True)).path)


def pytest_report_header(config: pytest.Config) -> list[str]:
    docker = "docker for shared servers" if engine_answers() else "local servers"
    found = ", ".join(f"{version} = {name}" for version, name in find_versions().items())
    return [f"PostgreSQL: {found} ({docker})"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured (`record_property("measured", ...)`), also of those that passed on a worker."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [
        text
        for report in reports
        if report.when == "call"
        for name, text in report.user_properties
        if name == "measured"
    ]
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(str(line))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "crossing" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker("versions") is not None
        crossings = choose_crossings(
            metafunc.definition.nodeid, marked=marked, matrix=metafunc.config.getoption("--matrix")
        )
        metafunc.parametrize("crossing", crossings, ids=[f"{source}-{target}" for source, target in crossings])


def choose_crossings(test: str, *, marked: bool, matrix: bool) -> list[tuple[int, int]]:
    """Return the (source, target) versions a test runs on; REPLICATOR_TEST_VERSIONS=15-18,16-16 overrides.

    A marked test runs on 18 and on one of the crossings, which its name decides: all together cover each of them.
    """
    chosen = os.environ.get("REPLICATOR_TEST_VERSIONS")
    if chosen:
        pairs = (crossing.split("-") for crossing in chosen.split(","))
        return [(int(source), int(target)) for source, target in pairs]
    if matrix:
        return list(itertools.product(VERSIONS, VERSIONS))
    own = CROSSINGS[zlib.crc32(test.encode()) % len(CROSSINGS)]
    return [(NEWEST, NEWEST), own] if marked else [(NEWEST, NEWEST)]


class SharedServers:
    """The servers of one worker, each started when first asked for. Nobody stops these but the session."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._servers: dict[tuple[str, int], Server] = {}

    def get(self, side: str, version: int) -> Server:
        """Return the server of one side (`source` or `target`) and major version."""
        if (side, version) not in self._servers:
            self._servers[side, version] = self._start(version)
        return self._servers[side, version]

    def _start(self, version: int) -> Server:
        server = Container(version) if engine_answers() else Cluster(version, self._workspace).start()
        # A database is a copy of this one, with the cache of the catalogue that the first connection leaves in it.
        server.connect("template1").close()
        return server

    def remove(self) -> None:
        """Stop them all."""
        for server in self._servers.values():
            server.remove()


@pytest.fixture(scope="session")
def workspace() -> Workspace:
    return Workspace(Path(os.environ[WORKSPACE]))


@pytest.fixture(scope="session")
def shared_servers(workspace: Workspace) -> Iterator[SharedServers]:
    servers = SharedServers(workspace)
    yield servers
    servers.remove()


@pytest.fixture
def make_cluster(workspace: Workspace) -> Iterator[MakeCluster]:
    """Return a function that starts a server of the test's own: `make_cluster(15, settings={...})`."""
    clusters: list[Cluster] = []

    def make(version: int = NEWEST, *, settings: dict[str, str] | None = None) -> Cluster:
        cluster = Cluster(version, workspace, settings=settings)
        clusters.append(cluster)
        return cluster.start()

    yield make
    for cluster in clusters:
        cluster.remove()


@pytest.fixture
def make_pair(crossing: tuple[int, int], shared_servers: SharedServers, tmp_path: Path) -> Iterator[MakePair]:
    """Return a function that makes pairs: `make_pair(replica=False, source_server=cluster)`."""
    pairs: list[Pair] = []

    def make(
        *,
        source_server: Server | None = None,
        target_server: Server | None = None,
        replica: bool = True,
        listens: bool = False,
        source_encoding: str = "UTF8",
        target_encoding: str = "UTF8",
    ) -> Pair:
        folder = tmp_path / f"pair{len(pairs)}"
        folder.mkdir()
        pair = Pair(
            source_server or shared_servers.get("source", crossing[0]),
            target_server or shared_servers.get("target", crossing[1]),
            folder,
            replica=replica,
            listens=listens,
            source_encoding=source_encoding,
            target_encoding=target_encoding,
        )
        pairs.append(pair)
        return pair

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    return make_pair()


@pytest.fixture
def streamed(make_pair: MakePair) -> Pair:
    """Return a pair whose reader may replicate and owns nothing; the publication is made by the owner."""
    return make_pair(listens=True)
