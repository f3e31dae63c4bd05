"""Columns of the target that somebody narrowed, retyped or made anew, and what brings their values back."""

from __future__ import annotations

import shlex

import pytest

from tests.conftest import MakePair
from tests.nightly import read_types, refuse, sync, sync_idly
from tests.pair import Pair
from tests.streaming import catch_up, listening, wait_until_equal

SOURCE = """
    create type mood as enum ('calm', 'cross', 'merry');
    create table t (id int primary key, v varchar(20), words text, n int, price numeric(10, 2), at timestamptz(3),
        code char(8), feeling mood);
    insert into t select k, 'value ' || k, 'words ' || k, 70000 + k, 1.25 + k, '2026-01-01 10:11:12.345Z', 'code' || k,
        'merry' from generate_series(1, 20) k"""

NARROWED = {
    "shorter": "alter v type varchar(3) using left(v, 3)",
    "text cut": "alter words type varchar(2) using left(words, 2)",
    "text to char": "alter words type char(2) using left(words, 2)",
    "number": "alter n type smallint using n - 70000",
    "seconds": "alter at type timestamptz(0)",
    "domain": "alter v type short using left(v, 3)",
    "domain of text": "alter words type short using left(words, 3)",
    "dropped": "drop column v",
    "fewer labels": "alter feeling type text using 'calm'; drop type mood; create type mood as enum ('calm');"
    " alter table t alter feeling type mood using feeling::mood",
    "two": "alter n type smallint using 0, alter words type varchar(1) using ''",
}


@pytest.mark.versions
@pytest.mark.parametrize("change", NARROWED.values(), ids=NARROWED)
def test_a_column_that_was_narrowed_by_hand_gets_its_values_back_when_it_is_widened(pair: Pair, change: str) -> None:
    """T15: no row of the source changed, so only a full read brings them."""
    pair.source.execute(SOURCE)
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    before = read_types(pair.target, "t")
    pair.as_writer.execute(f"create domain short as varchar(3); alter table t {change}")
    (planned,) = pair.json("plan")["tables"]
    assert planned["load_type"] == "full"
    assert sync(pair)["public.t"]["load_type"] == "full"
    assert read_types(pair.target, "t") == before
    pair.assert_equal("public.t")
    sync_idly(pair)
    assert pair.control_rows("public.t")[-1]["load_type"] == "incremental"


@pytest.mark.parametrize(
    ("narrowed", "column"),
    [
        ("alter price type numeric(10, 0)", "price"),
        ("alter code type char(3) using left(code, 3)", "code"),
        ("alter n type boolean using true", "n"),
        ("alter at type date", "at"),
        ("alter feeling type text using 'calm'", "feeling"),
    ],
)
def test_the_hint_for_a_narrowed_column_leads_to_equal_rows(pair: Pair, narrowed: str, column: str) -> None:
    """T15: where the tool does not widen it by itself, the command it names is enough."""
    pair.source.execute(SOURCE)
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.as_writer.execute(f"alter table t {narrowed}")
    findings = pair.json("check", check=None)["findings"]
    errors = [finding for finding in findings if finding["severity"] == "error"]
    if errors:
        refuse(pair, 8, f"column {column}")
        pair.run(*shlex.split(errors[0]["hint"])[1:])
    sync(pair)
    assert pair.json("verify")["tables"][0]["equal"]
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.parametrize(
    "there_and_back",
    [
        "alter v type varchar(3) using left(v, 3); alter table t alter v type varchar(20)",
        "alter n type smallint using 0; alter table t alter n type int",
        "drop column words, add column words text",
        "drop column feeling; alter table t add column feeling mood default 'calm'",
    ],
)
def test_a_column_that_was_narrowed_and_widened_by_hand_is_read_again(streamed: Pair, there_and_back: str) -> None:
    """T15: its type is right again, its values are not; by `sync`, and by the next start of the listener."""
    streamed.source.execute(SOURCE)
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    sync(streamed)
    streamed.as_writer.execute(f"alter table t {there_and_back}")
    assert sync(streamed)["public.t"]["load_type"] == "full"
    streamed.assert_equal("public.t")
    catch_up(streamed)
    catch_up(streamed)
    copies = len(streamed.control_rows("public.t", path="listen", load_type="full"))
    streamed.as_writer.execute(f"alter table t {there_and_back}")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    assert len(streamed.control_rows("public.t", path="listen", load_type="full")) == copies + 1


def test_what_changes_no_value_of_the_target_costs_no_full_read(streamed: Pair) -> None:
    """T15: defaults, statistics, new columns, indexes, VACUUM FULL and TRUNCATE of a table of the target's own."""
    streamed.source.execute(SOURCE)
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    sync(streamed)
    for change in (
        "alter table t alter v set default 'x', alter v set statistics 10, alter n drop not null",
        "create index on t (v); analyze t",
        "vacuum full t",
        "alter table t add column note uuid default gen_random_uuid()",
        "alter table t add column mark int; alter table t drop column mark",
    ):
        for statement in change.split("; "):
            streamed.as_writer.execute(statement)
        assert sync_idly(streamed)["public.t"]["load_type"] == "incremental", change
    catch_up(streamed)
    streamed.as_writer.execute("vacuum full t")
    streamed.source.execute("update t set n = n + 1")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    assert len(streamed.control_rows("public.t", path="listen", load_type="full")) == 1


def test_a_column_that_is_narrowed_under_the_listener_is_read_again(streamed: Pair) -> None:
    """T15: the first value that does not fit makes the stream look, and the cut ones come back."""
    streamed.source.execute(SOURCE)
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    with listening(streamed):
        wait_until_equal(streamed, "public.t")
        streamed.source.execute("update t set n = 1 where id = 1")
        wait_until_equal(streamed, "public.t")
        streamed.as_writer.execute("alter table t alter v type varchar(3) using left(v, 3)")
        streamed.source.execute("update t set v = 'a long value' where id = 1")
        wait_until_equal(streamed, "public.t")


def test_a_column_of_an_adopted_target_that_is_wider_is_told(make_pair: MakePair) -> None:
    """T15: a numeric of another scale writes other digits, the rest is only said."""
    pair = make_pair()
    pair.source.execute(SOURCE)
    pair.as_writer.execute("""
        create table t (id bigint primary key, v varchar(40), words text, n int, price numeric(12, 4), at timestamptz,
            code char(8), feeling text)
    """)
    pair.grant()
    pair.write_config(tables=["public.t"])
    found = {f["id"]: f for f in pair.json("check")["findings"] if f["id"].startswith("type_")}
    assert found["type_wider"]["severity"] == "warn"
    message = found["type_wider"]["message"]
    for part in ("price is numeric(12,4) here and numeric(10,2) in the source", "v is character varying(40)", "id is"):
        assert part in message, message
    sync(pair)
    assert pair.json("verify")["tables"][0]["equal"]
    pair.as_writer.execute(found["type_wider"]["hint"])
    assert sync(pair)["public.t"]["load_type"] == "full"
    pair.assert_equal("public.t", columns=["id", "v", "price", "at"])
    assert "type_wider" not in {f["id"] for f in pair.json("check")["findings"]}


@pytest.mark.parametrize(
    ("change", "column", "repair"),
    [
        ("alter table t alter words set not null", "words", "alter table t alter words drop not null"),
        (
            "create domain short as text check (length(value) < 9); alter table t alter words type short",
            "words",
            "alter table t alter words type text",
        ),
        ("alter table t add check (n < 80000)", "t_n_check", "alter table t drop constraint t_n_check"),
    ],
)
def test_what_was_made_stricter_by_hand_is_named_and_nothing_is_lost(
    pair: Pair, change: str, column: str, repair: str
) -> None:
    """T15: NOT NULL, a domain's check and a check of the table refuse rows, and change none."""
    pair.source.execute(SOURCE)
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.as_writer.execute(change)
    pair.source.execute("update t set words = null where id = 1; update t set words = 'a longer text', n = 90000")
    pair.source.execute("update t set words = null where id = 2")
    finished = refuse(pair, 1, "target_refused_row")
    assert column in finished.stderr or "domain" in change, finished
    pair.as_writer.execute(repair)
    sync(pair)
    pair.assert_equal("public.t")
