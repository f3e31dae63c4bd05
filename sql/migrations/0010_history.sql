-- What proves that the source is still in the history that was read, and not in one that was put in its place.
-- psql: \set control replicator

-- Transactions of the source around the read, and how each of them ended: 745- (rolled back) 746+ (committed) ...
alter table :"control".table_state add column marker text;

-- The last transaction of the stream that is in the target. A slot that starts before it sends it again, if the source
-- still has it.
alter table :"control".listener
    add column commit_lsn pg_lsn,
    add column commit_end pg_lsn,
    add column commit_xid bigint,
    -- Microseconds since 2000-01-01 UTC.
    add column commit_time_us bigint;
