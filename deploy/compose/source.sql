-- First start of the source: a small table to copy, and the role that reads it.
-- READER_PASSWORD comes from the environment, so that it is in no file and on no command line.

create table public.message (
    message_id bigint generated always as identity primary key,
    body text not null,
    updated_at timestamptz not null default now()
);
insert into public.message (body) values ('hello'), ('how are you?'), ('until tomorrow');

\i /sql/roles.sql
\getenv reader_password READER_PASSWORD
alter role :"reader" password :'reader_password';
