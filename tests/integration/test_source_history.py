"""Sources whose history is another than the target's: put back, promoted, rewound, or crashed before a flush."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import MakeCluster, MakePair
from tests.history import copy_disk, pass_by, put_back, read_end, replace_disk
from tests.pair import Pair
from tests.servers import Cluster
from tests.streaming import catch_up, expect_refusal, wait_for_stream, wait_until_equal
from tests.wait import wait_until

TABLE = """
create table t (id int primary key, note text);
insert into t select g, 'row ' || g from generate_series(1, 20) g;
"""
LOST = """
insert into t select g, 'lost ' || g from generate_series(1001, 1900) g;
update t set note = 'lost' where id = 1;
delete from t where id = 2;
"""
NEW = "insert into t select g, 'new ' || g from generate_series(5001, 5100) g; update t set note = 'new' where id = 3;"

OwnSource = Callable[..., tuple[Cluster, Pair]]


@pytest.fixture
def own_source(make_cluster: MakeCluster, make_pair: MakePair, crossing: tuple[int, int]) -> OwnSource:
    """Return a function that makes a pair with table t whose source is the test's own server."""

    def make(**settings: str) -> tuple[Cluster, Pair]:
        source = make_cluster(crossing[0], settings=settings)
        pair = make_pair(listens=True, source_server=source)
        pair.source.execute(TABLE)
        pair.publish()
        pair.write_config(tables=["public.t"])
        return source, pair

    return make


def put_back_after_listening(pair: Pair, source: Cluster) -> tuple[int, int]:
    """Listen, copy the source's disk, listen to more, put the copy back; return where the WAL had been."""
    catch_up(pair)
    copy = copy_disk(pair, source)
    pair.source.execute(LOST)
    catch_up(pair)
    end = read_end(pair)
    put_back(pair, source, copy)
    return end


# ---------------------------------------------------------------------------------- a copy of the disk, put back


@pytest.mark.versions
def test_a_source_that_was_put_back_stops_the_listener_and_check_and_health_say_so(own_source: OwnSource) -> None:
    """S35: its WAL ends before the target's position, and what is written there would be skipped."""
    source, pair = own_source()
    put_back_after_listening(pair, source)
    pair.source.execute(NEW)
    expect_refusal(pair.run("listen", "--until-caught-up", check=1), "source_behind", "--repair-gap")
    assert "source_behind" in pair.run("check", check=4).stdout
    assert "lies behind" in pair.run("health", check=1).stdout
    assert pair.target.execute("select count(*) from t where note like 'new%'").fetchone() == (0,)
    catch_up(pair, "--repair-gap")
    pair.assert_equal("public.t")
    pair.source.execute("insert into t values (6000, 'later')")
    catch_up(pair)
    pair.assert_equal("public.t")
    assert "source_behind" not in pair.run("check").stdout


@pytest.mark.versions
def test_a_source_that_was_put_back_and_is_past_the_position_again_is_told_by_what_it_lacks(
    own_source: OwnSource,
) -> None:
    """S35: positions and transaction ids were given out a second time, and no comparison of them tells."""
    source, pair = own_source()
    pass_by(pair, put_back_after_listening(pair, source))
    pair.source.execute(NEW)
    before = pair.target.execute("select count(*), max(note) from t").fetchone()
    expect_refusal(pair.run("listen", "--until-caught-up", check=1), "history_changed", "--repair-gap")
    assert pair.target.execute("select count(*), max(note) from t").fetchone() == before
    expect_refusal(pair.run("listen", "--until-caught-up", check=1), "history_changed")
    catch_up(pair, "--repair-gap")
    pair.assert_equal("public.t")
    pair.source.execute("insert into t values (6000, 'later')")
    catch_up(pair)
    pair.assert_equal("public.t")


@pytest.mark.versions
@pytest.mark.parametrize("passes", [False, True], ids=["behind", "past the position again"])
def test_a_source_that_is_put_back_under_the_listener_stops_it(own_source: OwnSource, passes: bool) -> None:
    """S35."""
    source, pair = own_source()
    catch_up(pair)
    copy = copy_disk(pair, source)
    with pair.popen("listen") as running:
        wait_for_stream(running)
        pair.source.execute(LOST)
        wait_until_equal(pair, "public.t")
        end = read_end(pair)
        pair.source.close()
        source.stop()
        if passes:
            port, source.port = source.port, source.port + 1
            replace_disk(source, copy)
            source.start()
            pair.source = source.connect(pair.source_db)
            pass_by(pair, end)
            pair.source.execute(NEW)
            pair.source.close()
            source.stop()
            source.port = port
        else:
            replace_disk(source, copy)
        source.start()
        pair.source = source.connect(pair.source_db)
        expect_refusal(running.wait(60, check=1), "history_changed" if passes else "source_behind", "--repair-gap")
    catch_up(pair, "--repair-gap")
    pair.assert_equal("public.t")


@pytest.mark.versions
@pytest.mark.parametrize("passes", [False, True], ids=["behind", "past the position again"])
def test_a_sync_reads_all_of_a_source_that_was_put_back(own_source: OwnSource, passes: bool) -> None:
    """S35: the marker of the last read tells, with SELECT rights alone."""
    source, pair = own_source()
    pair.run("sync")
    copy = copy_disk(pair, source)
    pair.source.execute(LOST)
    pair.run("sync")
    end = read_end(pair)
    put_back(pair, source, copy)
    if passes:
        pass_by(pair, end)
    pair.source.execute(NEW)
    assert "source_behind" in pair.run("check", check=4).stdout
    assert "lies behind" in pair.run("health", check=1).stdout
    plan = pair.json("plan")["tables"][0]
    assert plan["load_type"] == "full", plan
    pair.run("sync")
    pair.assert_equal("public.t")
    assert pair.control_rows("public.t")[-1]["load_type"] == "full"
    pair.source.execute("update t set note = 'later' where id = 5")
    pair.run("sync")
    pair.assert_equal("public.t")
    assert pair.control_rows("public.t")[-1]["load_type"] == "incremental"
    pair.run("check")


@pytest.mark.versions
@pytest.mark.parametrize("passes", [False, True], ids=["behind", "past the position again"])
def test_a_sync_puts_right_what_a_stream_brought_from_a_source_that_was_put_back(
    own_source: OwnSource, passes: bool
) -> None:
    """S35: the table's own last read is far older than what the stream brought."""
    source, pair = own_source()
    end = put_back_after_listening(pair, source)
    if passes:
        pass_by(pair, end)
    pair.source.execute(NEW)
    pair.run("sync")
    pair.assert_equal("public.t")
    assert "--repair-gap" in catch_up(pair, check=1)
    catch_up(pair, "--repair-gap")
    pair.assert_equal("public.t")


@pytest.mark.versions
def test_a_source_that_was_put_back_and_lacks_nothing_of_the_target_goes_on(own_source: OwnSource) -> None:
    """S35: the copy is younger than the last change; only idle WAL is gone, and its place is used again."""
    source, pair = own_source()
    catch_up(pair)
    pair.source.execute("update t set note = 'seen' where id < 5")
    catch_up(pair)
    copy = copy_disk(pair, source)
    with pair.popen("listen") as running:
        wait_for_stream(running)
        pair.source.execute("select pg_logical_emit_message(false, 'test', repeat('x', 100000))")
        pair.source.execute("create schema unpublished; create table unpublished.u (id int)")
        end = read_end(pair)
        query = "select position - '0/0' >= %s from replicator.listener"
        wait_until(lambda: pair.target.execute(query, [end[0]]).fetchone() == (True,), what="the position moved")
    put_back(pair, source, copy)
    pair.source.execute(NEW)
    pass_by(pair, end)
    catch_up(pair)
    pair.assert_equal("public.t")


@pytest.mark.versions
def test_a_source_put_back_to_before_its_slot_is_repaired_whole(own_source: OwnSource) -> None:
    """S35: there is no slot to tell of the history, so a repair trusts no row."""
    source, pair = own_source()
    copy = copy_disk(pair, source)
    catch_up(pair)
    pair.source.execute(LOST)
    catch_up(pair)
    end = read_end(pair)
    put_back(pair, source, copy)
    pass_by(pair, end)
    pair.source.execute(NEW)
    expect_refusal(pair.run("listen", "--until-caught-up", check=1), "slot_missing", "--repair-gap")
    catch_up(pair, "--repair-gap")
    pair.assert_equal("public.t")


@pytest.mark.versions
def test_a_killed_listener_and_a_killed_source_are_no_other_history(own_source: OwnSource) -> None:
    """S35: a slot that forgot what it confirmed last sends it again, and nothing is demanded."""
    source, pair = own_source()
    catch_up(pair)
    for number in range(3):
        with pair.popen("listen") as running:
            wait_for_stream(running)
            pair.source.execute("insert into t values (%s, 'seen')", [100 + number])
            wait_until_equal(pair, "public.t")
            if number == 1:
                pair.source.execute("checkpoint")
        pair.source.close()
        source.kill()
        source.start()
        pair.source = source.connect(pair.source_db)
        pair.source.execute("insert into t values (%s, 'behind')", [200 + number])
    catch_up(pair)
    pair.assert_equal("public.t")
    assert pair.control_rows(path="repair") == []
    pair.run("check")


@pytest.mark.versions
@pytest.mark.parametrize("passes", [False, True], ids=["behind", "past the position again"])
def test_what_a_sync_read_ahead_of_the_stream_does_not_outlive_a_source_that_was_put_back(
    own_source: OwnSource, passes: bool
) -> None:
    """S35: the slot proves the stream's position, and the sync read more than that."""
    source, pair = own_source()
    catch_up(pair)
    copy = copy_disk(pair, source)
    pair.source.execute(LOST)
    pair.run("sync")
    end = read_end(pair)
    put_back(pair, source, copy)
    if passes:
        pass_by(pair, end)
    pair.source.execute(NEW)
    catch_up(pair)
    pair.assert_equal("public.t")
