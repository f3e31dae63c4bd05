"""Targets that somebody partitioned: by a column of the key, by one outside of it, at several levels."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import MakePair
from tests.nightly import read_hint, refuse, sync, sync_idly
from tests.pair import Pair
from tests.streaming import catch_up, expect_refusal

SOURCE = """
    create table e (id int primary key, created_at timestamptz not null, code text unique, big text);
    alter table e alter big set storage external;
    insert into e select n, '2026-01-15'::timestamptz + n * interval '10 days', 'c' || n, repeat('x' || n, 3000)
    from generate_series(1, 12) n"""
COLUMNS = "id int not null, created_at timestamptz not null, code text, big text, note text default 'local'"
MONTHS = """
    create table e_q1 partition of e for values from ('2026-01-01') to ('2026-04-01');
    create table e_q2 partition of e for values from ('2026-04-01') to ('2026-07-01');"""
LAYOUTS = {
    "by month, primary key": f"create table e ({COLUMNS}, primary key (id, created_at))"
    f" partition by range (created_at); {MONTHS} create table e_rest partition of e default",
    "by month, index": f"create table e ({COLUMNS}) partition by range (created_at); create index on e (id);"
    f"{MONTHS} create table e_rest partition of e default",
    "by expression": f"create table e ({COLUMNS})"
    " partition by list (extract(month from created_at at time zone 'utc'));"
    "create index on e (id); create table e_1 partition of e for values in (1, 2);"
    " create table e_rest partition of e default",
    "by list": f"create table e ({COLUMNS}) partition by list (code); create index on e (id);"
    " create table e_1 partition of e for values in ('c1', 'c2', 'c3'); create table e_rest partition of e default",
    "by hash of the key": f"create table e ({COLUMNS}, primary key (id)) partition by hash (id);"
    " create table e_0 partition of e for values with (modulus 2, remainder 0);"
    " create table e_1 partition of e for values with (modulus 2, remainder 1)",
    "at two levels": f"create table e ({COLUMNS}, primary key (id, created_at)) partition by hash (id);"
    " create table e_0 partition of e for values with (modulus 2, remainder 0);"
    " create table e_1 partition of e for values with (modulus 2, remainder 1) partition by range (created_at);"
    " create table e_11 partition of e_1 for values from ('2026-01-01') to ('2026-04-01');"
    " create table e_12 partition of e_1 default",
}
CHANGES = (
    "update e set big = 'short' where id = 1; delete from e where id = 2",
    "update e set created_at = created_at + interval '3 months', code = code || '!' where id in (3, 4, 5)",
    "update e set id = id + 100 where id in (6, 7); insert into e values (6, '2026-06-01', 'c6 again', 'new')",
    (
        "begin; update e set created_at = '2026-02-02' where id = 8; update e set id = 208 where id = 8;"
        " update e set created_at = '2026-12-02' where id = 208; commit"
    ),
    "begin; delete from e where id = 9; insert into e values (9, '2027-01-01', 'c9', 'again'); commit",
    (
        "begin; update e set id = -1 where id = 10; update e set id = 10 where id = 11;"
        " update e set id = 11 where id = -1; commit"
    ),
    (
        "begin; update e set code = 'x' where id = 1; update e set code = 'c1' where id = 12;"
        " update e set code = 'c12' where id = 1; commit"
    ),
)
SOURCE_COLUMNS = ["id", "created_at", "code", "big"]
DOWN: dict[str, Callable[[Pair], object]] = {"sync": sync, "listen": catch_up}


def begin(pair: Pair, layout: str, **table: object) -> None:
    pair.source.execute(SOURCE)
    pair.as_writer.execute(layout)
    pair.publish()
    pair.write_config(tables=[{"name": "public.e"} | table])


def assert_equal(pair: Pair) -> None:
    pair.assert_equal("public.e", columns=SOURCE_COLUMNS)


@pytest.mark.versions
@pytest.mark.parametrize("path", DOWN)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_are_matched_by_the_source_s_key_whatever_the_partitions_follow_from(
    streamed: Pair, layout: str, path: str
) -> None:
    """T14: rows move between partitions and keep what only the target has, without a full identity."""
    begin(streamed, layout)
    DOWN[path](streamed)
    assert_equal(streamed)
    streamed.as_writer.execute("update e set note = 'kept ' || code")
    for change in CHANGES:
        streamed.source.execute(change)
        DOWN[path](streamed)
        assert_equal(streamed)
    notes = streamed.target.execute("select id, note from e where id in (3, 12) order by id").fetchall()
    assert notes == [(3, "kept c3"), (12, "kept c12")]
    if path == "sync":
        sync_idly(streamed)
        before = streamed.target.execute("select id, xmin from e order by id").fetchall()
        assert sync(streamed, "--full")["public.e"]["rows_updated"] == 0
        assert streamed.target.execute("select id, xmin from e order by id").fetchall() == before
    assert streamed.json("verify")["tables"][0]["equal"]


@pytest.mark.parametrize("layout", ["by month, primary key", "at two levels"])
def test_with_the_target_s_key_configured_both_paths_work_without_a_full_identity(streamed: Pair, layout: str) -> None:
    """T14: `sync` matches by the configured key, `listen` by the source's own."""
    begin(streamed, LAYOUTS[layout], key=["id", "created_at"])
    sync(streamed)
    assert [f for f in streamed.json("check")["findings"] if f["severity"] != "ok" and f["table"]] == []
    catch_up(streamed)
    for change in CHANGES:
        streamed.source.execute(change)
        catch_up(streamed)
        assert_equal(streamed)
    streamed.source.execute("update e set created_at = now() where id = 1")
    sync(streamed)
    assert_equal(streamed)
    streamed.source.execute("update e set created_at = '2026-05-05' where id = 1")
    catch_up(streamed)
    assert_equal(streamed)
    assert len(streamed.control_rows("public.e", path="listen", load_type="full")) == 1


@pytest.mark.parametrize("key", [None, ["id", "created_at"]], ids=["own key", "configured key"])
@pytest.mark.parametrize("replica", [True, False], ids=["replica", "origin"])
def test_a_missing_index_is_told_by_every_command_with_sql_that_works(
    make_pair: MakePair, replica: bool, key: list[str] | None
) -> None:
    """T14: no unique index on the key can be made there, an ordinary one can."""
    pair = make_pair(listens=True, replica=replica)
    layout = f"create table e ({COLUMNS}, primary key (created_at, id)) partition by range (created_at);"
    begin(pair, f"{layout} {MONTHS} create table e_rest partition of e default", **({"key": key} if key else {}))
    found = [f for f in pair.json("check", check=None)["findings"] if f["id"] == "key_index_missing"]
    assert [(f["table"], f["severity"]) for f in found] == [("public.e", "warn" if key else "error")]
    if key is None:
        refuse(pair, 8, "no index on the key (id)", "partitioned by created_at")
    else:
        sync(pair)
    expect_refusal(pair.run("listen", "--until-caught-up", check=8), "no index on the key (id)", found[0]["hint"])
    pair.as_writer.execute(found[0]["hint"])
    for change in ("select", *CHANGES[:-1]):
        pair.source.execute(change)
        catch_up(pair)
        assert_equal(pair)
    assert pair.json("verify")["tables"][0]["equal"]


@pytest.mark.parametrize("change", ["code = 'new'", "big = 'new'", "id = 1001"])
@pytest.mark.parametrize("path", DOWN)
def test_two_rows_of_the_target_with_one_key_are_refused(streamed: Pair, path: str, change: str) -> None:
    """T14: nothing but us keeps them from coming there."""
    begin(streamed, LAYOUTS["by month, index"])
    DOWN[path](streamed)
    streamed.as_writer.execute("insert into e values (1, '2026-06-06', 'c1', 'mine')")
    streamed.source.execute(f"update e set {change} where id = 1")
    if "id" in change:
        # Both rows are of a key that is gone, and go with it.
        DOWN[path](streamed)
        assert_equal(streamed)
        return
    finished = streamed.run(*(["sync"] if path == "sync" else ["listen", "--until-caught-up"]), check=1)
    expect_refusal(finished, "target_key_repeated", "public.e")
    if path == "sync":
        streamed.source.execute("update e set code = 'other' where id = 3")
        finished = refuse(streamed, 1, "target_key_repeated")
        (row,) = streamed.as_writer.execute(read_hint(finished).split(" --")[0]).fetchall()
        assert row == (1,)
    streamed.as_writer.execute("delete from e where big = 'mine'")
    DOWN[path](streamed)
    assert_equal(streamed)


def test_a_key_that_is_not_unique_in_the_source_is_refused_there_too(pair: Pair) -> None:
    """T14: at the first fill of an empty table, and later."""
    pair.source.execute("create table v (id int, created_at timestamptz); insert into v values (1, now()), (1, now())")
    pair.as_writer.execute("""
        create table v (id int, created_at timestamptz) partition by range (created_at);
        create index on v (id); create table v_rest partition of v default""")
    pair.grant()
    pair.write_config(tables=[{"name": "public.v", "key": ["id"]}])
    refuse(pair, 1, "key_not_unique")
    pair.source.execute("delete from v; insert into v values (1, now())")
    sync(pair)
    pair.source.execute("insert into v values (2, now()), (2, '2020-01-01')")
    refuse(pair, 1, "key_not_unique")
    assert pair.target.execute("select count(*) from v").fetchone() == (1,)


@pytest.mark.versions
@pytest.mark.parametrize("path", DOWN)
@pytest.mark.parametrize("layout", ["by month, primary key", "at two levels"])
def test_a_missing_partition_is_named_with_the_sql_that_makes_one(streamed: Pair, layout: str, path: str) -> None:
    """T14: 23514 of a partitioned table is no CHECK."""
    without = (
        LAYOUTS[layout]
        .replace("create table e_rest partition of e default", "")
        .replace("create table e_12 partition of e_1 default", "")
    )
    begin(streamed, without)
    streamed.source.execute("insert into e values (50, '2026-09-09', 'late', ''), (51, '2026-09-09', 'later', '')")
    finished = streamed.run(*(["sync"] if path == "sync" else ["listen", "--until-caught-up"]), check=1)
    expect_refusal(finished, "partition_missing", "no partition of the target takes a row of public.e")
    hint = read_hint(finished) if path == "sync" else finished.stderr.rpartition("hint: ")[2]
    default = next(part for part in hint.replace(" or ", ";").split(";") if part.strip().endswith(" default"))
    streamed.as_writer.execute(default)
    DOWN[path](streamed)
    assert_equal(streamed)


def test_soft_deletes_and_quarantine_work_without_a_unique_key(streamed: Pair) -> None:
    """T14: a row that comes back is the one that was marked, and a refused one waits."""
    begin(streamed, LAYOUTS["by month, index"], deletes="soft", on_row_error="quarantine")
    streamed.as_writer.execute("alter table e add check (code <> 'bad')")
    catch_up(streamed)
    for change in (
        "delete from e where id in (1, 2)",
        "insert into e values (1, '2026-12-12', 'back', 'b')",
        "update e set code = 'bad', created_at = '2026-02-02' where id = 3; update e set code = 'good' where id = 4",
    ):
        streamed.source.execute(change)
        catch_up(streamed)
    live = "_deleted_at is null and id <> 3"
    streamed.assert_equal("public.e", columns=SOURCE_COLUMNS, where="id <> 3", target_where=live)
    assert streamed.target.execute("select count(*) from e where id in (1, 2)").fetchone() == (2,)
    streamed.source.execute("update e set code = 'fine' where id = 3")
    streamed.run("quarantine", "retry")
    catch_up(streamed)
    streamed.assert_equal("public.e", columns=SOURCE_COLUMNS, target_where="_deleted_at is null")


def test_a_repair_and_a_resync_write_such_a_table_too(streamed: Pair) -> None:
    """T14: with and without a listener."""
    begin(streamed, LAYOUTS["by month, primary key"])
    sync(streamed)
    for args in (("verify", "--repair"), ("resync", "--yes")):
        streamed.as_writer.execute("update e set created_at = '2026-03-03' where id = 5; delete from e where id = 6")
        streamed.as_writer.execute("insert into e values (70, '2026-03-03', 'extra', '')")
        streamed.run(*args)
        assert_equal(streamed)


@pytest.mark.parametrize("way", ["retry", "sync"])
def test_a_row_that_the_stream_put_aside_by_its_narrower_key_comes_back(streamed: Pair, way: str) -> None:
    """T14: `sync` and `quarantine retry` know the row by the configured key."""
    begin(streamed, LAYOUTS["by month, primary key"], key=["id", "created_at"], on_row_error="quarantine")
    streamed.as_writer.execute("alter table e add check (code <> 'bad')")
    catch_up(streamed)
    streamed.source.execute("update e set code = 'bad', created_at = '2026-02-02' where id = 3")
    catch_up(streamed)
    assert streamed.target.execute("select key from replicator.quarantine").fetchall() == [(["3"],)]
    streamed.source.execute("update e set code = 'fine' where id = 3")
    if way == "retry":
        streamed.run("quarantine", "retry")
    else:
        sync(streamed)
    assert_equal(streamed)
    assert streamed.target.execute("select from replicator.quarantine").fetchall() == []
    catch_up(streamed)
    assert_equal(streamed)
