"""The demo, from its two servers to its proof of equality."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.pair import Pair


@pytest.mark.slow
def test_the_demo_ends_equal_and_leaves_nothing_behind(pair: Pair) -> None:
    # A socket's path is short, and the servers' user has to get there.
    folder = Path(tempfile.mkdtemp(prefix="rd-"))
    folder.chmod(0o755)
    document = pair.run("demo", "--json", env={"TMPDIR": str(folder)}, timeout_s=300).json()
    folder.rmdir()
    assert document["equal"] is True
    assert {step["exit_code"] for step in document["steps"]} == {0}
    assert {step["command"].split()[0] for step in document["steps"]} > {"plan", "sync", "listen", "verify", "resync"}
    assert document["listen"]["transactions"] > 0
