"""The command `health`, and how the state of health is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replicator.cli.output import as_text, print_json
from replicator.cli.session import open_control, open_settings
from replicator.cli.slot import describe_slot, watch_slot
from replicator.config.settings import Settings
from replicator.errors import EXIT_FAILED, EXIT_OK, PassingError, PreflightError, ReplicatorError
from replicator.monitor.facts import SourceAnswer, describe_problem, read_facts
from replicator.monitor.health import Health, judge, judge_unreachable

Row = dict[str, Any]
_SHOWN = 20


def show_health(config: Path | None, *, as_json: bool) -> int:
    """Print one line; return 0 when the pipeline is healthy, 1 when not."""
    settings = open_settings(config)
    source = watch_source(settings)
    try:
        with open_control(settings) as control:
            health = judge(read_facts(control, settings, source, with_history=True))
    except (PreflightError, PassingError) as error:
        health = judge_unreachable(describe_problem(error))
    is_healthy = health.state == "healthy"
    if as_json:
        reasons = [reason.document() for reason in health.reasons]
        print_json({"healthy": is_healthy, "state": health.state, "reasons": reasons})
    else:
        sentences = "; ".join(as_text(reason.sentence) for reason in health.reasons)
        print(health.state if is_healthy else f"{health.state}: {sentences}")
    return EXIT_OK if is_healthy else EXIT_FAILED


def watch_source(settings: Settings) -> SourceAnswer:
    """Ask the source for the slot, and for how long it lasts."""
    try:
        found = watch_slot(settings)
    except ReplicatorError as error:
        return SourceAnswer(problem=describe_problem(error))
    return SourceAnswer() if found is None else SourceAnswer(found[0], None, found[1])


def describe_seen_slot(settings: Settings, source: SourceAnswer) -> Row:
    """Return the slot as JSON has it; of one that is gone, or whose source does not answer, only the name."""
    if source.slot is not None:
        return describe_slot(source.slot, source.invalid_in_s)
    unknown = dict.fromkeys(("active", "wal_status", "lag_bytes", "safe_wal_bytes", "invalid_in_seconds"))
    status = "missing" if source.problem is None else f"unknown: {source.problem.message}"
    return {**unknown, "name": settings.slot_name, "wal_status": status}


def describe_reasons(health: Health) -> str:
    """Return state and reasons with their hints, as lines for people."""
    lines = [f"{health.state}:"]
    for reason in health.reasons[:_SHOWN]:
        lines.append(f"  {as_text(reason.sentence)}")
        lines += [f"    hint: {as_text(reason.hint)}"] if reason.hint else []
    if len(health.reasons) > _SHOWN:
        lines.append(f"  and {len(health.reasons) - _SHOWN} more: replicator health --json")
    return "\n".join(lines)
