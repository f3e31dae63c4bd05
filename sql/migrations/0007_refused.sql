-- The change that the listener cannot get past, where on_row_error is "stop". It is no row in quarantine: nothing waits
-- behind it but the stream itself. psql: \set control replicator

create table :"control".refused_change (
    pipeline text primary key,
    table_name text not null,
    -- Of the row in the target; null without one. It stands here until the stream has gone on.
    key jsonb,
    -- Where the source's transaction commits.
    lsn pg_lsn not null,
    error_code text not null,
    error_message text not null,
    first_at timestamptz not null default clock_timestamp(),
    last_at timestamptz not null default clock_timestamp(),
    attempts int not null default 1
);
