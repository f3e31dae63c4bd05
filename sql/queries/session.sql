-- Session settings.

-- name: pin
-- names, values: parallel arrays. Settings that this server does not know (transaction_timeout before 17) are passed over.
-- Every name carries its schema: the role's own search_path still holds, and may shadow them.
-- pid: of the process that answers; a pooler shows another one in its greeting.
select w.name, w.value as wanted, pg_catalog.set_config(w.name, w.value, false) as now, pg_catalog.pg_backend_pid() as pid
from rows from (pg_catalog.unnest(:'names'::pg_catalog.text[]), pg_catalog.unnest(:'values'::pg_catalog.text[]))
     as w (name, value)
where pg_catalog.current_setting(w.name, true) is not null;

-- name: set_local
-- name, value: for this transaction only. The way a secret reaches SQL: no literal, so no log line has it.
select pg_catalog.set_config(:'name', :'value', true) is not null as done;

-- name: set
-- As set_local, for the whole session.
select pg_catalog.set_config(:'name', :'value', false) is not null as done;

-- name: take_text
-- text: any. Fails for a character that the database's encoding lacks.
select pg_catalog.length(:'text') as characters;
