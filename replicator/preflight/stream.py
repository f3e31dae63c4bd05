"""What the listener will ask of the source: rights, room for slots, publication, the identity of every row.

A pipeline that only ever syncs needs none of it. So until a listener has run nothing here is an error, and to a role
that may not replicate one line says all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from psycopg import sql

from replicator.apply.control import Control
from replicator.apply.job import Job
from replicator.apply.narrow_key import find_narrow_key, narrow_job
from replicator.apply.stream_control import ListenerState, ParkedTable, StreamControl
from replicator.apply.target import plan_target
from replicator.capture.publication import (
    Identity,
    Published,
    check_identity,
    describe_lack,
    describe_lack_on_standby,
    has_identity,
    has_publication,
    may_publish,
    plan_publication,
    plan_table,
    read_identities,
    read_published,
)
from replicator.capture.slot_loss import LOST, describe_lost, describe_missing
from replicator.capture.source_state import (
    SourceFacts,
    StreamFacts,
    read_slot,
    read_source,
    read_stream_facts,
    read_timeline,
)
from replicator.capture.walsender import WalSender
from replicator.config.settings import Settings, source_dsn
from replicator.db import Connection, translated
from replicator.errors import ReplicatorError
from replicator.hosts import picks_at_random
from replicator.pooler import is_pooled
from replicator.preflight.finding import Finding, find_error
from replicator.relation import KIND_NAMES, LOGGED, PARTITIONED, TABLE
from replicator.rules import find_naming_columns, needs_source
from replicator.stream.table import GENERATED_SINCE, check_key, check_rereads, expect_columns, find_unsent
from replicator.sync.planning import Plan, TablePlan
from replicator.sync.preparation import open_access

_SHORTEST_TIMEOUT_MS = 5000


@dataclass(frozen=True, slots=True)
class KnownStream:
    """What the control schema tells of a pipeline's stream.

    state: None where no listener has run, or its slot was dropped by `slot drop` since. parked: the tables that it
    leaves out now.
    """

    state: ListenerState | None = None
    parked: Mapping[str, ParkedTable] = field(default_factory=dict)


def read_known_stream(settings: Settings, target: Connection) -> KnownStream:
    """Return what is known of the pipeline's stream; nothing in a control schema of another version."""
    schema, pipeline = settings.target.control_schema, settings.pipeline
    with translated("target"):
        control = Control(target, schema, pipeline)
        if not control.exists() or control.list_pending():
            return KnownStream()
        streams = StreamControl(target, schema, pipeline)
        state = streams.read_state()
        return KnownStream() if state is None or state.slot_name is None else KnownStream(state, streams.read_parked())


def check_stream(settings: Settings, source: Connection, target: Connection, plan: Plan) -> Iterator[Finding]:
    """Find what would stop `listen`, make it park a table, or make it dear."""
    known = read_known_stream(settings, target)
    with translated("source"):
        facts, room = read_source(source), read_stream_facts(source, settings.slot_name)
        if not facts.may_replicate and known.state is None and not room.has_slot:
            yield _sum_up(facts)
            return
        check = _StreamCheck(settings, source, target, facts, room, known)
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

    is_stopped: something was found that would stop the listener. troubled: tables of which a finding says why they
    would be parked.
    """

    settings: Settings
    source: Connection
    target: Connection
    facts: SourceFacts
    room: StreamFacts
    known: KnownStream
    is_stopped: bool = False
    troubled: set[str] = field(default_factory=set)

    @property
    def is_needed(self) -> bool:
        """Say whether there is a slot, or should be: then what stops the listener or parks a table is an error."""
        return self.known.state is not None or self.room.has_slot

    def find(self, plan: Plan) -> Iterator[Finding]:
        """Find what the server tells, then what the tables tell."""
        for error in self.facts.gaps:
            yield self._stop(error)
        yield from self._try_pooler()
        yield from self._check_slot()
        if picks_at_random(self.source, source_dsn(self.settings)):
            yield Finding(
                "several_hosts",
                "warn",
                "source.dsn leads to one of several servers at random: a slot, and so the stream, is on one of them",
                "add target_session_attrs=read-write to source.dsn, or name the server that has the slot alone",
            )
        for finding in check_room(self.room):
            yield self._weigh(finding, is_certain=True)
        self.troubled.update(table.table for table in plan.tables if table.error is not None)
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
        yield from self._check_parked()

    def _check_parked(self) -> Iterator[Finding]:
        """Find tables that are parked for a reason that only the listener meets, like a row that is refused."""
        for name, parked in self.known.parked.items():
            if name not in self.troubled:
                message = f"the listener has parked the table: {parked.message} ({parked.id})"
                yield self._weigh(Finding("parked", "error", message, parked.hint, name))

    def _check_slot(self) -> Iterator[Finding]:
        """Find a slot that cannot go on where the target stands."""
        state = self.known.state
        if state is None or state.position is None:
            return
        name = self.settings.slot_name
        slot = read_slot(self.source, name)
        if slot is None:
            timelines = (state.timeline, read_timeline(self.source))
            yield self._stop(
                describe_missing(name, known_as=state.slot_name, timelines=timelines, is_standby=self.facts.is_standby)
            )
        elif slot.wal_status == LOST:
            yield self._stop(describe_lost(slot))

    def _try_pooler(self) -> Iterator[Finding]:
        """Find whether a pooler in between passes a replication connection on: most do not."""
        if not is_pooled(self.source):
            return
        access = open_access(self.settings)
        try:
            WalSender.open(access.conninfo, timeout_s=access.connect_timeout_s).close()
        except ReplicatorError as error:
            yield self._stop(error)

    def _stop(self, error: ReplicatorError, table: str | None = None, *, is_certain: bool = False) -> Finding:
        """Return the finding of what would stop the listener."""
        return self._weigh(find_error(error, table=table), is_certain=is_certain)

    def _weigh(self, finding: Finding, *, is_certain: bool = False) -> Finding:
        """Take note of an error, and make it a warning where no listener has run.

        is_certain: a source that is made for a stream otherwise could not give it, and no table's owner can help.
        """
        if finding.severity != "error":
            return finding
        self.is_stopped = True
        if finding.table is not None:
            self.troubled.add(finding.table)
        if self.is_needed or (is_certain and not self.facts.gaps):
            return finding
        return replace(finding, severity="warn", message=f"{finding.message} ({self._name_consequence(finding)})")

    def _name_consequence(self, finding: Finding) -> str:
        if finding.table is None:
            return "only needed for `listen`"
        return "`listen` would park it" if self.settings.listen.on_table_error == "park" else "`listen` would stop"

    def _check_tables(self, tables: Sequence[TablePlan]) -> Iterator[Finding]:
        jobs = {table.table: table.job for table in tables if table.job is not None}
        oids = [job.mapping.relation.oid for job in jobs.values()]
        identities = read_identities(self.source, oids)
        wanted = {name: _plan_published(job, identities[job.mapping.relation.oid]) for name, job in jobs.items()}
        there = read_published(self.source, self.settings.publication_name)
        yield from self._check_publication(jobs, wanted, there)
        for table in tables:
            if table.job is not None:
                published = self._find_columns(table.job, wanted[table.table], there)
                yield from self._check_table(table, table.job, identities[table.job.mapping.relation.oid], published)

    def _check_publication(
        self, jobs: Mapping[str, Job], wanted: Mapping[str, Published], there: dict[tuple[str, str], tuple[str, ...]]
    ) -> Iterator[Finding]:
        name, tables = self.settings.publication_name, list(wanted.values())
        oids = [job.mapping.relation.oid for job in jobs.values()]
        try:
            changes = plan_publication(self.source, name, tables, self.facts.version_number) if wanted else []
        except ReplicatorError:
            yield from self._check_each_published(jobs, wanted)
            return
        if changes and self.facts.is_standby:
            yield self._stop(describe_lack_on_standby(name, changes), is_certain=True)
        elif changes and may_publish(self.source, name, oids):
            statements = "; ".join(one.as_string() for one in changes)
            yield Finding("publication", "ok", f"`listen` will make or change publication {name}: {statements}")
        elif changes and not has_publication(self.source, name):
            yield self._stop(describe_lack(name, changes))
        elif changes:
            lacking = {table: one for table, one in wanted.items() if not _is_published(one, there)}
            yield from self._check_each_published(jobs, lacking)

    def _check_each_published(self, jobs: Mapping[str, Job], wanted: Mapping[str, Published]) -> Iterator[Finding]:
        """Find the tables that the publication lacks and the role may not add: one finding a table."""
        name = self.settings.publication_name
        told: set[str] = set()
        for table, one in wanted.items():
            try:
                changes = plan_publication(self.source, name, [one], self.facts.version_number)
            except ReplicatorError as error:
                # What the publication leaves out of every table is one finding.
                if error.what not in told:
                    yield self._stop(error, table if f"{one.schema}.{one.name}" in error.what else None)
                told.add(error.what)
                continue
            if changes and not may_publish(self.source, name, [jobs[table].mapping.relation.oid]):
                statements = "; ".join(change.as_string() for change in changes)
                message = f"publication {name} does not hold the table, or not all of its columns, and the role may not"
                hint = f"as their owner: {statements}"
                yield self._weigh(Finding("publication_missing", "error", f"{message} change that", hint, table))

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
        yield from _find_naming(plan.table, job)
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


def _is_published(wanted: Published, there: Mapping[tuple[str, str], Sequence[str]]) -> bool:
    """Say whether the publication holds all that is wanted of a table."""
    columns = there.get((wanted.schema, wanted.name))
    return columns is not None and (wanted.columns is None or set(wanted.columns) <= set(columns))


def _find_naming(table: str, job: Job) -> Iterator[Finding]:
    """Find columns that are written with names of objects: a stream tells of no rename."""
    naming = find_naming_columns(job.mapping, job.settings)
    if not naming:
        return
    in_key = [output.source.name for output in job.mapping.key_outputs if output.source.name in naming]
    message = f"{', '.join(naming)} names objects of the source, and no WAL tells of their renames"
    yield Finding(
        "names_objects",
        "warn",
        f"{message}: beside `listen` the text follows with the next `sync` or `verify --repair`"
        + (f"; until then a row whose key is renamed ({', '.join(in_key)}) may be there twice" if in_key else ""),
        "let the nightly `sync` run; or leave the column out: exclude = [...]; or copy the number of the object: "
        "alter table ... alter column ... type oid",
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
