-- The role that writes the target: it owns what it creates, and nothing else.
-- Run it in the target database, as a superuser:
--
--     psql -d analytics -f sql/target/roles.sql
--     psql -d analytics -v writer=etl -v schemas='public, sales' -f sql/target/roles.sql
--
-- or set the variables with \set and paste the rest. A second run only adds what is missing. Afterwards give the
-- role a password with `\password replicator_writer`, which leaves it in no file, history or server log.
--
--     writer        name of the role                                                            (replicator_writer)
--     schemas       schemas that receive tables, as SQL writes their names; made if missing     (public)
--     tables        tables that are there already and shall be written, schema-qualified        (none)
--     replica_role  off: without the right to set session_replication_role                      (on)

\set ON_ERROR_STOP on
\if :{?writer}
\else
    \set writer replicator_writer
\endif
\if :{?schemas}
\else
    \set schemas public
\endif
\if :{?replica_role}
\else
    \set replica_role on
\endif

begin;
set local search_path = '';

select format('create role %I login', :'writer')
where not exists (select from pg_catalog.pg_roles where rolname = :'writer') \gexec

-- CREATE is for the control schema (`target.control_schema`) and for schemas that the source gains later; TEMPORARY is
-- for the staging tables.
grant connect, create, temporary on database :"DBNAME" to :"writer";

-- A schema made here belongs to the role. One that is there keeps its owner: the role gets a place in it, no more.
select format('create schema %I authorization %I', parsed.name, :'writer')
from (select (parse_ident(trim(part)))[1] from string_to_table(:'schemas', ',') as part) as parsed (name)
where not exists (select from pg_catalog.pg_namespace n where n.nspname = parsed.name) \gexec

select format('grant usage, create on schema %s to %I', trim(name)::regnamespace, :'writer')
from string_to_table(:'schemas', ',') as name \gexec

-- Enough to write rows. Only an owner may add a column or an index: to let changes of the source's columns be followed
-- (`on_schema_change = "evolve"`), make the role owner of the table with ALTER TABLE ... OWNER TO.
\if :{?tables}
select distinct format('grant usage on schema %s to %I', c.relnamespace::regnamespace, :'writer')
from string_to_table(:'tables', ',') as name
join pg_catalog.pg_class c on c.oid = trim(name)::regclass \gexec

select format('grant select, insert, update, delete on %s to %I', trim(name)::regclass, :'writer')
from string_to_table(:'tables', ',') as name \gexec
\endif

-- The source has checked foreign keys and run triggers already. With session_replication_role = replica the target does
-- neither again: tables load in any order, foreign keys in a circle are no obstacle, and a trigger cannot change a row
-- that must equal the source's. Before PostgreSQL 15 only a superuser could do so. Without it tables tied by foreign
-- keys are written together, parents first, and triggers of the target run.
\if :replica_role
grant set on parameter session_replication_role to :"writer";
\endif

commit;
