"""The comparison of one table in one snapshot of the source and one of the target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from replicator.apply import difference, merge
from replicator.apply.comparison import Comparison, Pace, find_heap_bytes
from replicator.apply.job import Job, Session
from replicator.apply.merge import Target
from replicator.apply.target import check_apart, describe_target, plan_target
from replicator.batch import Shape
from replicator.capture.pull import HasConnection, TableReader
from replicator.errors import OperatorError, SchemaDrift
from replicator.proof.verdict import Verdict, order_key
from replicator.reading import INCREMENTAL, Reading
from replicator.relation import Relation
from replicator.selection import format_table_name


@dataclass(frozen=True, slots=True)
class Look:
    """How to look. bytes_per_s: of each side's heap, None without limit."""

    with_values: bool = False
    bytes_per_s: float | None = None


def not_synced(table: str | None = None) -> OperatorError:
    """Return the error of a verification ahead of the first sync."""
    return OperatorError(
        f"{table or 'nothing'} has {'not ' if table else ''}been synced yet",
        why="there is no copy to compare with",
        hint="replicator sync",
        id="not_synced",
        table=table,
    )


def target_missing(job: Job) -> OperatorError:
    """Return the error of a table whose copy is gone."""
    return OperatorError(
        f"{format_table_name(*job.target)} is not in the target any more",
        why=f"{job.table} was copied there, and somebody dropped or renamed it",
        hint=f"replicator resync '{job.table}' --yes; or name its target in replicator.toml",
        id="target_missing",
        table=job.table,
    )


@dataclass
class TargetTable:
    """A table of the target as a comparison needs it."""

    relation: Relation
    target: Target
    shape: Shape

    def compare(
        self, session: Session, job: Job, pace: Pace | None = None, *, with_version: bool = False
    ) -> Comparison:
        """Return the comparison in the session's transaction."""
        staging = f"replicator_verify_{job.mapping.relation.oid}"
        heap_bytes = find_heap_bytes(self.relation)
        return Comparison(
            session.connection,
            self.target,
            self.shape,
            staging,
            heap_bytes,
            pace or Pace(),
            with_version=with_version,
        )


def open_target_table(session: Session, job: Job) -> TargetTable:
    """Describe the target as it stands. Raises OperatorError or SchemaDrift where it is not what a sync would leave."""
    check_apart(session.connection, job, is_source=session.is_source)
    evolution, existing, types = plan_target(session.connection, job)
    if existing is None or evolution.creates:
        raise target_missing(job) if job.record.state.snapshot_at is not None else not_synced(job.table)
    if evolution.before:
        raise SchemaDrift(
            f"the columns of {job.table} changed since the last sync",
            why="the target does not have them as the rules would make them now",
            hint=f"replicator sync '{job.table}'",
            table=job.table,
        )
    return TargetTable(existing, *describe_target(session.connection, job, existing, types, evolution, session.digest))


@contextmanager
def still(session: Session) -> Iterator[None]:
    """Let the target hold still in the block, and leave nothing of it behind but what lies in other transactions."""
    with session.connection.transaction(force_rollback=True):
        session.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield


def make_source(job: Job, reader: HasConnection) -> TableReader:
    """Return the table as it is read for a comparison."""
    return TableReader(
        reader, job.mapping, Reading(INCREMENTAL, job.choice.strategy, None, None, False, None, ""), job.table
    )


def judge(
    job: Job,
    reader: HasConnection,
    session: Session,
    look: Look,
    pace: Pace | None = None,
    most: int | None = None,
    with_version: bool = False,
) -> Verdict:
    """Compare a table in the reader's snapshot and the session's transaction.

    pace: of the first look at all rows. most: how many rows that differ are named, None for all.
    with_version: also tell which transaction wrote each.
    """
    table = open_target_table(session, job)
    source = make_source(job, reader)
    if not job.mapping.key:
        return judge_multiset(job, table, source, session)
    comparison = table.compare(session, job, pace or Pace(look.bytes_per_s), with_version=with_version)
    compared = comparison.compare(source)
    verdict = Verdict(
        job.table,
        compared.rows_source,
        compared.rows_target,
        columns=tuple(column.name for column in table.target.columns),
        key=table.target.key,
    )
    if compared.buckets:
        comparison.stage(source, compared.buckets)
        found, verdict.unlisted = comparison.find(
            compared.buckets,
            with_values=look.with_values,
            with_extra=job.settings.deletes != "ignore",
            most=most,
        )
        verdict.findings = sorted(found, key=lambda finding: order_key(finding.key))
        if job.settings.deletes != "ignore":
            count_doubles(verdict)
    return verdict


def count_doubles(verdict: Verdict) -> None:
    """Count the rows that share their key with another one, and that no comparison by key can name.

    A child table of the target has some, or a view's key that is none.
    """
    named = verdict.count()
    surplus = verdict.rows_target - verdict.rows_source - (named.extra - named.missing)
    verdict.extra_rows, verdict.missing_rows = max(0, surplus), max(0, -surplus)


def judge_multiset(job: Job, table: TargetTable, source: TableReader, session: Session) -> Verdict:
    """Compare a table without a key, whose rows are told apart by their number alone."""
    connection, target, shape = session.connection, table.target, table.shape
    there = source.sum_rows(shape, by_row=True)
    row = connection.execute(merge.sum_target(target, merge.hash_row(target, "t", shape.digest))).fetchone()
    assert row is not None
    verdict = Verdict(job.table, there.rows, row["rows"])
    verdict.digests = (there.digest, int(row["digest"]))
    if (there.rows, there.digest) == (row["rows"], int(row["digest"])):
        return verdict
    staging = f"replicator_verify_{job.mapping.relation.oid}"
    names = [column.name for column in target.columns]
    connection.execute(merge.create_staging(target, staging, names))
    with (
        connection.cursor() as cursor,
        cursor.copy(merge.copy_into(merge.staging_name(staging), names, binary=shape.binary)) as copy,
    ):
        for piece in source.read_all(shape):
            copy.write(piece)
    row = connection.execute(difference.count_multiset(target, staging)).fetchone()
    assert row is not None
    verdict.missing_rows = row["missing"]
    verdict.extra_rows = 0 if job.settings.deletes == "ignore" else row["extra"]
    return verdict
