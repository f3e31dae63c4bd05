-- What analysts read: one row a conversation, 150 columns over five joined tables. `conversation_updated_at` moves with the
-- conversation alone: a contact that is renamed changes this view without a trace in it. No column depends on now() or
-- on the session's time zone, so that two readers of equal tables see equal rows.

create view vw_conversations_analytics_final as
select
    -- the conversation
    c.id as conversation_id,
    c.display_id as conversation_display_id,
    c.uuid as conversation_uuid,
    c.account_id,
    c.inbox_id,
    c.contact_id,
    c.assignee_id,
    c.status as conversation_status,
    c.priority as conversation_priority,
    c.subject as conversation_subject,
    c.labels as conversation_labels,
    c.browser_language,
    c.referer,
    c.client_ip,
    c.message_count,
    c.incoming_count,
    c.outgoing_count,
    c.private_note_count,
    c.attachment_count,
    c.reopened_count,
    c.transfer_count,
    c.csat_rating,
    c.csat_feedback,
    c.csat_score,
    c.sentiment,
    c.urgency,
    c.first_response_seconds,
    c.average_response_seconds,
    c.handle_seconds,
    c.resolution_seconds,
    c.cost as conversation_cost,
    c.imported_first_reply,
    c.imported_rating,
    c.imported_closed_on,
    c.additional_attributes as conversation_additional_attributes,
    c.custom_attributes as conversation_custom_attributes,
    c.response_times,
    c.first_reply_at,
    c.waiting_since,
    c.snoozed_until,
    c.resolved_at,
    c.last_activity_at as conversation_last_activity_at,
    c.agent_last_seen_at,
    c.contact_last_seen_at,
    c.local_created_at as conversation_local_created_at,
    c.created_at as conversation_created_at,
    c.updated_at as conversation_updated_at,

    -- the account
    a.name as account_name,
    a.domain as account_domain,
    a.locale as account_locale,
    a.plan as account_plan,
    a.active as account_active,
    a.monthly_price as account_monthly_price,
    a.feature_flags as account_feature_flags,
    a.limits as account_limits,
    a.custom_attributes as account_custom_attributes,
    a.created_at as account_created_at,
    a.updated_at as account_updated_at,

    -- the contact
    k.name as contact_name,
    k.email as contact_email,
    k.phone_number as contact_phone,
    k.identifier as contact_identifier,
    k.company as contact_company,
    k.city as contact_city,
    k.country_code as contact_country_code,
    k.born_on as contact_born_on,
    k.blocked as contact_blocked,
    k.tags as contact_tags,
    k.lifetime_value as contact_lifetime_value,
    k.additional_attributes as contact_additional_attributes,
    k.last_activity_at as contact_last_activity_at,
    k.created_at as contact_created_at,
    k.updated_at as contact_updated_at,

    -- the inbox
    i.name as inbox_name,
    i.channel_type as inbox_channel_type,
    i.timezone as inbox_timezone,
    i.greeting_enabled as inbox_greeting_enabled,
    i.greeting_message as inbox_greeting_message,
    i.csat_survey_enabled as inbox_csat_survey_enabled,
    i.opens_at as inbox_opens_at,
    i.working_days as inbox_working_days,
    i.auto_resolve_after as inbox_auto_resolve_after,
    i.business_hours as inbox_business_hours,
    i.created_at as inbox_created_at,
    i.updated_at as inbox_updated_at,

    -- the agent
    u.name as agent_name,
    u.email as agent_email,
    u.role as agent_role,
    u.availability as agent_availability,
    u.team as agent_team,
    u.languages as agent_languages,
    u.hourly_cost as agent_hourly_cost,
    u.last_sign_in_ip as agent_last_sign_in_ip,
    u.ui_settings as agent_ui_settings,
    u.created_at as agent_created_at,
    u.updated_at as agent_updated_at,

    -- the calendar, in UTC
    (c.created_at at time zone 'UTC')::date as created_on,
    extract(year from c.created_at at time zone 'UTC')::int as created_year,
    extract(quarter from c.created_at at time zone 'UTC')::int as created_quarter,
    extract(month from c.created_at at time zone 'UTC')::int as created_month,
    extract(week from c.created_at at time zone 'UTC')::int as created_week,
    extract(isodow from c.created_at at time zone 'UTC')::int as created_weekday,
    extract(hour from c.created_at at time zone 'UTC')::int as created_hour,
    to_char(c.created_at at time zone 'UTC', 'YYYY-MM') as created_period,
    (c.created_at at time zone 'UTC')::time as created_time,
    (c.resolved_at at time zone 'UTC')::date as resolved_on,
    to_char(c.resolved_at at time zone 'UTC', 'YYYY-MM') as resolved_period,
    (c.created_at at time zone i.timezone)::date as inbox_created_on,
    extract(hour from c.created_at at time zone i.timezone)::int as inbox_created_hour,
    (c.created_at at time zone i.timezone)::time < i.opens_at as created_before_opening,

    -- durations
    c.first_response_seconds / 60 as first_response_minutes,
    c.average_response_seconds / 60 as average_response_minutes,
    c.handle_seconds / 60 as handle_minutes,
    c.resolution_seconds / 60 as resolution_minutes,
    c.resolution_seconds / 3600 as resolution_hours,
    c.first_reply_at - c.created_at as first_reply_interval,
    c.resolved_at - c.created_at as resolution_interval,
    c.last_activity_at - c.created_at as activity_interval,
    tstzrange(c.created_at, c.resolved_at) as open_range,

    -- what dashboards filter by
    c.status = 'open' as is_open,
    c.status = 'resolved' as is_resolved,
    c.status = 'pending' as is_pending,
    c.status = 'snoozed' as is_snoozed,
    c.assignee_id is not null as is_assigned,
    c.first_reply_at is not null as is_answered,
    c.reopened_count > 0 as is_reopened,
    c.csat_rating is not null as is_rated,
    c.outgoing_count = 0 and c.incoming_count > 1 as is_waiting_in_vain,
    c.first_response_seconds <= 600 as is_within_sla,
    case
        when c.first_response_seconds = 'NaN' then 'unknown'
        when c.first_response_seconds < 300 then 'under 5 minutes'
        when c.first_response_seconds < 900 then 'under 15 minutes'
        else 'later'
    end as first_response_bucket,
    case c.priority when 0 then 'low' when 1 then 'medium' when 2 then 'high' when 3 then 'urgent' end as priority_name,
    case when c.csat_rating >= 4 then 'promoter' when c.csat_rating = 3 then 'passive' when c.csat_rating < 3 then 'detractor' end
        as csat_group,

    -- out of labels, attributes and texts
    cardinality(c.labels) as label_count,
    c.labels[1] as first_label,
    array_to_string(c.labels, ', ') as label_list,
    'billing' = any (c.labels) as has_billing_label,
    c.additional_attributes #>> '{browser,name}' as browser_name,
    (c.additional_attributes ->> 'mobile')::boolean as is_mobile,
    (c.custom_attributes ->> 'order')::bigint as order_number,
    (c.custom_attributes ->> 'amount')::numeric as order_amount,
    split_part(c.referer, '?', 1) as referer_page,
    k.additional_attributes ->> 'source' as contact_source,
    (k.additional_attributes ->> 'score')::int as contact_score,
    split_part(k.email, '@', 2) as contact_email_domain,
    a.custom_attributes ->> 'segment' as account_segment,
    replace(i.channel_type, 'Channel::', '') as channel,
    a.domain || '/conversations/' || c.display_id as conversation_url,

    -- money and shares
    a.monthly_price * 12 as account_yearly_price,
    round(u.hourly_cost * (c.handle_seconds / 3600)::numeric, 4) as agent_cost,
    c.incoming_count::real / nullif(c.message_count, 0) as incoming_share
from conversations as c
join accounts as a on a.id = c.account_id
join contacts as k on k.id = c.contact_id
join inboxes as i on i.id = c.inbox_id
left join users as u on u.id = c.assignee_id;
