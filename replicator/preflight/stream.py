"""What the listener will ask of the source: rights, room for slots, publication, the identity of every row.

A pipeline that only ever syncs needs none of it. So until a listener has run nothing here is an error, and to a role
that may not replicate one line says all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from replicator.apply.control import Control
from replicator.apply.job import Job
from replicator.apply.narrow_key import find_narrow_key, narrow_job
from replicator.apply.stream_control import StreamControl
from replicator.apply.target import plan_target
from replicator.capture.publication import (
    Identity,
    Published,
    check_identity,
    describe_lack,
    has_identity,
    may_publish,
    plan_publication,
    plan_table,
    read_identities,
    read_published,
)
from replicator.capture.source_state import SourceFacts, StreamFacts, read_source, read_stream_facts
from replicator.config.settings import Settings
from replicator.db import Connection, translated
from replicator.errors import ReplicatorError
from replicator.preflight.finding import Finding, find_error
from replicator.relation import KIND_NAMES, LOGGED, PARTITIONED, TABLE
from replicator.rules import needs_source
from replicator.stream.table import GENERATED_SINCE, check_key, check_rereads, expect_columns, find_unsent
from replicator.sync.planning import Plan, TablePlan

_SHORTEST_TIMEOUT_MS = 5000


def has_listener(settings: Settings, target: Connection) -> bool:
    """Say whether the pipeline has a listener: one that ran, and whose slot was not dropped since."""
    schema, pipeline = settings.target.control_schema, settings.pipeline
    with translated("target"):
        control = Control(target, schema, pipeline)
        if not control.exists() or control.list_pending():
            return False
        state = StreamControl(target, schema, pipeline).read_state()
    return state is not None and state.slot_name is not None


def check_stream(settings: Settings, source: Connection, target: Connection, plan: Plan) -> Iterator[Finding]:
    """Find what would stop `listen`, or make it dear."""
    is_needed = has_listener(settings, target)
    with translated("source"):
        facts = read_source(source)
        if not facts.may_replicate and not is_needed:
            yield _sum_up(facts)
            return
        check = _StreamCheck(settings, source, target, facts, is_needed)
        yield from check.find(plan)
    if not check.is_stopped:
        yield Finding("stream", "ok", "`listen` has all that it needs on the source")


def _sum_up(facts: SourceFacts) -> Finding:
    """Return the one line for a role that may not replicate."""
    return Finding(
        "stream",
        "ok",
        "`listen` is not to be had: " + "; ".join(error.message for error in facts.gaps) + " (`sync` needs none of it)",
        "; ".join(error.hint for error in facts.gaps if error.hint),
    )


@dataclass
class _StreamCheck:
    """The source's side of a stream.

    is_needed: a listener has run, so what would stop it is an error. is_stopped: something was found that would.
    """

    settings: Settings
    source: Connection
    target: Connection
    facts: SourceFacts
    is_needed: bool
    is_stopped: bool = False

    def find(self, plan: Plan) -> Iterator[Finding]:
        """Find what the server tells, then what the tables tell."""
        for error in self.facts.gaps:
            yield self._stop(error)
        room = read_stream_facts(self.source, self.settings.slot_name)
        for finding in check_room(room):
            yield self._weigh(finding)
        followed = []
        for table in plan.tables:
            if table.job is None:
                continue
            relation = table.job.mapping.relation
            if relation.kind not in (TABLE, PARTITIONED):
                message = f"a {KIND_NAMES[relation.kind]} has no stream: beside a listener it stays with `sync`"
                yield Finding("no_stream", "ok", message, None, table.table)
            elif relation.persistence != LOGGED:
                message = "an unlogged table has no stream: beside a listener it stays with `sync`"
                yield Finding("no_stream", "ok", message, None, table.table)
            else:
                followed.append(table)
        yield from self._check_tables(followed)

    def _stop(self, error: ReplicatorError, table: str | None = None) -> Finding:
        """Return the finding of what would stop the listener."""
        return self._weigh(find_error(error, table=table))

    def _weigh(self, finding: Finding) -> Finding:
        """Take note of an error, and make it a warning where no listener has run."""
        if finding.severity != "error":
            return finding
        self.is_stopped = True
        if self.is_needed:
            return finding
        return replace(finding, severity="warn", message=f"{finding.message} (only needed for `listen`)")

    def _check_tables(self, tables: Sequence[TablePlan]) -> Iterator[Finding]:
        jobs = {table.table: table.job for table in tables if table.job is not None}
        oids = [job.mapping.relation.oid for job in jobs.values()]
        identities = read_identities(self.source, oids)
        wanted = {name: _plan_published(job, identities[job.mapping.relation.oid]) for name, job in jobs.items()}
        yield from self._check_publication(oids, list(wanted.values()))
        there = read_published(self.source, self.settings.publication_name)
        for table in tables:
            if table.job is not None:
                published = self._find_columns(table.job, wanted[table.table], there)
                yield from self._check_table(table, table.job, identities[table.job.mapping.relation.oid], published)

    def _check_publication(self, oids: Sequence[int], wanted: Sequence[Published]) -> Iterator[Finding]:
        name = self.settings.publication_name
        try:
            changes = plan_publication(self.source, name, wanted, self.facts.version_number) if wanted else []
        except ReplicatorError as error:
            yield self._stop(error)
            return
        if changes and may_publish(self.source, name, oids):
            statements = "; ".join(one.as_string() for one in changes)
            yield Finding("publication", "ok", f"`listen` will make or change publication {name}: {statements}")
        elif changes:
            yield self._stop(describe_lack(name, changes))

    def _find_columns(
        self, job: Job, wanted: Published, there: dict[tuple[str, str], tuple[str, ...]]
    ) -> tuple[str, ...] | None:
        """Return the columns that are published, or will be; None as in `make_streamed`."""
        relation = job.mapping.relation
        if (relation.schema, relation.name) in there:
            return there[relation.schema, relation.name]
        if wanted.columns is not None or there or self.facts.version_number < GENERATED_SINCE:
            return wanted.columns
        # A publication that `listen` makes holds stored generated columns.
        return tuple(column.name for column in relation.columns if column.generated != "v")

    def _check_table(
        self, plan: TablePlan, job: Job, identities: Sequence[Identity], published: tuple[str, ...] | None
    ) -> Iterator[Finding]:
        expected = {column.name for column in expect_columns(job, published, self.facts.version_number)}
        key = find_narrow_key(job.mapping, plan.existing)
        if key is not None and not has_identity(plan.table, job.mapping, identities):
            job = narrow_job(job, key)
        unsent = find_unsent(job, _written(plan, job), expected)
        try:
            check_identity(plan.table, job.mapping, identities)
            check_key(job)
            check_rereads(job, unsent)
            if key is not None:
                plan_target(self.target, job)
        except ReplicatorError as error:
            yield self._stop(error, plan.table)
            return
        if unsent:
            yield self._find_unsent(plan.table, unsent, job)
        if needs_source(job.mapping, job.settings):
            yield Finding(
                "rows_read_again",
                "ok",
                "`where` and masks with an SQL expression are computed by the source: `listen` reads each changed row "
                "again there by its key",
                None,
                plan.table,
            )

    def _find_unsent(self, table: str, unsent: Sequence[str], job: Job) -> Finding:
        columns = ", ".join(unsent)
        names = ", ".join(f'"{name}"' for name in unsent)
        mends = [f"exclude = [{names}]"]
        stored = {column.name for column in job.mapping.relation.columns if column.generated == "s"}
        if self.facts.version_number >= GENERATED_SINCE and stored.intersection(unsent):
            option = sql.SQL("alter publication {} set (publish_generated_columns = stored)")
            mends.insert(0, option.format(sql.Identifier(self.settings.publication_name)).as_string())
        return Finding(
            "column_unsent",
            "warn",
            f"the stream does not bring {columns}: `listen` reads each changed row again at the source by its key",
            "; or ".join(mends),
            table,
        )


def _plan_published(job: Job, identities: Sequence[Identity]) -> Published:
    excludes = len(job.mapping.outputs) < len(job.mapping.relation.columns)
    return plan_table(job.mapping, excludes, identities)


def _written(plan: TablePlan, job: Job) -> list[str]:
    """Return the source's columns that are written: what the target generates itself is not."""
    made = set() if plan.existing is None else {column.name for column in plan.existing.columns if column.generated}
    return [output.source.name for output in job.mapping.outputs if output.name not in made]


def check_room(room: StreamFacts) -> Iterator[Finding]:
    """Find limits of the source that a stream would meet."""
    yield from _check_places(room)
    yield from _check_timeout(room.sender_timeout_ms)
    if room.keep_mb == -1:
        yield Finding(
            "slot_keeps_wal",
            "warn",
            "max_slot_wal_keep_size is -1: while no listener runs, its slot keeps WAL until the source's disk is full",
            "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf() -- what the disk can spare",
        )
    if room.idle_timeout not in (None, "0"):
        yield Finding(
            "slot_idle_timeout",
            "warn",
            f"idle_replication_slot_timeout is {room.idle_timeout}: the slot is lost once no listener ran that long",
            "alter system set idle_replication_slot_timeout = 0; select pg_reload_conf()",
        )


def _check_places(room: StreamFacts) -> Iterator[Finding]:
    slots = 1 if room.has_slot else 2
    if room.most_slots - room.slots < slots:
        yield Finding(
            "no_free_slot",
            "error",
            f"{room.slots} of {room.most_slots} replication slots are taken, and `listen` needs {slots} more: "
            "its own, and one for a moment when a table joins",
            f"alter system set max_replication_slots = {room.slots + 2 * slots}; then restart the source",
        )
    senders = 1 if room.is_streaming else 2
    if room.most_senders - room.senders < senders:
        yield Finding(
            "no_free_walsender",
            "error",
            f"{room.senders} of {room.most_senders} walsenders are busy, and `listen` needs {senders} more",
            f"alter system set max_wal_senders = {room.senders + 2 * senders}; then restart the source",
        )


def _check_timeout(timeout_ms: int) -> Iterator[Finding]:
    if timeout_ms >= _SHORTEST_TIMEOUT_MS:
        return
    yield Finding(
        "wal_sender_timeout",
        "warn",
        "wal_sender_timeout is 0: a listener that was cut off is never noticed, and keeps the slot from the next"
        if timeout_ms == 0
        else f"wal_sender_timeout is {timeout_ms} ms: a pause of the network ends the stream",
        "alter system set wal_sender_timeout = '60s'; select pg_reload_conf()",
    )
