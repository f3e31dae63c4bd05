"""Values and names in the stream: half of the rows are copied before it, half come through it, then every row changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from psycopg import sql

from tests.conftest import MakePair
from tests.naming import INJECTION, ODD_NAMES, SPECIAL_NAMES, change_tables, create_tables
from tests.nightly import assert_tables_equal
from tests.pair import Pair
from tests.sample import (
    CELLS,
    CHANGE_NESTED_TYPES,
    EXTENSIONS,
    MANY_TYPES,
    NESTED_TYPES,
    SAMPLES,
    Sample,
    change_values,
    choose_samples,
    fill_values,
    install_extensions,
    make_hostile,
)
from tests.streaming import catch_up, expect_refusal

pytestmark = pytest.mark.versions

IDENTITIES = ["default", "full"]


def split_rows(pair: Pair, tables: Sequence[str], key: str) -> None:
    """Put every second row of the tables aside, for the stream."""
    for n, table in enumerate(tables):
        pair.source.execute(f"""
            create schema if not exists aside;
            create table aside.t{n} as select * from {table}
            where {key} in (select {key} from (select {key}, row_number() over (order by {key}) as place from {table}) as x
                            where place % 2 = 0);
            delete from {table} as t using aside.t{n} as a where a.{key} = t.{key}
        """)


def bring_rows(pair: Pair, tables: Sequence[str]) -> None:
    """Insert what was put aside."""
    for n, table in enumerate(tables):
        pair.source.execute(f"insert into {table} select * from aside.t{n}")


def set_identity(pair: Pair, tables: Sequence[str], identity: str) -> None:
    """Give the tables a replica identity."""
    for table in tables:
        pair.source.execute(f"alter table {table} replica identity {identity}")


def follow(pair: Pair, tables: Sequence[str]) -> None:
    """Catch up, and compare all tables."""
    catch_up(pair)
    assert_tables_equal(pair, tables)


@pytest.mark.hazard("V1")
@pytest.mark.parametrize("identity", IDENTITIES)
def test_every_built_in_type_streams_with_its_edges_and_its_arrays(streamed: Pair, identity: str) -> None:
    samples = choose_samples(streamed)
    tables = [f"public.v_{sample.label}" for sample in samples]
    for sample in samples:
        streamed.source.execute(fill_values(sample))
    set_identity(streamed, tables, identity)
    split_rows(streamed, tables, "id")
    streamed.publish()
    streamed.write_config(tables=["public.*"])
    follow(streamed, tables)
    bring_rows(streamed, tables)
    for table in tables:
        streamed.source.execute(f"update {table} set note = 'all else stays as it is' where id % 3 = 0")
    follow(streamed, tables)
    for sample in samples:
        streamed.source.execute(change_values(sample))
    follow(streamed, tables)
    loads = {row["load_type"] for row in streamed.control_rows(path="listen") if row["rows_extracted"]}
    assert loads == {"full", "stream"}
    copies = streamed.control_rows(path="listen", load_type="full")
    assert len(copies) == len(tables), "a table was read again"


@pytest.mark.hazard("V1", "T6")
@pytest.mark.parametrize("identity", IDENTITIES)
def test_every_type_that_has_an_order_serves_as_a_key_of_the_stream(streamed: Pair, identity: str) -> None:
    """A key may change to one that is equal and yet other bytes: 1.0 to 1.00, 0 to -0, 1 mon to 30 days."""
    samples = [sample for sample in SAMPLES if sample.key]
    tables = [f"public.k_{sample.label}" for sample in samples]
    for sample in samples:
        streamed.source.execute(f"""
            create table k_{sample.label} (id {sample.type} primary key, n int);
            insert into k_{sample.label} select v, n
            from unnest(array[{sample.key}]::{sample.type}[]) with ordinality as u (v, n);
        """)
    set_identity(streamed, tables, identity)
    split_rows(streamed, tables, "id")
    streamed.publish()
    streamed.write_config(tables=["public.*"])
    follow(streamed, tables)
    bring_rows(streamed, tables)
    follow(streamed, tables)
    for sample in samples:
        name = f"k_{sample.label}"
        streamed.source.execute(f"update {name} set n = n + 1; delete from {name} where n = 3")
        if sample.swap:
            before, after = (f"'{value}'::{sample.type}" for value in sample.swap)
            streamed.source.execute(f"insert into {name} values ({before}, 0) on conflict do nothing")
            streamed.source.execute(f"update {name} set id = {after} where id = {before}")
    follow(streamed, tables)
    for sample in samples:
        if sample.swap:
            before, after = (f"'{value}'::{sample.type}" for value in sample.swap)
            streamed.source.execute(f"update k_{sample.label} set id = {before} where id = {after}")
    follow(streamed, tables)
    for sample in samples:
        if sample.swap:
            before, after = (f"'{value}'::{sample.type}" for value in sample.swap)
            name = f"k_{sample.label}"
            streamed.source.execute(
                f"begin; update {name} set id = {after} where id = {before}; delete from {name} where id = {before};"
                f" insert into {name} values ({before}, 7); update {name} set id = {after}, n = 8 where id = {after};"
                f" commit"
            )
    follow(streamed, tables)


@pytest.mark.hazard("V1")
def test_every_type_that_has_an_order_finds_its_row_again(streamed: Pair) -> None:
    """S25: rows under `where` are read again by the text of their key."""
    samples = [sample for sample in SAMPLES if sample.key]
    tables = [f"public.k_{sample.label}" for sample in samples]
    for sample in samples:
        streamed.source.execute(f"""
            create table k_{sample.label} (id {sample.type} primary key, n int, big text);
            alter table k_{sample.label} alter big set storage external;
            insert into k_{sample.label} select v, n, repeat('x', 3000)
            from unnest(array[{sample.key}]::{sample.type}[]) with ordinality as u (v, n);
        """)
    split_rows(streamed, tables, "id")
    streamed.publish()
    streamed.write_config(tables=[{"name": "public.*", "where": "n < 100"}])
    follow(streamed, tables)
    bring_rows(streamed, tables)
    for sample in samples:
        streamed.source.execute(f"update k_{sample.label} set n = n + 1")
    follow(streamed, tables)
    for sample in samples:
        if sample.swap:
            before, after = (f"'{value}'::{sample.type}" for value in sample.swap)
            streamed.source.execute(f"update k_{sample.label} set id = {after} where id = {before}")
        streamed.source.execute(f"delete from k_{sample.label} where n = 3")
    follow(streamed, tables)


@pytest.mark.hazard("V1", "T6")
def test_every_type_streams_in_tables_without_a_key(streamed: Pair) -> None:
    samples = choose_samples(streamed)
    tables = [f"public.m_{sample.label}" for sample in samples]
    for sample in samples:
        streamed.source.execute(f"""
            create table m_{sample.label} (v {sample.type}, n int);
            alter table m_{sample.label} replica identity full;
            insert into m_{sample.label}
            select v, 0 from unnest(array[null, {sample.values}]::{sample.type}[]) as v, generate_series(1, 2);
        """)
    streamed.publish()
    streamed.write_config(tables=["public.*"])
    follow(streamed, tables)
    for sample in samples:
        name = f"m_{sample.label}"
        streamed.source.execute(f"""
            insert into {name} select v, 1 from {name};
            delete from {name} where ctid = (select min(ctid) from {name});
            update {name} set n = n + 1 where ctid = (select max(ctid) from {name});
        """)
    follow(streamed, tables)
    for sample in samples:
        streamed.source.execute(f"update m_{sample.label} set n = n + 10 where n = 0")
    streamed.source.execute("""
        update m_bpchar set v = v || ' ' where ctid = (select ctid from m_bpchar where v = 'a' limit 1);
        update m_numeric set v = 1.000 where ctid = (select ctid from m_numeric where v = 1 limit 1);
        update m_double_precision set v = '-0' where ctid = (select ctid from m_double_precision where v = 0 limit 1);
    """)
    follow(streamed, tables)


@pytest.mark.hazard("V1")
def test_an_infinite_interval_streams_or_is_refused_by_a_target_that_has_none(streamed: Pair) -> None:
    streamed.source.execute("create table t (id int primary key, v interval, vs interval[])")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    if streamed.source_server.version < 17:
        return
    streamed.source.execute("insert into t values (2, 'infinity', '{-infinity,NULL,infinity}')")
    if streamed.target_server.version >= 17:
        follow(streamed, ["public.t"])
    else:
        expect_refusal(streamed.run("listen", "--until-caught-up", check=1), "public.t", "22007")
        assert streamed.target.execute("select id from t").fetchall() == []


@pytest.mark.hazard("V2")
@pytest.mark.parametrize("identity", IDENTITIES)
def test_enums_domains_and_composites_stream_alone_and_in_arrays(streamed: Pair, identity: str) -> None:
    streamed.source.execute(NESTED_TYPES)
    set_identity(streamed, ["public.t"], identity)
    split_rows(streamed, ["public.t"], "id")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    follow(streamed, ["public.t"])
    bring_rows(streamed, ["public.t"])
    follow(streamed, ["public.t"])
    streamed.source.execute(CHANGE_NESTED_TYPES)
    follow(streamed, ["public.t"])


@pytest.mark.hazard("V3")
@pytest.mark.parametrize("installed", [True, False], ids=["installed", "missing"])
def test_types_of_extensions_stream_whether_the_target_has_them_or_not(streamed: Pair, installed: bool) -> None:
    here, _ = install_extensions(streamed, installed)
    query = "select 'public.' || relname from pg_class where relname ~ '^[kv]_' and relkind = 'r'"
    tables = [table for (table,) in streamed.source.execute(query)]
    split_rows(streamed, tables, "id")
    streamed.publish()
    streamed.write_config(tables=["public.*"])
    follow(streamed, tables)
    bring_rows(streamed, tables)
    follow(streamed, tables)
    for name in here:
        streamed.source.execute(change_values(Sample(*EXTENSIONS[name])))
        streamed.source.execute(f"update k_{name} set n = n + 1")
    if "citext" in here:
        streamed.source.execute("update k_citext set id = 'ABC' where id = 'abc'")
    follow(streamed, tables)


@pytest.mark.hazard("V4")
@pytest.mark.parametrize("identity", [*IDENTITIES, "keyless"])
def test_settings_of_the_two_databases_change_no_value_of_the_stream(streamed: Pair, identity: str) -> None:
    streamed.source.execute(MANY_TYPES)
    if identity == "keyless":
        streamed.source.execute("alter table t drop constraint t_pkey")
    set_identity(streamed, ["public.t"], "full" if identity == "keyless" else identity)
    streamed.publish()
    make_hostile(streamed)
    streamed.write_config(tables=["public.t"])
    follow(streamed, ["public.t"])
    streamed.source.execute("""
        insert into t select id + 10, k, f, d, n, day, at, atz, span, b, j, jb, note, words, numbers, spans, days, bs, m, r, q
        from t;
    """)
    follow(streamed, ["public.t"])
    streamed.source.execute("""
        update t set d = 0.3, span = '30 days', words = '{"NULL"}', note = E'\\\\' where id = 1;
        update t set n = coalesce(n, 0) + 0.10, at = '2024-12-01 00:00:00.1', bs = array['\\x5c27'::bytea] where id > 5;
        delete from t where id = 2;
    """)
    follow(streamed, ["public.t"])


@pytest.mark.hazard("V4")
def test_settings_of_the_source_change_no_text_that_a_rule_writes_into_the_stream(streamed: Pair) -> None:
    mask = (
        r"concat_ws(' ', f, d, day, at, atz, span, b, r, words, '{NULL}'::text[], 'back\slash', quote_ident('plain'), "
        "md5(k), 'pg_class'::regclass, interval '-3 days -04:05:06')"
    )
    streamed.source.execute(MANY_TYPES)
    streamed.publish()
    make_hostile(streamed)
    streamed.write_config(tables=[{"name": "public.t", "mask": {"note": mask}}])
    catch_up(streamed)
    streamed.source.execute(
        "insert into t select id + 10, k, f, d, n, day, at, atz, span, b, j, jb, note, words from t"
    )
    streamed.source.execute("update t set d = 0.1 + 0.2 where id = 2; update t set k = 'c\\''' where id = 11")
    catch_up(streamed)
    expected = streamed.source.execute(f"select id, k, {mask} from t order by id").fetchall()
    assert streamed.target.execute("select id, k, note from t order by id").fetchall() == expected


@pytest.mark.hazard("V4")
@pytest.mark.parametrize("encodings", [("LATIN1", "UTF8"), ("UTF8", "LATIN1"), ("LATIN1", "LATIN1")], ids="-".join)
def test_encodings_of_the_two_databases_change_no_value_of_the_stream(
    make_pair: MakePair, encodings: tuple[str, str]
) -> None:
    pair = make_pair(listens=True, source_encoding=encodings[0], target_encoding=encodings[1])
    pair.source.execute("create type colour as enum ('gelb', 'grün')")
    tables = ['"Größe"', '"ohne Schlüssel"', '"wählt"']
    for name in tables:
        pair.source.execute(f"""
            create table {name} (k text not null, "Straße" varchar(3), e colour, es colour[], j jsonb, n int);
            insert into {name} values
                ('ÿ', 'äöü', 'grün', '{{grün,NULL}}', '{{"ä": "\u00fc"}}', 1), ('é', null, 'gelb', '{{}}', null, 2);
        """)
    pair.source.execute('alter table "Größe" add primary key (k); alter table "wählt" add primary key (k)')
    pair.source.execute('alter table "ohne Schlüssel" replica identity full')
    pair.publish()
    (pair.dir / "mask.key").write_text("x" * 40)
    pair.write_config(
        tables=['public."Größe"', 'public."ohne Schlüssel"', {"name": 'public."wählt"', "where": "k <> 'ø'"}],
        privacy={"mask_key_file": "mask.key"},
    )
    follow(pair, tables)
    for name in tables:
        pair.source.execute(f"""
            insert into {name} select 'ñ' || k, 'ß', 'grün', '{{grün}}', '"ö"' from {name};
            update {name} set "Straße" = 'çç' where k = 'é';
            delete from {name} where k = 'ÿ';
        """)
    follow(pair, tables)
    for name in tables:
        pair.source.execute(f"update {name} set k = k || 'æ', \"Straße\" = null, es = es || 'grün'::colour")
    follow(pair, tables)


@pytest.mark.hazard("V4")
def test_a_character_that_the_target_cannot_hold_stops_the_stream_and_nothing_is_lost(make_pair: MakePair) -> None:
    pair = make_pair(listens=True, target_encoding="LATIN1")
    pair.source.execute("create table t (id int primary key, v text); insert into t values (1, 'é')")
    pair.publish()
    pair.write_config(tables=["public.t"])
    follow(pair, ["public.t"])
    pair.source.execute("insert into t values (2, 'こ'); update t set v = 'è' where id = 1")
    finished = pair.run("listen", "--until-caught-up", check=1)
    expect_refusal(finished, "public.t", "22P05")
    assert "こ" not in finished.stdout + finished.stderr
    assert pair.target.execute("select id, v from t").fetchall() == [(1, "é")]
    failed = pair.control_rows("public.t", status="failed")[-1]
    assert (failed["path"], failed["error_code"]) == ("listen", "22P05")
    assert "こ" not in str(failed)
    pair.source.execute("update t set v = 'o' where id = 2")
    pair.run("slot", "drop", "--yes")
    follow(pair, ["public.t"])


@pytest.mark.hazard("V5")
@pytest.mark.parametrize("identity", IDENTITIES)
def test_an_empty_string_and_null_stay_apart_in_the_stream(streamed: Pair, identity: str) -> None:
    tables = ["public.t", "public.keyless", "public.chosen"]
    streamed.source.execute(f"""
        create table t (id int primary key, v text, vs text[], b bytea, j json);
        create table keyless (v text);
        create table chosen (id int primary key, v text, vs text[], b bytea, j json);
        alter table t replica identity {identity};
        alter table keyless replica identity full;
    """)
    streamed.publish()
    streamed.write_config(tables=["public.t", "public.keyless", {"name": "public.chosen", "where": "true"}])
    follow(streamed, tables)
    streamed.source.execute("""
        insert into t values (1, '', '{""}', '', '""'), (2, null, null, null, null), (3, 'NULL', '{"NULL"}', '\\x00', 'null'),
        (4, '\\N', '{\\\\N}', '\\x5c4e', '"\\\\N"');
        insert into chosen select * from t;
        insert into keyless values (''), (null), (''), (null), (null), ('\\N');
    """)
    follow(streamed, tables)
    streamed.source.execute("""
        update t set v = nullif('', v), vs = '{}', b = case when b is null then ''::bytea end where id < 3;
        update t set v = null where id = 1;
        update t set v = '' where id = 2;
        update t set v = '' where id = 3;
        update chosen set v = nullif(v, ''), b = coalesce(b, '');
        delete from keyless where ctid = (select min(ctid) from keyless where v is null);
        insert into keyless values ('');
        update keyless set v = null where v = '\\N';
    """)
    follow(streamed, tables)


@pytest.mark.hazard("V6")
@pytest.mark.parametrize("identity", [*IDENTITIES, "keyless"])
def test_a_table_of_1600_columns_streams(streamed: Pair, identity: str) -> None:
    columns = ", ".join(f"c{n} boolean" for n in range(1599))
    streamed.source.execute(f"create table t (id int{'' if identity == 'keyless' else ' primary key'}, {columns})")
    set_identity(streamed, ["public.t"], "full" if identity == "keyless" else identity)
    streamed.source.execute("insert into t (id, c0, c1597) select n, n % 2 = 0, true from generate_series(1, 20) as n")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    follow(streamed, ["public.t"])
    streamed.source.execute("""
        insert into t (id, c5) values (100, true), (101, false);
        update t set c1597 = not c1597 where id < 10;
        update t set c800 = true where id = 101;
        update t set id = 300 where id = 15;
        delete from t where id = 16;
    """)
    follow(streamed, ["public.t"])


@pytest.mark.hazard("V7")
def test_a_table_without_columns_streams_its_number_of_rows(streamed: Pair) -> None:
    tables = ["public.t", "public.dropped"]
    streamed.source.execute("""
        create table t (); create table dropped (x int); alter table dropped drop column x;
        alter table t replica identity full; alter table dropped replica identity full;
        insert into t default values; insert into dropped default values;
    """)
    streamed.publish()
    streamed.write_config(tables=["public.*"])
    follow(streamed, tables)
    for table in tables:
        streamed.source.execute(f"insert into {table} default values")
        streamed.source.execute(f"insert into {table} default values")
        streamed.source.execute(f"delete from {table} where ctid = (select min(ctid) from {table})")
    follow(streamed, tables)
    streamed.source.execute("delete from t; truncate dropped; insert into dropped default values")
    follow(streamed, tables)


@pytest.mark.slow
@pytest.mark.hazard("V8")
@pytest.mark.parametrize("type_name", CELLS)
def test_a_cell_of_200_mb_streams(streamed: Pair, type_name: str) -> None:
    streamed.source.execute(f"create table t (id int primary key, n int, v {type_name})")
    streamed.source.execute("alter table t alter v set storage external")
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    query = "select id, n, octet_length(v), md5(v) from t order by id"
    changes = (
        f"insert into t values (1, 0, {CELLS[type_name]}), (2, 0, 'x')",
        "update t set n = 1 where id = 1",
        "update t set id = 3 where id = 1",
        "update t set v = v || 'y' where id = 3",
    )
    for change in changes:
        streamed.source.execute(change)
        catch_up(streamed)
        assert streamed.target.execute(query).fetchall() == streamed.source.execute(query).fetchall()


@pytest.mark.hazard("V9")
@pytest.mark.parametrize("clean", [True, False], ids=["cleaned", "as they are"])
@pytest.mark.parametrize("identity", IDENTITIES)
def test_nan_and_nat_become_null_in_the_stream_only_if_asked(streamed: Pair, clean: bool, identity: str) -> None:
    streamed.source.execute(f"""
        create domain ratio as double precision;
        create domain label as varchar(5);
        create table t (id int primary key, f real, d double precision, n numeric, r ratio, fs real[],
                        v text, w varchar(5), c character(5), l label, vs text[], day date);
        alter table t replica identity {identity};
        create table aside as table t;
        insert into aside values
            (1, 'NaN', 'NaN', 'NaN', 'NaN', '{{NaN,1}}', 'NaT', 'NaN', 'NaT', 'NaN', '{{NaT}}', 'infinity'),
            (2, 1, 'Infinity', 0, '-Infinity', null, 'nat', '', 'NaTs', 'Na', null, null),
            (3, null, null, null, null, null, null, null, null, null, null, null);
        insert into t select * from aside where id = 1;
    """)
    streamed.publish()
    cleaning = {"nan_to_null": True, "null_values": ["NaT", "NaN"]} if clean else {}
    streamed.write_config(tables=[{"name": "public.t"} | cleaning])
    expected = (
        "select id, nullif(f, 'NaN') as f, nullif(d, 'NaN') as d, nullif(n, 'NaN') as n, nullif(r, 'NaN') as r, fs,"
        " nullif(v, 'NaT') as v, nullif(w, 'NaN') as w, nullif(c, 'NaT') as c, nullif(l, 'NaN') as l, vs, day from t"
    )
    streamed.source.execute(f"create view expected as {expected if clean else 'select * from t'}")
    catch_up(streamed)
    streamed.assert_equal("public.expected", "public.t")
    streamed.source.execute("insert into t select id + 10, f, d, n, r, fs, v, w, c, l, vs, day from aside")
    catch_up(streamed)
    streamed.assert_equal("public.expected", "public.t")
    streamed.source.execute("""
        update t set f = 'NaN', v = 'NaT', n = 1 where id = 12;
        update t set d = 1, v = 'x' where id in (1, 11);
        update t set r = 'NaN', c = 'NaT', l = 'NaN', w = 'NaN' where id = 13;
        insert into t (id, d, w) values (4, 'NaN', 'NaN');
    """)
    catch_up(streamed)
    streamed.assert_equal("public.expected", "public.t")


def follow_names(pair: Pair, schema: str, names: list[str], *, where: str | None = None) -> None:
    """Stream tables of these names: copied, changed, and changed again."""
    tables = create_tables(pair, schema, names)
    for n, name in enumerate(names):
        if not n % 3:
            identity = sql.SQL("alter table {} replica identity full").format(sql.Identifier(schema, name))
            pair.source.execute(identity)
    pair.publish(*[sql.Identifier(schema, name).as_string() for name in names])
    keyed = {table for n, table in enumerate(tables) if n % 3}
    rule = {"where": where} if where else {}
    pair.write_config(tables=[{"name": table} | (rule if table in keyed else {}) for table in tables])
    follow(pair, list(tables))
    change_tables(pair, schema, names)
    follow(pair, list(tables))
    for name in names:
        statement = "update {table} set {key} = {key} + 100"
        pair.source.execute(sql.SQL(statement).format(table=sql.Identifier(schema, name), key=sql.Identifier(name)))
    follow(pair, list(tables))
    copies = pair.control_rows(path="listen", load_type="full")
    assert len(copies) == len(tables), "a table was read again"


@pytest.mark.hazard("H1", "H2")
def test_odd_names_of_schemas_tables_and_columns_are_only_names_to_the_stream(streamed: Pair) -> None:
    follow_names(streamed, INJECTION, ODD_NAMES)


@pytest.mark.hazard("H2")
def test_odd_names_serve_where_rows_of_the_stream_are_read_again(streamed: Pair) -> None:
    follow_names(streamed, "odd", ODD_NAMES, where="at is not null")


@pytest.mark.hazard("H3")
@pytest.mark.parametrize("where", [None, "at is not null"], ids=["whole", "chosen"])
def test_keywords_and_our_own_names_are_free_to_use_in_the_stream(streamed: Pair, where: str | None) -> None:
    follow_names(streamed, "Select", SPECIAL_NAMES, where=where)


@pytest.mark.hazard("H2")
def test_odd_names_serve_in_rules_of_the_stream_and_as_its_publication(streamed: Pair) -> None:
    odd = dict(zip(ODD_NAMES[0::2], ODD_NAMES[1::2], strict=False))
    hashed, emptied = "'", "back\\slash\\'"
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in odd)
    streamed.source.execute(sql.SQL("create table t (id int primary key, {}, other int)").format(columns))
    streamed.grant()
    publication = 'a, "b" \' \\ {} %s'
    streamed.source.execute(
        sql.SQL("create publication {} for table t with (publish_via_partition_root)").format(
            sql.Identifier(publication)
        )
    )
    where = sql.SQL("{} = '%s' -- {{}} :x").format(sql.Identifier(INJECTION)).as_string()
    (streamed.dir / "mask.key").write_text("x" * 40)
    rules = {"rename": odd, "exclude": ["other"], "mask": {hashed: "hash", emptied: "null"}}
    streamed.write_config(
        target={"control_schema": INJECTION},
        privacy={"mask_key_file": "mask.key"},
        listen={"publication": publication},
        tables=[{"name": "public.t", "target": '"{}".""""', "null_values": ["'; drop table t; --"]} | rules],
    )
    catch_up(streamed)
    fill = sql.SQL("insert into t (id, {}) values (1, '%s'), (2, null)").format(sql.Identifier(INJECTION))
    streamed.source.execute(fill)
    catch_up(streamed)
    kept = {name: new for name, new in odd.items() if name not in (hashed, emptied)}
    streamed.assert_equal("public.t", '"{}".""""', {"id": "id"} | kept)
    streamed.write_config(
        target={"control_schema": INJECTION},
        privacy={"mask_key_file": "mask.key"},
        listen={"publication": publication},
        tables=[{"name": "public.t", "target": '"{}".""""', "where": where} | rules],
    )
    catch_up(streamed)
    streamed.source.execute("update t set id = id + 10; insert into t (id) values (5)")
    catch_up(streamed)
    streamed.assert_equal("public.t", '"{}".""""', {"id": "id"} | kept, where=f"{where}\n")


@pytest.mark.hazard("H2")
def test_odd_labels_of_enums_are_followed_by_the_stream(streamed: Pair) -> None:
    labels = [name for name in ODD_NAMES if len(name.encode()) < 64]
    streamed.source.execute(
        sql.SQL("create type {} as enum ({})").format(
            sql.Identifier(INJECTION[:30]), sql.SQL(", ").join(map(sql.Literal, labels))
        )
    )
    kind = sql.Identifier("public", INJECTION[:30])
    streamed.source.execute(sql.SQL("create table t (id int primary key, e {0}, es {0}[])").format(kind))
    streamed.publish()
    streamed.write_config(tables=["public.t"])
    catch_up(streamed)
    streamed.source.execute(
        sql.SQL("insert into t select n, v, array[v, null] from unnest({}::{}[]) with ordinality as u (v, n)").format(
            sql.Literal(labels), kind
        )
    )
    follow(streamed, ["public.t"])
    for n, label in enumerate(labels[:4]):
        renamed = sql.SQL("alter type {} rename value {} to {}")
        streamed.source.execute(renamed.format(kind, sql.Literal(label), sql.Literal(f"renamed {n}")))
        added = sql.SQL("alter type {} add value {} before {}")
        streamed.source.execute(added.format(kind, sql.Literal(f"'added\\ {n}"), sql.Literal(f"renamed {n}")))
        streamed.source.execute(
            sql.SQL("insert into t (id, e) values ({}, {})").format(sql.Literal(500 + n), sql.Literal(f"'added\\ {n}"))
        )
    follow(streamed, ["public.t"])
