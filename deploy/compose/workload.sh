#!/bin/sh
# Writes to the source of the demo for as long as it runs: five new messages a second, changes, now and then a delete.
set -eu
statement="
insert into message (body) select 'message ' || n from generate_series(1, 5) n;
update message set body = body || '!', updated_at = now()
where message_id in (select message_id from message order by random() limit 3);
delete from message
where message_id = (select min(message_id) from message) and (select count(*) from message) > 10000;"
while psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --command "$statement"; do
    sleep 1
done
