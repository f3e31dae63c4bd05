-- A schema that somebody brings: hundreds of tables, more than ninety types, every shape of table that PostgreSQL
-- has and every name that it allows. Runs on PostgreSQL 15 to 18 as superuser in an empty UTF8 database; what a
-- build or version lacks (hstore, citext, xml, virtual columns, keys without overlaps) is left out there.

set check_function_bodies = off;
set client_min_messages = warning;

create schema shop;
create schema kinds;
create schema keys;
create schema parts;
create schema trees;
create schema odd;
create schema "Groß & klein";
create schema "select";
create schema "a.b";
create schema "🐘 100% {sure} \ ""yes""";

do $$
declare
    name text;
begin
    for name in
        select e.name from pg_available_extensions e where e.name in ('hstore', 'citext', 'ltree') order by 1
    loop
        execute format('create extension %I schema public', name);
    end loop;
end $$;

-- ---------------------------------------------------------------------------------------------- types of its own

create type shop.mood as enum ('sad', 'ok', 'happy', 'it''s "odd", {really}', 'ÄÖÜ 🐘', '');
create type shop."Order State" as enum ('new', 'paid', 'sent');
create type shop.address as (street text, zip varchar(10), at point, since date);
create type shop.person as (name text, home shop.address, moods shop.mood[]);
create type shop.pair as (a integer, b text);
create domain shop.positive as integer check (value > 0);
create domain shop.even as shop.positive check (value % 2 = 0);
create domain shop.email as text check (value ~ '@' or value = '');
create domain shop.tags as text[];
create domain shop.place as shop.address;
create type shop.span as range (subtype = float8, subtype_diff = float8mi);
create type shop.moods as range (subtype = shop.mood);
create type shop.wordrange as range (subtype = text, collation = "C");

-- ---------------------------------------------------------------------------------------------------- ninety types

-- One column for each built-in type that can be stored. NULLs, edges and random rows come below.
create table kinds.everything (
    id bigint primary key,
    c_bool boolean,
    c_int2 smallint,
    c_int4 integer,
    c_int8 bigint,
    c_float4 real,
    c_float8 double precision,
    c_numeric numeric,
    c_numeric_scaled numeric(20, 6),
    c_numeric_negative numeric(5, -2),
    c_money money,
    c_text text,
    c_varchar varchar,
    c_varchar_n varchar(40),
    c_bpchar char(9),
    c_bpchar_free bpchar,
    c_char "char",
    c_name name,
    c_bytea bytea,
    c_bit bit(11),
    c_varbit bit varying,
    c_varbit_n bit varying(33),
    c_date date,
    c_time time,
    c_time_p time(2),
    c_timetz time with time zone,
    c_timestamp timestamp,
    c_timestamp_p timestamp(3),
    c_timestamptz timestamptz,
    c_timestamptz_p timestamptz(0),
    c_interval interval,
    c_interval_ym interval year to month,
    c_interval_p interval second(3),
    c_uuid uuid,
    c_json json,
    c_jsonb jsonb,
    c_jsonpath jsonpath,
    c_inet inet,
    c_cidr cidr,
    c_macaddr macaddr,
    c_macaddr8 macaddr8,
    c_point point,
    c_line line,
    c_lseg lseg,
    c_box box,
    c_path path,
    c_polygon polygon,
    c_circle circle,
    c_tsvector tsvector,
    c_tsquery tsquery,
    c_pg_lsn pg_lsn,
    c_pg_snapshot pg_snapshot,
    c_txid_snapshot txid_snapshot,
    c_xid xid,
    c_xid8 xid8,
    c_cid cid,
    c_tid tid,
    c_oid oid,
    c_oidvector oidvector,
    c_int2vector int2vector,
    c_regclass regclass,
    c_regtype regtype,
    c_regproc regproc,
    c_regprocedure regprocedure,
    c_regoper regoper,
    c_regoperator regoperator,
    c_regrole regrole,
    c_regnamespace regnamespace,
    c_regconfig regconfig,
    c_regdictionary regdictionary,
    c_regcollation regcollation,
    c_int4range int4range,
    c_int8range int8range,
    c_numrange numrange,
    c_tsrange tsrange,
    c_tstzrange tstzrange,
    c_daterange daterange,
    c_int4multirange int4multirange,
    c_int8multirange int8multirange,
    c_nummultirange nummultirange,
    c_tsmultirange tsmultirange,
    c_tstzmultirange tstzmultirange,
    c_datemultirange datemultirange,
    c_refcursor refcursor,
    c_aclitem aclitem,
    c_text_german text collate "C",
    c_mood shop.mood,
    c_state shop."Order State",
    c_address shop.address,
    c_person shop.person,
    c_positive shop.positive,
    c_even shop.even,
    c_email shop.email,
    c_tags shop.tags,
    c_place shop.place,
    c_span shop.span,
    c_spanmulti shop.span_multirange,
    c_moodrange shop.moods,
    c_wordrange shop.wordrange
);
comment on table kinds.everything is 'One column for each type; ''quotes'' and 100 %';
comment on column kinds.everything.c_money is 'Not for money.';

insert into kinds.everything (id) values (-9223372036854775808), (0);

insert into kinds.everything values (
    1, true, -32768, -2147483648, -9223372036854775808, 'NaN', 'NaN', 'NaN', 0.000001, 12300, '-92233720368547758.08',
    '', '', '', '', '', '', '', '', b'00000000000', b'', b'', '4713-01-01 BC', '00:00', '24:00', '24:00:00-15:59',
    '-infinity', 'infinity', '-infinity', 'infinity', '-178000000 years', '-1 year', '-0.001 s',
    '00000000-0000-0000-0000-000000000000', ' { "b" : 1, "a":2, "b" : 3 } ', '{"b": 1, "a": 2, "b": 3}', '$',
    '0.0.0.0/0', '::/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00', '(NaN,-0)', '{1,0,0}', '[(0,0),(0,0)]',
    '(1,1),(0,0)', '[(0,0)]', '((0,0))', '<(0,0),0>', '', '', '0/0', '1:1:', '1:1:', '0', '0', '0', '(0,0)', '0', '',
    '', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', '{}', '{}', '{}', '{}',
    '{}', '{}', '', 'postgres=r/postgres', '', '', 'new', '(,,,)', '(,,)', 1, 2, '', '{}', '(,,,)', 'empty', '{}', 'empty', 'empty'
), (
    2, false, 32767, 2147483647, 9223372036854775807, '-Infinity', 'Infinity', 'Infinity', -99999999999999.999999,
    -99900, '92233720368547758.07', E'tab\there\nnewline\r\nback\\slash \\N \\. \x01', '\N', '\.', 'a  b', 'trailing  ',
    '\377', 'quote"and''apostrophe', '\x00ff5c0a09', b'11111111111', b'101', b'1', '5874897-12-31', '23:59:59.999999',
    '23:59:59.99', '00:00:00+15:59:59', '294276-12-31 23:59:59.999999', '0044-03-15 12:00:00.123 BC',
    '294276-12-31 23:59:59.999999+00', '4713-01-01 00:00:00+00 BC', '1 mon -30 days +00:00:00.000001', '999 years 11 months',
    '12345.678 s', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '[1e400, -0.0, "\u00e4", null, true, {"": ""}]',
    '[1e400, -0.0, "\u00e4", null, true, {"": ""}]', 'strict $.a[*] ? (@.b > 1.50 && @.c like_regex "^x" flag "i")',
    '::ffff:1.2.3.4/96', '10.0.0.0/8', 'ff:ff:ff:ff:ff:ff', 'ff:ff:ff:ff:ff:ff:ff:ff', '(0.1,0.30000000000000004)',
    '{0.1,-1,1e-300}', '[(1e308,-1e308),(Infinity,-Infinity)]', '(1e308,Infinity),(-Infinity,-1e308)',
    '((0,0),(1,1),(2,0.1))', '((0,0),(1,1),(0,1))', '<(1.5,-2.5),1e300>', '''a b'':1A,2B,16383D c', 'a & !(b | ''c d'':*AB) <3> e',
    'FFFFFFFF/FFFFFFFF', '10:20:10,14,15', '10:20:10,14,15', '4294967295', '18446744073709551615', '4294967295',
    '(4294967295,65535)', '4294967295', '1 2 3', '-1 0 1', 'pg_class', 'integer', 'now', 'abs(integer)', '||/',
    '+(integer,integer)', 'postgres', 'pg_catalog', 'simple', 'simple', '"C"', '[1,10)', '(,5]', '(0.1,)', '["2020-01-01 00:00","2020-01-02 00:00")',
    '(,)', '[infinity,)', '{[1,3),[5,7)}', '{(,5],[7,)}', '{[0.1,0.2],(0.3,0.4)}', '{["2020-01-01","2020-01-02"]}', '{(,)}',
    '{[2020-01-01,2020-02-01),[2021-01-01,infinity)}', 'a cursor', '=arwdDxt*/postgres', 'ß', 'it''s "odd", {really}', 'sent',
    '("5, ""High"" Street\\",12345,"(1,2)",2020-02-29)', '("O''Neil, ""Pat""","(,,""(0,0)"",infinity)","{sad,""it''s \\""odd\\"", {really}""}")',
    2147483647, 2147483646, 'a@b', '{"a,b",NULL,"NULL","","{}","\\"}', '(x,y,,)', '[0.1,0.30000000000000004]', '{[1,2),[3,4)}', '[sad,happy]', '["a,b","é""]")'
);

-- Text that differs although the values are equal by the type's own operator, and the other way round.
create table kinds.twins (
    id integer primary key,
    n numeric,
    f double precision,
    j json,
    jb jsonb,
    p point,
    i interval,
    tz timetz,
    b bpchar(5),
    r numrange,
    c circle
);
insert into kinds.twins values
    (1, 1.0, 0, '{"a":1}', '1.0', '(0,0)', '1 mon', '10:00+00', 'a', '[1.0,2)', '<(0,0),1>'),
    (2, 1.00, '-0', '{"a": 1}', '1.00', '(0,-0)', '30 days', '11:00+01', 'a  ', '[1.00,2)', '<(0,-0),1>');

-- One array column for each element type, and one for arrays of the schema's own types.
do $$
declare
    element text;
    columns text := 'id integer primary key';
    assignments text[] := '{}';
    source record;
begin
    for source in
        select a.attname, format_type(a.atttypid, a.atttypmod) as kind
        from pg_attribute a
        join pg_type t on t.oid = a.atttypid and t.typarray <> 0
        where a.attrelid = 'kinds.everything'::regclass and a.attnum > 1
        order by a.attnum
    loop
        columns := columns || format(', %I %s[]', 'a' || substr(source.attname, 2), source.kind);
    end loop;
    execute format('create table kinds.arrays (%s)', columns);

    -- NULL, empty, one dimension with NULLs, two dimensions, lower bounds that are not 1
    insert into kinds.arrays (id) values (0), (1), (2), (3), (4);
    for source in
        select a.attname, 'c' || substr(a.attname, 2) as original
        from pg_attribute a
        where a.attrelid = 'kinds.arrays'::regclass and a.attnum > 1
        order by a.attnum
    loop
        execute format('update kinds.arrays set %I = ''{}'' where id = 1', source.attname);
        execute format(
            'update kinds.arrays set %1$I = array(select %2$I from kinds.everything order by id) where id = 2',
            source.attname, source.original
        );
        continue when source.attname = 'a_tags'; -- an array of arrays has no second dimension to give
        execute format(
            'update kinds.arrays set %1$I = array[
                [(select %2$I from kinds.everything where id = 1), null],
                [null, (select %2$I from kinds.everything where id = 2)]] where id = 3',
            source.attname, source.original
        );
        execute format(
            'update kinds.arrays set %1$I[-3:-2] =
                array[(select %2$I from kinds.everything where id = 1), (select %2$I from kinds.everything where id = 2)]
            where id = 4',
            source.attname, source.original
        );
    end loop;
end $$;

-- What not every build has.
do $$
declare
    extension text;
begin
    for extension in select extname from pg_extension loop
        case extension
        when 'hstore' then
            create table kinds.with_hstore (id integer primary key, h hstore, hs hstore[]);
            insert into kinds.with_hstore values
                (1, null, null), (2, '', '{}'), (3, 'a=>1, "b c"=>"d\"e", n=>NULL', '{"a=>1",NULL,"\"x,y\"=>\"{}\""}');
        when 'citext' then
            create table kinds.with_citext (id integer primary key, c citext, cs citext[]);
            insert into kinds.with_citext values (1, null, null), (2, '', '{}'), (3, 'Mixed CASE', '{A,a,NULL}');
            create table keys.by_citext (k citext primary key, v integer);
            insert into keys.by_citext select 'Key ' || chr(65 + i % 26) || i, i from generate_series(1, 60) i;
        when 'ltree' then
            create table kinds.with_ltree (path ltree primary key, q lquery, tq ltxtquery, ps ltree[]);
            insert into kinds.with_ltree values
                ('', '*', 'a', '{}'), ('top', '*.top.*{1,2}', 'a & !b', null), ('top.a_1', 'a|b@*.!c', 'x%*', '{a,a.b,NULL}');
        else null;
        end case;
    end loop;

    begin
        perform '<a/>'::xml;
        create table kinds.with_xml (id integer primary key, x xml, xs xml[]);
        insert into kinds.with_xml values
            (1, null, null), (2, '', '{}'), (3, '<?xml version="1.0" standalone="yes"?><a b="&lt;">text<c/></a>', '{<a/>,NULL}'),
            (4, 'content, <b>not</b> a document', array['<x>1,"2"</x>'::xml]), (5, '<!DOCTYPE d><d/>', null);
    exception when feature_not_supported then
        null;
    end;

    if current_setting('server_version_num')::integer >= 180000 then
        create table odd.virtual_columns (
            id integer primary key, a integer, doubled integer generated always as (a * 2) virtual, b text
        );
        insert into odd.virtual_columns (id, a, b) select i, i, 'b' || i from generate_series(1, 20) i;
    end if;
end $$;

-- ------------------------------------------------------------------------------------------ three hundred tables

do $$
declare
    schema_names text[] := array['bulk_a', 'bulk_b', 'bulk_c', 'Groß & klein', 'a.b'];
    schema_name text;
    table_name text;
begin
    create schema bulk_a;
    create schema bulk_b;
    create schema bulk_c;
    for i in 1..300 loop
        schema_name := schema_names[1 + i % 5];
        table_name := format('t%s', lpad(i::text, 3, '0'));
        execute format(
            'create %s table %I.%I (id %s, name text, amount numeric(12, 2), at timestamptz, note %s, flag boolean%s)',
            case when i % 17 = 0 then 'unlogged' else '' end, schema_name, table_name,
            case i % 6
                when 0 then 'bigint generated by default as identity primary key'
                when 1 then 'bigint generated always as identity primary key'
                when 2 then 'serial primary key'
                when 3 then 'bigint not null'
                when 4 then 'uuid primary key default gen_random_uuid()'
                else 'integer'
            end,
            case i % 3 when 0 then 'jsonb' when 1 then 'text' else 'text[]' end,
            case i % 4 when 0 then ', double_amount numeric generated always as (amount * 2) stored' else '' end
        );
        if i % 6 = 3 then
            execute format('create unique index on %I.%I (id)', schema_name, table_name);
            if i % 4 = 1 then
                execute format('alter table %I.%I replica identity using index %I', schema_name, table_name, table_name || '_id_idx');
            elsif i % 8 = 3 then
                execute format('alter table %I.%I replica identity full', schema_name, table_name);
            end if;
        end if;
        if i % 7 = 0 then
            execute format('create index on %I.%I (at); comment on table %1$I.%2$I is %3$L',
                           schema_name, table_name, 'Table ' || i);
        end if;
        continue when i % 11 = 0;  -- without rows
        execute format(
            'insert into %I.%I (%sname, amount, at, note, flag)
            select %s %L || n, n * 1.5, timestamptz ''2024-01-01 00:00+00'' + n * interval ''1 h 7 min'', %s, n %% 3 = 0
            from generate_series(1, %s) n',
            schema_name, table_name,
            case when i % 6 in (3, 4, 5) then 'id, ' else '' end,
            case when i % 6 in (3, 5) then 'n, '
                 when i % 6 = 4 then format('md5(%L || n)::uuid, ', i) else '' end,
            'name ', case i % 3 when 0 then 'to_jsonb(n)' when 1 then 'n::text' else 'array[n::text, null]' end,
            1 + i % 23
        );
    end loop;
end $$;

-- --------------------------------------------------------------------------------------------------------- keys

-- A table for each type that may be a key; `expression` makes the key of row i.
create table keys.kinds (kind text primary key, expression text not null);
insert into keys.kinds values
    ('text', '''Straße '' || i || chr(10) || ''"x", \'''), ('varchar(50)', '''v '' || i'), ('bpchar(12)', '''b'' || i'),
    ('name', '''n'' || i'), ('"char"', 'chr(i)::"char"'), ('uuid', 'md5(i::text)::uuid'), ('numeric', 'i / 7.0'),
    ('numeric(10,3)', 'i / 7.0'), ('smallint', 'i - 30'), ('integer', '-i * 1000003'), ('bigint', 'i * 10000000000'),
    ('real', 'i / 3.0'), ('double precision', 'case i when 1 then ''NaN'' when 2 then ''Infinity'' else i / 3.0 end'),
    ('money', 'i * 1.11'), ('boolean', 'i = 1'), ('date', 'case i when 1 then ''infinity'' else date ''2020-02-28'' + i end'),
    ('time', 'time ''00:00'' + i * interval ''61 s'''), ('time with time zone', 'timetz ''00:00+02'' + i * interval ''61 s'''),
    ('timestamp', 'case i when 1 then ''-infinity'' else timestamp ''2020-10-25'' + i * interval ''1001 ms'' end'),
    ('timestamptz', 'case i when 1 then ''0044-01-01 BC'' else timestamptz ''2020-10-25 00:00+02'' + i * interval ''1 us'' end'),
    ('interval', 'i * interval ''1 day 3 h'''), ('bytea', 'decode(md5(i::text), ''hex'')'),
    ('inet', 'inet ''10.0.0.0/8'' + i'), ('cidr', 'set_masklen(cidr ''10.0.0.0/8'', 8 + i % 24)'),
    ('macaddr', '(''08:00:2b:01:02:'' || lpad(to_hex(i), 2, ''0''))::macaddr'),
    ('macaddr8', '(''08:00:2b:01:02:03:04:'' || lpad(to_hex(i), 2, ''0''))::macaddr8'),
    ('bit(8)', 'i::bit(8)'), ('varbit', 'i::bit(8)::varbit'), ('jsonb', 'jsonb_build_object(''k'', i)'),
    ('oid', 'i::oid'), ('pg_lsn', '(''0/'' || to_hex(i))::pg_lsn'), ('xid8', 'i::text::xid8'), ('tid', '(''(0,'' || i || '')'')::tid'),
    ('int4range', 'int4range(i, i + 5)'), ('tstzmultirange', 'tstzmultirange(tstzrange(timestamptz ''2020-01-01'' + i * interval ''1 day'', null))'),
    ('integer[]', 'array[i, null, i]'), ('text[]', 'array[''a'' || i, null, ''{"''] '), ('tsvector', 'to_tsvector(''simple'', ''w'' || i)'),
    ('shop.mood', '(enum_range(null::shop.mood))[1 + i % 6]'), ('shop.pair', 'row(i, ''s'' || i)::shop.pair'),
    ('shop.positive', 'i'), ('shop.email', 'i || ''@x'''), ('shop.wordrange', 'shop.wordrange(''a'', ''b'' || i)'), ('regclass', 'case i % 2 when 1 then ''pg_class''::regclass else ''pg_type'' end');
do $$
declare
    kind record;
begin
    for kind in select kinds.kind, 'by ' || kinds.kind as name, expression from keys.kinds
    loop
        execute format('create table keys.%I (k %s primary key, v integer, w text)', kind.name, kind.kind);
        execute format(
            'insert into keys.%I select (%s)::%s, i, ''row '' || i from generate_series(1, 60) i on conflict do nothing',
            kind.name, kind.expression, kind.kind
        );
    end loop;
end $$;

create table keys.composite (
    a text, b uuid, c numeric, d date, e bytea, f inet, g shop.mood, h timestamptz, v text,
    primary key (h, g, f, e, d, c, b, a)
);
insert into keys.composite
select 'a' || i % 3, md5((i % 4)::text)::uuid, i % 5, date '2020-01-01' + i % 6, decode(lpad(to_hex(i), 4, '0'), 'hex'), inet '10.0.0.1' + i % 7,
    (enum_range(null::shop.mood))[1 + i % 6], timestamptz '2020-01-01' + i % 8 * interval '1 us', 'v' || i
from generate_series(1, 300) i;

create table keys.deferrable_key (id integer primary key deferrable initially deferred, pos integer unique deferrable, name text);
insert into keys.deferrable_key select i, i, 'n' || i from generate_series(1, 50) i;

create table keys.identity_key (a integer not null, b integer not null, v text);
create unique index identity_key_index on keys.identity_key (b, a);
alter table keys.identity_key replica identity using index identity_key_index;
insert into keys.identity_key select i, -i, 'v' || i from generate_series(1, 50) i;

-- Unique, but no key: an expression, a part, a column that may be NULL.
create table keys.only_expression (name text not null, v integer);
create unique index on keys.only_expression (lower(name));
insert into keys.only_expression select 'Name ' || i, i from generate_series(1, 30) i;
create table keys.only_partial (name text not null, live boolean not null, v integer);
create unique index on keys.only_partial (name) where live;
insert into keys.only_partial select 'n' || i % 10, i <= 10, i from generate_series(1, 30) i;
create table keys.only_nullable (name text unique, v integer);
insert into keys.only_nullable select nullif(i, 3)::text, i from generate_series(1, 10) i union all select null, 3;
create table keys.nulls_not_distinct (a integer, b text, v integer, unique nulls not distinct (a, b));
insert into keys.nulls_not_distinct values (1, null, 1), (null, 'x', 2), (null, null, 3), (1, 'x', 4);
create table keys.included (id integer, extra text, v integer, primary key (id) include (extra));
insert into keys.included select i, 'e' || i, i from generate_series(1, 30) i;
create table keys.excluded (id integer primary key, during daterange, exclude using gist (during with &&));
insert into keys.excluded select i, daterange(date '2020-01-01' + i * 10, date '2020-01-01' + i * 10 + 10) from generate_series(1, 30) i;
create table keys.all_key (a integer, b text, primary key (a, b));
insert into keys.all_key select i, 'b' || i from generate_series(1, 30) i;
do $$
begin
    create collation keys.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create table keys.by_nocase (k text collate keys.nocase primary key, v text collate keys.nocase);
    insert into keys.by_nocase select 'Key ' || i, 'V' || i from generate_series(1, 30) i;
exception when feature_not_supported then
    null;
end $$;

do $$
begin
    if current_setting('server_version_num')::integer >= 180000 then
        create table keys.without_overlaps (a int4range, during daterange, v text, primary key (a, during without overlaps));
        insert into keys.without_overlaps
        select int4range(i % 3, i % 3 + 1), daterange(date '2020-01-01' + i * 10, date '2020-01-01' + i * 10 + 10), 'v' || i
        from generate_series(1, 30) i;
    end if;
end $$;

-- --------------------------------------------------------------------------------------------------- partitions

create table parts.by_range (id bigint, day date not null, body text, primary key (id, day)) partition by range (day);
create table parts.by_range_2023 partition of parts.by_range for values from (minvalue) to ('2024-01-01');
create table parts.by_range_2024 partition of parts.by_range for values from ('2024-01-01') to ('2025-01-01');
create table parts.by_range_rest partition of parts.by_range default;
insert into parts.by_range select i, date '2023-06-01' + i * 3, 'body ' || i from generate_series(1, 400) i;

create table parts.by_list (region text, id integer, v text, primary key (region, id)) partition by list (region);
create table parts.by_list_eu partition of parts.by_list for values in ('de', 'fr', 'it');
create table parts.by_list_us partition of parts.by_list for values in ('us');
create table parts."by_list (others)" partition of parts.by_list default;
insert into parts.by_list select (array['de', 'fr', 'us', 'jp'])[1 + i % 4], i, 'v' || i from generate_series(1, 200) i;

create table parts.by_list_null (region text, v integer) partition by list (region); -- no key
create table parts.by_list_null_null partition of parts.by_list_null for values in (null);
create table parts.by_list_null_x partition of parts.by_list_null for values in ('x');
insert into parts.by_list_null select nullif('x', case i % 2 when 0 then 'x' end), i % 5 from generate_series(1, 40) i;

create table parts.by_hash (id uuid primary key, v numeric) partition by hash (id);
create table parts.by_hash_0 partition of parts.by_hash for values with (modulus 2, remainder 0);
create table parts.by_hash_1 partition of parts.by_hash for values with (modulus 4, remainder 1);
create table parts.by_hash_3 partition of parts.by_hash for values with (modulus 4, remainder 3);
insert into parts.by_hash select md5('h' || i)::uuid, i / 3.0 from generate_series(1, 200) i;

-- List over range over hash; leaves in other column order, one with a dropped column, one in another schema.
create table parts.nested (
    tenant integer not null, at timestamptz not null, id bigint generated by default as identity, payload jsonb,
    primary key (tenant, at, id)
) partition by list (tenant);
create table parts.nested_1 partition of parts.nested for values in (1) partition by range (at);
create table parts.nested_1_old partition of parts.nested_1 for values from (minvalue) to ('2024-01-01') partition by hash (id);
create table parts.nested_1_old_0 partition of parts.nested_1_old for values with (modulus 2, remainder 0);
create table parts.nested_1_old_1 partition of parts.nested_1_old for values with (modulus 2, remainder 1);
create table parts.nested_1_new (
    payload jsonb, gone text, id bigint not null, at timestamptz not null, tenant integer not null
);
alter table parts.nested_1_new drop column gone;
alter table parts.nested_1 attach partition parts.nested_1_new for values from ('2024-01-01') to (maxvalue);
create table "a.b"."nested.2" partition of parts.nested for values in (2);
create table parts.nested_rest partition of parts.nested default partition by range (tenant, at);
create table parts.nested_rest_all partition of parts.nested_rest default;
insert into parts.nested (tenant, at, id, payload)
select i % 5, timestamptz '2023-12-01' + i * interval '5 h', i, jsonb_build_object('i', i) from generate_series(1, 400) i;

create table parts.empty_root (id integer primary key, v text) partition by range (id);
create table parts.by_expression (name text, v integer) partition by list (lower(name));
create table parts.by_expression_a partition of parts.by_expression for values in ('a');
create table parts.by_expression_rest partition of parts.by_expression default;
insert into parts.by_expression select (array['A', 'a', 'B', null])[1 + i % 4], i from generate_series(1, 40) i;
-- keyed leaves below a root without a key
create table parts.keyed_leaves (id integer not null, at date) partition by range (at);
create table parts.keyed_leaves_1 partition of parts.keyed_leaves (primary key (id)) for values from ('2024-01-01') to ('2025-01-01');
create table parts.keyed_leaves_2 partition of parts.keyed_leaves (primary key (id)) for values from ('2025-01-01') to ('2026-01-01');
insert into parts.keyed_leaves select i, date '2024-01-01' + i % 700 from generate_series(1, 60) i;
insert into parts.keyed_leaves select i, date '2025-01-01' from generate_series(1, 5) i;

-- --------------------------------------------------------------------------------------------------------- trees

create table trees.parent (id integer primary key, name text);
create table trees.child (extra integer, primary key (id)) inherits (trees.parent);
create table trees.grandchild (more text[], primary key (id)) inherits (trees.child);
create table trees.other_child (id integer, name text, own date default '2020-01-01') inherits (trees.parent); -- no key
insert into trees.parent select i, 'parent ' || i from generate_series(1, 30) i;
insert into trees.child select i, 'child ' || i, i from generate_series(31, 60) i;
insert into trees.grandchild select i, 'grandchild ' || i, i, array['m'] from generate_series(61, 90) i;
insert into trees.other_child select i, 'other ' || i from generate_series(91, 100) i;
-- The same key in parent and child: allowed, since each table has a key of its own.
create table trees.twice (id integer primary key, v text);
create table trees.twice_below (primary key (id)) inherits (trees.twice);
insert into trees.twice values (1, 'above'), (2, 'above');
insert into trees.twice_below values (3, 'below'), (4, 'below');
create table trees.mother (m integer);
create table trees.father (f text);
create table trees.both (id serial primary key) inherits (trees.mother, trees.father);
insert into trees.mother select generate_series(1, 5);
insert into trees.father values ('f'), ('f'), (null);
insert into trees.both (m, f) select i, 'both' from generate_series(1, 5) i;

-- ----------------------------------------------------------------------------------------------------------- odd

create table odd.no_columns ();
insert into odd.no_columns select from generate_series(1, 7);
create table odd.no_columns_no_rows ();
create table odd.lost_columns (a integer, b text);
insert into odd.lost_columns select i, 'x' from generate_series(1, 3) i;
alter table odd.lost_columns drop column a, drop column b;
create table odd.no_key (a integer, b text, c numeric);
insert into odd.no_key select i % 3, nullif('b' || i % 2, 'b1'), 1.0 from generate_series(1, 60) i;
insert into odd.no_key values (null, null, null), (null, null, null), (1, 'b0', 1.00);
create table odd.no_key_json (j json, x point);
insert into odd.no_key_json values ('{"a": 1}', '(1,1)'), ('{"a": 1}', '(1,1)'), ('{"a":1}', '(1,1)'), (null, null);
create table odd.empty (id integer primary key, v text);
create table odd.empty_no_key (v text);
create unlogged table odd.unlogged (id integer primary key, v text);
insert into odd.unlogged select i, 'u' || i from generate_series(1, 30) i;
create table odd.dropped (a integer, id integer primary key, b text, c text default 'c', d integer);
alter table odd.dropped drop column a, drop column b, add column e text default 'fast default', add column f integer not null default 7;
insert into odd.dropped (id, d) select i, i from generate_series(1, 30) i;
alter table odd.dropped add column g text default 'later', add column h timestamptz default '2020-01-01';
create table odd.generated (
    id integer generated always as identity (start with -1 increment by -7) primary key,
    first text, last text, whole text generated always as (first || ' ' || last) stored,
    size integer not null default length('default'), upper_only text check (upper_only = upper(upper_only))
);
insert into odd.generated (first, last, upper_only) select 'F' || i, 'L' || i, 'U' || i from generate_series(1, 40) i;
create table odd.generated_key (
    a integer not null, k integer generated always as (a * 10) stored primary key, v text
);
insert into odd.generated_key (a, v) select i, 'v' || i from generate_series(1, 20) i;
create table odd.toasted (id integer primary key, short text, long text, external text, bytes bytea, doc jsonb);
alter table odd.toasted alter external set storage external;
insert into odd.toasted
select i, 's' || i, repeat('long ' || i, 20000), (select string_agg(md5(i::text || n), '') from generate_series(1, 3000) n),
    decode(repeat(md5(i::text), 5000), 'hex'),
    (select jsonb_object_agg('k' || n, md5(n::text || i)) from generate_series(1, 500) n)
from generate_series(1, 12) i;
create table odd.wide (id integer primary key);
do $$
begin
    execute 'alter table odd.wide ' || (select string_agg(format('add column c%s %s', n, (array['integer', 'text', 'boolean', 'numeric', 'date'])[1 + n % 5]), ', ') from generate_series(1, 900) n);
end $$;
insert into odd.wide (id, c1, c2, c500, c900) select i, 'one', i % 2 = 0, 5, i from generate_series(1, 20) i;
create table odd.ruled (id integer primary key, v text);
create table odd.ruled_log (id integer, at text);
insert into odd.ruled select i, 'v' || i from generate_series(1, 10) i;
create rule ruled_insert as on insert to odd.ruled do also insert into odd.ruled_log values (new.id, 'inserted');
create rule ruled_delete as on delete to odd.ruled where old.id < 3 do instead nothing;
create function odd.touch() returns trigger language plpgsql as $$
begin
    new.v := coalesce(new.v, '') || '!';
    new.at := clock_timestamp();
    return new;
end $$;
create table odd.triggered (id integer primary key, v text, at timestamptz);
create trigger touch before insert or update on odd.triggered for each row execute function odd.touch();
alter table odd.triggered enable always trigger touch;
insert into odd.triggered select i, 'v' || i from generate_series(1, 20) i;
create sequence odd.counter cycle minvalue -5 maxvalue 20;
create table odd.sequenced (id integer default nextval('odd.counter') unique, v text);
insert into odd.sequenced (v) select 's' || i from generate_series(1, 8) i;
create table odd.of_type of shop.pair (primary key (a));
insert into odd.of_type select i, 'typed' from generate_series(1, 10) i;
create type odd.ring as (a integer);
create table odd.row_typed (id integer primary key, r odd.of_type, rs odd.of_type[], l odd.ring); -- a table's row type
insert into odd.row_typed values (1, row(1, 'x'), array[row(1, 'y')::odd.of_type, null], row(1)), (2, null, null, row(null));
create table odd.clustered (id integer primary key, v text) with (fillfactor = 20, autovacuum_enabled = off);
create index clustered_v on odd.clustered (v);
insert into odd.clustered select i, md5(i::text) from generate_series(1, 30) i;
cluster odd.clustered using clustered_v;

-- ------------------------------------------------------------------------------------------------- foreign keys

create table shop.customers (
    id bigint generated always as identity primary key, email shop.email unique, mood shop.mood not null default 'ok',
    home shop.address, referred_by bigint references shop.customers (id) on delete set null,
    created_at timestamptz not null default '2024-01-01', updated_at timestamptz
);
create table shop.products (
    sku text primary key, title text not null, price numeric(10, 2) check (price >= 0), tags text[] not null default '{}',
    search tsvector generated always as (to_tsvector('simple', title)) stored
);
create table shop.orders (
    id uuid primary key, customer_id bigint not null references shop.customers (id) on delete cascade,
    state shop."Order State" not null default 'new', placed_at timestamp not null, total money, last_item integer
);
create table shop.items (
    order_id uuid references shop.orders (id) on delete cascade, line integer, sku text not null references shop.products (sku) on update cascade,
    amount integer not null, primary key (order_id, line)
);
alter table shop.orders add constraint orders_last_item foreign key (id, last_item) references shop.items (order_id, line)
    on delete no action deferrable initially deferred; -- a cycle: orders need items need orders
create table shop.tree (id integer primary key, parent integer not null references shop.tree (id) deferrable); -- the root is its own
insert into shop.customers (email, mood, home, updated_at)
select 'c' || i || '@example.org', (enum_range(null::shop.mood))[1 + i % 6], row('street ' || i, i, point(i, i), null)::shop.address,
    timestamptz '2024-01-01' + i * interval '1 min' from generate_series(1, 120) i;
update shop.customers set referred_by = 1 + id / 2 where id % 3 = 0;
insert into shop.products select 'sku-' || i, 'Product ' || i, i, array['t' || i % 3] from generate_series(1, 50) i;
begin;
insert into shop.orders select md5('o' || i)::uuid, 1 + i % 120, (enum_range(null::shop."Order State"))[1 + i % 3],
    timestamp '2024-03-30 23:30' + i * interval '1 h', i, 1 from generate_series(1, 200) i;
insert into shop.items select md5('o' || i)::uuid, line, 'sku-' || 1 + (i * line) % 50, line from generate_series(1, 200) i, generate_series(1, 3) line;
commit;
insert into shop.tree select i, greatest(1, i / 2) from generate_series(1, 60) i;
create unique index customers_lower_email on shop.customers (lower(email));
create unique index orders_one_new on shop.orders (customer_id, placed_at) where state = 'new';

-- -------------------------------------------------------------------------------------------------------- views

create view shop.order_summary as
select o.id as order_id, c.email as "Customer's e-mail", c.mood, o.state, o.total, count(i.line) as lines, sum(i.amount * p.price) as sum,
    array_agg(p.title order by i.line) as titles, max(p.search::text) as search, o.placed_at
from shop.orders o
join shop.customers c on c.id = o.customer_id
left join shop.items i on i.order_id = o.id
left join shop.products p on p.sku = i.sku
group by o.id, c.id;
create materialized view shop.mood_counts as select mood, count(*) as n, avg(id) as mean from shop.customers group by mood;
create materialized view shop.unkeyed_facts as select state, total from shop.orders;
create materialized view shop.not_filled as select 1 as one with no data;
create view shop.keyless as select mood, referred_by is null as direct from shop.customers;
create view shop."View ""of"" {names}, 100%" as select id as "Id", extra as "select" from keys.included;
create view shop.constant as select 1 as id, 'one'::text as name, null::shop.mood as mood;
create recursive view shop.ancestry (id, parent, depth) as
    select id, parent, 0 from shop.tree where id = 1
    union all select t.id, t.parent, depth + 1 from shop.tree t join ancestry a on t.parent = a.id and t.id <> 1;

-- -------------------------------------------------------------------------------------------------------- names

create table "🐘 100% {sure} \ ""yes""".t (id integer primary key, v text);
insert into "🐘 100% {sure} \ ""yes""".t select i, 'v' || i from generate_series(1, 20) i;
create table "select"."table" ("order" integer primary key, "user" text, "from" text default 'x');
insert into "select"."table" select i, 'u' || i from generate_series(1, 20) i;
create table "select"."Table" ("Order" integer primary key, "order" text, "ORDER" text);
insert into "select"."Table" select i, 'lower', 'upper' from generate_series(1, 20) i;
create table "a.b"."c.d" ("e.f" integer primary key, "g.h" text);
insert into "a.b"."c.d" select i, 'v' || i from generate_series(1, 20) i;
create table odd."x""; DROP TABLE etl_control; --" ("id""; --" integer primary key, "'; select 1; --" text);
insert into odd."x""; DROP TABLE etl_control; --" select i, 'v' || i from generate_series(1, 20) i;
create table odd."%s %(name)s %% {0} {x} $1 :name" ("%s" integer primary key, "%(id)s" text, "{0}" text, "$1" text, ":x" text, "100%" text);
insert into odd."%s %(name)s %% {0} {x} $1 :name" select i, 'a', 'b', 'c', 'd', 'e' from generate_series(1, 20) i;
create table odd."back\slash
newline	tab" ("col\umn" integer primary key, "new
line" text, "tab	" text, " " text, "Straße" text, "🐘" text);
insert into odd."back\slash
newline	tab" select i, 'a', 'b', 'c', 'd', 'e' from generate_series(1, 20) i;
create table odd."sixty-three bytes, all of them used, to the very last one: 123a" ("sixty-three bytes, all of them used, to the very last one: 123k" integer primary key, "sixty-three bytes, all of them used, to the very last one: 123v" text);
create table odd."sixty-three bytes, all of them used, to the very last one: 123b" ("sixty-three bytes, all of them used, to the very last one: 123k" integer primary key, "sixty-three bytes, all of them used, to the very last one: 123v" text);
insert into odd."sixty-three bytes, all of them used, to the very last one: 123a" select i, 'a' from generate_series(1, 20) i;
insert into odd."sixty-three bytes, all of them used, to the very last one: 123b" select i, 'b' from generate_series(1, 21) i;
create table odd."ÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄx" ("🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘1" integer primary key, "🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘2" text);
insert into odd."ÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄÄx" select i, 'v' || i from generate_series(1, 20) i;
create table odd.etl_control (id integer primary key, pipeline text, table_name text, status text, execution_id integer, row integer);
insert into odd.etl_control select i, 'p', 't', 's', i, i from generate_series(1, 20) i;
create table odd.private_names (xmin_ integer primary key, _deleted_at timestamptz, _xmin integer, ctid_ text, "key" text, value text,
    old text, new text, source text, target text, staging text, excluded text, t text, s text, k text, r text, n bigint, count bigint, md5 text, "row" text, "values" text);
insert into odd.private_names (xmin_, excluded, t, n) select i, 'e', 't', i from generate_series(1, 20) i;
create table odd."pg_temp" (id integer primary key);
insert into odd."pg_temp" select generate_series(1, 3);
create table public."public.t" (id integer primary key, "public.t" text);
insert into public."public.t" values (1, 'one');
create table public.t (id integer primary key, v text);
insert into public.t values (1, 'two');
create table odd."* ?[a-z]" (id integer primary key);
insert into odd."* ?[a-z]" select generate_series(1, 3);

