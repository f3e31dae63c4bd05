-- What a user should do about a failure is called a hint everywhere.
-- psql: \set control replicator

alter table :"control".etl_control rename column error_mend to error_hint;
alter table :"control".started_run rename column error_mend to error_hint;
