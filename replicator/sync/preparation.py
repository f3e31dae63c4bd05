"""A table made ready: rules compiled, strategy chosen, reading decided; for those who load and those who plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from replicator.apply.control import Control, TableRecord
from replicator.apply.job import Job
from replicator.capture.pull import Access, is_standby, read_system_identifier
from replicator.catalog import find_relations, read_relation, read_relations
from replicator.config.settings import Settings, read_mask_key, source_dsn
from replicator.db import Connection, translated
from replicator.digest import Digest
from replicator.errors import ConfigError, DataRefused, PassingError, ReplicatorError
from replicator.reading import Observation, Reading, SnapshotFacts, State, decide_reading, is_audit_due
from replicator.relation import Relation
from replicator.rules import TIMESTAMPTZ_OID, describe_rules
from replicator.statement import statement
from replicator.strategy import audits_by_xmin, audits_every_time, choose_strategy, watermark_slack
from replicator.sync.identity import is_same_database
from replicator.sync.inventory import Chosen, read_mapping


def open_access(settings: Settings) -> Access:
    """Return how to reach the source."""
    return Access(
        source_dsn(settings),
        settings.source.connect_timeout.total_seconds(),
        settings.source.lock_timeout.total_seconds(),
        read_mask_key(settings),
    )


def choose_digest(source: Connection, target: Connection) -> Digest:
    """Return the fast hashes when both servers compute the same, over the same encoding."""
    answers = [connection.execute(statement("source.probe_hashes"), {}).fetchone() for connection in (source, target)]
    is_same = answers[0] == answers[1] and answers[0] is not None and answers[0]["encoding"] == "UTF8"
    return Digest.FAST if is_same else Digest.PORTABLE


def prepare_job(
    connection: Connection,
    relation: Relation,
    chosen: Chosen,
    record: TableRecord,
    batch_id: int,
    *,
    on_standby: bool,
    mask_key: bytes | None,
    target: Connection | None = None,
) -> Job:
    """Compile a table's rules and choose its strategy.

    connection: to the source, outside any transaction. target: a session there, for `assume_timezone`. Raises
    ConfigError for rules or a strategy that do not fit, SafetyStop for row security.
    """
    zoned = frozenset() if target is None else find_zoned(connection, target, chosen)
    mapping = read_mapping(connection, relation, chosen, zoned)
    if mapping.hashes and mask_key is None:
        raise missing_mask_key(chosen.table)
    rules = describe_rules(mapping, mask_key)
    return Job(
        table=chosen.table,
        target=chosen.target,
        mapping=mapping,
        settings=chosen.settings,
        choice=choose_strategy(mapping, chosen.settings, on_standby=on_standby),
        fingerprint=relation.fingerprint(rules),
        rules=rules,
        record=record,
        batch_id=batch_id,
    )


def prepare_jobs(
    source: Connection,
    chosen: Sequence[Chosen],
    records: Mapping[str, TableRecord],
    *,
    mask_key: bytes | None,
    lenient: bool = False,
    failed: dict[str, ReplicatorError] | None = None,
    target: Connection | None = None,
) -> dict[str, Job]:
    """Return the jobs of tables as the source defines them now, without batches.

    source: outside any transaction. lenient: leave out those that are gone or do not fit their rules any more; failed:
    the same, and takes their errors. Else raises PassingError and what `prepare_job` does.
    """
    found = find_relations(source, [(table.schema, table.name) for table in chosen])
    relations = read_relations(source, found.values())
    on_standby = is_standby(source)
    jobs: dict[str, Job] = {}
    for table in chosen:
        relation = relations.get(found.get((table.schema, table.name), 0))
        try:
            if relation is None:
                raise went_away(table.table)
            record = records.get(table.table) or unknown_record(table.table)
            jobs[table.table] = prepare_job(
                source, relation, table, record, 0, on_standby=on_standby, mask_key=mask_key, target=target
            )
        except ReplicatorError as error:
            if failed is not None:
                failed[table.table] = error
            elif not lenient:
                raise
    return jobs


def find_zoned(source: Connection, target: Connection, chosen: Chosen) -> frozenset[str]:
    """Return the target's columns that are timestamptz, where `assume_timezone` is set; both servers know the zone.

    Raises ConfigError where one does not.
    """
    zone = chosen.settings.assume_timezone
    if not zone:
        return frozenset()
    for side, connection in (("source", source), ("target", target)):
        _require_zone(connection, side, chosen.table, zone)
    with translated("target", chosen.table):
        existing = read_relation(target, *chosen.target)
    columns = () if existing is None else existing.columns
    return frozenset(c.name for c in columns if existing and existing.find_base(c)[0] == TIMESTAMPTZ_OID)


def _require_zone(connection: Connection, side: str, table: str, zone: str) -> None:
    try:
        with translated(side, table), connection.transaction():
            connection.execute(statement("source.try_timezone"), {"zone": zone})
    except DataRefused as error:
        raise ConfigError(
            f"the {side} does not know the time zone {zone}",
            why="assume_timezone is evaluated by both servers",
            hint="choose a name of pg_timezone_names there",
            table=table,
        ) from error


def went_away(table: str) -> PassingError:
    """Return the passing error of a table that was there at the look before; the next one tells whether it is gone."""
    return PassingError(
        f"{table} went away",
        why="it was there a moment ago",
        hint="it is looked for again by itself",
        id="table_went_away",
        table=table,
    )


def unknown_record(table: str) -> TableRecord:
    """Return the record of a table that was never synced."""
    return TableRecord(
        table=table,
        target=None,
        epoch=0,
        guarantee=None,
        state=State(),
        source_oid=None,
        columns=(),
        enum_labels={},
        created_by_us=False,
    )


def find_home(records: Iterable[TableRecord]) -> str | None:
    """Return the system identifier of the cluster that a pipeline read last; None before its first read."""
    reads = [
        (state.snapshot_at, state.system_identifier)
        for state in (record.state for record in records)
        if state.snapshot_at is not None and state.system_identifier is not None
    ]
    return max(reads)[1] if reads else None


def read_home(settings: Settings, target: Connection) -> str | None:
    """Return the system identifier of the cluster that the pipeline read last, as its control schema has it."""
    control = Control(target, settings.target.control_schema, settings.pipeline)
    with translated("target"):
        return find_home(control.read_records().values()) if control.exists() else None


def check_home(source: Connection, target: Connection, home: str | None) -> None:
    """Raise ConfigError where the source is another cluster than before because its address became the target's.

    home: as `find_home` returns it. Any other cluster may be the right one; its own target never is.
    """
    with translated("source"):
        identifier = read_system_identifier(source)
    if home in (None, identifier) or not is_same_database(source, target):
        return
    raise ConfigError(
        "source.dsn and target.dsn lead to one database",
        why="this pipeline has read another one so far",
        hint="correct source.dsn, or target.dsn if that one changed",
        id="same_database",
    )


def decide_job(
    job: Job,
    facts: SnapshotFacts,
    observations: Sequence[Observation],
    *,
    full: bool,
    home: str | None = None,
    lost_markers: Collection[str] = (),
) -> Reading:
    """Decide what is read of a table in the snapshot. Raises SafetyStop as `decide_reading` does.

    home: where a table that was never read is expected: the cluster of the others. lost_markers: those that do not
    hold.
    """
    state = job.record.state
    if state.system_identifier is None:
        state = replace(state, system_identifier=home)
    relation = job.mapping.relation
    return decide_reading(
        job.choice,
        state,
        facts,
        job.fingerprint,
        full=full,
        slack=watermark_slack(job.mapping, job.settings),
        observations=observations,
        audit_due=audits_every_time(relation) or is_audit_due(state, facts.clock, job.settings.audit_every),
        audit_by_xmin=audits_by_xmin(job.mapping, job.settings),
        verify_share=job.settings.verify_share if job.mapping.key else 0.0,
        is_same_history=state.marker not in lost_markers,
        table=job.table,
    )


def missing_mask_key(table: str) -> ConfigError:
    """Return the error of a table with a hash mask and no key."""
    return ConfigError(
        f"{table} has a column masked with hash, and there is no key",
        why="privacy.mask_key_file is empty",
        hint="head -c 32 /dev/urandom | base64 > mask.key, and set mask_key_file under [privacy]",
        id="mask_key_missing",
        table=table,
    )
