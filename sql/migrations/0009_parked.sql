-- Tables that the listener leaves out for now, and those that it reads to take them in.
-- psql: \set control replicator

-- A parked table is in trouble of its own: its changes are discarded, all other tables go on. It is no row of
-- stream_table meanwhile, so the nightly sync may copy it.
create table :"control".parked_table (
    pipeline text not null,
    table_name text not null,
    parked_at timestamptz not null default clock_timestamp(),
    -- Where the source's transaction commits that parked it; null: the catalog alone did.
    lsn pg_lsn,
    error_id text not null,
    error_message text not null,
    error_hint text,
    attempts int not null default 1,
    -- Somebody asked for a resync: the listener tries at once, and reads everything.
    is_requested boolean not null default false,
    primary key (pipeline, table_name)
);

-- A table that the listener is reading beside the stream.
create table :"control".copying_table (
    pipeline text not null,
    table_name text not null,
    started_at timestamptz not null default clock_timestamp(),
    primary key (pipeline, table_name)
);

-- Each parked table may have one row that it cannot get past.
drop index :"control".quarantine_stops;
create unique index quarantine_stops on :"control".quarantine (pipeline, table_name) where stops;
