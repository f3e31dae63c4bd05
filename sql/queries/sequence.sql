-- Sequences of the target. Every role may read the catalog.

-- name: list_fed
-- oids: of tables. Every sequence that a column of them owns (serial, identity) or takes its default from. is_plain: the
-- default is the sequence's value and nothing else. may_move: USAGE of the schema, SELECT and UPDATE on the sequence.
select f.relation::bigint as relation, a.attname as column, n.nspname as schema, c.relname as name, s.seqrelid::bigint as oid,
       s.seqincrement as increment, s.seqmin as least, s.seqmax as most,
       bool_and(f.is_plain) as is_plain,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') as may_use,
       array(select p from unnest(array['select', 'update']) as p
             where not pg_catalog.has_sequence_privilege(c.oid, p)) as lacking
from (select d.refobjid as relation, d.refobjsubid as attnum, d.objid as oid, true as is_plain
      from pg_catalog.pg_depend d
      where d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
        and d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = any (:'oids'::oid[]) and d.refobjsubid > 0
      union all
      select v.adrelid, v.adnum, d.refobjid,
             pg_catalog.pg_get_expr(v.adbin, v.adrelid) ~ '^\(?nextval\(E?''([^'']|'''')+''::regclass\)\)?(::[a-z ]+(\([0-9,]+\))?)?$'
      from pg_catalog.pg_attrdef v
      join pg_catalog.pg_depend d
        on d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = v.oid
       and d.refclassid = 'pg_catalog.pg_class'::regclass
      where v.adrelid = any (:'oids'::oid[])
     ) as f
join pg_catalog.pg_sequence s on s.seqrelid = f.oid
join pg_catalog.pg_class c on c.oid = f.oid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = f.relation and a.attnum = f.attnum and not a.attisdropped
group by f.relation, a.attname, n.nspname, c.relname, s.seqrelid, s.seqincrement, s.seqmin, s.seqmax, n.oid, c.oid
order by f.relation, s.seqrelid, a.attname;

-- name: lock
-- oid: a sequence. Until the transaction ends nobody else of ours moves it: two that did could move it back.
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('replicator/sequence/' || :'oid', 7264811));
