-- The analytics team's role: it may read, and nothing else. Its password, if it needs one, is set by whoever runs this.

do $$
begin
    create role reader login;
exception when duplicate_object then
    null;
end
$$;

grant usage on schema public to reader;
grant select on all tables in schema public to reader;
