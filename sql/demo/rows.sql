-- Fill the tables of schema.sql: as many conversations as the setting `demo.rows` says (20000 without it), half as many
-- contacts, three times as many messages. The same setting gives the same rows: arithmetic instead of random().
-- Floats hold NaN and text columns 'NaT' and 'NaN', as a data frame leaves them behind.

insert into accounts
select
    n,
    format('Account %s', n),
    format('account%s.example', n),
    (array['en', 'pt_BR', 'es', 'de'])[1 + n % 4],
    (array['free', 'team', 'enterprise'])[1 + n % 3],
    n % 8 <> 0,
    case when n % 3 > 0 then 49.90 * n end,
    n * 1023,
    json_build_object('agents', n * 5, 'inboxes', n * 2),
    jsonb_build_object('segment', (array['retail', 'travel', 'health'])[1 + n % 3], 'seats', n * 5),
    timestamptz '2024-01-01 08:00:00+00' + n * interval '1 day',
    timestamptz '2024-06-01 08:00:00+00' + n * interval '1 hour'
from generate_series(1, 8) as n;

insert into inboxes
select
    n,
    1 + n % 8,
    format('Inbox %s', n),
    (array['Channel::WebWidget', 'Channel::Email', 'Channel::Whatsapp', 'Channel::Api'])[1 + n % 4],
    (array['UTC', 'America/Sao_Paulo', 'Europe/Helsinki'])[1 + n % 3],
    n % 2 = 0,
    case when n % 2 = 0 then E'Hello!\nHow can we help?' end,
    n % 3 = 0,
    time '08:00' + n % 4 * interval '30 minutes',
    array[1, 2, 3, 4, 5]::smallint[] || case when n % 5 = 0 then array[6]::smallint[] else '{}' end,
    n % 4 * interval '7 days',
    json_build_object('open', '08:00', 'close', '18:00', 'days', 5 + n % 2),
    timestamptz '2024-02-01 08:00:00+00' + n * interval '1 day',
    timestamptz '2024-07-01 08:00:00+00' + n * interval '1 hour'
from generate_series(1, 16) as n;

insert into users
select
    n,
    1 + n % 8,
    format('Agent %s', n),
    format('agent%s@account%s.example', n, 1 + n % 8),
    case when n % 10 = 0 then 'administrator' else 'agent' end,
    (array['online', 'busy', 'offline'])[1 + n % 3],
    case when n % 7 > 0 then format('Team %s', n % 7) end,
    (array['en', 'pt', 'es', 'de', 'fi'])[1:1 + n % 3],
    18.50 + n % 12,
    inet '10.0.0.0' + n,
    jsonb_build_object('theme', case when n % 2 = 0 then 'dark' else 'light' end),
    timestamptz '2024-03-01 08:00:00+00' + n * interval '1 day',
    timestamptz '2024-08-01 08:00:00+00' + n * interval '1 hour'
from generate_series(1, 40) as n;

insert into contacts
select
    n,
    1 + n % 8,
    format('Contact %s', n),
    case when n % 11 > 0 then format('contact%s@example.org', n) end,
    case when n % 5 > 0 then format('+1555%s', lpad(n::text, 7, '0')) end,
    md5(format('contact %s', n))::uuid,
    case when n % 3 = 0 then format('Company %s', n % 500) end,
    (array['Curitiba', 'Málaga', 'Köln', '東京', null])[1 + n % 5],
    (array['BR', 'ES', 'DE', 'JP', null])[1 + n % 5],
    case when n % 4 = 0 then date '1960-01-01' + n % 15000 end,
    n % 97 = 0,
    (array['vip', 'newsletter', 'it''s "quoted"', 'größe'])[1:n % 5],
    case when n % 13 = 0 then double precision 'NaN' when n % 7 > 0 then n % 10007 / 7.0 end,
    jsonb_build_object('source', (array['ads', 'search', 'friend'])[1 + n % 3], 'score', n % 100),
    timestamptz '2025-01-01 00:00:00+00' + n % 500000 * interval '1 minute',
    timestamptz '2024-09-01 00:00:00+00' + n % 100000 * interval '1 minute',
    timestamptz '2025-01-01 00:00:00+00' + n % 500000 * interval '1 minute'
from generate_series(1, greatest(1, coalesce(nullif(current_setting('demo.rows', true), ''), '20000')::int / 2)) as n;

insert into conversations
select
    n,
    account_id,
    1 + (account_id + 6) % 8 + 8 * (n % 2),
    contact_id,
    case when n % 9 > 0 then 1 + (account_id + 6) % 8 + 8 * (n % 4) end,
    n % 100000,
    md5(format('conversation %s', n))::uuid,
    status,
    case when n % 3 > 0 then n % 4 end,
    case when n % 6 > 0 then format('Question %s about order #%s', n, n % 9973) end,
    (array['billing', 'delivery', 'bug', 'praise', 'with, comma'])[1:n % 6],
    (array['en-US', 'pt-BR', 'es-ES', null])[1 + n % 4],
    case when n % 4 > 0 then format('https://shop.example/orders/%s?utm_source=mail', n % 9973) end,
    inet '192.0.2.0' + n % 256,
    incoming + outgoing,
    incoming,
    outgoing,
    n % 3,
    n % 2,
    n % 17 / 8,
    n % 19 / 9,
    case when n % 5 = 0 then 1 + n / 5 % 5 end,
    case when n % 10 = 0 then 'Quick and friendly — thank you' when n % 15 = 0 then '' end,
    case when n % 29 = 0 then numeric 'NaN' when n % 5 = 0 then n % 1000 / 8.0 end,
    case when n % 13 = 0 then double precision 'NaN' else n % 2001 / 1000.0 - 1 end,
    case when n % 31 = 0 then real 'NaN' else n % 11 / 10.0 end,
    case when n % 7 = 0 then double precision 'NaN' else response_s end,
    case when n % 7 = 0 then double precision 'NaN' else response_s * 1.3 end,
    n % 5000 / 3.0,
    case status when 'resolved' then response_s * 20 else double precision 'NaN' end,
    n % 9973 / 16.0,
    case
        when n % 7 = 0 then 'NaT'
        else to_char((created_at at time zone 'UTC') + response_s * interval '1 s', 'YYYY-MM-DD HH24:MI')
    end,
    case when n % 5 = 0 then (1 + n / 5 % 5)::text else 'NaN' end,
    case status when 'resolved' then to_char(created_at at time zone 'UTC', 'DD/MM/YYYY') else 'NaT' end,
    jsonb_build_object(
        'browser', jsonb_build_object('name', (array['Firefox', 'Chrome', 'Safari'])[1 + n % 3]), 'mobile', n % 2 = 0
    ),
    case when n % 8 > 0 then json_build_object('order', n % 9973, 'coupon', null, 'amount', n % 500 / 4.0) end,
    case when n % 6 > 0 then array[response_s, null, 'NaN'] end,
    case when n % 7 > 0 then created_at + response_s * interval '1 s' end,
    case status when 'pending' then created_at + interval '5 minutes' end,
    case status when 'snoozed' then created_at + interval '3 days' end,
    case status when 'resolved' then created_at + response_s * 20 * interval '1 s' end,
    created_at + n % 3000 * interval '1 s',
    case when n % 9 > 0 then created_at + n % 2000 * interval '1 s' end,
    created_at + n % 2500 * interval '1 s',
    created_at at time zone 'America/Sao_Paulo',
    created_at,
    created_at + n % 3000 * interval '1 s' + n % 1000000 * interval '1 microsecond'
from (
    select
        n,
        contacts.id as contact_id,
        contacts.account_id,
        (array['resolved', 'resolved', 'open', 'pending', 'snoozed'])[1 + n % 5]::conversation_status as status,
        1 + n % 6 as incoming,
        n % 5 as outgoing,
        30 + n % 4001 / 3.0::double precision as response_s,
        timestamptz '2025-01-01 00:00:00+00' + n * (interval '300 days' / size) as created_at
    from (select greatest(2, coalesce(nullif(current_setting('demo.rows', true), ''), '20000')::int) as size) as demo
    cross join generate_series(1, size) as n
    join contacts on contacts.id = 1 + n * 7 % (size / 2)
) as generated;

insert into messages
select
    conversations.id * 3 + part - 3,
    conversations.id,
    conversations.account_id,
    (array['contact', 'agent', 'bot'])[1 + part],
    format('Message %s of conversation %s: %s', part + 1, conversations.id, repeat('lorem ipsum ', (id % 9)::int)),
    part = 2 and conversations.id % 4 = 0,
    case when part = 1 then json_build_object('in_reply_to', conversations.id * 3 - 3) end,
    conversations.created_at + part * interval '2 minutes',
    conversations.created_at + part * interval '2 minutes'
from conversations
cross join generate_series(0, 2) as part;

select setval(pg_get_serial_sequence('accounts', 'id'), (select max(id) from accounts));
select setval(pg_get_serial_sequence('inboxes', 'id'), (select max(id) from inboxes));
select setval(pg_get_serial_sequence('users', 'id'), (select max(id) from users));
select setval(pg_get_serial_sequence('contacts', 'id'), (select max(id) from contacts));
select setval(pg_get_serial_sequence('conversations', 'id'), (select max(id) from conversations));
select setval(pg_get_serial_sequence('messages', 'id'), (select max(id) from messages));

analyze accounts, inboxes, users, contacts, conversations, messages;
