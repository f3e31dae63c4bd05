"""Streams that cannot take what a command prints: the command does its work, and its exit code speaks of that alone."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pair import Pair
from tests.wait import wait_until

NAME = "público ☃"
TABLE = f'public."{NAME}"'
READING = (
    ("status",),
    ("history",),
    ("check",),
    ("plan",),
    ("why", TABLE, "1"),
    ("verify", "--show-values"),
    ("quarantine", "list"),
    ("slot", "list"),
    ("schedule",),
    ("health",),
)
ENCODINGS = ("ascii", "latin-1", "utf-8")


def begin(pair: Pair, rows: int = 3) -> None:
    """Make a table whose every name is in no encoding but Unicode, and copy it."""
    pair.source.execute(f'create table "{NAME}" (id int primary key, "größe ☃" text)')
    pair.source.execute(f"insert into \"{NAME}\" select n, 'naïve ☃' from generate_series(1, {rows}) n")
    pair.grant()
    pair.write_config(tables=[{"name": TABLE, "on_row_error": "quarantine"}])


def run_shell(pair: Pair, script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's script in which $R is the tool, as Python starts it."""
    env = pair.environment(R=f"{sys.executable} -m replicator", **environment)
    return subprocess.run(
        ["bash", "-c", script],
        cwd=pair.dir,
        env=env,
        capture_output=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_prints_in_whatever_encoding_stdout_has(streamed: Pair, encoding: str) -> None:
    """O8: what the encoding lacks is printed as its escape, and a JSON document is one in all of them."""
    begin(streamed)
    env = {"PYTHONIOENCODING": encoding}
    streamed.run("sync", env=env)
    assert streamed.json("sync", env=env)["tables"][0]["table_name"] == TABLE
    streamed.source.execute(f'update "{NAME}" set "größe ☃" = \'other\' where id = 2')
    for command in READING:
        different = 7 if command[0] == "verify" else 0
        text = streamed.run(*command, env=env, check=None)
        document = streamed.run(*command, "--json", env=env, check=None)
        assert text.exit_code == document.exit_code in (0, different, 1 if command[0] in ("check", "health") else 0), (
            text
        )
        assert document.json()["schema"] == 1
        assert "[bug]" not in text.stderr + document.stderr, text
    found = streamed.json("status", env=env)
    assert [table["table"] for table in found["tables"]] == [TABLE]
    failed = streamed.run("sync", "public.ñandú", env=env, check=None)
    assert failed.exit_code not in (0, 1)
    assert "[bug]" not in failed.stderr
    streamed.publish()
    streamed.run("listen", "--until-caught-up", env=env)
    streamed.json("listen", "--until-caught-up", env=env)
    streamed.json("verify", env=env)


def test_a_locale_without_unicode_prints_all_the_same(pair: Pair) -> None:
    """O8: where Python is kept from taking UTF-8 for the locale C."""
    begin(pair)
    locale = {"LC_ALL": "POSIX", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run_shell(pair, "$R sync && $R sync --json && $R status", **locale)
    assert done.returncode == 0, done
    assert "\\u2603" in done.stdout.decode("ascii")
    pair.assert_equal(TABLE)


@pytest.mark.parametrize(
    ("streams", "says"),
    [
        ("> /dev/full", "No space left"),
        (">&-", ""),
        ("2>&-", ""),
        ("2> /dev/full", ""),
        ("<&- >&- 2>&-", ""),
        ("> /dev/full 2> /dev/full", ""),
    ],
)
def test_a_stream_that_is_full_or_closed_changes_no_exit_code(pair: Pair, streams: str, says: str) -> None:
    """O8: what was done was done, for text and JSON, success and failure."""
    begin(pair)
    for command, code in {
        "sync": 0,
        "sync --json": 0,
        "status": 0,
        "status --json": 0,
        "history --json": 0,
        "check": 0,
        "verify --json": 0,
        "sync public.none": None,
        "nonsense --json": 2,
    }.items():
        plain = run_shell(pair, f"$R {command}").returncode
        assert code is None or plain == code
        done = run_shell(pair, f"$R {command} {streams}", PYTHONIOENCODING="ascii:strict")
        assert done.returncode == plain, (command, done)
        assert code is None or says in done.stderr.decode(), (command, done)
    pair.assert_equal(TABLE)


def test_a_reader_that_goes_away_changes_no_exit_code(pair: Pair) -> None:
    """O8: also with more than a pipe holds, and with both streams in it."""
    begin(pair, rows=3000)
    for command in ("sync", "status", "sync --json", "check"):
        done = run_shell(pair, f"set -o pipefail; $R {command} | true")
        assert (done.returncode, done.stdout) == (0, b""), (command, done)
        done = run_shell(pair, f"set -o pipefail; $R {command} 2>&1 | head -1")
        assert done.returncode == 0, (command, done)
    pair.target.execute(f"delete from {TABLE}")
    done = run_shell(pair, "set -o pipefail; $R verify --json | head -c 1")
    assert (done.returncode, done.stdout) == (7, b"{"), done
    pair.run("sync", "--full")
    pair.assert_equal(TABLE)


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_everything(pair: Pair) -> None:
    """O8: as a parent process leaves pipes that reads them by events."""
    begin(pair, rows=3000)
    pair.run("sync")
    pair.target.execute(f"delete from {TABLE}")
    out, inner = os.pipe()
    fcntl.fcntl(inner, fcntl.F_SETFL, fcntl.fcntl(inner, fcntl.F_GETFL) | os.O_NONBLOCK)
    fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4096)
    with (pair.dir / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "replicator", "verify", "--json"],
            cwd=pair.dir, env=pair.environment(), stdin=subprocess.DEVNULL, stdout=inner, stderr=err,
        )  # fmt: skip
        os.close(inner)
        with os.fdopen(out, "rb") as reader:
            wait_until(lambda: fcntl.ioctl(reader, 0x541B, bytes(4)) > bytes(4), what="the pipe holds something")
            document = json.load(reader)
    assert process.wait(30) == 7
    assert len(document["tables"][0]["missing"]) == 3000


def test_a_terminal_is_printed_to_like_a_file(pair: Pair) -> None:
    """O8: with an encoding of its own, and one that is hung up amid the work."""
    begin(pair)
    ours, theirs = pty.openpty()
    environment = pair.environment(PYTHONIOENCODING="ascii", TERM="dumb")
    command = [sys.executable, "-m", "replicator"]
    done = subprocess.run([*command, "sync"], cwd=pair.dir, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    shown = os.read(ours, 65536)
    assert done.returncode == 0, shown
    assert b"\\u2603" in shown
    process = subprocess.Popen(
        [*command, "status"], cwd=pair.dir, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.close(ours)
    assert process.wait(30) == 0


def test_an_argument_that_is_no_text_is_told_as_such(pair: Pair) -> None:
    """O8: bytes in no encoding reach neither server."""
    begin(pair)
    done = run_shell(pair, r"$R why public.t $'\xff'", LC_ALL="C.UTF-8")
    assert done.returncode == 2, done
    assert b"argument 3 is not text" in done.stderr


def write_with_mark(path: Path, text: str) -> None:
    """Write a file as an editor of Windows does."""
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())


def test_a_configuration_that_windows_wrote_is_read_like_any_other(pair: Pair) -> None:
    """O9: a byte order mark and CRLF, in the configuration and in .env."""
    begin(pair)
    table = {"name": TABLE, "mask": {"größe ☃": "null"}, "where": "id > 0\n-- none else\nand id < 3"}
    path = pair.write_config(tables=[table], source={"dsn": None})
    write_with_mark(path, path.read_text("utf-8"))
    write_with_mark(pair.dir / ".env", f"REPLICATOR_SOURCE__DSN='{pair.source_dsn}'\nOTHER=1\n")
    pair.run("sync")
    assert pair.target.execute(f"select * from {TABLE} order by id").fetchall() == [(1, None), (2, None)]
    assert pair.run("check", "--json").json()["findings"]
    path.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbf" + path.read_bytes())
    assert "not valid TOML" in pair.run("sync", check=3).stderr


def test_a_mark_alone_hides_no_variable(pair: Pair) -> None:
    """O9: the first line of .env is ours, and a wrong one is named by its number."""
    begin(pair)
    write_with_mark(pair.dir / ".env", "REPLICATOR_PIPELINE=other\n")
    pair.run("sync")
    assert {row["pipeline"] for row in pair.control_rows()} == {"other"}
    write_with_mark(pair.dir / ".env", "REPLICATOR_NONSENSE=1\n")
    assert "REPLICATOR_NONSENSE" in pair.run("sync", check=3).stderr
    write_with_mark(pair.dir / ".env", "REPLICATOR_PIPELINE\n")
    assert "line 1" in pair.run("sync", check=3).stderr
