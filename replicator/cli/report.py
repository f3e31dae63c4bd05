"""The commands that only look: `status` and `history`."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from replicator.apply.control import Control, TableRecord
from replicator.apply.stream_control import ListenerState, ParkedTable, StreamControl
from replicator.cli.health import describe_reasons, describe_seen_slot, watch_source
from replicator.cli.output import print_json, print_table
from replicator.cli.session import open_control, open_settings
from replicator.config.settings import target_dsn
from replicator.errors import EXIT_OK
from replicator.monitor.dead_runs import has_died, read_alive
from replicator.monitor.facts import has_stream, read_facts
from replicator.monitor.health import find_table_state, judge
from replicator.strategy import BOUNDED, EXACT
from replicator.sync.inventory import read_table_argument
from replicator.sync.preparation import unknown_record

Row = dict[str, Any]


def show_status(config: Path | None, *, as_json: bool) -> int:
    """Print where every table stands, the state of health with its reasons, and the stream if there is one."""
    settings = open_settings(config)
    source = watch_source(settings)
    with open_control(settings) as control:
        health = judge(read_facts(control, settings, source, with_history=True))
        is_ready = control.exists() and not control.list_pending()
        tables = _read_status(control) if is_ready else []
        is_streamed = is_ready and has_stream(control)
    slot = describe_seen_slot(settings, source) if is_streamed else None
    if as_json:
        print_json({"pipeline": settings.pipeline, **health.document(), "tables": tables, "slot": slot})
        return EXIT_OK
    columns = ("table", "target", "strategy", "guarantee", "data as of", "lag", "last run", "status")
    shown = sorted(tables, key=_rank)
    print_table(columns, [_status_row(table) for table in shown], right=("lag",))
    if health.reasons:
        print(f"\n{describe_reasons(health)}")
    if slot is not None:
        print(f"\n{_describe_slot(slot)}")
    if target_dsn(settings) is None:
        from replicator.embedded import describe

        print(f"\n{describe(settings.data_dir).summary}")
    return EXIT_OK


def _describe_slot(slot: Row) -> str:
    text = f"slot {slot['name']}: {'active' if slot['active'] else 'not active'}, WAL {slot['wal_status']}"
    if slot["lag_bytes"] is not None:
        text += f", {slot['lag_bytes']:,} bytes behind"
    if slot["invalid_in_seconds"] is not None:
        text += f", invalid in about {timedelta(seconds=round(slot['invalid_in_seconds']))} if nothing changes"
    return text


def _read_status(control: Control) -> list[Row]:
    """Return where every table stands, those among them that are parked and were never copied."""
    streams = StreamControl(control.connection, control.schema, control.pipeline)
    records = control.read_records()
    state, streamed, parked, copying = (
        streams.read_state(), streams.read_tables(), streams.read_parked(), streams.read_copying(),
    )  # fmt: skip
    waiting = Counter(row["table_name"] for row in streams.read_quarantine())
    last = {row["table_name"]: row for row in read_alive(control, lambda: list(control.read_last_batches().values()))}
    is_copied = state is not None and state.position is not None
    now = datetime.now(UTC)
    rows = []
    for table in sorted({*records, *parked, *copying}):
        row = _status(records.get(table) or unknown_record(table), last.get(table), now)
        row["state"] = find_table_state(table, parked=parked, copying=copying, streamed=streamed, is_copied=is_copied)
        row["parked"] = describe_parked(parked.get(table))
        row["quarantined"] = waiting[table]
        if table in streamed and state is not None and state.position is not None:
            row.update(_stream_status(row, state, now, records.get(table)))
        rows.append(row)
    return rows


def describe_parked(parked: ParkedTable | None) -> Row | None:
    """Return why a table is parked, as JSON has it; None of one that is not."""
    if parked is None:
        return None
    lsn = None if parked.lsn is None else str(parked.lsn)
    return {"since": parked.since, "lsn": lsn, "id": parked.id, "message": parked.message, "hint": parked.hint}


def _stream_status(row: Row, state: ListenerState, now: datetime, record: TableRecord | None) -> Row:
    names_objects = record is not None and any(column.names_objects for column in record.columns)
    fresh = max((moment for moment in (row["fresh_as_of"], state.fresh_at) if moment is not None), default=None)
    return {
        "strategy": "stream",
        "guarantee": BOUNDED if names_objects else EXACT,
        "position": str(state.position),
        "fresh_as_of": fresh,
        "lag_seconds": None if fresh is None else round((now - fresh).total_seconds(), 1),
    }


def _status(record: TableRecord, last_run: Row | None, now: datetime) -> Row:
    state = record.state
    lag = None if state.snapshot_at is None else round((now - state.snapshot_at).total_seconds(), 1)
    return {
        "table": record.table,
        "target": record.target,
        "state": "nightly",
        "parked": None,
        "strategy": state.strategy,
        "guarantee": record.guarantee,
        "watermark": state.watermark_mark,
        "position": None if state.lsn is None else str(state.lsn),
        "fresh_as_of": state.snapshot_at,
        "lag_seconds": lag,
        "verified_through": state.verified_through,
        "last_run": last_run,
    }


def _rank(table: Row) -> tuple[int, str]:
    """Return what tables are sorted by for people: those in trouble come first."""
    if table["state"] == "parked":
        return 0, table["table"]
    return (1 if (table["last_run"] or {}).get("status") == "failed" else 2), table["table"]


def _status_row(table: Row) -> tuple[object, ...]:
    lag = table["lag_seconds"]
    last = table["last_run"] or {}
    return (
        table["table"],
        table["target"],
        table["strategy"],
        table["guarantee"],
        table["fresh_as_of"],
        None if lag is None else str(timedelta(seconds=int(lag))),
        last.get("completed_at") or last.get("started_at"),
        table["state"] if table["state"] in ("parked", "copying") else _name_status(last),
    )


def _name_status(batch: Row) -> str | None:
    """Return how a batch ended, for people."""
    return "died" if has_died(batch) else batch.get("status")


def show_history(config: Path | None, table: str | None, limit: int, *, as_json: bool) -> int:
    """Print the newest batches."""
    settings = open_settings(config)
    name = None if table is None else read_table_argument(table)
    with open_control(settings) as control:
        rows = read_alive(control, lambda: control.read_history(name, limit)) if control.exists() else []
    if as_json:
        print_json({"batches": rows})
        return EXIT_OK
    columns = (
        "batch",
        "started",
        "table",
        "path",
        "load",
        "status",
        "read",
        "ins",
        "upd",
        "del",
        "missed",
        "seconds",
        "error",
    )
    print_table(columns, [_history_row(row) for row in rows], right=columns[6:12])
    return EXIT_OK


def _history_row(row: Row) -> tuple[object, ...]:
    return (
        str(row["batch_id"]),
        row["started_at"],
        row["table_name"],
        row["path"],
        row["load_type"],
        _name_status(row),
        row["rows_extracted"],
        row["rows_inserted"],
        row["rows_updated"],
        row["rows_deleted"],
        row["rows_missed_before"],
        f"{row['duration_seconds'] or 0:.2f}",
        row["error_message"],
    )
