"""A timestamptz of the target that takes timestamps without zone, in a zone that the configuration states."""

from __future__ import annotations

import pytest

from tests.pair import Pair
from tests.streaming import catch_up, listening
from tests.wait import wait_until

ZONE = "America/Sao_Paulo"
# Around the ends of summer time, long ago, in eras of local mean time, and no time at all.
MOMENTS = (
    "2018-11-04 00:30:00", "2018-02-17 23:30:00", "2019-06-01 12:00:00.123456", "0044-03-15 10:00:00 BC",
    "1900-01-01 00:00:00", "infinity", "-infinity", "294276-12-30 00:00:00",
)  # fmt: skip


def assert_moments(pair: Pair) -> None:
    """Prove that the target has what PostgreSQL makes of the source's timestamps in the zone."""
    query = "select id, ({})::text from t order by id"
    pair.source.execute("set timezone = 'UTC'")
    pair.target.execute("set timezone = 'UTC'")
    expected = pair.source.execute(query.format(f"at at time zone '{ZONE}'").encode()).fetchall()
    assert pair.target.execute(query.format("at").encode()).fetchall() == expected


def set_up(pair: Pair, **rules: object) -> None:
    """Make a source with timestamps, and a target whose column is timestamptz."""
    pair.source.execute("create table t (id int primary key, at timestamp, kept timestamp, note text)")
    for n, moment in enumerate((*MOMENTS, None)):
        pair.source.execute("insert into t values (%s, %s, '2020-01-01', 'x')", [n, moment])
    pair.as_writer.execute("create table t (id int primary key, at timestamptz, kept timestamp, note text)")
    pair.write_config(tables=[{"name": "public.t", "assume_timezone": ZONE} | rules])


@pytest.mark.versions
def test_a_sync_reads_timestamps_in_the_stated_zone(pair: Pair) -> None:
    """Sync, verify and why agree about them, and columns that are timestamps on both sides stay what they are."""
    set_up(pair)
    pair.grant()
    pair.run("check")
    pair.run("sync")
    assert_moments(pair)
    pair.assert_equal("public.t", columns=["id", "kept", "note"])
    pair.source.execute(
        "update t set at = at + interval '1 hour' where id < 3; insert into t values (50, '2020-05-05')"
    )
    pair.run("sync")
    assert_moments(pair)
    pair.run("verify")
    assert "equal" in pair.run("why", "public.t", "1").stdout
    pair.target.execute("update t set at = now() where id = 2")
    pair.run("verify", check=7)
    pair.run("verify", "--repair")
    assert_moments(pair)


@pytest.mark.versions
@pytest.mark.parametrize("rule", [{}, {"where": "id >= 0"}, {"key": ["at"]}], ids=["stream", "read again", "key"])
def test_a_listener_reads_timestamps_in_the_stated_zone(streamed: Pair, rule: dict[str, object]) -> None:
    """The stream's text is read in the zone by the target, a row that is read again by the source."""
    set_up(streamed, **rule)
    if "key" in rule:
        streamed.source.execute("delete from t where at is null; alter table t replica identity full")
        streamed.target.execute("alter table t drop constraint t_pkey, add primary key (at)")
    streamed.publish()
    catch_up(streamed)
    assert_moments(streamed)
    with listening(streamed):
        for n, moment in enumerate(MOMENTS, 100):
            streamed.source.execute(
                "insert into t values (%s, case when isfinite(%s::timestamp) then %s::timestamp - interval '1 day'"
                " else '2001-01-01' end + %s * interval '1 us', null, 'y')", [n, moment, moment, n],
            )  # fmt: skip
        streamed.source.execute("update t set at = at - interval '2 hours' where id < 3; delete from t where id = 5")
        streamed.source.execute("update t set note = 'z' where id in (4, 7)")
        count = "select count(*), count(*) filter (where note = 'z') from t"
        expected = streamed.source.execute(count.encode()).fetchone()
        wait_until(lambda: streamed.target.execute(count.encode()).fetchone() == expected, what="the rows are there")
        streamed.run("verify")
    assert_moments(streamed)


def test_without_a_zone_the_pair_is_refused_and_the_hint_names_the_key(pair: Pair) -> None:
    set_up(pair, assume_timezone="")
    pair.grant()
    assert "assume_timezone" in pair.run("sync", check=8).stderr
    pair.write_config(tables=[{"name": "public.t", "assume_timezone": "America/Nowhere"}])
    assert "assume_timezone" in pair.run("check", check=3).stderr
