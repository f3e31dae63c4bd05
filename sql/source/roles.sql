-- The role that reads the source: it may log in and read, and nothing else.
-- Run it in the source database, as a superuser or as the owner of the database and its tables with CREATEROLE:
--
--     psql -d app -f sql/source/roles.sql
--     psql -d app -v reader=etl -v schemas='public, sales' -f sql/source/roles.sql
--
-- or set the variables with \set and paste the rest. A second run only adds what is missing. Afterwards give the
-- role a password with `\password replicator_reader`, which leaves it in no file, history or server log.
--
--     reader       name of the role                                                       (replicator_reader)
--     schemas      schemas to read, with their future tables, as SQL writes their names   (public)
--     tables       only these tables or views, schema-qualified; then `schemas` is not looked at
--     sequences    on: also SELECT on the schemas' sequences, for `sync_sequences = true` (off)
--     replication  on: also REPLICATION, for `replicator listen`                          (off)
--     bypass_rls   on: also BYPASSRLS, for tables with row security                       (off)

\set ON_ERROR_STOP on
\if :{?reader}
\else
    \set reader replicator_reader
\endif
\if :{?schemas}
\else
    \set schemas public
\endif
\if :{?sequences}
\else
    \set sequences off
\endif
\if :{?replication}
\else
    \set replication off
\endif
\if :{?bypass_rls}
\else
    \set bypass_rls off
\endif

begin;
-- Names that are looked up below mean what they say, whatever functions the schemas of this database hold.
set local search_path = '';

select format('create role %I login', :'reader')
where not exists (select from pg_catalog.pg_roles where rolname = :'reader') \gexec

grant connect on database :"DBNAME" to :"reader";

\if :{?tables}

select distinct format('grant usage on schema %s to %I', c.relnamespace::regnamespace, :'reader')
from string_to_table(:'tables', ',') as name
join pg_catalog.pg_class c on c.oid = trim(name)::regclass \gexec

select format('grant select on %s to %I', trim(name)::regclass, :'reader')
from string_to_table(:'tables', ',') as name \gexec

\else

-- SELECT is all that reading needs: LOCK TABLE ... IN ACCESS SHARE MODE is allowed to whoever may SELECT. Not
-- pg_read_all_data: that role reads every schema there is and every one to come.
select format('grant usage on schema %s to %I', trim(name)::regnamespace, :'reader'),
       format('grant select on all tables in schema %s to %I', trim(name)::regnamespace, :'reader')
from string_to_table(:'schemas', ',') as name \gexec

-- Default privileges belong to whoever creates a table: the owners of the database, the schema and the tables in it.
-- Only those whose rights this session has; another role that creates tables has to run this itself.
select distinct format('alter default privileges for role %I in schema %s grant select on tables to %I',
                       r.rolname, n.oid::regnamespace, :'reader')
from string_to_table(:'schemas', ',') as name
join pg_catalog.pg_namespace n on n.oid = trim(name)::regnamespace
join pg_catalog.pg_roles r
  on r.oid = n.nspowner
  or r.oid = (select d.datdba from pg_catalog.pg_database d where d.datname = current_database())
  or r.oid in (select c.relowner from pg_catalog.pg_class c where c.relnamespace = n.oid)
where r.rolname !~ '^pg_' and pg_has_role(r.oid, 'usage') \gexec

\if :sequences
select format('grant select on all sequences in schema %s to %I', trim(name)::regnamespace, :'reader')
from string_to_table(:'schemas', ',') as name \gexec
\endif

\endif

-- REPLICATION opens replication connections, which read the write-ahead log: the rows of every table of every database
-- of this server, and a slot that nobody reads keeps that log until the disk is full. The nightly sync needs none of it.
\if :replication
alter role :"reader" replication;
\endif

-- A table with row security would show this role a part of its rows, so the read is refused instead. BYPASSRLS shows
-- all rows of all such tables; a policy for this role with `using (true)` does not help, the read is refused as well.
\if :bypass_rls
alter role :"reader" bypassrls;
\endif

commit;
