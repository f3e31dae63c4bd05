"""What the loader is asked to do: a table, what the source offers for it, and the session that writes."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from replicator.apply.control import Control, TableRecord
from replicator.apply.evolve import OUR_INDEX
from replicator.batch import TableSource
from replicator.config.table_setting import TableSettings
from replicator.db import TAKEN_STATES, Connection
from replicator.digest import Digest
from replicator.errors import DataRefused
from replicator.reading import Reading, SnapshotFacts
from replicator.rules import Mapping
from replicator.strategy import Choice


@dataclass(frozen=True, slots=True)
class Job:
    """One table of a run as the loader needs it. rules: compiled, as text; fingerprint: of them and the source."""

    table: str
    target: tuple[str, str]
    mapping: Mapping
    settings: TableSettings
    choice: Choice
    fingerprint: str
    rules: str
    record: TableRecord
    batch_id: int


def explain_kept_rows(error: DataRefused, job: Job, cause: BaseException | None) -> DataRefused:
    """Return the error of a unique value that is taken; where deleted rows stay, one of them may be who has it.

    cause: the server's own error. Our indexes pass over such rows.
    """
    constraint = cause.diag.constraint_name if isinstance(cause, psycopg.Error) else None
    is_ours = constraint is not None and OUR_INDEX.match(constraint)
    if job.settings.deletes == "hard" or error.sqlstate not in TAKEN_STATES or is_ours:
        return error
    return DataRefused(
        error.what,
        why=error.why,
        hint="rows that the source deleted stay here and keep their unique values: replicator check has the SQL that "
        f"replaces the index; else {error.hint}",
        id=error.id,
        sqlstate=error.sqlstate,
        table=error.table,
    )


@dataclass(frozen=True, slots=True)
class Incoming:
    """What the source offers for a job in one snapshot."""

    job: Job
    reading: Reading
    facts: SnapshotFacts
    source: TableSource


@dataclass
class Session:
    """A connection to the target that loads.

    replica: triggers and foreign keys do not fire in it. rebuilds: tables may be emptied, or columns of theirs, where
    another type asks for that: they are read whole. is_source: the source reads from the same database.
    allowed_deletes: rows of each table that may go whatever the delete stop says.
    """

    connection: Connection
    control: Control
    digest: Digest
    replica: bool
    rebuilds: bool = False
    is_source: bool = False
    allowed_deletes: int = 0
