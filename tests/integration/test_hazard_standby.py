"""Sources that are another server than the night before: standbys that lag, promotions, restores."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.servers import Cluster
from tests.strategy_case import BOTH, TABLE, WATERMARK, XMIN, Case, source_session
from tests.wait import wait_until

MakeStandby = Callable[[Cluster], Cluster]


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


def begin(pair: Pair, strategy: str, server: Cluster) -> Case:
    """Load table t for the first time, from `server`."""
    pair.source.execute(TABLE)
    pair.grant()
    case = Case(pair, strategy)
    read_from(case, server)
    case.begin()
    return case


def read_from(case: Case, server: Cluster) -> None:
    """Let the tool read from another server that has the same databases, as it stands now."""
    primary = case.pair.source_server
    assert isinstance(primary, Cluster)
    if server is not primary and not is_paused(server):
        server.wait_for_replay(primary)
    case.configure(sections={"source": {"dsn": case.pair.dsn_of_source(port=server.port)}})


def is_paused(standby: Cluster) -> bool:
    """Say whether replay stands still."""
    ((state,),) = standby.execute("select case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() end")
    return bool(state == "paused")


@contextmanager
def paused(standby: Cluster) -> Iterator[None]:
    """Let a standby lag."""
    standby.execute("select pg_wal_replay_pause()")
    wait_until(lambda: is_paused(standby), what="replay paused")
    yield
    standby.execute("select pg_wal_replay_resume()")


@contextmanager
def looking_at(pair: Pair, server: Cluster) -> Iterator[None]:
    """Compare with what another server shows."""
    before = pair.source
    pair.source = server.connect(pair.source_db)
    yield
    pair.source.close()
    pair.source = before


@pytest.mark.versions
@pytest.mark.hazard("W18")
def test_a_standby_shows_late_commits_in_its_own_time(
    crossing: tuple[int, int], make_cluster: MakeCluster, make_pair: MakePair, make_standby: MakeStandby
) -> None:
    """It knows running transactions from the WAL alone, and subtransactions in bundles of 64."""
    primary = make_cluster(crossing[0])
    pair = make_pair(source_server=primary)
    standby = make_standby(primary)
    case = begin(pair, XMIN, standby)
    gid = f"pending in {pair.source_db}"
    with source_session(pair) as late, source_session(pair) as reader:
        reader.execute("select count(*) from t")
        late.execute(
            "do $$ begin for n in 1..150 loop"
            "   begin insert into public.t values (1000 + n, 'sub'); if n % 3 = 0 then raise 'undone'; end if;"
            "   exception when raise_exception then null; end;"
            " end loop; end $$"
        )
        with source_session(pair) as pending:
            pending.execute("update t set note = 'pending' where id = 1")
            pending.execute(f"prepare transaction '{gid}'")
        for night in range(2):
            pair.source.execute("insert into t values (%s, 'early')", [100 + night])
            standby.wait_for_replay(primary)
            case.catch_up()
        late.execute(
            "savepoint a; update t set note = 'undone' where id > 1; rollback to a; delete from t where id = 2"
        )
        late.commit()
        reader.execute("insert into t values (200, 'wrote at its end')")
        reader.commit()
    pair.source.execute(f"commit prepared '{gid}'")
    standby.wait_for_replay(primary)
    batch = case.catch_up()
    assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (101, 1, 1)


@pytest.mark.hazard("W18")
def test_a_table_that_fails_on_a_standby_does_not_keep_the_others_from_landing(
    make_cluster: MakeCluster, make_pair: MakePair, make_standby: MakeStandby
) -> None:
    """One session reads them all there, and a failed read ends its snapshot."""
    primary = make_cluster()
    pair = make_pair(source_server=primary)
    standby = make_standby(primary)
    tables = [f"t{number}" for number in range(5)]
    for table in tables:
        pair.source.execute(f"create table {table} (id int primary key, part int); insert into {table} values (1, 0)")
    pair.grant()
    standby.wait_for_replay(primary)
    names: list[dict[str, object]] = [{"name": f"public.{table}"} for table in tables]
    names[2]["mask"] = {"part": "1 / part"}
    dsn = pair.dsn_of_source(port=standby.port)
    pair.write_config(tables=names, source={"dsn": dsn})
    document = pair.json("sync", "--jobs", "4", check=6)
    assert set(document["errors"]) == {"public.t2"}
    for table in (*tables[:2], *tables[3:]):
        pair.assert_equal(table)


@pytest.mark.hazard("W18")
def test_a_watermark_is_refused_on_a_standby(
    make_cluster: MakeCluster, make_pair: MakePair, make_standby: MakeStandby
) -> None:
    """Nobody can see there which transactions are open on the primary; auto reads everything instead."""
    primary = make_cluster()
    pair = make_pair(source_server=primary)
    pair.source.execute("create view v as select 1 as id, now() as updated_at")
    standby = make_standby(primary)
    case = begin(pair, WATERMARK, primary)
    read_from(case, standby)
    case.stop(3, "config_invalid")
    read_from(case, primary)
    case.catch_up()
    case = Case(pair, "auto", "public.v", key=["id"])
    read_from(case, standby)
    batch = case.sync()
    assert (batch["strategy"], batch["guarantee"]) == ("full", "exact")


@pytest.mark.versions
@pytest.mark.hazard("W19")
def test_another_standby_the_next_night_which_lags(
    crossing: tuple[int, int], make_cluster: MakeCluster, make_pair: MakePair, make_standby: MakeStandby
) -> None:
    """The target follows the server that was read, and what the lagging one had not seen is read again later."""
    primary = make_cluster(crossing[0])
    pair = make_pair(source_server=primary)
    quick, slow = make_standby(primary), make_standby(primary)
    case = begin(pair, XMIN, quick)
    slow.wait_for_replay(primary)
    with paused(slow):
        pair.source.execute("insert into t values (100, 'new'); delete from t where id = 2")
        pair.source.execute("update t set note = 'changed' where id = 1")
        read_from(case, quick)
        case.catch_up()
        read_from(case, slow)
        with looking_at(pair, slow):
            batch = case.catch_up(load="full")
        assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 1, 1)
        read_from(case, quick)
        batch = case.catch_up()
        assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 1, 1)
    pair.source.execute("update t set note = 'again' where id = 3")
    for server in (slow, primary, quick):
        read_from(case, server)
        case.catch_up()


@BOTH
@pytest.mark.hazard("W19")
def test_a_standby_that_was_promoted_and_never_saw_the_last_rows(
    make_cluster: MakeCluster, make_pair: MakePair, make_standby: MakeStandby, strategy: str
) -> None:
    """Both servers wrote under the same transaction ids, and only the timeline tells."""
    primary = make_cluster()
    pair = make_pair(source_server=primary)
    standby = make_standby(primary)
    case = begin(pair, strategy, primary)
    standby.wait_for_replay(primary)
    standby.execute("alter system set primary_conninfo = ''")
    standby.execute("select pg_reload_conf()")
    wait_until(lambda: not standby.execute("select 1 from pg_stat_wal_receiver"), what="the standby is cut off")
    pair.source.execute(
        "insert into t values (100, 'lost'); update t set note = 'lost', updated_at = now() where id = 1"
    )
    case.catch_up()
    standby.promote()
    case.configure(sections={"source": {"dsn": pair.dsn_of_source(port=standby.port)}})
    with looking_at(pair, standby):
        pair.source.execute("insert into t values (101, 'kept'); update t set note = 'kept' where id = 2")
        batch = case.catch_up(load="full")
        assert (batch["rows_inserted"], batch["rows_updated"], batch["rows_deleted"]) == (1, 2, 1)
        pair.source.execute("update t set note = 'later', updated_at = now() where id = 3")
        case.catch_up()


@BOTH
@pytest.mark.hazard("W19")
def test_a_source_that_was_restored_from_an_older_copy(
    make_cluster: MakeCluster, make_pair: MakePair, strategy: str
) -> None:
    """Its xids and its WAL positions are given out a second time."""
    source = make_cluster()
    pair = make_pair(source_server=source)
    case = begin(pair, strategy, source)
    copy = source.home / "copy"
    with stopped(pair, source):
        shutil.copytree(source.data, copy, symlinks=True)
    pair.source.execute(
        "insert into t values (100, 'lost'); update t set note = 'lost', updated_at = now() where id = 1"
    )
    case.catch_up()
    with stopped(pair, source):
        shutil.rmtree(source.data)
        copy.rename(source.data)
        own(source)
    batch = case.catch_up(load="full")
    assert (batch["rows_updated"], batch["rows_deleted"]) == (1, 1)
    pair.source.execute("update t set note = 'kept', updated_at = now() where id = 2")
    case.catch_up()


@contextmanager
def stopped(pair: Pair, source: Cluster) -> Iterator[None]:
    """Stop the source for as long as the block lasts, and connect the pair again."""
    pair.source.close()
    source.stop()
    yield
    source.start()
    pair.source = source.connect(pair.source_db)


def own(cluster: Cluster) -> None:
    """Give the files to the account that owns the cluster's directory."""
    owner = cluster.home.stat()
    for path in (cluster.data, *cluster.data.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)


SLOW_S = 0.02
"""How long the standby takes for each row of a table that is too large for its patience."""


@contextmanager
def vacuumed(primary: Cluster, database: str) -> Iterator[None]:
    """Keep the primary removing rows that a snapshot of a standby may still see."""
    ended = threading.Event()

    def work() -> None:
        with primary.connect(database) as session:
            session.execute("create table if not exists churn (id int primary key, n int)")
            session.execute("insert into churn select g, 0 from generate_series(1, 50) g on conflict do nothing")
            while not ended.wait(0.05):
                session.execute("update churn set n = n + 1")
                session.execute("vacuum churn")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def impatient(make_cluster: MakeCluster, make_pair: MakePair) -> Iterator[tuple[Pair, Cluster]]:
    """Return a pair that reads a standby which lets nobody hold its replay up for longer than 100 ms."""
    primary = make_cluster(settings={"autovacuum": "off"})
    pair = make_pair(source_server=primary)
    for number in range(5):
        pair.source.execute(f"create table small{number} (id int primary key); insert into small{number} values (1)")
    pair.source.execute("create table large (id int primary key, pad text)")
    pair.source.execute("insert into large select g, repeat('x', 500) from generate_series(1, 300) g")
    pair.grant()
    standby = primary.standby(settings={"max_standby_streaming_delay": "100ms", "hot_standby_feedback": "off"})
    standby.wait_for_replay(primary)
    large = {"name": "public.large", "where": f"pg_sleep({SLOW_S}) is not null"}
    pair.write_config(
        tables=[large, *(f"public.small{n}" for n in range(5))], source={"dsn": pair.dsn_of_source(port=standby.port)}
    )
    yield pair, standby
    standby.remove()


@pytest.mark.hazard("S40")
def test_a_standby_that_cancels_reads_costs_the_large_tables_alone(impatient: tuple[Pair, Cluster]) -> None:
    """The error names the conflict and both settings, within a bounded time."""
    pair, standby = impatient
    assert isinstance(pair.source_server, Cluster)
    with vacuumed(pair.source_server, pair.source_db):
        began = time.monotonic()
        document = pair.json("sync", check=6)
        assert time.monotonic() - began < 60
    assert set(document["errors"]) == {"public.large"}
    error = document["errors"]["public.large"]
    assert error["id"] == "recovery_conflict"
    assert "hot_standby_feedback" in error["hint"]
    assert "max_standby_streaming_delay" in error["hint"]
    for number in range(5):
        pair.assert_equal(f"small{number}")
    standby.execute("alter system set max_standby_streaming_delay = -1")
    standby.execute("select pg_reload_conf()")
    with vacuumed(pair.source_server, pair.source_db):
        pair.run("sync")
    pair.assert_equal("large")


@pytest.mark.hazard("S40")
def test_a_conflict_that_ends_an_idle_session_is_named_as_well(impatient: tuple[Pair, Cluster]) -> None:
    """While the target merges, the session on the standby only holds its snapshot, and no answer tells of its end."""
    pair, _standby = impatient
    assert isinstance(pair.source_server, Cluster)
    tables = ["public.small0", "public.small1"]
    dsn = pair.dsn_of_source(port=_standby.port)
    pair.write_config(tables=tables, source={"dsn": dsn})
    pair.run("sync")
    conflicts = "select confl_snapshot from pg_stat_database_conflicts where datname = %s"
    with pair.target_server.connect(pair.target_db) as holder:
        holder.execute("begin; lock table small0 in access exclusive mode")
        running = pair.popen("sync", "--full")
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        wait_until(lambda: pair.target.execute(waits).rowcount == 1, what="the run waits for the target's table")
        with vacuumed(pair.source_server, pair.source_db):
            wait_until(lambda: _standby.execute(conflicts, [pair.source_db])[0][0] > 0, 60, what="a conflict")
        holder.execute("commit")
    finished = running.wait(check=0)
    assert '"recovery_conflict"' in finished.stderr
    for number in range(2):
        pair.assert_equal(f"small{number}")
