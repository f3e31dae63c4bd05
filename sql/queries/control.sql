-- The control schema, in the target. psql: \set control replicator

-- name: has_control
select pg_catalog.to_regclass(:'migration_table') is not null as present;

-- name: migration_version
select coalesce(max(version), 0) as version from :"control".migration;

-- name: record_migration
insert into :"control".migration (version, name) values (:'version', :'name');

-- name: lock
-- key: any text. Held until the session ends; lock_timeout bounds the wait.
select pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended(:'key', 7264811)) is null as locked;

-- name: unlock
select pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended(:'key', 7264811)) as unlocked;

-- name: try_lock
-- Answers at once.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended(:'key', 7264811)) as locked;

-- name: try_lock_transaction
-- As try_lock, until the transaction ends.
select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(:'key', 7264811)) as locked;

-- name: try_locks_transaction
-- keys: texts. As try_lock_transaction, for each; those that another session has are returned.
select k as key from unnest(:'keys'::text[]) as k
where not pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(k, 7264811));

-- name: lock_transaction
-- As try_lock_transaction, but waits; lock_timeout bounds it.
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(:'key', 7264811)) is null as locked;

-- name: list_control_schemas
-- schema: ours. Other control schemas of this database that this role may read. A copy of one as plain tables lacks the
-- function.
select n.nspname::text as schema
from pg_catalog.pg_namespace n
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = 'table_state' and c.relkind = 'r'
where n.nspname <> :'schema'
  and exists (select from pg_catalog.pg_proc p where p.pronamespace = n.oid and p.proname = 'get_last_successful_watermark')
  and (select count(*) from pg_catalog.pg_attribute a
       where a.attrelid = c.oid and a.attname in ('pipeline', 'table_name', 'target_name') and not a.attisdropped) = 3
  and pg_catalog.has_schema_privilege(n.oid, 'USAGE') and pg_catalog.has_table_privilege(c.oid, 'SELECT')
order by 1;

-- name: find_owners
-- targets: their names. pipeline: left out, '' for none. Who writes them by what this control schema knows.
select s.pipeline, s.table_name, s.target_name
from :"control".table_state s
where s.target_name = any (:'targets'::text[]) and s.pipeline <> :'pipeline'
order by 1, 2;

-- name: list_relatives
-- schemas, names: parallel arrays of tables. What else of their partition trees a write to one of them may touch.
select distinct w.schema, w.name, rn.nspname::text as relative_schema, r.relname::text as relative_name
from unnest(:'schemas'::text[], :'names'::text[]) as w (schema, name)
join pg_catalog.pg_namespace n on n.nspname = w.schema
join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.name and (c.relkind = 'p' or c.relispartition)
cross join lateral (select a.relid from pg_catalog.pg_partition_ancestors(c.oid) as a (relid)
                    union select t.relid from pg_catalog.pg_partition_tree(c.oid) as t) as x
join pg_catalog.pg_class r on r.oid = x.relid
join pg_catalog.pg_namespace rn on rn.oid = r.relnamespace;

-- name: list_shadows
-- prefix: how the names of a pipeline's shadows begin.
select c.relname::text as name
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = :'schema' and c.relkind = 'r' and pg_catalog.starts_with(c.relname::text, :'prefix')
order by 1;

-- name: list_grantees
-- shadow: its qualified name. Who may do anything with it beside its owner; '' for everybody.
select distinct coalesce(r.rolname::text, '') as grantee
from pg_catalog.pg_class c
cross join lateral pg_catalog.aclexplode(c.relacl) a
left join pg_catalog.pg_roles r on r.oid = a.grantee
where c.oid = :'shadow'::text::regclass and a.grantee <> c.relowner;

-- name: save_shape
update :"control".table_state set
    source_oid = :'source_oid', columns = :'columns'::text::jsonb, enum_labels = :'enum_labels'::text::jsonb
where pipeline = :'pipeline' and table_name = :'table_name';

-- name: close_dead_runs
-- The run lock is ours, so whoever left these rows is gone.
update :"control".etl_control
set status = 'failed', completed_at = clock_timestamp(), error_code = coalesce(error_code, 'interrupted'),
    duration_seconds = extract(epoch from clock_timestamp() - started_at),
    error_message = coalesce(error_message, 'the run ended without a word: killed, or its server went away')
where pipeline = :'pipeline' and status = 'running' and path = any (:'paths'::text[])
  and execution_id <> :'execution_id'::uuid;

-- name: delete_expired_batches
-- batch_total keeps what they counted. The time is a stable function's: a volatile one could use no index.
delete from :"control".etl_control
where pipeline = :'pipeline' and table_name = :'table_name' and status <> 'running'
  and started_at < statement_timestamp() - make_interval(secs => :'keep_seconds'::float8)
  and batch_id is distinct from (select k.batch_id from :"control".etl_control k
                   where k.pipeline = :'pipeline' and k.table_name = :'table_name' and k.status = 'success'
                   order by k.batch_id desc limit 1);

-- name: claim_tables
-- tables: source names. Raises each table's epoch, so that an older run can no longer write.
insert into :"control".table_state as s (pipeline, table_name, epoch)
select :'pipeline', t, 1 from unnest(:'tables'::text[]) as t
on conflict (pipeline, table_name) do update set epoch = s.epoch + 1
returning s.table_name, s.target_name, s.epoch, s.strategy, s.guarantee, s.fingerprint, s.xid_position::text as xid_position,
    s.audit_xid_position::text as audit_xid_position, s.watermark_mark, s.system_identifier, s.timeline, s.lsn::text as lsn,
    s.marker, s.snapshot_at, s.audited_at, s.verified_through, s.proved_at, s.source_oid, s.columns, s.enum_labels, s.created_by_us;

-- name: read_states
select s.table_name, s.target_name, s.epoch, s.strategy, s.guarantee, s.fingerprint, s.xid_position::text as xid_position,
    s.audit_xid_position::text as audit_xid_position, s.watermark_mark, s.system_identifier, s.timeline, s.lsn::text as lsn,
    s.marker, s.snapshot_at, s.audited_at, s.verified_through, s.proved_at, s.source_oid, s.columns, s.enum_labels, s.created_by_us
from :"control".table_state s
where s.pipeline = :'pipeline';

-- name: read_snapshot_time
-- When the snapshot was taken that a table's rows are of, or are ahead of.
select snapshot_at from :"control".table_state where pipeline = :'pipeline' and table_name = :'table_name';

-- name: start_batches
-- tables: source names. One `running` row for each, committed before anything is read.
insert into :"control".etl_control (execution_id, pipeline, table_name, path, triggered_by, status)
select :'execution_id'::uuid, :'pipeline', t, :'path', :'triggered_by', 'running' from unnest(:'tables'::text[]) as t
returning batch_id, table_name;

-- name: fence
-- First statement of every data transaction: locks the table's own row, and finds no row once a younger run took over.
select 1 as mine from :"control".table_state
where pipeline = :'pipeline' and table_name = :'table_name' and epoch = :'epoch' for update;

-- name: save_state
update :"control".table_state set
    target_name = :'target_name', strategy = :'strategy', guarantee = :'guarantee', fingerprint = :'fingerprint',
    xid_position = :'xid_position'::text::xid8, audit_xid_position = :'audit_xid_position'::text::xid8,
    watermark_mark = :'watermark_mark',
    system_identifier = :'system_identifier', timeline = :'timeline', lsn = :'lsn'::text::pg_lsn,
    marker = :'marker', snapshot_at = :'snapshot_at', audited_at = :'audited_at',
    source_oid = :'source_oid', columns = :'columns'::text::jsonb, enum_labels = :'enum_labels'::text::jsonb,
    created_by_us = created_by_us or :'created_by_us'
where pipeline = :'pipeline' and table_name = :'table_name' and epoch = :'epoch';

-- name: save_proof
-- In the transaction that found or made them equal. slots: of keys, 0 to 63, whose rows were compared by hashes.
update :"control".table_state s set proved_at = p.proved_at, verified_through = p.oldest
from (select array_agg(g.proved_at order by g.slot) as proved_at,
             case when bool_and(g.proved_at is not null) then min(g.proved_at) end as oldest
      from (select n as slot, case when n = any (:'slots'::int[]) then :'proved_at'::timestamptz else o.proved_at[n + 1] end as proved_at
            from pg_catalog.generate_series(0, 63) as n
            left join :"control".table_state o on o.pipeline = :'pipeline' and o.table_name = :'table_name') as g) as p
where s.pipeline = :'pipeline' and s.table_name = :'table_name';

-- name: finish_batch
-- In the transaction of the data.
update :"control".etl_control set
    status = 'success', completed_at = clock_timestamp(), started_at = :'started_at',
    duration_seconds = extract(epoch from clock_timestamp() - :'started_at'::timestamptz),
    load_type = :'load_type', strategy = :'strategy', guarantee = :'guarantee',
    watermark_start = :'watermark_start', watermark_end = :'watermark_end',
    xid_start = :'xid_start'::text::xid8, xid_end = :'xid_end'::text::xid8,
    lsn_start = :'lsn_start'::text::pg_lsn, lsn_end = :'lsn_end'::text::pg_lsn,
    rows_extracted = :'rows_extracted', rows_inserted = :'rows_inserted', rows_updated = :'rows_updated',
    rows_unchanged = :'rows_unchanged', rows_deleted = :'rows_deleted', rows_missed_before = :'rows_missed_before',
    rows_quarantined = :'rows_quarantined', bytes_copied = :'bytes_copied', phases = :'phases'::text::jsonb, attempts = :'attempts',
    error_code = null, error_message = null, error_hint = null, error_traceback = null
where batch_id = :'batch_id';

-- name: finish_repair
-- In the transaction of the data, once for each part of it.
update :"control".etl_control set
    status = 'success', completed_at = clock_timestamp(), started_at = :'started_at',
    duration_seconds = extract(epoch from clock_timestamp() - :'started_at'::timestamptz),
    load_type = :'load_type', strategy = 'stream', guarantee = 'exact',
    rows_extracted = :'rows_extracted', rows_inserted = :'rows_inserted', rows_updated = :'rows_updated',
    rows_unchanged = :'rows_unchanged', rows_deleted = :'rows_deleted', rows_missed_before = :'rows_missed_before',
    rows_quarantined = :'rows_quarantined', bytes_copied = :'bytes_copied', phases = :'phases'::text::jsonb
where batch_id = :'batch_id';

-- name: fail_batch
-- In a transaction of its own. A batch that landed stays landed.
update :"control".etl_control set
    status = :'status', completed_at = clock_timestamp(), started_at = coalesce(:'started_at'::timestamptz, started_at),
    duration_seconds = extract(epoch from clock_timestamp() - coalesce(:'started_at'::timestamptz, started_at)),
    strategy = coalesce(:'strategy', strategy), error_code = :'error_code', error_message = :'error_message',
    error_hint = :'error_hint', error_traceback = :'error_traceback', attempts = :'attempts'
where batch_id = :'batch_id' and status = 'running';

-- name: skip_batch
-- In a transaction of its own. reason: our own words, where people look for them.
update :"control".etl_control set
    status = 'skipped', completed_at = clock_timestamp(), duration_seconds = 0, error_message = :'reason'
where batch_id = :'batch_id' and status = 'running';

-- name: read_batches
-- Rows of one run, in the order of their tables.
select * from :"control".etl_control where execution_id = :'execution_id'::uuid order by batch_id;

-- name: history
-- table_name: null for all. Newest first.
select * from :"control".etl_control
where pipeline = :'pipeline' and (:'table_name'::text is null or table_name = :'table_name')
order by batch_id desc limit :'limit';

-- name: last_batches
-- The newest batch of each table that is known. Table by table: an index leads there, however long the history is.
select b.*
from (select table_name from :"control".table_state where pipeline = :'pipeline'
      union select table_name from :"control".parked_table where pipeline = :'pipeline'
      union select table_name from :"control".copying_table where pipeline = :'pipeline') n
cross join lateral (
    select * from :"control".etl_control c where c.pipeline = :'pipeline' and c.table_name = n.table_name
    order by c.batch_id desc limit 1) b
order by b.table_name;

-- name: record_observation
insert into :"control".observation (pipeline, system_identifier, observed_at, transactions, prepared)
values (:'pipeline', :'system_identifier', :'observed_at', :'transactions'::text[], :'prepared')
on conflict do nothing;

-- name: read_observations
-- Newest first.
select observed_at, transactions, prepared from :"control".observation
where pipeline = :'pipeline' and system_identifier = :'system_identifier'
order by observed_at desc limit 64;

-- name: delete_old_observations
delete from :"control".observation
where pipeline = :'pipeline' and observed_at < (
    select min(observed_at) from (select observed_at from :"control".observation
                                  where pipeline = :'pipeline' order by observed_at desc limit 64) as kept);

-- name: forget_table
with streamed as (delete from :"control".stream_table where pipeline = :'pipeline' and table_name = :'table_name'),
     refused as (delete from :"control".quarantine where pipeline = :'pipeline' and table_name = :'table_name'),
     copied as (delete from :"control".copying_table where pipeline = :'pipeline' and table_name = :'table_name'),
     parked as (delete from :"control".parked_table where pipeline = :'pipeline' and table_name = :'table_name'
                returning table_name),
     known as (delete from :"control".table_state where pipeline = :'pipeline' and table_name = :'table_name'
               returning table_name)
select table_name from known union select table_name from parked;

-- name: drop_running
-- Rows of a read that came to nothing; what it came to nothing by is told elsewhere.
delete from :"control".etl_control where batch_id = any(:'batch_ids'::bigint[]) and status = 'running';
