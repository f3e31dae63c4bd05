-- First start of the source: a small table to copy, the role that reads it, and what `listen` follows.
-- READER_PASSWORD comes from the environment, so that it is in no file and on no command line.

create table public.message (
    message_id bigint generated always as identity primary key,
    body text not null,
    updated_at timestamptz not null default now()
);
insert into public.message (body) values ('hello'), ('how are you?'), ('until tomorrow');

\set replication on
\i /sql/roles.sql
create publication replicator_default for table public.message with (publish_via_partition_root);
\getenv reader_password READER_PASSWORD
alter role :"reader" password :'reader_password';
