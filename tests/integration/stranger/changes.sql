-- Changes of every kind to the schema beside this file, in one transaction. What is random comes from random(): the
-- caller seeds it with setseed(). No table is emptied, for an empty source is a question, not a change.

create temporary table change (relation regclass, kind text, done integer, refused integer);

-- Run one random statement on a table; what a constraint refuses is rolled back, which is a savepoint's business too.
create function pg_temp.try(relation regclass, kind text, statement text) returns void language plpgsql as $$
declare
    rows_changed integer;
begin
    begin
        execute statement;
        get diagnostics rows_changed = row_count;
        set constraints all immediate;
        set constraints all deferred;
        insert into pg_temp.change values (relation, kind, rows_changed, 0);
    exception when integrity_constraint_violation or restrict_violation then
        insert into pg_temp.change values (relation, kind, 0, 1);
    end;
end $$;

-- New rows of the tables that were made in a loop.
do $$
declare
    name record;
    column_names text;
begin
    for name in select relation, kind from (
        select c.oid::regclass as relation, a.atttypid::regtype as kind, a.attidentity
        from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'id'
        where c.relname ~ '^t[0-9]{3}$' and c.relkind = 'r'
        order by c.relname) t
    loop
        continue when random() < 0.4;
        column_names := case when name.kind::text = 'uuid' then '' else 'id, ' end;
        perform pg_temp.try(name.relation, 'insert', format(
            'insert into %s (%sname, amount, at, flag) %s select %s ''new "'' || n, random() * 1000, timestamptz ''2025-03-30'' + n * interval ''1 h'', null
            from generate_series(1, 1 + (random() * 6)::integer) n',
            name.relation, column_names,
            case when exists (select from pg_attribute where attrelid = name.relation and attidentity = 'a') then 'overriding system value' else '' end,
            case when name.kind::text = 'uuid' then '' else '100 + n + (random() * 20)::integer * 10, ' end
        ));
    end loop;

    for name in select format('keys.%I', 'by ' || k.kind)::regclass as relation, k.kind, expression from keys.kinds k order by 2
    loop
        perform pg_temp.try(name.relation, 'insert', format(
            'insert into %s select (%s)::%s, i, ''new'' from generate_series(61, 64) i on conflict do nothing', name.relation, name.expression, name.kind
        ));
    end loop;
end $$;

insert into keys.composite select a, b, c, d, e, f, g, h + interval '1 s', 'copied' from keys.composite where random() < 0.1;
update keys.composite set c = c + 1000, v = 'moved' where random() < 0.1;

-- Keys that hand over to each other, in circles and chains.
update keys.deferrable_key set pos = 51 - pos;
update keys.deferrable_key set id = case id when 1 then 2 when 2 then 3 else 1 end where id <= 3;
update keys.identity_key set a = a + 1 where a >= 40;
delete from keys.excluded where id in (4, 5);
insert into keys.excluded values (100, daterange(date '2020-01-01' + 45, date '2020-01-01' + 55));
insert into keys.only_expression values ('NEW', 1);
insert into keys.nulls_not_distinct values (2, null, 5);
delete from keys.nulls_not_distinct where v = 1;
insert into keys.nulls_not_distinct values (1, null, 6);
insert into keys.all_key select i, 'b' || -i from generate_series(1, 5) i;

insert into parts.by_range select i, date '2022-06-01' + i * 11, 'later ' || i from generate_series(401, 480) i;
insert into parts.by_list select (array['it', 'xx'])[1 + i % 2], i, 'later' from generate_series(201, 220) i;
insert into parts.by_hash select md5('later' || i)::uuid, i from generate_series(1, 30) i;
insert into parts.nested select i % 6, timestamptz '2023-12-30' + i * interval '1 h', 1000 + i, null from generate_series(1, 60) i;
insert into parts.by_list_null values (null, 1), ('x', 1), (null, null);
insert into parts.by_expression values ('a', 100), (null, null);
insert into parts.empty_root select where false;
create table parts.empty_root_1 partition of parts.empty_root for values from (1) to (100);
insert into parts.empty_root select i, 'first' from generate_series(1, 9) i;
update parts.by_range set day = day + 366 where random() < 0.2; -- rows move to another partition
update parts.by_list set region = case region when 'us' then 'de' else 'us' end where random() < 0.2;
update parts.nested set tenant = (tenant + 1) % 3, at = at + interval '1 month' where random() < 0.2;
alter table parts.by_range detach partition parts.by_range_2023;
create table parts.by_range_2026 (id bigint not null, day date not null, body text, primary key (id, day));
insert into parts.by_range_2026 select i, date '2026-01-01' + i, 'attached' from generate_series(1, 30) i;
delete from parts.by_range_rest where day >= '2026-01-01';
alter table parts.by_range attach partition parts.by_range_2026 for values from ('2026-01-01') to ('2027-01-01');

insert into trees.child values (200, 'child 200', 200);
insert into trees.grandchild values (201, 'grandchild 201', 201, null);
insert into trees.twice_below values (5, 'below');
insert into trees.both (m, f) values (null, null), (1, 'f');
update trees.parent set name = name || '?' where random() < 0.3;
create table trees.late_child (primary key (id)) inherits (trees.parent);
insert into trees.late_child values (300, 'late');

insert into odd.no_columns select from generate_series(1, 2);
insert into odd.lost_columns default values;
insert into odd.no_key select a, b, c from odd.no_key where random() < 0.3;
insert into odd.no_key_json values ('{"a":  1}', null), (null, null);
delete from odd.no_key where ctid in (select ctid from odd.no_key where a = 1 limit 2);
insert into odd.empty values (1, 'no longer');
insert into odd.empty_no_key values ('no longer'), (null);
insert into odd.unlogged select i, 'new' from generate_series(31, 40) i;
insert into odd.dropped (id, d) select i, i from generate_series(31, 40) i;
insert into odd.generated (first, last) select 'new', 'row' || i from generate_series(1, 5) i;
update odd.generated set first = 'changed' where random() < 0.3;
insert into odd.generated_key (a, v) select i, 'new' from generate_series(21, 25) i;
update odd.generated_key set a = a + 100 where random() < 0.3;
update odd.toasted set short = 'only short' where id % 3 = 0;
update odd.toasted set external = external || 'x' where id % 3 = 1;
update odd.toasted set long = null, doc = doc - 'k1' where id = 2;
insert into odd.toasted select id + 100, short, long, external, bytes, doc from odd.toasted where id <= 2;
insert into odd.ruled values (11, 'ruled');
delete from odd.ruled where id between 2 and 4;
insert into odd.triggered (id, v) values (21, 'v21');
update odd.triggered set v = 'w' where id < 5;
insert into odd.sequenced (v) values ('again'), ('again'), ('again');
insert into odd.of_type values (11, null);
insert into odd.row_typed values (3, row(3, '(,"")'), '{}', null);
update odd.wide set c3 = '-1', c899 = 'infinity' where id = 5;

update kinds.twins set n = 1.0, f = 0, j = '{"a":1}', jb = '1.0', p = '(0,0)', i = '1 mon', tz = '10:00+00', b = 'a', r = '[1.0,2)', c = '<(0,0),1>' where id = 2;
update kinds.twins set n = 1.00, f = '-0', j = '{"a": 1}', jb = '1.00', p = '(0,-0)', i = '30 days', tz = '11:00+01', b = 'a  ', r = '[1.00,2)', c = '<(0,-0),1>' where id = 1;
insert into kinds.twins (id, n) values (3, 'NaN');

insert into shop.customers (email, mood) select 'new' || i || '@x', 'happy' from generate_series(1, 10) i;
update shop.customers set email = case email when 'c1@example.org' then '' else 'c1@example.org' end where email in ('c1@example.org');
update shop.customers set mood = (enum_range(null::shop.mood))[1 + (random() * 5)::integer], updated_at = now() where random() < 0.2;
update shop.products set sku = 'renamed-' || sku, title = 'Renamed' where sku in ('sku-1', 'sku-2'); -- cascades to the items
delete from shop.customers where id in (5, 50); -- cascades to orders and items
insert into shop.orders values ('00000000-0000-0000-0000-000000000001', 1, 'new', '2025-10-26 02:30', 12.34, 9);
insert into shop.items values ('00000000-0000-0000-0000-000000000001', 9, 'renamed-sku-1', 1);
update shop.tree set parent = 1 + (random() * 20)::integer where id > 1 and random() < 0.5;

-- And in every table a few rows, whatever they are: gone, or one column taken from another row.
do $$
declare
    relation regclass;
    attribute text;
    rows_now bigint;
begin
    for relation in
        select c.oid::regclass from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and c.relname !~ '^ruled'
        order by n.nspname, c.relname
    loop
        execute format('select count(*) from only %s', relation) into rows_now;
        continue when rows_now < 3 or relation = 'keys.kinds'::regclass;
        if random() < 0.7 then
            perform pg_temp.try(relation, 'delete', format(
                'delete from only %1$s where ctid = any (array(select ctid from only %1$s order by random() limit %2$s))',
                relation, 1 + (random() * rows_now * 0.06)::integer
            ));
        end if;
        for attribute in
            select attname from pg_attribute
            where attrelid = relation and attnum > 0 and not attisdropped and attgenerated = '' and attidentity <> 'a'
            order by random() limit 2
        loop
            perform pg_temp.try(relation, 'update', format(
                'update only %1$s set %2$I = (select %2$I from only %1$s order by random() limit 1)
                where ctid = any (array(select ctid from only %1$s order by random() limit %3$s))',
                relation, attribute, 1 + (random() * rows_now * 0.2)::integer
            ));
        end loop;
    end loop;
end $$;

refresh materialized view shop.mood_counts;
refresh materialized view shop.unkeyed_facts;

-- Written and not committed, and a transaction that wrote nothing in the end.
savepoint regret;
delete from odd.no_key;
update shop.products set title = 'never';
rollback to savepoint regret;
