-- Runs that `serve` starts: one a night, and those that its API asks for. What errors advise. Changes of columns.
-- psql: \set control replicator

-- since: from when on nights are due; a changed cron or time zone begins anew, so that no old hour counts as missed.
create table :"control".schedule (
    pipeline text primary key,
    cron text not null,
    timezone text not null,
    since timestamptz not null
);

-- A verification leaves no row in etl_control, and a run that dies young leaves none either: this one is always there.
create table :"control".started_run (
    execution_id uuid primary key,
    pipeline text not null,
    command text not null check (command in ('sync', 'resync', 'verify')),
    triggered_by text not null check (triggered_by in ('scheduler', 'api')),
    -- The night that the run is for: no night has two.
    scheduled_for timestamptz,
    tables text[] not null default '{}',
    is_full boolean not null default false,
    attempts int not null default 1,
    started_at timestamptz not null default clock_timestamp(),
    completed_at timestamptz,
    exit_code int,
    -- Of a verification: counts by table. No keys: they are values of cells.
    verdicts jsonb not null default '[]',
    error_message text,
    error_mend text,
    unique (pipeline, scheduled_for)
);
create index started_run_started on :"control".started_run (pipeline, started_at desc);

alter table :"control".etl_control add column error_mend text;
create index etl_control_failed on :"control".etl_control (pipeline, batch_id desc) where status = 'failed';

create table :"control".schema_change (
    pipeline text not null,
    table_name text not null,
    changed_at timestamptz not null default clock_timestamp(),
    -- As table_state.columns.
    before jsonb not null,
    after jsonb not null
);
create index schema_change_table on :"control".schema_change (pipeline, table_name, changed_at desc);

create function :"control".note_schema_change() returns trigger
language plpgsql as $$
begin
    insert into :"control".schema_change (pipeline, table_name, before, after)
    values (new.pipeline, new.table_name, old.columns, new.columns);
    return null;
end
$$;
create trigger note_schema_change after update of columns on :"control".table_state
for each row when (old.columns is distinct from new.columns and old.columns is not null and new.columns is not null)
execute function :"control".note_schema_change();
-- The loader's sessions have session_replication_role = replica, in which only such triggers fire.
alter table :"control".table_state enable always trigger note_schema_change;
