"""A key that changes is no licence to lose rows: every stop and every way of deleting holds as on any other night."""

from __future__ import annotations

from typing import Any

import pytest

from tests.nightly import read_hint, refuse, sync, sync_idly
from tests.pair import Pair

ROWS = 5000
REKEY = "alter table t drop constraint t_pkey, add primary key (code)"


def start(pair: Pair, columns: str = "id int primary key, code int not null, note text", **rules: Any) -> None:
    """Fill `t` and sync it once."""
    pair.source.execute(f"create table t ({columns})")
    pair.source.execute(f"insert into t (id, code, note) select n, n * 10, 'n ' || n from generate_series(1, {ROWS}) n")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", **rules}])
    sync(pair)
    pair.assert_equal("public.t")


def count(pair: Pair, condition: str = "true") -> int:
    """Return how many rows of the target's `t` the condition holds for."""
    ((rows,),) = pair.target.execute(f"select count(*) from t where {condition}".encode()).fetchall()
    return int(rows)


CHANGES = {
    "another primary key": (REKEY, {}),
    "another key in the configuration": ("select", {"key": ["code"]}),
    "a first key": ("alter table t add primary key (code)", {}),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize(("delete", "error"), [("id > 1", "too_many_deletes"), ("true", "source_empty")])
def test_a_new_key_does_not_hide_that_the_source_has_lost_its_rows(
    pair: Pair, kind: str, delete: str, error: str
) -> None:
    change, rules = CHANGES[kind]
    start(
        pair,
        "id int, code int not null, note text" if kind == "a first key" else "id int primary key, code int, note text",
    )
    pair.source.execute(f"{change}; delete from t where {delete}")
    pair.write_config(tables=[{"name": "public.t", **rules}])
    refuse(pair, 8, f"[{error}]")
    assert count(pair) == ROWS


@pytest.mark.parametrize("kind", CHANGES)
def test_rows_keep_what_only_the_target_knows_of_them_under_a_new_key(pair: Pair, kind: str) -> None:
    change, rules = CHANGES[kind]
    start(
        pair,
        "id int, code int not null, note text" if kind == "a first key" else "id int primary key, code int, note text",
    )
    pair.target.execute("alter table t add column local text; update t set local = 'kept ' || code")
    pair.source.execute(f"{change}; update t set note = 'changed' where id = 7; delete from t where id <= 2")
    pair.source.execute("insert into t values (1, 7, 'new')")
    pair.write_config(tables=[{"name": "public.t", **rules}])
    batch = sync(pair)["public.t"]
    written = {name: batch[f"rows_{name}"] for name in ("inserted", "updated", "deleted")}
    assert written == {"inserted": 1, "updated": 1, "deleted": 2}
    pair.assert_equal("public.t")
    assert count(pair, "local = 'kept ' || code") == ROWS - 2
    sync_idly(pair)


@pytest.mark.parametrize("deletes", ["soft", "ignore"])
def test_rows_that_are_to_be_kept_are_kept_under_a_new_key(pair: Pair, deletes: str) -> None:
    start(pair, deletes=deletes)
    pair.source.execute("delete from t where id = 1")
    sync(pair)
    pair.source.execute(f"{REKEY}; delete from t where id = 2")
    batch = sync(pair)["public.t"]
    assert batch["rows_deleted"] == (1 if deletes == "soft" else 0)
    assert count(pair) == ROWS
    pair.assert_equal("public.t", target_where="_deleted_at is null" if deletes == "soft" else "id > 2")


def test_a_column_added_to_be_the_key_of_a_keyless_table_replaces_its_rows_under_the_stops(pair: Pair) -> None:
    """`check` advises to add such a column: no row that is here has a value for it."""
    start(pair, "id int, code int, note text")
    pair.source.execute("alter table t add column number bigint generated always as identity primary key")
    pair.source.execute("delete from t where id > 1")
    refuse(pair, 8, "[too_many_deletes]")
    pair.source.execute("delete from t")
    refuse(pair, 8, "[source_empty]")
    assert count(pair) == ROWS
    pair.source.execute(f"insert into t (id) select generate_series(1, {ROWS - 1})")
    batch = sync(pair)["public.t"]
    assert (batch["rows_deleted"], batch["rows_inserted"]) == (ROWS, ROWS - 1)
    pair.assert_equal("public.t")
    sync_idly(pair)


UNFIT = {
    "twice": "update t set code = 20 where id = 1",
    "null": "update t set code = null where id = 1",
}


@pytest.mark.parametrize("value", UNFIT)
def test_rows_that_cannot_have_the_new_key_and_hold_more_than_the_source_need_a_decision(
    pair: Pair, value: str
) -> None:
    start(pair, "id int primary key, code int, note text")
    pair.target.execute("alter table t add column local text; update t set local = 'kept ' || id")
    pair.source.execute(UNFIT[value])
    sync(pair)
    pair.source.execute(f"update t set code = 10 where id = 1; {REKEY}")
    planned = pair.json("plan", check=8)["tables"][0]
    assert planned["error"]["id"] == "new_key"
    finished = refuse(pair, 8, "[new_key]", "public.t", "code")
    assert count(pair, "local = 'kept ' || id") == ROWS
    pair.as_writer.execute(read_hint(finished).encode())
    sync(pair)
    pair.assert_equal("public.t")
    assert count(pair, "local = 'kept ' || id") == ROWS - 1


def test_the_plan_of_a_new_key_tells_the_load_and_its_ddl(pair: Pair) -> None:
    start(pair)
    pair.source.execute(REKEY)
    planned = pair.json("plan")["tables"][0]
    assert (planned["load_type"], planned["load_reason"]) == ("full", "the key changed")
    assert any("ADD PRIMARY KEY" in ddl and "code" in ddl for ddl in planned["ddl"])
