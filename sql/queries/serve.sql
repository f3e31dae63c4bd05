-- What `serve` asks the control schema. psql: \set control replicator

-- name: save_schedule
-- now: the scheduler's clock. Answers from when on nights are due.
insert into :"control".schedule as s (pipeline, cron, timezone, since)
values (:'pipeline', :'cron', :'timezone', :'now')
on conflict (pipeline) do update set
    cron = excluded.cron, timezone = excluded.timezone,
    since = case when s.cron = excluded.cron and s.timezone = excluded.timezone then s.since else excluded.since end
returning since;

-- name: last_scheduled
select max(scheduled_for) as scheduled_for from :"control".started_run where pipeline = :'pipeline';

-- name: start_run
-- No row is answered when the night has its run already.
insert into :"control".started_run (execution_id, pipeline, command, triggered_by, scheduled_for, tables, is_full)
values (:'execution_id'::uuid, :'pipeline', :'command', :'triggered_by', :'scheduled_for', :'tables'::text[], :'is_full')
on conflict (pipeline, scheduled_for) do nothing
returning execution_id;

-- name: starting
-- A run that writes and that somebody has started just now.
select from :"control".started_run
where pipeline = :'pipeline' and command in ('sync', 'resync') and completed_at is null
  and started_at > clock_timestamp() - make_interval(secs => :'grace_seconds'::float8) limit 1;

-- name: open_night
-- The newest scheduled run without an end, and how its tables stand.
select r.execution_id, r.scheduled_for, r.attempts,
       count(c.batch_id) as batches,
       count(*) filter (where c.status = 'running' or c.error_code in ('interrupted', 'unfinished')) as unfinished,
       count(*) filter (where c.status = 'failed') as failed,
       extract(epoch from clock_timestamp() - r.started_at)::float8 as age_s
from :"control".started_run r left join :"control".etl_control c using (execution_id)
where r.pipeline = :'pipeline' and r.scheduled_for is not null and r.completed_at is null
group by r.execution_id order by r.scheduled_for desc limit 1;

-- name: restart_night
update :"control".started_run set execution_id = :'new_id'::uuid, attempts = attempts + 1, started_at = clock_timestamp()
where execution_id = :'execution_id'::uuid and completed_at is null
returning execution_id;

-- name: finish_run
update :"control".started_run set
    completed_at = clock_timestamp(), exit_code = :'exit_code', verdicts = :'verdicts'::text::jsonb,
    error_message = :'error_message', error_hint = :'error_hint'
where execution_id = :'execution_id'::uuid and completed_at is null;

-- name: close_asked
-- Runs that were asked for and whose process is gone. Where their batches all have an end, they tell how it went.
with dead as (
    select r.execution_id, s.*
    from :"control".started_run r cross join lateral (
        select count(*) > 0 and count(*) filter (where c.status = 'running') = 0 as is_told,
               count(*) filter (where c.status = 'failed') as failed,
               count(*) filter (where c.status in ('success', 'skipped')) as done,
               (array_agg(c.error_message order by c.batch_id) filter (where c.status = 'failed'))[1] as error_message,
               (array_agg(c.error_hint order by c.batch_id) filter (where c.status = 'failed'))[1] as error_hint
        from :"control".etl_control c where c.execution_id = r.execution_id) s
    where r.pipeline = :'pipeline' and r.scheduled_for is null and r.completed_at is null
      and not (r.execution_id = any (:'alive'::uuid[])) and r.command = any (:'commands'::text[])
      and r.started_at < clock_timestamp() - make_interval(secs => :'grace_seconds'::float8)
)
update :"control".started_run r set
    completed_at = clock_timestamp(),
    exit_code = case when not d.is_told then 1 when d.failed = 0 then 0 when d.done > 0 then 6 else 1 end,
    error_message = case when d.is_told then d.error_message else :'error_message' end,
    error_hint = case when d.is_told then d.error_hint end
from dead d where d.execution_id = r.execution_id and r.completed_at is null;

-- name: delete_expired_runs
delete from :"control".started_run
where pipeline = :'pipeline' and completed_at < clock_timestamp() - make_interval(secs => :'keep_seconds'::float8)
  and scheduled_for is distinct from (select max(r.scheduled_for) from :"control".started_run r where r.pipeline = :'pipeline');

-- name: tables
-- Where every table stands, with its newest batch: also of those that were never copied, if the listener parked them or
-- reads them now. contains: null for all. Parked tables first, then those whose last run failed.
select n.table_name, s.target_name,
       case when p.table_name is not null then 'parked'
            when c.table_name is not null or t.table_name is not null and l.position is null then 'copying'
            when t.table_name is not null then 'live' else 'nightly' end as state,
       case when p.table_name is not null then pg_catalog.jsonb_build_object(
           'since', p.parked_at, 'lsn', p.lsn::text, 'id', p.error_id, 'message', p.error_message, 'hint', p.error_hint)
           end as parked,
       case when t.table_name is null then s.strategy else 'stream' end as strategy,
       -- Of a stream: the fifth of a column's facts says that its text follows names, which no WAL tells of.
       case when t.table_name is null then s.guarantee
            when pg_catalog.jsonb_path_exists(s.columns, '$[*][4] ? (@ == true)') then 'bounded' else 'exact' end as guarantee,
       s.watermark_mark as watermark,
       coalesce(case when t.table_name is not null then l.position end, s.lsn)::text as position,
       f.fresh_as_of, round(extract(epoch from clock_timestamp() - f.fresh_as_of)::numeric, 1)::float8 as lag_seconds,
       s.verified_through, s.rows_mismatched, coalesce(d.rows, 0)::bigint as rows_last_day,
       coalesce(q.waiting, 0) as quarantined, b.last_run
from (select table_name from :"control".table_state where pipeline = :'pipeline'
      union select table_name from :"control".parked_table where pipeline = :'pipeline'
      union select table_name from :"control".copying_table where pipeline = :'pipeline') n
left join :"control".table_state s on s.pipeline = :'pipeline' and s.table_name = n.table_name
left join :"control".stream_table t on t.pipeline = :'pipeline' and t.table_name = n.table_name
left join :"control".parked_table p on p.pipeline = :'pipeline' and p.table_name = n.table_name
left join :"control".copying_table c on c.pipeline = :'pipeline' and c.table_name = n.table_name
left join :"control".listener l on l.pipeline = :'pipeline' and t.table_name is not null
cross join lateral (select greatest(s.snapshot_at, l.fresh_at) as fresh_as_of) f
left join lateral (
    select pg_catalog.to_jsonb(e) as last_run from :"control".etl_control e
    where e.pipeline = :'pipeline' and e.table_name = n.table_name order by e.batch_id desc limit 1) b on true
left join (
    select e.table_name, sum(e.rows_inserted + e.rows_updated + e.rows_deleted) as rows from :"control".etl_control e
    where e.pipeline = :'pipeline' and e.started_at > statement_timestamp() - interval '24 hours' group by e.table_name) d
    on d.table_name = n.table_name
left join (
    select q.table_name, count(*) as waiting from :"control".quarantine q
    where q.pipeline = :'pipeline' and not q.stops group by q.table_name) q on q.table_name = n.table_name
where (:'contains'::text is null or pg_catalog.strpos(pg_catalog.lower(n.table_name), pg_catalog.lower(:'contains')) > 0)
  and (:'table_name'::text is null or n.table_name = :'table_name')
order by p.table_name is null, b.last_run ->> 'status' is distinct from 'failed', n.table_name;

-- name: runs
-- Newest first. A run is the batches of one execution; one that left none is told by started_run. Filters: null for all.
-- run_lock: the text of the lock; batches that run without it died with their process.
-- Only the newest `depth` batches that fit are looked at, and `candidates` executions of theirs: a history is long.
with lock as (
    select exists (
        select from pg_catalog.pg_locks l
        where l.locktype = 'advisory' and l.granted and l.objsubid = 1
          and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
          and (l.classid::bigint << 32 | l.objid::bigint) = pg_catalog.hashtextextended(:'run_lock', 7264811)) as is_held
), newest as (
    select c.execution_id, c.batch_id from :"control".etl_control c
    where c.pipeline = :'pipeline' and (:'execution_id'::uuid is null or c.execution_id = :'execution_id'::uuid)
      and (:'table_name'::text is null or c.table_name = :'table_name')
      and (:'batch_status'::text is null or c.status = :'batch_status')
      and (:'path'::text is null or c.path = :'path') and (:'triggered_by'::text is null or c.triggered_by = :'triggered_by')
    order by c.batch_id desc limit :'depth'
), candidate as (
    select n.execution_id from newest n group by n.execution_id order by max(n.batch_id) desc limit :'candidates'
), batch as (
    select c.execution_id, min(c.path) as path, min(c.triggered_by) as triggered_by, min(c.started_at) as started_at,
           case when bool_or(c.status = 'running') then null else max(c.completed_at) end as completed_at,
           count(distinct c.table_name) as tables, count(*) filter (where c.status = 'failed') as tables_failed,
           count(*) filter (where c.status = 'running') as tables_running,
           count(*) filter (where c.status in ('success', 'skipped')) as tables_done,
           sum(c.rows_inserted + c.rows_updated + c.rows_deleted)::bigint as rows_written,
           sum(c.bytes_copied)::bigint as bytes_copied
    from candidate join :"control".etl_control c using (execution_id)
    where c.pipeline = :'pipeline' group by c.execution_id
), run as (
    select b.*, case when (tables_running > 0 and lock.is_held) or (r.execution_id is not null and r.completed_at is null) then 'running' when tables_failed + tables_running = 0 then 'success'
                     when tables_done > 0 then 'partial' else 'failed' end as status,
           r.scheduled_for, r.exit_code, coalesce(r.verdicts, '[]') as verdicts, r.error_message, r.error_hint
    from lock cross join batch b left join :"control".started_run r using (execution_id)
    union all
    select r.execution_id, r.command, r.triggered_by, r.started_at, r.completed_at,
           greatest(cardinality(r.tables), jsonb_array_length(r.verdicts)), 0, 0, jsonb_array_length(r.verdicts), 0, 0,
           case when r.completed_at is null then 'running' when r.exit_code = 0 then 'success' when r.exit_code = 6 then 'partial'
                when r.exit_code = 7 then 'different' else 'failed' end,
           r.scheduled_for, r.exit_code, r.verdicts, r.error_message, r.error_hint
    from :"control".started_run r
    where r.pipeline = :'pipeline' and (:'execution_id'::uuid is null or r.execution_id = :'execution_id'::uuid)
      and (:'table_name'::text is null or :'table_name' = any (r.tables))
      and (:'path'::text is null or r.command = :'path') and (:'triggered_by'::text is null or r.triggered_by = :'triggered_by')
      and not exists (select from :"control".etl_control c where c.execution_id = r.execution_id)
)
select execution_id, path, triggered_by, status, scheduled_for, started_at, completed_at,
       round(extract(epoch from coalesce(completed_at, clock_timestamp()) - started_at)::numeric, 3)::float8
           as duration_seconds,
       tables, tables_done, tables_failed, tables_running, rows_written, bytes_copied, exit_code, verdicts,
       error_message, error_hint
from run
where :'status'::text is null or status = :'status'
order by started_at desc limit :'limit';

-- name: batches
-- Of one run, the failed ones first.
select * from :"control".etl_control
where execution_id = :'execution_id'::uuid and pipeline = :'pipeline'
order by status <> 'failed', status <> 'running', batch_id desc limit :'limit';

-- name: copying
-- What the COPY commands of our role bring in at this moment.
select count(*) as copies, coalesce(sum(p.tuples_processed), 0)::bigint as rows,
       coalesce(sum(p.bytes_processed), 0)::bigint as bytes
from pg_catalog.pg_stat_progress_copy p join pg_catalog.pg_stat_activity a on a.pid = p.pid
where p.datname = pg_catalog.current_database() and p.command = 'COPY FROM' and a.usename = current_user;

-- name: points
-- One a run and day of the last 30 days, oldest first. table_name: null for all. lag: how old the data was before it.
select min(started_at) as at, sum(rows_inserted + rows_updated + rows_deleted)::float8 as rows,
       extract(epoch from max(completed_at) - min(started_at))::float8 as duration_seconds,
       extract(epoch from max(completed_at - case when path = 'listen' then watermark_end else watermark_start end))::float8
           as lag_seconds
from :"control".etl_control
where pipeline = :'pipeline' and status = 'success' and started_at > statement_timestamp() - interval '30 days'
  and (:'table_name'::text is null or table_name = :'table_name')
group by execution_id, path, date_trunc('day', started_at)
order by 1 desc limit 120;

-- name: schema_changes
select changed_at, before, after from :"control".schema_change
where pipeline = :'pipeline' and table_name = :'table_name' order by changed_at desc limit 20;

-- name: waiting
-- What refused the rows of a table that wait; no keys.
select error_code, error_message, count(*) as rows, max(last_at) as last_at from :"control".quarantine
where pipeline = :'pipeline' and table_name = :'table_name' and not stops group by 1, 2 order by 3 desc limit 20;

-- name: last_verdict
select r.completed_at, v.value as verdict
from :"control".started_run r cross join lateral jsonb_array_elements(r.verdicts) v
where r.pipeline = :'pipeline' and r.command = 'verify' and v.value ->> 'table' = :'table_name'
order by r.completed_at desc limit 1;
