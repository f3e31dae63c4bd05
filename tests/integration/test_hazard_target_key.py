"""A target whose key is not the unique B-tree that a sync would have made: periods, exclusion, partitions."""

from __future__ import annotations

import pytest

from tests.nightly import refuse, sync, sync_idly
from tests.pair import Pair
from tests.streaming import catch_up, expect_refusal

STAYS = "create table stays (room int4range, during daterange, guest text"
FILL = """insert into stays values
    ('[1,2)', '[2026-01-01,2026-01-05)', 'a'), ('[1,2)', '[2026-01-05,2026-01-09)', 'b'),
    ('[2,3)', '[2026-01-01,2026-01-09)', 'c')"""
CHANGE = """
    update stays set guest = 'd' where guest = 'a';
    delete from stays where guest = 'b';
    update stays set during = '[2026-01-02,2026-01-07)' where guest = 'c';
    insert into stays values ('[3,4)', '[2026-01-01,2026-02-01)', 'e'), ('[1,2)', '[2026-01-06,2026-01-08)', 'f')"""
PERIOD = "primary key (room, during without overlaps)"


@pytest.mark.parametrize("adopted", [True, False], ids=["adopted", "made here"])
def test_a_key_without_overlaps_in_the_target_matches_no_row_and_is_told(streamed: Pair, adopted: bool) -> None:
    """T11: in `check`, `sync` and `listen`, and the hint's unique index makes all three work."""
    streamed.source.execute(f"{STAYS}, primary key (room, during)); {FILL}")
    streamed.publish()
    streamed.write_config(tables=["public.stays"])
    if adopted:
        streamed.as_writer.execute(f"{STAYS}, {PERIOD})")
    else:
        sync(streamed)
        streamed.as_writer.execute(f"alter table stays drop constraint stays_pkey, add {PERIOD}")
    (finding,) = [f for f in streamed.json("check", check=4)["findings"] if f["severity"] == "error"]
    assert (finding["id"], finding["table"]) == ("key_without_overlaps", "public.stays")
    refuse(streamed, 8, "WITHOUT OVERLAPS", "public.stays")
    expect_refusal(streamed.run("listen", "--until-caught-up", check=8), "WITHOUT OVERLAPS", finding["hint"])
    streamed.as_writer.execute(finding["hint"])
    catch_up(streamed)
    streamed.assert_equal("public.stays")
    streamed.source.execute(CHANGE)
    catch_up(streamed)
    streamed.assert_equal("public.stays")
    streamed.source.execute("update stays set during = '[2026-03-01,2026-03-02)' where guest in ('d', 'e')")
    sync(streamed)
    streamed.assert_equal("public.stays")


def test_a_listener_at_work_stops_at_a_key_that_became_one_without_overlaps(streamed: Pair) -> None:
    """T11: the stream's next start looks at the key again."""
    streamed.source.execute(f"{STAYS}, primary key (room, during)); {FILL}")
    streamed.publish()
    streamed.write_config(tables=["public.stays"])
    catch_up(streamed)
    streamed.as_writer.execute(f"alter table stays drop constraint stays_pkey, add {PERIOD}")
    streamed.source.execute(CHANGE)
    expect_refusal(streamed.run("listen", "--until-caught-up", check=8), "WITHOUT OVERLAPS", "public.stays")
    assert streamed.target.execute("select count(*) from stays").fetchall() == [(3,)], "a row was taken for another"


@pytest.mark.parametrize("key", ["", "unique"], ids=["primary key", "unique"])
def test_a_source_whose_key_is_without_overlaps_is_copied_and_followed(streamed: Pair, key: str) -> None:
    """T11: a primary key names rows; a unique constraint does so once it is configured and the identity is full."""
    constraint = PERIOD.replace("primary key", key) if key else PERIOD
    streamed.source.execute(f"{STAYS}, {constraint}); {FILL}")
    if key:
        streamed.source.execute("alter table stays replica identity full")
    streamed.publish()
    table = {"name": "public.stays"} | ({"key": ["room", "during"]} if key else {})
    streamed.write_config(tables=[table])
    sync(streamed)
    for letters in ("upper", "lower"):
        streamed.source.execute(f"update stays set guest = {letters}(guest)")
        sync(streamed)
        streamed.assert_equal("public.stays")
    sync_idly(streamed)
    catch_up(streamed)
    streamed.source.execute(CHANGE)
    catch_up(streamed)
    streamed.assert_equal("public.stays")
    assert streamed.json("verify")["tables"][0]["equal"]


@pytest.mark.versions
@pytest.mark.parametrize(
    "index",
    ["exclude using gist (box with ~=)", "exclude using gist (circle(box) with &&)"],
)
def test_an_exclusion_constraint_or_a_hash_index_is_never_a_key(streamed: Pair, index: str) -> None:
    """T11: they refuse or find rows, and tell none apart."""
    streamed.source.execute(
        "create table t (id int primary key, box box);"
        " insert into t select n, box(point(n, n), point(n + 0.1, n + 0.1)) from generate_series(1, 5) n"
    )
    streamed.as_writer.execute(f"create table t (id int not null, box box, {index}); create index on t using hash (id)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    (finding,) = [f for f in streamed.json("check", check=4)["findings"] if f["severity"] == "error"]
    assert "no unique index on the key (id)" in finding["message"]
    refuse(streamed, 8, "no unique index on the key (id)")
    expect_refusal(streamed.run("listen", "--until-caught-up", check=8), "no unique index on the key (id)")
    streamed.as_writer.execute(finding["hint"])
    catch_up(streamed)
    streamed.source.execute(
        "update t set box = (select box from t where id = 5) where id = 1; delete from t where id = 5;"
        " update t set id = 7 where id = 2"
    )
    catch_up(streamed)
    sync(streamed)
    streamed.assert_equal("public.t", columns=["id"])
    assert streamed.json("verify")["tables"][0]["equal"]
