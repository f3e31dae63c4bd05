-- What the rules left of a contact: a keyed hash of the name, nothing of the phone number.
select conversation_id, left(contact_name, 24) || '...' as contact_name, contact_phone
from public.conversas_analytics
where contact_name is not null
order by conversation_id
limit 3;
