"""What the loader is asked to do: a table, what the source offers for it, and the session that writes."""

from __future__ import annotations

from dataclasses import dataclass

from replicator.apply.control import Control, TableRecord
from replicator.batch import TableSource
from replicator.config.table_setting import TableSettings
from replicator.db import Connection
from replicator.digest import Digest
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
    another type asks for that: they are read whole.
    """

    connection: Connection
    control: Control
    digest: Digest
    replica: bool
    rebuilds: bool = False
