-- What the listener asks the source besides the stream. SELECT rights suffice for the reads.

-- name: facts
select pg_catalog.current_setting('wal_level') as wal_level, pg_catalog.pg_is_in_recovery() as is_standby,
       r.rolname::text as role, r.rolreplication or r.rolsuper as may_replicate,
       pg_catalog.current_setting('server_version_num')::int as version_number
from pg_catalog.pg_roles r where r.rolname = current_user;

-- name: stream_facts
-- What `check` asks ahead of a stream. Everybody may count slots and walsenders. timeouts: null where the server has no such
-- setting; in milliseconds, in megabytes (-1: no limit), and as it is written.
select pg_catalog.current_setting('max_replication_slots')::int as most_slots,
       (select count(*) from pg_catalog.pg_replication_slots)::int as slots,
       exists (select from pg_catalog.pg_replication_slots s where s.slot_name = :'slot') as has_slot,
       pg_catalog.current_setting('max_wal_senders')::int as most_senders,
       (select count(*) from pg_catalog.pg_stat_replication)::int as senders,
       exists (select from pg_catalog.pg_replication_slots s where s.slot_name = :'slot' and s.active) as is_streaming,
       (select s.setting::int from pg_catalog.pg_settings s where s.name = 'wal_sender_timeout') as sender_timeout_ms,
       (select s.setting::int from pg_catalog.pg_settings s where s.name = 'max_slot_wal_keep_size') as keep_mb,
       pg_catalog.current_setting('idle_replication_slot_timeout', true) as idle_timeout;

-- name: identities
-- oids: roots. For every heap below each: how it names a row in the WAL. columns: of the index that serves, null for f and n.
with recursive member (root, oid) as (
    select o, o from unnest(:'oids'::oid[]) as o
    union
    select m.root, i.inhrelid from member m join pg_catalog.pg_inherits i on i.inhparent = m.oid
)
select m.root::bigint as root, m.oid::bigint as oid, n.nspname as schema, c.relname as name, c.relreplident::text as identity,
       c.relpersistence = 'p' as is_logged,
       (select array_agg(a.attname order by a.attnum)::text[]
        from pg_catalog.pg_index x
        join pg_catalog.pg_attribute a on a.attrelid = m.oid and a.attnum = any (x.indkey::int2[])
        where x.indrelid = m.oid
          and case c.relreplident when 'd' then x.indisprimary and x.indimmediate when 'i' then x.indisreplident end) as columns
from member m
join pg_catalog.pg_class c on c.oid = m.oid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p')
order by m.root, m.oid;

-- name: families
-- schemas, names: tables. Of those in the WAL: all that inherits from each, itself included.
with recursive root (oid, schema, name, kind) as (
    select c.oid, n.nspname, c.relname, c.relkind
    from unnest(:'schemas'::text[], :'names'::text[]) as w (schema, name)
    join pg_catalog.pg_namespace n on n.nspname = w.schema
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.name
    where c.relkind in ('r', 'p') and c.relpersistence = 'p'
), member (root, oid) as (
    select r.oid, r.oid from root r
    union
    select m.root, i.inhrelid from member m join pg_catalog.pg_inherits i on i.inhparent = m.oid
)
select r.oid::bigint as oid, r.schema, r.name, r.kind::text as kind,
       array(select m.oid::bigint from member m where m.root = r.oid) as members
from root r;

-- name: publishing_roots
-- oids: tables. Those that the publication tells as the topmost ancestor that it holds (pgoutput.c, get_rel_sync_entry).
select o::bigint as oid, n.nspname as schema, c.relname as name
from pg_catalog.pg_publication p
cross join unnest(:'oids'::oid[]) as o
cross join lateral (
    select a.relid
    from pg_catalog.pg_partition_ancestors(o) with ordinality as a (relid, height)
    join pg_catalog.pg_class t on t.oid = a.relid
    where p.puballtables
       or exists (select from pg_catalog.pg_publication_rel r where r.prpubid = p.oid and r.prrelid = a.relid)
       or exists (select from pg_catalog.pg_publication_namespace s
                  where s.pnpubid = p.oid and s.pnnspid = t.relnamespace)
    order by a.height desc limit 1
) as top
join pg_catalog.pg_class c on c.oid = top.relid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where p.pubname = :'publication' and p.pubviaroot and top.relid <> o;

-- name: publication
select p.oid::bigint as oid, p.puballtables as all_tables, p.pubviaroot as via_root,
       p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate as publishes_all,
       pg_catalog.obj_description(p.oid, 'pg_publication') as comment
from pg_catalog.pg_publication p where p.pubname = :'publication';

-- name: publish_rights
-- oids: tables. A table's owner may publish it: in a publication of its own where it may CREATE in the database.
select (case when p.oid is null then pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
             else pg_catalog.pg_has_role(p.pubowner, 'USAGE') end)
       and not exists (select from pg_catalog.pg_class c
                       where c.oid = any (:'oids'::oid[]) and not pg_catalog.pg_has_role(c.relowner, 'USAGE')) as may_publish
from (select) as one left join pg_catalog.pg_publication p on p.pubname = :'publication';

-- name: published_tables
-- columns: in the table's order. is_listed: the table itself stands in the publication by name; has_list: with columns.
-- Tables with names that are not UTF-8 are passed over, as in catalog.list_relations.
with utf8 (pattern) as (
    select case when pg_catalog.current_setting('server_encoding') = 'SQL_ASCII' then
'^([\x01-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*$'
    end)
select t.schemaname as schema, t.tablename as name, t.attnames::text[] as columns, t.rowfilter is not null as is_filtered,
       r.oid is not null as is_listed, r.prattrs is not null as has_list
from pg_catalog.pg_publication_tables t
join pg_catalog.pg_publication p on p.pubname = t.pubname
join pg_catalog.pg_namespace n on n.nspname = t.schemaname
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid
cross join utf8 u
where t.pubname = :'publication'
  and case when u.pattern is null then true
           else t.schemaname::text ~ u.pattern and t.tablename::text ~ u.pattern
                and not exists (select from unnest(t.attnames) as x where x::text !~ u.pattern) end;

-- name: published_at_large
-- A row where the publication holds a schema's tables without naming them.
select from pg_catalog.pg_publication p
where p.pubname = :'publication'
  and (p.puballtables or exists (select from pg_catalog.pg_publication_namespace s
                                 join pg_catalog.pg_namespace n on n.oid = s.pnnspid
                                 where s.pnpubid = p.oid and n.nspname = :'schema'));

-- name: holds_table
-- A row where the publication names the table, or its schema: of a partitioned table without partitions no view tells.
select from pg_catalog.pg_publication p
join pg_catalog.pg_namespace n on n.nspname = :'schema'
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = :'table'
where p.pubname = :'publication'
  and (exists (select from pg_catalog.pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid)
       or exists (select from pg_catalog.pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = n.oid));

-- name: memberships
-- oids: roots. What ties each to the publication, and its partitions to it: other rows of the catalog, or other versions
-- of them, whenever what is published of it changed, even if it was changed back.
with recursive root (oid) as (
    select o from unnest(:'oids'::oid[]) as o
), member (root, oid) as (
    select r.oid, r.oid from root r
    union
    select m.root, i.inhrelid from member m join pg_catalog.pg_inherits i on i.inhparent = m.oid
), ancestor (root, oid) as (
    select r.oid, a.relid
    from root r
    join pg_catalog.pg_class c on c.oid = r.oid and c.relispartition
    cross join lateral pg_catalog.pg_partition_ancestors(r.oid) as a (relid)
), publication (oid, xmin) as (
    select p.oid, p.xmin from pg_catalog.pg_publication p where p.pubname = :'publication'
), published (root, rows) as (
    select x.root, array_agg(r.oid::text || ' ' || r.xmin::text order by r.oid)
    from (table member union table ancestor) as x
    join pg_catalog.pg_publication_rel r on r.prrelid = x.oid
    join publication p on p.oid = r.prpubid
    group by x.root
), schema (root, rows) as (
    select x.root, array_agg(s.oid::text || ' ' || s.xmin::text order by s.oid)
    from (select distinct m.root, c.relnamespace from member m join pg_catalog.pg_class c on c.oid = m.oid) as x
    join pg_catalog.pg_publication_namespace s on s.pnnspid = x.relnamespace
    join publication p on p.oid = s.pnpubid
    group by x.root
), child (root, rows) as (
    select m.root, array_agg(i.inhrelid::text || ' ' || i.xmin::text order by i.inhparent, i.inhrelid)
    from member m join pg_catalog.pg_inherits i on i.inhparent = m.oid
    group by m.root
)
select r.oid::bigint as root, p.oid::text || ' ' || p.xmin::text || ' ' || coalesce(published.rows, '{}')::text
       || coalesce(schema.rows, '{}')::text || coalesce(child.rows, '{}')::text as membership
from root r
cross join publication p
left join published on published.root = r.oid
left join schema on schema.root = r.oid
left join child on child.root = r.oid;

-- name: signatures
-- oids: roots. For each that is there: a text that changes whenever its definition, its types, its identity or what ties it
-- to the publication may have changed, even if that was changed back; and, with no oid, one for the publication itself.
-- Built from the versions of the catalog's rows: VACUUM and ANALYZE write theirs in place, and change none. Each fact names
-- its row, so that no two of them are equal and cancel each other out.
with recursive member (root, oid) as (
    select c.oid, c.oid from pg_catalog.pg_class c where c.oid = any (:'oids'::oid[])
    union
    select m.root, i.inhrelid from member m join pg_catalog.pg_inherits i on i.inhparent = m.oid
), ancestor (root, oid) as (
    select c.oid, i.inhparent
    from pg_catalog.pg_class c join pg_catalog.pg_inherits i on i.inhrelid = c.oid
    where c.oid = any (:'oids'::oid[]) and c.relispartition
    union
    select a.root, i.inhparent from ancestor a join pg_catalog.pg_inherits i on i.inhrelid = a.oid
), publication as (
    select p.oid, p.xmin from pg_catalog.pg_publication p where p.pubname = :'publication'
), used (root, oid) as (
    select distinct a.attrelid, a.atttypid from pg_catalog.pg_attribute a
    where a.attrelid = any (:'oids'::oid[]) and a.attnum > 0 and not a.attisdropped and a.atttypid >= 16384
), needed (start, oid) as (
    select distinct u.oid, u.oid from used u
    union
    select d.start, x.oid
    from needed d
    join pg_catalog.pg_type t on t.oid = d.oid
    cross join lateral (
        select t.typelem
        union all select t.typbasetype
        union all select a.atttypid from pg_catalog.pg_attribute a
                  where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        union all select r.rngsubtype from pg_catalog.pg_range r where r.rngtypid = t.oid
        union all select r.rngtypid from pg_catalog.pg_range r where r.rngmultitypid = t.oid
    ) as x (oid)
    where x.oid >= 16384
), type_fact (start, text) as (
    select d.start, concat('type ', t.oid, ' ', t.xmin) from needed d join pg_catalog.pg_type t on t.oid = d.oid
    union all
    select d.start, concat('part ', a.attrelid, ' ', a.attnum, ' ', a.xmin)
    from needed d
    join pg_catalog.pg_type t on t.oid = d.oid
    join pg_catalog.pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0
    union all
    select d.start, concat('label ', l.oid, ' ', l.xmin)
    from needed d join pg_catalog.pg_enum l on l.enumtypid = d.oid
    union all
    select d.start, concat('range ', r.rngtypid, ' ', r.xmin)
    from needed d join pg_catalog.pg_range r on r.rngtypid = d.oid
), type_signature (oid, signature) as (
    select f.start, bit_xor(pg_catalog.hashtextextended(f.text, 0)) from type_fact f group by f.start
), fact (root, text) as (
    select m.root, concat('class ', c.oid, ' ', c.xmin, ' ', c.relfilenode, ' ', c.relnamespace, ' ', n.xmin)
    from member m
    join pg_catalog.pg_class c on c.oid = m.oid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    union all
    select m.root, concat('attribute ', m.oid, ' ', a.attnum, ' ', a.xmin)
    from member m join pg_catalog.pg_attribute a on a.attrelid = m.oid and a.attnum > 0
    union all
    select u.root, concat('type ', u.oid, ' ', s.signature) from used u join type_signature s on s.oid = u.oid
    union all
    select m.root, concat('index ', x.indexrelid, ' ', x.xmin)
    from member m join pg_catalog.pg_index x on x.indrelid = m.oid
    union all
    select m.root, concat('child ', i.inhrelid, ' ', i.inhparent, ' ', i.xmin)
    from member m join pg_catalog.pg_inherits i on i.inhparent = m.oid
    union all
    select a.root, concat('parent ', c.oid, ' ', c.xmin)
    from ancestor a join pg_catalog.pg_class c on c.oid = a.oid
    union all
    select x.root, concat('published ', r.oid, ' ', r.xmin)
    from (table member union table ancestor) as x
    join pg_catalog.pg_publication_rel r on r.prrelid = x.oid
    join publication p on p.oid = r.prpubid
    union all
    select distinct x.root, concat('schema ', s.oid, ' ', s.xmin)
    from (table member union table ancestor) as x
    join pg_catalog.pg_class c on c.oid = x.oid
    join pg_catalog.pg_publication_namespace s on s.pnnspid = c.relnamespace
    join publication p on p.oid = s.pnpubid
    union all
    select m.root, concat('hidden ', pg_catalog.row_security_active(m.root))
    from member m where m.oid = m.root
)
select f.root::bigint as oid, pg_catalog.to_hex(bit_xor(pg_catalog.hashtextextended(f.text, 0))) as signature
from fact f group by f.root
union all
select null, coalesce((select concat(p.oid, ' ', p.xmin) from publication p), '');

-- name: leaves
-- root: a table, as SQL writes it. The partitions that hold its rows.
select n.nspname as schema, c.relname as name
from pg_catalog.pg_partition_tree(:'root'::text::regclass) as p
join pg_catalog.pg_class c on c.oid = p.relid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where p.isleaf and p.relid <> :'root'::text::regclass;

-- name: slot
-- invalidation: why it was invalidated; from 17 on, and of 16 only that rows were removed. Null where that is not told.
select s.slot_name as name,
       coalesce(pg_catalog.to_jsonb(s) ->> 'invalidation_reason',
                case when (pg_catalog.to_jsonb(s) ->> 'conflicting')::boolean then 'rows_removed' end) as invalidation,
       s.active, s.wal_status, s.database, s.plugin,
       s.confirmed_flush_lsn::text as confirmed, s.restart_lsn::text as restart, s.safe_wal_size::bigint as safe_wal_bytes,
       pg_catalog.pg_wal_lsn_diff(
           case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                else pg_catalog.pg_current_wal_lsn() end, s.confirmed_flush_lsn)::bigint as lag_bytes
from pg_catalog.pg_replication_slots s where s.slot_name = :'slot';

-- name: drop_slot
select pg_catalog.pg_drop_replication_slot(:'slot');

-- name: end_of_wal
select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
            else pg_catalog.pg_current_wal_insert_lsn() end::text as lsn,
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')) as segment_bytes;

-- name: oldest_xid
-- First half of a pair; `end_of_wal`, read after it, is the second: once all up to there is applied, all older is too.
select pg_catalog.clock_timestamp() as clock,
       pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text as xid;

-- name: open_transactions
-- Which transactions this transaction's snapshot does not see: those in the list, and all from next_xid on.
-- unassigned_xid: 32 bits of the first that nobody has yet; age() counts back from it.
select pg_catalog.pg_snapshot_xmax(s.snapshot)::text as next_xid,
       ((3 + pg_catalog.age('3'::xid)::bigint) & 4294967295) as unassigned_xid,
       array(select x::text from pg_catalog.pg_snapshot_xip(s.snapshot) as x) as open_xids
from (select pg_catalog.pg_current_snapshot() as snapshot) as s;

-- name: open_writers
-- oids: of a table and its parts. 32 bits of the xids that may have changed rows of theirs: a transaction gives its locks
-- back only once every later snapshot sees it. Every role may read pg_locks.
select array(
    select distinct x.transactionid::text
    from pg_catalog.pg_locks w
    join pg_catalog.pg_locks x on x.virtualtransaction = w.virtualtransaction and x.pid is not distinct from w.pid
    where w.locktype = 'relation' and w.granted and w.relation::bigint = any (:'oids'::bigint[])
      and w.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
      and w.mode not in ('AccessShareLock', 'RowShareLock')
      and x.locktype = 'transactionid' and x.mode = 'ExclusiveLock' and x.granted)::text[] as xids,
    pg_catalog.pg_is_in_recovery() as is_standby;

-- name: visible_filenodes
-- oids: members of tables. visible: as this transaction's snapshot shows the catalog; now: what a read would open.
select c.oid::bigint as oid, pg_catalog.pg_relation_filenode(c.oid) is not distinct from nullif(c.relfilenode, 0) as is_same
from pg_catalog.pg_class c where c.oid = any (:'oids'::oid[]) and c.relkind in ('r', 'm');

-- name: heartbeat
-- Waits for no standby: one that is away would hold up whoever sends this.
select pg_catalog.set_config('synchronous_commit', 'local', true),
       pg_catalog.pg_logical_emit_message(true, 'replicator', '') as lsn;

-- name: present
select c.system_identifier::text as system_identifier, pg_catalog.pg_is_in_recovery() as is_standby
from pg_catalog.pg_control_system() c;

-- name: timeline
-- Of a primary the one that it writes: pg_control_checkpoint() lags behind a promotion. Of a standby the newest that it
-- knows of: a rewound one has the old timeline in its last checkpoint, and has to recover into the new one. Roles without
-- pg_read_all_stats see no received_tli.
select case when pg_catalog.pg_is_in_recovery()
            then (select greatest(c.timeline_id, r.min_recovery_end_timeline, w.received_tli)
                  from pg_catalog.pg_control_checkpoint() c
                  cross join pg_catalog.pg_control_recovery() r
                  left join pg_catalog.pg_stat_wal_receiver w on true)
            else ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int
       end as timeline;

-- name: xid_bounds
-- Transactions below oldest_xid have ended, prepared ones too; those from next_xid on have not begun. A snapshot's xmax
-- is not next_xid: above it are those that have begun since the youngest that has ended.
select pg_catalog.pg_snapshot_xmin(s.snapshot)::text as oldest_xid,
       (s.xmax + ((3 + pg_catalog.age('3'::xid)::bigint - s.xmax) & 4294967295))::text as next_xid
from (select p.snapshot, pg_catalog.pg_snapshot_xmax(p.snapshot)::text::bigint as xmax
      from (select pg_catalog.pg_current_snapshot() as snapshot) as p) as s;
