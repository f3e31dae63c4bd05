"""What bites whoever follows a stream of changes: each hazard through the command line, PostgreSQL as the judge."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from psycopg import sql

from tests.conftest import MakePair
from tests.nightly import assert_tables_equal
from tests.pair import Pair
from tests.streaming import catch_up, expect_refusal, listening, read_slot, wait_until_equal
from tests.wait import wait_until

BIG = "alter table t alter big set storage external"


def follow(pair: Pair, *tables: str) -> None:
    """Catch up, and compare the tables."""
    catch_up(pair)
    assert_tables_equal(pair, tables)


def begin(pair: Pair, ddl: str, *tables: str, publish: tuple[str, ...] = (), **sections: Any) -> None:
    """Make the source's tables, publish and copy them."""
    pair.source.execute(ddl)
    pair.publish(*publish)
    pair.write_config(**{"tables": list(tables), **sections})
    follow(pair, *tables)


def count_copies(pair: Pair, table: str) -> int:
    """Return how often the listener has read a table whole."""
    return len(pair.control_rows(table, path="listen", load_type="full", status="success"))


# ------------------------------------------------------------------------------------------- rows and keys


@pytest.mark.versions
@pytest.mark.parametrize("identity", ["default", "full", "using index t_code_key"])
def test_a_large_value_that_is_not_sent_is_kept(streamed: Pair, identity: str) -> None:
    """S1: alone, after its insert in one batch, with a change of key, and for all three identities."""
    begin(
        streamed,
        "create table t (id int primary key, code text not null unique, n int, big text, other bytea);"
        "alter table t alter other set storage external;"
        f"{BIG}; alter table t replica identity {identity};"
        "insert into t select n, 'c' || n, 0, repeat('x' || n, 4000), convert_to(repeat('y', 5000), 'utf8')"
        " from generate_series(1, 12) n",
        tables=[{"name": "public.t", "key": ["code"] if "index" in identity else ["id"]}],
    )
    change = "code = 'd' || id" if "index" in identity else "id = id + 100"
    streamed.source.execute(
        "update t set n = 1 where id = 1;"
        "begin; insert into t values (50, 'c50', 0, repeat('z', 9000), 'short'); update t set n = 2 where id = 50; commit;"
        f"update t set {change} where id = 2;"
        f"begin; update t set {change} where id = 3; update t set n = 3 where code in ('c3', 'd3'); commit;"
        f"begin; update t set big = null where id = 4; update t set {change} where id = 4; commit;"
        f"begin; update t set other = null, n = 9 where id = 5; update t set n = 10 where id = 5; commit;"
        "begin; delete from t where id = 6; insert into t values (6, 'c6', 6, repeat('new', 3000), null);"
        " update t set n = 7 where id = 6; commit;"
        f"begin; update t set n = 1 where id = 7; delete from t where id = 7; commit;"
        f"update t set big = repeat('changed', 2000) where id = 8; update t set n = 4 where id = 8;"
        f"begin; update t set {change}, big = repeat('both', 2000) where id = 9; update t set n = 5 where code ~ '9'; commit"
    )
    follow(streamed, "public.t")
    assert count_copies(streamed, "public.t") == 1


@pytest.mark.versions
@pytest.mark.parametrize("root", ["full", "default"])
@pytest.mark.parametrize("leaves", ["full", "default"])
def test_a_large_value_survives_a_change_of_key_whoever_has_which_identity(
    streamed: Pair, root: str, leaves: str
) -> None:
    """S1, S4, S6: the stream names the root's identity, and sends what the leaf's gives."""
    begin(
        streamed,
        "create table t (id int primary key, n int, big text) partition by range (id);"
        "create table t1 partition of t for values from (0) to (1000);"
        "create table t2 partition of t for values from (1000) to (2000);"
        f"alter table t1 alter big set storage external; alter table t2 alter big set storage external;"
        f"alter table t replica identity {root};"
        f"alter table t1 replica identity {leaves}; alter table t2 replica identity {leaves};"
        "insert into t select n, 0, repeat('x' || n, 4000) from generate_series(1, 9) n",
        "public.t",
        publish=("public.t",),
    )
    streamed.source.execute(
        "update t set id = id + 100 where id = 1; update t set n = 1 where id = 2; update t set id = id + 1000 where id = 3;"
        "begin; update t set id = id + 200 where id = 4; update t set n = 4 where id = 204; commit; delete from t where id = 5"
    )
    follow(streamed, "public.t")


@pytest.mark.parametrize("replica", [True, False], ids=["replica", "plain"])
@pytest.mark.parametrize("indexes", ["key", "all"])
def test_keys_move_in_chains_and_change_places(make_pair: MakePair, replica: bool, indexes: str) -> None:
    """S2, W31: also where a second column is unique on both sides, with and without the right to replica mode."""
    pair = make_pair(listens=True, replica=replica)
    begin(
        pair,
        "create table t (id int primary key, code text unique deferrable, n int, big text);"
        f"{BIG}; insert into t select n, 'c' || n, 0, repeat('x' || n, 3000) from generate_series(1, 30) n",
        tables=[{"name": "public.t", "indexes": indexes}],
    )
    pair.target.execute("alter table t add column local text; update t set local = 'mine ' || code")
    pair.source.execute(
        "update t set id = 100 where id = 1; update t set id = 101 where id = 100; update t set id = 102 where id = 101;"
        "begin; update t set id = 0 where id = 2; update t set id = 2 where id = 3; update t set id = 3 where id = 0; commit;"
        "begin; set constraints all deferred; update t set code = case id when 4 then 'c5' else 'c4' end"
        " where id in (4, 5); commit;"
        "begin; set constraints all deferred; update t set code = 'c' || case id when 8 then 6 else id + 1 end"
        " where id between 6 and 8; commit;"
        "delete from t where id = 9; insert into t values (109, 'c9', 1, 'taken over');"
        "begin; update t set code = 'aside' where id = 10; insert into t values (110, 'c10', 1, null);"
        " update t set code = 'c110' where id = 10; commit;"
        "begin; update t set id = -1 where id = 11; update t set id = 11, code = 'c11b' where id = 12;"
        " update t set id = 12 where id = -1; commit"
    )
    follow(pair, "public.t")
    kept = pair.target.execute("select count(*) from t where local is not null").fetchone()
    assert kept == (29,), "a row lost what only the target has of it"


@pytest.mark.parametrize("cap", ["64MB", "8MB"])
def test_changes_of_one_key_fold_in_one_batch_and_in_many(streamed: Pair, cap: str) -> None:
    """S3: insert, update, delete and insert of one key, over and over, in batches large and small."""
    begin(streamed, "create table t (id int primary key, n int, pad text)", "public.t", listen={"batch_bytes": cap})
    streamed.source.execute("""
        do $$ begin
            for round in 1..20 loop
                insert into t select g, round, repeat('p', 500) from generate_series(1, 500) g on conflict do nothing;
                update t set n = n + 1 where id % 7 = round % 7;
                delete from t where (id + round) % 3 = 0;
                insert into t select g, -round, '' from generate_series(1, 500, 5) g on conflict (id) do update set n = 0;
                if round % 4 = 0 then commit; end if;
            end loop;
        end $$
    """)
    follow(streamed, "public.t")


@pytest.mark.versions
def test_an_identity_of_nothing_is_refused_with_the_statement_that_mends_it(streamed: Pair) -> None:
    """S4."""
    streamed.source.execute("create table t (id int primary key); alter table t replica identity nothing")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    expect_refusal(
        streamed.run("listen", "--until-caught-up", check=4), "public.t", 'alter table "public"."t" replica identity'
    )
    streamed.source.execute('alter table "public"."t" replica identity full; insert into t values (1)')
    follow(streamed, "public.t")


@pytest.mark.versions
@pytest.mark.parametrize("ways", ["full default", "default", "using index t_code_key", "nothing", "full nothing full"])
def test_an_identity_that_changes_between_changes_is_followed(streamed: Pair, ways: str) -> None:
    """S4: to one that does not name the key and back, while nobody listens."""
    begin(
        streamed,
        "create table t (id int primary key, code text not null unique, n int, big text);"
        f"{BIG}; insert into t select n, 'c' || n, 0, repeat('x', 3000) from generate_series(1, 30) n",
        "public.t",
    )
    streamed.source.execute("update t set n = 1 where id = 1")
    steps = [ways] if ways.startswith("using") else ways.split()
    for place, identity in enumerate(steps, 2):
        streamed.source.execute(f"alter table t replica identity {identity}")
        streamed.source.execute(f"insert into t values ({place + 100}, 'n{place}', 1, 'new')")
        if identity != "nothing":
            streamed.source.execute(
                f"update t set n = {place} where id = {place}; update t set id = id + 200 where id = {place * 5};"
                f"delete from t where id = {place * 7}"
            )
    streamed.source.execute("alter table t replica identity default; update t set n = 9 where id = 9")
    follow(streamed, "public.t")


def test_an_identity_that_changes_under_the_listener_is_told_and_mended(streamed: Pair) -> None:
    """S4: what was changed before it was mended is not lost."""
    begin(
        streamed,
        "create table t (id int primary key, code text not null unique, n int);"
        "insert into t select n, 'c' || n, 0 from generate_series(1, 30) n",
        "public.t",
    )
    with streamed.popen("listen") as running:
        wait_until(lambda: "stream_started" in running.stderr, what="the stream")
        streamed.source.execute("alter table t replica identity using index t_code_key; delete from t where id = 3")
        wait_until(lambda: "table_parked" in running.stderr, 60, what="the table is parked")
        assert "replica identity full" in running.stderr
    streamed.source.execute("alter table t replica identity full")
    follow(streamed, "public.t")


@pytest.mark.versions
def test_tables_without_a_key_lose_and_gain_exactly_one_of_equal_rows(streamed: Pair) -> None:
    """S4: REPLICA IDENTITY FULL with NULLs, duplicates, dropped columns and large values, in one batch and in many."""
    begin(
        streamed,
        "create table t (a int, gone int, b text, c numeric, big text); alter table t drop column gone;"
        f"{BIG}; alter table t replica identity full;"
        "insert into t select n % 3, case when n % 2 = 0 then 'x' end, 1.0, repeat('b', 3000 * (n % 2))"
        " from generate_series(1, 24) n; insert into t select from generate_series(1, 4)",
        "public.t",
    )
    one = "ctid = (select min(ctid) from t where {})"
    changes = [
        "delete from t where " + one.format("a = 1"),
        "delete from t where " + one.format("a is null"),
        "update t set a = 7 where " + one.format("big <> ''"),
        "insert into t select * from t where a = 2",
        "update t set c = 1.00 where a = 2",
        "update t set a = a where a = 0",
    ]
    for change in changes:
        streamed.source.execute(change)
    follow(streamed, "public.t")
    streamed.source.execute("begin;" + ";".join(changes) + ";commit")
    follow(streamed, "public.t")


@pytest.mark.parametrize("rule", [{"where": "a > 0"}, {"mask": {"b": "upper(b)"}}], ids=["where", "mask"])
def test_a_table_without_a_key_and_rules_of_the_source_is_never_wrong(streamed: Pair, rule: dict[str, object]) -> None:
    """S4: such rows cannot be read again one by one: the table is refused, or it is equal."""
    streamed.source.execute(
        "create table t (a int, b text); alter table t replica identity full; insert into t values (1, 'x'), (-1, 'y');"
        "create view expected as select a, " + ("upper(b) as b from t" if "mask" in rule else "b from t where a > 0")
    )
    streamed.publish("public.t")
    streamed.write_config(tables=[{"name": "public.t"} | rule])
    finished = streamed.run("listen", "--until-caught-up", check=None)
    if finished.exit_code:
        expect_refusal(finished, "public.t", "key")
        return
    streamed.source.execute(
        "insert into t values (2, 'new'), (-2, 'hidden'); update t set a = -a; delete from t where b = 'y'"
    )
    catch_up(streamed)
    streamed.assert_equal("public.expected", "public.t")


# ------------------------------------------------------------------------------------------------ TRUNCATE


@pytest.mark.parametrize("replica", [True, False], ids=["replica", "plain"])
@pytest.mark.parametrize("deletes", ["hard", "soft"])
def test_a_truncate_stands_in_its_place_among_other_changes(make_pair: MakePair, replica: bool, deletes: str) -> None:
    """S5: with inserts before and after, by cascade, in savepoints undone and kept, twice in one transaction."""
    pair = make_pair(listens=True, replica=replica)
    tables = ["public.t", "public.child", "public.keyless"]
    pair.source.execute(
        "create table t (id int primary key generated always as identity, note text);"
        "create table child (id int primary key, t int references t);"
        "create table keyless (a int); alter table keyless replica identity full;"
        "insert into t (note) select 'x' from generate_series(1, 9) n; insert into child values (1, 1);"
        "insert into keyless values (1), (1)"
    )
    pair.publish()
    pair.write_config(tables=tables, defaults={"deletes": deletes})
    catch_up(pair)
    live = "_deleted_at is null" if deletes == "soft" else None

    def check() -> None:
        catch_up(pair)
        for table in tables:
            pair.assert_equal(table, target_where=live)

    check()
    pair.source.execute(
        "begin; insert into t (note) values ('before'); insert into child values (2, 2); insert into keyless values (2);"
        "savepoint a; truncate t cascade; truncate keyless; rollback to a;"
        "savepoint b; truncate t, keyless restart identity cascade; release b;"
        "insert into t (note) values ('after'), ('after'); insert into keyless values (3), (3);"
        "savepoint c; truncate keyless; insert into keyless values (4); rollback to c;"
        "insert into child values (5, 1); commit;"
        "update t set note = 'later' where id = 2; delete from keyless where ctid = (select min(ctid) from keyless)"
    )
    check()
    pair.source.execute(
        "begin; truncate t restart identity cascade; insert into t (note) values ('first'); truncate t cascade;"
        " insert into t (note) values ('second'); insert into child values (7, 2); commit; truncate keyless"
    )
    check()
    with listening(pair):
        pair.source.execute("insert into keyless values (9); truncate child; insert into child values (8, 2)")
        pair.source.execute("truncate t cascade")
        pair.source.execute("begin; insert into t (note) select 'again' from generate_series(1, 100); rollback")
        wait_until(
            lambda: not pair.target.execute(f"select from t where {live or 'true'}").fetchall(), what="t is empty"
        )
    check()


# ---------------------------------------------------------------------------------------------- partitions


@pytest.mark.versions
@pytest.mark.parametrize("via", ["root", "leaves", "all"])
def test_partitions_come_and_go_and_rows_move_between_them(streamed: Pair, via: str) -> None:
    """S6: published by their root, by their leaves, or with everything else; some partitions have partitions."""
    streamed.source.execute(
        "create table t (id int, day date, note text, primary key (id, day)) partition by range (day);"
        "create table t1 partition of t for values from ('2026-01-01') to ('2026-02-01');"
        "create table t2 partition of t for values from ('2026-02-01') to ('2026-03-01') partition by list (id);"
        "create table t2a partition of t2 for values in (1, 2, 3); create table t2b partition of t2 default;"
        "create table t3 (note text, day date not null, id int not null, primary key (id, day));"
        "insert into t select n, '2026-01-10', 'x' from generate_series(1, 20) n;"
        "insert into t3 select 'y', '2026-03-05', n from generate_series(1, 5) n"
    )
    streamed.grant()
    what = {"root": "table t with (publish_via_partition_root)", "leaves": "table t", "all": "all tables"}[via]
    streamed.source.execute(f"create publication replicator_default for {what}")
    streamed.write_config(tables=["public.t"])
    follow(streamed, "public.t")
    steps = (
        "update t set day = '2026-02-03' where id < 5; insert into t values (99, '2026-02-09', 'z')",
        (
            "update t set id = id + 200 where id in (3, 99); delete from t where id = 2; update t set id = 7, day = '2026-01-30'"
            " where id = 4 and day > '2026-02-01'"
        ),
        (
            "alter table t attach partition t3 for values from ('2026-03-01') to ('2026-04-01');"
            "update t set note = 'attached' where id = 1; insert into t values (50, '2026-03-09', 'new')"
        ),
        (
            "begin; insert into t values (51, '2026-03-09', 'lost'); truncate t3; insert into t values (52, '2026-03-10', 'kept');"
            " commit"
        ),
        (
            "alter table t detach partition t1; insert into t1 values (77, '2026-01-01', 'alone');"
            "update t set note = 'detached' where id = 52"
        ),
        (
            "create table t4 partition of t default; insert into t values (60, '2026-01-04', 'default'), (61, '2027-01-01', '');"
            "drop table t2b"
        ),
        "truncate t; insert into t values (1, '2026-02-01', 'all new')",
    )
    for step in steps:
        streamed.grant()
        streamed.source.execute(step)
        streamed.grant()
        follow(streamed, "public.t")


BETWEEN_TWO_LOOKS = {
    "comes and goes": "alter table t attach partition t3 for values from ('2026-03-01') to ('2026-04-01');"
    "update t set note = 'for a moment' where day > '2026-03-01' and id % 2 = 0; insert into t values (8, '2026-03-09', 'new');"
    "update t set day = '2026-03-11' where id = 20; update t set day = '2026-01-11' where id = 3 and day > '2026-03-01';"
    "alter table t detach partition t3",
    "goes and comes": "alter table t detach partition t1; update t1 set note = 'apart' where id % 3 = 0;"
    "delete from t1 where id = 4; insert into t1 values (30, '2026-01-12', 'apart');"
    "alter table t attach partition t1 for values from ('2026-01-01') to ('2026-02-01')",
}


@pytest.mark.versions
@pytest.mark.parametrize("via", ["root", "leaves", "all"])
@pytest.mark.parametrize("what", BETWEEN_TWO_LOOKS)
def test_a_partition_that_comes_and_goes_between_two_looks_at_the_catalog_is_noticed(
    streamed: Pair, what: str, via: str
) -> None:
    """S6: the catalog looks the same before and after."""
    streamed.source.execute(
        "create table t (id int, day date, note text, primary key (id, day)) partition by range (day);"
        "create table t1 partition of t for values from ('2026-01-01') to ('2026-02-01');"
        "create table t2 partition of t for values from ('2026-02-01') to ('2026-03-01');"
        "create table t3 (note text, day date not null, id int not null, primary key (id, day));"
        "create table other (id int primary key, n int);"
        "insert into t select n, '2026-01-10', 'x' from generate_series(1, 20) n;"
        "insert into t3 select 'y', '2026-03-05', n from generate_series(1, 5) n"
    )
    streamed.grant()
    published = {
        "root": "table t, other with (publish_via_partition_root)",
        "leaves": "table t, other",
        "all": "all tables",
    }
    streamed.source.execute(f"create publication replicator_default for {published[via]}")
    streamed.write_config(tables=["public.t"])
    follow(streamed, "public.t")
    streamed.source.execute("truncate t1; insert into t select n, '2026-01-10', 'x' from generate_series(1, 20) n")
    follow(streamed, "public.t")
    copies = count_copies(streamed, "public.t")
    streamed.source.execute("insert into other values (1, 1); update t set note = 'known' where id = 1")
    follow(streamed, "public.t")
    assert count_copies(streamed, "public.t") == copies, "it was read again for nothing"
    for step in BETWEEN_TWO_LOOKS[what].split(";"):
        streamed.source.execute(step)
    streamed.grant()
    follow(streamed, "public.t")
    streamed.source.execute(
        "update t set note = 'later' where id % 4 = 0; insert into t values (40, '2026-02-02', 'later')"
    )
    follow(streamed, "public.t")


@pytest.mark.parametrize("root", ["full", "default"])
def test_a_partitioned_table_without_a_key_streams_or_is_refused(streamed: Pair, root: str) -> None:
    """S4, S6: the root's own identity counts too where it is published under its name."""
    streamed.source.execute(
        "create table t (id int, note text) partition by range (id);"
        "create table t1 partition of t for values from (0) to (10); create table t2 partition of t default;"
        f"alter table t replica identity {root}; alter table t1 replica identity full; alter table t2 replica identity full;"
        "insert into t values (1, 'a'), (1, 'a'), (11, 'b')"
    )
    streamed.publish("public.t")
    streamed.write_config(tables=["public.t"])
    finished = streamed.run("listen", "--until-caught-up", check=None)
    if finished.exit_code:
        expect_refusal(finished, 'alter table "public"."t" replica identity full')
        streamed.source.execute('alter table "public"."t" replica identity full')
        catch_up(streamed)
    streamed.source.execute(
        "update t set note = 'c' where ctid = (select min(ctid) from t where id = 1); update t set id = 5 where id = 11;"
        "insert into t values (12, null), (12, null); delete from t where ctid = (select ctid from t2 limit 1)"
    )
    follow(streamed, "public.t")


def test_children_that_inherit_come_with_their_parent(streamed: Pair) -> None:
    """S6: a parent with rows of its own, a child filled beforehand, and a child that leaves."""
    begin(
        streamed,
        "create table t (id int primary key, note text); create table c1 () inherits (t); alter table c1 add primary key (id);"
        "alter table t replica identity full; alter table c1 replica identity full;"
        "insert into t values (1, 'parent'); insert into c1 values (2, 'child')",
        "public.t",
        publish=("t",),
    )
    streamed.source.execute(
        "insert into c1 values (3, 'child'); update t set note = 'changed' where id = 2; delete from t where id = 1"
    )
    follow(streamed, "public.t")
    streamed.source.execute(
        "create table c2 (id int primary key, note text); insert into c2 values (9, 'before'); alter table c2 inherit t;"
        "alter table c2 replica identity full;"
        "alter publication replicator_default set table t; insert into c2 values (10, 'after')"
    )
    streamed.grant()
    follow(streamed, "public.t")
    streamed.source.execute("truncate c1; alter table c2 no inherit t; insert into t values (20, 'last')")
    follow(streamed, "public.t")


# ------------------------------------------------------------------------------------------- definitions

DEFINITIONS = {
    "added": "alter table t add column more text; update t set more = 'm' where id % 2 = 0",
    "with a default": "alter table t add column more int default 7; update t set n = 5 where id = 3",
    "with a volatile default": "alter table t add column more uuid default gen_random_uuid()",
    "dropped": "alter table t drop column note; update t set n = 8 where id = 2",
    "dropped and made anew": "alter table t drop column note; alter table t add column note text default 'anew'",
    "renamed": "alter table t rename column note to remark; update t set remark = 'r' where id = 4",
    "exchanged": "alter table t rename column note to x; alter table t rename column other to note;"
    " alter table t rename column x to other; update t set note = 'n' where id = 5",
    "retyped": "alter table t alter n type text using 'n' || n; update t set n = 'x' where id = 6",
    "widened": "alter table t alter code type varchar(50); update t set code = repeat('c', 50) where id = 7",
    "in a transaction": "begin; insert into t (id, n) values (200, 1); alter table t add column more int;"
    " update t set more = id; insert into t (id, more) values (201, 3); alter table t drop column other; delete from t"
    " where id = 200; commit",
    "undone": "begin; insert into t (id, n) values (200, 1); savepoint s; alter table t add column more int;"
    " update t set more = 1; rollback to s; insert into t (id, n) values (201, 1); commit",
    "twice": "alter table t add column more int; insert into t (id, more) values (300, 1); alter table t drop column more;"
    " insert into t (id) values (301); alter table t add column more text; insert into t (id, more) values (302, 'x')",
    "rekeyed": "begin; alter table t drop constraint t_pkey; alter table t add primary key (id, n); commit;"
    " insert into t (id, n) values (1, 99)",
    "other values": "alter table t alter n type int using n + 100; update t set note = 'after' where id = 3",
    "other values of a column that stays": "insert into t (id) values (120); alter table t alter note type text using"
    " upper(note) || id; delete from t where id = 4",
    "rewritten": "vacuum full t; update t set n = 1 where id = 1",
    "exchanged for another": "begin; create table u (like t including all); insert into u select id, n + 1 from t;"
    " drop table t; alter table u rename to t; commit",
}


@pytest.mark.versions
@pytest.mark.parametrize("change", DEFINITIONS)
def test_a_changed_definition_is_followed_by_a_later_run(streamed: Pair, change: str) -> None:
    """S7, S8, S9: between changes that precede it and changes that follow it."""
    begin(
        streamed,
        "create table t (id int primary key, n int not null default 0, note text, other text, code varchar(5));"
        "insert into t select n, n, 'x', 'o', 'c' from generate_series(1, 50) n; create table u0 (id int primary key)",
        "public.t",
        "public.u0",
    )
    streamed.source.execute(
        "insert into t (id) values (51); update t set n = 2 where id = 9; insert into u0 values (1)"
    )
    for step in split(DEFINITIONS[change]):
        streamed.source.execute(step)
    streamed.grant()
    streamed.source.execute("alter publication replicator_default set tables in schema public")
    streamed.source.execute("insert into t (id) values (52); insert into u0 values (2); delete from t where id = 10")
    follow(streamed, "public.t", "public.u0")
    assert count_copies(streamed, "public.u0") == 1
    assert count_copies(streamed, "public.t") <= 2, "it was read again more often than once"


@pytest.mark.versions
def test_a_stored_column_is_read_again_when_its_expression_changes(streamed: Pair) -> None:
    """S7, S10: the change writes the table anew, and no message tells of it."""
    if streamed.source_server.version < 17:
        pytest.skip("the expression of a column can be changed from 17 on")
    begin(
        streamed,
        "create table t (id int primary key, twice int generated always as (id * 2) stored);"
        "insert into t values (1), (2)",
        "public.t",
    )
    streamed.source.execute("alter table t alter twice set expression as (id * 3); insert into t values (3)")
    follow(streamed, "public.t")


def test_what_changes_no_value_has_no_table_read_again(streamed: Pair) -> None:
    """S7: a file of another name, or a column's new default, is no reason by itself."""
    begin(
        streamed,
        "create table t (id int primary key, n int); insert into t values (1, 1);"
        "create table u (id int primary key, n int); insert into u values (1, 1)",
        "public.t",
        "public.u",
    )
    for step in (
        "vacuum full t", "insert into t values (2, 2)", "truncate t", "cluster t using t_pkey",
        "alter table u alter n set default 5", "insert into u values (2)", "alter table u alter n set not null",
    ):  # fmt: skip
        streamed.source.execute(step)
        follow(streamed, "public.t", "public.u")
    assert (count_copies(streamed, "public.t"), count_copies(streamed, "public.u")) == (1, 1)


def test_a_table_that_is_replaced_again_and_again_does_not_end_the_listener(streamed: Pair) -> None:
    """S7: between two looks at the catalog a name may pass to another table."""
    streamed.constants["replicator.stream.loop._DEFINITIONS_S"] = 0.05
    streamed.source.execute(
        sql.SQL(
            "create table t (id int primary key, note text); insert into t values (1, 'first');"
            "create table u (id int primary key); create publication replicator_default for all tables;"
            "alter default privileges grant select on tables to {}"
        ).format(sql.Identifier(streamed.reader))
    )
    streamed.grant()
    streamed.write_config(tables=["public.t", "public.u"])
    with listening(streamed) as running:
        for n in range(150):
            streamed.source.execute(
                f"begin; drop table t; create table t (id int primary key, note text); insert into t values ({n}, 'new');"
                f"commit; insert into u values ({n})"
            )
            threading.Event().wait(0.03)
            assert running.running, running.wait()
        wait_until_equal(streamed, "public.t", "public.u", timeout_s=60)


def test_a_listener_whose_look_at_the_catalog_is_cut_off_looks_again(streamed: Pair) -> None:
    """S7, F4: the stream itself goes on, and nothing in it tells of the change."""
    streamed.constants["replicator.stream.loop._DEFINITIONS_S"] = 1.0
    begin(streamed, "create table t (id int primary key); insert into t values (1)", "public.t")
    with listening(streamed):
        streamed.source.execute("insert into t values (2)")
        wait_until_equal(streamed, "public.t")
        ended = streamed.source.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s and backend_type = 'client backend'",
            [streamed.reader],
        )
        assert ended.rowcount
        streamed.source.execute("alter table t add column extra int default 5")
        wait_until_equal(streamed, "public.t", timeout_s=40)
        streamed.source.execute("insert into t values (3)")
        wait_until_equal(streamed, "public.t", timeout_s=40)


def split(text: str) -> list[str]:
    """Return the statements, those of one transaction together."""
    return [text] if text.startswith("begin") and text.endswith("commit") else text.split(";")


@pytest.mark.parametrize("change", [name for name in DEFINITIONS if name != "rewritten"])
def test_a_changed_definition_is_followed_by_the_listener_at_work(streamed: Pair, change: str) -> None:
    """S7, S8, S9: what no message tells is noticed all the same."""
    streamed.constants["replicator.stream.loop._DEFINITIONS_S"] = 1.0
    begin(
        streamed,
        "create table t (id int primary key, n int not null default 0, note text, other text, code varchar(5));"
        "insert into t select n, n, 'x', 'o', 'c' from generate_series(1, 50) n",
        "public.t",
    )
    with listening(streamed):
        streamed.source.execute("insert into t (id) values (51); update t set n = 2 where id = 9")
        for step in split(DEFINITIONS[change]):
            streamed.source.execute(step)
        streamed.grant()
        streamed.source.execute("insert into t (id) values (52); delete from t where id = 10")
        wait_until_equal(streamed, "public.t", timeout_s=45)
    assert count_copies(streamed, "public.t") <= 2, "it was read again more often than once"


@pytest.mark.versions
def test_a_column_that_was_filled_before_its_change_was_seen_arrives_whole(streamed: Pair) -> None:
    """S8, S9: a fast default and a backfill, committed before the first run that sees the column."""
    begin(
        streamed,
        "create table t (id int primary key, n int); insert into t select n, n from generate_series(1, 500) n",
        "public.t",
    )
    streamed.source.execute(
        "update t set n = -1 where id < 5; alter table t add column d text default 'fast', add column e int;"
        "update t set e = id where id > 250; alter table t alter d set default 'later';"
        "insert into t (id) values (600); update t set n = 1 where id = 1"
    )
    follow(streamed, "public.t")
    streamed.source.execute("update t set e = 0 where id = 2; insert into t (id) values (601)")
    follow(streamed, "public.t")


GENERATED = "create table t (id int primary key, a int, g int generated always as (a * 2) stored, big text)"
VIRTUAL = "alter table t add column v int generated always as (a * 3) virtual"


def begin_generated(pair: Pair, ddl: str, *, published: bool) -> None:
    """Make and publish a table with generated columns, stored ones with their values if the source can and is to."""
    pair.source.execute(f"{ddl};{BIG}")
    pair.source.execute("insert into t (id, a, big) select n, n, repeat('b', 3000) from generate_series(1, 20) n")
    pair.publish()
    if published and pair.source_server.version >= 18:
        pair.source.execute("alter publication replicator_default set (publish_generated_columns = stored)")
    pair.write_config(tables=["public.t"])


@pytest.mark.versions
@pytest.mark.parametrize("published", [True, False], ids=["published", "unpublished"])
@pytest.mark.parametrize("kind", ["default", "full", "virtual"])
def test_generated_columns_of_the_source_arrive(streamed: Pair, kind: str, published: bool) -> None:
    """S10: stored ones, and from 18 on virtual ones, which no stream brings."""
    if kind == "virtual" and streamed.source_server.version < 18:
        pytest.skip("virtual columns came with 18")
    if kind == "full" and streamed.source_server.version >= 18 and not published:
        pytest.skip("FULL needs them published, or the source's own updates fail")
    extra = {"default": "", "full": ";alter table t replica identity full", "virtual": f";{VIRTUAL}"}[kind]
    begin_generated(streamed, GENERATED + extra, published=published)
    follow(streamed, "public.t")
    streamed.source.execute(
        "insert into t (id, a) values (30, 5); update t set a = 50 where id = 1; update t set id = 40 where id = 2;"
        "begin; insert into t (id, a, big) values (31, 1, repeat('c', 3000)); update t set a = 2 where id = 31; commit;"
        "delete from t where id = 3"
    )
    follow(streamed, "public.t")
    streamed.source.execute(
        "begin; truncate t; insert into t (id, a) values (1, 1); commit; insert into t (id, a) values (2, 2)"
    )
    follow(streamed, "public.t")


@pytest.mark.versions
@pytest.mark.parametrize("published", [True, False], ids=["published", "unpublished"])
def test_generated_columns_of_a_table_without_a_key_are_never_wrong(streamed: Pair, published: bool) -> None:
    """S10, S4: rows that cannot be read again by a key are whole, or the table is refused."""
    ddl = GENERATED.replace(" primary key", "") + ";alter table t replica identity full"
    begin_generated(streamed, ddl, published=published)
    finished = streamed.run("listen", "--until-caught-up", check=None)
    if published and streamed.source_server.version >= 18:
        streamed.source.execute("insert into t (id, a) values (2, 2); update t set a = 5 where id = 1")
        follow(streamed, "public.t")
    else:
        expect_refusal(finished, "public.t", 'exclude = ["g"]')
        assert finished.exit_code == 3


@pytest.mark.parametrize("key", [" primary key", ""], ids=["keyed", "keyless"])
def test_a_virtual_column_in_the_full_identity_is_refused_ahead_of_its_publication(streamed: Pair, key: str) -> None:
    """S10, S4: publishing such a table makes the application's own updates fail."""
    if streamed.source_server.version < 18:
        pytest.skip("virtual columns came with 18")
    ddl = f"{GENERATED.replace(' primary key', key)};{VIRTUAL};alter table t replica identity full"
    streamed.source.execute(f"alter database {streamed.source_db} owner to {streamed.reader}")
    streamed.source.execute(f"{ddl}; alter table t owner to {streamed.reader}")
    streamed.write_config(tables=["public.t"])
    expect_refusal(streamed.run("listen", "--until-caught-up", check=4), "virtual", "public.t")
    streamed.source.execute("insert into t (id, a) values (1, 1); update t set a = 5")


@pytest.mark.versions
def test_generated_and_identity_columns_of_the_target_stay_its_own(streamed: Pair) -> None:
    """S10: the target computes, or numbers always; the source has plain columns."""
    streamed.source.execute(
        "create table t (id int primary key, a int, big text);"
        "create table u (id int primary key generated always as identity, a int);"
        f"{BIG}; insert into t select n, n, repeat('x', 3000) from generate_series(1, 9) n;"
        "insert into u (a) select 1 from generate_series(1, 9)"
    )
    streamed.as_writer.execute(
        "create table t (id int primary key generated always as identity, a int, big text,"
        " twice int generated always as (a * 2) stored, local int default 5);"
        "create table u (id int primary key generated always as identity, a int)"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t", "public.u"])
    catch_up(streamed)
    streamed.source.execute(
        "update t set a = 10 where id = 1; update t set id = 20 where id = 2; insert into t values (30, 3, 'y');"
        "begin; update t set id = 0 where id = 3; update t set id = 3 where id = 4; update t set id = 4 where id = 0; commit;"
        "insert into u (a) values (2); update u set a = 3 where id = 1; update u set id = default where id = 2;"
        "delete from u where id = 3; insert into u overriding system value values (99, 1)"
    )
    catch_up(streamed)
    columns = ["id", "a", "big"]
    streamed.assert_equal("public.t", columns=columns)
    streamed.assert_equal("public.u")
    assert streamed.target.execute("select from t where twice <> a * 2 or local <> 5").fetchall() == []


@pytest.mark.versions
def test_a_refresh_of_a_materialized_view_does_not_disturb_the_stream(streamed: Pair) -> None:
    """S11: plain and concurrent, beside changes of the table below, in a publication of the whole schema."""
    begin(
        streamed,
        "create table t (id int primary key, n int); insert into t select n, n from generate_series(1, 100) n;"
        "create materialized view mv as select id, n * 2 as n from t; create unique index on mv (id)",
        "public.t",
    )
    streamed.source.execute("update t set n = 0 where id < 10; refresh materialized view mv")
    streamed.source.execute("refresh materialized view concurrently mv; insert into t values (101, 1)")
    streamed.source.execute(
        "begin; delete from t where id = 50; refresh materialized view mv; update t set n = 7; commit"
    )
    follow(streamed, "public.t")
    assert count_copies(streamed, "public.t") == 1
    streamed.write_config(tables=["public.t", "public.mv"])
    follow(streamed, "public.t")


@pytest.mark.versions
def test_messages_of_applications_pass_by(streamed: Pair) -> None:
    """S12: transactional or not, alone, amid a transaction, in one that is rolled back, with any bytes."""
    begin(streamed, "create table t (id int primary key, n int); insert into t values (1, 0)", "public.t")
    with listening(streamed):
        for flag in ("true", "false"):
            streamed.source.execute(
                f"select pg_logical_emit_message({flag}, 'app', 'text');"
                f"select pg_logical_emit_message({flag}, '', '\\x00ff'::bytea);"
                f"begin; update t set n = n + 1; select pg_logical_emit_message({flag}, 'app', repeat('m', 100000));"
                f" savepoint s; select pg_logical_emit_message({flag}, 'app', 'undone'); rollback to s;"
                f" update t set n = n + 1; commit;"
                f"begin; select pg_logical_emit_message({flag}, 'app', 'rolled back'); rollback"
            )
        wait_until_equal(streamed, "public.t")
    assert streamed.target.execute("select n from t").fetchall() == [(4,)]


@pytest.mark.parametrize("cap", ["64MB", "8MB"])
def test_many_rows_with_one_position_all_arrive_once(streamed: Pair, cap: str) -> None:
    """S24: COPY and multi-row inserts write many rows into one WAL record; doubled ones would show without a key."""
    begin(
        streamed,
        "create table t (a int, pad text); alter table t replica identity full; create table k (id int primary key, pad text)",
        "public.t",
        "public.k",
        listen={"batch_bytes": cap},
    )
    running = streamed.popen("listen")
    for n in range(6):
        with streamed.source.cursor().copy("copy t from stdin") as copy:
            for row in range(4000):
                copy.write_row((row % 50, "p" * 60))
        streamed.source.execute(
            f"insert into k select {n} * 10000 + g, repeat('k', 50) from generate_series(1, 3000) g"
        )
        if n % 2:
            running.kill()
            running = streamed.popen("listen")
    running.kill()
    follow(streamed, "public.t", "public.k")


# -------------------------------------------------------------------------------- empty and idle streams


def test_thousands_of_empty_and_filtered_transactions_pass_quickly(streamed: Pair) -> None:
    """S15."""
    begin(
        streamed,
        "create table t (id int primary key, n int); insert into t values (1, 0); create table other (id int, n int)",
        "public.t",
        publish=("public.t",),
    )
    streamed.source.execute("""
        do $$ begin
            for i in 1..5000 loop
                insert into other values (i, i);
                if i % 5 = 0 then perform pg_logical_emit_message(true, 'x', 'y'); end if;
                if i % 1000 = 0 then update t set n = n + 1; end if;
                commit;
            end loop;
        end $$
    """)
    follow(streamed, "public.t")
    assert read_slot(streamed)["lag_bytes"] < 100_000


@pytest.mark.versions
@pytest.mark.parametrize("heartbeat", ["1s", "1h"])
def test_an_idle_table_beside_a_busy_one_does_not_hold_the_wal(streamed: Pair, heartbeat: str) -> None:
    """S16: with and without a heartbeat; also where another database of the server is the busy one."""
    begin(
        streamed,
        "create table t (id int primary key); create table busy (id int, pad text)",
        "public.t",
        publish=("public.t",),
        listen={"heartbeat": heartbeat},
    )
    with listening(streamed):
        for _ in range(4):
            streamed.source.execute("insert into busy select n, repeat('x', 1000) from generate_series(1, 10000) n")
            streamed.source_server.execute("create table if not exists noise (pad text)", dbname="postgres")
            streamed.source_server.execute(
                "insert into noise select repeat('x', 1000) from generate_series(1, 5000)", dbname="postgres"
            )
            streamed.source.execute("checkpoint")

        def has_moved_on() -> bool:
            # As the server does every 15 seconds: a note of the running transactions, by which a slot moves.
            streamed.source.execute("checkpoint")
            return bool(read_slot(streamed)["held_bytes"] < 16 << 20)

        wait_until(has_moved_on, 45, what="the slot has moved on", interval_s=0.5)
    streamed.source_server.execute("drop table noise", dbname="postgres")


@pytest.mark.versions
def test_a_run_that_is_shorter_than_the_interval_of_confirmations_confirms(streamed: Pair) -> None:
    """S17, O3: what a bounded run says is done is what the slot has confirmed, also when nothing had changed."""
    begin(
        streamed, "create table t (id int primary key); create table other (id int)", "public.t", publish=("public.t",)
    )
    query = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s"
    for change in ("insert into t values (1)", "insert into other values (1)", "select 1"):
        streamed.source.execute(change)
        before = streamed.source.execute("select pg_current_wal_lsn()::text").fetchone()
        assert before is not None
        done = streamed.json("listen", "--until-caught-up")
        for position in (before[0], done["position"]):
            assert streamed.source.execute(query, [position, streamed.slot]).fetchone() == (True,), (change, done)
        assert not read_slot(streamed)["active"]


@pytest.mark.versions
def test_a_run_up_to_a_position_ends_there(streamed: Pair) -> None:
    """S17: all up to `--until-lsn` is in the target and confirmed."""
    begin(streamed, "create table t (id int primary key)", "public.t")
    streamed.source.execute("insert into t values (1)")
    (middle,) = streamed.source.execute("select pg_current_wal_lsn()::text").fetchone() or ("",)
    streamed.source.execute("insert into t values (2)")
    streamed.run("listen", "--until-lsn", middle)
    assert (1,) in streamed.target.execute("select id from t").fetchall()
    streamed.run("listen", "--until-lsn", middle)
    follow(streamed, "public.t")
    streamed.run("listen", "--until-lsn", "nonsense", check=2)
