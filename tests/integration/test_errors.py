"""Errors: each ends with the contract's exit code, one message that says how to fix it, and nothing changed."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.canary import dump_control, watched_command_lines
from tests.pair import Finished, Pair
from tests.servers import find_free_port

Strike = Callable[[Pair], object]
MESSAGE = re.compile(r"^error \[(\w+)\]: (.+)\n  why:  (.+)\n  hint: (.+)$", re.MULTILINE)
ROWS = 20


def nothing(pair: Pair) -> None:
    """Leave everything as it is."""


@dataclass(frozen=True)
class Case:
    """A fault of one table, what it must lead to, and what mends it: None for the SQL of the message.

    entry: more keys of the table's entry. code: what `etl_control.error_code` holds.
    """

    exit_code: int
    id: str
    code: str
    words: str
    strike: Strike = nothing
    hint: Strike | None = nothing
    entry: dict[str, Any] | None = None


def on_source(statement: str) -> Strike:
    return lambda pair: pair.source.execute(statement.format(reader=pair.reader).encode())


def on_target(statement: str) -> Strike:
    return lambda pair: pair.target.execute(statement.encode())


FILL = f"insert into bad select g, g, 'text', g / 2 from generate_series(1, {ROWS}) g"

CASES = {
    "missing table": Case(
        4, "table_missing", "42P01", "public.bad is missing on the source",
        on_source("alter table bad rename to gone"), on_source("alter table gone rename to bad"),
    ),
    "missing grant": Case(
        4, "grant_missing", "42501", "may not read public.bad: it lacks rights on the source",
        on_source("revoke select on bad from {reader}"), None,
    ),
    "missing grant on the target": Case(
        4, "grant_missing", "42501", "may not write public.bad: it lacks rights on the target",
        on_target("alter table bad owner to postgres"),
        lambda pair: pair.target.execute(f"alter table bad owner to {pair.writer}"),
    ),
    "row security": Case(
        8, "row_security", "row_security", "row security hides rows of public.bad",
        on_source("alter table bad enable row level security"), on_source("alter table bad disable row level security"),
    ),
    "empty source": Case(
        8, "source_empty", "source_empty", f"public.bad is empty in the source, {ROWS} rows are in the target",
        on_source("truncate bad"), on_source(FILL),
    ),
    "narrowed type": Case(
        8, "schema_drift", "schema_drift", "column note was text and is character varying(3) now",
        on_source("alter table bad alter note type varchar(3) using left(note, 3)"),
        on_source("alter table bad alter note type text"),
    ),
    "target constraint violated": Case(
        1, "target_refused_row", "23514", "constraint only_small",
        lambda pair: (
            pair.target.execute("alter table bad add constraint only_small check (n < 1000)"),
            pair.source.execute("update bad set n = 5000 where id = 7"),
        ),
        on_target("alter table bad drop constraint only_small"),
    ),
    "key not unique": Case(
        1, "key_not_unique", "23505", "the key (twin) of public.bad is not unique in the source",
        entry={"key": ["twin"]},
    ),
    "rule that does not work": Case(
        3, "config_invalid", "config_invalid", "the SQL of where or mask does not work on the source",
        entry={"where": "no_such_column = 1"},
    ),
    "rule that fails on a row": Case(
        1, "source_refused_row", "22012", "the source could not compute a row of public.bad",
        on_source("update bad set n = 0 where id = 7"), entry={"where": "1 / n >= 0"},
    ),
}  # fmt: skip


@pytest.fixture
def scene(pair: Pair) -> Pair:
    """Return a pair with two tables in sync and then changed: good, and bad, on which a case will strike."""
    pair.source.execute(
        "create table good (id int primary key, n int);"
        f"insert into good select g, 0 from generate_series(1, {ROWS}) g;"
        f"create table bad (id int primary key, n int, note text, twin int); {FILL}"
    )
    pair.grant()
    pair.write_config(tables=["public.good", "public.bad"])
    pair.run("sync")
    pair.source.execute("update good set n = n + 1; update bad set n = n + 1")
    return pair


def read_bad(pair: Pair) -> list[tuple[Any, ...]]:
    return pair.target.execute("select * from bad order by id").fetchall()


def read_message(finished: Finished) -> tuple[str, str, str, str]:
    """Return the one message on stderr: id, what, why, hint."""
    messages = MESSAGE.findall(finished.stderr)
    assert len(messages) == 1, finished
    assert finished.stderr.count("error [") == 1, finished
    assert "Traceback" not in finished.stderr, finished
    identifier, what, why, hint = messages[0]
    return identifier, what, why, hint


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_a_tables_fault_stops_that_table_alone_and_names_the_mend(scene: Pair, case: Case) -> None:
    before = read_bad(scene)
    case.strike(scene)
    entry = {"name": "public.bad", **(case.entry or {})}

    scene.write_config(tables=[entry])
    finished = scene.run("sync", check=case.exit_code)
    identifier, what, why, told = read_message(finished)
    assert identifier == case.id
    assert case.words in f"{what}: {why}"
    assert_failed(scene, case, before)

    scene.write_config(tables=[{"name": "public.good"}, entry])
    document = scene.json("sync", check=6)
    assert document["status"] == "partial"
    assert document["errors"]["public.bad"]["id"] == case.id
    scene.assert_equal("good")
    assert scene.control_rows("public.good")[-1]["status"] == "success"
    assert_failed(scene, case, before)

    if case.hint is None:
        scene.source.execute(told.encode())
    else:
        case.hint(scene)
    scene.write_config(tables=["public.good", "public.bad"])
    scene.run("sync")
    scene.assert_equal("bad")


def assert_failed(pair: Pair, case: Case, before: list[tuple[Any, ...]]) -> None:
    """Prove that the last batch of bad is on record as failed, and that its rows are as they were."""
    row = pair.control_rows("public.bad")[-1]
    assert (row["status"], row["error_code"]) == ("failed", case.code)
    assert row["error_message"]
    assert row["completed_at"] is not None
    assert read_bad(pair) == before
    assert not pair.control_rows(status="running")


def test_a_first_load_with_a_key_that_is_not_unique_leaves_no_table(pair: Pair) -> None:
    pair.source.execute("create table t (id int, n int); insert into t values (1, 1), (1, 2)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "key": ["id"]}])
    identifier, *_ = read_message(pair.run("sync", check=1))
    assert identifier == "key_not_unique"
    assert pair.target.execute("select to_regclass('public.t')").fetchone() == (None,)


def test_a_null_in_the_key_is_told_as_a_matter_of_the_key(pair: Pair) -> None:
    pair.source.execute("create table t (id int, note text); insert into t values (1, 'a'), (null, 'b')")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "key": ["id"]}])
    identifier, what, _, hint = read_message(pair.run("sync", check=1))
    assert identifier == "key_null"
    assert "id" in what
    assert "NOT NULL" not in hint
    pair.write_config(tables=[{"name": "public.t", "key": ["id"], "where": "id is not null"}])
    pair.run("sync")
    pair.source.execute("update t set id = 2 where id is null; insert into t values (null, 'c')")
    pair.write_config(tables=[{"name": "public.t", "key": ["id"]}])
    assert read_message(pair.run("sync", check=1))[0] == "key_null"


def test_a_value_that_the_source_cannot_compute_is_no_matter_of_a_constraint(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, n int); insert into t values (1, 0)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "where": "1 / n > 0"}])
    identifier, _, _, hint = read_message(pair.run("sync", check=1))
    assert identifier == "source_refused_row"
    assert "constraint" not in hint
    assert "where" in hint


@pytest.mark.parametrize("fault", ["wrong password", "unreachable host", "unknown database"])
def test_a_source_that_lets_nobody_in_is_on_record(scene: Pair, fault: str) -> None:
    before = read_bad(scene)
    changes: dict[str, dict[str, str | int]] = {
        "wrong password": {"password": "wrong"},
        "unreachable host": {"port": find_free_port()},
        "unknown database": {"dbname": "nowhere"},
    }
    source = {"dsn": scene.dsn_of_source(**changes[fault]), "connect_timeout": "1s"}
    scene.write_config(tables=["public.good", "public.bad"], source=source)
    identifier, what, _, hint = read_message(scene.run("sync", check=4))
    assert identifier == "no_connection"
    assert "source" in what
    assert "source.dsn" in hint
    assert read_bad(scene) == before
    for table in ("public.good", "public.bad"):
        row = scene.control_rows(table)[-1]
        assert (row["status"], row["error_code"]) == ("failed", "no_connection")
    scene.write_config(tables=["public.good", "public.bad"])
    scene.run("sync")
    scene.assert_equal("bad")


@pytest.mark.parametrize("fault", ["wrong password", "unreachable host"])
def test_a_target_that_lets_nobody_in_is_told_on_stderr(scene: Pair, fault: str) -> None:
    change = {"password": "wrong"} if fault == "wrong password" else {"port": find_free_port()}
    scene.write_config(tables=["public.bad"], target={"dsn": scene.dsn_of_target(**change)},
                       source={"connect_timeout": "1s"})  # fmt: skip
    already = len(scene.control_rows())
    identifier, what, _, hint = read_message(scene.run("sync", check=4))
    assert identifier == "no_connection"
    assert "target" in what
    assert "target.dsn" in hint
    assert len(scene.control_rows()) == already


def test_an_unknown_key_of_the_configuration_is_named_with_the_nearest_known_one(scene: Pair) -> None:
    already = len(scene.control_rows())
    scene.write_config(tables=[{"name": "public.bad", "watermarc": "n"}])
    finished = scene.run("sync", check=3)
    assert "watermarc" in finished.stderr
    assert "watermark" in finished.stderr.replace("watermarc", "")
    assert finished.stderr.count("error [") == 1
    assert len(scene.control_rows()) == already


@pytest.mark.parametrize("arguments", [["sync", "public.nowhere"], ["sync", "--jobs", "0"], ["sink"]])
def test_a_command_line_that_makes_no_sense_ends_with_2(scene: Pair, arguments: list[str]) -> None:
    already = len(scene.control_rows())
    scene.run(*arguments, check=2)
    assert len(scene.control_rows()) == already


def test_many_tables_that_fail_take_no_more_connections_than_one(pair: Pair) -> None:
    names = [f"t{number}" for number in range(12)]
    for name in names:
        pair.source.execute(f"create table {name} (id int primary key); insert into {name} values (1)")
        pair.as_writer.execute(f"create table {name} (id int primary key check (id > 1))")
    pair.grant()
    pair.write_config()
    pair.target.execute(f"alter role {pair.writer} connection limit 6")
    pair.run("sync", "--jobs", "2", check=1)
    assert {row["error_code"] for row in pair.control_rows()} == {"23514"}


# ---------------------------------------------------------------------------------------------------- operating


@pytest.mark.hazard("O1")
def test_failures_are_kept_no_longer_than_other_rows(scene: Pair) -> None:
    """Whether the table is there or not: a name that went wrong must not fill the record for ever."""
    tables = [{"name": name, "retention_days": 1} for name in ("public.good", "public.bad", "public.nowhere")]
    scene.source.execute("alter table bad enable row level security")
    scene.write_config(tables=tables)
    for _ in range(2):
        scene.run("sync", check=6)
        scene.target.execute("update replicator.etl_control set started_at = started_at - interval '2 days'")
    scene.run("sync", check=6)
    for table in ("public.bad", "public.nowhere"):
        assert len(scene.control_rows(table, status="failed")) == 1


@pytest.mark.hazard("O2")
def test_an_idle_run_leaves_a_trace(scene: Pair) -> None:
    scene.run("sync")
    scene.run("sync")
    before, idle = scene.control_rows("public.bad")[-2:]
    assert idle["status"] == "success"
    figures = ("rows_inserted", "rows_updated", "rows_deleted")
    assert [idle[name] for name in figures] == [0, 0, 0]
    assert idle["watermark_start"] == before["watermark_end"]
    assert idle["watermark_end"] > before["watermark_end"]


@pytest.mark.hazard("O5")
@pytest.mark.parametrize("fault", ["the source fails", "the target refuses"])
def test_a_full_read_that_fails_leaves_the_old_rows(scene: Pair, fault: str) -> None:
    before = read_bad(scene)
    entry: dict[str, Any] = {"name": "public.bad"}
    if fault == "the source fails":
        scene.source.execute(f"update bad set n = 0 where id = {ROWS}")
        entry["where"] = "1 / n >= 0"
    else:
        scene.target.execute("alter table bad add constraint only_small check (n < 1000)")
        scene.source.execute(f"update bad set n = 5000 where id = {ROWS}")
    scene.write_config(tables=[entry])
    scene.run("sync", "--full", check=1)
    assert before
    assert read_bad(scene) == before


# ------------------------------------------------------------------------------------------------------ secrets


@pytest.mark.hazard("O4")
def test_no_secret_and_no_cell_value_gets_out(pair: Pair) -> None:
    """Every error below is one in whose message PostgreSQL repeats a value."""
    canary, number, mask_key = f"canary{secrets.token_hex(6)}", secrets.randbelow(10**8) + 10**8, secrets.token_hex(16)
    pair.source.execute(
        "create table t (id text primary key, n int, note text, masked text);"
        f"insert into t select 'key-{canary}-' || g, {number}, 'note-{canary}', 'masked-{canary}'"
        " from generate_series(1, 50) g"
    )
    pair.grant()
    (pair.dir / "mask.key").write_text(mask_key)
    (pair.dir / "mask.key").chmod(0o600)
    printed: list[str] = []

    def run(*args: str, check: int | None, **entry: object) -> None:
        pair.write_config(
            tables=[{"name": "public.t", "mask": {"masked": "hash"}, **entry}],
            privacy={"mask_key_file": "mask.key"},
            logs={"level": "debug", "dir": "logs"},
        )
        finished = pair.popen(*args, afresh=True).wait(check=check)
        printed.append(finished.stdout + finished.stderr)

    with watched_command_lines() as seen:
        run("sync", check=0)
        run("sync", check=1, where="note::int > 0")
        run("sync", check=1, key=["note"])
        pair.source.execute("update t set n = n + 1")
        for refusal, hint in refusals(canary, number):
            pair.target.execute(refusal.encode())
            run("sync", check=1)
            run("sync", "--full", "--json", check=1)
            pair.target.execute(hint.encode())
        for command in ("status", "history", "health", "plan"):
            run(command, check=None)
        run("history", "--json", check=0)
        run("sync", check=0)
    texts = {
        "printed": "".join(printed),
        "logged": "".join(path.read_text() for path in (pair.dir / "logs").iterdir()),
        "recorded": dump_control(pair),
        "command lines": "\n".join(seen),
    }
    assert "error [target_refused_row]" in texts["printed"]
    assert "table_failed" in texts["logged"]
    assert "23514" in texts["recorded"]
    assert "replicator" in texts["command lines"]
    for where, text in texts.items():
        for secret in (canary, str(number), str(number + 1), mask_key, pair.reader_password, pair.writer_password):
            at = text.find(secret)
            assert at < 0, f"{where}: ...{text[max(0, at - 200) : at + 60]}"
    assert mask_key not in pair.source_server.log_text()


@pytest.mark.hazard("O4")
@pytest.mark.parametrize("character", "@/")
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_password_with_a_character_that_is_not_escaped_stays_secret(scene: Pair, side: str, character: str) -> None:
    """libpq takes the rest of the password for the host, or for the database, and repeats it."""
    canary = f"canary{secrets.token_hex(6)}"
    dsn = f"postgresql://somebody:12{character}{canary}@127.0.0.1:1/somewhere"
    sections: dict[str, Any] = {side: {"dsn": dsn}, "tables": ["public.good"], "logs": {"level": "debug"}}
    scene.write_config(**sections)
    for command in ("sync", "check", "plan", "status"):
        finished = scene.run(command, check=3)
        assert "percent-encoded" in finished.stderr
        assert canary not in finished.stdout + finished.stderr
    if side == "source":
        (scene.dir / "new").mkdir()
        given = {"REPLICATOR_SOURCE__DSN": dsn}
        finished = scene.run("init", "--config", "new/replicator.toml", check=3, env=given)
        assert "percent-encoded" in finished.stderr
        assert canary not in finished.stdout + finished.stderr


@pytest.mark.hazard("O4")
def test_what_libpq_says_of_a_host_is_told_in_our_own_words(scene: Pair) -> None:
    """A service file reaches it unread."""
    canary = f"canary{secrets.token_hex(6)}"
    (scene.dir / "services").write_text(f"[app]\nhost={canary}@127.0.0.1\ndbname=app\n")
    scene.write_config(
        tables=["public.good"], source={"dsn": "service=app", "connect_timeout": "1s"}, logs={"dir": "l"}
    )
    finished = scene.run("sync", check=4, env={"PGSERVICEFILE": str(scene.dir / "services")})
    assert "could not be resolved" in finished.stderr
    assert scene.control_rows("public.good")[-1]["error_code"] == "no_connection"
    logged = "".join(path.read_text() for path in (scene.dir / "l").iterdir())
    for text in (finished.stdout, finished.stderr, dump_control(scene), logged):
        assert canary not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": "wrong"}, "did not accept the role's password"),
        ({"dbname": "nowhere"}, "the database does not exist"),
        ({"port": 1}, "the connection was refused"),
        ({"host": "nowhere.invalid"}, "could not be resolved"),
        ({"host": "/nowhere/at/all"}, "no socket"),
        ({"sslmode": "require"}, "encrypted"),
    ],
)
def test_a_connection_that_was_not_had_is_told_with_its_cause(
    scene: Pair, changes: dict[str, str | int], words: str
) -> None:
    source = {"dsn": scene.dsn_of_source(**changes), "connect_timeout": "1s"}
    scene.write_config(tables=["public.good"], source=source)
    assert words in scene.run("sync", check=4).stderr


def refusals(canary: str, number: int) -> Iterator[tuple[str, str]]:
    """Yield DDL that makes the target refuse rows, each with what takes it back."""
    yield (f"alter table t add constraint small check (n <= {number})", "alter table t drop constraint small")
    raises = (
        "create function refuse() returns trigger language plpgsql as $$"
        " begin raise exception 'no % here', new.note using detail = new.id, hint = new.n; end $$;"
        "create trigger refuse before insert or update on t for each row execute function refuse();"
        "alter table t enable always trigger refuse"
    )
    yield raises, "drop trigger refuse on t; drop function refuse()"
    computes = (
        "create function divide(n int) returns int immutable language sql as $$ select ('x' || n)::int $$;"
        "alter table t add constraint computed check (divide(n) > 0) not valid"
    )
    yield computes, "alter table t drop constraint computed; drop function divide(int)"


@pytest.mark.hazard("O4")
def test_a_fault_of_our_own_is_told_without_the_message_of_the_exception(scene: Pair) -> None:
    """The control schema lacks a column: nobody foresees that, and the traceback may still not carry values."""
    scene.target.execute("alter table replicator.table_state rename column epoch to era")
    finished = scene.run("sync", "--json", check=1)
    assert json.loads(finished.stdout)["error"]["id"]
    assert "Traceback" not in finished.stderr


def test_health_names_the_command_for_a_table_that_left_the_configuration(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); create table gone (id int primary key)")
    pair.grant()
    pair.write_config(tables=["public.t", "public.gone"])
    pair.run("sync")
    pair.source.execute("drop table gone")
    pair.run("sync", check=6)
    pair.write_config(tables=["public.t"])
    pair.run("sync", check=0)
    (reason,) = pair.json("health", check=1)["reasons"]
    assert reason["hint"] == "replicator forget public.gone --yes"
    pair.run("forget", "public.gone", "--yes", check=0)
    pair.run("health", check=0)


def test_a_mistyped_name_leaves_nothing_once_it_is_corrected(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    pair.write_config(tables=["public.t", "public.typo"])
    pair.run("sync", check=6)
    pair.write_config(tables=["public.t"])
    pair.run("health", check=0)
    pair.run("sync")
    assert [one["table"] for one in pair.json("status")["tables"]] == ["public.t"]
    pair.run("health", check=0)


def test_a_mistyped_argument_leaves_nothing_though_the_source_was_away(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    pair.write_config(tables=["public.*"])
    pair.run("sync")
    pair.run("sync", "public.typo", check=4, env={"REPLICATOR_SOURCE__DSN": pair.dsn_of_source(port=1)})
    pair.run("sync", "public.typo", check=2)
    pair.run("sync")
    assert [one["table"] for one in pair.json("status")["tables"]] == ["public.t"]
    pair.run("health", check=0)
