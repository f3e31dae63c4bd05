-- The 50 conversations that moved longest ago are deleted, and with them their messages. No row tells of it.

delete from conversations
where id in (select id from conversations order by updated_at, id limit 50);
