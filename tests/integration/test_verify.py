"""`replicator verify`: names exactly the rows that differ, mends exactly those, on tables of every kind."""

from __future__ import annotations

import pytest

from tests.conftest import MakePair
from tests.pair import Pair

DAMAGED = """
create table t (
    id int primary key, note text, code char(4), amount numeric, ratio float8, doc json, place point, tags text[],
    updated_at timestamptz default now()
);
insert into t (id, note, code, amount, ratio, doc, place, tags)
select n, 'note ' || n, 'c', 1.0, 0, '{"a": 1, "b": 2}', point(n, 1), array['x', null]
from generate_series(1, 2000) n;
"""
DAMAGE = {
    "11": ("update public.t set note = '' where id = 11", ["note"]),
    "12": ("update public.t set note = null where id = 12", ["note"]),
    "13": ("update public.t set ratio = '-0' where id = 13", ["ratio"]),
    "14": ("update public.t set note = note || ' ' where id = 14", ["note"]),
    "15": ("update public.t set amount = 1.00 where id = 15", ["amount"]),
    "16": ("""update public.t set doc = '{"b": 2, "a": 1}' where id = 16""", ["doc"]),
    "17": ("update public.t set tags = array['x', 'null'], code = 'd' where id = 17", ["code", "tags"]),
    "18": ("update public.t set place = point(18, 1.0000001) where id = 18", ["place"]),
}


def damage(pair: Pair) -> None:
    for statement, _ in DAMAGE.values():
        pair.target.execute(statement)
    pair.target.execute("delete from public.t where id in (21, 22)")
    pair.target.execute("insert into public.t (id) values (-1), (9001), (9002)")
    pair.target.execute("update public.t set id = 9003 where id = 23")


def read_versions(pair: Pair, table: str = "public.t") -> set[tuple[str, str]]:
    return {(row[0], row[1]) for row in pair.target.execute(f"select id::text, xmin::text from {table}").fetchall()}


@pytest.mark.hazard("W30")
@pytest.mark.versions
def test_verify_names_exactly_the_damaged_rows_and_repair_mends_exactly_those(pair: Pair) -> None:
    pair.source.execute(DAMAGED)
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    assert pair.json("verify")["tables"][0]["equal"] is True
    damage(pair)
    before = read_versions(pair)

    (found,) = pair.json("verify", check=7)["tables"]
    assert not found["equal"]
    assert (found["rows_source"], found["rows_target"]) == (2000, 2001)
    assert sorted(found["missing"]) == [["21"], ["22"], ["23"]]
    assert sorted(found["extra"]) == [["-1"], ["9001"], ["9002"], ["9003"]]
    assert {row["key"][0]: sorted(row["columns"]) for row in found["different"]} == {
        key: columns for key, (_, columns) in DAMAGE.items()
    }
    assert found["undecided"] == []
    assert found["repaired"] == 0

    (mended,) = pair.json("verify", "--repair")["tables"]
    assert mended["equal"] is True
    assert mended["repaired"] == 3 + 4 + len(DAMAGE)
    pair.assert_equal("public.t")
    rewritten = {key for key, _ in read_versions(pair) - before}
    assert rewritten == {"21", "22", "23", *DAMAGE}
    assert pair.json("verify")["tables"][0]["equal"] is True
    (row,) = pair.control_rows(path="repair")
    assert (row["status"], row["rows_inserted"], row["rows_updated"], row["rows_deleted"]) == ("success", 3, 8, 4)
    third = pair.json("sync")["tables"][0]
    assert (third["rows_inserted"], third["rows_updated"], third["rows_deleted"]) == (0, 0, 0)


def test_verify_prints_values_only_where_they_are_asked_for(pair: Pair) -> None:
    pair.source.execute(
        "create table t (id int primary key, secret text); insert into t values (1, 'sesame'), (2, 'b')"
    )
    pair.grant()
    pair.write_config(tables=["public.t"], logs={"level": "debug"})
    pair.run("sync")
    pair.target.execute("update public.t set secret = 'barley' where id = 1")
    plain = pair.run("verify", check=7)
    assert "sesame" not in plain.stdout + plain.stderr
    assert "barley" not in plain.stdout + plain.stderr
    assert "secret" in plain.stdout
    shown = pair.run("verify", "--show-values", check=7)
    assert "'sesame'" in shown.stdout
    assert "'barley'" in shown.stdout
    assert "sesame" not in shown.stderr
    (row,) = pair.json("verify", "--show-values", check=7)["tables"][0]["different"]
    assert row["values"] == {"secret": {"source": "sesame", "target": "barley"}}


def test_verify_compares_what_the_rules_would_produce(pair: Pair) -> None:
    pair.source.execute(
        "create table t (id int primary key, name text, phone text, score float8, kind text, region int);"
        "insert into t select n, 'n' || n, 'p' || n, case when n % 5 = 0 then 'NaN'::float8 else n end,"
        " case when n % 7 = 0 then 'NaT' else 'k' end, n % 3 from generate_series(1, 300) n"
    )
    pair.grant()
    (pair.dir / "mask.key").write_text("k" * 44)
    pair.write_config(
        tables=[
            {
                "name": "public.t", "target": "raw.copy", "where": "region <> 2", "exclude": ["phone"],
                "rename": {"kind": "sort"}, "mask": {"name": "hash"}, "nan_to_null": True, "null_values": ["NaT"],
            }
        ],
        privacy={"mask_key_file": "mask.key"},
    )  # fmt: skip
    pair.run("sync")
    assert pair.json("verify")["tables"][0]["equal"] is True
    pair.target.execute("update raw.copy set sort = 'NaT' where id = 7; delete from raw.copy where id = 3")
    (found,) = pair.json("verify", "public.t", check=7)["tables"]
    assert found["missing"] == [["3"]]
    assert found["different"] == [{"key": ["7"], "columns": ["sort"]}]
    assert pair.json("verify", "--repair")["tables"][0]["repaired"] == 2


def test_verify_of_a_view_a_table_without_key_and_one_with_soft_deletes(pair: Pair) -> None:
    pair.source.execute(
        "create table t (id int primary key, v text); insert into t select n, 'v' || n from generate_series(1, 500) n;"
        "create view w as select id, v || '!' as v from t;"
        "create table bag (a int, b text); insert into bag select n % 10, 'b' from generate_series(1, 100) n;"
        "create table soft (id int primary key, v text); insert into soft select n, 's' from generate_series(1, 50) n"
    )
    pair.grant()
    pair.write_config(
        tables=[{"name": "public.w", "key": ["id"]}, "public.bag", {"name": "public.soft", "deletes": "soft"}]
    )
    pair.run("sync")
    pair.source.execute("delete from soft where id = 1")
    pair.run("sync")
    assert all(table["equal"] for table in pair.json("verify")["tables"])
    pair.target.execute(
        "update public.w set v = 'x' where id = 4; insert into public.bag values (1, 'b'), (77, null);"
        "delete from public.bag where ctid in (select min(ctid) from public.bag where a = 5);"
        "update public.soft set _deleted_at = now() where id = 2;"
        "update public.soft set _deleted_at = null where id = 1"
    )
    found = {table["table"]: table for table in pair.json("verify", check=7)["tables"]}
    assert found["public.w"]["different"] == [{"key": ["4"], "columns": ["v"]}]
    assert (found["public.bag"]["missing_rows"], found["public.bag"]["extra_rows"]) == (1, 2)
    assert found["public.soft"]["missing"] == [["2"]]
    assert found["public.soft"]["extra"] == [["1"]]
    mended = pair.json("verify", "--repair")["tables"]
    assert all(table["equal"] for table in mended)
    assert all(table["equal"] for table in pair.json("verify")["tables"])
    pair.assert_equal("public.bag")


def test_a_key_of_several_odd_types_is_named_in_key_order(pair: Pair) -> None:
    pair.source.execute(
        'create table "Odd %s" (b text, "a ""q" numeric, c timestamptz, v int, primary key ("a ""q", c, b));'
        "insert into \"Odd %s\" select E'x\\n' || n, n + 0.50, '2024-01-01 00:00+00', n from generate_series(1, 20) n"
    )
    pair.grant()
    pair.write_config(tables=['public."Odd %s"'])
    pair.run("sync")
    pair.target.execute('update public."Odd %s" set v = -1 where v = 7'.replace("%", "%"))
    pair.target.execute('delete from public."Odd %s" where v = 8'.replace("%", "%"))
    (found,) = pair.json("verify", check=7)["tables"]
    assert found["different"] == [{"key": ["7.50", "2024-01-01 00:00:00+00", "x\n7"], "columns": ["v"]}]
    assert found["missing"] == [["8.50", "2024-01-01 00:00:00+00", "x\n8"]]
    pair.json("verify", "--repair")
    pair.assert_equal('public."Odd %s"')


@pytest.mark.versions
def test_hashes_agree_between_encodings(make_pair: MakePair) -> None:
    pair = make_pair(source_encoding="LATIN1", target_encoding="UTF8")
    pair.source.execute(
        "create table t (id int primary key, v text, k char(3)); insert into t values (1, 'é', 'ä'), (2, 'ñ', 'b')"
    )
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    assert pair.json("verify")["tables"][0]["equal"] is True
    pair.target.execute("update public.t set v = 'e' where id = 1")
    assert pair.json("verify", check=7)["tables"][0]["different"] == [{"key": ["1"], "columns": ["v"]}]


def test_verify_says_what_keeps_it_from_comparing(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, v text); insert into t values (1, 'a')")
    pair.grant()
    pair.write_config(tables=["public.t"])
    early = pair.run("verify", check=1)
    assert "not_synced" in early.stderr
    pair.run("sync")
    pair.source.execute("alter table t add column extra int")
    pair.grant()
    late = pair.run("verify", check=8)
    assert "replicator sync" in late.stderr
    assert pair.run("verify", "public.nope", check=2).stderr


def test_verify_after_listen_leaves_out_what_the_listener_cannot_copy(streamed: Pair) -> None:
    pair = streamed
    pair.source.execute("create table t (id int primary key); insert into t values (1)")
    pair.source.execute("create unlogged table u (id int primary key); insert into u values (1)")
    pair.source.execute("create view v as select * from t")
    pair.publish("t")
    pair.write_config(tables=["public.t", "public.u", {"name": "public.v", "key": ["id"]}])
    pair.run("listen", "--until-caught-up")
    finished = pair.run("verify", "--json")
    assert [one["table"] for one in finished.json()["tables"]] == ["public.t"]
    left_out = [line for line in finished.stderr.splitlines() if "table_left_out" in line]
    assert len(left_out) == 2
    assert "replicator sync public.u" in left_out[0]
    assert "not_synced" in pair.run("verify", "public.u", check=1).stderr
    pair.run("sync", "public.u", "public.v")
    assert all(one["equal"] for one in pair.json("verify")["tables"])
    assert len(pair.json("verify")["tables"]) == 3


def test_a_repair_that_would_delete_too_much_stops(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key); insert into t select generate_series(1, 10)")
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.target.execute("insert into public.t select generate_series(100, 5100)")
    stopped = pair.run("verify", "--repair", check=7)
    assert "max_delete_fraction" in stopped.stderr
    assert pair.target.execute("select count(*) from public.t").fetchone() == (5011,)


def test_a_share_of_every_table_is_proved_each_night_and_each_range_in_turn(pair: Pair) -> None:
    pair.source.execute(
        "create table t (id int primary key, v text); insert into t select n, 'v' from generate_series(1, 3000) n"
    )
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "verify_share": 0.25}])
    pair.run("sync")
    pair.target.execute("update public.t set v = 'damaged' where id % 10 = 0")
    through = "select verified_through from replicator.vw_table_freshness"
    found = 0
    for _ in range(4):
        assert pair.target.execute(through).fetchone() == (None,)
        found += pair.json("sync")["tables"][0]["rows_missed_before"]
    assert found == 300
    pair.assert_equal("public.t")
    (first,) = pair.target.execute(through).fetchone() or ()
    assert first is not None
    assert pair.json("status")["tables"][0]["verified_through"] is not None
    pair.run("sync")
    (second,) = pair.target.execute(through).fetchone() or ()
    assert second > first


def test_verify_and_resync_hold_their_rate_and_say_how_to_be_called(pair: Pair) -> None:
    pair.source.execute(
        "create table t (id int primary key, v text); insert into t select n, 'v' from generate_series(1, 9) n"
    )
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    assert pair.json("verify", "--max-rate", "0.5", "--jobs", "2")["tables"][0]["equal"] is True
    refused = pair.run("resync", check=2)
    assert "--yes" in refused.stderr
    pair.target.execute("delete from public.t where id < 4; update public.t set v = 'x' where id = 9")
    done = pair.json("resync", "--yes")
    assert done["status"] == "success"
    (row,) = done["tables"]
    assert (row["path"], row["load_type"], row["rows_inserted"], row["rows_updated"]) == ("resync", "full", 3, 1)
    pair.assert_equal("public.t")


def test_a_row_of_the_target_beside_one_of_the_same_key_is_counted(pair: Pair) -> None:
    pair.source.execute("create table t (id int primary key, note text); insert into t values (1, 'a'), (2, 'b')")
    pair.grant()
    pair.write_config(tables=["public.t"])
    pair.run("sync")
    pair.as_writer.execute("create table child () inherits (t); insert into child values (2, 'b')")
    (verdict,) = pair.run("verify", "--json", check=7).json()["tables"]
    assert (verdict["equal"], verdict["rows_target"], verdict["extra_rows"]) == (False, 3, 1)
    assert (verdict["missing"], verdict["extra"], verdict["different"]) == ([], [], [])
    pair.as_writer.execute("drop table child")
    pair.run("verify", check=0)
