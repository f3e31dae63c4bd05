"""`init` looks at a source and writes a configuration that works as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.pair import ROOT, Pair

SCHEMA = """
create table account (id int primary key, name text, updated_at timestamptz);
create table message (id int primary key, created_at timestamp, updated_at timestamp, last_update timestamptz);
create index on message (last_update);
create table tag (label text not null unique, note text);
create table bare (note text);
create view roster as select id as member_id, name, updated_at as account_updated_at from account;
create schema sales; create table sales."Order" (id int primary key, modified_on timestamptz);
create table sales.old (id int primary key) partition by range (id);
create table sales.old_1 partition of sales.old for values from (0) to (100);
"""


@pytest.fixture
def without_password(pair: Pair) -> dict[str, str]:
    """Return the environment of a user whose password is where libpq looks for it."""
    source = conninfo_to_dict(pair.source_dsn)
    target = conninfo_to_dict(pair.target_dsn)
    lines = [":".join(str(d[k]) for k in ("host", "port", "dbname", "user", "password")) for d in (source, target)]
    passfile = pair.dir / "pgpass"
    passfile.write_text("\n".join(lines) + "\n")
    passfile.chmod(0o600)
    return {"PGPASSFILE": str(passfile)}


def strip(dsn: str) -> str:
    """Return a connection string without its password."""
    return make_conninfo(**{key: str(value) for key, value in conninfo_to_dict(dsn).items() if key != "password"})


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.mark.versions
def test_what_init_writes_can_be_checked_and_synced(pair: Pair, without_password: dict[str, str]) -> None:
    pair.source.execute(SCHEMA)
    pair.source.execute("insert into account values (1, 'a', now()); insert into tag values ('x', 'y')")
    pair.grant()
    finished = pair.run(
        "init", "--source", strip(pair.source_dsn), "--target", strip(pair.target_dsn), env=without_password
    )
    assert "wrote replicator.toml" in finished.stdout
    assert "next: replicator check" in finished.stdout
    path = pair.dir / "replicator.toml"
    assert read(path)["tables"] == [
        {"name": "public.*"},
        {"name": "public.account", "watermark": "updated_at"},
        {"name": "public.message", "watermark": "last_update"},
        {"name": "public.tag", "key": ["label"]},
    ]
    assert read(path)["source"]["dsn"] == strip(pair.source_dsn)
    pair.run("check", env=without_password)
    pair.run("sync", env=without_password)
    pair.assert_equal("public.account")
    pair.assert_equal("public.tag")
    assert pair.target.execute("select to_regclass('roster')").fetchall() == [(None,)]


def test_views_are_offered_as_comments_that_can_be_taken(pair: Pair, without_password: dict[str, str]) -> None:
    pair.source.execute(SCHEMA)
    pair.source.execute('create view "odd\n[[tables]]\nname = ""x""" as select 1 as "a\nb"')
    pair.grant()
    arguments = ("init", "--source", strip(pair.source_dsn), "--target", strip(pair.target_dsn))
    pair.run(*arguments, env=without_password)
    path = pair.dir / "replicator.toml"
    text = path.read_text()
    _, _, offered = text.partition("are copied only where an entry names them")
    assert [line for line in offered.splitlines()[1:] if not line.startswith("#")] == []
    entry = offered[offered.index('# [[tables]]\n# name = "public.roster"') :]
    path.write_text(text + entry.replace("# ", ""))
    assert read(path)["tables"][-1] == {
        "name": "public.roster",
        "key": ["member_id"],
        "watermark": "account_updated_at",
    }
    pair.run("sync", env=without_password)
    pair.assert_equal("public.roster")


def test_patterns_choose_tables_and_a_view_by_its_name(pair: Pair, without_password: dict[str, str]) -> None:
    pair.source.execute(SCHEMA)
    document = pair.json(
        "init", "--source", strip(pair.source_dsn), "--tables", "sales.*", "--tables", "public.roster",
        "--tables", "public.bare", "--tables", "SALES.*", env=without_password,
    )  # fmt: skip
    assert document["path"] == "replicator.toml"
    found = {table["table"]: table for table in document["tables"]}
    assert sorted(found) == ["public.bare", "public.roster", 'sales."Order"', "sales.old"]
    assert (found["public.roster"]["key"], found["public.roster"]["kind"]) == (["member_id"], "view")
    assert found["public.bare"]["columns"] == ["note"]
    assert read(pair.dir / "replicator.toml")["tables"] == [
        {"name": "sales.*"},
        {"name": "public.bare"},
        {"name": "public.roster", "key": ["member_id"], "watermark": "account_updated_at"},
        {"name": 'sales."Order"', "watermark": "modified_on"},
    ]


def test_nothing_is_overwritten_without_force(pair: Pair, without_password: dict[str, str]) -> None:
    pair.source.execute("create table t (id int primary key)")
    path = pair.dir / "replicator.toml"
    path.write_text("# mine\n")
    arguments = ("init", "--source", strip(pair.source_dsn))
    finished = pair.run(*arguments, check=2, env=without_password)
    assert "--force" in finished.stderr
    assert path.read_text() == "# mine\n"
    pair.run(*arguments, "--force", env=without_password)
    assert read(path)["tables"] == [{"name": "public.*"}]
    pair.run(*arguments, "--config", "other.toml", env=without_password)
    assert read(pair.dir / "other.toml") == read(path)
    assert sorted(p.name for p in pair.dir.glob("*.toml*")) == ["other.toml", "replicator.toml"]


@pytest.mark.parametrize("option", ["--source", "--target"])
@pytest.mark.parametrize(
    "dsn", ["postgresql://me:S3cretWord@127.0.0.1/db", "host=127.0.0.1 password=S3cretWord dbname=db"]
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(tmp_path: Path, option: str, dsn: str) -> None:
    finished = run_alone(tmp_path, "init", "--source", "host=127.0.0.1", option, dsn)
    assert finished.returncode == 2
    assert "S3cretWord" not in finished.stdout + finished.stderr
    for way in ("PGPASSFILE", ".env", "service"):
        assert way in finished.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["--source", "host='unfinished S3cretWord"], 2, "not a connection string"),
        (["--source", "host=/nowhere/at/all", "--tables", "a.b.c"], 2, "--tables"),
        ([], 2, "--source is missing"),
        (["--source", "host=/nowhere/at/all"], 4, "no_connection"),
    ],
)
def test_what_cannot_work_is_said_before_a_file_is_written(
    tmp_path: Path, arguments: list[str], exit_code: int, said: str
) -> None:
    finished = run_alone(tmp_path, "init", *arguments)
    assert finished.returncode == exit_code, finished
    assert said in finished.stderr
    assert "S3cretWord" not in finished.stdout + finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_or_a_name_without_a_table_writes_nothing(pair: Pair, without_password: dict[str, str]) -> None:
    pair.source.execute("create table conversations (id int primary key); create view v as select 1")
    arguments = ("init", "--source", strip(pair.source_dsn), "--tables")
    assert "no table" in pair.run(*arguments, "nowhere.*", check=2, env=without_password).stderr
    assert "no table" in pair.run(*arguments, "public.v*", check=2, env=without_password).stderr
    finished = pair.run(*arguments, "public.conversation", check=4, env=without_password)
    assert "public.conversations" in finished.stderr
    assert not (pair.dir / "replicator.toml").exists()


def test_the_password_may_come_from_a_dsn_in_the_env_file(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    pair.grant()
    (pair.dir / ".env").write_text(
        f"REPLICATOR_SOURCE__DSN={pair.source_dsn}\nREPLICATOR_TARGET__DSN={pair.target_dsn}\n"
    )
    pair.run("init")
    assert pair.reader_password not in (pair.dir / "replicator.toml").read_text()
    pair.run("sync")
    pair.assert_equal("public.t")


def test_a_source_without_tables_gets_a_configuration_all_the_same(
    pair: Pair, without_password: dict[str, str]
) -> None:
    pair.run("init", "--source", strip(pair.source_dsn), env=without_password)
    assert read(pair.dir / "replicator.toml")["tables"] == [{"name": "public.*"}]


def run_alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool where there is no server and no configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "REPLICATOR_"))}
    return subprocess.run(
        [sys.executable, "-m", "replicator", *arguments],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
