"""Tables join a running stream while they are written to: no row is missing, doubled, or older than it was."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from tests.chaos.scale import SCALE
from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.servers import Cluster
from tests.streaming import catch_up, listening, set_synchronous, wait_until_equal
from tests.wait import wait_until

OwnPair = Callable[..., tuple[Cluster, Pair]]
RULE = "create rule odd as on update to {} do also nothing"
WAITING = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and datname = current_database()"


@pytest.fixture
def own_pair(make_cluster: MakeCluster, make_pair: MakePair) -> OwnPair:
    """Return what makes a source of its own, whose settings a test may change, and a pair with a quick listener."""

    def make(**settings: str) -> tuple[Cluster, Pair]:
        cluster = make_cluster(18, settings=settings)
        pair = make_pair(source_server=cluster, listens=True)
        pair.constants["replicator.stream.loop._DEFINITIONS_S"] = 0.3
        pair.constants["replicator.stream.join._LOOK_AGAIN_S"] = 0.3
        return cluster, pair

    return make


def park(pair: Pair, table: str) -> None:
    """Let the target refuse a table for what its catalog says, and wait until the listener has left it out."""
    pair.target.execute(sql.SQL(RULE).format(sql.Identifier(table)))
    pair.target.execute("update replicator.stream_table set is_stale = true where table_name = %s", [f"public.{table}"])
    query = "select from replicator.parked_table where table_name = %s and error_id = 'target_rules'"
    wait_until(lambda: pair.target.execute(query, [f"public.{table}"]).rowcount == 1, 30, what=f"{table} is parked")


def free(pair: Pair, table: str) -> None:
    """Take away what parked a table."""
    pair.target.execute(sql.SQL("drop rule odd on {}").format(sql.Identifier(table)))
    ask(pair)


def ask(pair: Pair) -> None:
    """Have parked tables tried at once, as a resync does."""
    pair.target.execute("update replicator.parked_table set is_requested = true")


def is_live(pair: Pair, table: str) -> bool:
    query = "select from replicator.stream_table where table_name = %s and not is_stale"
    return pair.target.execute(query, [f"public.{table}"]).rowcount == 1


class Statement(threading.Thread):
    """One text of SQL in a session of its own."""

    def __init__(self, connection: psycopg.Connection[TupleRow], text: str) -> None:
        super().__init__(daemon=True)
        self.connection, self.text = connection, text
        self.start()

    def run(self) -> None:
        with self.connection:
            self.connection.execute(self.text.encode())


@contextmanager
def held_up(pair: Pair, table: str) -> Iterator[None]:
    """Keep the stream's loader from one table, so that what comes after it waits at the source."""
    with pair.target_server.connect(pair.target_db) as holder, holder.transaction():
        holder.execute(sql.SQL("lock table {} in share row exclusive mode").format(sql.Identifier(table)))
        yield


KEY = {"keyed": "primary key", "keyless": ""}


def create(pair: Pair, kind: str) -> None:
    pair.source.execute(
        sql.SQL(
            "create table t (id int {0}, n int); alter table t replica identity full;"
            "create table u (id int primary key, pad text); insert into t select g, 0 from generate_series(1, 20) g"
        ).format(sql.SQL(KEY[kind]))
    )
    pair.publish()
    pair.write_config(listen={"batch_bytes": "1MB"})
    catch_up(pair)


@pytest.mark.parametrize("kind", KEY)
@pytest.mark.hazard("S25")
def test_a_commit_that_was_sent_before_it_is_visible_is_read_all_the_same(own_pair: OwnPair, kind: str) -> None:
    """The stream has passed it over, so the snapshot is taken anew until it sees it."""
    _, pair = own_pair()
    create(pair, kind)
    with listening(pair):
        park(pair, "t")
        set_synchronous(pair, "nobody")
        late = Statement(pair.source_server.connect(pair.source_db), "insert into t values (100, 1)")
        wait_until(lambda: pair.source.execute(WAITING).fetchone() == (1,), what="the commit waits")
        wait_until_passed(pair)
        free(pair, "t")
        query = "select from replicator.copying_table"
        wait_until(lambda: pair.target.execute(query).rowcount == 1, 30, what="the listener begins to read")
        threading.Event().wait(2.0)
        assert not is_live(pair, "t")
        set_synchronous(pair, "")
        late.join(30)
        wait_until(lambda: is_live(pair, "t"), 30, what="the table is live")
        wait_until_equal(pair, "t")


def wait_until_passed(pair: Pair) -> None:
    """Wait until the stream has passed all that is in the source's WAL now."""
    row = pair.source.execute("select pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    query = "select position >= %s::pg_lsn from replicator.listener"
    wait_until(lambda: pair.target.execute(query, [row[0]]).fetchone() == (True,), 30, what="the stream has passed it")


@pytest.mark.parametrize("kind", KEY)
@pytest.mark.hazard("S25")
def test_what_commits_while_a_table_is_loaded_is_kept(own_pair: OwnPair, kind: str) -> None:
    _, pair = own_pair()
    create(pair, kind)
    with listening(pair):
        park(pair, "t")
        with held_up(pair, "t"):
            pair.source.execute("insert into t values (99, 9)")
            free_without_lock(pair)
            wait_for_load(pair)
            pair.source.execute(
                "insert into t values (100, 1); update t set n = 7 where id = 3; delete from t where id = 4;"
                "update t set id = 105 where id = 5"
            )
            wait_until_passed(pair)
        wait_until(lambda: is_live(pair, "t"), 30, what="the table is live")
        wait_until_equal(pair, "t")


def free_without_lock(pair: Pair) -> None:
    """Take away a rule of a table that is locked: the catalog's row alone."""
    pair.target.execute("set allow_system_table_mods = on; delete from pg_rewrite where rulename = 'odd'")
    pair.target.execute("update pg_class set relhasrules = false where relname = 't'")
    ask(pair)


def wait_for_load(pair: Pair) -> None:
    query = "select from pg_locks where not granted and relation = 't'::regclass"
    wait_until(lambda: pair.target.execute(query).rowcount >= 1, 30, what="the load waits for the table")


@pytest.mark.hazard("S25")
def test_a_window_opens_between_transactions(own_pair: OwnPair) -> None:
    """The first half of a transaction has gone by, its commit is sent before it is visible."""
    _, pair = own_pair()
    create(pair, "keyed")
    with listening(pair):
        park(pair, "t")
        set_synchronous(pair, "nobody")
        with held_up(pair, "u"):
            late = Statement(
                pair.source_server.connect(pair.source_db),
                "begin; insert into t values (100, 1);"
                "insert into u select g, repeat('x', 400) from generate_series(1, 20000) g; commit",
            )
            wait_until(lambda: pair.source.execute(WAITING).fetchone() == (1,), 30, what="the commit waits")
            query = "select from pg_locks where not granted and relation = 'u'::regclass"
            wait_until(lambda: pair.target.execute(query).rowcount >= 1, 30, what="the first half is in hand")
            free(pair, "t")
            threading.Event().wait(2.0)
        wait_until_passed(pair)
        threading.Event().wait(1.0)
        set_synchronous(pair, "")
        late.join(30)
        wait_until(lambda: is_live(pair, "t"), 30, what="the table is live")
        wait_until_equal(pair, "t", "u")


@pytest.mark.parametrize("kind", KEY)
@pytest.mark.hazard("S25")
def test_a_table_joins_once_the_stream_has_passed_what_its_snapshot_saw(own_pair: OwnPair, kind: str) -> None:
    """Images would come twice, and rows would go back in time."""
    _, pair = own_pair()
    create(pair, kind)
    with listening(pair) as running:
        park(pair, "t")
        row = pair.source.execute("select active_pid from pg_replication_slots where active_pid is not null").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)
        try:
            pair.source.execute(
                "insert into t values (100, 1); update t set n = 1; update t set n = 2; insert into t values (101, 1)"
            )
            free(pair, "t")
            wait_until(lambda: "table_synced" in running.stderr, 30, what="the table is loaded")
            threading.Event().wait(2.0)
            assert not is_live(pair, "t")
        finally:
            os.kill(row[0], signal.SIGCONT)
        wait_until(lambda: is_live(pair, "t"), 30, what="the table is live")
        wait_until_equal(pair, "t", "u")


@pytest.mark.hazard("S25", "S33")
def test_tables_of_every_kind_join_again_and_again_under_load(own_pair: OwnPair) -> None:
    """Commits are visible late; keys change, rows come and go, values stay unsent, partitions trade rows."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")  # to run it again
    chance = random.Random(seed)
    _, pair = own_pair(commit_delay="20000", commit_siblings="0", fsync="on")
    pair.source.execute(
        "create table t (id int primary key, n int, big text); alter table t alter big set storage external;"
        "create table k (a int, b text); alter table k replica identity full;"
        "create table p (id int, part int, n int, primary key (id, part)) partition by list (part);"
        "create table p0 partition of p for values in (0); create table p1 partition of p for values in (1);"
        "insert into t select g, 0, repeat('x', 3000) from generate_series(1, 300) g;"
        "insert into k select g % 7, 'k' from generate_series(1, 300) g;"
        "insert into p select g, g % 2, 0 from generate_series(1, 300) g"
    )
    pair.publish()
    pair.write_config()
    tables = ("t", "k", "p")
    stopped = threading.Event()

    def write(number: int) -> None:
        own = random.Random(seed + number)
        with pair.source_server.connect(pair.source_db) as session:
            while not stopped.is_set():
                # Writers collide; whoever is refused does something else.
                with suppress(psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                    session.execute(sql.SQL(_change(own, number)))
                session.execute("rollback")

    with listening(pair) as running:
        writers = [threading.Thread(target=write, args=[n], daemon=True) for n in range(3)]
        for writer in writers:
            writer.start()
        for _ in range(int(6 * SCALE)):
            name = chance.choice(tables)
            pair.target.execute(
                "update replicator.stream_table set is_stale = true where table_name = %s", [f"public.{name}"]
            )
            before = running.stderr.count("table_joined")
            wait_until(lambda: running.stderr.count("table_joined") > before, 60, what=f"{name} joins, seed {seed}")  # noqa: B023
        stopped.set()
        for writer in writers:
            writer.join(30)
        wait_until_equal(pair, *tables)
        assert running.stderr.count("stream_started") == 1, running


def _change(chance: random.Random, number: int) -> str:
    row = chance.randrange(1, 300) * 3 + number
    return chance.choice(
        [
            f"insert into t values ({row}, 1, repeat('y', 3000)) on conflict (id) do update set n = t.n + 1",
            f"update t set n = n + 1 where id = {row}",
            f"delete from t where id = {row}",
            f"begin; delete from t where id = {row + 10000}; update t set id = {row + 10000} where id = {row}; commit",
            f"insert into k values ({row % 7}, 'k{row % 3}')",
            "delete from k where ctid = (select ctid from k order by random() limit 1)",
            f"begin; savepoint s; insert into k values (1, ''); rollback to s; delete from k where a = {row % 7}; end",
            f"update p set part = 1 - part, n = n + 1 where id = {row}",
            f"insert into p values ({row}, {row % 2}, 0) on conflict do nothing",
        ]
    )
