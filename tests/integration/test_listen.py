"""The listener, through the command line: what was committed on the source is in the target, exactly once."""

from __future__ import annotations

import json
import signal

import pytest
from psycopg import sql

from tests.conftest import MakePair
from tests.pair import Pair
from tests.streaming import catch_up, listening, wait_until_equal
from tests.wait import wait_until


def test_a_first_run_copies_and_later_ones_bring_every_change(streamed: Pair) -> None:
    streamed.source.execute(
        "create table t (id int primary key, note text);"
        "insert into t select n, 'row ' || n from generate_series(1, 1000) n"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.source.execute(
        "insert into t values (1001, E'tab\\t, back\\\\slash, line\\nend'), (1002, null), (1003, '');"
        "update t set note = 'changed' where id < 10; delete from t where id between 20 and 29;"
        "update t set id = id + 5000 where id between 30 and 39"
    )
    catch_up(streamed)
    streamed.assert_equal("public.t")
    row = streamed.control_rows("public.t", path="listen", load_type="stream")[-1]
    assert (row["rows_extracted"], row["status"], row["strategy"]) == (32, "success", "stream")


def test_what_an_update_left_unsent_is_kept(streamed: Pair) -> None:
    """S1: a large value that an update does not touch is not sent; it is neither NULL nor lost."""
    streamed.source.execute(
        "create table t (id int primary key, n int, big text);"
        "alter table t alter big set storage external;"
        "insert into t select n, 0, repeat('x' || n, 5000) from generate_series(1, 9) n"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.target.execute("alter table t add column local text default 'mine'")
    streamed.source.execute(
        "update t set n = 1 where id = 1;"
        "begin; insert into t values (20, 0, repeat('y', 9000)); update t set n = 2 where id = 20; commit;"
        "update t set id = 102 where id = 2;"
        "begin; update t set id = 103 where id = 3; update t set id = 203, n = 3 where id = 103; commit;"
        "begin; update t set big = repeat('z', 9000) where id = 4; update t set id = 104 where id = 4; commit;"
        "begin; update t set id = 0 where id = 5; update t set id = 5 where id = 6;"
        " update t set id = 6 where id = 0; commit"
    )
    catch_up(streamed)
    streamed.assert_equal("public.t")
    assert streamed.target.execute("select count(*) from t where local = 'mine'").fetchone() == (10,)


def test_a_row_that_the_target_lost_is_read_again(streamed: Pair) -> None:
    """S1, T1: an update of a row that was deleted here by hand brings the whole row back."""
    streamed.source.execute(
        "create table t (id int primary key, n int, big text); alter table t alter big set storage external;"
        "insert into t select n, 0, repeat('x' || n, 5000) from generate_series(1, 3) n"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.target.execute("delete from t where id in (1, 2)")
    streamed.source.execute("update t set n = 1 where id = 1; update t set id = 22 where id = 2")
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_changes_of_one_key_fold_to_the_last(streamed: Pair) -> None:
    """S2, S3: insert, update, delete, insert of one key; chains and swaps of keys, in one transaction and in many."""
    streamed.source.execute("create table t (id int primary key, note text); insert into t values (1, 'a'), (2, 'b')")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    changes = (
        "insert into t values (3, 'c'); update t set note = 'cc' where id = 3; delete from t where id = 3;"
        "insert into t values (3, 'again'); update t set id = 10 where id = 1; update t set id = 11 where id = 10;"
        "update t set id = 0 where id = 2; update t set id = 2 where id = 11; update t set id = 11 where id = 0;"
    )
    streamed.source.execute("begin;" + changes + "commit")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    for change in ("delete from t; insert into t values (1, 'a'), (2, 'b');" + changes).split(";")[:-1]:
        streamed.source.execute(change)
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_a_batch_of_thousands_is_looked_up_by_key_and_the_rest_of_a_large_table_is_not_read(streamed: Pair) -> None:
    """With PostgreSQL's own costs each such batch would read the whole table, to hash it or in the order of the key."""
    streamed.source.execute(
        "create table t (id int primary key, n int, wide text, big text);"
        "alter table t alter wide set storage plain, alter big set storage external;"
        "insert into t select n, 0, repeat('x', 1000), case when n % 50 = 0 then repeat('y', 3000) end"
        " from generate_series(1, 100000) n"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.target.execute("vacuum analyze t")
    before = count_rows_read(streamed, "t")
    streamed.source.execute("delete from t where id % 33 = 1; update t set n = 1 where id % 50 = 0")
    catch_up(streamed)
    read = count_rows_read(streamed, "t") - before
    streamed.assert_equal("public.t")
    assert read < 20_000, "3,030 rows went, and 2,000 were updated with a value unsent"


def count_rows_read(pair: Pair, table: str) -> int:
    """Return how many rows of a table of the target were read by now, by sessions that have ended."""
    query = "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relname = %s"
    ((read,),) = pair.target.execute(query, [table]).fetchall()
    return int(read)


def test_tables_without_a_key_keep_every_copy(streamed: Pair) -> None:
    """S4: REPLICA IDENTITY FULL with NULLs and duplicates; exactly one of equal rows goes."""
    streamed.source.execute(
        "create table t (a int, b text, c numeric); alter table t replica identity full;"
        "insert into t values (1, 'x', 1.0), (1, 'x', 1.0), (1, 'x', 1.00), (null, null, null), (null, null, null);"
        "create table empty (); alter table empty replica identity full"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t", "public.empty"])
    catch_up(streamed)
    streamed.source.execute(
        "delete from t where ctid in (select ctid from t where a = 1 and c::text = '1.0' limit 1);"
        "delete from t where ctid in (select ctid from t where a is null limit 1);"
        "insert into t values (7, null, 'NaN'), (7, null, 'NaN'); update t set b = 'y' where a = 7;"
        "insert into empty default values; insert into empty default values"
    )
    catch_up(streamed)
    streamed.assert_equal("public.t")
    assert streamed.target.execute("select count(*) from empty").fetchone() == (2,)


def test_a_truncate_stands_in_its_place(streamed: Pair) -> None:
    """S5: with inserts before and after, of several tables at once, and in a savepoint that was rolled back."""
    streamed.source.execute(
        "create table t (id int primary key, note text); insert into t select n, 'x' from generate_series(1, 9) n;"
        "create table child (id int primary key, t int references t); insert into child values (1, 1)"
    )
    streamed.publish()
    streamed.write_config(tables=["public.*"])
    catch_up(streamed)
    streamed.source.execute(
        "begin; insert into t values (100, 'before'); savepoint s; truncate t cascade; rollback to s;"
        "truncate t restart identity cascade; insert into t values (1, 'after'), (2, 'after'); commit;"
        "update t set note = 'later' where id = 2; insert into child values (5, 1)"
    )
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.assert_equal("public.child")


def test_rules_hold_for_the_stream_as_for_the_sync(streamed: Pair) -> None:
    streamed.source.execute(
        "create table t (id int primary key, account int, name text, phone text, score float8, note text, big text);"
        "alter table t alter big set storage external;"
        "insert into t select n, n % 2, 'name ' || n, 'phone ' || n, 'NaN', 'NaT', repeat('b' || n, 3000)"
        " from generate_series(1, 20) n"
    )
    streamed.publish()
    (streamed.dir / "mask.key").write_text("secret of the masks")
    rules = {
        "name": "public.t", "exclude": ["phone"], "rename": {"note": "remark"}, "nan_to_null": True,
        "null_values": ["NaT"], "mask": {"name": "hash"},
    }  # fmt: skip
    for extra in ({}, {"where": "account = 1", "mask": {"name": "hash", "score": "score * 2"}}):
        streamed.write_config(tables=[rules | extra], privacy={"mask_key_file": str(streamed.dir / "mask.key")})
        catch_up(streamed)
        streamed.source.execute(
            "update t set score = 1.5, note = 'x' where id < 5; update t set account = 1 - account where id in (7, 8);"
            "update t set name = null where id = 9; update t set id = id + 1000 where id in (10, 11);"
            "delete from t where id in (12, 13);"
            "insert into t values (50 + (select count(*) from t), 1, 'n', 'p', 'NaN', 'NaT', '')"
        )
        catch_up(streamed)
        (before,) = streamed.target.execute("select jsonb_agg(to_jsonb(t) order by id) from t").fetchall()
        streamed.run("slot", "drop", "--yes")
        streamed.run("sync", "--full")
        (after,) = streamed.target.execute("select jsonb_agg(to_jsonb(t) order by id) from t").fetchall()
        assert before == after
        assert before[0]


@pytest.mark.parametrize(
    "ddl",
    [
        "alter table t add column more text default 'filled'",
        "alter table t drop column note",
        "alter table t rename column note to remark",
        "alter table t alter n type bigint",
        "alter table t add column filled int; update t set filled = id",
        "begin; alter table t add column more int; savepoint s; alter table t drop column note; rollback to s; commit",
    ],
)
def test_a_changed_table_is_followed(streamed: Pair, ddl: str) -> None:
    """S7, S8, S9: columns added, dropped, renamed, widened between two changes."""
    streamed.source.execute(
        "create table t (id int primary key, n int, note text);"
        "insert into t select n, n, 'x' from generate_series(1, 50) n;"
        "create table u (id int primary key)"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t", "public.u"])
    catch_up(streamed)
    streamed.source.execute("insert into t values (51, 51, 'before')")
    streamed.source.execute(ddl)
    streamed.source.execute(
        "insert into t (id, n) values (52, 52); update t set n = 0 where id = 1; insert into u values (1)"
    )
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.assert_equal("public.u")


def test_a_new_enum_label_is_followed(streamed: Pair) -> None:
    """S7: the label is new to the target when its first row comes."""
    streamed.source.execute("create type mood as enum ('ok'); create table t (id int primary key, m mood)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    with streamed.popen("listen") as listening:
        wait_until(lambda: "stream_started" in listening.stderr, what="the stream")
        streamed.source.execute("alter type mood add value 'great'")
        streamed.source.execute("insert into t values (1, 'great')")
        wait_until(lambda: streamed.target.execute("select m::text from t").fetchall() == [("great",)], what="the row")
        listening.send(signal.SIGTERM)
        listening.wait(check=0)


def test_partitions_come_under_their_root(streamed: Pair) -> None:
    """S6: rows that move between partitions, a partition attached with rows, detached, truncated."""
    streamed.source.execute(
        "create table t (id int, day date, note text, primary key (id, day)) partition by range (day);"
        "create table t1 partition of t for values from ('2026-01-01') to ('2026-02-01');"
        "create table t2 partition of t for values from ('2026-02-01') to ('2026-03-01');"
        "insert into t select n, '2026-01-10', 'x' from generate_series(1, 20) n;"
        "create table t3 (like t including all);"
        "insert into t3 select n, '2026-03-05', 'y' from generate_series(1, 5) n"
    )
    streamed.publish("public.t")
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.source.execute(
        "update t set day = '2026-02-03' where id < 5; insert into t values (99, '2026-02-09', 'z')"
    )
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.source.execute("alter table t attach partition t3 for values from ('2026-03-01') to ('2026-04-01')")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.source.execute("truncate t1")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.source.execute("alter table t detach partition t3")
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_a_table_added_to_the_configuration_joins(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key); insert into t values (1)")
    streamed.source.execute(
        "create table u (a int); alter table u replica identity full; insert into u values (1), (1)"
    )
    streamed.publish("public.t", "public.u")
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.source.execute("insert into t values (2); insert into u values (2)")
    streamed.write_config(tables=["public.t", "public.u"])
    catch_up(streamed)
    streamed.source.execute("insert into t values (3); insert into u values (3)")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.assert_equal("public.u")


def test_a_lost_slot_is_refused_and_its_gap_repaired(streamed: Pair) -> None:
    """S19: changes that no slot kept are pulled by the age of rows, deletes too."""
    streamed.source.execute(
        "create table t (id int primary key, n int); insert into t select n, n from generate_series(1, 100) n"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.source.execute("select pg_drop_replication_slot(%s)", [streamed.slot])
    streamed.source.execute(
        "update t set n = 0 where id < 10; delete from t where id = 50; insert into t values (101, 1)"
    )
    assert "--repair-gap" in catch_up(streamed, check=1)
    assert streamed.target.execute("select count(*) from t where n = 0").fetchone() == (0,)
    catch_up(streamed, "--repair-gap")
    streamed.assert_equal("public.t")
    row = streamed.control_rows("public.t", path="repair")[-1]
    assert (row["load_type"], row["rows_extracted"]) == ("incremental", 10)


def test_a_slot_that_was_advanced_behind_our_back_is_a_gap(streamed: Pair) -> None:
    """S19."""
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.source.execute("insert into t values (1)")
    advance = sql.SQL("select pg_replication_slot_advance({}, pg_current_wal_lsn())").format(streamed.slot)
    streamed.source.execute(advance)
    assert "slot_ahead" in catch_up(streamed, check=1)
    catch_up(streamed, "--repair-gap")
    streamed.assert_equal("public.t")


def test_a_listener_that_waits_for_a_slot_ends_well_when_it_is_asked_to(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    with streamed.source_server.connect(streamed.source_db) as open_one, open_one.transaction():
        open_one.execute("insert into t values (1)")
        for args, exit_code in ((("listen",), 0), (("listen", "--until-caught-up"), 1)):
            with streamed.popen(*args) as waiting:
                wait_until(lambda it=waiting: "slot_awaited" in it.stderr, what="the wait for the slot")  # type: ignore[misc]
                waiting.send(signal.SIGTERM)
                finished = waiting.wait(20, check=exit_code)
            assert "source_error" not in finished.stderr
            assert ("error [interrupted]" in finished.stderr) is bool(exit_code)
    assert streamed.control_rows(status="failed", error_code="source_error") == []
    catch_up(streamed)
    streamed.assert_equal("public.t")


@pytest.mark.hazard("F1", "S5")
def test_what_a_killed_first_copy_had_brought_is_no_loss_when_the_source_is_emptied(streamed: Pair) -> None:
    """Nothing of a dead attempt is left, and nobody has to say that it may go."""
    streamed.source.execute(
        "create table t (id int primary key); create table u (id int primary key);"
        "insert into t select generate_series(1, 3000); insert into u values (1)"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t", "public.u"])
    streamed.as_writer.execute("create table u (id int primary key)")
    with streamed.target_server.connect(streamed.target_db) as holder:
        holder.execute("begin; lock table u")
        with streamed.popen("listen") as killed:
            wait_until(lambda: "table_synced" in killed.stderr, what="one of the tables")
            killed.send(signal.SIGKILL)
            killed.wait(20)
        streamed.source.execute("truncate t; insert into u values (2)")
    catch_up(streamed)
    streamed.assert_equal("public.t")
    streamed.assert_equal("public.u")


@pytest.mark.hazard("F1")
def test_a_listener_waits_for_the_slot_that_a_killed_one_was_still_making(streamed: Pair) -> None:
    """Its walsender waits for the open transaction, and notices only then that nobody is there."""
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    with streamed.source_server.connect(streamed.source_db) as open_one:
        open_one.execute("begin; insert into t values (1)")
        with streamed.popen("listen") as killed:
            wait_until(lambda: "slot_awaited" in killed.stderr, what="the wait for the slot")
            wait_until(lambda: streamed.source.execute(IN_THE_MAKING).rowcount == 1, what="the slot is made")
            killed.send(signal.SIGKILL)
            killed.wait(20)
        with streamed.popen("listen", "--until-caught-up") as running:
            wait_until(lambda: "slot_held" in running.stderr or not running.running, what="the slot is waited for")
            open_one.execute("commit")
            running.wait(40, check=0)
    streamed.assert_equal("public.t")


IN_THE_MAKING = "select from pg_replication_slots where confirmed_flush_lsn is null and database = current_database()"


def test_a_sync_leaves_live_tables_to_the_listener_and_takes_the_others(streamed: Pair) -> None:
    streamed.source.execute(
        "create table t (id int primary key); insert into t values (1); create view v as select id from t"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t", {"name": "public.v", "key": ["id"], "target": "public.w"}])
    with streamed.popen("listen") as listening:
        wait_until(lambda: "stream_started" in listening.stderr, what="the stream")
        streamed.run("sync")
        assert [row["status"] for row in streamed.control_rows(path="sync")] == ["skipped", "success"]
        streamed.source.execute("insert into t values (2)")
        wait_until(lambda: streamed.target.execute("select from t").rowcount == 2, what="the row")
        status = streamed.json("status")
        assert [table["strategy"] for table in status["tables"]] == ["stream", "full"]
        assert status["slot"]["active"] is True
        assert streamed.json("health")["healthy"] is True
        listening.send(signal.SIGTERM)
        listening.wait(check=0)
    assert [one["id"] for one in streamed.json("health", check=1)["reasons"]] == ["listener_down"]
    streamed.source.execute("insert into t values (3); delete from t where id = 1")
    streamed.run("sync")
    streamed.assert_equal("public.t")
    streamed.source.execute("update t set id = 4 where id = 3")
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_a_table_without_a_key_is_synced_while_no_listener_runs_and_nothing_comes_twice(streamed: Pair) -> None:
    streamed.source.execute(
        "create table t (a int); alter table t replica identity full; insert into t values (1), (1)"
    )
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.source.execute("insert into t values (2)")
    streamed.run("sync")
    assert streamed.target.execute("select from t").rowcount == 3
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_slots_are_listed_and_dropped_with_consent(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    (slot,) = streamed.json("slot", "list")["slots"]
    assert (slot["name"], slot["active"], slot["wal_status"]) == (streamed.slot, False, "reserved")
    streamed.run("slot", "drop", check=2)
    streamed.run("slot", "drop", "--yes")
    assert streamed.json("slot", "list")["slots"] == []
    assert streamed.json("status")["slot"] is None
    assert "no slot" in streamed.run("slot", "drop", "--yes").stdout
    assert streamed.json("slot", "drop", "--yes")["dropped"] is None
    streamed.source.execute("insert into t values (1)")
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_a_slot_drop_that_has_to_leave_the_publication_records_itself(streamed: Pair) -> None:
    """S19: only an owner may drop a publication; the slot's end is our own doing all the same."""
    streamed.source.execute("create table t (id int primary key); insert into t values (1)")
    streamed.publish()
    streamed.source.execute("comment on publication replicator_default is 'made by replicator'")
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    dropped = streamed.run("slot", "drop", "--yes")
    assert f"dropped slot {streamed.slot}" in dropped.stdout
    assert 'as its owner: drop publication "replicator_default"' in dropped.stderr
    assert streamed.json("slot", "drop", "--yes")["publication_dropped"] is False
    assert streamed.json("health")["reasons"] == []
    streamed.source.execute("insert into t values (2)")
    catch_up(streamed)
    streamed.assert_equal("public.t")


def test_a_busy_stream_logs_one_summary_a_minute_and_every_batch_at_debug(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    for level, batches in (("info", 0), ("debug", 5)):
        streamed.write_config(tables=["public.t"], logs={"level": level})
        with listening(streamed) as running:
            for number in range(5):
                streamed.source.execute("insert into t select coalesce(max(id), 0) + 1 from t")
                wait_until_equal(streamed, "public.t")
                assert running.running, number
        events = [json.loads(line) for line in running.stderr.splitlines() if line.startswith("{")]
        told = [event for event in events if event["event"] == "position_confirmed" and "transactions" in event]
        assert len(told) >= batches if batches else not told
        (summary,) = [event for event in events if event["event"] == "stream_advanced"]
        assert (summary["rows_extracted"], summary["transactions"], summary["level"]) == (5, 5, "info")
        assert summary["lag_seconds"] >= 0
        assert summary["lsn"]


def test_the_summary_of_a_minute_is_told_while_the_stream_goes_on(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key)")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    streamed.constants["replicator.stream.summary.SUMMARY_S"] = 0.1
    streamed.constants["replicator.stream.loop._IDLE_SAVE_S"] = 0.2
    with listening(streamed) as running:
        streamed.source.execute("insert into t values (1)")
        wait_until(lambda: "stream_advanced" in running.stderr, 40, what="the minute is told")


def test_an_owner_needs_no_help_and_a_reader_gets_the_sql(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key); create table nothing (a int)")
    streamed.grant()
    streamed.write_config(tables=["public.t"])
    assert 'create publication "replicator_default" for TABLE "public"."t"' in catch_up(streamed, check=4)
    streamed.source.execute(
        sql.SQL("grant create on database {} to {}; alter table t owner to {}").format(
            sql.Identifier(streamed.source_db), sql.Identifier(streamed.reader), sql.Identifier(streamed.reader)
        )
    )
    catch_up(streamed)
    assert streamed.json("slot", "drop", "--yes")["publication_dropped"] is True
    streamed.write_config(tables=["public.nothing"])
    stderr = catch_up(streamed, check=4)
    assert 'alter table "public"."nothing" replica identity full' in stderr


@pytest.mark.parametrize("replica", [True, False])
def test_a_refused_row_waits_in_quarantine_and_its_later_changes_behind_it(make_pair: MakePair, replica: bool) -> None:
    """T9: the others land; the key is told by `quarantine` alone; a retry brings what the source has by then."""
    pair = make_pair(listens=True, replica=replica)
    pair.source.execute(
        "create table t (id int primary key, n int); insert into t select n, n from generate_series(1, 9) n"
    )
    pair.publish()
    pair.write_config(tables=["public.t"], defaults={"on_row_error": "quarantine"})
    catch_up(pair)
    pair.target.execute("alter table t add constraint small check (n < 1000)")
    pair.source.execute(
        "begin; insert into t select n, n from generate_series(10, 60) n; update t set n = 4242 where id in (3, 33);"
        "delete from t where id = 5; commit"
    )
    catch_up(pair)
    rows = pair.json("quarantine", "list")["rows"]
    assert sorted(row["key"] for row in rows) == [["3"], ["33"]]
    assert {row["error_code"] for row in rows} == {"23514"}
    assert pair.target.execute("select count(*) from t").fetchone() == (58,)
    assert pair.control_rows("public.t", path="listen")[-1]["rows_quarantined"] == 2
    pair.source.execute("update t set n = 7 where id = 3")
    catch_up(pair)
    assert pair.target.execute("select n from t where id = 3").fetchone() == (3,)
    assert pair.json("quarantine", "retry", check=1)["landed"] == [
        row["quarantine_id"] for row in rows if row["key"] == ["3"]
    ]
    assert pair.target.execute("select n from t where id = 3").fetchone() == (7,)
    (left,) = pair.json("quarantine", "list")["rows"]
    pair.run("quarantine", "discard", str(left["quarantine_id"]), check=2)
    pair.run("quarantine", "discard", str(left["quarantine_id"]), "--yes")
    pair.source.execute("update t set n = 8 where id = 33")
    catch_up(pair)
    pair.assert_equal("public.t")


def test_a_refused_row_stops_the_stream_and_leaves_the_position(streamed: Pair) -> None:
    """T9, O1: nothing of the transaction lands; the same failure again is one row with more attempts."""
    streamed.source.execute("create table t (id int primary key, n int)")
    streamed.publish()
    streamed.write_config(tables=["public.t"], listen={"on_table_error": "stop"})
    catch_up(streamed)
    streamed.target.execute("alter table t add constraint small check (n < 1000)")
    streamed.source.execute("begin; insert into t values (1, 1); insert into t values (2, 424242); commit")
    for _ in range(2):
        stderr = catch_up(streamed, check=1)
        assert "small" in stderr
        assert "424242" not in stderr
    assert streamed.target.execute("select count(*) from t").fetchone() == (0,)
    (row,) = streamed.control_rows("public.t", path="listen", status="failed")
    assert (row["attempts"], row["error_code"]) == (2, "23514")
    streamed.target.execute("alter table t drop constraint small")
    catch_up(streamed)
    streamed.assert_equal("public.t")


@pytest.mark.parametrize("replica", [True, False])
def test_a_refused_row_that_was_corrected_in_the_source_lands(make_pair: MakePair, replica: bool) -> None:
    """T9: the WAL keeps the refused versions; corrected, deleted and moved rows are taken as they are by now."""
    pair = make_pair(listens=True, replica=replica)
    pair.source.execute(
        "create table t (id int primary key, n int, big text); alter table t alter big set storage external;"
        "insert into t select n, n, repeat('b', 4000) from generate_series(1, 9) n;"
        "create table bare (n int); alter table bare replica identity full"
    )
    pair.publish()
    pair.write_config(tables=["public.t", "public.bare"], listen={"on_table_error": "stop"})
    catch_up(pair)
    pair.target.execute("alter table t add constraint small check (n < 1000); alter table t add local int default 7")
    pair.source.execute(
        "begin; insert into t select n, n, 'b' from generate_series(10, 60) n; delete from t where id = 1;"
        "insert into bare values (1), (1); update t set n = 4242 where id in (3, 33, 5); commit;"
        "update t set id = 100 where id = 5; truncate bare; insert into bare values (2)"
    )
    catch_up(pair, check=1)
    pair.source.execute("update t set n = 3 where id = 3; delete from t where id = 33")
    catch_up(pair, check=1)
    pair.source.execute("update t set n = 0 where id = 100")
    catch_up(pair)
    pair.assert_equal("public.t")
    pair.assert_equal("public.bare")
    assert pair.target.execute("select count(*) from t where local = 7 and id < 10").fetchone() == (7,)
    pair.source.execute("update t set n = n + 1")
    assert "refused_rows_corrected" not in catch_up(pair)
    pair.assert_equal("public.t")


def test_a_corrected_row_inside_a_transaction_that_is_too_large_to_hold_lands(streamed: Pair) -> None:
    """T9, S14: the refused row lies in a piece of a transaction whose earlier pieces are in the target, uncommitted."""
    streamed.source.execute("create table t (id int primary key, n int, note text)")
    streamed.publish()
    streamed.write_config(tables=["public.t"], listen={"batch_bytes": "1MB", "on_table_error": "stop"})
    catch_up(streamed)
    streamed.target.execute("alter table t add constraint small check (n < 100000)")
    streamed.source.execute(
        "insert into t select n, case n when 20000 then 424242 else n end, repeat('x', 50)"
        " from generate_series(1, 30000) n"
    )
    catch_up(streamed, check=1)
    assert streamed.target.execute("select count(*) from t").fetchone() == (0,)
    streamed.source.execute("update t set n = 1 where id = 20000")
    assert "refused_rows_corrected" in catch_up(streamed)
    streamed.assert_equal("public.t")
