"""A role that may read some columns of a table, and copies no others."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from tests.finding import check, find, ids
from tests.pair import Pair
from tests.streaming import catch_up, listening
from tests.wait import wait_until

SECRET = ["id", "n", "note"]


def set_up(pair: Pair, columns: str, rules: dict[str, Any], *, published: bool = False, kind: str = "") -> None:
    """Make a table with a column that nobody may read, and grant the others."""
    pair.source.execute(sql.SQL("create table t (id int primary key, n int, note text, secret text) " + kind))
    if kind:
        pair.source.execute("create table t1 partition of t for values with (modulus 2, remainder 0);"
                            "create table t2 partition of t for values with (modulus 2, remainder 1)")  # fmt: skip
    pair.source.execute("insert into t select g, g, 'x' || g, 'hidden' from generate_series(1, 50) g")
    pair.source.execute(
        sql.SQL("grant usage on schema public to {0}; grant select ({1}) on t to {0}").format(
            sql.Identifier(pair.reader), sql.SQL(columns)
        )
    )
    if published:
        pair.source.execute("create publication replicator_default for table t with (publish_via_partition_root)")
    pair.write_config(tables=[{"name": "public.t"} | rules])


@pytest.mark.versions
@pytest.mark.parametrize("kind", ["", "partition by hash (id)"], ids=["table", "partitioned"])
@pytest.mark.parametrize("rule", [{"exclude": ["secret"]}, {"include": SECRET}, {"mask": {"secret": "null"}}],
                         ids=["exclude", "include", "null"])  # fmt: skip
@pytest.mark.parametrize(
    ("columns", "strategy"), [("id, n, note", "full"), ("id, n, note, xmin, ctid", "xmin")], ids=["plain", "versions"]
)
def test_column_grants_that_fit_the_rules_suffice(
    pair: Pair, kind: str, rule: dict[str, Any], columns: str, strategy: str
) -> None:
    """F11: sync, check, plan, verify, why and resync ask for no more than what is copied."""
    set_up(pair, columns, rule, kind=kind)
    assert ids(check(pair, exit_code=0), "error") == set()
    assert ("versions_unreadable" in ids(check(pair), "warn")) is (strategy == "full")
    pair.run("sync")
    pair.source.execute(
        "update t set n = 0 where id < 5; delete from t where id = 9; insert into t values (90, 1, 'y')"
    )
    pair.run("plan")
    pair.run("sync")
    pair.assert_equal("public.t", columns=SECRET)
    assert pair.control_rows("public.t")[-1]["strategy"] == strategy
    pair.target.execute("update t set n = 1000 where id = 3")
    pair.run("verify", "--repair")
    pair.assert_equal("public.t", columns=SECRET)
    pair.run("why", "public.t", "3")
    pair.run("resync", "--yes")
    pair.assert_equal("public.t", columns=SECRET)


@pytest.mark.versions
@pytest.mark.parametrize("rule", [{"exclude": ["secret"]}, {"exclude": ["secret"], "where": "n >= 0"}],
                         ids=["stream", "read again"])  # fmt: skip
def test_a_listener_gets_by_with_column_grants(streamed: Pair, rule: dict[str, Any]) -> None:
    """F11: first copy, rows that are read again by key, verify and resync beside the stream."""
    set_up(streamed, "id, n, note", rule, published=True)
    catch_up(streamed)
    streamed.source.execute("update t set n = n + 1; delete from t where id = 9; update t set secret = 'other'")
    catch_up(streamed)
    streamed.assert_equal("public.t", columns=SECRET)
    with listening(streamed):
        streamed.source.execute("truncate t; insert into t values (1, 1, 'a', 'b')")
        wait_until(lambda: streamed.target.execute("select count(*) from t").fetchone() == (1,), what="it is followed")
        streamed.run("verify")
        streamed.run("resync", "--yes")
    streamed.assert_equal("public.t", columns=SECRET)


@pytest.mark.versions
def test_column_grants_that_do_not_fit_are_told_with_the_grant(pair: Pair) -> None:
    """F11: the columns, the GRANT, and the rule that would do as well."""
    set_up(pair, "id, n", {})
    finding = find(pair, "grant_missing", "public.t")
    assert "may not read note, secret of public.t" in finding["message"]
    grant, rule = finding["hint"].split("; or ")
    assert rule == 'exclude = ["note", "secret"]'
    assert grant in pair.run("sync", check=4).stderr
    pair.source.execute(sql.SQL(grant))
    pair.run("sync")
    pair.assert_equal("public.t")


@pytest.mark.versions
def test_a_table_that_is_read_by_column_cannot_be_emptied_between_snapshot_and_read(pair: Pair) -> None:
    """F11, W27: the SELECT that locks it keeps TRUNCATE out until the read is over."""
    set_up(pair, "id, n, note", {"exclude": ["secret"], "max_delete_fraction": 1.0})
    pair.run("sync")
    blocker = pair.source_server.connect(pair.source_db)
    blocker.execute("begin; truncate t; insert into t values (7, 7, 'after', '')")
    with pair.popen("sync", "--full") as running:
        query = "select from pg_stat_activity where usename = %s and wait_event_type = 'Lock'"
        wait_until(lambda: pair.source.execute(query, [pair.reader]).rowcount == 1, what="the sync waits")
        blocker.execute("commit")
        blocker.close()
        running.wait(60, check=0)
    pair.assert_equal("public.t", columns=SECRET)
