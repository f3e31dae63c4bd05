-- 20 contacts get another company. Rows of the wide view change with them, while `conversation_updated_at` stays.

update contacts
set name = name || ' (moved)', company = 'Company 1', updated_at = now()
where id in (select contact_id from conversations order by id desc limit 20);
