-- What a table has of the stream ahead of its position: a sync, resync or repair read it while no listener was at work.
-- psql: \set control replicator

alter table :"control".stream_table
    add column seen pg_snapshot,
    -- No commit from here on is among what the snapshot saw.
    add column seen_until pg_lsn;
