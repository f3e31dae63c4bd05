-- Running totals of etl_control: metrics read a row a group, however long the history is.
-- psql: \set control replicator

-- It held what retention had deleted; from now on it holds every batch that has ended.
alter table :"control".expired_total rename to batch_total;

-- What retention deletes is found by its age.
create index etl_control_age on :"control".etl_control (pipeline, table_name, started_at);

create function :"control".count_batches() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'INSERT' then
        insert into :"control".batch_total as t (pipeline, table_name, path, status, error_code, duration_bucket, batches, attempts,
            duration_seconds, rows_inserted, rows_updated, rows_unchanged, rows_deleted, bytes_copied)
        select n.pipeline, n.table_name, n.path, n.status, coalesce(n.error_code, ''),
               :"control".duration_bucket(coalesce(n.duration_seconds, 0)), count(*), sum(n.attempts),
               sum(coalesce(n.duration_seconds, 0)), sum(n.rows_inserted), sum(n.rows_updated), sum(n.rows_unchanged),
               sum(n.rows_deleted), sum(n.bytes_copied)
        from new_rows n where n.status <> 'running' group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
        on conflict (pipeline, table_name, path, status, error_code, duration_bucket) do update set
            batches = t.batches + excluded.batches, attempts = t.attempts + excluded.attempts,
            duration_seconds = t.duration_seconds + excluded.duration_seconds,
            rows_inserted = t.rows_inserted + excluded.rows_inserted, rows_updated = t.rows_updated + excluded.rows_updated,
            rows_unchanged = t.rows_unchanged + excluded.rows_unchanged, rows_deleted = t.rows_deleted + excluded.rows_deleted,
            bytes_copied = t.bytes_copied + excluded.bytes_copied;
    else
        insert into :"control".batch_total as t (pipeline, table_name, path, status, error_code, duration_bucket, batches, attempts,
            duration_seconds, rows_inserted, rows_updated, rows_unchanged, rows_deleted, bytes_copied)
        select n.pipeline, n.table_name, n.path, n.status, coalesce(n.error_code, ''),
               :"control".duration_bucket(coalesce(n.duration_seconds, 0)), sum(n.sign), sum(n.sign * n.attempts),
               sum(n.sign * coalesce(n.duration_seconds, 0)), sum(n.sign * n.rows_inserted), sum(n.sign * n.rows_updated),
               sum(n.sign * n.rows_unchanged), sum(n.sign * n.rows_deleted), sum(n.sign * n.bytes_copied)
        from (select 1 as sign, a.* from new_rows a union all select -1, b.* from old_rows b) n
        where n.status <> 'running' group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
        on conflict (pipeline, table_name, path, status, error_code, duration_bucket) do update set
            batches = t.batches + excluded.batches, attempts = t.attempts + excluded.attempts,
            duration_seconds = t.duration_seconds + excluded.duration_seconds,
            rows_inserted = t.rows_inserted + excluded.rows_inserted, rows_updated = t.rows_updated + excluded.rows_updated,
            rows_unchanged = t.rows_unchanged + excluded.rows_unchanged, rows_deleted = t.rows_deleted + excluded.rows_deleted,
            bytes_copied = t.bytes_copied + excluded.bytes_copied;
    end if;
    return null;
end
$$;

create trigger etl_control_inserted after insert on :"control".etl_control
    referencing new table as new_rows for each statement execute function :"control".count_batches();
create trigger etl_control_updated after update on :"control".etl_control
    referencing old table as old_rows new table as new_rows for each statement execute function :"control".count_batches();
-- Loads set session_replication_role = replica, under which others do not fire.
alter table :"control".etl_control enable always trigger etl_control_inserted;
alter table :"control".etl_control enable always trigger etl_control_updated;

insert into :"control".batch_total as t (pipeline, table_name, path, status, error_code, duration_bucket, batches, attempts,
    duration_seconds, rows_inserted, rows_updated, rows_unchanged, rows_deleted, bytes_copied)
select pipeline, table_name, path, status, coalesce(error_code, ''),
       :"control".duration_bucket(coalesce(duration_seconds, 0)), count(*), sum(attempts),
       sum(coalesce(duration_seconds, 0)), sum(rows_inserted), sum(rows_updated), sum(rows_unchanged), sum(rows_deleted),
       sum(bytes_copied)
from :"control".etl_control where status <> 'running' group by 1, 2, 3, 4, 5, 6
on conflict (pipeline, table_name, path, status, error_code, duration_bucket) do update set
    batches = t.batches + excluded.batches, attempts = t.attempts + excluded.attempts,
    duration_seconds = t.duration_seconds + excluded.duration_seconds,
    rows_inserted = t.rows_inserted + excluded.rows_inserted, rows_updated = t.rows_updated + excluded.rows_updated,
    rows_unchanged = t.rows_unchanged + excluded.rows_unchanged, rows_deleted = t.rows_deleted + excluded.rows_deleted,
    bytes_copied = t.bytes_copied + excluded.bytes_copied;
