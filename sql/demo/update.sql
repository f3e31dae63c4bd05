-- The 500 conversations that moved longest ago get an answer and are resolved.

update conversations
set status = 'resolved',
    outgoing_count = outgoing_count + 1,
    message_count = message_count + 1,
    resolution_seconds = extract(epoch from now() - created_at),
    imported_closed_on = to_char(now() at time zone 'UTC', 'DD/MM/YYYY'),
    resolved_at = now(),
    last_activity_at = now(),
    updated_at = now()
where id in (select id from conversations order by updated_at, id limit 500);
