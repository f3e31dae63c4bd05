"""Values of every kind for the tests of both paths: types with their edges, extensions, hostile settings, huge cells."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from tests.pair import Pair

FLOATS = "'NaN', 'Infinity', '-Infinity', '0', '-0', '1', '0.1', '-1.5e-30'"


@dataclass(frozen=True)
class Sample:
    """A type and values of it: SQL literals, from which every place of a row is filled.

    key: values that are told apart by the type's own equality, so that they can be a primary key; none where the type
    has no order. swap: a value of the key and one that is equal to it and yet other bytes.
    """

    type: str
    values: str
    key: str = ""
    swap: tuple[str, str] | None = None
    since: int = 15
    as_text: bool = False

    @property
    def label(self) -> str:
        """Return a name for tables."""
        return "".join(c if c.isalnum() else "_" for c in self.type)


SAMPLES = [
    Sample("boolean", "true, false", "true, false"),
    Sample("smallint", "-32768, 0, 32767", "-32768, 0, 32767"),
    Sample("integer", "-2147483648, 0, 2147483647", "-2147483648, 0, 2147483647"),
    Sample("bigint", "'-9223372036854775808', 0, '9223372036854775807'", "'-9223372036854775808', 0, 7"),
    Sample("real", f"{FLOATS}, '1e-45', '1.17549435e-38', '3.4028235e38'", "'NaN', '-Infinity', 0, 0.1", ("0", "-0")),
    Sample(
        "double precision",
        f"{FLOATS}, '0.30000000000000004', '5e-324', '2.2250738585072014e-308', '1.7976931348623157e308'",
        "'NaN', 'Infinity', 0, '0.30000000000000004', '0.3'",
        ("0", "-0"),
    ),
    Sample(
        "numeric",
        "'NaN', 'Infinity', '-Infinity', 0, '-0.000', 1, 1.0, '1.00', '1e131071', '1e-16383', repeat('9', 1000)::numeric",
        "'NaN', 'Infinity', 0, '1.0', '1e131071', '1e-16383', repeat('9', 1000)::numeric",
        ("1.0", "1.00"),
    ),
    Sample("numeric(12,4)", "'NaN', -12345678.9012, 0", "-12345678.9012, 0"),
    Sample("numeric(3,-2)", "12300, -99900", "12300"),
    Sample("numeric(3,5)", "0.00123", "0.00123"),
    Sample("money", "'-92233720368547758.08', '0', '92233720368547758.07'", "'-1', '0', '12.34'"),
    Sample(
        "text",
        r"""'', ' ', 'NULL', 'null', '"', '{}', '{"}', ',', E'\\', E'\\N', E'\\.', E'\r\n', E'\t\b\f\v\x7f', E'\U0001F600',
        E'e\u0301', E'\u00e9', '0', repeat('long ', 30000)""",
        r"""'', ' ', 'NULL', E'\\N', E'\\.', E'\t\n', E'e\u0301', E'\u00e9', 'A', 'a'""",
    ),
    Sample("character varying", "'', 'a', 'a ', '%s', '$1'", "'', 'a', 'a '"),
    Sample("character varying(3)", "'', 'a  ', E'\\U0001F600\\U0001F600\\U0001F600'", "'', 'a  '"),
    Sample("character(5)", "'', 'a', 'a    ', E'\\n'", "'', 'a'"),
    Sample("bpchar", "'', 'a', 'a ', ' a  '", "'', 'a', 'b '", ("a", "a  ")),
    Sample('"char"', "'', 'a', ',', E'\\\\', '{'", "'', 'a', ','"),
    Sample("name", "'', 'a', repeat('n', 63)", "'', 'a', repeat('n', 63)::name"),
    Sample(
        "bytea",
        r"""'', '\x00', '\x5c', '\x5c786666', '\xff', (select decode(string_agg(lpad(to_hex(n), 2, '0'), ''), 'hex')
        from generate_series(0, 255) as n), convert_to(repeat('long ', 30000), 'UTF8')""",
        r"'', '\x00', '\x5c786666'",
    ),
    Sample("bit", "'0', '1'", "'0', '1'"),
    Sample("bit(9)", "'000000000', '101010101'", "'000000000', '101010101'"),
    Sample("bit varying", "'', '0', '1', '000000000'", "'', '0', '00'"),
    Sample("bit varying(5)", "'', '01', '00000'", "'', '01'"),
    Sample(
        "date",
        "'4713-01-01 BC', '0001-12-31 BC', '0001-01-01', '2024-02-29', '5874897-12-31', 'infinity', '-infinity'",
        "'4713-01-01 BC', '0001-01-01', 'infinity', '-infinity'",
    ),
    Sample("time", "'00:00', '24:00', '23:59:59.999999'", "'00:00', '24:00'"),
    Sample("time(2)", "'00:00', '23:59:59.99'", "'00:00', '23:59:59.99'"),
    Sample("time with time zone", "'24:00+15:59', '00:00-15:59', '12:34:56.789+05:30:15'", "'12:00+00', '13:00+01'"),
    Sample(
        "timestamp",
        "'4713-01-01 00:00 BC', '0001-01-01', '2024-03-31 02:30', '294276-12-31 23:59:59.999999', 'infinity', '-infinity'",
        "'4713-01-01 00:00 BC', '2024-03-31 02:30:00.000001', 'infinity'",
    ),
    Sample("timestamp(3)", "'2024-03-31 02:30:00.123'", "'2024-03-31 02:30:00.123'"),
    Sample(
        "timestamp with time zone",
        "'4713-01-01 00:00+00 BC', '1900-01-01 00:00+00', '2024-10-27 01:30+00', '294276-12-31 23:59:59.999999+00',"
        " 'infinity', '-infinity'",
        "'4713-01-01 00:00+00 BC', '2024-10-27 00:30+00', '2024-10-27 01:30+00', 'infinity'",
    ),
    Sample("timestamp(0) with time zone", "'2024-10-27 01:30:59+00'", "'2024-10-27 01:30:59+00'"),
    Sample(
        "interval",
        "'0', '1 mon', '30 days', '720 hours', '-1 year 2 months -3 days 04:05:06.789', '178000000 years',"
        " '-178000000 years', '2147483647 days', '0.000001 s'",
        "'0', '1 mon', '-1 year 2 months -3 days 04:05:06.789'",
        ("1 mon", "30 days"),
    ),
    Sample("interval year to month", "'1 year 2 mons', '0'", "'1 year 2 mons'"),
    Sample("interval day to second(3)", "'1 day 00:00:01.123'", "'1 day 00:00:01.123'"),
    Sample(
        "uuid",
        "'00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        "'00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'",
    ),
    Sample(
        "inet", "'0.0.0.0/0', '10.0.0.1', '10.0.0.1/8', '::', '::ffff:1.2.3.4/96'", "'10.0.0.1', '10.0.0.1/8', '::'"
    ),
    Sample("cidr", "'0.0.0.0/0', '10.0.0.0/8', '10.1.2.3/32', '::/0'", "'10.0.0.0/8', '10.0.0.0/9'"),
    Sample("macaddr", "'00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff'", "'00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff'"),
    Sample("macaddr8", "'00:00:00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff:ff:ff'", "'00:00:00:00:00:00:00:00'"),
    Sample("json", r"""'null', '1.0', '{"a": 1, "a":  2}', E'[1,\n  2]', '"\u0000"', '"\\"', '{"":""}'"""),
    Sample(
        "jsonb",
        r"""'null', '1.0', '1.00', '{"b": 1, "a": null}', '[]', '"\u00e9\\n"', '1e1000', '{"": {"": []}}'""",
        """'null', '{"b": 1}', '[]', '{"a": 1.0}'""",
        ('{"a": 1.0}', '{"a": 1.00}'),
    ),
    Sample("jsonpath", """'$', 'strict $."a"[*] ? (@ > 1 && @ starts with "x")'"""),
    Sample("tsvector", """'', $$'a':1A,2B 'b c':3 '''':4 '\\\\':5$$, 'z y x'""", """'', $$'a':1A,2B 'b c':3$$"""),
    Sample("tsquery", "'', $$'a' & !'b' <2> 'c':*AB | 'd e'$$", "'', 'a & b', 'a | b'"),
    Sample("point", "'(0,-0)', '(NaN,Infinity)', '(0.1,1e-300)'"),
    Sample("line", "'{1,-1,0}', '{0,1,-0.30000000000000004}'"),
    Sample("lseg", "'[(0,0),(-0,1)]'"),
    Sample("box", "'(1,1),(0,0)', '(2,0.5),(0,0)', '(0,0),(-0,-0)'"),
    Sample("path", "'((0,0),(1,1))', '[(0,0),(1,1)]', '[(0,0)]'"),
    Sample("polygon", "'((0,0),(1,1),(1,0))', '((0,0))'"),
    Sample("circle", "'<(0,0),0>', '<(1,0.1),5>'"),
    Sample("int4range", "'empty', '(,)', '[1,5)', '(1,5]', '[-2147483648,2147483647)'", "'empty', '(,)', '[1,5)'"),
    Sample("int8range", "'empty', '(,5]', '[1,)'", "'empty', '(,5]'"),
    Sample(
        "numrange", "'empty', '[1.0,1.00]', '(1,NaN)', '[-Infinity,)'", "'empty', '[1.0,2]'", ("[1.0,2]", "[1.00,2]")
    ),
    Sample("tsrange", "'empty', '[-infinity,infinity]', '(2024-01-01 00:00,)'", "'empty', '(2024-01-01 00:00,)'"),
    Sample("tstzrange", "'empty', '[2024-01-01 00:00+00,2024-10-27 01:30+00)'", "'empty', '[2024-01-01 00:00+00,)'"),
    Sample("daterange", "'empty', '[4713-01-01 BC,infinity)', '(,2024-02-29]'", "'empty', '[2024-02-29,2024-03-01)'"),
    Sample("int4multirange", "'{}', '{[1,3),[5,7)}', '{(,)}'", "'{}', '{[1,3),[5,7)}'"),
    Sample("int8multirange", "'{}', '{[1,3),[5,7)}'", "'{}', '{[1,3),[5,7)}'"),
    Sample("nummultirange", "'{}', '{[1.0,1.00],(2,NaN)}'", "'{}', '{[1.0,2]}'"),
    Sample("tsmultirange", "'{}', '{[-infinity,2024-01-01),(2024-01-01 00:00:00.1,)}'", "'{}'"),
    Sample("tstzmultirange", "'{}', '{[2024-01-01 00:00+00,2024-10-27 01:30+00)}'", "'{}'"),
    Sample("datemultirange", "'{}', '{[2024-02-29,2024-03-01),[2025-01-01,)}'", "'{}'"),
    Sample("oid", "0, '4294967295'", "0, '4294967295'"),
    Sample("xid", "'0', '4294967295'"),
    Sample("xid8", "'0', '18446744073709551615'", "'0', '18446744073709551615'"),
    Sample("cid", "'0', '4294967295'"),
    Sample("tid", "'(0,0)', '(4294967295,65535)'", "'(0,0)', '(4294967295,65535)'"),
    Sample("pg_lsn", "'0/0', 'FFFFFFFF/FFFFFFFF'", "'0/0', 'FFFFFFFF/FFFFFFFF'"),
    Sample("pg_snapshot", "'10:20:10,14', '1:1:'"),
    Sample("txid_snapshot", "'10:20:10,14', '1:1:'"),
    Sample("int2vector", "'', '1 -2 3'"),
    Sample("oidvector", "'', '1 4294967295'", "'', '1 4294967295'"),
    Sample("refcursor", "'', '<unnamed portal 1>'"),
    Sample("xml", """'', '<a b="1">&lt;</a>', 'text<b/>', '<?xml version="1.0" encoding="ISO-8859-1"?><a/>'"""),
    Sample("regclass", "'pg_class', '0'", as_text=True),
    Sample("regcollation", "'\"C\"', '0'", as_text=True),
    Sample("regconfig", "'english', '0'", as_text=True),
    Sample("regdictionary", "'simple', '0'", as_text=True),
    Sample("regnamespace", "'pg_catalog', '0'", as_text=True),
    Sample("regoper", "'||/', '0'", as_text=True),
    Sample("regoperator", "'+(integer,integer)', '0'", as_text=True),
    Sample("regproc", "'now', '0'", as_text=True),
    Sample("regprocedure", "'lower(text)', '0'", as_text=True),
    Sample("regrole", "'postgres', '0'", as_text=True),
    Sample("regtype", "'integer', 'double precision[]', '0'", as_text=True),
    Sample("aclitem", "'postgres=arwdDxt/postgres'", as_text=True),
]
WITHOUT_INPUT = {"gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "pg_dependencies", "pg_mcv_list",
                 "pg_ndistinct", "pg_node_tree"}  # fmt: skip


def has_xml(connection: psycopg.Connection[TupleRow]) -> bool:
    """Say whether the server was built with libxml, without which a column of type xml holds only NULL."""
    query = "select count(*) from pg_config where name = 'CONFIGURE' and setting like '%--with-libxml%'"
    return connection.execute(query).fetchone() == (1,)


def choose_samples(pair: Pair) -> list[Sample]:
    """Return the samples that the source can hold."""
    version = pair.source_server.version
    return [s for s in SAMPLES if s.since <= version and (s.type != "xml" or has_xml(pair.source))]


def fill_values(sample: Sample) -> str:
    """Return SQL that makes `v_LABEL` with each value alone, in arrays with NULL, nested, and with odd lower bounds."""
    name = f"v_{sample.label}"
    return f"""
        create table {name} (id int primary key, v {sample.type}, vs {sample.type}[], note text);
        insert into {name} (id, v, vs)
        select n, v, array[v, null, lead(v) over (order by n)]
        from unnest(array[{sample.values}]::{sample.type}[]) with ordinality as u (v, n);
        insert into {name} (id, v, vs) select 1000 + id, v, array_fill(v, array[2], array[-3]) from {name} where id < 1000;
        insert into {name} (id, v, vs)
        select 2000 + id, v, array_fill(v, array[2, 1, 2], array[0, 5, -1]) from {name} where id < 1000;
        insert into {name} (id, v, vs) values
            (9001, null, null), (9002, null, '{{}}'), (9003, null, '{{NULL}}'), (9004, null, null);
    """


def change_values(sample: Sample) -> str:
    """Return SQL that gives every row of `v_LABEL` another row's values, adds rows and deletes some."""
    name = f"v_{sample.label}"
    return f"""
        update {name} as t set v = s.v, vs = s.vs, note = 'changed'
        from (select id, lag(v) over w as v, lag(vs) over w as vs from {name} window w as (order by id)) as s
        where s.id = t.id;
        insert into {name} (id, v, vs) select 3000 + id, v, vs from {name} where id < 1000;
        delete from {name} where id > 2000 and id < 3000 or id = 9004;
    """


NESTED_TYPES = r"""
    create schema "My Types";
    create type mood as enum ('sad', 'so, so', 'it''s "ok"', E'\\', '', 'ハッピー');
    create type "My Types"."Enum" as enum ('a', 'b');
    create type empty as enum ();
    create type pair as (n int, note text);
    create type deep as (p pair, m mood[], "Quoted, name" numeric);
    create domain small as int check (value < 100);
    create domain smaller as small check (value < 10);
    create domain moody as mood;
    create domain code as varchar(5) not null;
    create domain numbers as int[];
    create domain price as numeric(8, 2) default 1;
    create table t (
        id smaller primary key, m mood, ms mood[], e "My Types"."Enum", es "My Types"."Enum"[][], nothing empty,
        p pair, ps pair[], d deep, s small, ss smaller[], dm moody, dms moody[], c code, cs code[],
        ns numbers, nss numbers[], price price, prices price[]
    );
    insert into t values
        (1, 'sad', '{sad,NULL,"so, so"}', 'a', '{{a,b},{NULL,b}}', null, (1, 'a, "b"'),
         array[(1, null)::pair, null], ((null, E'\\')::pair, '{"it''s \"ok\""}', 1.00), 99, '{1,NULL}', '', E'{"\\\\",""}', '', '{a,abcde}',
         '{1,NULL}', '{"{1,2}",NULL}', 1, '{1.00,NULL}'),
        (2, null, '{}', null, '{}', null, null, '{}', null, null, '{}', null, null, 'x', '{}', '{}', null, null, null),
        (3, 'ハッピー', '[-1:0]={sad,""}', 'b', null, null, '(,)', null, (null, null, null), 0, '[5:5]={0}', 'sad', '{}',
         'é', null, '[0:1]={1,2}', '{}', 'NaN', '{}');
"""
CHANGE_NESTED_TYPES = """
    update t set m = 'so, so', ms = ms || 'sad'::mood, p = (7, 'changed'), ss = '{9}', ns = ns || 3, dm = '' where id = 1;
    delete from t where id = 2;
    insert into t (id, m, c) values (4, '', 'new');
"""


EXTENSIONS = {
    "hstore": ("hstore", r"""'', 'a=>1', '"k, \"q\""=>NULL, b=>"NULL", "\\"=>""'""", "'a=>1', ''"),
    "citext": ("citext", "'', 'Straße', 'ABC', 'NULL'", "'abc', 'ÉTÉ', ''"),
    "ltree": ("ltree", "'', 'Top.Science.Astronomy', 'a.b_1'", "'', 'Top.Science', 'Top'"),
    "vector": ("vector(3)", "'[1,2,3]', '[0.1,-0,1e-30]'", "'[1,2,3]', '[3,2,1]'"),
}


def list_extensions(pair: Pair, connection: psycopg.Connection[TupleRow]) -> set[str]:
    """Return those of EXTENSIONS that a server could install; at least one is on every server under test."""
    query = "select name from pg_available_extensions where name = any (%s)"
    found = {name for (name,) in connection.execute(query, [list(EXTENSIONS)])}
    assert found
    return found


HOSTILE = {
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "timezone": "Pacific/Chatham",
    "xmloption": "document",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "search_path": "hostile, pg_catalog",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "idle_in_transaction_session_timeout": "1s",
    "row_security": "off",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
}
CELLS = {
    "text": r"repeat(E'\\', 200 << 20)",
    "bytea": r"decode(repeat('5c', 200 << 20), 'hex')",
}
MANY_TYPES = """
    create table t (
        id int, k text, f real, d double precision, n numeric, day date, at timestamp, atz timestamptz, span interval,
        b bytea, j json, jb jsonb, note text, words text[], numbers int[], spans interval[], days date[], bs bytea[], m money,
        r tstzrange, q tsquery, primary key (k, id)
    );
    insert into t values
        (1, 'a''\\', 0.1, 0.30000000000000004, 1.00, '2024-02-01', '2024-02-01 12:34:56.789', '2024-02-01 12:34:56.789+05',
         '-1 year 2 months -3 days 04:05:06.789', '\\x00ff5c27', '{"a":  1}', '{"a": null}', E'back\\\\slash ''quote''',
         '{NULL,"NULL",null,""}', '{1,NULL}', '{"-1 mons",NULL}', '{2024-02-01,NULL}', array['\\xff'::bytea, null], '12.34',
         '[2024-02-01 00:00+05,)', ''),
        (2, 'ß', null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
         null);
"""


def make_hostile(pair: Pair) -> None:
    """Set everything in both databases that changes how values or SQL are read, and functions that stand in the way."""
    for connection, database in ((pair.source, pair.source_db), (pair.target, pair.target_db)):
        connection.execute("create schema hostile; grant usage on schema hostile to public")
        connection.execute("create function hostile.md5(text) returns text language sql as $$ select 'x' $$")
        connection.execute(
            "create function hostile.hashtextextended(text, bigint) returns bigint language sql as 'select 1::bigint'"
        )
        for name, value in HOSTILE.items():
            words = sql.SQL(", ").join(map(sql.Literal, value.split(", ")))
            statement = sql.SQL("alter database {} set {} = {}")
            connection.execute(statement.format(sql.Identifier(database), sql.Identifier(name), words))


def install_extensions(pair: Pair, installed: bool) -> tuple[set[str], set[str]]:
    """Install EXTENSIONS in a schema of the source and, if asked for, in another one of the target; return which.

    The source's tables of them are filled: `v_LABEL` as `fill_values` says, `k_NAME` with the type as its key.
    """
    here = list_extensions(pair, pair.source)
    there = list_extensions(pair, pair.target) & here if installed else set()
    pair.source.execute("create schema ext")
    pair.target.execute("create schema other; grant usage on schema other to public")
    for name in here:
        pair.source.execute(f"create extension {name} schema ext")
    for name in there:
        pair.target.execute(f"create extension {name} schema other")
    pair.source.execute("set search_path = public, ext")
    for name in here:
        type_name, values, key = EXTENSIONS[name]
        pair.source.execute(fill_values(Sample(type_name, values, key)))
        pair.source.execute(f"""
            create table k_{name} (id {type_name} primary key, n int);
            insert into k_{name} select v, 0 from unnest(array[{key}]::{type_name}[]) as v;
        """)
    return here, there
