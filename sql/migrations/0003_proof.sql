-- When each slot of a table's keys was last proved equal by hashes; verified_through is the oldest of them.
-- psql: \set control replicator

alter table :"control".table_state add column proved_at timestamptz[];
