"""The control schema in the target: migrations, locks, the record of batches, positions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from replicator.apply.evolve import Recorded
from replicator.batch import Figures
from replicator.db import Connection
from replicator.errors import FencedError, LockHeldError, OperatorError, ReplicatorError
from replicator.position import Lsn
from replicator.reading import Observation, Reading, SnapshotFacts, State
from replicator.relation import Relation
from replicator.selection import format_table_name
from replicator.statement import name_control_schema, sql_directory, statement
from replicator.telemetry.trace import scrub_traceback

Row = dict[str, Any]
RUN_PATHS = ("sync", "resync", "repair")


@dataclass(frozen=True, slots=True)
class TableRecord:
    """What the control schema knows of a table. epoch: this run's, after `claim_tables`."""

    table: str
    target: str | None
    epoch: int
    guarantee: str | None
    state: State
    source_oid: int | None
    columns: tuple[Recorded, ...]
    enum_labels: dict[str, dict[str, str]]
    created_by_us: bool


@dataclass(frozen=True, slots=True)
class Owner:
    """A pipeline that writes a table of the target, by the control schema it keeps. table: the source's name."""

    schema: str
    pipeline: str
    table: str
    target: str


class Control:
    """The control schema on one connection to the target."""

    def __init__(self, connection: Connection, schema: str, pipeline: str) -> None:
        self.connection, self.schema, self.pipeline = connection, schema, pipeline
        self._others: list[str] | None = None

    def _execute(self, name: str, /, **parameters: Any) -> psycopg.Cursor[Row]:
        parameters.setdefault("pipeline", self.pipeline)
        return self.connection.execute(statement(f"control.{name}", self.schema), parameters)

    def exists(self) -> bool:
        """Say whether the control schema has been made."""
        table = sql.Identifier(self.schema, "migration").as_string()
        return bool(_one(self._execute("has_control", migration_table=table))["present"])

    def list_pending(self) -> list[Path]:
        """Return the migrations that the control schema lacks. Raises OperatorError when it is a newer package's."""
        done = _one(self._execute("migration_version"))["version"] if self.exists() else 0
        files = sorted((sql_directory() / "migrations").glob("[0-9]*.sql"))
        newest = _number(files[-1])
        if done > newest:
            raise OperatorError(
                f"the control schema {self.schema} was made by a newer replicator",
                why=f"it is at version {done}, this package knows {newest}",
                hint="pip install --upgrade replicator",
                id="control_newer",
            )
        return [file for file in files if _number(file) > done]

    def migrate(self) -> None:
        """Bring the control schema to this version of the package. Raises OperatorError as `list_pending` does."""
        if not self.list_pending():
            return
        # Locked ahead of the transaction: inside one that began earlier, the catalog may still look as it did then.
        self._execute("lock", key=f"replicator/migrate/{self.schema}")
        with self.connection.transaction():
            for file in self.list_pending():
                self.connection.execute(name_control_schema(file.read_text("utf-8"), self.schema).encode())
                self._execute("record_migration", version=_number(file), name=file.stem)
        self.connection.execute("SELECT pg_advisory_unlock_all()")

    def take_lock(self, name: str, wait_s: float) -> None:
        """Take a lock of this pipeline until the session ends. Raises LockHeldError after `wait_s`."""
        with self.waiting(wait_s, name):
            self._execute("lock", key=self.lock_key(name))

    def try_lock(self, name: str) -> bool:
        """Take a lock of this pipeline until the session ends; False at once when another session has it."""
        return bool(_one(self._execute("try_lock", key=self.lock_key(name)))["locked"])

    def release_lock(self, name: str) -> None:
        """Give a lock of this session back."""
        self._execute("unlock", key=self.lock_key(name))

    @contextmanager
    def waiting(self, wait_s: float, name: str = "table") -> Iterator[None]:
        """Bound each wait for a lock in the block. Raises LockHeldError, which calls the lock by its name."""
        self._set_lock_timeout(f"{max(1, int(wait_s * 1000))}ms")
        try:
            yield
        except psycopg.errors.LockNotAvailable:
            raise LockHeldError(
                f"the {name} lock of pipeline {self.pipeline} is held",
                why=f"another command is at work, or the server has not noticed its end; waited {wait_s:g} s",
                hint="wait for it, or raise lock_wait; `replicator status` shows what runs",
            ) from None
        finally:
            with suppress(psycopg.Error):
                self._set_lock_timeout("0")

    def _set_lock_timeout(self, value: str) -> None:
        self.connection.execute("SELECT set_config('lock_timeout', %s, false)", [value])

    def lock_key(self, name: str) -> str:
        """Return the text whose hash is the advisory lock's number."""
        return lock_key(self.schema, self.pipeline, name)

    def lock_table(self, table: str) -> bool:
        """Take a table's lock until the transaction ends; False when another command has it."""
        return bool(_one(self._execute("try_lock_transaction", key=self.lock_key(f"table {table}")))["locked"])

    def lock_target(self, target: tuple[str, str]) -> bool:
        """Take a lock on a table of the target until the transaction ends; False when any pipeline has it."""
        key = f"replicator/target/{format_table_name(*target)}"
        return bool(_one(self._execute("try_lock_transaction", key=key))["locked"])

    def find_owners(self, targets: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Owner]:
        """Return which other pipelines write tables of the target, or what shares a partition tree with one."""
        wanted = list(targets)
        touched = {target: {format_table_name(*target)} for target in wanted}
        schemas, names = [schema for schema, _ in wanted], [name for _, name in wanted]
        for row in self._execute("list_relatives", schemas=schemas, names=names).fetchall():
            relative = format_table_name(row["relative_schema"], row["relative_name"])
            touched[row["schema"], row["name"]].add(relative)
        owners = self._read_owners(sorted({name for names in touched.values() for name in names}))
        return {
            target: next(owners[name] for name in sorted(names) if name in owners)
            for target, names in touched.items()
            if not names.isdisjoint(owners)
        }

    def _read_owners(self, targets: list[str]) -> dict[str, Owner]:
        if self._others is None:
            rows = self._execute("list_control_schemas", schema=self.schema).fetchall()
            self._others = [row["schema"] for row in rows]
        own = {self.schema: self.pipeline} if self.exists() else {}
        found: dict[str, Owner] = {}
        for schema, left_out in {**dict.fromkeys(self._others, ""), **own}.items():
            query = statement("control.find_owners", schema)
            for row in self.connection.execute(query, {"targets": targets, "pipeline": left_out}).fetchall():
                found[row["target_name"]] = Owner(schema, row["pipeline"], row["table_name"], row["target_name"])
        return found

    def wait_for_shadow(self, name: str) -> None:
        """Take a shadow's lock until the transaction ends, once whoever fills or merges it is done."""
        self._execute("lock_transaction", key=self.lock_key(f"shadow {name}"))

    def list_shadows(self, prefix: str) -> list[str]:
        """Return the names of the shadows that begin with a prefix."""
        return [row["name"] for row in self._execute("list_shadows", schema=self.schema, prefix=prefix).fetchall()]

    def wait_for_table(self, table: str) -> None:
        """Take a table's lock until the transaction ends, once whoever has it is done."""
        self._execute("lock_transaction", key=self.lock_key(f"table {table}"))

    def try_tables(self, tables: Iterable[str]) -> list[str]:
        """Take tables' locks until the transaction ends, as far as they are free; return the tables that are not."""
        by_key = {self.lock_key(f"table {table}"): table for table in tables}
        rows = self._execute("try_locks_transaction", keys=list(by_key)).fetchall()
        return [by_key[row["key"]] for row in rows]

    def save_shape(self, table: str, columns: Sequence[Recorded], relation: Relation) -> None:
        """Note a table's columns and enum labels as they are copied from now on."""
        self._execute(
            "save_shape",
            table_name=table,
            source_oid=relation.oid,
            columns=_write_columns(columns),
            enum_labels=json.dumps(label_enums(relation)),
        )

    def close_dead_runs(self, execution_id: UUID, paths: Sequence[str] = RUN_PATHS) -> int:
        """Mark the running rows of runs that are gone as failed; call with their lock held. Return how many."""
        return self._execute("close_dead_runs", execution_id=str(execution_id), paths=list(paths)).rowcount

    def claim_tables(self, tables: Iterable[str]) -> dict[str, TableRecord]:
        """Raise the tables' epochs to this run's and return what is known of each."""
        rows = self._execute("claim_tables", tables=sorted(tables)).fetchall()
        return {row["table_name"]: _record(row) for row in rows}

    def read_records(self) -> dict[str, TableRecord]:
        """Return what is known of every table of the pipeline."""
        return {row["table_name"]: _record(row) for row in self._execute("read_states").fetchall()}

    def read_snapshot_time(self, table: str) -> datetime | None:
        """Return when the snapshot was taken that a table was last brought to; None before its first sync."""
        row = self._execute("read_snapshot_time", table_name=table).fetchone()
        return row["snapshot_at"] if row else None

    def start_batches(
        self, execution_id: UUID, tables: Sequence[str], *, path: str, triggered_by: str
    ) -> dict[str, int]:
        """Commit one running row for each table; return batch ids by table."""
        rows = self._execute(
            "start_batches", execution_id=str(execution_id), tables=list(tables), path=path, triggered_by=triggered_by
        ).fetchall()
        return {row["table_name"]: row["batch_id"] for row in rows}

    def fence(self, record: TableRecord) -> None:
        """Lock the table's state row. Raises FencedError if a younger run has claimed the table."""
        found = self._execute("fence", table_name=record.table, epoch=record.epoch).fetchone()
        if found is None:
            raise fenced(record.table)

    def save_batch(
        self,
        record: TableRecord,
        batch_id: int,
        *,
        target: str,
        guarantee: str,
        fingerprint: str,
        reading: Reading,
        facts: SnapshotFacts,
        figures: Figures,
        columns: Sequence[Recorded],
        enum_labels: dict[str, dict[str, str]],
        source_oid: int,
        created: bool,
        audited: bool,
        started_at: datetime,
        attempts: int,
    ) -> None:
        """Write position and success of a batch, inside the transaction of its data."""
        before = record.state
        self._execute(
            "save_state",
            table_name=record.table,
            epoch=record.epoch,
            target_name=target,
            strategy=reading.strategy,
            guarantee=guarantee,
            fingerprint=fingerprint,
            xid_position=str(facts.xmin),
            audit_xid_position=str(facts.xmin if audited else before.audit_xid_position or facts.xmin),
            watermark_mark=reading.next_mark,
            system_identifier=facts.system_identifier,
            timeline=facts.timeline,
            lsn=str(facts.lsn),
            marker=facts.marker or None,
            snapshot_at=facts.clock,
            audited_at=facts.clock if audited else before.audited_at,
            source_oid=source_oid,
            columns=_write_columns(columns),
            enum_labels=json.dumps(enum_labels),
            created_by_us=created,
        )
        self._execute(
            "finish_batch",
            batch_id=batch_id,
            started_at=started_at,
            load_type=reading.load_type,
            strategy=reading.strategy,
            guarantee=guarantee,
            watermark_start=before.snapshot_at,
            watermark_end=facts.clock,
            xid_start=None if before.xid_position is None else str(before.xid_position),
            xid_end=str(facts.xmin),
            lsn_start=None if before.lsn is None else str(before.lsn),
            lsn_end=str(facts.lsn),
            phases=json.dumps(figures.phases),
            attempts=attempts,
            **figures.counts(),
        )

    def finish_repair(self, batch_id: int, started_at: datetime, figures: Figures, *, load_type: str) -> None:
        """Write what a repair beside the listener has done so far, inside the transaction of its data."""
        self._execute(
            "finish_repair",
            batch_id=batch_id,
            started_at=started_at,
            load_type=load_type,
            phases=json.dumps(figures.phases),
            **figures.counts(),
        )

    def save_proof(self, table: str, slots: Sequence[int], proved_at: datetime) -> None:
        """Note when slots of a table's keys were proved equal, by the source's clock at the snapshot."""
        if slots:
            self._execute("save_proof", table_name=table, slots=list(slots), proved_at=proved_at)

    def fail_batch(
        self,
        batch_id: int,
        error: ReplicatorError,
        *,
        started_at: datetime | None,
        attempts: int,
        strategy: str | None,
        status: str = "failed",
    ) -> None:
        """Record a failure in a transaction of its own."""
        self._execute(
            "fail_batch",
            batch_id=batch_id,
            status=status,
            started_at=started_at,
            strategy=strategy,
            error_code=error.code,
            error_message=error.message,
            error_hint=error.hint,
            error_traceback=scrub_traceback(error),
            attempts=attempts,
        )

    def drop_running(self, batch_ids: Sequence[int]) -> None:
        """Take back the rows of reads that came to nothing."""
        self._execute("drop_running", batch_ids=list(batch_ids))

    def skip_batch(self, batch_id: int, reason: str) -> None:
        """Record that a table was left to somebody else."""
        self._execute("skip_batch", batch_id=batch_id, reason=reason)

    def delete_expired(self, table: str, keep_s: float) -> None:
        """Delete batches of a table older than its retention; the last success always stays."""
        self._execute("delete_expired_batches", table_name=table, keep_seconds=keep_s)

    def read_batches(self, execution_id: UUID) -> list[Row]:
        """Return the rows of one run."""
        return self._execute("read_batches", execution_id=str(execution_id)).fetchall()

    def read_history(self, table: str | None, limit: int) -> list[Row]:
        """Return the newest batches first."""
        return self._execute("history", table_name=table, limit=limit).fetchall()

    def read_last_batches(self) -> dict[str, Row]:
        """Return the newest batch of each table."""
        return {row["table_name"]: row for row in self._execute("last_batches").fetchall()}

    def record_observations(self, system_identifier: str, observations: Iterable[Observation]) -> None:
        """Keep observations of the source's open transactions for the nights to come."""
        for seen in observations:
            self._execute(
                "record_observation",
                system_identifier=system_identifier,
                observed_at=seen.observed_at,
                transactions=sorted(seen.transactions),
                prepared=seen.prepared,
            )
        self._execute("delete_old_observations")

    def read_observations(self, system_identifier: str) -> list[Observation]:
        """Return the kept observations, newest first."""
        rows = self._execute("read_observations", system_identifier=system_identifier).fetchall()
        return [Observation(row["observed_at"], frozenset(row["transactions"]), row["prepared"]) for row in rows]

    def forget(self, table: str) -> bool:
        """Drop what is known of a table; False when nothing was."""
        return self._execute("forget_table", table_name=table).fetchone() is not None


def label_enums(relation: Relation) -> dict[str, dict[str, str]]:
    """Return the labels of the relation's enums, by "schema.name" and the source's OID of the label."""
    return {
        f"{t.schema}.{t.name}": {str(oid): label for oid, label in t.labels}
        for t in relation.types.values()
        if t.kind == "e"
    }


def _write_columns(columns: Sequence[Recorded]) -> str:
    return json.dumps([[c.number, c.source, c.target, c.spelling, c.names_objects, c.storage] for c in columns])


def _number(migration: Path) -> int:
    return int(migration.name[:4])


def list_landed(records: Mapping[str, TableRecord]) -> dict[str, int | None]:
    """Return the tables that have been synced at least once, with the OID of each in the source.

    Of the others only a refused try is known.
    """
    return {table: record.source_oid for table, record in records.items() if record.state.snapshot_at is not None}


def lock_key(schema: str, pipeline: str, name: str) -> str:
    """Return the text whose hash is the number of a pipeline's advisory lock."""
    return f"replicator/{schema}/{pipeline}/{name}"


def fenced(table: str) -> FencedError:
    """Return the error of a run that woke up after another one had taken its table over."""
    return FencedError(
        f"{table} belongs to a younger run",
        why="this one was paused or cut off while another took over",
        hint="nothing: the younger run's work stands",
        table=table,
    )


def _one(cursor: psycopg.Cursor[Row]) -> Row:
    row = cursor.fetchone()
    if row is None:
        raise OperatorError("the control schema answered with no row", id="control_damaged")
    return row


def _record(row: Row) -> TableRecord:
    return TableRecord(
        table=row["table_name"],
        target=row["target_name"],
        epoch=row["epoch"],
        guarantee=row["guarantee"],
        state=State(
            strategy=row["strategy"],
            fingerprint=row["fingerprint"],
            xid_position=_integer(row["xid_position"]),
            audit_xid_position=_integer(row["audit_xid_position"]),
            watermark_mark=row["watermark_mark"],
            system_identifier=row["system_identifier"],
            timeline=row["timeline"],
            lsn=Lsn.parse(row["lsn"]) if row["lsn"] else None,
            snapshot_at=row["snapshot_at"],
            audited_at=row["audited_at"],
            verified_through=row["verified_through"],
            marker=row["marker"] or "",
            proved_at=tuple(row["proved_at"] or ()),
        ),
        source_oid=row["source_oid"],
        columns=tuple(Recorded(*column) for column in row["columns"] or ()),
        enum_labels=row["enum_labels"] or {},
        created_by_us=row["created_by_us"],
    )


def _integer(text: str | None) -> int | None:
    return None if text is None else int(text)
