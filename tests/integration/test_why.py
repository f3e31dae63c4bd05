"""`why TABLE KEY...` shows one row on both sides, and says in one sentence why the target has of it what it has."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from tests.pair import Pair
from tests.streaming import catch_up, expect_refusal, listening
from tests.wait import wait_until

RULES: dict[str, Any] = {
    "where": "part < 3",
    "exclude": ["secret"],
    "rename": {"Key": "id"},
    "mask": {"Key": "hash", "mail": "upper(mail)"},
    "nan_to_null": True,
    "null_values": ["NaT"],
}


def why(pair: Pair, *args: str) -> dict[str, Any]:
    """Return what `why` says of a key."""
    return dict(pair.json("why", *args))


def verdict(pair: Pair, *args: str) -> str:
    """Return its one word."""
    return str(why(pair, *args)["verdict"])


@pytest.mark.versions
def test_a_row_is_followed_from_insert_to_delete(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, note text, n numeric)")
    pair.source.execute("insert into t values (1, 'one', 1.0), (-2, null, 'NaN'), (3, '', 3)")
    pair.grant()
    pair.write_config(tables=["public.t"])
    assert verdict(pair, "public.t", "1") == "not_synced"
    pair.run("sync")
    told = why(pair, "public.t", "-2")
    assert told["verdict"] == "equal"
    assert told["key"] == told["target_key"] == ["-2"]
    assert told["source_row"]["values"] == told["target_row"]["values"] == {"id": "-2", "note": None, "n": "NaN"}
    assert [batch["status"] for batch in told["batches"]] == ["success"]
    assert verdict(pair, "public.t", "99") == "absent"
    pair.source.execute("update t set n = 1.00 where id = 1; insert into t values (4, 'four', 4)")
    pair.source.execute("delete from t where id = -2")
    changed = why(pair, "public.t", "1")
    assert (changed["verdict"], changed["different"]) == (
        "pending",
        [{"column": "n", "source_column": "n", "source": "1.00", "target": "1.0"}],
    )
    assert "changed at the source after the last run" in changed["reason"]
    assert "inserted at the source" in why(pair, "public.t", "4")["reason"]
    assert "it was deleted there since the last run" in why(pair, "public.t", "-2")["reason"]
    pair.target.execute("update t set note = null where id = 3")
    drifted = why(pair, "public.t", "3")
    assert (drifted["verdict"], drifted["hint"]) == ("drifted", "replicator verify public.t --repair")
    pair.run("sync")
    assert verdict(pair, "public.t", "1") == "equal"
    assert verdict(pair, "public.t", "3") == "drifted", "a sync does not look at it again"
    text = pair.run("why", "public.t", "3").stdout
    assert "drifted: " in text
    assert "note    ''      NULL    yes" in text


def test_rules_are_shown_and_used(pair: Pair) -> None:
    """The key is the source's: hashed and renamed in the target, it is found all the same."""
    pair.source.execute(
        'create table "T a" ("Key" text, part int, mail text, price float8, secret text, primary key ("Key", part));'
        "insert into \"T a\" values ('a', 1, 'x@y', 'NaN', 's'), ('a', 2, 'NaT', 2, 's'), ('b''\"%', 3, 'z', 3, 's')"
    )
    pair.grant()
    (pair.dir / "mask.key").write_text("secret")
    pair.write_config(tables=[{"name": 'public."T a"', **RULES}], privacy={"mask_key_file": "mask.key"})
    pair.run("sync")
    told = why(pair, 'public."T a"', "a", "1")
    assert (told["verdict"], told["target_row"]["values"]["price"]) == ("equal", None)
    assert told["target_key"][0] != "a"
    assert len(told["target_key"][0]) == 64
    assert "secret" not in told["target_row"]["values"]
    assert told["rules"] == {
        "key": ["Key", "part"],
        "where": "part < 3",
        "excluded": ["secret"],
        "rename": {"Key": "id"},
        "mask": {"Key": "hash", "mail": "upper(mail)"},
        "nan_to_null": True,
        "null_values": ["NaT"],
        "deletes": "hard",
    }
    excluded = why(pair, 'public."T a"', "b'\"%", "3")
    assert (excluded["verdict"], excluded["source_row"]["satisfies_where"]) == ("excluded", False)
    pair.source.execute('update "T a" set part = 4 where part = 2')
    gone = why(pair, 'public."T a"', "a", "2")
    assert gone["verdict"] == "pending"
    assert gone["target_row"]["values"]["mail"] == "NAT"
    text = pair.run("why", 'public."T a"', "b'\"%", "3").stdout
    assert "where       part < 3 (not satisfied)" in text


def test_keys_that_are_none_and_tables_without_one_are_usage_errors(pair: Pair) -> None:
    """No message repeats a value."""
    pair.source.execute(
        "create table t (id int primary key); create table bare (n int); create table u (d date, k uuid)"
    )
    pair.source.execute("alter table u add primary key (k, d)")
    pair.grant()
    pair.write_config(tables=["public.t", "public.bare", "public.u"])
    for args, words in (
        (("public.t", "xyzzy"), ("value 1 of the key is no integer", "22P02")),
        (("public.t", "99999999999"), ("22003",)),
        (("public.t", "1", "2"), ("has 1 values, 2 were given",)),
        (("public.u", "0b9f8a5e-2f2d-4b9e-9d0c-000000000000", "2026-02-30"), ("value 2 of the key is no date",)),
        (("public.bare", "1"), ("public.bare has no key", "multiset")),
        (("public.nothing", "1"), ("is not a table of this configuration",)),
    ):
        finished = pair.run("why", *args, check=2)
        expect_refusal(finished, *words)
        assert not finished.stdout
        for value in ("xyzzy", "99999999999", "2026-02-30"):
            assert value not in finished.stderr
    assert "xyzzy" not in "".join(path.read_text() for path in (pair.dir / "logs").rglob("*.log"))


def test_types_of_extensions_char_and_composites_are_compared_as_sync_does(pair: Pair) -> None:
    """V2, V3, T6: citext keys, blanks of char(n), rows with NULLs, json and point, which have no equality."""
    available = "select count(*) from pg_available_extensions where name = 'citext'"
    has_citext = all(connection.execute(available).fetchall() == [(1,)] for connection in (pair.source, pair.target))
    if has_citext:
        for connection in (pair.source, pair.target):
            connection.execute("create extension citext")
    given, typed = ("aB", "citext") if has_citext else ("Ab", "text")
    pair.source.execute(
        "create type pair_ as (a int, b text); create domain code as char(5);"
        f"create table t (id {typed}, c code, p pair_, j json, at_ point, f float8, b bool, primary key (id, c));"
        "insert into t values ('Ab', 'x', row(null, 'b'), '{\"a\" : 1}', '(1,2)', '-0', true);"
        "insert into t values ('E', 'yy')"
    )
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    assert why(pair, "public.t", given, "x")["verdict"] == "equal"
    assert why(pair, "public.t", "E", "yy")["source_row"]["values"]["p"] is None
    pair.target.execute("update t set f = 0, j = '{\"a\":1}', p = null where id = 'Ab'")
    told = why(pair, "public.t", given, "x")
    assert [difference["column"] for difference in told["different"]] == ["p", "j", "f"]
    assert told["different"][2]["source"] == "-0"


def test_a_key_without_an_equality_operator_is_found_by_its_text(pair: Pair) -> None:
    pair.source.execute("create table t (k json, n int); insert into t values ('{\"a\": 1}', 1), ('2', 2)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "key": ["k"]}])
    told = why(pair, "public.t", '{"a": 1}')
    assert (told["verdict"], told["source_row"]["satisfies_where"]) == ("not_synced", True)


def test_a_view_with_a_watermark_and_soft_deletes(pair: Pair) -> None:
    pair.source.execute("create table t (id int, note text, changed_at timestamptz default now())")
    pair.source.execute("create view v as select * from t; insert into t values (1, 'a'), (2, 'b'), (2, 'c')")
    pair.source.execute("delete from t where note = 'c'")
    pair.grant()
    rules = {"key": ["id"], "watermark": "changed_at", "deletes": "soft"}
    pair.write_config(tables=[{"name": "public.v", "target": "shelf.kept", **rules}])
    pair.run("sync")
    pair.source.execute("delete from t where id = 2; insert into t values (1, 'again')")
    assert verdict(pair, "public.v", "1") == "ambiguous"
    pair.source.execute("delete from t where note = 'again'")
    assert "marks it as deleted" in why(pair, "public.v", "2")["reason"]
    pair.run("sync")
    told = why(pair, "public.v", "2")
    assert told["verdict"] == "deleted"
    assert told["target_row"]["deleted_at"] is not None
    assert told["target"] == "shelf.kept"


def test_a_row_whose_watermark_did_not_move_waits_for_the_audit(pair: Pair) -> None:
    """W10"""
    pair.source.execute("create table t (id int primary key, note text, changed_at timestamptz)")
    pair.source.execute("insert into t select g, 'a', now() - interval '9 days' from generate_series(1, 2) g")
    pair.grant()
    rules = {"strategy": "watermark", "watermark": "changed_at"}
    pair.write_config(tables=[{"name": "public.t", **rules}])
    pair.run("sync")
    pair.source.execute("update t set note = 'quiet' where id = 1")
    assert "audit of the next sync finds it" in why(pair, "public.t", "1")["reason"]
    pair.source.execute("update pg_class set reltuples = 2e6 where oid = 't'::regclass")
    told = why(pair, "public.t", "1")
    assert (told["verdict"], told["hint"]) == ("unmoved", "replicator sync public.t --full")


def test_what_would_stop_the_next_sync_is_the_reason(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, n bigint); insert into t values (1, 1)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "on_schema_change": "freeze"}])
    pair.run("sync")
    pair.source.execute("alter table t add more int default 7; update t set n = 2")
    told = why(pair, "public.t", "1")
    assert (told["verdict"], told["lacking"]) == ("stopped", ["more"])
    pair.run("sync", check=8)
    assert "the last run of the table failed" in why(pair, "public.t", "1")["reason"]
    pair.write_config(tables=["public.t"])
    assert "the target lacks more: the next sync alters it" in why(pair, "public.t", "1")["reason"]


def test_it_writes_nothing_and_no_log_has_a_value(pair: Pair) -> None:
    """O4"""
    pair.source.execute("create table t (id text primary key, note text); insert into t values ('xyzzy', 'plugh')")
    pair.grant()
    pair.write_config(tables=["public.t"], logs={"level": "debug"})
    pair.run("sync")
    before = pair.target.execute("select * from replicator.table_state").fetchall()
    finished = pair.run("why", "public.t", "xyzzy")
    assert "plugh" in finished.stdout
    logged = finished.stderr + "".join(path.read_text() for path in (pair.dir / "logs").rglob("*.log"))
    assert "xyzzy" not in logged
    assert "plugh" not in logged
    assert before == pair.target.execute("select * from replicator.table_state").fetchall()


def test_a_live_listener_and_a_row_in_quarantine(streamed: Pair) -> None:
    pair = streamed
    pair.source.execute("create table t (id int primary key, n int); insert into t values (1, 1), (2, 2)")
    pair.publish()
    pair.write_config(tables=["public.t"], defaults={"on_row_error": "quarantine"})
    catch_up(pair)
    pair.target.execute("alter table t add constraint small check (n < 100)")
    with listening(pair):
        pair.source.execute("update t set n = 500 where id = 1; update t set n = 20 where id = 2")
        wait_until_equal_where(pair, "id = 2")
        told = why(pair, "public.t", "1")
        assert (told["verdict"], told["listener"]["is_live"]) == ("quarantined", True)
        assert told["hint"] == f"replicator quarantine retry {told['quarantine']['quarantine_id']}"
        assert verdict(pair, "public.t", "2") == "equal"
        pair.target.execute("update t set n = 21 where id = 2")
        assert verdict(pair, "public.t", "2") in ("drifted", "pending")
    pair.source.execute("update t set n = 22 where id = 2")
    told = why(pair, "public.t", "2")
    assert (told["verdict"], told["hint"]) == ("pending", "replicator listen")


def wait_until_equal_where(pair: Pair, where: str) -> None:
    """Wait until the rows of t are equal that satisfy a condition."""

    def read(connection: Any) -> list[tuple[Any, ...]]:
        return list(connection.execute(f"select * from t where {where}").fetchall())

    wait_until(lambda: read(pair.source) == read(pair.target), what="the rows are equal")


KEYS = (
    ("bool", "true", "yes"),
    ("bytea", r"\xdeadbeef", r"\xDEADBEEF"),
    ("timestamptz", "2026-01-01 12:00:00+02", "2026-01-01T10:00:00Z"),
    ("numeric", "1.0", "1.00"),
    ("float8", "-0", "0"),
    ("char(5)", "ab", "ab   "),
    ("int[]", "{1,NULL,2}", "{1, null,2}"),
    ("interval", "1 mon", "30 days"),
    ("int4range", "[1,3]", "[1,4)"),
    ("inet", "10.0.0.1", "10.0.0.1/32"),
    ("text", "", ""),
    ("text", "an 'apple'\\ %s {}\n\t", "an 'apple'\\ %s {}\n\t"),
    ("mood", "o'k", "o'k"),
    ("positive", "7", "+7"),
    ("jsonb", '{"a": 1}', '{"a":1}'),
    ("date", "0044-03-15 BC", "0044-03-15 BC"),
    ("comp", "(1,)", "(1,)"),
)


def test_a_key_is_read_as_postgresql_reads_it_whatever_its_types(pair: Pair) -> None:
    """V1, V2, H2: another spelling of an equal value names the same row; column names are hostile too."""
    pair.source.execute("create type mood as enum ('o''k'); create domain positive as int check (value > 0)")
    pair.source.execute("create type comp as (a int, b text)")
    names = [sql.Identifier(f'"%s {n}') for n in range(len(KEYS))]
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(name, sql.SQL(kind)) for name, (kind, _, _) in zip(names, KEYS, strict=True)
    )
    pair.source.execute(sql.SQL("create table t ({}, note text)").format(columns))
    pair.source.execute(sql.SQL("alter table t add primary key ({})").format(sql.SQL(", ").join(names)))
    values = sql.SQL(", ").join(sql.Literal(value) for _, value, _ in KEYS)
    pair.source.execute(sql.SQL("insert into t values ({}, 'x')").format(values))
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    told = why(pair, "public.t", *(given for _, _, given in KEYS))
    assert (told["verdict"], told["target_row"]["values"]["note"]) == ("equal", "x")


def test_masks_that_compute_and_names_that_trade_places(pair: Pair) -> None:
    pair.source.execute("create table t (a int primary key, b int, satisfies text); insert into t values (1, 0, '%s')")
    pair.grant()
    rules = {"rename": {"a": "b", "b": "a"}, "mask": {"a": "a + 1000"}, "where": "satisfies <> '%x' -- all"}
    pair.write_config(tables=[{"name": "public.t", **rules}])
    pair.run("sync")
    told = why(pair, "public.t", "1")
    assert (told["verdict"], told["target_key"]) == ("equal", ["1001"])
    assert verdict(pair, "public.t", "2") == "absent"
    pair.write_config(tables=[{"name": "public.t", "target": "public.u", "mask": {"a": "a + b", "satisfies": "1/b"}}])
    told = why(pair, "public.t", "1")
    assert told["verdict"] == "refused"
    assert "22012" in told["reason"]
    pair.source.execute("update t set b = 5")
    pair.run("sync")
    assert (verdict(pair, "public.t", "1"), verdict(pair, "public.t", "2")) == ("equal", "unknown")


def test_a_target_that_somebody_changed_underneath(pair: Pair) -> None:
    """T3: a column, the key, the table itself may be missing; what the source has is shown all the same."""
    pair.source.execute("create table t (id int primary key, note text); insert into t values (5, 'x')")
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.target.execute("alter table t rename note to other")
    assert "the target lacks note" in why(pair, "public.t", "5")["reason"]
    pair.target.execute("drop table t")
    told = why(pair, "public.t", "5")
    assert (told["verdict"], told["source_row"]["values"]["note"]) == ("not_synced", "x")
    pair.as_writer.execute("create view t as select 5 as id, 'x' as note")
    assert verdict(pair, "public.t", "5") == "equal"
    pair.as_writer.execute("drop view t; create table t (id text, note varchar(1)); insert into t values ('5', 'y')")
    told = why(pair, "public.t", "5")
    assert (told["verdict"], told["different"][0]["target"]) == ("pending", "y")
    pair.as_writer.execute("insert into t values ('5', 'z')")
    assert verdict(pair, "public.t", "5") == "ambiguous"
