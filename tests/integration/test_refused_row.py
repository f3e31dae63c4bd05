"""A row that stops the stream: which transaction, which row, and how the listener gets past it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.pair import Pair
from tests.streaming import catch_up


def begin(pair: Pair, definition: str, *, check: str = "n < 1000", **tables: Any) -> None:
    """Copy a table t as it is defined, then let the target refuse what `check` does not hold for."""
    pair.source.execute(definition)
    pair.publish()
    (pair.dir / "secret").write_text("0f" * 32)
    pair.write_config(
        tables=[{"name": "public.t"} | tables],
        listen={"batch_bytes": "1MB", "on_table_error": "stop"},
        privacy={"mask_key_file": str(pair.dir / "secret")},
    )
    catch_up(pair)
    pair.target.execute(f"alter table t add constraint small check ({check})")


def read_lsn(pair: Pair) -> int:
    """Return where the source's WAL ends, in bytes."""
    row = pair.source.execute("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def in_bytes(lsn: str) -> int:
    """Return a position in bytes."""
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def refuse(pair: Pair, count: int) -> tuple[int, int]:
    """Make `count` transactions, one that is refused, and `count` more; return between which positions it lies."""
    pair.source.execute(f"do $$ begin for n in 1..{count} loop insert into t values (n, 1); commit; end loop; end $$")
    begun = read_lsn(pair)
    pair.source.execute("begin; insert into t values (76543, 1); update t set n = 424242 where id = 76543; commit")
    ended = read_lsn(pair)
    pair.source.execute(
        f"do $$ begin for n in 1..{count} loop insert into t values (100000 + n, 1); commit; end loop; end $$"
    )
    return begun, ended


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_the_row_that_stops_the_stream_is_told_by_transaction_and_key(streamed: Pair, count: int) -> None:
    """T9: what was committed before it lands; its LSN is the transaction's own, its key is on stdout alone."""
    begin(streamed, "create table t (id int primary key, n int)")
    begun, ended = refuse(streamed, count)
    stderr = catch_up(streamed, check=1)
    (told,) = set(re.findall(r'"event": "run_failed".*?"lsn": "([0-9A-F]+/[0-9A-F]+)"', stderr))
    assert begun <= in_bytes(told) < ended, stderr
    assert f"the transaction that commits at {told}" in stderr
    assert "replicator quarantine show" in stderr
    assert stderr.count("stream_started") <= 7
    assert streamed.target.execute("select count(*) from t").fetchone() == (count,)
    document = streamed.json("quarantine", "list")
    stopped = document["stopped_at"]
    assert document["rows"] == []
    assert (stopped["table_name"], stopped["key"], stopped["lsn"]) == ("public.t", ["76543"], told)
    assert (stopped["error_code"], stopped["attempts"]) == ("23514", 1)
    for command in (["show"], ["list"]):
        assert "76543" in streamed.run("quarantine", *command).stdout
    (failed,) = streamed.control_rows("public.t", path="listen", status="failed")
    assert (failed["lsn_end"], failed["error_code"]) == (told, "23514")
    assert "76543" not in stderr + str(failed)
    why = streamed.json("why", "public.t", "76543")
    assert why["verdict"] == "stopped"
    assert told in why["reason"]


def test_a_stream_that_stopped_goes_on_once_the_target_takes_the_row(streamed: Pair) -> None:
    """T9: the row does not count as one in quarantine: no later change waits behind it."""
    begin(streamed, "create table t (id int primary key, n int)")
    refuse(streamed, 5)
    for _ in range(2):
        catch_up(streamed, check=1)
    assert streamed.json("quarantine", "list")["stopped_at"]["attempts"] == 2
    (failed,) = streamed.control_rows("public.t", path="listen", status="failed")
    assert failed["attempts"] == 2
    assert [table["quarantined"] for table in streamed.json("status")["tables"]] == [0]
    streamed.target.execute("alter table t drop constraint small")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    assert streamed.json("quarantine", "list")["stopped_at"] is None
    assert "no refused row" in streamed.run("quarantine", "show").stdout
    streamed.source.execute("update t set n = 5 where id = 76543")
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_a_row_inside_a_transaction_that_is_too_large_to_hold_is_told(streamed: Pair) -> None:
    """T9, S14: it lies between small transactions, in a piece after the first."""
    begin(streamed, "create table t (id int primary key, n int, note text)", check="n < 100000")
    streamed.source.execute("insert into t values (0, 0)")
    begun = read_lsn(streamed)
    streamed.source.execute(
        "insert into t select n, case n when 20000 then 424242 else n end, repeat('x', 50)"
        " from generate_series(1, 30000) n"
    )
    ended = read_lsn(streamed)
    streamed.source.execute("insert into t values (40000, 0)")
    catch_up(streamed, check=1)
    stopped = streamed.json("quarantine", "list")["stopped_at"]
    assert stopped["key"] == ["20000"]
    assert begun <= in_bytes(stopped["lsn"]) < ended
    assert streamed.target.execute("select count(*) from t").fetchone() == (1,)


def test_a_compound_key_under_rules_is_told_as_the_target_would_have_it(streamed: Pair) -> None:
    """T9, V: a masked key stays masked, and `why` finds it by the source's."""
    begin(
        streamed,
        "create table t (name text, at timestamptz, n int, primary key (name, at))",
        mask={"name": "hash"},
    )
    streamed.source.execute("insert into t values ('lower', '2026-01-02 03:04:05+00', 4242)")
    catch_up(streamed, check=1)
    stopped = streamed.json("quarantine", "list")["stopped_at"]
    assert len(stopped["key"][0]) == 64
    assert streamed.json("why", "public.t", "lower", "2026-01-02 03:04:05+00")["verdict"] == "stopped"


def test_a_refused_row_of_a_table_without_a_key_is_told_by_its_transaction(streamed: Pair) -> None:
    begin(streamed, "create table t (n int); alter table t replica identity full")
    streamed.source.execute("insert into t values (1)")
    begun = read_lsn(streamed)
    streamed.source.execute("insert into t values (4242)")
    ended = read_lsn(streamed)
    stderr = catch_up(streamed, check=1)
    assert "quarantine show" not in stderr
    stopped = streamed.json("quarantine", "list")["stopped_at"]
    assert stopped["key"] is None
    assert begun <= in_bytes(stopped["lsn"]) < ended
    assert "4242" not in streamed.run("quarantine", "show").stdout


def test_a_search_for_a_refused_row_ends_where_the_source_has_corrected_it(streamed: Pair) -> None:
    """The stream takes up its batches again, in binary, with nothing lost between."""
    begin(streamed, "create table t (id int primary key, n int)")
    refuse(streamed, 300)
    catch_up(streamed, check=1)
    streamed.source.execute("update t set n = 3 where id = 76543")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    assert streamed.json("quarantine", "list")["stopped_at"] is None
