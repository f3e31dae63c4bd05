-- Reads of the source besides its catalog. SELECT rights suffice for all of them.

-- name: snapshot_facts
-- In a REPEATABLE READ transaction: the snapshot's own numbers. lsn: no commit that it sees is written behind it, though
-- perhaps not yet on disk. timeline: as in replication.timeline.
select pg_catalog.pg_export_snapshot() as exported,
       pg_catalog.pg_snapshot_xmin(s.snapshot)::text as xmin, pg_catalog.pg_snapshot_xmax(s.snapshot)::text as next_xid,
       s.snapshot::text as snapshot, pg_catalog.clock_timestamp() as clock,
       (select c.system_identifier::text from pg_catalog.pg_control_system() c) as system_identifier,
       case when s.standby then (select greatest(c.timeline_id, r.min_recovery_end_timeline, w.received_tli)
                                 from pg_catalog.pg_control_checkpoint() c
                                 cross join pg_catalog.pg_control_recovery() r
                                 left join pg_catalog.pg_stat_wal_receiver w on true)
            else ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int
       end as timeline,
       case when s.standby then pg_catalog.pg_last_wal_replay_lsn()
            else pg_catalog.pg_current_wal_insert_lsn() end::text as lsn,
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')) as segment_bytes,
       s.standby as is_standby, pg_catalog.pg_backend_pid() as pid
from (select pg_catalog.pg_current_snapshot() as snapshot, pg_catalog.pg_is_in_recovery() as standby) as s;

-- name: is_standby
select pg_catalog.pg_is_in_recovery() as is_standby;

-- name: recovery_conflicts
-- Every role may read this view; on a primary it counts nothing.
select coalesce(sum(c.confl_tablespace + c.confl_lock + c.confl_snapshot + c.confl_bufferpin + c.confl_deadlock), 0)::bigint
       as conflicts
from pg_catalog.pg_stat_database_conflicts c where c.datname = pg_catalog.current_database();

-- name: observe_clock
-- The three reads of an observation stay three statements: their order is the proof.
select pg_catalog.clock_timestamp() as observed_at;

-- name: observe_transactions
-- own: process ids of this run's sessions. Every role may read pg_locks, unlike xact_start of other roles.
select coalesce(array_agg(l.virtualtransaction), '{}')::text[] as transactions
from pg_catalog.pg_locks l
where l.locktype = 'virtualxid' and l.pid <> all (:'own'::int[]);

-- name: observe_prepared
select count(*)::int as prepared from pg_catalog.pg_prepared_xacts where database = pg_catalog.current_database();

-- name: count_prepared
-- moment: the source's clock. Transactions of any database that were prepared by then and have not ended.
select count(*)::int as pending from pg_catalog.pg_prepared_xacts where prepared <= :'moment'::timestamptz;

-- name: transaction_statuses
-- xids: 64 bits wide. How each ended, null for one that is too old to be known; none for those that nobody has yet.
select x as xid, pg_catalog.pg_xact_status(x::text::xid8) as status
from unnest(:'xids'::bigint[]) as x
where x < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint;

-- name: ended_transactions
-- xmin: of a snapshot. How the transactions ahead of it ended.
select e.xid, e.status
from (select x as xid, pg_catalog.pg_xact_status(x::text::xid8) as status
      from pg_catalog.generate_series(greatest(:'xmin'::bigint - 64, 3), :'xmin'::bigint - 1) as x) as e
where e.status in ('committed', 'aborted');

-- name: own_xid
select pg_catalog.pg_current_xact_id()::text::bigint as xid;

-- name: flush
-- A transaction whose commit waits for the disk, with all that was written before it; and for no standby.
select pg_catalog.pg_current_xact_id()::text::bigint as xid,
       pg_catalog.set_config('synchronous_commit', 'local', true),
       pg_catalog.pg_logical_emit_message(true, 'replicator', '') as lsn;

-- name: is_flushed
select pg_catalog.pg_current_wal_flush_lsn() >= :'lsn'::text::pg_lsn as is_flushed;

-- name: database
-- Asked of both sides. What a copy of a server has in common with it, and whether it is in recovery.
select d.oid::bigint as oid, c.system_identifier::text as system_identifier, pg_catalog.pg_is_in_recovery() as is_standby
from pg_catalog.pg_database d, pg_catalog.pg_control_system() c where d.datname = pg_catalog.current_database();

-- name: show_token
-- token: a number that nobody else has. Until `hide_token`, and while this session lasts.
select pg_catalog.pg_advisory_lock(:'token'::bigint)::text as shown;

-- name: sees_token
select exists (
    select from pg_catalog.pg_locks l
    where l.locktype = 'advisory' and l.objsubid = 1 and l.granted
      and ((l.classid::bigint << 32) | l.objid::bigint) = :'token'::bigint
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
) as is_seen;

-- name: hide_token
select pg_catalog.pg_advisory_unlock(:'token'::bigint) as was_shown;

-- name: system_identifier
select c.system_identifier::text as system_identifier from pg_catalog.pg_control_system() c;

-- name: lock_waiters
-- own: process ids of this run's sessions. Relations for which somebody waits behind them, with those that are in the way.
-- A view's lock is a lock on its tables too, so the waiters are found by whom they wait for.
select w.oid, w.blockers
from (select l.relation::bigint as oid,
             array(select b from unnest(pg_catalog.pg_blocking_pids(l.pid)) as b where b = any (:'own'::int[])) as blockers
      from pg_catalog.pg_locks l
      where not l.granted and l.locktype = 'relation' and l.pid <> all (:'own'::int[])
        and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
     ) as w
where w.blockers <> '{}';

-- name: end_sessions
-- pids: sessions of this role, which every role may end. An idle one gives its locks back in no other way.
select count(pg_catalog.pg_terminate_backend(p)) as ended from unnest(:'pids'::int[]) as p;

-- name: probe_hashes
-- Equal answers on two servers allow the fast hashes.
select pg_catalog.getdatabaseencoding() as encoding,
       pg_catalog.hashtextextended('replicator' collate "C", 7)::text as text_hash,
       pg_catalog.hashint8extended(4611686018427387905, 7)::text as integer_hash;

-- name: try_timezone
-- Fails (22023) where the server does not know the time zone.
select pg_catalog.timezone(:'zone', pg_catalog.now());
