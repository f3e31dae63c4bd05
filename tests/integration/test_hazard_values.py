"""Values that change on their way when nobody looks: every type with its edges, in every kind of session."""

from __future__ import annotations

import psycopg
import pytest

from replicator.relation import NAMING_TYPES
from tests.conftest import MakePair
from tests.nightly import assert_tables_equal, read_types, refuse, sync, sync_idly
from tests.pair import Pair
from tests.sample import (
    CHANGE_NESTED_TYPES,
    EXTENSIONS,
    MANY_TYPES,
    NESTED_TYPES,
    SAMPLES,
    WITHOUT_INPUT,
    Sample,
    change_values,
    choose_samples,
    fill_values,
    has_xml,
    install_extensions,
    make_hostile,
)

pytestmark = pytest.mark.versions


@pytest.mark.hazard("V1")
def test_every_built_in_type_arrives_with_its_edges_and_its_arrays(pair: Pair) -> None:
    samples = choose_samples(pair)
    for sample in samples:
        pair.source.execute(fill_values(sample))
    pair.grant()
    pair.write_config(tables=["public.*"])
    tables = [f"public.v_{sample.label}" for sample in samples]
    first = sync(pair)
    assert {row["load_type"] for row in first.values()} == {"full"}
    assert_tables_equal(pair, tables)
    for sample in samples:
        pair.source.execute(change_values(sample))
    second = sync(pair)
    naming = {f"public.v_{sample.label}" for sample in samples if sample.type in NAMING_TYPES}
    assert {table: row["load_type"] for table, row in second.items()} == {
        table: "full" if table in naming else "incremental" for table in tables
    }
    assert_tables_equal(pair, tables)
    sync_idly(pair)


@pytest.mark.hazard("V1")
def test_every_built_in_type_has_a_sample(pair: Pair) -> None:
    query = """
        select t.typname from pg_type as t
        where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype in ('b', 'r', 'm') and t.typcategory <> 'A'
          and not exists (select from pg_class as c where c.oid = t.typrelid)
    """
    known = {
        name
        for sample in SAMPLES
        for (name,) in pair.source.execute(
            "select typname from pg_type where oid = %s::regtype", [sample.type.replace("(3,-2)", "")]
        )
    }
    present = {name for (name,) in pair.source.execute(query)}
    assert present - known - WITHOUT_INPUT == set()


@pytest.mark.hazard("V1")
def test_a_column_has_its_type_in_the_target_unless_the_type_names_things_of_one_server(pair: Pair) -> None:
    samples = choose_samples(pair)
    columns = ", ".join(f"c{n} {sample.type}, cs{n} {sample.type}[]" for n, sample in enumerate(samples))
    pair.source.execute(f"create table wide (id int primary key, {columns}); create view bare as select b'101' as v")
    pair.grant()
    pair.write_config(tables=["public.wide", "public.bare"])
    sync(pair)
    types = read_types(pair.target, "wide")
    for n, sample in enumerate(samples):
        as_text = sample.as_text or (sample.type == "xml" and not has_xml(pair.target))
        expected = ("text", "text") if as_text else spell_type(pair, sample.type)
        assert (types[f"c{n}"], types[f"cs{n}"]) == expected, sample
    pair.assert_equal("public.bare")


def spell_type(pair: Pair, name: str) -> tuple[str, str]:
    """Return how the target spells a type and its array."""
    pair.target.execute(f"create temporary table spelled (a {name}, b {name}[])")
    found = read_types(pair.target, "pg_temp.spelled")
    pair.target.execute("drop table pg_temp.spelled")
    return found["a"], found["b"]


@pytest.mark.hazard("V1", "T6")
def test_every_type_that_has_an_order_serves_as_a_key(pair: Pair) -> None:
    """A key may change to one that is equal and yet other bytes: 1.0 to 1.00, 0 to -0, 1 mon to 30 days."""
    samples = [sample for sample in SAMPLES if sample.key]
    for sample in samples:
        pair.source.execute(f"""
            create table k_{sample.label} (id {sample.type} primary key, n int);
            insert into k_{sample.label} select v, n
            from unnest(array[{sample.key}]::{sample.type}[]) with ordinality as u (v, n);
        """)
    pair.grant()
    pair.write_config(tables=["public.*"])
    tables = [f"public.k_{sample.label}" for sample in samples]
    sync(pair)
    assert_tables_equal(pair, tables)
    for sample in samples:
        name = f"k_{sample.label}"
        pair.source.execute(f"update {name} set n = n + 1; delete from {name} where n = 3")
        if sample.swap:
            before, after = (f"'{value}'::{sample.type}" for value in sample.swap)
            pair.source.execute(f"insert into {name} values ({before}, 0) on conflict do nothing")
            pair.source.execute(f"update {name} set id = {after} where id = {before}")
    sync(pair)
    assert_tables_equal(pair, tables)
    for sample in samples:
        if sample.swap:
            before, after = (f"'{value}'::{sample.type}" for value in sample.swap)
            pair.source.execute(f"update k_{sample.label} set id = {before} where id = {after}")
    sync(pair)
    assert_tables_equal(pair, tables)
    sync_idly(pair)


@pytest.mark.hazard("V1", "T6")
def test_every_type_is_compared_in_tables_without_a_key(pair: Pair) -> None:
    """Rows without a key are told apart by their text, so a value whose text hides a difference would be lost."""
    samples = choose_samples(pair)
    for sample in samples:
        pair.source.execute(f"""
            create table m_{sample.label} (v {sample.type}, n int);
            insert into m_{sample.label}
            select v, 0 from unnest(array[null, {sample.values}]::{sample.type}[]) as v, generate_series(1, 2);
        """)
    pair.grant()
    pair.write_config(tables=["public.*"])
    tables = [f"public.m_{sample.label}" for sample in samples]
    sync(pair)
    assert_tables_equal(pair, tables)
    for sample in samples:
        name = f"m_{sample.label}"
        pair.source.execute(f"""
            delete from {name} where ctid = (select min(ctid) from {name});
            insert into {name} select v, 0 from {name} where ctid = (select max(ctid) from {name});
        """)
    sync(pair)
    assert_tables_equal(pair, tables)
    pair.source.execute("""
        update m_bpchar set v = v || ' ' where ctid = (select ctid from m_bpchar where v = 'a' limit 1);
        update m_numeric set v = 1.000 where ctid = (select ctid from m_numeric where v = 1 limit 1);
        update m_double_precision set v = '-0' where ctid = (select ctid from m_double_precision where v = 0 limit 1);
    """)
    sync(pair)
    assert_tables_equal(pair, tables)
    sync_idly(pair)


@pytest.mark.hazard("V1")
def test_an_infinite_interval_arrives_or_is_refused_by_a_target_that_has_none(pair: Pair) -> None:
    """Before 17, interval_recv reads the infinity of a newer server as 178956970 years, without a word."""
    pair.source.execute(
        "create table t (id int primary key, v interval, vs interval[]); insert into t values (1, '1 day')"
    )
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    if pair.source_server.version < 17:
        with pytest.raises(psycopg.errors.InvalidDatetimeFormat):
            pair.source.execute("insert into t values (2, 'infinity')")
        return
    pair.source.execute("insert into t values (2, 'infinity', '{-infinity,NULL,infinity}')")
    if pair.target_server.version >= 17:
        sync(pair)
        pair.assert_equal("public.t")
    else:
        refuse(pair, 1, "public.t", "22007")
        assert pair.target.execute("select id from t").fetchall() == [(1,)]


@pytest.mark.hazard("V1")
def test_types_that_no_column_can_be_filled_with_by_hand_arrive_as_text(pair: Pair) -> None:
    pair.source.execute("""
        create table stuff (a int default 1 + 1, b int);
        insert into stuff select n % 7, n % 7 from generate_series(1, 1000) as n;
        create statistics stuff_ab (ndistinct, dependencies, mcv) on a, b from stuff;
        analyze stuff;
        create table t as select 1 as id, stxdndistinct, stxddependencies, stxdmcv, (select adbin from pg_attrdef limit 1)
        from pg_statistic_ext_data;
        alter table t add primary key (id);
    """)
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    assert set(read_types(pair.target, "t").values()) == {"integer", "text"}
    sync_idly(pair)


@pytest.mark.hazard("V2")
def test_enums_domains_and_composites_arrive_alone_and_in_arrays(pair: Pair) -> None:
    pair.source.execute(NESTED_TYPES)
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    found = read_types(pair.target, "public.t")
    kept = {"id": "integer", "m": "mood", "ms": "mood[]", "e": '"My Types"."Enum"', "es": '"My Types"."Enum"[]',
            "s": "integer", "ss": "integer[]", "dm": "mood", "dms": "mood[]", "c": "character varying(5)",
            "cs": "character varying(5)[]", "ns": "integer[]", "price": "numeric(8,2)",
            "prices": "numeric(8,2)[]"}  # fmt: skip
    assert {name: found[name] for name in kept} == kept
    assert {found[name] for name in ("p", "ps", "d", "nss")} == {"text"}
    pair.source.execute(CHANGE_NESTED_TYPES)
    assert sync(pair)["public.t"]["load_type"] == "incremental"
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.hazard("V2")
def test_composites_and_domains_that_the_target_has_already_are_used(pair: Pair) -> None:
    pair.source.execute("""
        create type pair as (n int, note text);
        create domain small as int check (value < 100);
        create table t (id int primary key, p pair, ps pair[], s small);
        insert into t values (1, (1, 'a, b'), array[(1, null)::pair, null], 5), (2, null, '{}', null);
    """)
    pair.as_writer.execute("""
        create type pair as (n int, note text);
        create domain small as int check (value < 100);
        create table t (s small, id int primary key, p pair, ps pair[]);
    """)
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    columns = ["id", "p", "ps", "s"]
    pair.assert_equal("public.t", columns=columns)
    pair.source.execute("update t set p = (2, 'changed') where id = 1; insert into t (id, s) values (3, 42)")
    sync(pair)
    pair.assert_equal("public.t", columns=columns)
    sync_idly(pair)


@pytest.mark.hazard("V3")
@pytest.mark.parametrize("installed", [True, False], ids=["installed", "missing"])
def test_types_of_extensions_arrive_whether_the_target_has_them_or_not(pair: Pair, installed: bool) -> None:
    here, there = install_extensions(pair, installed)
    tables = [
        f"public.{t}"
        for (t,) in pair.source.execute("select relname from pg_class where relname ~ '^[kv]_' and relkind = 'r'")
    ]
    pair.grant()
    pair.write_config(tables=["public.*"])
    sync(pair)
    assert_tables_equal(pair, tables)
    for name in here:
        type_name, values, _ = EXTENSIONS[name]
        spelled = f"other.{type_name}" if name in there else "text"
        label = Sample(type_name, values).label
        assert read_types(pair.target, f"v_{label}")["v"] == read_types(pair.target, f"k_{name}")["id"] == spelled
        pair.source.execute(change_values(Sample(type_name, values)))
        pair.source.execute(f"update k_{name} set n = n + 1")
    if "citext" in here:
        pair.source.execute("update k_citext set id = 'ABC' where id = 'abc'")
    sync(pair)
    assert_tables_equal(pair, tables)
    sync_idly(pair)


@pytest.mark.hazard("V4")
@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "keyless"])
def test_settings_of_the_two_databases_change_no_value(pair: Pair, keyed: bool) -> None:
    pair.source.execute(MANY_TYPES)
    if not keyed:
        pair.source.execute("alter table t drop constraint t_pkey")
    pair.grant()
    make_hostile(pair)
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.assert_equal("public.t")
    assert read_types(pair.target, "public.t") == read_types(pair.source, "public.t")
    pair.source.execute("""
        insert into t select id + 10, k, f, d, n, day, at, atz, span, b, j, jb, note, words, numbers from t;
        update t set d = 0.3, span = '30 days', words = '{"NULL"}', note = E'\\\\' where id = 1;
        delete from t where id = 2;
    """)
    sync(pair)
    pair.assert_equal("public.t")
    sync_idly(pair)


@pytest.mark.hazard("V4")
def test_settings_of_the_source_change_no_text_that_a_rule_writes(pair: Pair) -> None:
    """COPY's binary format hides most of them, the SQL of a mask none."""
    mask = (
        r"concat_ws(' ', f, d, day, at, atz, span, b, r, words, '{NULL}'::text[], 'back\slash', quote_ident('plain'), "
        "md5(k), 'pg_class'::regclass, interval '-3 days -04:05:06')"
    )
    pair.source.execute(MANY_TYPES)
    pair.grant()
    make_hostile(pair)
    pair.write_config(tables=[{"name": "public.t", "mask": {"note": mask}}])
    sync(pair)
    expected = pair.source.execute(f"select id, {mask} from t order by id").fetchall()
    assert pair.target.execute("select id, note from t order by id").fetchall() == expected


@pytest.mark.hazard("V4")
@pytest.mark.parametrize("encodings", [("LATIN1", "UTF8"), ("UTF8", "LATIN1"), ("LATIN1", "LATIN1")], ids="-".join)
def test_encodings_of_the_two_databases_change_no_value(make_pair: MakePair, encodings: tuple[str, str]) -> None:
    pair = make_pair(source_encoding=encodings[0], target_encoding=encodings[1])
    pair.source.execute("create type colour as enum ('gelb', 'grün')")
    tables = ['"Größe"', '"ohne Schlüssel"']
    for name in tables:
        pair.source.execute(f"""
            create table {name} (k text not null, "Straße" varchar(3), e colour, es colour[], j jsonb, n int);
            insert into {name} values
                ('ÿ', 'äöü', 'grün', '{{grün,NULL}}', '{{"ä": "\u00fc"}}', 1), ('é', null, 'gelb', '{{}}', null, 2);
        """)
    pair.source.execute('alter table "Größe" add primary key (k)')
    pair.grant()
    pair.write_config(tables=["public.*"])
    sync(pair)
    assert_tables_equal(pair, tables)
    for name in tables:
        pair.source.execute(f"""
            insert into {name} select 'ñ' || k, 'ß' from {name};
            update {name} set "Straße" = 'çç' where k = 'é';
            delete from {name} where k = 'ÿ';
        """)
    sync(pair)
    assert_tables_equal(pair, tables)
    sync_idly(pair)


@pytest.mark.hazard("V4")
def test_bytes_of_a_database_without_encoding_that_are_no_text_are_told_as_such(make_pair: MakePair) -> None:
    pair = make_pair(source_encoding="SQL_ASCII")
    pair.source.execute("create table t (id int primary key, note text)")
    pair.source.execute("insert into t select 1, convert_from('\\xe9'::bytea, 'SQL_ASCII')")
    pair.grant()
    pair.write_config(tables=["public.t"])
    refuse(pair, 1, "public.t", "22021", "SQL_ASCII")
    pair.source.execute("update t set note = 'ok'")
    sync(pair)
    pair.assert_equal("public.t")


@pytest.mark.hazard("V4")
def test_a_character_that_the_target_cannot_hold_is_refused_and_nothing_is_lost(make_pair: MakePair) -> None:
    pair = make_pair(target_encoding="LATIN1")
    pair.source.execute("create table t (id int primary key, v text); insert into t values (1, 'é')")
    pair.grant()
    pair.write_config(tables=["public.t"])
    sync(pair)
    pair.source.execute("insert into t values (2, 'こ'); update t set v = 'è' where id = 1")
    finished = refuse(pair, 1, "public.t", "22P05")
    assert "こ" not in finished.stdout + finished.stderr
    assert pair.target.execute("select id, v from t").fetchall() == [(1, "é")]
    pair.source.execute("update t set v = 'o' where id = 2")
    sync(pair)
    pair.assert_equal("public.t")


@pytest.mark.hazard("V4")
def test_a_name_that_the_target_cannot_hold_stops_its_own_table_alone(make_pair: MakePair) -> None:
    pair = make_pair(target_encoding="LATIN1")
    pair.source.execute('create table t (id int primary key); create table "表" (id int primary key)')
    pair.source.execute('create table u (id int primary key, "列" int)')
    pair.grant()
    pair.write_config(tables=["public.*"])
    findings = pair.json("check", check=4)["findings"]
    assert 'public."表"' in [finding["table"] for finding in findings if finding["severity"] == "error"]
    finished = pair.run("sync", "--json", check=6)
    assert {table: error["id"] for table, error in finished.json()["errors"].items()} == {
        'public."表"': "name_not_writable",
        "public.u": "target_refused_row",
    }
    assert "None" not in finished.stderr
    pair.assert_equal("public.t")
    pair.write_config(tables=['public."表"'])
    assert "encoding" in pair.run("sync", check=3).stderr


@pytest.mark.hazard("V5")
def test_an_empty_string_and_null_stay_apart(pair: Pair) -> None:
    pair.source.execute("""
        create table t (id int primary key, v text, vs text[], b bytea, j json);
        create table keyless (v text);
        insert into t values (1, '', '{""}', '', '""'), (2, null, null, null, null), (3, 'NULL', '{"NULL"}', '\\x00', 'null');
        insert into keyless values (''), (null), (''), (null), (null);
    """)
    pair.grant()
    pair.write_config(tables=["public.*"])
    sync(pair)
    assert_tables_equal(pair, ["public.t", "public.keyless"])
    pair.source.execute("""
        update t set v = nullif('', v), vs = '{}', b = case when b is null then ''::bytea end where id < 3;
        update t set v = null where id = 1;
        update t set v = '' where id = 2;
        delete from keyless where ctid = (select min(ctid) from keyless where v is null);
        insert into keyless values ('');
    """)
    sync(pair)
    assert_tables_equal(pair, ["public.t", "public.keyless"])
    sync_idly(pair)


@pytest.mark.hazard("V9")
@pytest.mark.parametrize("clean", [True, False], ids=["cleaned", "as they are"])
def test_nan_and_nat_become_null_only_if_asked(pair: Pair, clean: bool) -> None:
    pair.source.execute("""
        create domain ratio as double precision;
        create domain label as varchar(5);
        create table t (id int primary key, f real, d double precision, n numeric, r ratio, fs real[],
                        v text, w varchar(5), c character(5), l label, vs text[], day date);
        insert into t values
            (1, 'NaN', 'NaN', 'NaN', 'NaN', '{NaN,1}', 'NaT', 'NaN', 'NaT', 'NaN', '{NaT}', 'infinity'),
            (2, 1, 'Infinity', 0, '-Infinity', null, 'nat', '', 'NaTs', 'Na', null, null),
            (3, null, null, null, null, null, null, null, null, null, null, null);
    """)
    pair.grant()
    cleaning = {"nan_to_null": True, "null_values": ["NaT", "NaN"]} if clean else {}
    pair.write_config(tables=[{"name": "public.t"} | cleaning])
    expected = (
        "select id, nullif(f, 'NaN') as f, nullif(d, 'NaN') as d, nullif(n, 'NaN') as n, nullif(r, 'NaN') as r, fs,"
        " nullif(v, 'NaT') as v, nullif(w, 'NaN') as w, nullif(c, 'NaT') as c, nullif(l, 'NaN') as l, vs, day from t"
    )
    pair.source.execute(f"create view expected as {expected if clean else 'select * from t'}")
    sync(pair)
    pair.assert_equal("public.expected", "public.t")
    pair.source.execute("""
        update t set f = 'NaN', v = 'NaT', n = 1 where id = 2;
        update t set d = 1, v = 'x' where id = 1;
        insert into t (id, d, w) values (4, 'NaN', 'NaN');
    """)
    sync(pair)
    pair.assert_equal("public.expected", "public.t")
    sync_idly(pair)
