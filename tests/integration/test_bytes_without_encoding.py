"""Texts whose bytes are none of UTF-8, as a database without encoding lets in, on their way by stream and by sync."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import MakePair
from tests.pair import Pair
from tests.streaming import catch_up, expect_refusal

BAD = "convert_from('\\xe9e1'::bytea, 'SQL_ASCII')"
"""SQL for 'éá' as LATIN1 writes it."""
DDL = (
    "create table t (id int primary key, note text, n int); create table other (id int primary key, note text);"
    "insert into t values (1, 'Größe', 0); insert into other values (1, 'ok')"
)


def begin(
    make_pair: MakePair, ddl: str = DDL, tables: tuple[Any, ...] = ("public.t", "public.other"), **rules: Any
) -> Pair:
    """Make a source without encoding, and copy its tables."""
    pair = make_pair(listens=True, source_encoding="SQL_ASCII")
    pair.source.execute(ddl)
    pair.publish()
    pair.write_config(
        tables=[{"name": table, **rules} if isinstance(table, str) else table for table in tables],
        listen={"on_table_error": "stop"},
    )
    catch_up(pair)
    return pair


def read(pair: Pair, query: str) -> list[tuple[Any, ...]]:
    """Return what the target has."""
    return pair.target.execute(query).fetchall()


@pytest.mark.versions
@pytest.mark.parametrize("replica", [True, False], ids=["replica", "plain"])
def test_quarantine_takes_a_row_that_is_not_utf8_and_the_stream_goes_past_it(
    make_pair: MakePair, replica: bool
) -> None:
    """S29: alone, amid good rows, in an update, and corrected in the source; text in UTF-8 is copied as ever."""
    pair = begin(make_pair, on_row_error="quarantine")
    pair.source.execute("insert into t select n, 'é', 0 from generate_series(3, 400) n")
    catch_up(pair)
    pair.source.execute(
        f"insert into t values (2, {BAD}, 0);"
        f"begin; update t set note = {BAD} where id in (5, 300); insert into other values (2, 'x'); commit;"
        f"update t set n = 1 where id = 7; insert into t values (500, {BAD}, 0); delete from t where id = 500"
    )
    catch_up(pair)
    waiting = pair.json("quarantine", "list")["rows"]
    assert [(row["table_name"], row["key"], row["error_code"]) for row in waiting] == [
        ("public.t", ["2"], "22021"),
        ("public.t", ["5"], "22021"),
        ("public.t", ["300"], "22021"),
    ]
    assert all(row["lsn"] for row in waiting)
    assert read(pair, "select count(*), max(n) from t") == [(399, 1)]
    assert read(pair, "select note from t where id in (1, 5, 8)") == [("Größe",), ("é",), ("é",)]
    pair.assert_equal("public.other")
    pair.source.execute("update t set note = 'right' where id in (2, 5)")
    catch_up(pair)
    retried = pair.json("quarantine", "retry", check=1)
    assert (len(retried["landed"]), len(retried["refused"])) == (2, 1)
    assert read(pair, "select id, note from t where id in (2, 5) order by id") == [(2, "right"), (5, "right")]
    pair.source.execute("delete from t where id = 300")
    catch_up(pair)
    pair.run("quarantine", "retry")
    pair.assert_equal("public.t")


def test_a_row_that_is_not_utf8_stops_the_stream_by_its_table_its_place_and_its_key(make_pair: MakePair) -> None:
    """S29: the bytes are in no message; corrected in the source, it lets the stream go on."""
    pair = begin(make_pair)
    pair.source.execute("insert into other values (2, 'x')")
    pair.source.execute(f"insert into t values (2, {BAD}, 0)")
    pair.source.execute("insert into t values (3, 'é', 0)")
    stopped = pair.run("listen", "--until-caught-up", check=1)
    expect_refusal(stopped, "public.t", "22021", "SQL_ASCII", "commits at ")
    assert "\\xe9" not in stopped.stderr.replace("\\x80", "")
    refused = pair.json("quarantine", "show")["stopped_at"]
    assert (refused["table_name"], refused["key"], refused["error_code"]) == ("public.t", ["2"], "22021")
    assert refused["lsn"] in stopped.stderr
    pair.assert_equal("public.other")
    failed = pair.control_rows("public.t", status="failed")[-1]
    assert (failed["path"], failed["error_code"]) == ("listen", "22021")
    pair.source.execute("update t set note = 'right' where id = 2")
    catch_up(pair)
    pair.assert_equal("public.t")


@pytest.mark.parametrize("rules", [{"where": "n >= 0"}, {"mask": {"note": "upper(note)"}}, {"mask": {"note": "null"}}])
def test_rules_make_no_difference_to_such_a_row(make_pair: MakePair, rules: dict[str, Any]) -> None:
    """S29: rows that the source computes are read there, and one that it cannot send is put aside."""
    pair = begin(make_pair, DDL, ("public.t",), on_row_error="quarantine", **rules)
    pair.source.execute(f"insert into t values (2, {BAD}, 0), (3, 'é', 0); update t set n = 5 where id = 2")
    catch_up(pair)
    is_needed = rules != {"mask": {"note": "null"}}
    assert len(pair.json("quarantine", "list")["rows"]) == is_needed
    assert read(pair, "select id from t order by id") == ([(1,), (3,)] if is_needed else [(1,), (2,), (3,)])


def test_a_key_that_is_not_utf8_is_shown_by_its_escapes(make_pair: MakePair) -> None:
    """S29: the target can hold no such key, so its end is no news; corrected, it is another row."""
    ddl = "create table t (k text primary key, n int); insert into t values ('a', 1)"
    pair = begin(make_pair, ddl, ("public.t",), on_row_error="quarantine")
    pair.source.execute(f"insert into t values ({BAD}, 1), ('b', 1); update t set n = 2 where k = {BAD}")
    catch_up(pair)
    (row,) = pair.json("quarantine", "list")["rows"]
    assert (row["key"], row["error_code"]) == (["\\xe9\\xe1"], "22021")
    assert "\\xe9\\xe1" in pair.run("quarantine", "list").stdout
    expect_refusal(pair.run("quarantine", "retry", check=1), "not UTF-8", "discard")
    pair.source.execute(f"update t set n = 3 where k = {BAD}; update t set k = 'éá' where k = {BAD}")
    pair.source.execute(f"insert into t values ({BAD} || 'x', 1)")
    pair.source.execute(f"delete from t where k = {BAD} || 'x'; delete from t where k = 'b'")
    catch_up(pair)
    pair.run("quarantine", "discard", "--yes")
    pair.run("verify")
    assert read(pair, "select k, n from t order by k") == [("a", 1), ("éá", 3)]


def test_a_key_that_is_not_utf8_stops_the_stream_by_its_table(make_pair: MakePair) -> None:
    """S29: without quarantine; deleted again in the source, it is still in the WAL, and is passed."""
    ddl = "create table t (k text primary key, n int); insert into t values ('a', 1)"
    pair = begin(make_pair, ddl, ("public.t",))
    pair.source.execute(f"insert into t values ({BAD}, 1)")
    expect_refusal(pair.run("listen", "--until-caught-up", check=1), "public.t", "22021", "commits at ")
    assert pair.json("quarantine", "show")["stopped_at"]["key"] == ["\\xe9\\xe1"]


def test_a_table_without_a_key_stops_by_its_name(make_pair: MakePair) -> None:
    """S29: there is no key to tell or to put aside."""
    ddl = "create table t (note text, n int); alter table t replica identity full; insert into t values ('a', 1)"
    pair = begin(make_pair, ddl, ("public.t",), on_row_error="quarantine")
    pair.source.execute(f"insert into t values ({BAD}, 2)")
    expect_refusal(pair.run("listen", "--until-caught-up", check=1), "public.t", "22021", "commits at ")


def test_a_sync_names_the_table_and_lists_the_rows(make_pair: MakePair) -> None:
    """S29: the statement of the hint finds them; all other tables land."""
    pair = begin(make_pair)
    pair.source.execute(f"insert into t values (2, {BAD}, 0), (3, 'é', 0); insert into other values (2, 'x')")
    pair.run("slot", "drop", "--yes")
    failed = pair.run("sync", "--json", check=6)
    error = failed.json()["errors"]["public.t"]
    assert (error["sqlstate"], error["table"]) == ("22021", "public.t")
    statement = error["hint"].partition("(")[2].partition(" lists")[0]
    found = pair.source.execute(statement.replace("select ctid, t.*", "select id")).fetchall()
    assert sorted(found) == [(1,), (2,), (3,)]
    pair.assert_equal("public.other")
    pair.source.execute("update t set note = 'right' where id = 2")
    pair.run("sync")
    pair.assert_equal("public.t")


def test_names_in_the_stream_that_are_not_utf8_and_are_not_ours_pass_by(make_pair: MakePair) -> None:
    """S29: of a type, an origin, and the prefix of a message."""
    pair = begin(make_pair)
    bad = b"gr\xf6\xdfe"
    with pair.source_server.connect(pair.source_db) as session:
        session.execute("set client_encoding = 'SQL_ASCII'")
        session.execute(b"select pg_logical_emit_message(true, '" + bad + b"', 'x')")
        session.execute(b"select pg_logical_emit_message(false, '" + bad + b"', '" + bad + b"')")
    pair.source.execute("insert into t values (2, 'after', 0)")
    catch_up(pair)
    pair.assert_equal("public.t")


WITHOUT_PLACE = {"WIN1252": b"\x81", "WIN1257": b"\x83", "LATIN3": b"\xa5", "EUC_JP": b"\xa9\xb1"}
"""By encoding, a text that its database takes and that UTF-8 has no place for."""


@pytest.mark.parametrize("encoding", WITHOUT_PLACE)
@pytest.mark.parametrize("on_row_error", ["quarantine", "stop"])
def test_a_text_that_the_source_cannot_convert_is_one_row_and_not_the_stream(
    make_pair: MakePair, encoding: str, on_row_error: str
) -> None:
    """S29: the server says of no row, so the stored bytes are asked for; names and texts beyond ASCII stay right."""
    pair = make_pair(listens=True, source_encoding=encoding)
    good = "ア" if encoding == "EUC_JP" else "ä"
    bad = f"convert_from('\\x{WITHOUT_PLACE[encoding].hex()}'::bytea, '{encoding}')"
    pair.source.execute(
        f'create table t (id int primary key, "{good}" text, n int); create table other (k text primary key)'
    )
    pair.source.execute("insert into t values (1, 'a', 0)")
    pair.publish()
    tables = [{"name": name, "on_row_error": on_row_error} for name in ("public.t", "public.other")]
    pair.write_config(tables=tables, listen={"on_table_error": "stop"})
    catch_up(pair)
    pair.source.execute(f"insert into t values (2, '{good}', 0); insert into other values ('plain')")
    pair.source.execute(f"insert into t values (3, {bad}, 0)")
    pair.source.execute(f"insert into t values (4, '{good}{good}', 0); update t set n = 1 where id in (1, 2, 4)")
    pair.source.execute("delete from t where id = 4; update other set k = 'other' where k = 'plain'")
    if on_row_error == "quarantine":
        catch_up(pair)
        (row,) = pair.json("quarantine", "list")["rows"]
        assert (row["table_name"], row["key"], row["error_code"]) == ("public.t", ["3"], "22P05")
    else:
        stopped = pair.run("listen", "--until-caught-up", check=1)
        expect_refusal(stopped, "public.t", "22P05", "commits at ")
        assert pair.json("quarantine", "show")["stopped_at"]["key"] == ["3"]
    pair.source.execute(f"update t set \"{good}\" = '{good}' where id = 3")
    catch_up(pair)
    if on_row_error == "quarantine":
        pair.run("quarantine", "retry")
    pair.assert_equal("public.t")
    pair.assert_equal("public.other")


def test_a_key_beyond_ascii_is_the_same_key_while_stored_bytes_are_taken(make_pair: MakePair) -> None:
    """S29: of one byte a character; masked ones too, with rows that come, change and go."""
    pair = make_pair(listens=True, source_encoding="WIN1252")
    bad = "convert_from('\\x81'::bytea, 'WIN1252')"
    pair.source.execute(
        "create table t (k text primary key, big text, n int); alter table t alter big set storage external"
    )
    pair.source.execute("create table hashed (k text primary key, n int); create table bare (v text)")
    pair.source.execute("alter table bare replica identity full")
    pair.source.execute("insert into t select 'ä' || n, repeat('x', 5000), n from generate_series(1, 9) n")
    pair.source.execute(
        "insert into hashed select 'ä' || n, n from generate_series(1, 9) n; insert into bare values ('ä')"
    )
    pair.publish()
    (pair.dir / "mask.key").write_text("x" * 40)
    names: list[Any] = ["public.t", {"name": "public.hashed", "mask": {"k": "hash"}}, "public.bare"]
    tables = [{"on_row_error": "quarantine", **(n if isinstance(n, dict) else {"name": n})} for n in names]
    pair.write_config(tables=tables, listen={"on_table_error": "stop"}, privacy={"mask_key_file": "mask.key"})
    catch_up(pair)
    pair.source.execute(f"insert into t values ('bad', {bad}, 0)")
    for table in ("t", "hashed"):
        pair.source.execute(
            f"update {table} set n = 10 where k = 'ä1'; delete from {table} where k = 'ä2';"
            f"update {table} set k = 'ö3' where k = 'ä3'; update {table} set k = 'plain' where k = 'ä4'"
        )
    pair.source.execute("insert into t values ('é€', 'new', 1); insert into bare values ('plain')")
    catch_up(pair)
    assert [row["key"] for row in pair.json("quarantine", "list")["rows"]] == [["bad"]]
    pair.source.execute("delete from t where k = 'bad'")
    catch_up(pair)
    pair.run("quarantine", "retry")
    pair.assert_equal("public.t")
    pair.assert_equal("public.bare")
    pair.run("verify")
    pair.source.execute(f"insert into t values ('worse', {bad}, 0)")
    pair.source.execute("insert into bare values ('ü')")
    expect_refusal(pair.run("listen", "--until-caught-up", check=1), "public.bare", "without a key")


ODD = b"gr\xf6\xdfe"
ODD_NAMES = {
    "table": b'create table "' + ODD + b'" (id int primary key)',
    "schema": b'create schema "' + ODD + b'"; create table "' + ODD + b'".x (id int primary key)',
    "column": b'create table u (id int primary key, "' + ODD + b'" text)',
    "type": b'create type "' + ODD + b"\" as enum ('a'); create table u (id int primary key, c \"" + ODD + b'"[])',
    "label": b"create type odd as enum ('a', '" + ODD + b"'); create table u (id int primary key, c odd)",
}


@pytest.mark.parametrize("what", ODD_NAMES)
def test_a_name_that_is_not_utf8_is_its_table_alone(make_pair: MakePair, what: str) -> None:
    """S29: in a pattern that table fails by its name, and all others land; beside a selected table it is nobody's."""
    pair = make_pair(listens=True, source_encoding="SQL_ASCII")
    pair.source.execute("create table t (id int primary key, \"Größe\" text); insert into t values (1, 'ä')")
    with pair.source_server.connect(pair.source_db) as session:
        session.execute("set client_encoding = 'SQL_ASCII'")
        session.execute(ODD_NAMES[what])
        session.execute(b"grant select on all tables in schema public to " + pair.reader.encode())
        session.execute(b"create publication replicator_default for all tables with (publish_via_partition_root)")
    name = {"table": 'public."gr\\366\\337e"', "schema": '"gr\\366\\337e".x'}.get(what, "public.u")
    pair.write_config(tables=[{"name": "*.*", "on_row_error": "quarantine"}])
    for command, code in (("sync", 6), ("sync", 6), ("check", 4), ("plan", None)):
        done = pair.run(command, check=code)
        assert "name_not_text" in done.stdout + done.stderr, done
        assert name in done.stdout + done.stderr, done
    pair.assert_equal("public.t")
    pair.write_config(tables=["public.t"])
    pair.run("check")
    catch_up(pair)
    with pair.source_server.connect(pair.source_db) as session:
        session.execute("set client_encoding = 'SQL_ASCII'")
        (table,) = session.execute(
            "select format('%I.%I', nspname, relname)::bytea from pg_class join pg_namespace n on n.oid = relnamespace"
            " where relkind = 'r' and nspname !~ '^pg_' and nspname <> 'information_schema' and relname <> 't'"
        ).fetchone() or (b"",)
        session.execute(b"insert into " + table + b" (id) values (1)")
    pair.source.execute("insert into t values (2, 'ö')")
    catch_up(pair)
    pair.assert_equal("public.t")
