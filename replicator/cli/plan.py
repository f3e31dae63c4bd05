"""The command `plan`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replicator.cli.output import as_text, describe_error, print_json
from replicator.cli.session import open_pair, open_settings
from replicator.errors import ReplicatorError, choose_exit_code
from replicator.preflight.table import check_selection
from replicator.selection import format_table_name
from replicator.strategy import WATERMARK
from replicator.sync.planning import Estimate, TablePlan, make_plan
from replicator.sync.preparation import open_access
from replicator.trust import Trust

_DELETES = {
    "hard": "hard: rows gone from the source are deleted",
    "soft": "soft: rows gone from the source get a time in _deleted_at",
    "ignore": "ignore: rows gone from the source stay",
}
_WARNING_KEYS = ("id", "table", "message", "hint")
_UNITS = ("kB", "MB", "GB", "TB")


def show_plan(config: Path | None, *, as_json: bool) -> int:
    """Print what the next sync would do; return the exit code that its errors would have."""
    settings = open_settings(config)
    access = open_access(settings)
    with open_pair(settings, access) as (source, target):
        plan = make_plan(settings, access, source, target)
    warnings = list(check_selection(plan))
    if as_json:
        told = [{key: getattr(warning, key) for key in _WARNING_KEYS} for warning in warnings]
        print_json({"tables": [_describe(table) for table in plan.tables], "warnings": told})
    else:
        print("\n\n".join("\n".join(_write_lines(table)) for table in plan.tables) or "no table is selected")
        for warning in warnings:
            print()
            print(as_text(f"warning [{warning.id}]: {warning.message}"))
            print(as_text(f"  hint: {warning.hint}"))
    errors = [table.error for table in plan.tables if table.error is not None]
    return choose_exit_code(errors, some_landed=len(errors) < len(plan.tables))


def _describe(plan: TablePlan) -> dict[str, Any]:
    job, reading, estimate = plan.job, plan.reading, plan.estimate
    return {
        "table": plan.table,
        "target": _name_target(plan),
        "load_type": reading and reading.load_type,
        "load_reason": reading and (reading.reason or None),
        "strategy": job and job.choice.strategy,
        "strategy_reason": job and job.choice.reason,
        "guarantee": job and job.choice.guarantee,
        "key": job and list(job.mapping.key),
        "watermark": job and job.mapping.watermark and job.mapping.watermark.name,
        "audit": reading and reading.audit,
        "deletes": plan.chosen and plan.chosen.settings.deletes,
        "estimated_rows": estimate and estimate.rows,
        "estimated_bytes": estimate and estimate.data_bytes,
        "scan_bytes": estimate and estimate.scan_bytes,
        "creates": bool(plan.types) and plan.existing is None,
        "ddl": list(plan.ddl),
        "watermark_trust": plan.trust and _describe_trust(plan.trust),
        "error": plan.error and describe_error(plan.error),
    }


def _describe_trust(trust: Trust) -> dict[str, Any]:
    return {**asdict(trust), "message": trust.sentence}


def _name_target(plan: TablePlan) -> str | None:
    return format_table_name(*plan.chosen.target) if plan.chosen else None


def _write_lines(plan: TablePlan) -> Iterator[str]:
    yield as_text(f"{plan.table} -> {_name_target(plan)}" if plan.chosen else plan.table)
    job, reading = plan.job, plan.reading
    if job is not None:
        yield _line("strategy", f"{job.choice.strategy} ({job.choice.guarantee}): {job.choice.reason}")
    if reading is not None:
        yield _line("load", f"{reading.load_type}: {reading.reason or 'what changed since the last sync'}")
        if reading.audit:
            missed = "the watermark missed" if reading.strategy == WATERMARK else "no row version tells of"
            yield _line("audit", f"what {missed} is looked for as well")
    if plan.trust is not None:
        yield _line("watermark", plan.trust.sentence)
    if plan.estimate is not None:
        yield _line("reads", _describe_estimate(plan.estimate))
    if plan.chosen is not None and plan.error is None:
        yield _line("deletes", _DELETES[plan.chosen.settings.deletes])
        yield from _lines("ddl", [f"{ddl};" for ddl in plan.ddl] or ["none"])
    if plan.error is not None:
        yield from _lines("stops", _error_lines(plan.error))


def _describe_estimate(estimate: Estimate) -> str:
    scan = "scans what its query needs"
    if estimate.scan_bytes is not None:
        scan = f"scans {format_about(estimate.scan_bytes)}"
    if estimate.rows is None or estimate.data_bytes is None:
        return f"the rows that changed, how many is not known ahead; {scan}"
    return f"about {estimate.rows:,} rows, {format_about(estimate.data_bytes)}; {scan}"


def _error_lines(error: ReplicatorError) -> list[str]:
    lines = [f"error [{error.id}]: {error.message}"]
    return [*lines, f"hint: {error.hint}"] if error.hint else lines


def _lines(label: str, texts: list[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield _line("" if number else label, text)


def _line(label: str, text: str) -> str:
    return f"  {label:<9} {as_text(text)}"


def format_about(size_bytes: float) -> str:
    """Return a size with two or three digits, for people."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} bytes"
    for unit in _UNITS:
        size_bytes /= 1024
        if size_bytes < 1024 or unit == _UNITS[-1]:
            break
    return f"{size_bytes:.1f} {unit}" if size_bytes < 10 else f"{size_bytes:.0f} {unit}"
