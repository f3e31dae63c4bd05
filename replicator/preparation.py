"""A table made ready: rules compiled, strategy chosen, reading decided; for those who load and those who plan."""

from __future__ import annotations

from collections.abc import Sequence

from replicator.apply.control import TableRecord
from replicator.apply.job import Job
from replicator.capture.pull import Access
from replicator.db import Connection
from replicator.digest import Digest
from replicator.errors import ConfigError
from replicator.inventory import Chosen, read_mapping
from replicator.reading import Observation, Reading, SnapshotFacts, decide_reading, is_audit_due
from replicator.relation import Relation
from replicator.rules import describe_rules
from replicator.settings import Settings, read_mask_key, source_dsn
from replicator.statement import statement
from replicator.strategy import audits_by_xmin, audits_every_time, choose_strategy, watermark_slack


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
) -> Job:
    """Compile a table's rules and choose its strategy.

    connection: to the source, outside any transaction. Raises ConfigError for rules or a strategy that do not fit,
    SafetyStop for row security.
    """
    mapping = read_mapping(connection, relation, chosen)
    if mapping.hashes and mask_key is None:
        raise missing_mask_key(chosen.table)
    return Job(
        table=chosen.table,
        target=chosen.target,
        mapping=mapping,
        settings=chosen.settings,
        choice=choose_strategy(mapping, chosen.settings, on_standby=on_standby),
        fingerprint=relation.fingerprint(describe_rules(mapping, mask_key)),
        record=record,
        batch_id=batch_id,
    )


def decide_job(job: Job, facts: SnapshotFacts, observations: Sequence[Observation], *, full: bool) -> Reading:
    """Decide what is read of a table in the snapshot. Raises SafetyStop as `decide_reading` does."""
    state = job.record.state
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
        audit_by_xmin=audits_by_xmin(job.mapping),
        table=job.table,
    )


def missing_mask_key(table: str) -> ConfigError:
    """Return the error of a table with a hash mask and no key."""
    return ConfigError(
        f"{table} has a column masked with hash, and there is no key",
        why="privacy.mask_key_file is empty",
        mend="head -c 32 /dev/urandom | base64 > mask.key, and set mask_key_file under [privacy]",
        id="mask_key_missing",
        table=table,
    )
