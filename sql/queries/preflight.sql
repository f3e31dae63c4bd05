-- What `check` asks a server about itself. Every role may.

-- name: server_facts
select pg_catalog.current_setting('server_version_num')::int as version_number,
       pg_catalog.current_setting('server_version') as version, current_user::text as role,
       pg_catalog.current_database() as database, pg_catalog.getdatabaseencoding() as encoding,
       pg_catalog.pg_is_in_recovery() as is_standby;
