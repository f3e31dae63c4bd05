-- Session settings.

-- name: pin
-- names, values: parallel arrays. Settings that this server does not know (transaction_timeout before 17) are passed over.
-- Every name carries its schema: the role's own search_path still holds, and may shadow them.
-- pid: of the process that answers; a pooler shows another one in its greeting.
-- synchronous_commit = off is the one value of it that loses commits: whoever has set another one has a reason.
select w.name, w.wanted, pg_catalog.set_config(w.name, w.wanted, false) as now, pg_catalog.pg_backend_pid() as pid
from (select n.name,
             case when n.name = 'synchronous_commit' and pg_catalog.current_setting(n.name) <> 'off'
                  then pg_catalog.current_setting(n.name) else n.value end as wanted
      from rows from (pg_catalog.unnest(:'names'::pg_catalog.text[]), pg_catalog.unnest(:'values'::pg_catalog.text[]))
           as n (name, value)
      where pg_catalog.current_setting(n.name, true) is not null) as w;

-- name: set_local
-- name, value: for this transaction only. The way a secret reaches SQL: no literal, so no log line has it.
select pg_catalog.set_config(:'name', :'value', true) is not null as done;

-- name: set
-- As set_local, for the whole session.
select pg_catalog.set_config(:'name', :'value', false) is not null as done;

-- name: take_text
-- text: any. Fails for a character that the database's encoding lacks.
select pg_catalog.length(:'text') as characters;
