-- One conversation gets one more message: the transaction of the demo's load, some hundred times a second.
-- demo.number chooses the conversation.

begin;
insert into messages (conversation_id, account_id, sender, content, private, created_at, updated_at)
select c.id, c.account_id, 'contact', format('message %s', current_setting('demo.number')), false, now(), now()
from conversations as c
where c.id >= current_setting('demo.number')::bigint order by c.id limit 1;
update conversations
set message_count = message_count + 1, incoming_count = incoming_count + 1, last_activity_at = now(), updated_at = now()
where id = (select min(id) from conversations where id >= current_setting('demo.number')::bigint);
commit;
