-- What the connected role may do. Every role may ask this about itself.

-- name: read_rights
-- oids: relations of the source. may_select: any column; which of them a table needs is its rules' matter.
select c.oid::bigint as oid, n.nspname as schema, c.relname as name, current_user::text as role,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') as may_use,
       pg_catalog.has_any_column_privilege(c.oid, 'SELECT') as may_select, c.relispopulated as is_populated
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.oid = any (:'oids'::oid[]);

-- name: database_rights
-- Of the target: CREATE makes schemas, TEMPORARY makes staging tables.
select current_user::text as role, pg_catalog.current_database() as database,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') as may_create,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY') as may_stage;

-- name: schema_rights
-- Of the target: every schema that is no system schema.
select n.nspname as name, pg_catalog.has_schema_privilege(n.oid, 'USAGE') as may_use,
       pg_catalog.has_schema_privilege(n.oid, 'CREATE') as may_create
from pg_catalog.pg_namespace n
where n.nspname <> 'information_schema' and n.nspname !~ '^pg_';

-- name: write_rights
-- oid: a table of the target. lacking: what writing rows needs and the role does not have.
select array(select p from unnest(array['select', 'insert', 'update', 'delete']) as p
             where not pg_catalog.has_table_privilege(c.oid, p)) as lacking,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') as is_owner
from pg_catalog.pg_class c
where c.oid = :'oid'::oid;

-- name: type_owner
-- schema, name: an enum of the target that is to gain labels.
select pg_catalog.pg_has_role(t.typowner, 'USAGE') as is_owner
from pg_catalog.pg_type t
join pg_catalog.pg_namespace n on n.oid = t.typnamespace
where n.nspname = :'schema' and t.typname = :'name';
