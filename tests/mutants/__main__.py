"""`python -m tests.mutants`: plant known bugs one at a time, and see that a test catches each.

Exit code 1 if a bug survives, no longer applies to the code, or if its tests fail without it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS
from tests.mutants.trial import Verdict, copied_checkout, run_tests, try_mutant
from tests.pair import ROOT

TITLE_WIDTH = max(len(mutant.title) for mutant in MUTANTS)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    bugs = sorted({mutant.bug for mutant in MUTANTS}, key=lambda bug: int(bug[1:]))
    parser.add_argument("only", nargs="*", metavar="BUG", help=f"ids, all by default: {' '.join(bugs)}")
    parser.add_argument("--out", type=Path, default=ROOT / ".artefacts" / "mutants", help="where pytest's output goes")
    options = parser.parse_args()
    unknown = sorted(set(options.only) - set(bugs))
    if unknown:
        parser.error(f"no mutant has the id {', '.join(unknown)}")
    return options


def check_unplanted(mutants: Sequence[Mutant]) -> bool:
    """Say whether the tests pass without a bug; one that fails anyway catches nothing."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    with copied_checkout() as root:
        code, output = run_tests(root, tests)
    say("-", f"nothing: {len(tests)} tests on the code as it is", "passed" if code == 0 else "FAILED")
    if code != 0:
        sys.stdout.write(output)
    return code == 0


def say(bug: str, title: str, told: str) -> None:
    sys.stdout.write(f"{bug:<4} {title:<{TITLE_WIDTH}} {told}\n")
    sys.stdout.flush()


def keep_output(folder: Path, mutant: Mutant, verdict: Verdict) -> None:
    """Keep what pytest printed, for whoever doubts a verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{mutant.bug} {mutant.title}".replace("/", " ")
    (folder / f"{name}.txt").write_text(verdict.output, "utf-8")


def main() -> int:
    """Try the chosen mutants, and print a line for each."""
    options = parse_arguments()
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.bug in options.only]
    say("BUG", "PLANTED", "CAUGHT BY")
    if not check_unplanted(chosen):
        return 1
    caught = 0
    for mutant in chosen:
        verdict = try_mutant(mutant)
        keep_output(options.out, mutant, verdict)
        say(mutant.bug, mutant.title, verdict.told)
        caught += verdict.caught
    sys.stdout.write(f"{len(chosen)} planted, {caught} caught\n")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
