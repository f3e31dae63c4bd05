-- The change that the listener cannot get past, where on_row_error is "stop". It stands with the rows in quarantine, for
-- that is where keys may stand, and is none of them: nothing waits behind it but the stream itself.
-- psql: \set control replicator

alter table :"control".quarantine
    -- At most one a pipeline. Its lsn is where the source's transaction commits; without a key, key is JSON's null.
    add column stops boolean not null default false,
    drop constraint quarantine_pipeline_table_name_key_key,
    add unique (pipeline, table_name, key, stops);
create unique index quarantine_stops on :"control".quarantine (pipeline) where stops;
