"""Look everywhere for what must not be told: secrets, and values of cells."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from psycopg import sql

from tests.pair import Pair


def assert_silent(texts: Mapping[str, str], secrets: Mapping[str, str]) -> None:
    """Prove that no secret is in any text; both by name."""
    for where, text in texts.items():
        for name, secret in secrets.items():
            at = text.find(secret)
            assert at < 0, f"{name} in {where}: ...{text[max(0, at - 300) : at + 60]}"


def dump_control(pair: Pair) -> str:
    """Return all that is in the control schema, as text, but for the keys of rows in quarantine: those belong there."""
    query = "select tablename from pg_tables where schemaname = 'replicator'"
    tables = [name for (name,) in pair.target.execute(query).fetchall()]
    rows = []
    for table in tables:
        row = "(to_jsonb(t) - 'key')::text" if table == "quarantine" else "row(t.*)::text"
        statement = sql.SQL("select " + row + " from {} t").format(sql.Identifier("replicator", table))
        rows += [text for (text,) in pair.target.execute(statement).fetchall()]
    return "\n".join(rows)


@contextmanager
def watched_command_lines() -> Iterator[set[str]]:
    """Collect the command lines of all processes, looked at again and again while the block runs."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:  # it has ended in the meantime
                    continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
