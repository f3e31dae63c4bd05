-- Reads of the system catalog, the same on source and target. Every role may read these.
-- In psql give the parameters with \set, for example:  \set oids '{16385,16390}'

-- name: list_relations
-- All relations a SELECT could name; partitions are marked, because a pattern takes their root instead.
-- A database without encoding has names of any bytes, and refuses to send those that are not UTF-8. is_text: the relation
-- has none of them, nor have its columns and their types; where its own name is one, it stands with escapes.
with utf8 (pattern) as (
    select case when pg_catalog.current_setting('server_encoding') = 'SQL_ASCII' then
'^([\x01-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*$'
    end)
select c.oid::bigint as oid, s.label as schema, r.label as name, c.relkind::text as kind, c.relispartition as is_partition,
       case when u.pattern is null then true
            else n.nspname::text ~ u.pattern and c.relname::text ~ u.pattern and not exists (
                select from pg_catalog.pg_attribute a
                join pg_catalog.pg_type t on t.oid = a.atttypid
                join pg_catalog.pg_type e on e.oid in (t.oid, t.typelem, t.typbasetype)
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                  and (a.attname::text !~ u.pattern or e.typname::text !~ u.pattern or exists (
                           select from pg_catalog.pg_enum l where l.enumtypid = e.oid and l.enumlabel::text !~ u.pattern)))
            end as is_text
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
cross join utf8 u
cross join lateral (select case when n.nspname::text !~ u.pattern then encode(convert_to(n.nspname::text, 'SQL_ASCII'), 'escape')
                                else n.nspname::text end as label) s
cross join lateral (select case when c.relname::text !~ u.pattern then encode(convert_to(c.relname::text, 'SQL_ASCII'), 'escape')
                                else c.relname::text end as label) r
where c.relkind in ('r', 'p', 'v', 'm', 'f')
  and c.relpersistence <> 't'
  and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
order by n.nspname, c.relname;

-- name: find_relations
-- schemas, names: parallel arrays. One row for each relation that exists.
select c.oid::bigint as oid, n.nspname as schema, c.relname as name
from unnest(:'schemas'::text[], :'names'::text[]) as wanted (schema, name)
join pg_catalog.pg_namespace n on n.nspname = wanted.schema
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
where c.relkind in ('r', 'p', 'v', 'm', 'f', 'i', 'S', 'c');

-- name: missing_schemas
-- names: schemas looked for.
select w as name from unnest(:'names'::text[]) as w
where not exists (select from pg_catalog.pg_namespace n where n.nspname = w);

-- name: describe_relations
-- oids: relations. row_security: a policy would hide rows from this role. definition: of views, normalised by the server.
-- partition_columns: what a row's partition follows from, at every level; '' for an expression.
select (select d.oid::bigint from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()) as database,
       c.oid::bigint as oid, n.nspname as schema, c.relname as name, c.relkind::text as kind,
       c.relpersistence::text as persistence,
       greatest(c.reltuples, 0)::bigint as estimated_rows,
       case when c.relkind in ('r', 'p') then pg_catalog.row_security_active(c.oid) else false end as row_security,
       case when c.relkind in ('v', 'm') then pg_catalog.md5(pg_catalog.pg_get_viewdef(c.oid)) end as definition,
       case when c.relkind = 'p'
            then array(select distinct coalesce(a.attname::text, '')
                       from pg_catalog.pg_partition_tree(c.oid) t
                       join pg_catalog.pg_partitioned_table p on p.partrelid = t.relid
                       cross join lateral unnest(p.partattrs::int2[]) as k (attnum)
                       left join pg_catalog.pg_attribute a on a.attrelid = p.partrelid and a.attnum = k.attnum
                       order by 1)
            else '{}' end as partition_columns
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.oid = any (:'oids'::oid[]);

-- name: describe_columns
-- oids: relations. missing: what rows show that no row version tells of, for the fingerprint: the default of an ADD COLUMN
-- for those written before it, or the expression of a generated column. version: another one after each ALTER of it.
select a.attrelid::bigint as relation, a.attnum as number, a.attname as name, a.atttypid::bigint as type_oid,
       a.atttypmod as typmod, a.attnotnull as not_null, a.attgenerated::text as generated,
       a.attidentity::text as identity,
       case when a.attgenerated <> '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid)
            when a.atthasmissing then a.attmissingval::text end as missing,
       a.xmin::text as version
from pg_catalog.pg_attribute a
left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum and a.attgenerated <> ''
where a.attrelid = any (:'oids'::oid[]) and a.attnum > 0 and not a.attisdropped
order by a.attrelid, a.attnum;

-- name: list_expressions
-- oids: relations. What computes their generated columns, as the server spells it.
select a.attrelid::bigint as relation, a.attname as name, pg_catalog.pg_get_expr(d.adbin, d.adrelid) as expression
from pg_catalog.pg_attribute a
join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = any (:'oids'::oid[]) and a.attgenerated <> '' and not a.attisdropped;

-- name: describe_indexes
-- oids: relations. Valid indexes over plain columns. is_unique: of a B-tree, the one kind that finds equal rows.
-- is_period: a key WITHOUT OVERLAPS. is_constraint: it goes with its constraint alone. covers_all: not partial. equality: the operator family's own "="; of a B-tree alone
-- the strategy 3 means that.
select i.indrelid::bigint as relation, ic.relname as name,
       array_agg(a.attname order by k.position)::text[] as columns,
       i.indisunique and am.amname = 'btree' as is_unique, i.indisunique and i.indisexclusion as is_period,
       am.amname as method,
       exists (select from pg_catalog.pg_constraint con
               where con.conindid = i.indexrelid and con.contype in ('p', 'u', 'x')) as is_constraint,
       i.indisprimary as is_primary, i.indisreplident as is_replica_identity,
       not i.indimmediate as is_deferrable, i.indpred is null as covers_all,
       array_agg(coalesce(opn.nspname, '') order by k.position)::text[] as operator_schemas,
       array_agg(coalesce(op.oprname, '') order by k.position)::text[] as operator_names,
       pg_catalog.pg_get_indexdef(i.indexrelid) as definition
from pg_catalog.pg_index i
join pg_catalog.pg_class ic on ic.oid = i.indexrelid
join pg_catalog.pg_am am on am.oid = ic.relam
cross join lateral unnest(i.indkey::int2[], i.indclass::oid[]) with ordinality as k (attnum, opclass, position)
left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
left join pg_catalog.pg_opclass oc on oc.oid = k.opclass
left join pg_catalog.pg_amop amop
       on amop.amopfamily = oc.opcfamily and amop.amopstrategy = 3 and am.amname = 'btree'
      and amop.amopmethod = oc.opcmethod
      and amop.amoplefttype = oc.opcintype and amop.amoprighttype = oc.opcintype
left join pg_catalog.pg_operator op on op.oid = amop.amopopr
left join pg_catalog.pg_namespace opn on opn.oid = op.oprnamespace
where i.indrelid = any (:'oids'::oid[]) and i.indisvalid and k.position <= i.indnkeyatts
group by i.indexrelid, i.indrelid, ic.relname, am.amname
having bool_and(k.attnum <> 0)
order by i.indrelid, ic.relname;

-- name: describe_members
-- oids: roots. Each root with all that inherits from it, itself included.
with recursive member (root, oid) as (
    select o, o from unnest(:'oids'::oid[]) as o
    union
    select m.root, i.inhrelid from member m join pg_catalog.pg_inherits i on i.inhparent = m.oid
)
select m.root::bigint as root, c.oid::bigint as oid, coalesce(pg_catalog.pg_relation_filenode(c.oid), 0)::bigint as filenode,
       c.relkind::text as kind, am.amname as access_method,
       case when c.relkind in ('r', 'm') then coalesce(pg_catalog.pg_relation_size(c.oid), 0) else 0 end as heap_bytes,
       greatest(c.reltuples, 0)::bigint as estimated_rows
from member m
join pg_catalog.pg_class c on c.oid = m.oid
left join pg_catalog.pg_am am on am.oid = c.relam
order by m.root, c.oid;

-- name: describe_types
-- oids: types. Each with the types it is made of (elements of arrays, bases of domains, and as parts the attributes of
-- composite types and what ranges are of), enum labels in their order.
-- An array is its element's own array type: int2vector and oidvector have elements too, but are written otherwise.
with recursive needed (oid) as (
    select o from unnest(:'oids'::oid[]) as o
    union
    select x.oid
    from needed d
    join pg_catalog.pg_type t on t.oid = d.oid
    left join pg_catalog.pg_type element on element.oid = t.typelem and element.typarray = t.oid
    cross join lateral (
        select element.oid
        union all select t.typbasetype
        union all select a.atttypid from pg_catalog.pg_attribute a
                  where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        union all select r.rngsubtype from pg_catalog.pg_range r where r.rngtypid = t.oid
        union all select r.rngtypid from pg_catalog.pg_range r where r.rngmultitypid = t.oid
    ) as x (oid)
    where x.oid is not null and x.oid <> 0
)
select t.oid::bigint as oid, n.nspname as schema, t.typname as name, t.typtype::text as kind, e.extname as extension,
       coalesce(element.oid, 0)::bigint as element,
       t.typbasetype::bigint as base, t.typtypmod as base_typmod,
       t.typreceive <> 0 and t.typsend <> 0 as is_binary,
       coalesce((select array_agg(l.oid::bigint order by l.enumsortorder)
                 from pg_catalog.pg_enum l where l.enumtypid = t.oid), '{}') as label_oids,
       coalesce((select array_agg(l.enumlabel order by l.enumsortorder)::text[]
                 from pg_catalog.pg_enum l where l.enumtypid = t.oid), '{}') as labels,
       coalesce((select jsonb_agg(jsonb_build_array(p.name, p.type_oid::bigint, p.typmod) order by p.number)
                 from (select a.attname, a.atttypid, a.atttypmod, a.attnum from pg_catalog.pg_attribute a
                       where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                       union all select '', r.rngsubtype, -1, 1 from pg_catalog.pg_range r where r.rngtypid = t.oid
                       union all select '', r.rngtypid, -1, 1 from pg_catalog.pg_range r where r.rngmultitypid = t.oid
                      ) as p (name, type_oid, typmod, number)), '[]') as parts
from needed
join pg_catalog.pg_type t on t.oid = needed.oid
left join pg_catalog.pg_type element on element.oid = t.typelem and element.typarray = t.oid
join pg_catalog.pg_namespace n on n.oid = t.typnamespace
left join pg_catalog.pg_depend d
       on d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
      and d.refclassid = 'pg_catalog.pg_extension'::regclass
left join pg_catalog.pg_extension e on e.oid = d.refobjid;

-- name: find_types
-- schemas, names, extensions: parallel arrays (extension null = none). The type of the same extension wherever that is
-- installed, else the type of the same schema and name. Row
-- types of tables are passed over: no column should have one. is_binary: tsquery and the two vectors cannot receive an
-- empty value, and before 17 interval_recv takes the newer servers' infinity for 178956970 years.
select wanted.position::int as position, found.oid::bigint as oid, found.array_oid::bigint as array_oid, found.kind,
       found.labels, found.is_binary
from unnest(:'schemas'::text[], :'names'::text[], :'extensions'::text[])
     with ordinality as wanted (schema, name, extension, position)
cross join lateral (
    select t.oid, t.typarray as array_oid, t.typtype::text as kind,
           t.typreceive <> 0 and t.typsend <> 0
           and t.oid <> all ('{pg_catalog.tsquery,pg_catalog.int2vector,pg_catalog.oidvector}'::regtype[])
           and (t.oid <> 'pg_catalog.interval'::regtype or current_setting('server_version_num')::int >= 170000)
           as is_binary,
           coalesce((select array_agg(l.enumlabel order by l.enumsortorder)::text[]
                     from pg_catalog.pg_enum l where l.enumtypid = t.oid), '{}') as labels
    from pg_catalog.pg_type t
    join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    left join pg_catalog.pg_depend d
           on d.classid = 'pg_catalog.pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
          and d.refclassid = 'pg_catalog.pg_extension'::regclass
    left join pg_catalog.pg_extension e on e.oid = d.refobjid
    left join pg_catalog.pg_class rowtype on rowtype.oid = t.typrelid
    where t.typname = wanted.name and t.typisdefined
      and (rowtype.oid is null or rowtype.relkind = 'c')
      and case when wanted.extension is null then n.nspname = wanted.schema
               else e.extname = wanted.extension end
    limit 1) as found;

-- name: format_types
-- oids, typmods: parallel arrays. The server's own spelling, so no text that another server sent reaches DDL. A typmod of
-- -1 is said, not left out: bpchar and bit without a length would come back as character and bit, of length 1.
select pg_catalog.format_type(t.oid, t.typmod) as spelling
from unnest(:'oids'::oid[], :'typmods'::int[]) with ordinality as t (oid, typmod, position)
order by t.position;

-- name: row_changers
-- roots, oids: parallel arrays: tables, and each of their partitions and themselves. What can change or drop a row on its way
-- in, and fires in this session: triggers for each row, before; rules of the table itself that put something else in the
-- place of a write, and those of updates, which keep ON CONFLICT from it even while they do not fire.
with fires as (select case when current_setting('session_replication_role') = 'replica' then 'R' else 'O' end as enabled),
     part as (select p.root, p.oid from unnest(:'roots'::oid[], :'oids'::oid[]) as p (root, oid))
select distinct p.root::bigint as root, t.tgname as name, false as is_rule
from part p
join pg_catalog.pg_trigger t on t.tgrelid = p.oid
cross join fires f
where not t.tgisinternal and t.tgtype & 3 = 3 and t.tgenabled in ('A', f.enabled)
union all
select p.root::bigint, r.rulename, true
from part p
join pg_catalog.pg_rewrite r on r.ev_class = p.oid
cross join fires f
where p.oid = p.root and (r.ev_type = '2' or (r.ev_type in ('3', '4') and r.is_instead and r.ev_enabled in ('A', f.enabled)))
order by 1, 2;

-- name: foreign_keys
-- oids: tables. Pairs (child, parent) of foreign keys among them.
select distinct con.conrelid::bigint as child, con.confrelid::bigint as parent
from pg_catalog.pg_constraint con
where con.contype = 'f' and con.conrelid = any (:'oids'::oid[]) and con.confrelid = any (:'oids'::oid[])
  and con.conparentid = 0;

-- name: is_referenced
-- oid: a table. Whether deleting its rows could be refused or go on to other rows.
select exists (select from pg_catalog.pg_constraint con
               where con.contype = 'f' and con.confrelid = :'oid'::oid) as is_referenced;

-- name: deletes_go_on
-- oids: a table and its partitions. Whether a foreign key deletes or changes other rows with one that is deleted.
select exists (select from pg_catalog.pg_constraint con
               where con.contype = 'f' and con.confrelid = any (:'oids'::oid[])
                 and con.confdeltype not in ('a', 'r')) as go_on;

-- name: dependents
-- oid: a table. Views over it, and foreign keys that refer to it: what keeps a column's type or its key from changing.
select c.relkind::text as kind, n.nspname as schema, c.relname as name, null as constraint_name
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('v', 'm')
  and exists (select from pg_catalog.pg_rewrite r
              join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::regclass and d.objid = r.oid
              where r.ev_class = c.oid and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = :'oid'::oid)
union all
select 'f', n.nspname, c.relname, con.conname
from pg_catalog.pg_constraint con
join pg_catalog.pg_class c on c.oid = con.conrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where con.contype = 'f' and con.conparentid = 0 and con.confrelid = :'oid'::oid
order by 1, 2, 3, 4;

