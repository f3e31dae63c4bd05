-- The listener's part of the control schema, in the target. psql: \set control replicator

-- name: claim
-- Raises the listener's epoch, so that an older process can no longer write.
insert into :"control".listener as l (pipeline, epoch) values (:'pipeline', 1)
on conflict (pipeline) do update set epoch = l.epoch + 1
returning epoch, slot_name, system_identifier, timeline, consistent_point::text as consistent_point, position::text as position,
    fresh_at, repair_xid::text as repair_xid,
    commit_lsn::text as commit_lsn, commit_end::text as commit_end, commit_xid, commit_time_us;

-- name: read_state
select epoch, slot_name, system_identifier, timeline, consistent_point::text as consistent_point, position::text as position,
    fresh_at, repair_xid::text as repair_xid,
    commit_lsn::text as commit_lsn, commit_end::text as commit_end, commit_xid, commit_time_us
from :"control".listener where pipeline = :'pipeline';

-- name: begin_copy
-- Ahead of the slot: after a crash the next command knows that the slot is of no use. position null = not copied yet.
update :"control".listener set slot_name = :'slot_name', position = null, consistent_point = null
where pipeline = :'pipeline' and epoch = :'epoch';

-- name: finish_copy
-- Every table has been copied at the slot's consistent point.
update :"control".listener set
    position = :'position'::text::pg_lsn, consistent_point = :'position'::text::pg_lsn,
    system_identifier = :'system_identifier', timeline = :'timeline', fresh_at = :'fresh_at',
    repair_xid = :'repair_xid'::text::xid8,
    commit_lsn = null, commit_end = null, commit_xid = null, commit_time_us = null
where pipeline = :'pipeline' and epoch = :'epoch';

-- name: fence
-- First statement of every transaction that carries changes; finds no row once a younger listener took over.
select 1 as mine from :"control".listener where pipeline = :'pipeline' and epoch = :'epoch' for update;

-- name: hold
-- Whoever has this lock keeps the listener's transactions waiting at their first statement.
select 1 as held from :"control".listener where pipeline = :'pipeline' for update;

-- name: save_position
-- In the transaction of the data. repair_xid, commit_...: null keeps what is there. A stream that goes on is past what it refused.
with passed as (
    delete from :"control".quarantine q where q.pipeline = :'pipeline' and q.stops
      and not exists (select from :"control".parked_table p where p.pipeline = q.pipeline and p.table_name = q.table_name)
      and not exists (select from :"control".stream_table t
                      where t.pipeline = q.pipeline and t.table_name = q.table_name and t.is_stale))
update :"control".listener set
    position = :'position'::text::pg_lsn, fresh_at = greatest(fresh_at, :'fresh_at'::timestamptz),
    repair_xid = coalesce(:'repair_xid'::text::xid8, repair_xid),
    commit_lsn = coalesce(:'commit_lsn'::text::pg_lsn, commit_lsn),
    commit_end = coalesce(:'commit_end'::text::pg_lsn, commit_end),
    commit_xid = coalesce(:'commit_xid'::bigint, commit_xid),
    commit_time_us = coalesce(:'commit_time_us'::bigint, commit_time_us)
where pipeline = :'pipeline' and epoch = :'epoch'
returning 1 as mine;

-- name: resume
-- timeline: the one on which the stream goes on. keeps_repair: false where the pair may be of another history.
update :"control".listener set timeline = :'timeline', repair_xid = case when :'keeps_repair' then repair_xid end
where pipeline = :'pipeline' and epoch = :'epoch';

-- name: list_tables
select table_name, since::text as since, seen::text as seen, seen_until::text as seen_until, definition, is_stale
from :"control".stream_table where pipeline = :'pipeline';

-- name: save_table
insert into :"control".stream_table as t (pipeline, table_name, since, definition, is_stale)
values (:'pipeline', :'table_name', :'since'::text::pg_lsn, :'definition', :'is_stale')
on conflict (pipeline, table_name)
do update set since = excluded.since, definition = excluded.definition, is_stale = excluded.is_stale,
    seen = null, seen_until = null;

-- name: share_state
-- Until this transaction ends no listener begins.
select epoch from :"control".listener where pipeline = :'pipeline' for share;

-- name: save_seen
-- snapshot: of a read of the table without the stream, whose transactions the stream then passes over.
update :"control".stream_table set seen = :'snapshot'::text::pg_snapshot, seen_until = :'until'::text::pg_lsn
where pipeline = :'pipeline' and table_name = :'table_name';

-- name: save_definition
update :"control".stream_table set definition = :'definition'
where pipeline = :'pipeline' and table_name = :'table_name';

-- name: mark_stale
update :"control".stream_table set is_stale = true
where pipeline = :'pipeline' and table_name = :'table_name';

-- name: drop_table
delete from :"control".stream_table where pipeline = :'pipeline' and table_name = :'table_name';

-- name: drop_stream
-- The slot is gone for good: nothing of the stream is left, tables are the nightly sync's again.
with gone as (delete from :"control".stream_table where pipeline = :'pipeline'),
    parked as (delete from :"control".parked_table where pipeline = :'pipeline'),
    copied as (delete from :"control".copying_table where pipeline = :'pipeline'),
    passed as (delete from :"control".quarantine where pipeline = :'pipeline' and stops)
update :"control".listener set slot_name = null, position = null, consistent_point = null, repair_xid = null
where pipeline = :'pipeline';

-- name: add_batches
-- One row for each table and minute. batches: an array of objects, the counts of each table.
insert into :"control".etl_control (execution_id, pipeline, table_name, path, load_type, strategy, guarantee, triggered_by, status,
    started_at, completed_at, duration_seconds, lsn_start, lsn_end, watermark_end,
    rows_extracted, rows_inserted, rows_updated, rows_unchanged, rows_deleted, rows_quarantined, rows_missed_before, bytes_copied)
select :'execution_id'::uuid, :'pipeline', b.table_name, 'listen', 'stream', 'stream', b.guarantee, 'listener', 'success',
    :'started_at', clock_timestamp(), extract(epoch from clock_timestamp() - :'started_at'::timestamptz),
    :'lsn'::text::pg_lsn, :'lsn'::text::pg_lsn, :'watermark_end',
    b.rows_extracted, b.rows_inserted, b.rows_updated, b.rows_unchanged, b.rows_deleted, b.rows_quarantined,
    b.rows_missed_before, b.bytes_copied
from pg_catalog.jsonb_to_recordset(:'batches'::text::jsonb) as b (
        table_name text, guarantee text, rows_extracted bigint, rows_inserted bigint, rows_updated bigint, rows_unchanged bigint,
        rows_deleted bigint, rows_quarantined bigint, rows_missed_before bigint, bytes_copied bigint)
returning batch_id, table_name;

-- name: grow_batches
-- batches: an array of objects, the counts to be added to each row.
update :"control".etl_control e set
    completed_at = clock_timestamp(),
    duration_seconds = e.duration_seconds + extract(epoch from clock_timestamp() - :'started_at'::timestamptz),
    lsn_end = :'lsn'::text::pg_lsn, watermark_end = :'watermark_end',
    rows_extracted = e.rows_extracted + b.rows_extracted, rows_inserted = e.rows_inserted + b.rows_inserted,
    rows_updated = e.rows_updated + b.rows_updated, rows_unchanged = e.rows_unchanged + b.rows_unchanged,
    rows_deleted = e.rows_deleted + b.rows_deleted, rows_quarantined = e.rows_quarantined + b.rows_quarantined,
    rows_missed_before = e.rows_missed_before + b.rows_missed_before, bytes_copied = e.bytes_copied + b.bytes_copied
from pg_catalog.jsonb_to_recordset(:'batches'::text::jsonb) as b (batch_id bigint,
        rows_extracted bigint, rows_inserted bigint, rows_updated bigint, rows_unchanged bigint,
        rows_deleted bigint, rows_quarantined bigint, rows_missed_before bigint, bytes_copied bigint)
where e.batch_id = b.batch_id;

-- name: record_failure
-- In a transaction of its own. The same failure again raises `attempts` of the row that tells of it already.
with same as (
    update :"control".etl_control c set attempts = attempts + 1, completed_at = clock_timestamp()
    where c.batch_id = (select max(l.batch_id) from :"control".etl_control l
                        where l.pipeline = :'pipeline' and l.table_name = :'table_name' and l.path = 'listen')
      and c.status = 'failed' and c.error_code = :'error_code' and c.error_message = :'error_message'
    returning batch_id)
insert into :"control".etl_control (execution_id, pipeline, table_name, path, load_type, strategy, triggered_by, status,
    completed_at, duration_seconds, lsn_end, error_code, error_message, error_hint, error_traceback)
select :'execution_id'::uuid, :'pipeline', :'table_name', 'listen', 'stream', 'stream', 'listener', 'failed',
    clock_timestamp(), 0, :'lsn'::text::pg_lsn, :'error_code', :'error_message', :'error_hint', :'error_traceback'
where not exists (select from same);

-- name: save_refused
-- The same change again counts in `changes`.
insert into :"control".quarantine as r (pipeline, table_name, key, lsn, error_code, error_message, stops)
values (:'pipeline', :'table_name', :'key'::text::jsonb, :'lsn'::text::pg_lsn, :'error_code', :'error_message', true)
on conflict (pipeline, table_name) where stops do update set
    key = excluded.key, lsn = excluded.lsn, error_code = excluded.error_code,
    error_message = excluded.error_message, last_at = clock_timestamp(),
    first_at = case when r.lsn = excluded.lsn then r.first_at else clock_timestamp() end,
    changes = case when r.lsn = excluded.lsn then r.changes + 1 else 1 end;

-- name: read_refused
select table_name, nullif(key, 'null'::jsonb) as key, lsn::text as lsn, error_code, error_message, first_at, last_at,
    changes as attempts
from :"control".quarantine where pipeline = :'pipeline' and stops order by last_at desc;

-- name: read_quarantine
select quarantine_id, table_name, key, lsn::text as lsn, error_code, error_message, first_at, last_at, changes
from :"control".quarantine where pipeline = :'pipeline' and not stops order by quarantine_id;

-- name: quarantine_row
insert into :"control".quarantine as q (pipeline, table_name, key, lsn, error_code, error_message)
values (:'pipeline', :'table_name', :'key'::text::jsonb, :'lsn'::text::pg_lsn, :'error_code', :'error_message')
on conflict (pipeline, table_name, key, stops) do update set last_at = clock_timestamp(), changes = q.changes + 1,
    lsn = coalesce(excluded.lsn, q.lsn), error_code = excluded.error_code, error_message = excluded.error_message;

-- name: read_waiting
select key from :"control".quarantine where pipeline = :'pipeline' and table_name = :'table_name' and not stops;

-- name: touch_waiting
update :"control".quarantine set last_at = clock_timestamp(), changes = changes + 1, lsn = coalesce(:'lsn'::text::pg_lsn, lsn)
where pipeline = :'pipeline' and table_name = :'table_name' and key = :'key'::text::jsonb and not stops;

-- name: release_others
-- keys: a JSON array of the keys that stay.
delete from :"control".quarantine
where pipeline = :'pipeline' and table_name = :'table_name' and not stops
    and key not in (select k.value from jsonb_array_elements(:'keys'::text::jsonb) as k);

-- name: release_row
delete from :"control".quarantine where pipeline = :'pipeline' and quarantine_id = :'quarantine_id' and not stops
returning table_name;

-- name: lock_is_held
-- key: the text of a lock. Tells whether some session holds it, this one included.
select exists (
    select from pg_catalog.pg_locks l
    where l.locktype = 'advisory' and l.granted and l.objsubid = 1
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
      and (l.classid::bigint << 32 | l.objid::bigint) = pg_catalog.hashtextextended(:'key', 7264811)) as held;

-- name: park_table
-- The table leaves the stream; its first trouble's moment stays while it is the same one.
with gone as (delete from :"control".stream_table where pipeline = :'pipeline' and table_name = :'table_name'),
    done as (delete from :"control".copying_table where pipeline = :'pipeline' and table_name = :'table_name')
insert into :"control".parked_table as p (pipeline, table_name, lsn, error_id, error_message, error_hint)
values (:'pipeline', :'table_name',
    coalesce(:'lsn'::text::pg_lsn, (select q.lsn from :"control".quarantine q
                                    where q.pipeline = :'pipeline' and q.table_name = :'table_name' and q.stops)),
    :'error_id', :'error_message', :'error_hint')
on conflict (pipeline, table_name) do update set
    parked_at = case when p.error_id = excluded.error_id then p.parked_at else clock_timestamp() end,
    lsn = coalesce(excluded.lsn, case when p.error_id = excluded.error_id then p.lsn end), error_id = excluded.error_id,
    error_message = excluded.error_message, error_hint = excluded.error_hint,
    attempts = case when p.error_id = excluded.error_id then p.attempts + 1 else 1 end, is_requested = false;

-- name: unpark_table
with passed as (delete from :"control".quarantine where pipeline = :'pipeline' and table_name = :'table_name' and stops)
delete from :"control".parked_table where pipeline = :'pipeline' and table_name = :'table_name';

-- name: list_parked
select table_name, parked_at, lsn::text as lsn, error_id, error_message, error_hint, attempts, is_requested
from :"control".parked_table where pipeline = :'pipeline' order by table_name;

-- name: request_parked
-- Ask the listener to read a parked table now.
update :"control".parked_table set is_requested = true
where pipeline = :'pipeline' and table_name = :'table_name'
returning table_name;

-- name: begin_table_copy
insert into :"control".copying_table (pipeline, table_name) values (:'pipeline', :'table_name')
on conflict (pipeline, table_name) do update set started_at = clock_timestamp();

-- name: end_table_copy
delete from :"control".copying_table where pipeline = :'pipeline' and table_name = :'table_name';

-- name: end_table_copies
delete from :"control".copying_table where pipeline = :'pipeline';

-- name: list_copying
select table_name, started_at from :"control".copying_table where pipeline = :'pipeline' order by table_name;
