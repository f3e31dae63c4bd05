"""The command line: the only place that builds settings and wires parts together."""

from __future__ import annotations

import gc
import sys

GARBAGE_THRESHOLD = 50_000
"""Objects made before the collector looks for cycles. Python's 700 costs a start its tenth: modules are no garbage."""


def main() -> None:
    """Run the command line and exit with the contract's code."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    from replicator.cli.app import run
    from replicator.cli.pipe import outlive_reader

    outlive_reader()
    sys.exit(run(sys.argv[1:]))
