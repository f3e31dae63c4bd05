"""The command `why`. Values of a row are printed here, on stdout, because they are asked for; no log has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replicator.apply.job import Job
from replicator.cli.output import as_text, print_json, print_table
from replicator.cli.session import open_pair, open_settings
from replicator.errors import EXIT_OK
from replicator.sync.preparation import open_access
from replicator.why.inquiry import Answer, inquire

_BATCH_KEYS = (
    "batch_id", "execution_id", "path", "load_type", "strategy", "status", "started_at", "completed_at",
    "watermark_end", "rows_extracted", "rows_inserted", "rows_updated", "rows_deleted", "rows_missed_before",
    "error_code", "error_message",
)  # fmt: skip
_SHOWN = 60
_LEAD = 12


def show_why(config: Path | None, table: str, key: Sequence[str], *, as_json: bool) -> int:
    """Print why the target has of a key what it has."""
    settings = open_settings(config)
    access = open_access(settings)
    with open_pair(settings, access) as (source, target):
        answer = inquire(settings, access, source, target, table, key)
    if as_json:
        print_json(_describe(answer))
    else:
        _print(answer)
    return EXIT_OK


def _describe(answer: Answer) -> dict[str, Any]:
    seen, reason = answer.seen, answer.reason
    source, target = seen.source, seen.target
    return {
        "table": answer.table,
        "target": answer.target,
        "key": answer.key,
        "target_key": None if seen.target_key is None else list(seen.target_key),
        "verdict": reason.verdict,
        "reason": reason.sentence,
        "hint": reason.hint,
        "source_row": source and {"satisfies_where": source.satisfies, "values": source.values},
        "target_row": target and {"deleted_at": target.deleted_at, "values": target.values},
        "different": [asdict(difference) for difference in seen.differences],
        "lacking": list(seen.lacking),
        "rules": describe_rules(answer.job),
        "quarantine": seen.quarantined,
        "listener": asdict(seen.stream),
        "batches": [{name: batch[name] for name in _BATCH_KEYS} for batch in answer.batches],
    }


def describe_rules(job: Job) -> dict[str, Any]:
    """Return the rules between a row and its copy."""
    mapping, settings = job.mapping, job.settings
    kept = {output.source.name for output in mapping.outputs}
    masks = {o.source.name: settings.mask[o.source.name] for o in mapping.outputs if o.source.name in settings.mask}
    return {
        "key": [output.source.name for output in mapping.key_outputs],
        "where": settings.where,
        "excluded": [column.name for column in mapping.relation.columns if column.name not in kept],
        "rename": {o.source.name: o.name for o in mapping.outputs if o.name != o.source.name},
        "mask": masks,
        "nan_to_null": settings.nan_to_null,
        "null_values": list(settings.null_values),
        "deletes": settings.deletes,
    }


def _print(answer: Answer) -> None:
    key = ", ".join(f"{name} = {text}" for name, text in zip(answer.key_columns, answer.key, strict=True))
    print(as_text(f"{answer.table} ({key}) -> {answer.target}"))
    print(as_text(f"{answer.reason.verdict}: {answer.reason.sentence}"))
    if answer.reason.hint is not None:
        print(as_text(f"  hint: {answer.reason.hint}"))
    print()
    print_table(("column", "source", "target", "differs"), list(_list_values(answer)))
    print()
    for label, text in _list_facts(answer):
        print(f"{label:<11} {as_text(text)}")
    if answer.batches:
        print()
        columns = ("batch", "started", "path", "load", "status", "ins", "upd", "del", "error")
        print_table(columns, [_batch_row(batch) for batch in answer.batches], right=columns[5:8])


def _list_values(answer: Answer) -> Iterator[tuple[str, str, str, str]]:
    """Yield (column, source, target, differs) for every column that either side shows."""
    source = answer.seen.source.values if answer.seen.source else {}
    target = answer.seen.target.values if answer.seen.target else {}
    different = {difference.column for difference in answer.seen.differences}
    for name in source or target:
        here, there = source.get(name), target.get(name)
        start = _first_difference(here, there) if name in different else 0
        shown = (_show(here, start) if source else "", _show(there, start) if target else "")
        yield name, *shown, "yes" if name in different else ""
    for name in answer.seen.lacking:
        yield name, "", "not there yet", "yes"


def _first_difference(one: str | None, other: str | None) -> int:
    if one is None or other is None:
        return 0
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _show(text: str | None, start: int) -> str:
    """Return a value for people: NULL apart from texts, long ones around the place where they begin to differ."""
    if text is None:
        return "NULL"
    begin = 0 if start < _SHOWN - _LEAD else start - _LEAD
    cut = text[begin : begin + _SHOWN]
    return f"{'...' if begin else ''}'{cut}'{'...' if begin + _SHOWN < len(text) else ''}"


def _list_facts(answer: Answer) -> Iterator[tuple[str, str]]:
    seen, rules = answer.seen, describe_rules(answer.job)
    if rules["where"] is not None:
        said = "" if seen.source is None else " (satisfied)" if seen.source.satisfies else " (not satisfied)"
        yield "where", f"{rules['where']}{said}"
    yield from (("rename", f"{old} -> {new}") for old, new in rules["rename"].items())
    yield from (("mask", f"{column}: {mask}") for column, mask in rules["mask"].items())
    if rules["excluded"]:
        yield "excluded", ", ".join(rules["excluded"])
    yield "strategy", f"{answer.job.choice.strategy}: {answer.job.choice.reason}"
    yield "quarantine", "no" if seen.quarantined is None else f"since {seen.quarantined['first_at']}"
    yield "listener", _describe_stream(answer)


def _describe_stream(answer: Answer) -> str:
    stream = answer.seen.stream
    if not stream.holds:
        return "does not keep this table"
    return f"{'at work' if stream.is_live else 'does not run'}, at {stream.position}, data as of {stream.fresh_at}"


def _batch_row(batch: dict[str, Any]) -> tuple[object, ...]:
    return (
        str(batch["batch_id"]),
        batch["started_at"],
        batch["path"],
        batch["load_type"],
        batch["status"],
        batch["rows_inserted"],
        batch["rows_updated"],
        batch["rows_deleted"],
        batch["error_message"],
    )
