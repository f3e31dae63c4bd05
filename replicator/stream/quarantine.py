"""Rows in quarantine, tried again: each is read at the source as it is now, and written like a change of the stream."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from replicator.apply.change_load import KeyedChanges, LiveTable
from replicator.apply.control import Control
from replicator.apply.job import Job
from replicator.apply.narrow_key import find_narrow_key, narrow_job
from replicator.apply.staging import Staging
from replicator.apply.stream_control import StreamControl
from replicator.apply.target import describe_target, plan_target, take_replica_role
from replicator.batch import Figures
from replicator.capture.lookup import Delivered, Lookup, read_open_xids
from replicator.catalog import read_relation
from replicator.changes import Segment
from replicator.config.settings import Settings
from replicator.db import Connection, closing, connect, translated
from replicator.digest import Digest
from replicator.errors import DataRefused, OperatorError, ReplicatorError
from replicator.fold import UNKNOWN, KeyedFold
from replicator.relation import Relation
from replicator.stream.table import VERSION, spell_key
from replicator.sync.inventory import take_inventory
from replicator.sync.preparation import open_access, prepare_jobs

Row = dict[str, Any]


@dataclass
class RetryResult:
    """What became of the rows that were tried again, by their numbers."""

    landed: list[int] = field(default_factory=list)
    refused: dict[int, ReplicatorError] = field(default_factory=dict)


def retry_rows(settings: Settings, target_conninfo: str, rows: Sequence[Row]) -> RetryResult:
    """Read rows again at the source and write them, each in a transaction of its own that also releases it.

    A row that is gone from the source is deleted. Those that are refused once more stay.
    """
    result = RetryResult()
    with ExitStack() as stack:
        retry = _Retry(settings, target_conninfo, stack)
        for row in rows:
            try:
                retry.land(row)
            except OperatorError as error:
                result.refused[row["quarantine_id"]] = error
            else:
                result.landed.append(row["quarantine_id"])
    return result


class _Retry:
    """The sessions of one retry."""

    def __init__(self, settings: Settings, target_conninfo: str, stack: ExitStack) -> None:
        self.settings = settings
        timeout_s = settings.source.connect_timeout.total_seconds()
        self.access = open_access(settings)
        self.source = stack.enter_context(closing(self.access.open(first=True)))
        self.target: Connection = stack.enter_context(
            closing(connect(target_conninfo, side="target", timeout_s=timeout_s, first=True))
        )
        schema, pipeline = settings.target.control_schema, settings.pipeline
        self.control, self.streams = (
            Control(self.target, schema, pipeline),
            StreamControl(self.target, schema, pipeline),
        )
        self.unreadable = self.streams.list_unreadable()
        self.staging = Staging(self.target)
        self.delivered = Delivered()
        self.lookup = Lookup(self.access, self.delivered, threading.Event())
        stack.callback(self.lookup.close)
        with translated("target"):
            self.replica = take_replica_role(self.target)
            self.target.execute(
                "SELECT set_config('lock_timeout', %s, false)", [f"{settings.lock_wait.total_seconds() * 1000:.0f}ms"]
            )
        with translated("source"):
            self.chosen = {table.table: table for table in take_inventory(self.source, settings).tables}

    def land(self, row: Row) -> None:
        """Write one row as the source has it now."""
        landed = False
        try:
            self._write(row)
            landed = True
        finally:
            self.staging.settle(committed=landed)

    def _write(self, row: Row) -> None:
        if row["quarantine_id"] in self.unreadable:
            raise _unreadable(row)
        live = self._open_table(row["table_name"], len(row["key"]))
        texts = [None if text is None else text.encode() for text in row["key"]]
        key = tuple(texts) if len(texts) > 1 else texts[0]
        fold = KeyedFold({key: UNKNOWN})
        load = KeyedChanges(self.target, self.staging, live, Segment(VERSION, fold), Figures(), self.lookup)
        with translated("target", live.job.table), self.target.transaction():
            # First the lock: a batch of the stream that let a change of this row wait has landed by then, and the
            # row is read in a snapshot that sees every transaction which was open at this moment.
            self.control.wait_for_table(live.job.table)
            with translated("source"):
                for xid in read_open_xids(self.source):
                    self.delivered.add(xid)
            load.stage()
            load.remove(spare=False)
            load.write()
            self.streams.release(row["quarantine_id"])

    def _open_table(self, table: str, key_columns: int) -> LiveTable:
        chosen = self.chosen.get(table)
        if chosen is None:
            raise OperatorError(
                f"{table} is not part of the configuration any more",
                hint="replicator quarantine discard ID --yes",
                table=table,
            )
        with translated("target"):
            records = self.control.read_records()
        with translated("source", table):
            job = prepare_jobs(self.source, [chosen], records, mask_key=self.access.mask_key)[table]
        with translated("target", table):
            job = fit_key(job, read_relation(self.target, *job.target), key_columns)
            evolution, existing, types = plan_target(self.target, job)
            if existing is None or evolution.before:
                raise OperatorError(
                    f"the definition of {table} has changed",
                    hint="run `replicator sync`, or `listen`, first",
                    table=table,
                )
            target, shape = describe_target(self.target, job, existing, types, evolution, Digest.PORTABLE)
        with translated("source", table):
            spellings = spell_key(self.source, job)
        self.lookup.introduce(table, VERSION, job.mapping, shape, spellings)
        return LiveTable(job, VERSION, target)


def fit_key(job: Job, existing: Relation | None, key_columns: int) -> Job:
    """Return the job with a key of so many columns: the stream's may be narrower than the configured one.

    Raises OperatorError where the key is another one by now.
    """
    if len(job.mapping.key) == key_columns:
        return job
    key = find_narrow_key(job.mapping, existing)
    if key is None or len(key) != key_columns:
        raise OperatorError(
            f"the key of {job.table} has changed since the row was put aside",
            why=f"it had {key_columns} columns",
            hint=f"replicator sync '{job.table}', which reads the table in full then",
            id="quarantined_key",
            table=job.table,
        )
    return narrow_job(job, key)


def _unreadable(row: Row) -> DataRefused:
    return DataRefused(
        f"row {row['quarantine_id']} of {row['table_name']} cannot be read again by its key",
        why="the key holds bytes that are not UTF-8: neither can a statement name it nor can the target hold it",
        hint="correct the key in the source, where the row then comes as a new one, and give this one up: "
        f"replicator quarantine discard {row['quarantine_id']} --yes",
        id="key_not_text",
        table=row["table_name"],
    )
