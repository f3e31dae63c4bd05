-- 200 new conversations, like those that moved last, stamped as an application stamps them: with the start of the
-- transaction. Left uncommitted for a while this is the late commit that a bare watermark never sees.

insert into conversations
select fresh.*
from (
    select id as like_id, nextval(pg_get_serial_sequence('conversations', 'id')) as id
    from (select id from conversations order by updated_at desc, id limit 200) as latest
) as numbered
join conversations as model on model.id = numbered.like_id
cross join lateral jsonb_populate_record(model, jsonb_build_object(
    'id', numbered.id,
    'uuid', md5(format('conversation %s', numbered.id)),
    'status', 'open',
    'resolved_at', null,
    'created_at', now(),
    'last_activity_at', now(),
    'updated_at', now()
)) as fresh;
