-- What operating asks for: totals that outlive the rows of etl_control, what a comparison found, incidents told of.
-- psql: \set control replicator

-- null: never compared. Rows that differed at the last comparison and were not repaired.
alter table :"control".table_state add column rows_mismatched bigint;

-- Which of a histogram's buckets a duration falls into: 0 = up to a second. Prometheus' upper bounds belong to their
-- bucket, width_bucket's do not; durations have three decimals.
create function :"control".duration_bucket(seconds numeric) returns int
language sql immutable as $$
    select pg_catalog.width_bucket(seconds - 0.0005, array[1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400]::numeric[])
$$;

-- Sums over rows of etl_control that retention deleted: a counter must never go down.
create table :"control".expired_total (
    pipeline text not null,
    table_name text not null,
    path text not null,
    status text not null,
    error_code text not null,
    duration_bucket int not null,
    batches bigint not null,
    attempts bigint not null,
    duration_seconds numeric not null,
    rows_inserted bigint not null,
    rows_updated bigint not null,
    rows_unchanged bigint not null,
    rows_deleted bigint not null,
    bytes_copied bigint not null,
    primary key (pipeline, table_name, path, status, error_code, duration_bucket)
);

-- What is wrong now. told_at: null until somebody was told; the row goes when it is over.
create table :"control".incident (
    pipeline text not null,
    kind text not null,
    table_name text not null default '',
    code text not null,
    message text not null,
    seen_at timestamptz not null default clock_timestamp(),
    told_at timestamptz,
    primary key (pipeline, kind, table_name)
);
