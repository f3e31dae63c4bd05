"""Tables at the limits: as many columns as there can be, none at all, and cells of which few fit into memory."""

from __future__ import annotations

import pytest

from tests.nightly import assert_tables_equal, sync, sync_idly
from tests.pair import Pair
from tests.sample import CELLS


@pytest.mark.hazard("V6")
@pytest.mark.parametrize("strategy", ["xmin", "watermark", "full"])
def test_a_table_of_1600_columns_arrives(pair: Pair, strategy: str) -> None:
    columns = ", ".join(f"c{n} boolean" for n in range(1598))
    pair.source.execute(f"create table t (id int primary key, at timestamptz not null default now(), {columns})")
    pair.source.execute("insert into t (id, c0, c1597) select n, n % 2 = 0, true from generate_series(1, 50) as n")
    pair.grant()
    pair.write_config(tables=[{"name": "public.t", "strategy": strategy, "watermark": "at"}])
    sync(pair)
    pair.assert_equal("public.t")
    pair.source.execute("""
        update t set c1597 = not c1597, at = now() where id < 10;
        update t set c800 = true where id = 20;
        delete from t where id = 30;
        insert into t (id, c5) values (100, true);
    """)
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.hazard("V6")
def test_a_table_of_1600_columns_without_a_key_arrives(pair: Pair) -> None:
    columns = ", ".join(f"c{n} boolean" for n in range(1600))
    pair.source.execute(f"create table t ({columns}); insert into t (c0) values (true), (true), (false), (null)")
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    pair.source.execute("update t set c1599 = true where not c0; insert into t (c1) values (true)")
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.hazard("V7")
def test_a_table_without_columns_keeps_its_number_of_rows(pair: Pair) -> None:
    pair.source.execute("create table t (); insert into t default values; insert into t default values")
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    pair.source.execute("insert into t default values")
    assert sync(pair)["public.t"]["rows_inserted"] == 1
    pair.assert_equal("public.t")
    pair.source.execute("delete from t where ctid in (select ctid from t limit 2)")
    assert sync(pair)["public.t"]["rows_deleted"] == 2
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.hazard("V7")
def test_an_empty_table_without_columns_arrives_and_is_filled_later(pair: Pair) -> None:
    pair.source.execute("create table t (); create table dropped (x int); alter table dropped drop column x")
    pair.source.execute("insert into dropped default values")
    pair.grant()
    pair.write_config(tables=["public.*"])
    sync(pair)
    pair.source.execute("insert into t default values")
    sync(pair)
    assert_tables_equal(pair, ["public.t", "public.dropped"])
    sync_idly(pair)


@pytest.mark.hazard("V8")
@pytest.mark.parametrize("type_name", CELLS)
def test_a_cell_of_200_mb_arrives(pair: Pair, type_name: str) -> None:
    """COPY doubles each of the text's backslashes, and writes a bytea in hexadecimal: `q` forces the text format."""
    pair.source.execute(f"create table t (id int primary key, q tsquery, v {type_name})")
    pair.source.execute("alter table t alter v set storage external")
    pair.source.execute(f"insert into t values (1, '', {CELLS[type_name]}), (2, 'a', 'x')")
    pair.grant()
    pair.write_config(tables=["public.t"])
    query = "select id, octet_length(v), md5(v) from t order by id"
    sync(pair)
    assert pair.target.execute(query).fetchall() == pair.source.execute(query).fetchall()
    pair.source.execute("update t set v = v || 'y' where id = 1")
    assert sync(pair)["public.t"]["rows_updated"] == 1
    assert pair.target.execute(query).fetchall() == pair.source.execute(query).fetchall()
    sync_idly(pair)
