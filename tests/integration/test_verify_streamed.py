"""`verify` and `resync` beside a live listener: no false difference, no row that goes back in time."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeCluster, MakePair
from tests.pair import Pair
from tests.streaming import catch_up, listening, set_synchronous, wait_until_equal
from tests.wait import wait_until

ROWS = 2000
TABLE = f"""
create table t (id int primary key, v int not null, big text);
alter table t alter big set storage external;
insert into t select n, 0, repeat('x', 3000) from generate_series(1, {ROWS}) n;
"""


class Writers:
    """Sessions that change rows of the source for as long as a block lasts."""

    def __init__(self, pair: Pair, count: int, seed: int) -> None:
        self.pair, self.stop = pair, threading.Event()
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self._write, args=(random.Random(seed + n),)) for n in range(count)]

    def __enter__(self) -> Writers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.errors, self.errors

    def _write(self, dice: random.Random) -> None:
        try:
            with self.pair.source_server.connect(self.pair.source_db) as connection:
                while not self.stop.is_set():
                    key = dice.randint(1, ROWS)
                    what = dice.random()
                    if what < 0.7:
                        connection.execute("update t set v = v + 1 where id = %s", [key])
                    elif what < 0.85:
                        connection.execute("delete from t where id = %s", [key])
                    else:
                        connection.execute(
                            "insert into t values (%s, 1, 'new') on conflict (id) do update set v = t.v + 1", [key]
                        )
        except psycopg.Error as error:
            self.errors.append(error)


def prepare(pair: Pair, **sections: Any) -> None:
    pair.source.execute(TABLE)
    pair.publish()
    pair.write_config(tables=["public.t"], **sections)
    catch_up(pair)


def test_verify_beside_a_busy_listener_finds_the_damage_and_nothing_else(streamed: Pair) -> None:
    pair = streamed
    prepare(pair)
    # Rows that nobody else changes, so that what is found can be foretold.
    pair.source.execute(f"insert into t select n, 0, 'still' from generate_series({ROWS + 1}, {ROWS + 50}) n")
    with listening(pair):
        wait_until_equal(pair, "public.t")
        with Writers(pair, 2, seed=7):
            for _ in range(3):
                document = pair.run("verify", "--json", check=None).json()
                (found,) = document["tables"]
                assert (found["missing"], found["extra"], found["different"]) == ([], [], []), found
            pair.target.execute(f"update public.t set v = -1 where id = {ROWS + 1}")
            pair.target.execute(f"delete from public.t where id = {ROWS + 2}")
            pair.target.execute("insert into public.t values (-5, 0, '')")
            (found,) = pair.run("verify", "--repair", "--json", check=None).json()["tables"]
            assert found["missing"] == [[str(ROWS + 2)]]
            assert found["extra"] == [["-5"]]
            assert found["different"] == [{"key": [str(ROWS + 1)], "columns": ["v"]}]
            assert found["repaired"] == 3
        wait_until_equal(pair, "public.t")
        assert pair.json("verify")["tables"][0]["equal"] is True
    (row,) = pair.control_rows(path="repair")
    assert (row["status"], row["rows_inserted"], row["rows_updated"], row["rows_deleted"]) == ("success", 1, 1, 1)


def test_a_row_that_changes_to_and_fro_is_no_difference(streamed: Pair) -> None:
    """Its content may be the same at both looks, and the other one in the target: only its version tells."""
    pair = streamed
    prepare(pair)
    stop = threading.Event()

    def toggle() -> None:
        with pair.source_server.connect(pair.source_db) as session:
            while not stop.wait(0.001):
                # Each row by itself: of so many some are caught at any two moments.
                session.execute("update t set v = 1 - v where id <= 40 and random() < 0.5")

    with listening(pair):
        wait_until_equal(pair, "public.t")
        toggling = threading.Thread(target=toggle)
        toggling.start()
        try:
            for _ in range(3):
                (found,) = pair.json("verify", check=None)["tables"]
                assert found["different"] == [], found
        finally:
            stop.set()
            toggling.join()
        wait_until_equal(pair, "public.t")
    assert pair.json("verify", check=None)["tables"][0]["different"] == []


def test_a_repair_beside_the_listener_takes_no_row_back_in_time(streamed: Pair) -> None:
    """Every row of the target is damaged while every row of the source is counted up: no reader sees a count fall."""
    pair = streamed
    prepare(pair)
    stop = threading.Event()
    seen: dict[int, int] = {}
    fallen: list[tuple[int, int, int]] = []

    def read() -> None:
        with pair.target_server.connect(pair.target_db) as connection:
            while not stop.is_set():
                for key, value in connection.execute("select id, v from public.t where v > 0 and big <> 'new'"):
                    if value < seen.get(key, 0):
                        fallen.append((key, seen[key], value))
                    seen[key] = value

    with listening(pair):
        pair.source.execute("update t set v = 1")
        wait_until_equal(pair, "public.t")
        reader = threading.Thread(target=read)
        reader.start()
        try:
            pair.target.execute("update public.t set v = -1 where id % 20 = 0")
            with Writers(pair, 1, seed=11):
                pair.run("verify", "--repair", "--json", check=None)
                pair.run("resync", "--yes", "--json", check=None)
        finally:
            stop.set()
            reader.join()
        wait_until_equal(pair, "public.t")
    # A delete and an insert begin a row's count anew.
    assert [entry for entry in fallen if entry[2] > 1] == []


def refuse_beside(pair: Pair, policy: str) -> None:
    """Copy a table of 4,000 rows whose target refuses large numbers, under an `on_row_error`."""
    pair.source.execute(
        "create table t (id int primary key, n int); insert into t select n, n % 100 from generate_series(1, 4000) n"
    )
    pair.publish()
    pair.write_config(tables=["public.t"], defaults={"on_row_error": policy})
    catch_up(pair)
    pair.target.execute("alter table t add constraint small check (n < 100)")


def test_a_repair_that_the_target_refuses_beside_the_listener_names_the_target(streamed: Pair) -> None:
    pair = streamed
    refuse_beside(pair, "stop")
    with listening(pair):
        pair.target.execute("update t set n = -1 where id = 5; alter table t add check (id <> 5 or n < 0)")
        finished = pair.run("verify", "--repair", check=None)
    assert "target_refused_row" in finished.stderr
    assert "source_refused_row" not in finished.stderr


def wait_until_equal_but(pair: Pair, key: int) -> None:
    """Wait until all rows but one are equal."""

    def are_equal() -> bool:
        pair.assert_equal("public.t", where=f"id <> {key}", target_where=f"id <> {key}")
        return True

    wait_until(are_equal, what="all other rows are equal")


@pytest.mark.parametrize("command", [("verify", "--repair"), ("resync", "--yes")], ids=["verify", "resync"])
def test_rows_in_quarantine_keep_no_other_row_from_being_mended_beside_the_listener(
    streamed: Pair, command: tuple[str, str]
) -> None:
    """T9: one waits already, one is found to be refused by the repair itself; what was not mended is told."""
    pair = streamed
    refuse_beside(pair, "quarantine")
    with listening(pair):
        pair.source.execute("update t set n = 1000 where id = 1; update t set n = 50 where id = 2")
        wait_until(lambda: pair.json("quarantine", "list")["rows"], what="the row is put aside")
        wait_until_equal_but(pair, 1)
        pair.target.execute("update t set n = -1 where id % 20 = 0; delete from t where id = 7")
        pair.target.execute("delete from t where id = 2; alter table t add check (id <> 2 or n <> 50)")
        finished = pair.run(*command, "--json", check=None)
        rows = pair.json("quarantine", "list")["rows"]
        assert sorted(row["key"] for row in rows) == [["1"], ["2"]]
        pair.assert_equal("public.t", where="id not in (1, 2)", target_where="id not in (1, 2)")
        assert pair.target.execute("select n from t where id in (1, 2)").fetchall() == [(1,)]
    document = json.loads(finished.stdout)
    if command[0] == "verify":
        (table,) = document["tables"]
        assert (finished.exit_code, table["equal"], table["repaired"]) == (7, False, 201)
    else:
        (row,) = document["tables"]
        assert (row["status"], row["rows_quarantined"], row["rows_updated"]) == ("success", 2, 200)


@pytest.mark.parametrize("policy", ["stop", "quarantine"])
def test_rows_that_traded_unique_values_are_mended_beside_the_listener(streamed: Pair, policy: str) -> None:
    """W31: none of them goes into quarantine for the other's sake."""
    pair = streamed
    pair.source.execute(
        "create table t (id int primary key, code text, place int4range);"
        "insert into t select n, 'c' || n, int4range(n * 10, n * 10 + 9) from generate_series(1, 9) n"
    )
    pair.publish()
    pair.write_config(tables=["public.t"], defaults={"on_row_error": policy})
    catch_up(pair)
    pair.target.execute("alter table t add unique (code), add exclude using gist (place with &&)")
    with listening(pair):
        pair.target.execute(
            "update t set code = 'aside' where id = 1; update t set code = 'c1' where id = 2;"
            "update t set code = 'c2' where id = 1; delete from t where id = 3; insert into t values (77, 'c3');"
            "update t set place = 'empty' where id = 5; update t set place = '[50,59)' where id = 6;"
            "update t set place = '[60,69)' where id = 5"
        )
        (table,) = pair.json("verify", "--repair")["tables"]
        assert (table["equal"], table["repaired"]) == (True, 6)
        pair.assert_equal("public.t")
        assert pair.json("quarantine", "list")["rows"] == []


def test_resync_beside_the_listener_writes_only_what_differs(streamed: Pair) -> None:
    pair = streamed
    prepare(pair)
    with listening(pair):
        wait_until_equal(pair, "public.t")
        pair.target.execute("update public.t set big = '' where id <= 10; delete from public.t where id = 11")
        done = pair.json("resync", "--yes")
        assert done["status"] == "success"
        (row,) = done["tables"]
        assert (row["path"], row["load_type"], row["rows_updated"], row["rows_inserted"]) == ("resync", "full", 10, 1)
        wait_until_equal(pair, "public.t")
        pair.source.execute("update t set v = v + 1 where id = 1")
        wait_until_equal(pair, "public.t")


@pytest.mark.hazard("S25", "B24")
def test_a_commit_that_is_delivered_before_it_is_visible_is_no_difference(
    make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """Such a row is newer in the target than in any snapshot of the source; a repair must not put the old one back."""
    cluster = make_cluster(settings={"wal_level": "logical"})
    pair = make_pair(source_server=cluster, listens=True)
    pair.constants["replicator.proof.streamed_look._OPEN_LIMIT_S"] = 2.0
    prepare(pair)
    with listening(pair):
        wait_until_equal(pair, "public.t")
        session = pair.source_server.connect(pair.source_db)
        set_synchronous(pair, "nobody")
        writer = threading.Thread(target=session.execute, args=["update t set v = 7 where id = 3"], daemon=True)
        writer.start()
        try:
            wait_until(lambda: pair.target.execute("select from t where v = 7").rowcount == 1, what="it is delivered")
            assert pair.source.execute("select from t where v = 7").rowcount == 0
            for args in ([], ["--repair"]):
                (found,) = pair.json("verify", *args)["tables"]
                assert not found["equal"]
                assert (found["missing"], found["extra"], found["different"]) == ([], [], [])
                assert found["undecided"] == [["3"]]
            assert pair.target.execute("select from t where v = 7").rowcount == 1
        finally:
            set_synchronous(pair, "")
            writer.join()
            session.close()
        assert pair.json("verify")["tables"][0]["equal"] is True


def test_a_sync_beside_the_listener_verifies_its_tables_and_mends_them(streamed: Pair) -> None:
    pair = streamed
    prepare(pair)
    pair.run("sync")
    with listening(pair):
        wait_until_equal(pair, "public.t")
        pair.target.execute("delete from public.t where id = 5")
        rows = pair.json("sync")["tables"]
        assert [(row["path"], row["status"], row["rows_inserted"]) for row in rows] == [
            ("sync", "skipped", 0),
            ("repair", "success", 1),
        ]
        pair.assert_equal("public.t")
        assert [row["path"] for row in pair.json("sync")["tables"]] == ["sync"]
        assert pair.json("status")["tables"][0]["verified_through"] is not None


@pytest.mark.parametrize("command", ["sync", "verify --repair", "resync --yes"])
def test_what_was_brought_while_no_listener_ran_is_not_brought_again(streamed: Pair, command: str) -> None:
    """A transaction that was open at the read is brought by the stream, all others were seen by the read."""
    pair = streamed
    pair.source.execute(
        "create table t (id int primary key, v int not null); insert into t select n, 0 from generate_series(1, 50) n;"
        "create table bag (a int); alter table bag replica identity full; insert into bag select generate_series(1, 20)"
    )
    pair.publish()
    pair.write_config(tables=["public.t", "public.bag"])
    catch_up(pair)
    with pair.source_server.connect(pair.source_db) as late, late.transaction():
        late.execute("update t set v = v + 1 where id = 2; insert into bag values (777); delete from bag where a = 5")
        for _ in range(40):
            pair.source.execute(
                "update t set v = v + 1 where id = 1; insert into bag values (1); delete from t where id = 9"
            )
            pair.source.execute("insert into t values (9, 5)")
        pair.source.execute("delete from bag where a = 3")
        pair.run(*command.split())
        assert pair.target.execute("select v from t where id = 1").fetchone() == (40,)
        assert pair.target.execute("select count(*) from bag where a = 1").fetchone() == (41,)
    pair.source.execute("update t set v = v + 1 where id = 1; insert into bag values (1)")
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        with pair.target_server.connect(pair.target_db) as connection:
            while not stop.is_set():
                seen.extend(row[0] for row in connection.execute("select v from t where id = 1").fetchall())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        catch_up(pair)
    finally:
        stop.set()
        reader.join()
    assert seen == sorted(seen)
    assert set(seen) <= {40, 41}
    for table in ("public.t", "public.bag"):
        pair.assert_equal(table)


def test_a_transaction_that_stays_open_hides_no_damage(streamed: Pair) -> None:
    """One that wrote elsewhere does not count; of a table that it wrote to, rows that it did not touch are decided."""
    pair = streamed
    pair.constants["replicator.proof.streamed_look._OPEN_LIMIT_S"] = 2.0
    pair.source.execute("create table other (a int)")
    prepare(pair)
    with listening(pair), pair.source_server.connect(pair.source_db) as late:
        wait_until_equal(pair, "public.t")
        pair.target.execute("update public.t set v = -1 where id = 5; delete from public.t where id = 6")
        late.execute("begin")
        for touches in ("insert into other values (1)", "update t set v = 1 where id = 7"):
            late.execute(touches.encode())
            pair.target.execute("insert into public.t values (-9, 0, '') on conflict do nothing")
            (found,) = pair.json("verify", check=7)["tables"]
            assert (found["missing"], [row["key"] for row in found["different"]]) == ([["6"]], [["5"]])
            assert found["extra"] + found["undecided"] == [["-9"]]
        (mended,) = pair.json("verify", "--repair")["tables"]
        assert (mended["repaired"], mended["undecided"]) == (2, [["-9"]])
        late.execute("commit")
        (mended,) = pair.json("verify", "--repair")["tables"]
        assert mended["repaired"] == 1
        wait_until_equal(pair, "public.t")


def test_what_no_commit_has_flushed_is_not_waited_for_on_an_idle_source(
    make_cluster: MakeCluster, make_pair: MakePair
) -> None:
    """What an open transaction wrote; the background writer would flush it within 15 seconds, here it does not."""
    cluster = make_cluster()
    pair = make_pair(source_server=cluster, listens=True)
    pair.source.execute("create table other (a int)")
    prepare(pair, listen={"heartbeat": "1h"})
    ((pid,),) = cluster.execute("select pid from pg_stat_activity where backend_type = 'background writer'")
    with listening(pair), cluster.connect(pair.source_db) as late:
        wait_until_equal(pair, "public.t")
        pair.target.execute("delete from public.t where id = 5")
        os.kill(pid, signal.SIGSTOP)
        try:
            late.execute("begin; insert into other values (1)")
            (found,) = pair.run("verify", "--json", check=7, timeout_s=30).json()["tables"]
        finally:
            os.kill(pid, signal.SIGCONT)
    assert found["missing"] == [["5"]]


def test_a_table_without_a_key_is_mended_by_the_listener_that_keeps_it(streamed: Pair) -> None:
    pair = streamed
    pair.source.execute(
        "create table bag (a int); alter table bag replica identity full; insert into bag select generate_series(1, 50)"
    )
    pair.publish()
    pair.write_config(tables=["public.bag"])
    # It does so when it looks at definitions.
    pair.constants["replicator.stream.loop._DEFINITIONS_S"] = 1.0
    with listening(pair):
        wait_until_equal(pair, "public.bag")
        pair.target.execute("insert into bag values (777); delete from bag where a = 3")
        (found,) = pair.json("verify", check=7)["tables"]
        assert (found["missing_rows"], found["extra_rows"]) == (1, 1)
        pair.json("verify", "--repair")
        pair.assert_equal("public.bag")
        pair.target.execute("delete from bag")
        pair.json("resync", "--yes")
        pair.assert_equal("public.bag")
        pair.source.execute("insert into bag values (1), (1)")
        wait_until_equal(pair, "public.bag")


@pytest.mark.parametrize("command", ["verify", "sync"])
def test_a_command_that_waits_for_a_frozen_listener_ends_when_it_is_asked_to(streamed: Pair, command: str) -> None:
    pair = streamed
    prepare(pair)
    with listening(pair) as listener:
        wait_until_equal(pair, "public.t")
        listener.send(signal.SIGSTOP)
        try:
            pair.source.execute("update t set v = v + 1 where id = 1")
            running = pair.popen(command)
            wait_until(lambda: holds_snapshot(pair), what="it waits")
            running.send(signal.SIGTERM)
            finished = running.wait(10)
        finally:
            listener.send(signal.SIGCONT)
        assert finished.exit_code in (0, 1, 75), finished


def holds_snapshot(pair: Pair) -> bool:
    """Say whether a session of the tool holds a snapshot of the source, and waits for something else."""
    query = "select count(*) from pg_stat_activity where usename = %s and state = 'idle in transaction'"
    (count,) = pair.source.execute(query, [pair.reader]).fetchone() or (0,)
    return bool(count)


# ------------------------------------------------------------------------- tables without a key, always busy

BAG = """
create table bag (a int, b text, c numeric(10, 2) default 1.5, d jsonb, e timestamptz default now());
alter table bag replica identity full;
insert into bag select n % 50, chr(97 + n % 3), n, jsonb_build_object('n', n), now() from generate_series(1, 3000) n;
insert into bag select 7, 'b' from generate_series(1, 5);
"""
BUSY = (
    "insert into bag (a, b) values (%(n)s % 60, chr(97 + %(n)s % 3))",
    "update bag set c = c + 1 where a = %(n)s % 40 + 10 and b = 'a'",
    "delete from bag where a = %(n)s % 40 + 10 and b = 'c' and c < 1000",
    "insert into bag values (null, null, null, null, null), (null, null, null, null, null)",
)


class BusyBag:
    """A session that changes a table without a key every few milliseconds for as long as a block lasts."""

    def __init__(self, pair: Pair, *statements: str) -> None:
        self.pair, self.statements, self.stop = pair, statements, threading.Event()
        self.changes = 0
        self.thread = threading.Thread(target=self._write)

    def __enter__(self) -> BusyBag:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _write(self) -> None:
        with self.pair.source_server.connect(self.pair.source_db) as connection:
            while not self.stop.wait(0.003):
                statement = self.statements[self.changes % len(self.statements)]
                connection.execute(statement.replace("%(n)s", str(self.changes)).encode())
                self.changes += 1


def begin_bag(pair: Pair, ddl: str = BAG, **table: Any) -> None:
    pair.source.execute(ddl)
    pair.publish()
    pair.write_config(tables=[{"name": "public.bag", **table}])
    catch_up(pair)


@pytest.mark.versions
@pytest.mark.parametrize("statements", [BUSY[:1], BUSY], ids=["inserts", "all kinds"])
def test_rows_lost_from_a_table_without_a_key_are_found_and_brought_back_while_it_never_rests(
    streamed: Pair, statements: tuple[str, ...]
) -> None:
    """S42: both sides are compared as of one position; what is on its way is neither missing nor too much."""
    pair = streamed
    begin_bag(pair)
    with listening(pair), BusyBag(pair, *statements):
        found = pair.json("verify")["tables"][0]
        assert (found["equal"], found["missing_rows"], found["extra_rows"]) == (True, 0, 0), found
        lost = pair.target.execute("delete from bag where b = 'b' and a = 7 and d is not null").rowcount
        assert lost
        pair.target.execute("insert into bag (a, b) values (-1, 'mine'), (-1, 'mine')")
        found = pair.json("verify", check=7)["tables"][0]
        assert (found["equal"], found["is_undecided"]) == (False, False)
        assert (found["missing_rows"], found["extra_rows"]) == (lost, 2)
        mended = pair.json("verify", "--repair")["tables"][0]
        assert (mended["equal"], mended["repaired"]) == (True, lost + 2)
        assert pair.json("verify")["tables"][0]["equal"]
    catch_up(pair)
    pair.assert_equal("public.bag")
    (row,) = pair.control_rows("public.bag", path="repair")
    assert (row["status"], row["rows_inserted"], row["rows_deleted"]) == ("success", lost, 2)


def test_a_partitioned_table_without_a_key_under_rules_is_compared_exactly(streamed: Pair) -> None:
    """S42: rows of several partitions, masked and renamed, with a column left out."""
    pair = streamed
    begin_bag(
        pair,
        "create table bag (a int, b text, c int default 1, secret text default 's') partition by list (b);"
        "create table bag_a partition of bag for values in ('a');"
        "create table bag_rest partition of bag default;"
        "alter table bag replica identity full; alter table bag_a replica identity full;"
        "alter table bag_rest replica identity full;"
        "insert into bag select n % 20, chr(97 + n % 3) from generate_series(1, 500) n",
        exclude=["secret"],
        rename={"a": "number"},
        mask={"c": "null"},
    )
    with listening(pair), BusyBag(pair, "insert into bag (a, b) values (%(n)s % 20, chr(97 + %(n)s % 3))"):
        assert pair.json("verify")["tables"][0]["equal"]
        lost = pair.target.execute("delete from bag where number = 3 and b = 'a'").rowcount
        found = pair.json("verify", check=7)["tables"][0]
        assert found["missing_rows"] + found["extra_rows"] == lost
        assert pair.json("verify", "--repair")["tables"][0]["repaired"] == lost
        assert pair.json("verify")["tables"][0]["equal"]


def test_a_table_without_a_key_that_keeps_deleted_rows_lacks_none(streamed: Pair) -> None:
    """S42: with deletes = "ignore" what is gone from the source is not too much, and what is lost is missing."""
    pair = streamed
    begin_bag(pair, deletes="ignore")
    with listening(pair), BusyBag(pair, *BUSY):
        assert pair.json("verify")["tables"][0]["equal"]
        lost = pair.target.execute("delete from bag where b = 'b' and a = 7 and d is not null").rowcount
        assert pair.json("verify", check=7)["tables"][0]["missing_rows"] == lost
        assert pair.json("verify", "--repair")["tables"][0]["repaired"] == lost
        assert pair.json("verify")["tables"][0]["equal"]


def test_a_busy_table_without_a_key_that_cannot_be_decided_is_no_success(streamed: Pair) -> None:
    """S42: a transaction that stays open keeps a new slot from beginning; the exit code says that nothing is known."""
    pair = streamed
    pair.constants |= {
        "replicator.proof.exact_look._SLOT_LIMIT_S": 1.0,
        "replicator.proof.streamed_look._OPEN_LIMIT_S": 1.0,
    }
    begin_bag(pair)
    with listening(pair), pair.source_server.connect(pair.source_db) as late, BusyBag(pair, BUSY[0]):
        late.execute("begin; insert into bag (a) values (-5)")
        pair.target.execute("delete from bag where b = 'b' and a = 7")
        found = pair.json("verify", check=6)["tables"][0]
        assert (found["equal"], found["is_undecided"]) == (False, True)
        late.execute("commit")
        assert pair.json("verify", check=7)["tables"][0]["missing_rows"]
