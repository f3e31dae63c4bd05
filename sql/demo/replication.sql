-- What the source's owner does once for a listener: the reader may replicate, and the tables are published.

alter role reader replication;
create publication replicator_default for tables in schema public with (publish_via_partition_root = true);
