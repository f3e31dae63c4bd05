"""The command `listen`."""

from __future__ import annotations

import sys
from pathlib import Path

from replicator.cli.output import print_error, print_json, print_table
from replicator.cli.session import alarm_beside, open_run, open_settings
from replicator.cli.sync import stop_on_signal
from replicator.errors import EXIT_OK, OperatorError, UsageError
from replicator.position import Lsn
from replicator.stream.listener import Listener
from replicator.stream.session import ListenResult
from replicator.sync.pipeline import default_jobs

# Two threads share one interpreter: at Python's own 5 ms the loader would wait that long for a busy reader.
_SWITCH_INTERVAL_S = 0.0005


def run_listen(
    config: Path | None, *, until_caught_up: bool, until_lsn: str | None, repair_gap: bool, as_json: bool
) -> int:
    """Follow the source; return when it is asked to, or at the end of a bounded run."""
    if until_caught_up and until_lsn is not None:
        raise UsageError("--until-caught-up and --until-lsn cannot stand together", hint="choose one of them")
    lsn = None if until_lsn is None else _read_lsn(until_lsn)
    settings = open_settings(config)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with open_run(settings) as conninfo, alarm_beside(settings, conninfo), stop_on_signal() as stop:
        listener = Listener(
            settings,
            conninfo,
            until_caught_up=until_caught_up,
            until_lsn=lsn,
            repair_gap=repair_gap,
            jobs=default_jobs(),
            stop=stop,
        )
        result = listener.run()
        _print_result(result, as_json=as_json)
        for table, parked in result.parked.items():
            print_error(OperatorError(f"{table} is parked: {parked.message}", hint=parked.hint, id=parked.id))
    return result.exit_code if listener.is_bounded else EXIT_OK


def _read_lsn(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except ValueError:
        raise UsageError(
            "--until-lsn is not a WAL position",
            why="it has the form X/Y in hexadecimal",
            hint="psql on the source: select pg_current_wal_insert_lsn()",
        ) from None


def _print_result(result: ListenResult, *, as_json: bool) -> None:
    position = None if result.position is None else str(result.position)
    if as_json:
        print_json(
            {
                "execution_id": result.execution_id,
                "position": position,
                "transactions": result.transactions,
                "tables": [{"table": table, "changes": rows} for table, rows in sorted(result.rows.items())],
                "parked": [
                    {"table": p.table, "since": p.since, "lsn": p.lsn, "id": p.id, "message": p.message, "hint": p.hint}
                    for p in result.parked.values()
                ],
            }
        )
        return
    print_table(("table", "changes"), sorted(result.rows.items()), right=("changes",))
    print(f"\n{result.transactions:,} transactions; all up to {position or 'the start'} is in the target")
