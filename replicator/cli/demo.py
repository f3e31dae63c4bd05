"""The command `demo`: the user's own commands, run on two embedded servers with a chat platform's conversations."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any, get_args

from replicator.cli.output import print_json, print_table
from replicator.db import Connection, closing, connect
from replicator.demo.data import READER, WIDE_VIEW, Change, change_demo, create_demo
from replicator.demo.load import Load, put_under_load
from replicator.embedded import EmbeddedServer, ServerOptions, bring_up, take_down
from replicator.errors import EXIT_FAILED, EXIT_OK, OperatorError
from replicator.statement import sql_directory

TARGET = "public.conversas_analytics"
_CONFIG = """\
data_dir = "target"
# No target.dsn: the target is an embedded PostgreSQL, kept in data_dir.

[source]
dsn = "{source}"

[logs]
level = "warning"

[privacy]
mask_key_file = "mask.key"

[[tables]]
name = "public.*"

[[tables]]
name = "{view}"
target = "{target}"
key = ["conversation_id"]
watermark = "conversation_updated_at"
mask = {{ contact_name = "hash", contact_phone = "null" }}
nan_to_null = true
null_values = ["NaN", "NaT"]
"""


@dataclass
class Demo:
    """The stage: a directory with a configuration, a source and an embedded target."""

    folder: Path
    source: EmbeddedServer
    as_json: bool
    steps: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print a heading, unless one JSON document is all that may be printed."""
        if not self.as_json:
            print(f"\n== {text}\n", flush=True)

    def run(self, *arguments: str) -> None:
        """Run one of the tool's commands as a user would. Raises OperatorError when it fails."""
        command = [sys.executable, "-m", "replicator", *arguments]
        if not self.as_json:
            print(f"$ replicator {' '.join(arguments)}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=self.folder, env=_environment(), capture_output=self.as_json, check=False, text=True
        )
        self._settle(arguments, done.returncode, time.monotonic() - started)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        """Keep one of the tool's commands running while the block lasts, then ask it to end, as its service would."""
        command = [sys.executable, "-m", "replicator", *arguments]
        if not self.as_json:
            print(f"$ replicator {' '.join(arguments)} &", flush=True)
        started = time.monotonic()
        output = subprocess.DEVNULL if self.as_json else None
        with subprocess.Popen(
            command, cwd=self.folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process:
            try:
                yield
            finally:
                process.terminate()
                exit_code = process.wait(_START_S)
        self._settle(arguments, exit_code, time.monotonic() - started)

    def _settle(self, arguments: Sequence[str], exit_code: int, seconds: float) -> None:
        """Keep what a command did. Raises OperatorError when it failed."""
        self.steps.append({"command": " ".join(arguments), "exit_code": exit_code, "seconds": round(seconds, 2)})
        if exit_code != EXIT_OK:
            raise OperatorError(
                f"the demo's command failed: replicator {' '.join(arguments)}",
                why=f"exit code {exit_code}",
                hint="run it again with --keep and look into the directory that it names",
                id="demo_failed",
            )


_LOAD_S = 8.0
_LOAD_RATE = 200.0
_START_S = 60.0


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "REPLICATOR_"))}
    package = Path(__file__).resolve().parent.parent.parent
    return {**kept, "PYTHONPATH": os.pathsep.join([str(package), *filter(None, [kept.get("PYTHONPATH")])])}


def run_demo(*, keep: bool, as_json: bool, serve: bool = False, port: int = 8321) -> int:
    """Run the whole story; return 0 when every row ended equal. serve: then open the dashboard at `port`."""
    started = time.monotonic()
    with _stage(keep=keep, as_json=as_json) as (demo, source, target):
        _first_load(demo)
        late = _change_source(demo, source)
        _late_commit(demo, late)
        load = _listen(demo, source, target)
        demo.say("A full resync of the messages: read again, and exchanged in one transaction")
        demo.run("resync", "public.messages", "--yes")
        equal = _prove(demo, source, target)
        if as_json:
            figures = {
                "transactions": load.transactions,
                "transactions_per_second": round(load.rate, 1),
                "median_ms": round(load.median_s * 1000, 1),
                "most_ms": round(load.most_s * 1000, 1),
            }
            seconds = round(time.monotonic() - started, 1)
            print_json({"equal": equal, "seconds": seconds, "listen": figures, "steps": demo.steps})
        else:
            _look_around(demo, target, started)
        if serve:
            from replicator.cli.demo_serve import serve_demo

            demo.say("The dashboard, on this pipeline")
            serve_demo(demo.folder, source, _environment(), port=port)
    return EXIT_OK if equal else EXIT_FAILED


@contextmanager
def _stage(*, keep: bool, as_json: bool) -> Iterator[tuple[Demo, Connection, Connection]]:
    # The servers may run as another user than this process, so the way to them must be open; the data is not.
    folder = Path(tempfile.mkdtemp(prefix="replicator-demo-"))
    folder.chmod(0o755)
    options = ServerOptions(wal_level="logical", max_prepared_transactions=10)
    demo = Demo(folder, EmbeddedServer(folder / "source", options), as_json)
    try:
        demo.say("Two PostgreSQL servers, and a chat platform's conversations in the first")
        demo.source.start()
        with closing(_open_source(demo)) as source:
            create_demo(source)
            _write_config(demo)
            with closing(connect(bring_up(folder / "target"), side="target", first=True)) as target:
                yield demo, source, target
    finally:
        if keep:
            print(f"\nThe servers stay up in {folder}; stop them with: replicator demo --stop {folder}")
        else:
            stop_demo(folder)


def stop_demo(folder: Path) -> None:
    """Stop a demo's servers and remove its directory."""
    if not folder.name.startswith("replicator-demo-"):
        raise OperatorError(f"{folder} is not a demo's directory", hint="name the directory that the demo printed")
    with suppress(OperatorError):
        EmbeddedServer(folder / "source").stop()
    with suppress(OperatorError):
        take_down(folder / "target")
    rmtree(folder, ignore_errors=True)


def _open_source(demo: Demo) -> Connection:
    connection = connect(demo.source.dsn, side="source", first=True)
    connection.execute("SET search_path = public")
    return connection


def _write_config(demo: Demo) -> None:
    key = demo.folder / "mask.key"
    key.touch(mode=0o600)
    key.write_text(secrets.token_hex(32))
    reader = demo.source.dsn.replace("user=replicator", f"user={READER}")
    (demo.folder / "replicator.toml").write_text(_CONFIG.format(source=reader, view=WIDE_VIEW, target=TARGET))


def _first_load(demo: Demo) -> None:
    demo.say("The role `reader` has SELECT and nothing else: what would a sync do?")
    demo.run("plan")
    demo.say("The first run loads everything")
    demo.run("sync")


def _change_source(demo: Demo, source: Connection) -> Connection:
    demo.say("Inserts, updates, deletes, a change that moves no stamp; meanwhile one transaction stays open")
    late = _open_source(demo)
    late.execute("BEGIN")
    change_demo(late, "insert")
    for change in get_args(Change):
        change_demo(source, change)
    demo.run("sync")
    return late


def _late_commit(demo: Demo, late: Connection) -> None:
    demo.say("The open transaction commits, stamped with the time of its start; max(updated_at) would never see it")
    with closing(late):
        late.execute("COMMIT")
    demo.run("sync")
    demo.say("Nothing changed since: nothing is written")
    demo.run("sync")


def _listen(demo: Demo, source: Connection, target: Connection) -> Load:
    demo.say("The source's owner grants REPLICATION and publishes the tables: they are followed live, under load")
    source.execute((sql_directory() / "demo" / "replication.sql").read_bytes())
    with demo.running("listen"):
        _wait_for_stream(source)
        with closing(_open_source(demo)) as writer:
            load = put_under_load(writer, source, target, seconds=_LOAD_S, rate=_LOAD_RATE)
        if not demo.as_json:
            columns = ("transactions", "a second", "seconds", "probes", "median ms to visible", "most ms")
            figures = (
                load.transactions, round(load.rate), round(load.seconds, 1), len(load.probes_s),
                round(load.median_s * 1000, 1), round(load.most_s * 1000, 1),
            )  # fmt: skip
            print_table(columns, [figures], right=columns)
        demo.say("Verified beside the listener, range by range, in the stream's own time")
        demo.run("verify", "public.conversations", "public.messages", "public.contacts")
        demo.run("status")
    demo.say("A view has no stream: it stays with the nightly sync")
    demo.run("sync")
    return load


def _wait_for_stream(source: Connection) -> None:
    query = "SELECT FROM pg_stat_replication WHERE state = 'streaming'"
    deadline = time.monotonic() + _START_S
    while not source.execute(query).rowcount:
        if time.monotonic() > deadline:
            raise OperatorError("the demo's listener did not start", id="demo_failed")
        time.sleep(0.05)


def _prove(demo: Demo, source: Connection, target: Connection) -> bool:
    demo.say("Are both sides equal? Checksums of all rows, without the masked columns")
    tables = [(f"public.{name}", f"public.{name}") for name in _tables(source)] + [(WIDE_VIEW, TARGET)]
    rows = []
    for name, copy in tables:
        there, here = _checksum(source, name, cleaned=name == WIDE_VIEW), _checksum(target, copy, cleaned=False)
        rows.append((name, there[0], here[0], there[1], here[1], "equal" if there == here else "DIFFERENT"))
    if not demo.as_json:
        columns = ("table", "rows source", "rows target", "checksum source", "checksum target", "")
        print_table(columns, rows, right=columns[1:3])
    return all(row[-1] == "equal" for row in rows)


def _tables(source: Connection) -> list[str]:
    query = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"
    return [row["relname"] for row in source.execute(query).fetchall()]


def _checksum(connection: Connection, table: str, *, cleaned: bool) -> tuple[int, str]:
    """Return rows and a checksum over the rows as JSON texts; cleaned: NaN and NaT count as NULL, as the rules say."""
    value = "nullif(nullif(value, 'NaN'), 'NaT')" if cleaned else "value"
    statement = (sql_directory() / "demo" / "checksum.sql").read_text("utf-8")
    schema, name = table.split(".")
    query = statement.replace(":table", f'"{schema}"."{name}"').replace(":value", value)
    row = connection.execute(query.encode()).fetchone()
    return (row["rows"], row["digest"]) if row else (0, "")


def _look_around(demo: Demo, target: Connection, started: float) -> None:
    demo.say("The masked columns in the target")
    rows = target.execute((sql_directory() / "demo" / "masked.sql").read_bytes()).fetchall()
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    demo.say("The record of it all")
    demo.run("history", "--limit", "8")
    print(f"\nDone in {time.monotonic() - started:.0f} s. To look around in a target of your own:\n")
    print("  select * from replicator.vw_etl_stats;")
    print("  select * from replicator.vw_table_freshness;")
    print(f"  select replicator.get_last_successful_watermark('{WIDE_VIEW}');")
