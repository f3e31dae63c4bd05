-- The listener: where its stream stands, which tables it keeps, which rows the target refused.
-- psql: \set control replicator

create table :"control".listener (
    pipeline text primary key,
    -- Fences like table_state.epoch: a listener raises it, and writes only while it is still its own.
    epoch bigint not null default 0,
    slot_name text,
    system_identifier text,
    timeline int,
    consistent_point pg_lsn,
    -- All commits up to here are in the target. Null while the initial copy is under way.
    position pg_lsn,
    -- The source's clock: all that was committed before this moment is in the target.
    fresh_at timestamptz,
    -- Every transaction older than this one is in the target: where a pull by xmin closes a gap.
    repair_xid xid8
);

-- Tables of the stream. A row appears with the table's copy, in the same transaction.
create table :"control".stream_table (
    pipeline text not null,
    table_name text not null,
    -- Commits up to here are in the table's copy already.
    since pg_lsn not null,
    -- The definition when the table was last read whole, without what every TRUNCATE changes.
    definition text not null,
    -- The stream alone cannot bring the table up to date: it is to be read again.
    is_stale boolean not null default false,
    primary key (pipeline, table_name)
);

-- Rows that the target refused. Their keys stand in the target, where the rows would; never in a log.
create table :"control".quarantine (
    quarantine_id bigint generated always as identity primary key,
    pipeline text not null,
    table_name text not null,
    key jsonb not null,
    lsn pg_lsn,
    error_code text not null,
    error_message text not null,
    first_at timestamptz not null default clock_timestamp(),
    last_at timestamptz not null default clock_timestamp(),
    changes int not null default 1,
    unique (pipeline, table_name, key)
);

drop view :"control".vw_table_freshness;
create view :"control".vw_table_freshness as
select s.pipeline, s.table_name, s.target_name, case when t.table_name is null then s.strategy else 'stream' end as strategy,
       s.guarantee, f.fresh_as_of, round(extract(epoch from clock_timestamp() - f.fresh_as_of)::numeric, 1) as lag_seconds,
       s.verified_through
from :"control".table_state s
left join :"control".stream_table t using (pipeline, table_name)
left join :"control".listener l on l.pipeline = s.pipeline and t.table_name is not null
cross join lateral (select greatest(s.snapshot_at, l.fresh_at) as fresh_as_of) f
where f.fresh_as_of is not null
order by f.fresh_as_of;
