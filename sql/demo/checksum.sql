-- Rows and a checksum of a relation, the same on both sides whatever the order of rows and columns.
-- :table is the relation, :value an expression over `value` that cleans a cell; the masked columns are left out.
select count(*) as rows, left(md5(coalesce(string_agg(row_text, ',' order by row_text collate "C"), '')), 16) as digest
from (
    select md5(string_agg(key || '=' || coalesce(:value, '-'), ',' order by key collate "C")) as row_text
    from (select row_number() over () as number, to_jsonb(r) as image from :table as r) as numbered
    cross join lateral jsonb_each_text(image) as cell (key, value)
    where key not in ('contact_name', 'contact_phone', '_deleted_at')
    group by number
) as hashed;
