"""Sources whose history is another than the target's: put back, promoted, rewound, or crashed before a flush."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from tests.conftest import MakeCluster, MakePair
from tests.history import copy_disk, pass_by, put_back, read_end, replace_disk
from tests.pair import Pair, Running
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
MakeStandby = Callable[[Cluster], Cluster]


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


# --------------------------------------------------------------------------- commits that were seen and not flushed


UNFLUSHED = {"wal_writer_delay": "10s", "checkpoint_timeout": "1h", "autovacuum": "off"}


@pytest.mark.versions
def test_a_sync_waits_until_what_it_saw_is_on_the_disk_of_the_source(own_source: OwnSource) -> None:
    """S37: a crash between the commit and its flush takes back what the target has."""
    source, pair = own_source(**UNFLUSHED)
    pair.run("sync")
    pair.source.execute("set synchronous_commit = off")
    pair.source.execute("update t set note = 'unflushed' where id < 5")
    pair.run("sync")
    flushed = pair.source.execute("select pg_current_wal_flush_lsn()").fetchone()
    assert flushed is not None
    crash(pair, source)
    query = "select lsn <= %s::pg_lsn from replicator.table_state"
    assert pair.target.execute(query, flushed).fetchone() == (True,)
    pass_by(pair, read_end(pair))
    pair.assert_equal("public.t")
    pair.source.execute("update t set note = 'later' where id = 7")
    pair.run("sync")
    pair.assert_equal("public.t")
    assert pair.control_rows("public.t")[-1]["load_type"] == "incremental"


@pytest.mark.versions
def test_a_sync_that_cannot_wait_for_the_flush_says_so_and_reads_all_after_a_crash(own_source: OwnSource) -> None:
    """S37: nobody may force a flush here, and the writer of the WAL comes round too late."""
    source, pair = own_source(**UNFLUSHED)
    pair.constants = {"replicator.capture.history.FLUSH_WAIT_S": 0.3}
    pair.source.execute(
        "do $$ declare f regprocedure; begin for f in select oid from pg_proc where proname = 'pg_logical_emit_message'"
        " loop execute format('revoke execute on function %s from public', f); end loop; end $$"
    )
    pair.run("sync")
    pair.source.execute("set synchronous_commit = off")
    end = read_end(pair)
    pair.source.execute("update t set note = 'unflushed' where id < 5")
    assert "source_not_flushed" in pair.run("sync").stderr
    crash(pair, source)
    pass_by(pair, end)
    pair.run("sync")
    pair.assert_equal("public.t")


def crash(pair: Pair, source: Cluster) -> None:
    """Cut the source's power and start it again."""
    pair.source.close()
    source.kill()
    source.start()
    pair.source = source.connect(pair.source_db)


# -------------------------------------------------------------------------------------- standbys and promotions


@pytest.fixture
def make_standby() -> Iterator[MakeStandby]:
    """Return a function that starts a standby, which has replayed all that its primary has written."""
    standbys: list[Cluster] = []

    def make(primary: Cluster) -> Cluster:
        standby = primary.standby()
        standbys.append(standby)
        standby.wait_for_replay(primary)
        return standby

    yield make
    for standby in standbys:
        standby.remove()


def read_from(pair: Pair, server: Cluster) -> None:
    """Let the tool and the test read from another server that has the same databases."""
    pair.write_config(tables=["public.t"], source={"dsn": pair.dsn_of_source(port=server.port)})
    pair.source.close()
    pair.source = server.connect(pair.source_db)


def cut_off(standby: Cluster) -> None:
    """Let a standby receive nothing more from its primary."""
    standby.execute("alter system set primary_conninfo = ''")
    standby.execute("select pg_reload_conf()")
    wait_until(lambda: not standby.execute("select 1 from pg_stat_wal_receiver"), what="the standby is cut off")


def rewind(server: Cluster, source: Cluster) -> None:
    """Turn a server back to where its history left that of another, and let it follow that one."""
    server.stop()
    source.execute("checkpoint")
    server.run("pg_rewind", "-D", server.data, "--source-server", source.admin_dsn(), "-R", "--no-sync")
    server.write_settings()
    server.start()


@pytest.mark.versions
def test_a_rewound_standby_is_read_whole_though_its_control_file_has_the_old_timeline(
    own_source: OwnSource, make_standby: MakeStandby
) -> None:
    """S36: a value that only one standby had received is gone from it."""
    primary, pair = own_source(wal_log_hints="on", full_page_writes="on", wal_keep_size="1GB")
    first, second = make_standby(primary), make_standby(primary)
    cut_off(first)
    pair.source.execute("update t set note = 'lost' where id = 1")
    second.wait_for_replay(primary)
    read_from(pair, second)
    pair.run("sync")
    first.promote()
    primary.stop()
    pair.source.close()
    rewind(second, first)
    first.execute("insert into t values (100, 'new')", dbname=pair.source_db)
    second.wait_for_replay(first)
    read_from(pair, second)
    plan = pair.json("plan")["tables"][0]
    assert plan["load_type"] == "full"
    assert "timeline" in plan["load_reason"]
    pair.run("sync")
    pair.assert_equal("public.t")
    assert pair.control_rows("public.t")[-1]["load_type"] == "full"
    primary.start()
    pair.source.close()
    pair.source = primary.connect(pair.source_db)


@pytest.mark.versions
def test_a_standby_promoted_under_the_listener_goes_on_with_no_repair(
    own_source: OwnSource, make_standby: MakeStandby
) -> None:
    """S36: what lies before the switch is the same in both timelines."""
    primary, pair = own_source()
    standby = make_standby(primary)
    if standby.version < 16:
        pytest.skip("PostgreSQL has logical decoding on a standby from 16 on")
    read_from(pair, standby)
    with primary.connect(pair.source_db) as other, pair.popen("listen", "--until-caught-up") as running:
        help_slot(other, running)
        running.wait(60, check=0)
        with pair.popen("listen") as listener:
            wait_for_stream(listener)
            other.execute("insert into t values (100, 'before')")
            wait_until_equal(pair, "public.t")
            standby.promote()
            pair.source.execute("insert into t values (101, 'after')")
            wait_until_equal(pair, "public.t")
            listener.send(signal.SIGTERM)
            listener.wait(60, check=0)
    pair.source.execute("insert into t values (102, 'later')")
    catch_up(pair)
    pair.assert_equal("public.t")
    assert pair.control_rows(path="repair") == []
    assert pair.target.execute("select timeline from replicator.listener").fetchone() == (2,)
    pair.source.close()
    pair.source = primary.connect(pair.source_db)


def help_slot(primary: psycopg.Connection[TupleRow], running: Running) -> None:
    """Let a slot come to be on a standby: it waits for the primary's note of what runs."""
    while "slot_created" not in running.stderr and running.running:
        primary.execute("select pg_log_standby_snapshot()")
        primary.execute("select pg_sleep(0.05)")


def follow_slots(primary: Cluster, standby: Cluster) -> None:
    """Set a standby up so that it keeps the primary's slots."""
    primary.execute("select pg_create_physical_replication_slot('standby')")
    dsn = f"{primary.admin_dsn()} dbname=postgres"
    for name, value in (
        ("primary_conninfo", dsn), ("primary_slot_name", "standby"),
        ("hot_standby_feedback", "on"), ("sync_replication_slots", "on"),
    ):  # fmt: skip
        standby.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    standby.restart()


def has_synced_slot(pair: Pair, standby: Cluster) -> bool:
    """Move the slot on, and say whether the standby keeps it: it does from the first note of what runs on."""
    catch_up(pair)
    pair.source.execute("select pg_log_standby_snapshot()")
    query = "select 1 from pg_replication_slots where slot_name = %s and not temporary and synced"
    return bool(standby.execute(query, [pair.slot]))


@pytest.mark.parametrize("lossless", [True, False], ids=["lossless", "with a loss"])
def test_a_failover_with_a_synced_slot_goes_on_if_nothing_was_lost(
    own_source: OwnSource, make_standby: MakeStandby, lossless: bool
) -> None:
    """S36: the stream finds what it brought last, or stops before anything is skipped."""
    primary, pair = own_source()
    if primary.version < 17:
        pytest.skip("PostgreSQL keeps slots on a standby from 17 on")
    standby = make_standby(primary)
    follow_slots(primary, standby)
    wait_until(lambda: has_synced_slot(pair, standby), 90, what="the standby has the slot", interval_s=0.5)
    if not lossless:
        cut_off(standby)
    pair.source.execute("insert into t values (100, 'seen'); update t set note = 'seen' where id = 1")
    catch_up(pair)
    if lossless:
        standby.wait_for_replay(primary)
    pair.source.close()
    primary.kill()
    standby.promote()
    read_from(pair, standby)
    pair.source.execute("select pg_logical_emit_message(false, 'test', repeat('x', 100000))")
    pair.source.execute("insert into t values (101, 'new')")
    if lossless:
        catch_up(pair)
        assert pair.control_rows(path="repair") == []
    else:
        expect_refusal(pair.run("listen", "--until-caught-up", check=1), "timeline_changed", "--repair-gap")
        catch_up(pair, "--repair-gap")
    pair.assert_equal("public.t")
    primary.start()
    pair.source.close()
    pair.source = primary.connect(pair.source_db)


# ------------------------------------------------------------------------------------------------- the target


@pytest.mark.versions
def test_a_position_that_was_confirmed_survives_a_crash_of_a_target_that_commits_asynchronously(
    make_cluster: MakeCluster, make_pair: MakePair, crossing: tuple[int, int]
) -> None:
    """T16: synchronous_commit is off there, and the slot would be ahead of what is left."""
    target = make_cluster(crossing[1], settings={"synchronous_commit": "off", "wal_writer_delay": "10s"})
    pair = make_pair(listens=True, target_server=target)
    pair.source.execute(TABLE)
    pair.publish()
    pair.write_config(tables=["public.t"])
    catch_up(pair)
    for number in range(5):
        pair.source.execute("insert into t values (%s, 'seen')", [100 + number])
        catch_up(pair)
        pair.target.close()
        target.kill()
        target.start()
        pair.target = target.connect(pair.target_db)
        pair.assert_equal("public.t")
    catch_up(pair)


@pytest.mark.versions
def test_a_target_that_was_a_clone_of_the_source_takes_its_tables(
    own_source: OwnSource, make_standby: MakeStandby
) -> None:
    """T16: system identifier, database and table have the numbers of the source, and it is another server."""
    source, pair = own_source()
    source.execute(sql.SQL("create role {} login password 'clone'").format(sql.Identifier(pair.writer)))
    pair.source.execute(sql.SQL("alter table t owner to {}").format(sql.Identifier(pair.writer)))
    pair.source.execute(
        sql.SQL("grant all on database {} to {}").format(sql.Identifier(pair.source_db), sql.Identifier(pair.writer))
    )
    clone = make_standby(source)
    clone.promote()
    target = {"dsn": clone.dsn(pair.source_db, user=pair.writer, password="clone")}
    pair.write_config(tables=["public.t"], target=target)
    pair.source.execute(NEW)
    assert "same_table" not in pair.run("check").stdout
    pair.run("sync")
    pair.target.close()
    pair.target = clone.connect(pair.source_db)
    pair.assert_equal("public.t")
    catch_up(pair)
    pair.source.execute("insert into t values (7000, 'later')")
    catch_up(pair)
    pair.assert_equal("public.t")
    pair.source.execute(sql.SQL("reassign owned by {} to postgres").format(sql.Identifier(pair.writer)))
    pair.source.execute(sql.SQL("drop owned by {}").format(sql.Identifier(pair.writer)))
    pair.target.close()
    pair.target = pair.target_server.connect(pair.target_db)


@pytest.mark.versions
def test_the_primary_of_a_standby_is_no_target_for_the_same_table(
    own_source: OwnSource, make_standby: MakeStandby
) -> None:
    """T16: the source shows what is written to the target, on another server."""
    primary, pair = own_source()
    primary.execute(sql.SQL("create role {} login password 'same'").format(sql.Identifier(pair.writer)))
    pair.source.execute(
        sql.SQL("grant all on database {} to {}").format(sql.Identifier(pair.source_db), sql.Identifier(pair.writer))
    )
    pair.source.execute(sql.SQL("alter table t owner to {}").format(sql.Identifier(pair.writer)))
    standby = make_standby(primary)
    pair.write_config(
        tables=[{"name": "public.t", "mask": {"note": "null"}}],
        source={"dsn": pair.dsn_of_source(port=standby.port)},
        target={"dsn": primary.dsn(pair.source_db, user=pair.writer, password="same")},
    )
    for command, exit_code in (("check", 4), ("plan", 3), ("sync", 3)):
        finished = pair.run(command, check=exit_code)
        assert "same_table" in finished.stdout + finished.stderr, finished
    assert pair.source.execute("select count(*) from t where note is null").fetchone() == (0,)
    pair.source.execute(sql.SQL("reassign owned by {} to postgres").format(sql.Identifier(pair.writer)))
    pair.source.execute(sql.SQL("drop owned by {}").format(sql.Identifier(pair.writer)))
