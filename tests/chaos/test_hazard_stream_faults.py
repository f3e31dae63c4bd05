"""The stream when slots, publications, servers and processes fail: refused with what mends it, then equal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from tests.conftest import MakeCluster, MakePair
from tests.fault_proxy import FaultProxy
from tests.nightly import assert_tables_equal
from tests.pair import Pair
from tests.servers import Cluster, StopMode, read_status
from tests.streaming import (
    catch_up,
    expect_refusal,
    listening,
    read_slot,
    set_synchronous,
    wait_for_free_slot,
    wait_for_stream,
    wait_until_equal,
)
from tests.wait import wait_until

TABLES = (
    "create table t (id int primary key, n int); insert into t select n, 0 from generate_series(1, 200) n;"
    "create table keyless (a int); alter table keyless replica identity full; insert into keyless values (1), (1)"
)
NAMES = ["public.t", "public.keyless"]
SOME_CHANGES = (
    "update t set n = n + 1 where id < 20; delete from t where id between 50 and 59;"
    "update t set id = id + 1000 where id = 70;"
    "insert into t select max(id) + 1, 5 from t; insert into keyless values (1), (2);"
    "delete from keyless where ctid = (select min(ctid) from keyless)"
)


def start(pair: Pair, **sections: Any) -> None:
    """Make two tables, one of them without a key, and copy them."""
    pair.source.execute(TABLES)
    pair.publish()
    pair.write_config(tables=NAMES, **sections)
    follow(pair)


def follow(pair: Pair, *args: str) -> None:
    """Catch up, and compare."""
    catch_up(pair, *args)
    assert_tables_equal(pair, NAMES)


def refuse(pair: Pair, *words: str, exit_code: int = 1) -> None:
    """Prove that the listener stops with these words and leaves the target as it is."""
    before = [pair.target.execute(f"select count(*), sum(n) from {name}".encode()).fetchone() for name in ("t",)]
    expect_refusal(pair.run("listen", "--until-caught-up", check=exit_code), *words)
    expect_refusal(pair.run("listen", check=exit_code), *words)
    after = [pair.target.execute(f"select count(*), sum(n) from {name}".encode()).fetchone() for name in ("t",)]
    assert before == after


# ------------------------------------------------------------------------------------------- transactions


@pytest.mark.versions
def test_a_prepared_transaction_lands_when_it_commits(streamed: Pair) -> None:
    """S13: prepared ahead of the first copy, or in the stream; the listener is killed between its two halves."""
    start(streamed)
    streamed.source.execute(
        "begin; insert into t values (500, 1); update t set n = 7 where id = 1; prepare transaction 'a'"
    )
    with streamed.popen("listen") as running:
        wait_for_stream(running)
        streamed.source.execute(
            "begin; insert into t values (501, 1); insert into keyless values (5); prepare transaction 'b'"
        )
        streamed.source.execute("begin; insert into t values (502, 1); prepare transaction 'c'")
        streamed.source.execute("insert into t values (503, 1)")
        wait_until(lambda: streamed.target.execute("select from t where id = 503").rowcount, what="what came after")
        running.kill()
    assert not streamed.target.execute("select from t where id between 500 and 502").rowcount
    streamed.source.execute("commit prepared 'a'")
    streamed.source.execute("rollback prepared 'c'")
    follow(streamed)
    with streamed.popen("listen") as running:
        wait_for_stream(running)
        streamed.source.execute("commit prepared 'b'")
        running.kill()
    follow(streamed)


def is_fresher_than(pair: Pair, moment: datetime) -> bool:
    """Say whether the target has all that was committed before a moment, and the listener has saved that.

    An idle source sends what no commit has flushed after 15 seconds: so this commits something.
    """
    pair.source.execute("select pg_logical_emit_message(true, 'nothing', '')")
    return bool(pair.target.execute("select from replicator.listener where fresh_at > %s", [moment]).rowcount)


@pytest.mark.versions
def test_a_transaction_prepared_before_a_gap_is_found_after_it(streamed: Pair) -> None:
    """S13, S19: older than what the slot lost, committed after it."""
    start(streamed)
    streamed.source.execute(
        "begin; insert into t values (500, 1); update t set n = 7 where id = 1; prepare transaction 'a'"
    )
    streamed.source.execute("insert into t values (501, 2)")
    (prepared_at,) = streamed.source.execute("select clock_timestamp()").fetchone() or ()
    with listening(streamed):
        wait_until_equal(streamed, *NAMES)
        # What a repair begins with is saved with the freshness: without this it would be that of the first copy.
        wait_until(
            lambda: is_fresher_than(streamed, prepared_at), what="what a repair begins with is saved", interval_s=0.2
        )
    wait_for_free_slot(streamed)
    streamed.source.execute("select pg_drop_replication_slot(%s)", [streamed.slot])
    streamed.source.execute("commit prepared 'a'")
    refuse(streamed, "--repair-gap")
    follow(streamed, "--repair-gap")


def measure_peak_mb(pid: int) -> float:
    """Return the most memory that a process has ever used."""
    return int(read_status(str(pid))["VmHWM"].split()[0]) / 1024


@pytest.mark.parametrize(
    ("rows", "cap"), [(200_000, "8MB"), pytest.param(2_000_000, "64MB", marks=pytest.mark.slow)], ids=["200k", "2M"]
)
def test_one_large_transaction_fits_into_little_memory(
    streamed: Pair, record_property: Callable[[str, object], None], rows: int, cap: str
) -> None:
    """S14: it lands as a whole; nobody sees a part of it."""
    start(streamed, listen={"batch_bytes": cap})
    limit_mb = 200
    with listening(streamed) as running:
        begun = time.monotonic()
        streamed.source.execute(f"insert into t select g, 3 from generate_series(1000, {rows + 999}) g")
        seen = set()

        def has_landed() -> bool:
            row = streamed.target.execute("select count(*) from t where id >= 1000").fetchone()
            assert row is not None
            seen.add(row[0])
            return bool(row[0])

        wait_until(has_landed, 300, what="the transaction", interval_s=0.2)
        peak_mb = measure_peak_mb(running.process.pid)
        record_property(
            "measured", f"{rows:,} rows in one transaction: {time.monotonic() - begun:.1f} s, {peak_mb:.0f} MB"
        )
        assert seen == {0, rows}
        wait_until_equal(streamed, *NAMES)
        streamed.source.execute("update t set n = n + 1; delete from t where id % 3 = 0")
        wait_until_equal(streamed, *NAMES, timeout_s=300)
        assert measure_peak_mb(running.process.pid) < limit_mb
    assert_tables_equal(streamed, NAMES)


# --------------------------------------------------------------------------------------------------- slots


@pytest.mark.versions
@pytest.mark.parametrize("what", ["dropped", "made anew", "made anew and advanced", "advanced"])
def test_a_slot_that_lost_changes_is_refused_and_its_gap_repaired(streamed: Pair, what: str) -> None:
    """S19: inserts, updates, deletes, changed keys and truncates in the gap; a second repair finds nothing to do."""
    start(streamed)
    streamed.source.execute(SOME_CHANGES)
    if what == "advanced":
        streamed.source.execute(
            sql.SQL("select pg_replication_slot_advance({}, pg_current_wal_lsn())").format(streamed.slot)
        )
    else:
        streamed.source.execute("select pg_drop_replication_slot(%s)", [streamed.slot])
    if "anew" in what:
        streamed.source.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [streamed.slot])
    streamed.source.execute(SOME_CHANGES)
    refuse(streamed, "--repair-gap")
    assert streamed.control_rows(status="failed")[-1]["attempts"] == 2
    follow(streamed, "--repair-gap")
    streamed.source.execute(SOME_CHANGES)
    follow(streamed)
    follow(streamed, "--repair-gap")


@pytest.mark.versions
def test_a_slot_of_another_kind_under_our_name_is_left_alone(streamed: Pair) -> None:
    """S19."""
    start(streamed)
    for make in (
        "select pg_create_physical_replication_slot(%s)",
        "select pg_create_logical_replication_slot(%s, 'test_decoding')",
    ):
        streamed.source.execute("select pg_drop_replication_slot(%s)", [streamed.slot])
        try:
            streamed.source.execute(make, [streamed.slot])
        except psycopg.errors.UndefinedFile:
            streamed.source.execute("select pg_create_physical_replication_slot(%s)", [streamed.slot])
        refuse(streamed, streamed.slot, "somebody else")
        expect_refusal(streamed.run("listen", "--repair-gap", check=1), streamed.slot)


@pytest.mark.versions
def test_a_slot_dropped_under_the_listener_stops_it_with_the_command(streamed: Pair) -> None:
    """S19: whoever ends the walsender and drops the slot leaves a gap."""
    start(streamed)
    with streamed.popen("listen") as running:
        wait_for_stream(running)
        streamed.source.execute(
            "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where slot_name = %s",
            [streamed.slot],
        )
        wait_until(lambda: try_to_drop(streamed), what="the slot is dropped", interval_s=0.001)
        streamed.source.execute(SOME_CHANGES)
        expect_refusal(running.wait(60, check=1), "--repair-gap")
    follow(streamed, "--repair-gap")


def try_to_drop(pair: Pair) -> bool:
    """End whoever reads the slot and drop it; False when somebody was quicker."""
    pair.source.execute(
        "select pg_terminate_backend(active_pid, 10000) from pg_replication_slots where slot_name = %s and active",
        [pair.slot],
    )
    try:
        pair.source.execute("select pg_drop_replication_slot(%s)", [pair.slot])
    except psycopg.errors.ObjectInUse:
        return False
    return True


@pytest.fixture
def own_source(
    make_cluster: MakeCluster, make_pair: MakePair, crossing: tuple[int, int]
) -> Callable[..., tuple[Cluster, Pair]]:
    """Return a function that makes a pair whose source is the test's own server."""

    def make(**settings: str) -> tuple[Cluster, Pair]:
        cluster = make_cluster(crossing[0], settings=settings)
        return cluster, make_pair(listens=True, source_server=cluster)

    return make


OwnSource = Callable[..., tuple[Cluster, Pair]]


@pytest.mark.versions
@pytest.mark.parametrize("at_work", [False, True], ids=["between runs", "under the listener"])
def test_a_slot_that_was_invalidated_is_refused_and_its_gap_repaired(own_source: OwnSource, at_work: bool) -> None:
    """S19: max_slot_wal_keep_size is small, and the listener stands still for too long."""
    _, pair = own_source(max_slot_wal_keep_size="32MB", max_wal_size="64MB", wal_sender_timeout="3s")
    start(pair)
    pair.source.execute("create schema unpublished; create table unpublished.busy (pad text)")
    running = pair.popen("listen") if at_work else None
    if running:
        wait_for_stream(running)
        running.send(signal.SIGSTOP)

    def is_lost() -> bool:
        pair.source.execute("insert into unpublished.busy select repeat('x', 1000) from generate_series(1, 20000)")
        pair.source.execute("select pg_switch_wal(); ")
        pair.source.execute("checkpoint")
        return bool(read_slot(pair)["wal_status"] == "lost")

    pair.source.execute(SOME_CHANGES)
    wait_until(is_lost, 60, what="the slot is lost")
    if running:
        running.send(signal.SIGCONT)
        expect_refusal(running.wait(60, check=1), "--repair-gap")
    refuse(pair, "--repair-gap")
    follow(pair, "--repair-gap")
    pair.source.execute(SOME_CHANGES)
    follow(pair)


# --------------------------------------------------------------------------------------------- publication


@pytest.mark.versions
@pytest.mark.parametrize("at_work", [False, True], ids=["between runs", "under the listener"])
@pytest.mark.parametrize("how", ["dropped", "renamed"])
def test_a_publication_that_went_away_loses_nothing(streamed: Pair, how: str, at_work: bool) -> None:
    """S20: what was written while it was away comes with --repair-gap at the latest."""
    start(streamed)
    gone = {
        "dropped": "drop publication replicator_default",
        "renamed": "alter publication replicator_default rename to other",
    }[how]
    back = {
        "dropped": "create publication replicator_default for tables in schema public",
        "renamed": "alter publication other rename to replicator_default",
    }[how]
    streamed.source.execute("update t set n = 5 where id = 5")
    if at_work:
        with streamed.popen("listen") as running:
            wait_for_stream(running)
            streamed.source.execute(gone)
            streamed.source.execute(SOME_CHANGES)
            finished = running.wait(60)
            assert finished.exit_code in (1, 4), finished
            expect_refusal(finished, "replicator_default", "publication")
    else:
        streamed.source.execute(gone)
        streamed.source.execute(SOME_CHANGES)
        refuse(streamed, "create publication", exit_code=4)
    streamed.source.execute(back)
    streamed.source.execute("update t set n = 6 where id = 6")
    finished = streamed.run("listen", "--until-caught-up", check=None)
    if finished.exit_code:
        expect_refusal(finished, "--repair-gap")
        catch_up(streamed, "--repair-gap")
    assert_tables_equal(streamed, NAMES)
    streamed.source.execute(SOME_CHANGES)
    follow(streamed)


LESS_FOR_A_WHILE = {
    "table": "alter publication replicator_default drop table t; {}; alter publication replicator_default add table t",
    "operations": "alter publication replicator_default set (publish = 'insert'); {};"
    " alter publication replicator_default set (publish = 'insert, update, delete, truncate')",
    "rows": "alter publication replicator_default set table t where (id > 100), keyless; {};"
    " alter publication replicator_default set table t, keyless",
    "columns": "alter publication replicator_default set table t (id), keyless; {};"
    " alter publication replicator_default set table t, keyless",
}


def say_less_for_a_while(pair: Pair, away: str) -> None:
    """Change rows while the publication leaves something out."""
    for step in LESS_FOR_A_WHILE[away].split(";"):
        for one in SOME_CHANGES.split(";") if "{}" in step else [step]:
            pair.source.execute(one)


def start_publishing(pair: Pair) -> None:
    """Publish and copy the two tables, named one by one."""
    pair.source.execute(TABLES)
    pair.publish("t", "keyless")
    pair.write_config(tables=NAMES)
    follow(pair)


@pytest.mark.versions
@pytest.mark.parametrize("away", LESS_FOR_A_WHILE)
def test_a_publication_that_said_less_for_a_while_loses_nothing(streamed: Pair, away: str) -> None:
    """S20: a table was taken out and put back, or operations, rows or columns were left out for a while."""
    start_publishing(streamed)
    say_less_for_a_while(streamed, away)
    follow(streamed)


@pytest.mark.parametrize("away", ["table", "operations", "rows", "columns"])
def test_a_publication_that_says_less_under_the_listener_loses_nothing(streamed: Pair, away: str) -> None:
    """S20."""
    streamed.constants["replicator.stream.loop._DEFINITIONS_S"] = 1.0
    start_publishing(streamed)
    with listening(streamed):
        say_less_for_a_while(streamed, away)
        wait_until_equal(streamed, *NAMES)
    follow(streamed)


# ------------------------------------------------------------------------------------------------- servers


@pytest.mark.versions
def test_the_source_stops_fast_while_a_listener_idles(own_source: OwnSource) -> None:
    """S18: right after changes of published and of other tables, and after a while of nothing."""
    cluster, pair = own_source()
    start(pair)
    pair.source.execute("create table other (id int)")
    with listening(pair) as running:
        for n, change in enumerate((SOME_CHANGES, "insert into other select generate_series(1, 5000)", "select 1")):
            pair.source.execute(change)
            wait_until_equal(pair, *NAMES)
            pair.source.close()
            begun = time.monotonic()
            cluster.stop("fast")
            assert time.monotonic() - begun < 5, change
            cluster.start()
            pair.source = cluster.connect(pair.source_db)
            wait_for_stream(running, times=n + 2)
        pair.source.execute(SOME_CHANGES)
        wait_until_equal(pair, *NAMES)


def test_a_target_that_is_locked_for_longer_than_the_source_is_patient(own_source: OwnSource) -> None:
    """S21: wal_sender_timeout is 6 s, the table locked for 15: nothing is lost, and the connection stays."""
    _, pair = own_source(wal_sender_timeout="6s")
    start(pair, listen={"batch_bytes": "8MB"})
    with listening(pair) as running:
        with pair.target_server.connect(pair.target_db) as holder, holder.transaction():
            holder.execute("lock table t in access exclusive mode")
            begun = time.monotonic()
            pair.source.execute(SOME_CHANGES)
            while time.monotonic() - begun < 15:
                pair.source.execute(
                    "insert into t select (select max(id) from t) + g, 1 from generate_series(1, 2000) g"
                )
                threading.Event().wait(0.5)
        wait_until_equal(pair, *NAMES, timeout_s=60)
        assert running.stderr.count("stream_started") == 1
        assert "retry_scheduled" not in running.stderr


@pytest.mark.versions
def test_a_restarted_source_is_found_again(own_source: OwnSource) -> None:
    """S22: fast, immediate, and killed, amid changes; nothing lost, nothing doubled."""
    cluster, pair = own_source(fsync="on")
    start(pair)
    with listening(pair) as running:
        modes: tuple[StopMode | None, ...] = ("fast", "immediate", None)
        for n, mode in enumerate(modes):
            pair.source.execute(SOME_CHANGES)
            pair.source.execute("insert into keyless select g from generate_series(1, 3000) g")
            pair.source.close()
            if mode is None:
                cluster.kill()
                cluster.start()
            else:
                cluster.restart(mode)
            pair.source = cluster.connect(pair.source_db)
            pair.source.execute(SOME_CHANGES)
            wait_for_stream(running, times=n + 2)
        wait_until_equal(pair, *NAMES)
    follow(pair)


def test_a_source_that_stops_smartly_is_served_until_the_stop_is_fast(own_source: OwnSource) -> None:
    """S22: a smart stop waits for sessions, those of a listener too; the stream goes on meanwhile."""
    cluster, pair = own_source()
    start(pair)
    with listening(pair) as running:
        with pytest.raises(Exception, match="smart"):
            cluster.stop("smart", timeout_s=3)
        pair.source.execute(SOME_CHANGES)
        wait_until_equal(pair, *NAMES)
        pair.source.close()
        cluster.stop("fast")
        cluster.start()
        pair.source = cluster.connect(pair.source_db)
        wait_for_stream(running, times=2)
        pair.source.execute(SOME_CHANGES)
        wait_until_equal(pair, *NAMES)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restarted_target_is_found_again(make_cluster: MakeCluster, make_pair: MakePair, mode: StopMode) -> None:
    """S22."""
    target = make_cluster()
    pair = make_pair(listens=True, target_server=target)
    start(pair)
    with listening(pair) as running:
        for n in range(2):
            pair.source.execute(SOME_CHANGES)
            pair.target.close()
            target.restart(mode)
            pair.target = target.connect(pair.target_db)
            pair.source.execute(SOME_CHANGES)
            wait_for_stream(running, times=n + 2)
        wait_until_equal(pair, *NAMES)


@pytest.mark.versions
@pytest.mark.parametrize("keeps_slot", [True, False], ids=["with its slot", "without a slot"])
def test_a_failover_is_refused_and_repaired(own_source: OwnSource, keeps_slot: bool) -> None:
    """S23: what the standby had not received is taken back from the target too."""
    primary, pair = own_source(hot_standby="on", wal_log_hints="on")
    if keeps_slot and primary.version < 17:
        pytest.skip("slots are synchronized from 17 on")
    start(pair)
    primary.execute("select pg_create_physical_replication_slot('standby')")
    settings = {"hot_standby_feedback": "on", "primary_slot_name": "standby"}
    if keeps_slot:
        settings |= {
            "sync_replication_slots": "on",
            "primary_conninfo": f"{primary.admin_dsn()} dbname=postgres",
        }
    standby = primary.standby(settings=settings)
    try:
        pair.source.execute(SOME_CHANGES)
        follow(pair)
        if keeps_slot:
            query = "select 1 from pg_replication_slots where slot_name = %s and synced and not temporary"

            def is_there() -> bool:
                pair.source.execute("checkpoint")
                follow(pair)
                return bool(standby.execute(query, [pair.slot]))

            wait_until(is_there, 60, what="the slot is there", interval_s=1)
        standby.wait_for_replay(primary)
        running = pair.popen("listen")
        wait_for_stream(running)
        standby.execute("alter system set primary_conninfo = ''; ")
        standby.execute("select pg_reload_conf()")
        wait_until(lambda: not standby.execute("select 1 from pg_stat_wal_receiver"), what="the standby is cut off")
        pair.source.execute(
            "insert into t values (9999, 1); update t set n = 77 where id = 3; delete from t where id = 4"
        )
        pair.source.execute("insert into keyless values (77)")
        wait_until_equal(pair, *NAMES)
        running.kill()
        pair.source.close()
        primary.stop("immediate")
        standby.promote()
        pair.source = standby.connect(pair.source_db)
        pair.source_server = standby
        pair.write_config(tables=NAMES)
        pair.source.execute("update t set n = 5 where id = 5")
        refuse(pair, "--repair-gap")
        follow(pair, "--repair-gap")
        pair.source.execute(SOME_CHANGES)
        follow(pair)
    finally:
        pair.source.close()
        primary.start()
        standby.remove()
        pair.source_server = primary
        pair.source = primary.connect(pair.source_db)


@pytest.mark.parametrize("late", ["delayed", "standby"])
def test_rows_that_are_read_again_are_never_older_than_their_change(own_source: OwnSource, late: str) -> None:
    """S25: commits are visible later than they are sent, by commit_delay or by a standby that does not answer."""
    _, pair = own_source(commit_delay="60000", commit_siblings="0", fsync="on")
    pair.source.execute(
        "create table t (id int primary key, n int, big text); alter table t alter big set storage external;"
        "insert into t select n, 0, repeat('x', 3000) from generate_series(1, 40) n;"
        "create table keyless (a int); alter table keyless replica identity full"
    )
    pair.publish()
    pair.write_config(tables=[{"name": "public.t", "where": "n >= 0"}, "public.keyless"])
    follow(pair)
    with listening(pair):
        if late == "delayed":
            for row in range(1, 41):
                pair.source.execute("update t set n = n + 1 where id = %s", [row])
                if row % 4 == 0:
                    pair.source.execute("delete from t where id = %s", [row])
                    pair.source.execute("insert into t values (%s, 1, 'new')", [row + 100])
        else:
            set_synchronous(pair, "nobody")
            writers = [
                Statement(pair.source_server.connect(pair.source_db), f"update t set n = 7 where id = {row}")
                for row in range(1, 6)
            ]
            waiting = "select count(*) = 5 from pg_stat_activity where wait_event = 'SyncRep'"
            wait_until(lambda: pair.source.execute(waiting).fetchone() == (True,), what="commits that wait")
            threading.Event().wait(2)
            assert not pair.target.execute("select from t where n = 7").rowcount, (
                "a commit that nobody sees is in the target"
            )
            set_synchronous(pair, "")
            for writer in writers:
                writer.join(30)
        wait_until_equal(pair, *NAMES)


LOCK_HOLDER = (
    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and database ="
    " (select oid from pg_database where datname = current_database()) and (classid::bigint << 32 | objid::bigint)"
    " = hashtextextended('replicator/replicator/default/listener', 7264811)"
)


def test_a_listener_that_lost_its_lock_alone_is_left_its_tables_all_the_same(streamed: Pair) -> None:
    """F4, F6: somebody ends the session that is idle; the stream goes on for a while, and no sync gets in between."""
    streamed.source.execute(
        "create table t (id int primary key, n int); insert into t select n, 0 from generate_series(1, 50) n;"
        "create table keyless (a int); alter table keyless replica identity full"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t", "public.keyless"])
    catch_up(streamed)
    with listening(streamed) as running:
        streamed.source.execute("insert into keyless values (1)")
        wait_until_equal(streamed, "public.keyless")
        assert streamed.target.execute(LOCK_HOLDER).fetchall() == [(True,)]
        rows = streamed.json("sync", check=None)["tables"]
        streamed.source.execute("insert into keyless values (2), (2); update t set n = 1")
        assert [row["status"] for row in rows if row["path"] == "sync"] == ["skipped", "skipped"]
        wait_for_stream(running, times=2)
        streamed.source.execute("insert into keyless values (2); update t set n = n + 1")
        wait_until_equal(streamed, "public.t", "public.keyless")


class Statement(threading.Thread):
    """One statement in a session of its own."""

    def __init__(self, connection: psycopg.Connection[TupleRow], statement: str) -> None:
        super().__init__(daemon=True)
        self.connection, self.statement = connection, statement
        self.start()

    def run(self) -> None:
        with self.connection:
            self.connection.execute(self.statement.encode())


# ----------------------------------------------------------------------------------------------- processes


def test_a_listener_that_is_asked_to_end_amid_changes_loses_nothing(streamed: Pair) -> None:
    """F2: at any moment, ten times; exit code 0, the slot free, and no change applied twice."""
    start(streamed)
    for n in range(10):
        with streamed.popen("listen") as running:
            if n:
                wait_for_stream(running)
            wait_until(lambda running=running: "run_started" in running.stderr, what="its start")  # type: ignore[misc]
            streamed.source.execute(
                "insert into keyless select g from generate_series(1, 5000) g; update t set n = n + 1"
            )
            threading.Event().wait(n * 0.03)
            running.send(signal.SIGTERM)
            finished = running.wait(30, check=0)
            expect_refusal(finished)
        assert not read_slot(streamed)["active"]
    follow(streamed)
    assert not streamed.control_rows(status="failed")


def test_a_bounded_run_that_is_asked_to_end_says_that_it_did_not_reach_its_end(streamed: Pair) -> None:
    """F2: held by a lock of the target."""
    start(streamed)
    streamed.source.execute(SOME_CHANGES)
    with streamed.target_server.connect(streamed.target_db) as holder, holder.transaction():
        holder.execute("lock table t in share mode")
        running = streamed.popen("listen", "--until-caught-up")
        wait_for_stream(running)
        threading.Event().wait(1)
        running.send(signal.SIGTERM)
        threading.Event().wait(0.5)
    expect_refusal(running.wait(60, check=1), "stopped before")
    follow(streamed)


def test_a_frozen_listener_keeps_its_place_and_goes_on(streamed: Pair) -> None:
    """F3, F6: a second one is refused with exit code 5 meanwhile."""
    start(streamed, lock_wait="2s")
    with listening(streamed) as running:
        running.send(signal.SIGSTOP)
        streamed.source.execute(SOME_CHANGES)
        second = streamed.run("listen", "--until-caught-up", check=5)
        expect_refusal(second, "listener")
        threading.Event().wait(3)
        running.send(signal.SIGCONT)
        wait_until_equal(streamed, *NAMES)
    assert not streamed.control_rows(status="failed")


LOADING = "wait_event_type = 'Lock'"


def end_sessions(pair: Pair, which: str) -> None:
    """End those of the tool's sessions on the target for which `which` is true, and its walsender."""
    pair.target.execute(
        f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s and {which}".encode(),
        [pair.writer],
    )
    pair.source.execute(
        "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = %s", [pair.slot]
    )


@pytest.mark.parametrize("loading", [True, False], ids=["amid a load", "idle"])
def test_a_frozen_listener_that_lost_its_lock_writes_nothing_when_it_wakes(streamed: Pair, loading: bool) -> None:
    """F3, F7: its successor waits for what is open, has taken over by then, and goes on."""
    start(streamed, lock_wait="2s")
    # A wait that the server gives up ends the transaction, whoever is frozen: the old one's shall last. So long it
    # also waits for its successor when it wakes.
    with streamed.popen("listen", env={"REPLICATOR_LOCK_WAIT": "10s" if loading else "2s"}) as old:
        wait_for_stream(old)
        streamed.source.execute(SOME_CHANGES)
        wait_until_equal(streamed, *NAMES)
        if loading:
            with streamed.target_server.connect(streamed.target_db) as holder:
                holder.execute("begin; lock table t in share mode")
                streamed.source.execute(SOME_CHANGES)
                waits = "select 1 from pg_stat_activity where usename = %s and wait_event_type = 'Lock'"
                wait_until(lambda: streamed.target.execute(waits, [streamed.writer]).rowcount, what="the loader waits")
                old.send(signal.SIGSTOP)
                end_sessions(streamed, f"({LOADING}) is not true")
                expect_refusal(streamed.run("listen", "--until-caught-up", check=5), "transaction open")
                end_sessions(streamed, "true")
        else:
            old.send(signal.SIGSTOP)
            end_sessions(streamed, "true")
        with streamed.popen("listen") as new:
            wait_for_stream(new)
            streamed.source.execute(SOME_CHANGES)
            old.send(signal.SIGCONT)
            wait_until_equal(streamed, *NAMES)
            finished = old.wait(60)
            assert finished.exit_code in (1, 5), finished
            expect_refusal(finished)
            streamed.source.execute(SOME_CHANGES)
            wait_until_equal(streamed, *NAMES)
            new.send(signal.SIGTERM)
            new.wait(30, check=0)
    follow(streamed)


def test_two_listeners_do_not_work_at_once(streamed: Pair) -> None:
    """F6: started at the same moment; one does the work, the other says who holds the lock."""
    start(streamed, lock_wait="2s")
    both = [streamed.popen("listen") for _ in range(2)]
    wait_until(lambda: any(not running.running for running in both), 30, what="one of them has ended")
    (lost,) = [running for running in both if not running.running]
    (won,) = [running for running in both if running.running]
    expect_refusal(lost.wait(check=5), "listener")
    wait_for_stream(won)
    streamed.source.execute(SOME_CHANGES)
    wait_until_equal(streamed, *NAMES)
    won.send(signal.SIGTERM)
    won.wait(check=0)


def test_a_listener_of_another_target_does_not_take_the_slot(make_pair: MakePair, streamed: Pair) -> None:
    """F6: two targets with one slot name; the second one is refused and the first goes on."""
    start(streamed, lock_wait="2s")
    other = make_pair(listens=True)
    with listening(streamed):
        other.write_config(
            source={"dsn": streamed.source_dsn}, listen={"slot": streamed.slot}, tables=NAMES, lock_wait="2s"
        )
        expect_refusal(other.run("listen", "--until-caught-up", check=1), streamed.slot)
        streamed.source.execute(SOME_CHANGES)
        wait_until_equal(streamed, *NAMES)
    follow(streamed)


SIMPLE_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
"""The whole message: a staging table's ON COMMIT holds the word too."""


def test_an_answer_to_commit_that_was_lost_doubles_nothing(streamed: Pair) -> None:
    """F5: the transaction is in the target, and the listener finds that out by its position."""
    with FaultProxy(streamed.target_server.host, streamed.target_server.port) as proxy:
        start(streamed, target={"dsn": streamed.dsn_of_target(port=proxy.port)})
        for n in range(3):
            # A session prepares what it has said five times: the word is on the wire only at its beginning.
            with streamed.popen("listen") as running:
                wait_for_stream(running)
                proxy.lose_answer_to(SIMPLE_COMMIT)
                streamed.source.execute("insert into keyless values (1), (2); update t set n = n + 1")
                wait_until(lambda n=n: proxy.lost_answers > n, what="an answer is lost")  # type: ignore[misc]
                wait_for_stream(running, times=2)
                wait_until_equal(streamed, *NAMES)
    streamed.write_config(tables=NAMES)
    follow(streamed)


def test_a_link_that_breaks_at_a_savepoint_is_replaced(streamed: Pair) -> None:
    """F4: the statement is no table's, and a loss of the connection is the same there as elsewhere."""
    with FaultProxy(streamed.target_server.host, streamed.target_server.port) as proxy:
        dsn = streamed.dsn_of_target(port=proxy.port)
        start(streamed, target={"dsn": dsn}, defaults={"on_row_error": "quarantine"})
        with listening(streamed) as running:
            proxy.lose_answer_to(b"SAVEPOINT")
            streamed.source.execute("update t set n = n + 1")
            wait_until(lambda: proxy.lost_answers == 1, what="an answer is lost")
            wait_for_stream(running, times=2)
            wait_until_equal(streamed, *NAMES)


def test_a_target_restored_from_an_older_backup_is_refused_and_repaired(streamed: Pair) -> None:
    """F9: its position is older than what the slot has kept."""
    start(streamed)
    streamed.source.execute(SOME_CHANGES)
    follow(streamed)
    backup = f"{streamed.target_db}_backup"
    streamed.target.close()
    streamed.target_server.create_database(backup, template=streamed.target_db, owner=streamed.writer)
    streamed.target = streamed.target_server.connect(streamed.target_db)
    streamed.source.execute(SOME_CHANGES)
    with listening(streamed):
        wait_until_equal(streamed, *NAMES)
    streamed.target.close()
    streamed.target_server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(streamed.target_db)))
    streamed.target_server.execute(
        sql.SQL("alter database {} rename to {}").format(sql.Identifier(backup), sql.Identifier(streamed.target_db))
    )
    streamed.target = streamed.target_server.connect(streamed.target_db)
    streamed.source.execute(SOME_CHANGES)
    refuse(streamed, "--repair-gap")
    follow(streamed, "--repair-gap")
    streamed.source.execute(SOME_CHANGES)
    follow(streamed)


def test_a_running_listener_whose_target_is_restored_notices(streamed: Pair) -> None:
    """F9: the backup knows nothing of a stream."""
    streamed.source.execute(TABLES)
    streamed.publish()
    streamed.write_config(tables=NAMES)
    streamed.run("sync")
    backup = f"{streamed.target_db}_backup"
    streamed.target.close()
    streamed.target_server.create_database(backup, template=streamed.target_db, owner=streamed.writer)
    streamed.target = streamed.target_server.connect(streamed.target_db)
    with streamed.popen("listen") as running:
        wait_for_stream(running)
        streamed.source.execute(SOME_CHANGES)
        wait_until_equal(streamed, *NAMES)
        streamed.target.close()
        old, new = sql.Identifier(streamed.target_db), sql.Identifier(backup)
        streamed.target_server.execute(sql.SQL("drop database {} with (force)").format(old))
        streamed.target_server.execute(sql.SQL("alter database {} rename to {}").format(new, old))
        streamed.target = streamed.target_server.connect(streamed.target_db)
        streamed.source.execute(SOME_CHANGES)
        expect_refusal(running.wait(60, check=1), "replicator slot drop --yes")
    streamed.run("slot", "drop", "--yes")
    follow(streamed)
