"""Brings staged rows into a target by key: through its unique index, else by joining with what is there."""

from __future__ import annotations

from psycopg import sql

from replicator.apply import merge
from replicator.apply.job import Job
from replicator.apply.merge import Place, Target
from replicator.apply.table_load import key_not_unique
from replicator.db import Connection
from replicator.errors import DataRefused


def upsert_rows(connection: Connection, job: Job, target: Target, staging: Place) -> tuple[int, int]:
    """Insert staged rows, and rewrite those that differ; return (written, inserted) rows.

    Raises DataRefused where a key without a unique index has several rows.
    """
    if not target.has_unique_key:
        return _update_and_insert(connection, job, target, staging)
    if target.partitioned:
        inserted = _count(connection, merge.count_new(target, staging))
        return connection.execute(merge.upsert(target, staging)).rowcount, inserted
    row = connection.execute(merge.count_upsert(target, staging)).fetchone()
    return (row["written"], row["inserted"]) if row else (0, 0)


def _update_and_insert(connection: Connection, job: Job, target: Target, staging: Place) -> tuple[int, int]:
    new = _count(connection, merge.count_new(target, staging))
    updated = connection.execute(merge.update_matched(target, staging)).rowcount
    inserted = connection.execute(merge.insert_unmatched(target, staging)).rowcount
    if _count(connection, merge.count_ambiguous(target, staging)):
        if _count(connection, merge.count_repeated(staging, target.key)):
            raise key_not_unique(job)
        raise _repeated_key(job, target)
    return updated + inserted, new


def check_written(connection: Connection, job: Job, target: Target, staging: Place) -> None:
    """Raise DataRefused where a staged key has several rows by now that no unique index keeps apart."""
    if not target.has_unique_key and _count(connection, merge.count_ambiguous(target, staging)):
        raise _repeated_key(job, target)


def check_unique(connection: Connection, job: Job, target: Target, *, filled: bool = False) -> None:
    """Raise DataRefused where rows of the target share a key that no unique index guards. filled: by this very load."""
    if target.has_unique_key or not _count(connection, merge.count_repeated(target.table, target.key)):
        return
    raise key_not_unique(job) if filled else _repeated_key(job, target)


def _repeated_key(job: Job, target: Target) -> DataRefused:
    names = sql.SQL(", ").join(map(sql.Identifier, target.key))
    find = sql.SQL("select {0} from {1} group by {0} having count(*) > 1").format(names, target.table)
    return DataRefused(
        f"several rows of {target.table.as_string()} have one key ({', '.join(target.key)})",
        why="its partitions keep that key from being unique there, and somebody wrote a row beside ours",
        hint=f"{find.as_string()} -- in the target; delete all but one of each",
        id="target_key_repeated",
        table=job.table,
    )


def _count(connection: Connection, query: sql.Composed) -> int:
    row = connection.execute(query).fetchone()
    return int(row["rows"]) if row else 0
