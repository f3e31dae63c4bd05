"""The command `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from replicator.cli.output import describe_error, print_error, print_json, print_table
from replicator.cli.session import open_run, open_settings
from replicator.cli.sync import progress_bar, stop_on_signal
from replicator.proof.judgement import Look
from replicator.proof.verdict import Verdict
from replicator.proof.verify import VerifyResult, verify

_COLUMNS = ("table", "equal", "source rows", "target rows", "missing", "extra", "different", "undecided", "repaired")
_MOST_SHOWN = 20


def run_verify(
    config: Path | None,
    tables: Sequence[str],
    *,
    repair: bool,
    show_values: bool,
    max_rate: float | None,
    jobs: int | None,
    triggered_by: str,
    as_json: bool,
    execution_id: UUID | None = None,
) -> int:
    """Compare the tables and print how they do; return the exit code. max_rate: MB/s of each side's heap."""
    settings = open_settings(config)
    look = Look(show_values, None if max_rate is None else max_rate * 1_000_000)
    with open_run(settings) as conninfo, stop_on_signal() as stop:
        with progress_bar("read", of_bytes=True) as progress:
            result = verify(
                settings,
                conninfo,
                tables=tables,
                repair=repair,
                look=look,
                jobs=jobs,
                triggered_by=triggered_by,
                execution_id=execution_id,
                progress=progress,
                stop=stop,
            )
        _print_result(result, show_values=show_values, as_json=as_json)
    return result.exit_code


def _print_result(result: VerifyResult, *, show_values: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "tables": [verdict.as_json(with_values=show_values) for verdict in result.verdicts],
                "errors": {table: describe_error(error) | {"table": table} for table, error in result.errors.items()},
            }
        )
    else:
        print_table(_COLUMNS, [_row(verdict) for verdict in result.verdicts], right=_COLUMNS[2:])
        for verdict in result.verdicts:
            _print_findings(verdict, show_values=show_values)
    for error in result.errors.values():
        print_error(error)


def _row(verdict: Verdict) -> tuple[object, ...]:
    counts = verdict.count()
    return (
        verdict.table,
        "undecided" if verdict.is_undecided else verdict.equal,
        verdict.rows_source,
        verdict.rows_target,
        counts.missing,
        counts.extra,
        counts.different,
        len(verdict.undecided),
        verdict.repaired,
    )


def _print_findings(verdict: Verdict, *, show_values: bool) -> None:
    """Print the first of the keys that differ; all of them are in the JSON."""
    if verdict.findings:
        print(f"\n{verdict.table}, by key ({', '.join(verdict.key)}):")
    for finding in verdict.findings[:_MOST_SHOWN]:
        line = f"  {finding.kind:9}  {write_key(finding.key)}"
        print(line + (f"  ({', '.join(finding.columns)})" if finding.columns else ""))
        if show_values:
            for column, sides in verdict.describe_values(finding).items():
                print(f"             {column}: " + "  ".join(f"{side} {_quote(v)}" for side, v in sides.items()))
    if (more := verdict.mismatched - min(len(verdict.findings), _MOST_SHOWN)) and verdict.findings:
        print(f"  ... and {more:,} more: --json names up to 100,000 of a table")
    for key in verdict.undecided[:_MOST_SHOWN]:
        print(f"  undecided  {write_key(key)}  (it was being changed at every look)")


def write_key(key: Sequence[str | None]) -> str:
    """Return a key as a line shows it."""
    return " ".join(_quote(text) for text in key)


def _quote(text: str | None) -> str:
    return "NULL" if text is None else repr(text)
