"""`check` finds what would stop or slow a sync, says what mends it, and writes nothing."""

from __future__ import annotations

import json

import pytest
from psycopg import sql

from tests.conftest import MakeCluster, MakePair
from tests.finding import check, find, ids
from tests.pair import Pair
from tests.pooler import Pooler

EVERYTHING = """
select 'schema', nspname::text, null from pg_namespace
union all select c.relkind::text, c.oid::regclass::text, pg_relation_filenode(c.oid)::text
          from pg_class c where c.oid >= 16384
union all select 'type', t.oid::regtype::text, t.typtype::text from pg_type t where t.oid >= 16384
order by 1, 2
"""


@pytest.mark.versions
def test_a_pair_in_order_has_no_error_and_nothing_is_written(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); create view v as select * from t")
    pair.grant()
    pair.write_config(tables=["public.t", {"name": "public.v", "key": ["id"]}])
    before = [connection.execute(EVERYTHING).fetchall() for connection in (pair.source, pair.target)]
    findings = check(pair, exit_code=0)
    text = pair.run("check").stdout
    assert before == [connection.execute(EVERYTHING).fetchall() for connection in (pair.source, pair.target)]
    assert ids(findings, "ok") == {"source_reachable", "target_reachable", "replica_role", "strategy", "stream"}
    assert ids(findings, "warn") == {"view_without_watermark"}
    assert list(findings[0]) == ["id", "severity", "table", "message", "hint"]
    assert f"PostgreSQL {pair.source_server.version}" in findings[0]["message"]
    assert text.count("\nok ") + text.startswith("ok ") == 6
    assert "\n0 errors, 1 warning, 6 ok\n" in text


def test_every_line_begins_with_severity_and_id(pair: Pair) -> None:
    pair.source.execute("create table t (note text)")
    pair.grant()
    pair.write_config()
    lines = pair.run("check").stdout.splitlines()
    (line,) = [line for line in lines if " no_key " in line]
    assert line.split()[:3] == ["warn", "no_key", "public.t"]
    hint = lines[lines.index(line) + 1].strip()
    assert hint == 'hint: alter table "public"."t" add column "id" bigint generated always as identity primary key'
    pair.source.execute(sql.SQL(hint.removeprefix("hint: ")))
    assert "no_key" not in pair.run("check").stdout


def test_a_server_that_cannot_be_reached_does_not_hide_what_the_other_has_to_say(pair: Pair) -> None:
    pair.write_config(source={"dsn": pair.dsn_of_source(password="wrong")})
    findings = check(pair, exit_code=4)
    assert ids(findings, "error") == {"source_reachable"}
    assert ids(findings, "ok") == {"target_reachable"}
    pair.write_config(target={"dsn": pair.dsn_of_target(dbname="no_such")})
    assert ids(check(pair, exit_code=4), "error") == {"target_reachable"}


def test_a_configuration_that_cannot_be_read_is_no_finding(pair: Pair) -> None:
    pair.write_config("unknown_key = 1")
    pair.run("check", check=3)
    pair.write_config(source={"dsn": None})
    pair.run("check", check=3)


@pytest.mark.versions
def test_a_missing_grant_comes_with_the_sql_that_grants_it(pair: Pair) -> None:
    pair.source.execute('create schema "Own"; create table "Own"."T" (id int primary key)')
    pair.write_config(tables=['"Own"."T"', "public.nothing"])
    findings = check(pair, exit_code=4)
    assert ids(findings, "error") == {"grant_missing", "table_missing"}
    pair.source.execute(sql.SQL(find(pair, "grant_missing")["hint"]))
    assert ids(check(pair), "error") == {"table_missing"}
    assert pair.as_reader.execute('select count(*) from "Own"."T"').fetchall() == [(0,)]


def test_a_view_whose_owner_lost_its_rights_is_found_too(pair: Pair) -> None:
    owner = sql.Identifier(pair.reader)
    pair.source.execute("create schema inner_rows; create table inner_rows.t (id int primary key)")
    pair.source.execute("create view v with (security_invoker = true) as select * from inner_rows.t")
    pair.source.execute(sql.SQL("grant select on v to {}").format(owner))
    pair.write_config(tables=[{"name": "public.v", "key": ["id"]}])
    assert find(pair, "grant_missing")["table"] == "public.v"


def test_row_security_on_either_side_is_an_error(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); create table u (id int primary key)")
    pair.source.execute("alter table t enable row level security; create policy p on t using (true)")
    pair.grant()
    pair.as_writer.execute("create table u (id int primary key); alter table u enable row level security")
    pair.as_writer.execute("alter table u force row level security")
    pair.write_config(tables=["public.t", "public.u"])
    found = [(f["table"], f["severity"]) for f in check(pair) if f["id"] == "row_security"]
    assert found == [("public.t", "error"), ("public.u", "error")]


def test_tables_without_a_usable_key_are_named_with_what_that_means(pair: Pair) -> None:
    pair.source.execute(
        "create table bare (note text);"
        "create table late (id int primary key deferrable);"
        "create table hinted (a int not null, b int not null, constraint u unique (a, b));"
        "create table parent (id int primary key); create table child () inherits (parent);"
        "create table split (id int) partition by hash (id)"
    )
    pair.grant()
    pair.write_config(tables=[f"public.{name}" for name in ("bare", "late", "hinted", "parent", "split")])
    found = {f["table"]: f for f in check(pair, exit_code=0) if f["severity"] == "warn"}
    assert {table: f["id"] for table, f in found.items()} == {
        "public.bare": "no_key",
        "public.hinted": "no_key",
        "public.late": "deferrable_key",
        "public.parent": "no_key",
        "public.split": "no_key",
    }
    assert all("multiset" in finding["message"] for finding in found.values())
    for table in ("public.bare", "public.hinted", "public.late"):
        pair.source.execute(sql.SQL(found[table]["hint"]))
    left = {f["table"] for f in check(pair) if f["severity"] == "warn"}
    assert left == {"public.parent", "public.split"}


def test_a_deferrable_key_of_the_target_is_an_error(pair: Pair) -> None:
    for connection in (pair.source, pair.as_writer):
        connection.execute("create table t (id int)")
    pair.source.execute("alter table t add primary key (id)")
    pair.as_writer.execute("alter table t add primary key (id) deferrable")
    pair.grant()
    pair.write_config(tables=["public.t"])
    finding = find(pair, "deferrable_key")
    assert (finding["severity"], finding["table"]) == ("error", "public.t")
    pair.target.execute(sql.SQL(finding["hint"]))
    assert ids(check(pair), "error") == set()


def test_foreign_keys_in_a_circle_need_the_right_to_switch_them_off(make_pair: MakePair) -> None:
    pair = make_pair(replica=False)
    ddl = (
        "create table a (id int primary key, b int); create table b (id int primary key, a int references a);"
        "alter table a add foreign key (b) references b; create table c (id int primary key, up int references c)"
    )
    pair.source.execute(ddl)
    pair.as_writer.execute(ddl)
    pair.grant()
    pair.write_config()
    finding = find(pair, "foreign_key_cycle")
    assert finding["severity"] == "error"
    assert "public.a, public.b" in finding["message"]
    assert ids(check(pair), "warn") == {"replica_role"}
    assert find(pair, "replica_role")["hint"] == finding["hint"]
    pair.target.execute(sql.SQL(finding["hint"]))
    assert ids(check(pair), "warn", "error") == set()


def test_a_role_without_rights_on_the_target_is_told_each_grant(pair: Pair) -> None:
    writer, database = sql.Identifier(pair.writer), sql.Identifier(pair.target_db)
    pair.target.execute(sql.SQL("alter database {} owner to current_user").format(database))
    pair.target.execute(sql.SQL("revoke all on database {} from public, {}").format(database, writer))
    pair.target.execute(sql.SQL("grant connect on database {} to {}").format(database, writer))
    pair.target.execute("create schema shelf; create table shelf.kept (id int primary key)")
    pair.source.execute("create table kept (id int primary key, more int); create table fresh (id int primary key)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.*", "target": "shelf.*"}])
    for _ in range(5):
        missing = [f for f in check(pair) if f["severity"] == "error"]
        assert ids(missing, "error") <= {"grant_missing"}
        for finding in missing:
            pair.target.execute(sql.SQL(finding["hint"]))
    assert ids(check(pair), "error") == set()
    pair.run("sync")
    pair.assert_equal("public.fresh", "shelf.fresh")


def test_a_target_that_is_no_table_and_one_that_drifted_would_stop(pair: Pair) -> None:
    pair.source.execute("create table seen (id int primary key); create table t (id int primary key, n bigint)")
    pair.as_writer.execute("create view seen as select 1 as id; create table t (id int primary key, n date)")
    pair.grant()
    pair.write_config()
    findings = check(pair, exit_code=4)
    assert {(f["table"], f["id"]) for f in findings if f["severity"] == "error"} == {
        ("public.seen", "target_not_table"),
        ("public.t", "schema_drift"),
    }


def test_a_materialized_view_that_was_never_filled_is_told_by_check_and_sync(pair: Pair) -> None:
    pair.source.execute("create materialized view m as select 1 as id with no data")
    pair.grant()
    pair.write_config(tables=[{"name": "public.m", "key": ["id"]}])
    (found,) = [f for f in check(pair, exit_code=4) if f["id"] == "not_populated"]
    assert (found["severity"], found["table"]) == ("error", "public.m")
    assert "not_populated" in pair.run("sync", check=4).stderr
    pair.source.execute(found["hint"])
    pair.run("sync")
    pair.assert_equal("public.m")


def test_a_column_that_is_left_out_later_and_still_in_the_target_is_told(pair: Pair) -> None:
    pair.source.execute('create table t (id int primary key, "Card" text, note text); insert into t values (1, 2, 3)')
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.write_config(tables=[{"name": "public.t", "exclude": ["Card"]}])
    found = find(pair, "left_out_column")
    assert (found["severity"], found["table"]) == ("warn", "public.t")
    assert "Card" in found["message"]
    pair.run("sync")
    pair.target.execute(found["hint"])
    assert "left_out_column" not in ids(check(pair), "warn")


def test_a_column_of_the_name_that_soft_deletes_need_is_an_error(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, _deleted_at timestamptz); insert into t values (1)")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "deletes": "soft"}])
    assert find(pair, "deleted_at_taken")["severity"] == "error"
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.write_config(tables=[{"name": "public.t", "deletes": "soft"}])
    assert find(pair, "deleted_at_taken")["severity"] == "error"
    pair.run("sync", check=3)
    assert pair.target.execute("select _deleted_at from t").fetchall() == [(None,)]


def test_types_that_the_target_lacks_are_named(pair: Pair) -> None:
    pair.source.execute("create extension hstore; create type point3 as (x int, y int, z int)")
    pair.source.execute("create table t (id int primary key, place point3, places point3[], bag hstore, plain int)")
    pair.grant()
    pair.write_config()
    finding = find(pair, "type_as_text")
    assert finding["message"].startswith("place, places, bag: ")
    assert finding["hint"].startswith('create extension "hstore"')
    pair.target.execute("create extension hstore; create type point3 as (x int, y int, z int)")
    assert "type_as_text" not in ids(check(pair), "warn")


def test_watermarks_without_an_index_and_views_without_a_watermark(pair: Pair) -> None:
    pair.source.execute(
        "create table t (id int primary key, changed_on timestamptz); create view v as select id, changed_on from t;"
        "create view w as select id, now() as conversation_updated_at from t; create view x as select 1 as n"
    )
    pair.grant()
    pair.write_config(
        tables=[
            {"name": "public.t", "watermark": "changed_on", "strategy": "watermark"},
            {"name": "public.v", "key": ["id"], "watermark": "changed_on"},
            {"name": "public.w", "key": ["id"]},
            "public.x",
        ]
    )
    found = {f["table"]: f for f in check(pair, exit_code=0) if f["severity"] == "warn"}
    assert {table: f["id"] for table, f in found.items()} == {
        "public.t": "watermark_without_index",
        "public.w": "view_without_watermark",
        "public.x": "view_without_key",
    }
    assert found["public.w"]["hint"].startswith('watermark = "conversation_updated_at"')
    pair.source.execute(sql.SQL(found["public.t"]["hint"]))
    assert "watermark_without_index" not in ids(check(pair), "warn")


def test_a_standby_as_source_reads_no_table_by_watermark(pair: Pair, make_cluster: MakeCluster) -> None:
    primary = make_cluster(pair.source_server.version)
    standby = primary.standby()
    try:
        primary.execute("create role looker login password 'x'; create table t (id int primary key, at timestamptz)")
        primary.execute("grant select on t to looker; create table u (id int primary key, at timestamptz)")
        primary.execute("grant select on u to looker")
        standby.wait_for_replay(primary)
        dsn = standby.dsn("postgres", user="looker", password="x")
        pair.write_config(
            tables=[
                {"name": "public.t", "watermark": "at"},
                {"name": "public.u", "watermark": "at", "strategy": "watermark"},
            ],
            source={"dsn": dsn},
        )
        findings = check(pair, exit_code=4)
        assert "source_standby" in ids(findings, "ok")
        assert [(f["table"], f["id"]) for f in findings if f["severity"] == "warn"] == [
            ("public.t", "watermark_standby")
        ]
        assert [(f["table"], f["id"]) for f in findings if f["severity"] == "error"] == [("public.u", "config_invalid")]
        pair.write_config(tables=["public.t"], target={"dsn": dsn})
        assert "target_standby" in ids(check(pair, exit_code=4), "error")
    finally:
        standby.remove()


def test_a_prepared_transaction_holds_every_watermark(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, at timestamptz); create view v as table t")
    pair.source.execute("begin; insert into t values (1, now()); prepare transaction 'left over'")
    pair.grant()
    pair.write_config(tables=[{"name": "public.v", "key": ["id"], "watermark": "at"}])
    assert find(pair, "prepared_transaction")["severity"] == "warn"
    pair.source.execute("rollback prepared 'left over'")
    assert "prepared_transaction" not in ids(check(pair), "warn")


def test_a_mask_key_is_asked_for_and_kept_from_others(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, name text)")
    pair.grant()
    tables = [{"name": "public.t", "mask": {"name": "hash"}}]
    pair.write_config(tables=tables)
    assert find(pair, "mask_key_missing")["table"] == "public.t"
    key = pair.dir / "mask.key"
    pair.write_config(tables=tables, privacy={"mask_key_file": str(key)})
    assert {f["table"] for f in check(pair) if f["id"] == "mask_key_missing"} == {None, "public.t"}
    key.write_text("secret")
    key.chmod(0o644)
    finding = find(pair, "mask_key_exposed")
    assert finding["severity"] == "warn"
    assert finding["hint"] == f"chmod 600 {key}"
    key.chmod(0o600)
    assert ids(check(pair), "warn", "error") == set()


def test_settings_that_are_rarely_meant_are_told_where_they_stand(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); create table u (id int primary key)")
    pair.grant()
    pair.write_config(
        tables=[{"name": "public.t", "max_delete_fraction": 1.0}, "public.u"], defaults={"on_row_error": "quarantine"}
    )
    found = [(f["id"], f["table"]) for f in check(pair, exit_code=0) if f["severity"] == "warn"]
    assert found == [("on_row_error", None), ("max_delete_fraction", "public.t")]


def test_a_column_that_each_side_computes_in_its_own_way_is_told(pair: Pair) -> None:
    """It is neither written nor compared, so nothing else would tell."""
    computed = "create table t (id int primary key, n int, twice int generated always as (n * {}) stored)"
    pair.source.execute(computed.format(2))
    pair.grant()
    pair.as_writer.execute(computed.format(3))
    pair.write_config(tables=["public.t"])
    found = find(pair, "generated_differs")
    assert (found["severity"], found["table"]) == ("warn", "public.t")
    assert "column twice" in found["message"]
    pair.as_writer.execute(found["hint"])
    assert "generated_differs" not in ids(check(pair), "warn")


def test_encodings_that_differ_are_a_note_or_a_warning(make_pair: MakePair) -> None:
    pair = make_pair(source_encoding="LATIN1")
    pair.write_config()
    assert find(pair, "encoding")["severity"] == "ok"
    other = make_pair(target_encoding="LATIN1")
    other.write_config()
    assert find(other, "encoding")["severity"] == "warn"


def test_another_cluster_than_last_time_would_stop(pair: Pair, make_pair: MakePair) -> None:
    other = make_pair(source_server=pair.target_server)
    for source in (pair, other):
        source.source.execute("create table t (id int primary key)")
        source.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.write_config(tables=["public.t"], source={"dsn": other.source_dsn})
    assert find(pair, "source_changed")["severity"] == "error"


def test_a_control_schema_of_a_newer_package_is_left_alone(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    pair.write_config()
    pair.run("sync")
    pair.target.execute("insert into replicator.migration (version, name) values (9999, 'later')")
    assert find(pair, "control_newer")["severity"] == "error"
    pair.run("plan", check=1)
    pair.run("sync", check=1)


def test_two_tables_for_one_target_are_found(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); create table u (id int primary key)")
    pair.grant()
    pair.write_config(tables=["public.t", {"name": "public.u", "target": "public.t"}])
    assert find(pair, "config_invalid")["severity"] == "error"


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_pooler_by_transaction_is_an_error(pair: Pair, side: str) -> None:
    server = pair.source_server if side == "source" else pair.target_server
    dsn = pair.dsn_of_source if side == "source" else pair.dsn_of_target
    with Pooler(server.host, server.port, by_transaction=True) as pooler:
        pair.write_config(f"{side}.dsn = {json.dumps(dsn(port=pooler.port))}")
        findings = check(pair, exit_code=4)
    (finding,) = [f for f in findings if f["id"] == "session_not_pinned"]
    assert side in finding["message"]


def test_a_pooler_by_session_is_a_warning(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key)")
    pair.grant()
    with Pooler(pair.source_server.host, pair.source_server.port, by_transaction=False) as pooler:
        pair.write_config(tables=["public.t"], source={"dsn": pair.dsn_of_source(port=pooler.port)})
        assert ids(check(pair, exit_code=0), "warn") == {"pooler"}


def test_names_and_settings_of_strangers_do_not_reach_the_terminal_raw(pair: Pair) -> None:
    pair.source.execute(sql.SQL('create table "evil\x1b[2J""; drop table t" (id int)'))
    pair.grant()
    pair.write_config()
    text = pair.run("check").stdout
    assert "\x1b" not in text
    assert "no_key" in text


def test_a_password_is_in_no_finding(pair: Pair) -> None:
    # `pair.run` itself asserts that neither password is printed.
    pair.write_config(source={"dsn": pair.dsn_of_source(host="no.such.host.invalid")})
    findings = check(pair, exit_code=4)
    assert ids(findings, "error") == {"source_reachable"}


def test_a_pattern_that_matches_nothing_is_told_beside_one_that_does(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); create view only_v as select * from t")
    pair.grant()
    pair.write_config(tables=["public.*", "sales.*", "public.only_?"], logs={"level": "info", "format": "json"})
    found = [finding for finding in check(pair) if finding["id"] == "pattern_without_match"]
    assert [finding["severity"] for finding in found] == ["warn", "warn"]
    assert "sales.*" in found[0]["message"]
    assert [warning["id"] for warning in pair.json("plan")["warnings"]] == ["pattern_without_match"] * 2
    assert "pattern_without_match" in pair.run("plan").stdout
    finished = pair.run("sync")
    assert "pattern_unmatched" in finished.stderr
    assert "sales.*" in finished.stderr


def test_a_table_that_vanished_under_a_pattern_is_told_until_it_is_forgotten(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); create table u (id int primary key)")
    pair.grant()
    pair.write_config(tables=["public.*"])
    pair.run("sync")
    pair.source.execute("drop table u")
    (finding,) = [finding for finding in check(pair) if finding["id"] == "table_vanished"]
    assert (finding["severity"], finding["table"]) == ("warn", "public.u")
    assert [warning["id"] for warning in pair.json("plan")["warnings"]] == ["table_vanished"]
    assert pair.json("health")["healthy"]
    for _ in range(3):
        assert pair.json("sync")["status"] == "success"
    assert [row["status"] for row in pair.control_rows("public.u")] == ["success", "skipped"]
    (reason,) = pair.json("health", check=1)["reasons"]
    assert (reason["id"], reason["table"]) == ("table_gone", "public.u")
    pair.run("forget", "public.u", "--yes")
    assert pair.json("health")["healthy"]
    assert "table_vanished" not in [finding["id"] for finding in check(pair)]
