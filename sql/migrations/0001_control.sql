-- The control schema: what every run did, and where every table stands.
-- psql: \set control replicator

create schema if not exists :"control";

create table :"control".migration (
    version int primary key,
    name text not null,
    applied_at timestamptz not null default now()
);

-- One row for each table and batch, of every path.
create table :"control".etl_control (
    batch_id bigint generated always as identity primary key,
    execution_id uuid not null,
    pipeline text not null,
    table_name text not null,
    path text not null check (path in ('sync', 'listen', 'resync', 'repair')),
    load_type text check (load_type in ('incremental', 'full', 'stream')),
    strategy text check (strategy in ('xmin', 'watermark', 'full', 'stream')),
    guarantee text check (guarantee in ('exact', 'bounded')),
    triggered_by text not null check (triggered_by in ('manual', 'scheduler', 'api', 'listener')),
    status text not null check (status in ('running', 'success', 'failed', 'skipped')),
    started_at timestamptz not null default clock_timestamp(),
    completed_at timestamptz,
    duration_seconds numeric(12, 3),
    watermark_start timestamptz,
    watermark_end timestamptz,
    xid_start xid8,
    xid_end xid8,
    lsn_start pg_lsn,
    lsn_end pg_lsn,
    rows_extracted bigint not null default 0,
    rows_inserted bigint not null default 0,
    rows_updated bigint not null default 0,
    rows_unchanged bigint not null default 0,
    rows_deleted bigint not null default 0,
    rows_quarantined bigint not null default 0,
    rows_missed_before bigint not null default 0,
    bytes_copied bigint not null default 0,
    phases jsonb not null default '{}',
    error_code text,
    error_message text,
    error_traceback text,
    attempts int not null default 1
);
create index etl_control_table on :"control".etl_control (pipeline, table_name, batch_id desc);
create index etl_control_execution on :"control".etl_control (execution_id);
create index etl_control_running on :"control".etl_control (pipeline) where status = 'running';
create index etl_control_started on :"control".etl_control (started_at);

-- Where each table stands. `epoch` fences: a run raises it, and writes only while it is still its own.
create table :"control".table_state (
    pipeline text not null,
    table_name text not null,
    target_name text,
    epoch bigint not null default 0,
    strategy text,
    guarantee text,
    fingerprint text,
    xid_position xid8,
    audit_xid_position xid8,
    watermark_mark timestamptz,
    system_identifier text,
    timeline int,
    lsn pg_lsn,
    snapshot_at timestamptz,
    audited_at timestamptz,
    verified_through timestamptz,
    -- Columns as last copied: [[number, name, target name, type], ...], and enum labels by the source's OIDs.
    source_oid bigint,
    columns jsonb,
    enum_labels jsonb,
    created_by_us boolean not null default false,
    primary key (pipeline, table_name)
);

-- What `watermark` saw of the source's open transactions, and when. Virtual transaction ids are never used again
-- before a restart, so two observations that share none prove that everything open at the first had ended.
create table :"control".observation (
    pipeline text not null,
    system_identifier text not null,
    observed_at timestamptz not null,
    transactions text[] not null,
    prepared int not null,
    primary key (pipeline, system_identifier, observed_at)
);

create view :"control".vw_etl_stats as
select batch_id, pipeline, table_name, path, load_type, strategy, status, started_at, completed_at, duration_seconds,
       rows_extracted, rows_inserted, rows_updated, rows_unchanged, rows_deleted, rows_missed_before,
       round(rows_extracted / nullif(duration_seconds, 0)) as rows_per_second,
       pg_size_pretty(bytes_copied) as copied, triggered_by, error_code, error_message
from :"control".etl_control
order by batch_id desc;

create view :"control".vw_table_freshness as
select pipeline, table_name, target_name, strategy, guarantee, snapshot_at as fresh_as_of,
       round(extract(epoch from clock_timestamp() - snapshot_at)::numeric, 1) as lag_seconds, verified_through
from :"control".table_state
where snapshot_at is not null
order by snapshot_at;

create function :"control".get_last_successful_watermark(table_name text default null) returns timestamptz
language sql stable as $$
    select max(c.watermark_end)
    from :"control".etl_control c
    where c.status = 'success'
      and (get_last_successful_watermark.table_name is null
           or c.table_name = get_last_successful_watermark.table_name)
$$;
