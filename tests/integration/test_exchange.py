"""`resync` of large tables: many sessions read ranges of pages in one snapshot, one transaction writes what differs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from psycopg import sql

from replicator.apply.control import Control
from replicator.apply.shadow import Filled, Filling, drop_shadows
from replicator.db import closing, connect
from replicator.page_range import PAGE_BYTES
from replicator.proof.resync import resync
from replicator.sync.exchange import ExchangeRound
from replicator.sync.run import RunResult
from tests.chaos.moment import SLOWLY, read_settings, slowed, terminate_sessions, wait_for_copy
from tests.conftest import MakePair
from tests.pair import Pair
from tests.wait import wait_until

SHADOWS = "select relname from pg_class where relname like 'shadow%' and relkind = 'r'"
Ranges = Callable[..., RunResult]


@pytest.fixture
def in_ranges(monkeypatch: pytest.MonkeyPatch) -> Ranges:
    """Return a resync in this process for which every table is large, and each page a range of its own."""
    monkeypatch.setattr(ExchangeRound, "least_bytes", 1)
    monkeypatch.setattr(ExchangeRound, "range_bytes", PAGE_BYTES)

    def run(pair: Pair, tables: Sequence[str] = (), *, jobs: int = 3, **options: Any) -> RunResult:
        return resync(read_settings(pair), pair.target_dsn, tables=tables, jobs=jobs, **options)

    return run


def list_shadows(pair: Pair) -> list[Any]:
    return pair.target.execute(SHADOWS).fetchall()


def fill(pair: Pair, rows: int = 2000) -> None:
    pair.source.execute(
        "create table t (id int primary key, version int not null default 1, note text);"
        f"insert into t select n, 1, 'note ' || n from generate_series(1, {rows}) n"
    )
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")


def test_ranges_of_a_partitioned_table_bring_the_same_as_one_stream(pair: Pair, in_ranges: Ranges) -> None:
    """Rules, masks, casts and row conditions hold in every range of every partition; the counts are the same too."""
    pair.source.execute(
        "create table t (id int, region text, name text, phone text, amount int, primary key (id, region))"
        " partition by list (region);"
        "create table t_small partition of t for values in ('small');"
        "create table t_large partition of t for values in ('large');"
        "create table t_none partition of t for values in ('none');"
        "insert into t select n, case when n % 9 = 0 then 'small' else 'large' end, 'name ' || n, '+55 ' || n, n"
        " from generate_series(1, 5000) n"
    )
    pair.grant()
    (pair.dir / "mask.key").write_text("secret")
    rules = {
        "name": "public.t",
        "where": "amount % 5 <> 0",
        "exclude": ["phone"],
        "rename": {"name": "who"},
        "mask": {"name": "hash"},
    }
    pair.write_config(tables=[rules], privacy={"mask_key_file": str(pair.dir / "mask.key")})
    pair.as_writer.execute(
        "create table public.t (own text default 'kept', amount bigint, id int, region text, who text,"
        " primary key (id, region))"
    )
    pair.run("sync")
    damage = (
        "update public.t set who = null where id % 100 = 7; delete from public.t where id % 100 = 8;"
        "insert into public.t (id, region, amount) values (-1, 'x', 1)"
    )
    told: list[tuple[int, int]] = []
    counts = []
    for jobs in (1, 3):
        pair.target.execute(damage)
        result = in_ranges(pair, jobs=jobs, progress=lambda _table, done, total: told.append((done, total)))
        assert result.exit_code == 0, result.errors
        counts.append({name: n for name, n in result.rows[0].items() if name.startswith("rows_")})
        masked = "encode(sha256(convert_to('secret' || name, 'UTF8')), 'hex')"
        columns = f"id, region, {masked} as who, amount"
        pair.source.execute(f"create or replace view wanted as select {columns} from t where amount % 5 <> 0")
        pair.assert_equal("public.wanted", "public.t")
    assert counts[0] == counts[1]
    assert counts[1]["rows_inserted"] == counts[0]["rows_inserted"] > 0 < counts[1]["rows_updated"]
    assert pair.target.execute("select count(*) from public.t where own is distinct from 'kept'").fetchone() == (0,)
    assert told[0] == (1, 1)
    # After the one stream: one table and its ranges, of which the last to be told is the table itself.
    parts = told[-1][1]
    assert parts > 10
    assert [done for done, total in told[1:] if total == parts] == [*range(1, parts + 1)]
    assert list_shadows(pair) == []


def test_ranges_that_are_read_while_rows_change_are_of_one_snapshot(pair: Pair, in_ranges: Ranges) -> None:
    fill(pair, rows=1500)
    pair.write_config(tables=[{"name": "public.t", "where": SLOWLY.replace("0.015", "0.001")}])
    stop = threading.Event()

    def write() -> None:
        with pair.source_server.connect(pair.source_db) as session:
            while not stop.wait(0.005):
                session.execute("update t set version = version + 1")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with slowed(pair):
            result = in_ranges(pair)
    finally:
        stop.set()
        writer.join()
    assert result.exit_code == 0, result.errors
    copied = pair.target.execute("select count(*), min(version), max(version) from t").fetchone()
    assert copied is not None
    assert copied[0] == 1500
    assert copied[1] == copied[2]
    assert pair.source.execute("select min(version) > %s from t", [copied[2]]).fetchone() == (True,)


@pytest.mark.parametrize("share", ["few", "all"])
@pytest.mark.parametrize("deletes", ["hard", "soft"])
def test_what_differs_is_written_and_nothing_else(pair: Pair, in_ranges: Ranges, share: str, deletes: str) -> None:
    """W31: also where unique values were swapped; few rows are found first, most are tried all."""
    pair.source.execute("create table t (id int primary key, code int unique, note text)")
    pair.source.execute("insert into t select n, n, 'note' from generate_series(1, 2000) n")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "deletes": deletes}])
    pair.run("sync")
    pair.as_writer.execute("create unique index on public.t (code)")
    pair.source.execute("update t set code = -code where id in (1, 2)")
    pair.source.execute("update t set code = case id when 1 then 2 else 1 end where id in (1, 2)")
    pair.source.execute("delete from t where id > 1990")
    if share == "all":
        pair.source.execute("update t set note = 'other'")
    before: dict[int, str] = dict(pair.target.execute("select id, xmin::text from t").fetchall())
    result = in_ranges(pair)
    assert result.exit_code == 0, result.errors
    pair.assert_equal("public.t", target_where="true" if deletes == "hard" else "_deleted_at is null")
    after: dict[int, str] = dict(pair.target.execute("select id, xmin::text from t where id <= 1990").fetchall())
    rewritten = sum(before[key] != xmin for key, xmin in after.items())
    assert rewritten == (1990 if share == "all" else 2)
    assert result.rows[0]["rows_deleted"] == 10
    assert list_shadows(pair) == []


def test_tables_tied_by_a_foreign_key_are_read_in_ranges_and_written_together(
    make_pair: MakePair, in_ranges: Ranges
) -> None:
    """T4: where the role may not switch foreign keys off."""
    pair = make_pair(replica=False)
    pair.source.execute(
        "create table parent (id int primary key, note text);"
        "create table child (id int primary key, parent int not null references parent);"
        "insert into parent select n, 'note' from generate_series(1, 2000) n;"
        "insert into child select n, n from generate_series(1, 2000) n"
    )
    pair.grant()
    pair.write_config(tables=["public.parent", "public.child"])
    pair.run("sync")
    pair.as_writer.execute("alter table child add foreign key (parent) references parent")
    pair.source.execute(
        "delete from child where id < 10; delete from parent where id < 10;"
        "insert into parent values (3000, 'new'); insert into child values (3000, 3000)"
    )
    result = in_ranges(pair)
    assert result.exit_code == 0, result.errors
    pair.assert_equal("public.parent")
    pair.assert_equal("public.child")
    assert list_shadows(pair) == []


def test_large_tables_share_the_jobs_and_what_has_no_ranges_follows(pair: Pair, in_ranges: Ranges) -> None:
    names = ["a", "b", "c"]
    for name in names:
        pair.source.execute(
            f"create table {name} (id int primary key, note text);"
            f"insert into {name} select n, 'note' from generate_series(1, 3000) n"
        )
    pair.source.execute(
        "create table keyless as select * from a; create view seen as select id, note from b;"
        "create table empty (id int primary key)"
    )
    pair.grant()
    pair.write_config(tables=["public.*", {"name": "public.seen", "key": ["id"]}])
    pair.run("sync")
    for name in [*names, "keyless"]:
        pair.source.execute(f"update {name} set note = 'changed' where id % 7 = 0; delete from {name} where id = 1")
    result = in_ranges(pair, jobs=2)
    assert result.exit_code == 0, result.errors
    assert len(result.rows) == 6
    for name in [*names, "keyless", "seen", "empty"]:
        pair.assert_equal(f"public.{name}")
    assert list_shadows(pair) == []


def test_a_shrunken_source_stops_the_exchange_and_leaves_no_shadow(pair: Pair, in_ranges: Ranges) -> None:
    fill(pair)
    before = pair.target.execute("select array_agg(t order by id)::text from t").fetchone()
    for rows, error in ((100, "too_many_deletes"), (0, "source_empty")):
        pair.source.execute(f"delete from t where id > {rows}")
        result = in_ranges(pair)
        assert (result.exit_code, result.errors["public.t"].id) == (8, error)
        assert pair.target.execute("select array_agg(t order by id)::text from t").fetchone() == before
        assert list_shadows(pair) == []


@pytest.mark.parametrize(
    ("spoil", "id", "sqlstate"),
    [
        ("update t set note = chr(8364) where id = 1500", "target_refused_row", "22P05"),
        ("update t set note = 'refused' where id = 1500", "target_refused_row", "23514"),
        ("update t set version = 7 where id in (1500, 1501)", "key_not_unique", "21000"),
        ("update t set version = 7 where id = 1500", "key_not_unique", None),
        ("update t set version = null where id = 1500", "key_null", "23502"),
    ],
)
def test_a_row_that_the_target_refuses_gives_the_same_error_as_one_stream(
    make_pair: MakePair, in_ranges: Ranges, spoil: str, id: str, sqlstate: str | None
) -> None:
    """A value that COPY cannot write down, a row that a constraint refuses, a key that is no key."""
    pair = make_pair(target_encoding="LATIN1")
    pair.source.execute(
        "create table t (id int, version int, note text);"
        "insert into t select n, n, 'note ' || n from generate_series(1, 2000) n"
    )
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "key": ["version"]}])
    pair.run("sync")
    pair.target.execute("alter table t add constraint honest check (note <> 'refused')")
    pair.source.execute(spoil)
    errors = []
    for jobs in (1, 3):
        result = in_ranges(pair, jobs=jobs)
        error = result.errors["public.t"]
        errors.append((error.id, error.message, error.hint))
        assert (result.exit_code, error.id, error.sqlstate if jobs == 1 else sqlstate) == (1, id, sqlstate)
        assert list_shadows(pair) == []
    assert errors[0] == errors[1]
    pair.assert_equal("public.t", where="id not in (1500, 1501)", target_where="id not in (1500, 1501)")


def test_refused_rows_of_a_shadow_go_into_quarantine_and_the_others_land(pair: Pair, in_ranges: Ranges) -> None:
    fill(pair)
    pair.write_config(tables=[{"name": "public.t", "on_row_error": "quarantine"}])
    pair.target.execute("alter table t add constraint honest check (note <> 'refused')")
    for change in ("update t set version = 2 where id < 9", "update t set version = 3"):
        pair.source.execute(f"{change}; update t set note = 'refused' where id in (7, 1500)")
        result = in_ranges(pair)
        assert result.exit_code == 0, result.errors
        assert result.rows[0]["rows_quarantined"] == 2
        pair.assert_equal("public.t", where="note <> 'refused'", target_where="id not in (7, 1500)")
        assert list_shadows(pair) == []


def test_a_reader_that_loses_its_connection_costs_another_try(pair: Pair, in_ranges: Ranges) -> None:
    fill(pair)
    pair.source.execute("update t set version = 2")
    pair.write_config(tables=[{"name": "public.t", "where": SLOWLY.replace("0.015", "0.002")}])
    results: list[RunResult] = []
    run = threading.Thread(target=lambda: results.append(in_ranges(pair)))
    with slowed(pair):
        run.start()
        wait_for_copy(pair, tables=3)
        assert terminate_sessions(pair.source, pair.reader, "a.query ilike 'copy%%' and state = 'active'")
    run.join()
    assert results[0].exit_code == 0, results[0].errors
    assert results[0].rows[0]["attempts"] == 2
    pair.assert_equal("public.t")
    assert list_shadows(pair) == []


def test_a_shadow_that_lost_rows_is_filled_again(
    pair: Pair, in_ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the target empties an unlogged table: what is not in the shadow would be deleted."""
    fill(pair)
    fill_once = ExchangeRound._fill
    lost: list[int] = []

    def lose_rows(round_: ExchangeRound, filling: Filling) -> Filled:
        filled = fill_once(round_, filling)
        if not lost:
            lost.append(pair.target.execute(sql.SQL("delete from {} where id < 9").format(filling.shadow)).rowcount)
        return filled

    monkeypatch.setattr(ExchangeRound, "_fill", lose_rows)
    result = in_ranges(pair)
    assert result.exit_code == 0, result.errors
    assert lost == [8]
    assert (result.rows[0]["attempts"], result.rows[0]["rows_deleted"]) == (2, 0)
    pair.assert_equal("public.t")


def test_a_resync_that_is_asked_to_stop_ends_in_the_middle_of_its_ranges(pair: Pair, in_ranges: Ranges) -> None:
    fill(pair)
    pair.source.execute("update t set version = 2")
    pair.write_config(tables=[{"name": "public.t", "where": SLOWLY}])
    stop = threading.Event()
    results: list[RunResult] = []
    run = threading.Thread(target=lambda: results.append(in_ranges(pair, stop=stop)))
    with slowed(pair):
        run.start()
        wait_for_copy(pair, tables=3)
        stop.set()
        run.join()
    assert results[0].errors["public.t"].id == "interrupted"
    assert pair.target.execute("select max(version) from t").fetchone() == (1,)
    assert list_shadows(pair) == []


def test_a_shadow_that_is_being_filled_is_read_and_dropped_by_nobody_else(pair: Pair, in_ranges: Ranges) -> None:
    """Default privileges that open the control schema to people do not open the rows of a table that is not theirs."""
    fill(pair)
    for grantee in ("public", "pg_monitor"):
        pair.as_writer.execute(f"alter default privileges in schema replicator grant select on tables to {grantee}")
    pair.write_config(tables=[{"name": "public.t", "where": SLOWLY}])
    stop = threading.Event()
    run = threading.Thread(target=lambda: in_ranges(pair, stop=stop))
    try:
        with slowed(pair):
            run.start()
            wait_until(lambda: list_shadows(pair), what="the shadow is there")
            readers = pair.target.execute(
                "select grantee::regrole::text from pg_class, aclexplode(relacl)"
                " where relname like 'shadow%' and relkind = 'r' and grantee <> relowner"
            ).fetchall()
            with closing(connect(pair.target_dsn, side="target")) as connection:
                drop_shadows(Control(connection, "replicator", "default"))
            kept = list_shadows(pair)
    finally:
        stop.set()
        run.join()
    assert readers == []
    assert len(kept) == 1


WIDE = """
create table t (id int primary key, version int not null, note text) with (fillfactor = 10);
insert into t select n, 1, repeat('n', 700) from generate_series(1, 8400) n;
create table u (id int primary key);
insert into u values (1);
"""
"""A row to a page: 64 MB without the work of them."""


def test_a_killed_exchange_leaves_the_table_as_it_was_and_the_next_command_drops_its_shadow(pair: Pair) -> None:
    """F1, O5; another pipeline of the same target leaves the shadow alone."""
    pair.source.execute(WIDE)
    pair.grant()
    pair.write_config(tables=["public.t", "public.u"])
    pair.run("sync")
    before = pair.target.execute("select count(*), sum(version), min(xmin::text), max(xmin::text) from t").fetchone()
    pair.source.execute("update t set version = 2")
    pair.write_config(tables=[{"name": "public.t", "where": SLOWLY}, "public.u"])
    with slowed(pair), pair.popen("resync", "--yes", "--jobs", "3") as running:
        wait_for_copy(pair, tables=3)
        running.kill()
    now = pair.target.execute("select count(*), sum(version), min(xmin::text), max(xmin::text) from t").fetchone()
    assert now == before
    assert len(list_shadows(pair)) == 1
    pair.write_config(pipeline="other", tables=[{"name": "public.u", "target": "public.v"}])
    pair.run("sync")
    assert len(list_shadows(pair)) == 1
    pair.write_config(tables=["public.t", "public.u"])
    pair.run("sync", "public.u")
    assert list_shadows(pair) == []
    row = pair.json("resync", "public.t", "--yes", "--jobs", "3")["tables"][0]
    assert (row["rows_updated"], row["rows_unchanged"]) == (8400, 0)
    pair.assert_equal("public.t")
    assert list_shadows(pair) == []
