-- What metrics and alerts ask the control schema. psql: \set control replicator

-- name: totals
-- Sums over all that ever ran, kept or expired. A row that still runs counts for nothing yet.
select table_name, path, status, error_code, duration_bucket, batches, attempts, duration_seconds::float8 as duration_seconds,
       rows_inserted, rows_updated, rows_unchanged, rows_deleted, bytes_copied
from :"control".batch_total where pipeline = :'pipeline' and batches > 0;

-- name: lag
-- Of the table that is furthest behind.
select extract(epoch from clock_timestamp() - min(fresh_as_of))::float8 as lag_seconds
from :"control".vw_table_freshness where pipeline = :'pipeline';

-- name: successes
-- Up to when each table is known to be right: its last success, or where its stream stands.
select s.table_name, extract(epoch from greatest(
           (select c.completed_at from :"control".etl_control c
            where c.pipeline = s.pipeline and c.table_name = s.table_name and c.status = 'success'
            order by c.batch_id desc limit 1),
           (select l.fresh_at from :"control".listener l join :"control".stream_table t using (pipeline)
            where l.pipeline = s.pipeline and t.table_name = s.table_name and l.position is not null)))::float8 as success_at
from :"control".table_state s where s.pipeline = :'pipeline';

-- name: mismatches
select table_name, rows_mismatched from :"control".table_state
where pipeline = :'pipeline' and rows_mismatched is not null;

-- name: save_mismatch
-- rows_mismatched: that differed at a comparison and were left as they are.
update :"control".table_state set rows_mismatched = :'rows_mismatched'
where pipeline = :'pipeline' and table_name = :'table_name';

-- name: waiting
-- Rows in quarantine, by table.
select table_name, count(*) as rows, min(error_code) as error_code from :"control".quarantine
where pipeline = :'pipeline' and not stops group by table_name;

-- name: ended_batches
-- tables: names, `-` for the listener itself. How the newest batch of each ended; one that still runs, or was left to the listener, says nothing. Neither does one
-- that a signal cut off in a night that is still open: `serve` takes that up again. Table by table: an index leads there.
select s.table_name, b.path, b.status, coalesce(b.error_code, '') as code, coalesce(b.error_message, '') as message,
       b.completed_at, b.error_hint as hint
from (select unnest(:'tables'::text[]) as table_name) s
cross join lateral (
    select * from :"control".etl_control c
    where c.pipeline = :'pipeline' and c.table_name = s.table_name
      and (c.status in ('success', 'failed') or c.status = 'skipped' and c.error_code is not null)
      and not (c.triggered_by = 'scheduler' and coalesce(c.error_code, '') = 'interrupted' and exists (
          select from :"control".started_run r
          where r.pipeline = :'pipeline' and r.scheduled_for is not null and r.completed_at is null))
    order by c.batch_id desc limit 1) b;

-- name: known_tables
select s.table_name, t.table_name is not null as is_streamed
from :"control".table_state s left join :"control".stream_table t using (pipeline, table_name)
where s.pipeline = :'pipeline';

-- name: count_parked
select count(*) as tables from :"control".parked_table where pipeline = :'pipeline';

-- name: count_running
-- Batches that say that they run, outside of the stream.
select count(*) as batches from :"control".etl_control
where pipeline = :'pipeline' and status = 'running' and path <> 'listen';

-- name: list_incidents
select kind, table_name, code, message, seen_at, told_at from :"control".incident where pipeline = :'pipeline';

-- name: save_incident
-- told_at: null until somebody was told.
insert into :"control".incident (pipeline, kind, table_name, code, message, seen_at, told_at)
values (:'pipeline', :'kind', :'table_name', :'code', :'message', :'seen_at', :'told_at')
on conflict (pipeline, kind, table_name) do update set
    code = excluded.code, message = excluded.message, told_at = excluded.told_at;

-- name: delete_incident
delete from :"control".incident
where pipeline = :'pipeline' and kind = :'kind' and table_name = :'table_name';
