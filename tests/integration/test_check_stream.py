"""`check` says what `listen` would miss on the source; to those who only sync it is no error."""

from __future__ import annotations

import pytest
from psycopg import sql

from tests.conftest import MakeCluster, MakePair
from tests.finding import Finding, check, find, ids
from tests.pair import Pair
from tests.streaming import catch_up

ADVICE = {"slot_keeps_wal"}
_MENDED = ("identity_missing", "publication_missing", "unlogged_part")


def run_hint(pair: Pair, finding: Finding) -> None:
    """Do what a finding asks for, as the owner."""
    pair.source.execute(sql.SQL(finding["hint"].removeprefix("as their owner: ")))


def test_a_role_that_may_not_replicate_hears_one_line(pair: Pair) -> None:
    pair.source.execute("create table bare (note text); create table late (id int primary key deferrable)")
    pair.grant()
    pair.write_config()
    finding = find(pair, "stream")
    assert finding["severity"] == "ok"
    assert "may not replicate" in finding["message"]
    assert ids(check(pair, exit_code=0)) & {"identity_missing", "publication_missing", "slot_keeps_wal"} == set()
    pair.source.execute(sql.SQL(finding["hint"].split(";")[0]))
    assert "identity_missing" in ids(check(pair, exit_code=0), "warn")


@pytest.mark.versions
def test_every_mend_leads_to_a_listener_that_runs(streamed: Pair) -> None:
    streamed.source.execute(
        "create table t (id int primary key, twice int generated always as (id * 2) stored);"
        "create table bare (note text); create table late (id int primary key deferrable);"
        "create table other (id int not null, constraint other_key unique (id));"
        "create table part (id int primary key) partition by hash (id);"
        "create table part0 partition of part for values with (modulus 2, remainder 0);"
        "create unlogged table part1 partition of part for values with (modulus 2, remainder 1);"
        "create view v as select * from t; create unlogged table fast (id int primary key)"
    )
    streamed.grant()
    streamed.write_config(
        tables=[
            "public.t", "public.bare", "public.late", {"name": "public.other", "key": ["id"]}, "public.part",
            {"name": "public.v", "key": ["id"]}, "public.fast",
        ]
    )  # fmt: skip
    findings = check(streamed, exit_code=0)
    lacking = {(f["table"], f["id"]) for f in findings if f["id"] in _MENDED}
    assert lacking == {
        (None, "publication_missing"),
        ("public.bare", "identity_missing"),
        ("public.late", "identity_missing"),
        ("public.other", "identity_missing"),
        ("public.part", "unlogged_part"),
    }
    assert {f["table"] for f in findings if f["id"] == "no_stream"} == {"public.v", "public.fast"}
    assert "stream" not in ids(findings)
    (late,) = [f for f in findings if f["id"] == "identity_missing" and f["table"] == "public.late"]
    assert "deferrable" in late["message"]
    for finding in findings:
        if finding["id"] in _MENDED:
            run_hint(streamed, finding)
    findings = check(streamed, exit_code=0)
    assert "stream" in ids(findings, "ok")
    is_old = streamed.source_server.version < 18
    assert {f["table"] for f in findings if f["id"] == "column_unsent"} == ({"public.t"} if is_old else set())
    streamed.source.execute("insert into t values (1); insert into late values (1); insert into bare values ('x')")
    catch_up(streamed)
    streamed.source.execute(
        "update t set id = 2; delete from bare; update late set id = 3; insert into part values (1)"
    )
    catch_up(streamed)
    for table in ("t", "bare", "late", "other", "part"):
        streamed.assert_equal(f"public.{table}")


@pytest.mark.versions
def test_a_column_that_no_publication_can_hold_is_told_without_an_alter_publication(streamed: Pair) -> None:
    if streamed.source_server.version < 18:
        pytest.skip("virtual columns came with 18")
    streamed.source.execute(
        "create table t (id int primary key, a int, twice int generated always as (a * 2) virtual);"
        "create table u (id int primary key, twice int generated always as (id * 2) stored)"
    )
    streamed.publish()
    streamed.source.execute("alter publication replicator_default set (publish_generated_columns = none)")
    streamed.write_config(tables=["public.t", "public.u"])
    mends = {f["table"]: f["hint"] for f in check(streamed, exit_code=0) if f["id"] == "column_unsent"}
    assert mends["public.t"] == 'exclude = ["twice"]'
    assert "publish_generated_columns" in mends["public.u"]


def test_once_a_listener_has_run_what_would_stop_it_is_an_error(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key, note text)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    assert ids(check(streamed, exit_code=0), "warn") == ADVICE
    streamed.source.execute("alter table t replica identity nothing; drop publication replicator_default")
    assert ids(check(streamed, exit_code=4), "error") == {"identity_missing", "publication_missing"}
    streamed.source.execute(sql.SQL("alter role {} noreplication").format(sql.Identifier(streamed.reader)))
    finding = find(streamed, "replication_missing")
    run_hint(streamed, finding | {"hint": finding["hint"].split(";")[0]})
    assert "replication_missing" not in ids(check(streamed))
    streamed.run("slot", "drop", "--yes")
    assert ids(check(streamed, exit_code=0), "warn") == {*ADVICE, "identity_missing", "publication_missing"}


def test_a_publication_that_leaves_something_out_is_named(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key, n int); create table u (id int primary key)")
    streamed.grant()
    streamed.write_config(tables=["public.t", "public.u"])
    streamed.source.execute("create publication replicator_default for table t, u with (publish = 'insert')")
    run_hint(streamed, find(streamed, "publication_partial"))
    streamed.source.execute("alter publication replicator_default set table t where (n > 0), u")
    run_hint(streamed, find(streamed, "publication_partial"))
    streamed.source.execute("alter publication replicator_default drop table u")
    run_hint(streamed, find(streamed, "publication_missing"))
    assert "stream" in ids(check(streamed, exit_code=0), "ok")


def test_rules_that_the_stream_alone_cannot_follow_are_named(streamed: Pair) -> None:
    streamed.source.execute(
        "create table t (id int primary key, n int); create table u (id int primary key);"
        "create table bare (n int); alter table bare replica identity full"
    )
    streamed.publish()
    streamed.write_config(
        tables=[
            {"name": "public.t", "where": "n > 0"},
            {"name": "public.u", "mask": {"id": "id + 1"}},
            {"name": "public.bare", "mask": {"n": "n + 1"}},
        ]
    )
    found = {(f["table"], f["id"], f["severity"]) for f in check(streamed, exit_code=0) if f["id"] != "no_key"}
    assert found > {
        ("public.t", "rows_read_again", "ok"),
        ("public.u", "config_invalid", "warn"),
        ("public.bare", "key_missing", "warn"),
    }


def test_a_role_that_owns_the_tables_makes_the_publication_itself(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.grant()
    streamed.write_config(tables=["public.t"])
    assert "publication_missing" in ids(check(streamed), "warn")
    names = {"reader": sql.Identifier(streamed.reader), "database": sql.Identifier(streamed.source_db)}
    streamed.source.execute(
        sql.SQL("alter table t owner to {reader}; grant create on database {database} to {reader}").format(**names)
    )
    assert find(streamed, "publication")["severity"] == "ok"
    catch_up(streamed)
    assert "publication" not in ids(check(streamed))
    streamed.source.execute("drop publication replicator_default")


def test_a_source_without_room_for_a_stream_says_which_setting(make_cluster: MakeCluster, make_pair: MakePair) -> None:
    tight = {
        "wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1", "wal_sender_timeout": "0",
        "idle_replication_slot_timeout": "60", "max_slot_wal_keep_size": "1GB",
    }  # fmt: skip
    pair = make_pair(source_server=make_cluster(18, settings=tight), listens=True)
    pair.source.execute("create table t (id int primary key)")
    pair.publish()
    pair.write_config(tables=["public.t"])
    assert ids(check(pair, exit_code=0), "warn") == {
        "wal_level", "no_free_slot", "no_free_walsender", "wal_sender_timeout", "slot_idle_timeout",
    }  # fmt: skip
    pair.run("listen", "--until-caught-up", check=4)


def break_tables(pair: Pair) -> None:
    """Make five tables that `listen` would park, each for another reason, among two that it can bring."""
    pair.source.execute(
        "create table t (id int primary key); create table u (id int primary key);"
        "create table bare (note text); create table late (id int primary key deferrable);"
        "create table part (id int primary key) partition by hash (id);"
        "create unlogged table part0 partition of part for values with (modulus 1, remainder 0);"
        "create table masked (id int primary key);"
        "create table outside (id int primary key)"
    )
    pair.publish("t", "u", "bare", "late", "part", "masked")


_BROKEN = {
    ("public.bare", "identity_missing"),
    ("public.late", "identity_missing"),
    ("public.part", "unlogged_part"),
    ("public.masked", "config_invalid"),
    ("public.outside", "publication_missing"),
}
_SELECTED = ["public.*", {"name": "public.masked", "mask": {"id": "id + 1"}}]


@pytest.mark.hazard("S30")
def test_all_tables_that_would_be_parked_are_listed_at_once_as_warnings_until_there_is_a_slot(streamed: Pair) -> None:
    """S30: five of seven tables, one finding each with what mends it."""
    break_tables(streamed)
    streamed.write_config(tables=_SELECTED)
    for severity, exit_code in (("warn", 0), ("error", 4)):
        findings = check(streamed, exit_code=exit_code)
        found = [(f["table"], f["id"], f["severity"]) for f in findings if (f["table"], f["id"]) in _BROKEN]
        assert sorted(found) == sorted((table, name, severity) for table, name in _BROKEN)
        assert "stream" not in ids(findings)
        assert all(f["hint"] for f in findings if (f["table"], f["id"]) in _BROKEN)
        if severity == "warn":
            assert all("would park it" in f["message"] for f in findings if (f["table"], f["id"]) in _BROKEN)
            create = "select pg_create_logical_replication_slot(%s, 'pgoutput')"
            streamed.source.execute(create, [streamed.slot])
    for finding in findings:
        if finding["id"] in (*_MENDED,) and finding["table"] is not None:
            run_hint(streamed, finding)
    streamed.write_config(tables=["public.*"])
    findings = check(streamed, exit_code=0)
    assert "stream" in ids(findings, "ok")


@pytest.mark.hazard("S30")
def test_what_check_warned_of_is_what_the_listener_parks(streamed: Pair) -> None:
    """S30: the same tables, the same ids, the same SQL."""
    break_tables(streamed)
    streamed.write_config(tables=_SELECTED)
    warned = {(f["table"], f["id"]): f["hint"] for f in check(streamed) if (f["table"], f["id"]) in _BROKEN}
    catch_up(streamed, check=6)
    parked = {(t["table"], t["parked"]["id"]): t["parked"] for t in streamed.json("status")["tables"] if t["parked"]}
    assert parked.keys() == warned.keys() == _BROKEN
    for key, one in parked.items():
        assert one["hint"] == warned[key], key
    assert {reason["table"] for reason in streamed.json("health", check=1)["reasons"] if reason["id"] == "parked"} == {
        table for table, _ in _BROKEN
    }


@pytest.mark.hazard("S30", "T9")
def test_a_table_that_is_parked_for_what_no_catalog_shows_is_an_error_too(streamed: Pair) -> None:
    """S30, T9: a row that the target refuses."""
    streamed.source.execute("create table t (id int primary key); create table r (id int primary key, n int)")
    streamed.publish()
    streamed.write_config(tables=["public.*"])
    catch_up(streamed)
    streamed.as_writer.execute("alter table r add constraint small check (n < 10)")
    streamed.source.execute("insert into r values (1, 99)")
    catch_up(streamed, check=6)
    finding = find(streamed, "parked")
    assert (finding["severity"], finding["table"]) == ("error", "public.r")
    assert finding["hint"]


def test_a_slot_that_is_gone_is_an_error_with_the_command_that_goes_on(streamed: Pair) -> None:
    """S19: the position is known, the slot was dropped."""
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.source.execute("select pg_drop_replication_slot(%s)", [streamed.slot])
    finding = find(streamed, "slot_missing")
    assert (finding["severity"], finding["hint"]) == ("error", "replicator listen --repair-gap")
