"""Give a test one source database, one target database, and the tool run as its users run it.

pair.source.execute(ddl)            superuser on the source; autocommit, pinned settings
pair.grant()                        lets `reader` read what is there now
pair.write_config(tables=["public.t"])
pair.run("sync")                    `python -m replicator sync` in pair.dir, exit code 0 expected
pair.assert_equal("public.t")       PostgreSQL says that source and target are equal
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import subprocess
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow, dict_row

from tests.launcher import kill_group, start_command
from tests.servers import PINNED, Server
from tests.wait import wait_until

ROOT = Path(__file__).resolve().parent.parent
Columns = Sequence[str] | Mapping[str, str]


@dataclass(frozen=True)
class Finished:
    """What a command of the tool left: its exit code and both streams."""

    args: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Return the one JSON document on stdout."""
        try:
            document = json.loads(self.stdout)
        except ValueError:
            raise AssertionError(f"stdout is not one JSON document\n{self}") from None
        assert document["schema"] == 1, self
        return document

    def __str__(self) -> str:
        command = " ".join(("replicator", *self.args))
        return f"$ {command}\nexit code {self.exit_code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Running:
    """A command of the tool that is still at work, in a process group of its own; streams go to files."""

    def __init__(
        self,
        args: tuple[str, ...],
        folder: Path,
        environment: Mapping[str, str],
        *,
        afresh: bool = False,
        constants: Mapping[str, float] | None = None,
    ) -> None:
        self.args = args
        stem = secrets.token_hex(4)
        self._stdout, self._stderr = folder / f"{stem}.stdout", folder / f"{stem}.stderr"
        self.process = start_command(
            args, folder, environment, self._stdout, self._stderr, afresh=afresh, constants=constants
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def stdout(self) -> str:
        """Return what it has printed so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """Return what it has logged so far."""
        return self._stderr.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Say whether it still runs."""
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        self.process.send_signal(number)

    def kill(self) -> Finished:
        """Kill -9 the command and every process that it started; one that has ended is left as it is."""
        if self.running:
            kill_group(self.process)
        return self.wait()

    def wait(self, timeout_s: float = 60.0, *, check: int | None = None) -> Finished:
        """Wait until it ends; `check` is the exit code it must end with."""
        try:
            finished = self._finished(self.process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s\n{self._finished(-1)}") from None
        assert check is None or finished.exit_code == check, f"expected exit code {check}\n{finished}"
        return finished

    def _finished(self, exit_code: int) -> Finished:
        return Finished(self.args, exit_code, self.stdout, self.stderr)


class Pair:
    """A fresh source and target database, their two roles, and a directory to run the tool in.

    `reader` has what the source's owner grants and no more: LOGIN, CONNECT, USAGE of schemas, SELECT.
    `writer` owns the target database, is no superuser, and may set `session_replication_role` if `replica`.
    `constants` are shorter waits than the package's, by full names, for commands from then on: a test that waits for
    them has no use for their length. Commands that are started afresh take the package's all the same.
    """

    def __init__(
        self,
        source_server: Server,
        target_server: Server,
        folder: Path,
        *,
        replica: bool = True,
        listens: bool = False,
        source_encoding: str = "UTF8",
        target_encoding: str = "UTF8",
    ) -> None:
        self.dir = folder
        self.source_server, self.target_server = source_server, target_server
        self.reader, self.reader_password = source_server.create_role("reader")
        self.writer, self.writer_password = target_server.create_role("writer")
        self.source_db = source_server.create_database(source_server.invent_name("source"), encoding=source_encoding)
        self.target_db = target_server.create_database(
            target_server.invent_name("target"), owner=self.writer, encoding=target_encoding
        )
        self.source = source_server.connect(self.source_db)
        self.target = target_server.connect(self.target_db)
        self.constants: dict[str, float] = {}
        self._running: list[Running] = []
        self._grant_connect()
        if replica:
            self._grant_replica()
        if listens:
            self.source.execute(sql.SQL("alter role {} replication").format(sql.Identifier(self.reader)))

    def _grant_connect(self) -> None:
        """Take from PUBLIC what a database gives everybody (CONNECT, TEMPORARY), and give `reader` CONNECT."""
        statement = "revoke all on database {database} from public; grant connect on database {database} to {reader}"
        self.source.execute(
            sql.SQL(statement).format(database=sql.Identifier(self.source_db), reader=sql.Identifier(self.reader))
        )

    def _grant_replica(self) -> None:
        statement = sql.SQL("grant set on parameter session_replication_role to {}")
        self.target.execute(statement.format(sql.Identifier(self.writer)))

    @property
    def source_dsn(self) -> str:
        """Return the tool's conninfo of the source: role `reader`, password, TCP."""
        return self.dsn_of_source()

    @property
    def target_dsn(self) -> str:
        """Return the tool's conninfo of the target: role `writer`, password, TCP."""
        return self.dsn_of_target()

    def dsn_of_source(self, **changes: str | int) -> str:
        """Return `source_dsn` with some parts changed, e.g. `port` of a proxy or a wrong `password`."""
        server = self.source_server
        return make_conninfo(server.dsn(self.source_db, user=self.reader, password=self.reader_password), **changes)

    def dsn_of_target(self, **changes: str | int) -> str:
        """Return `target_dsn` with some parts changed."""
        server = self.target_server
        return make_conninfo(server.dsn(self.target_db, user=self.writer, password=self.writer_password), **changes)

    @functools.cached_property
    def as_reader(self) -> psycopg.Connection[TupleRow]:
        """Connect to the source as the tool does: autocommit, settings as the database has them."""
        return psycopg.connect(self.source_dsn, autocommit=True)

    @functools.cached_property
    def as_writer(self) -> psycopg.Connection[TupleRow]:
        """Connect to the target as the tool does: what is created here belongs to `writer`."""
        return psycopg.connect(self.target_dsn, autocommit=True)

    def grant(self) -> None:
        """Grant `reader` USAGE on every schema and SELECT on every table and view that the source has now."""
        names = self.source.execute(
            "select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'"
        ).fetchall()
        statement = sql.SQL("grant usage on schema {0} to {1}; grant select on all tables in schema {0} to {1}")
        for (name,) in names:
            self.source.execute(statement.format(sql.Identifier(name), sql.Identifier(self.reader)))

    @property
    def slot(self) -> str:
        """Return the name of the pipeline's slot: slots are the server's, so each pair has one of its own."""
        return f"slot_{self.source_db}"

    def publish(self, *tables: str) -> None:
        """Do what the source's owner does for a listener: grant SELECT, publish tables (all of public by default)."""
        self.grant()
        names = ", ".join(tables)
        what = sql.SQL("table " + names if names else "tables in schema public")
        self.source.execute(
            sql.SQL("create publication replicator_default for {} with (publish_via_partition_root)").format(what)
        )

    # ------------------------------------------------------------------------------------------ the tool

    def write_config(self, text: str = "", **sections: Any) -> Path:
        """Write replicator.toml and return its path.

        `text` is TOML; sections come on top of it, and both on top of the two DSNs. Tables may be plain names,
        `None` takes a key out: `write_config(tables=["public.t"], target={"dsn": None})`.
        """
        config: dict[str, Any] = {
            "source": {"dsn": self.source_dsn},
            "target": {"dsn": self.target_dsn},
            "listen": {"slot": self.slot},
        }
        sections["tables"] = [
            {"name": table} if isinstance(table, str) else table for table in sections.get("tables", [])
        ] or None
        for layer in (tomllib.loads(text), sections):
            merge_config(config, layer)
        path = self.dir / "replicator.toml"
        path.write_text(format_toml(config), encoding="utf8")
        return path

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the tool's environment: ours without PG* and REPLICATOR_*, and this checkout first on the path."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "REPLICATOR_"))}
        return kept | {"PYTHONPATH": str(ROOT), "HOME": str(self.dir)} | changes

    def run(
        self, *args: str, check: int | None = 0, env: Mapping[str, str] | None = None, timeout_s: float = 120.0
    ) -> Finished:
        """Run `replicator ARGS` in `dir` to its end; `check` is the exit code expected (None: any)."""
        return self.guard(self.popen(*args, env=env).wait(timeout_s, check=check))

    def json(self, *args: str, check: int | None = 0, env: Mapping[str, str] | None = None) -> Any:
        """Run `replicator ARGS --json` and return the document that it prints."""
        return self.run(*args, "--json", check=check, env=env).json()

    def popen(self, *args: str, env: Mapping[str, str] | None = None, afresh: bool = False) -> Running:
        """Start `replicator ARGS` in `dir`; it is killed at the end of the test at the latest.

        `afresh` starts Python for it (see `tests.launcher`), where the command line of the process matters.
        """
        environment = self.environment(**(env or {}))
        running = Running(args, self.dir, environment, afresh=afresh, constants=self.constants)
        self._running.append(running)
        return running

    def guard(self, finished: Finished) -> Finished:
        """Return `finished` if neither password shows in what it printed; no command may ever print one."""
        for password in (self.reader_password, self.writer_password):
            assert password not in finished.stdout + finished.stderr, f"a password was printed by {finished.args}"
        return finished

    # ---------------------------------------------------------------------------------------- the oracle

    def assert_equal(
        self,
        table: str,
        target: str | None = None,
        columns: Columns | None = None,
        *,
        where: str | None = None,
        target_where: str | None = None,
    ) -> None:
        """Prove that target and source hold the same rows, as a multiset of `row(columns)::text`.

        Tables are written as SQL writes them (`public."T"`). `columns` names those to compare (default: all of
        the source) or maps source names to target names; `where` is SQL over the source's rows.
        """
        names = columns if columns is not None else list_columns(self.source, table)
        target_names = list(names.values()) if isinstance(names, Mapping) else list(names)
        expected = read_rows(self.source, table, list(names), where)
        actual = read_rows(self.target, target or table, target_names, target_where)
        if expected != actual:
            raise AssertionError(describe_difference(target or table, expected - actual, actual - expected))

    def control_rows(
        self, table: str | None = None, *, schema: str = "replicator", **equal: Any
    ) -> list[dict[str, Any]]:
        """Return rows of `etl_control` as dictionaries, oldest first, e.g. `control_rows(status="failed")`."""
        if table is not None:
            equal["table_name"] = table
        conditions = [sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in equal.items()]
        query = sql.SQL("select * from {} where {} order by batch_id").format(
            sql.Identifier(schema, "etl_control"), sql.SQL(" and ").join([sql.SQL("true"), *conditions])
        )
        with self.target.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query).fetchall()

    def close(self) -> None:
        """Kill what still runs, and drop both databases and roles."""
        for running in self._running:
            running.kill()
        for name in ("as_reader", "as_writer"):
            if name in self.__dict__:
                getattr(self, name).close()
        _drop_slots_of(self.source_server, self.source_db)
        self.source.close()
        self.target.close()
        self.source_server.drop_database(self.source_db)
        self.target_server.drop_database(self.target_db)
        self.source_server.drop_role(self.reader)
        self.target_server.drop_role(self.writer)


def _drop_slots_of(server: Server, database: str) -> None:
    """Drop what slots a test left in its database: with one it cannot be dropped."""
    query = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = %s and not active"
    left = "select from pg_replication_slots where database = %s"

    def is_free() -> bool:
        with server.connect() as admin:
            admin.execute(query, [database])
            return not admin.execute(left, [database]).rowcount

    wait_until(is_free, what=f"the slots of {database} are gone")


def list_columns(connection: psycopg.Connection[TupleRow], table: str) -> list[str]:
    """Return the names of a table's live columns, in their order."""
    query = (
        "select attname from pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum"
    )
    return [name for (name,) in connection.execute(query, [table]).fetchall()]


def read_rows(
    connection: psycopg.Connection[TupleRow], table: str, columns: Sequence[str], where: str | None
) -> Counter[bytes]:
    """Return the rows' texts as COPY sends them, with how often each occurs."""
    name = connection.execute("select %s::regclass::text", [table]).fetchone()
    assert name is not None
    query = sql.SQL("copy (select row({columns})::text from {table} where {where}) to stdout").format(
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)), table=sql.SQL(name[0]), where=sql.SQL(where or "true")
    )
    with connection.cursor().copy(query) as copy:
        return Counter(b"".join(copy).splitlines())


def describe_difference(table: str, missing: Counter[bytes], extra: Counter[bytes]) -> str:
    """Return how many rows differ and the first of them."""
    lines = [f"{table} differs: {missing.total()} rows missing or older, {extra.total()} rows extra or older"]
    for sign, rows in (("-", missing), ("+", extra)):
        lines += [f"  {sign} {text.decode(errors='replace')[:300]}" for text in sorted(rows)[:5]]
    return "\n".join(lines)


def merge_config(config: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put `layer` over `config` in place: sections key by key, the rest whole, None removes."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict):
            merge_config(config[key], value)
        elif value is None:
            config.pop(key, None)
        else:
            config[key] = dict(value) if isinstance(value, Mapping) else value


def format_toml(config: Mapping[str, Any]) -> str:
    """Write a configuration as TOML: plain keys first, then sections, then arrays of tables."""
    plain, sections, arrays = [], [], []
    for key, value in config.items():
        if isinstance(value, Mapping):
            sections += [f"\n[{key}]", *format_keys(value)]
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for item in value:
                arrays += [f"\n[[{key}]]", *format_keys(item)]
        else:
            plain += format_keys({key: value})
    return "\n".join([*plain, *sections, *arrays, ""])


def format_keys(section: Mapping[str, Any]) -> list[str]:
    """Write `key = value` lines."""
    return [f"{format_string(key)} = {format_value(value)}" for key, value in section.items()]


def format_value(value: Any) -> str:
    """Write one TOML value; a nested table is written inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(format_keys(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    return format_string(value) if isinstance(value, str) else json.dumps(value)


def format_string(text: str) -> str:
    """Write a TOML basic string: JSON's escapes, but for DEL, which only TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


__all__ = ["PINNED", "Finished", "Pair", "Running", "format_toml"]
