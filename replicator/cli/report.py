"""The commands that only look: `status`, `history`, `health`."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from replicator.apply.control import Control, TableRecord
from replicator.apply.stream_control import ListenerState, StreamControl, StreamTable
from replicator.cli.output import print_json, print_table
from replicator.cli.session import open_control, open_settings
from replicator.config.settings import Settings, target_dsn
from replicator.errors import EXIT_FAILED, EXIT_OK, PassingError, PreflightError, ReplicatorError
from replicator.monitor.incident import in_words
from replicator.relation import TABLE
from replicator.selection import parse_table_name, select_entry
from replicator.strategy import BOUNDED, EXACT
from replicator.sync.inventory import read_table_argument

Row = dict[str, Any]


def show_status(config: Path | None, *, as_json: bool) -> int:
    """Print where every table stands, and the stream if there is one."""
    settings = open_settings(config)
    with open_control(settings) as control:
        control_exists = control.exists() and not control.list_pending()
        streams = StreamControl(control.connection, control.schema, control.pipeline)
        state = streams.read_state() if control_exists else None
        streamed = streams.read_tables() if control_exists else {}
        tables = _read_status(control, state, streamed) if control.exists() else []
        waiting = Counter(row["table_name"] for row in streams.read_quarantine()) if control_exists else Counter()
    for table in tables:
        table["quarantined"] = waiting[table["table"]]
    slot = _look_at_slot(settings) if state is not None and state.slot_name is not None else None
    if as_json:
        print_json({"pipeline": settings.pipeline, "tables": tables, "slot": slot})
        return EXIT_OK
    columns = ("table", "target", "strategy", "guarantee", "data as of", "lag", "last run", "status")
    print_table(columns, [_status_row(table) for table in tables], right=("lag",))
    if waiting:
        print(f"\n{waiting.total()} rows in quarantine: replicator quarantine list")
    if slot is not None:
        print(f"\n{_describe_slot(slot)}")
    if target_dsn(settings) is None:
        from replicator.embedded import describe

        print(f"\n{describe(settings.data_dir).summary}")
    return EXIT_OK


def _look_at_slot(settings: Settings) -> Row:
    """Return the slot as JSON has it; of one that is gone, or whose source does not answer, only the name."""
    from replicator.cli.slot import describe_slot, watch_slot

    unknown = dict.fromkeys(("active", "wal_status", "lag_bytes", "safe_wal_bytes", "invalid_in_seconds"))
    try:
        found = watch_slot(settings)
    except ReplicatorError as error:
        return {"name": settings.slot_name, **unknown, "wal_status": f"unknown: {error.what}"}
    return {"name": settings.slot_name, **unknown, "wal_status": "missing"} if found is None else describe_slot(*found)


def _describe_slot(slot: Row) -> str:
    text = f"slot {slot['name']}: {'active' if slot['active'] else 'not active'}, WAL {slot['wal_status']}"
    if slot["lag_bytes"] is not None:
        text += f", {slot['lag_bytes']:,} bytes behind"
    if slot["invalid_in_seconds"] is not None:
        text += f", invalid in about {timedelta(seconds=round(slot['invalid_in_seconds']))} if nothing changes"
    return text


def _read_status(control: Control, state: ListenerState | None, streamed: dict[str, StreamTable]) -> list[Row]:
    last = control.read_last_batches()
    now = datetime.now(UTC)
    records = control.read_records()
    rows = [_status(record, last.get(table), now) for table, record in sorted(records.items())]
    naming = {table for table, record in records.items() if any(c.names_objects for c in record.columns)}
    for row in rows:
        if row["table"] in streamed and state is not None and state.position is not None:
            fresh = max(moment for moment in (row["fresh_as_of"], state.fresh_at) if moment is not None)
            row.update(
                strategy="stream",
                guarantee=BOUNDED if row["table"] in naming else EXACT,
                position=str(state.position),
                fresh_as_of=fresh,
                lag_seconds=round((now - fresh).total_seconds(), 1),
            )
    return rows


def _status(record: TableRecord, last_run: Row | None, now: datetime) -> Row:
    state = record.state
    lag = None if state.snapshot_at is None else round((now - state.snapshot_at).total_seconds(), 1)
    return {
        "table": record.table,
        "target": record.target,
        "strategy": state.strategy,
        "guarantee": record.guarantee,
        "watermark": state.watermark_mark,
        "position": None if state.lsn is None else str(state.lsn),
        "fresh_as_of": state.snapshot_at,
        "lag_seconds": lag,
        "verified_through": state.verified_through,
        "last_run": last_run,
    }


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
        last.get("status"),
    )


def show_history(config: Path | None, table: str | None, limit: int, *, as_json: bool) -> int:
    """Print the newest batches."""
    settings = open_settings(config)
    name = None if table is None else read_table_argument(table)
    with open_control(settings) as control:
        rows = control.read_history(name, limit) if control.exists() else []
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
        row["status"],
        row["rows_extracted"],
        row["rows_inserted"],
        row["rows_updated"],
        row["rows_deleted"],
        row["rows_missed_before"],
        f"{row['duration_seconds'] or 0:.2f}",
        row["error_message"],
    )


def show_health(config: Path | None, *, as_json: bool) -> int:
    """Print one line; return 0 when every table is healthy, 1 when not."""
    settings = open_settings(config)
    try:
        with open_control(settings) as control:
            reasons = find_reasons(control, settings) if control.exists() else ["nothing has been synced yet"]
    except (PreflightError, PassingError) as error:
        reasons = [error.message]
    if as_json:
        print_json({"healthy": not reasons, "reasons": reasons})
    else:
        print("unhealthy: " + "; ".join(reasons) if reasons else "healthy")
    return EXIT_FAILED if reasons else EXIT_OK


def find_reasons(control: Control, settings: Settings) -> list[str]:
    """Return why the pipeline is not healthy, in plain words; empty when it is."""
    records, last = control.read_records(), control.read_last_batches()
    successes = control.read_last_successes()
    streams = StreamControl(control.connection, control.schema, control.pipeline)
    has_stream = not control.list_pending()
    streamed = streams.read_tables() if has_stream else {}
    reasons = [] if records else ["nothing has been synced yet"]
    oldest = datetime.now(UTC) - settings.alerts.stale_after
    for table in sorted(records):
        if last.get(table, {}).get("status") == "skipped":
            reasons.append(f"{table}: it is gone from the source ({last[table]['error_code']})")
            continue
        wrong = []
        if last.get(table, {}).get("status") == "failed":
            wrong.append(f"{table}: the last run failed ({last[table]['error_code']})")
        if table not in successes:
            wrong.append(f"{table}: never synced")
        elif successes[table] < oldest and table not in streamed:
            wrong.append(f"{table}: no success for {in_words(datetime.now(UTC) - successes[table])}")
        if wrong and select_entry(settings.entries, *parse_table_name(table), TABLE) is None:
            wrong = [f"{table}: the configuration does not select it any more (replicator forget '{table}' --yes)"]
        reasons += wrong
    if has_stream and (waiting := len(streams.read_quarantine())):
        reasons.append(f"{waiting} rows in quarantine")
    return reasons + (_find_stream_reasons(streams, settings) if has_stream else [])


# A listener writes its position at least every second while it streams, so this long without one is trouble.
_LISTENER_LAG = timedelta(minutes=5)


def _find_stream_reasons(streams: StreamControl, settings: Settings) -> list[str]:
    """Return what is wrong with the stream, if there is one."""
    state = streams.read_state()
    if state is None or state.slot_name is None:
        return []
    reasons = [] if streams.is_listening() else ["the listener does not run"]
    if state.position is None:
        reasons.append("the listener's copy is not complete")
    elif state.fresh_at is not None and datetime.now(UTC) - state.fresh_at > _LISTENER_LAG:
        reasons.append(f"the listener is {in_words(datetime.now(UTC) - state.fresh_at)} behind")
    slot = _look_at_slot(settings)
    if slot["wal_status"] not in ("reserved", "extended"):
        reasons.append(f"slot {slot['name']}: {slot['wal_status']}")
    return reasons
