"""Rows that the target refuses in a sync: put aside where that is asked for, tried again by every later run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import MakePair
from tests.nightly import count_written, refuse, sync
from tests.pair import Pair
from tests.strategy_case import BOTH
from tests.streaming import catch_up

TABLE = """
create table t (id int primary key, code text unique, n int, updated_at timestamptz default now());
insert into t select g, 'c' || g, g, now() - interval '1 day' from generate_series(1, 300) g;
"""


def begin(pair: Pair, strategy: str = "xmin", **rules: Any) -> None:
    """Copy the table, then let the target refuse large numbers; rules are keys of the table's entry."""
    pair.source.execute(TABLE)
    pair.grant()
    entry = {"name": "public.t", "strategy": strategy, "watermark": "updated_at", "watermark_slack": "0s"}
    pair.write_config(tables=[entry | {"on_row_error": "quarantine"} | rules])
    pair.run("sync")
    pair.target.execute("alter table t add constraint small check (n < 1000)")


def waiting(pair: Pair) -> dict[str, dict[str, Any]]:
    """Return the rows in quarantine by their keys."""
    return {", ".join(row["key"]): row for row in pair.json("quarantine", "list")["rows"]}


@BOTH
def test_refused_rows_are_put_aside_and_all_others_land(pair: Pair, strategy: str) -> None:
    """T9: new rows and changed ones, far apart and side by side; each later run tries them again."""
    begin(pair, strategy)
    pair.source.execute(
        "insert into t select g, 'c' || g, g from generate_series(301, 600) g; delete from t where id = 50;"
        "update t set n = n + 1, updated_at = now() where id <= 100;"
        "update t set n = 4242, updated_at = now() where id in (7, 8, 99, 450, 600)"
    )
    batch = sync(pair)["public.t"]
    assert (batch["status"], batch["rows_quarantined"]) == ("success", 5)
    assert set(waiting(pair)) == {"7", "8", "99", "450", "600"}
    assert {row["error_code"] for row in waiting(pair).values()} == {"23514"}
    pair.assert_equal("public.t", where="n < 1000", target_where="id not in (7, 8, 99)")
    assert pair.target.execute("select n from t where id in (7, 99) order by id").fetchall() == [(7,), (99,)]
    again = sync(pair)["public.t"]
    assert (count_written(again), again["rows_quarantined"], again["rows_missed_before"]) == (0, 5, 0)
    pair.source.execute("update t set n = 1 where id = 99; delete from t where id in (8, 600)")
    sync(pair)
    assert set(waiting(pair)) == {"7", "450"}
    pair.target.execute("alter table t drop constraint small")
    assert sync(pair)["public.t"]["rows_quarantined"] == 0
    assert waiting(pair) == {}
    pair.assert_equal("public.t")


def test_a_refusal_tells_how_to_have_its_rows_named_and_the_others_landed(pair: Pair) -> None:
    begin(pair, on_row_error="stop")
    pair.source.execute("update t set n = 4242 where id in (7, 8); delete from t where id = 50")
    stderr = pair.run("sync", check=1).stderr
    assert 'on_row_error = "quarantine"' in stderr
    assert "quarantine list" in stderr
    pair.write_config(tables=[{"name": "public.t", "on_row_error": "quarantine"}])
    pair.run("sync")
    assert set(waiting(pair)) == {"7", "8"}
    assert pair.target.execute("select count(*) from t where id = 50").fetchone() == (0,)


def test_status_and_health_tell_of_rows_in_quarantine_and_nothing_shows_their_values(pair: Pair) -> None:
    """O4: keys are told by `quarantine` alone."""
    begin(pair)
    pair.source.execute("insert into t values (987654, 'secret', 424242)")
    finished = pair.run("sync")
    assert "987654" not in finished.stdout + finished.stderr
    assert [table["quarantined"] for table in pair.json("status")["tables"]] == [1]
    assert "1 row in quarantine" in pair.run("status").stdout
    assert "1 row in quarantine" in pair.run("health", check=1).stdout
    assert "987654" in pair.run("quarantine", "list").stdout


def test_a_row_in_quarantine_can_be_retried_or_given_up(pair: Pair) -> None:
    begin(pair)
    pair.source.execute("update t set n = 5000 where id = 1; update t set n = 6000 where id = 2")
    sync(pair)
    numbers = {key: str(row["quarantine_id"]) for key, row in waiting(pair).items()}
    pair.run("quarantine", "retry", numbers["1"], check=1)
    pair.run("quarantine", "discard", numbers["2"], "--yes")
    assert set(waiting(pair)) == {"1"}
    pair.target.execute("alter table t drop constraint small")
    pair.run("quarantine", "retry")
    assert waiting(pair) == {}
    assert pair.target.execute("select id, n from t where id < 3 order by id").fetchall() == [(1, 5000), (2, 2)]


@pytest.mark.parametrize("replica", [True, False], ids=["replica", "plain"])
def test_a_unique_value_that_a_local_row_holds_keeps_one_row_out(make_pair: MakePair, replica: bool) -> None:
    """T9, W31: rows that trade unique values, or take one over from a row that goes, are not kept out with it."""
    pair = make_pair(replica=replica)
    begin(pair)
    pair.target.execute("alter table t add unique (code)")
    pair.target.execute("update t set code = 'taken' where id = 200")
    pair.source.execute(
        "delete from t where id = 10; insert into t values (301, 'c10', 1), (302, 'taken', 1), (303, 'c303', 9999);"
        "begin; update t set code = 'aside' where id = 1; update t set code = 'c1' where id = 300;"
        " update t set code = 'c300' where id = 1; commit"
    )
    sync(pair)
    assert set(waiting(pair)) == {"302", "303"}
    assert pair.target.execute("select code from t where id in (1, 300, 301) order by id").fetchall() == [
        ("c300",),
        ("c1",),
        ("c10",),
    ]


def test_a_full_load_and_an_adopted_table_put_rows_aside_too(pair: Pair) -> None:
    """A target that is empty but has a constraint of its own, then `sync --full`; a compound key of odd types."""
    pair.source.execute(
        "create table u (flag bool, name char(5), n int, primary key (flag, name));"
        "insert into u select g % 2 = 0, 'n' || g, g from generate_series(1, 90) g"
    )
    pair.grant()
    pair.as_writer.execute(
        "create table u (flag bool, name char(5), n int check (n <> 17 and n <> 42), primary key (flag, name))"
    )
    pair.write_config(tables=["public.u"], defaults={"on_row_error": "quarantine"})
    assert sync(pair)["public.u"]["rows_quarantined"] == 2
    assert sync(pair, "--full")["public.u"]["rows_quarantined"] == 2
    assert sorted(row["key"] for row in waiting(pair).values()) == [["f", "n17  "], ["t", "n42  "]]
    pair.assert_equal("public.u", where="n not in (17, 42)")
    pair.target.execute("alter table u drop constraint u_n_check")
    pair.run("quarantine", "retry")
    pair.assert_equal("public.u")


def test_a_child_of_a_refused_row_waits_beside_it(make_pair: MakePair) -> None:
    """T4: without the right to replica mode the target's foreign key refuses it."""
    pair = make_pair(replica=False)
    pair.source.execute(
        "create table a (id int primary key, n int); create table b (id int primary key, a int references a);"
        "insert into a values (1, 1); insert into b values (1, 1)"
    )
    pair.grant()
    pair.write_config(tables=["public.a", "public.b"], defaults={"on_row_error": "quarantine"})
    pair.run("sync")
    pair.target.execute("alter table a add check (n < 9); alter table b add foreign key (a) references a")
    pair.source.execute("insert into a values (2, 2), (3, 99); insert into b values (2, 2), (3, 3), (4, 1)")
    sync(pair)
    rows = pair.json("quarantine", "list")["rows"]
    assert sorted((row["table_name"], *row["key"]) for row in rows) == [("public.a", "3"), ("public.b", "3")]


def test_a_target_that_refuses_everything_stops_the_table(pair: Pair) -> None:
    begin(pair)
    pair.source.execute("insert into t select g, 'c' || g, 5000 from generate_series(301, 900) g")
    refuse(pair, 1, "too_many_refused", "more than 500 rows")
    assert waiting(pair) == {}
    assert pair.target.execute("select count(*) from t").fetchone() == (300,)


def test_what_is_in_quarantine_is_tried_again_after_the_setting_went_back(pair: Pair) -> None:
    begin(pair)
    pair.source.execute("update t set n = 5000 where id = 1")
    sync(pair)
    pair.write_config(tables=["public.t"])
    refuse(pair, 1, "target_refused_row")
    assert set(waiting(pair)) == {"1"}
    pair.target.execute("alter table t drop constraint small")
    sync(pair)
    assert waiting(pair) == {}
    pair.assert_equal("public.t")


def test_the_copy_of_a_listener_puts_rows_aside_and_their_changes_wait_behind_them(streamed: Pair) -> None:
    """T9: a table that was there before, with a constraint of its own."""
    streamed.source.execute(
        "create table t (id int primary key, n int); insert into t select g, g from generate_series(1, 40) g"
    )
    streamed.publish()
    streamed.as_writer.execute("create table t (id int primary key, n int check (n < 40))")
    streamed.write_config(tables=["public.t"], defaults={"on_row_error": "quarantine"})
    catch_up(streamed)
    assert {key: row["error_code"] for key, row in waiting(streamed).items()} == {"40": "23514"}
    streamed.source.execute("update t set n = 7 where id = 40; insert into t values (41, 1)")
    catch_up(streamed)
    streamed.assert_equal("public.t", where="id <> 40")
    streamed.run("quarantine", "retry")
    streamed.assert_equal("public.t")
