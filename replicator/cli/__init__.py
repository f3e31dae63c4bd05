"""The command line: the only place that builds settings and wires parts together."""

from __future__ import annotations

import gc
import sys

GARBAGE_THRESHOLD = 50_000
"""Objects made before the collector looks for cycles. Python's 700 costs a start its tenth: modules are no garbage."""


def main() -> None:
    """Run the command line and exit with the contract's code."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    from replicator.cli.pipe import explain_lost, open_streams

    out = open_streams()
    from replicator.cli.app import run

    exit_code = run(sys.argv[1:])
    if lost := explain_lost(out):
        print(lost, file=sys.stderr)
    sys.exit(exit_code)
