"""One run of the nightly sync: snapshot -> readers -> loader -> record, in rounds until nothing passing is left."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Sequence, Set
from contextlib import ExitStack, suppress
from typing import Any

import psycopg

from replicator.apply.control import Control, fenced, list_landed
from replicator.apply.shadow import drop_shadows
from replicator.apply.stream_control import StreamControl
from replicator.apply.target import list_unwritable
from replicator.capture.pull import is_standby
from replicator.config.settings import Settings
from replicator.db import connect, translate, translated
from replicator.errors import (
    EXIT_OK,
    ConfigError,
    OperatorError,
    PassingError,
    ReplicatorError,
    UsageError,
)
from replicator.patience import FAILOVER, Patience, waiting_out
from replicator.sync.inventory import (
    Chosen,
    Inventory,
    find_vanished,
    leave_out,
    name_expected,
    require_tables,
    take_inventory,
    vanished,
)
from replicator.sync.preparation import check_home, find_home
from replicator.sync.rights import require_control
from replicator.sync.round import Round, gave_way
from replicator.sync.run import ProgressHook, Run, RunResult


def sync(
    settings: Settings,
    target_conninfo: str,
    *,
    tables: Sequence[str] = (),
    full: bool = False,
    allowed_deletes: int = 0,
    jobs: int | None = None,
    triggered_by: str = "manual",
    execution_id: uuid.UUID | None = None,
    progress: ProgressHook | None = None,
    stop: threading.Event | None = None,
) -> RunResult:
    """Bring the target's tables to one snapshot of the source.

    tables: names of some of them, all by default. jobs: tables at a time. stop: set it to end the run early, with
    every table either landed or as it was. allowed_deletes: rows of each table that may go whatever the delete stop
    says. Raises our errors when not even a list of tables could be made.
    """
    run = Run(
        settings,
        target_conninfo,
        full=full,
        jobs=jobs or default_jobs(),
        progress=progress,
        stop=stop,
        execution_id=execution_id,
        allowed_deletes=allowed_deletes,
    )
    with ExitStack() as stack:
        return Pipeline(run, stack).execute(tables, triggered_by)


def default_jobs() -> int:
    """Return how many tables are copied at a time: as many as this machine has cores, at most four."""
    return min(4, os.cpu_count() or 1)


class Pipeline:
    """The rounds of one run. round_type: what a round does with its tables."""

    def __init__(self, run: Run, stack: ExitStack, round_type: type[Round] = Round) -> None:
        self.run, self.stack, self.round_type = run, stack, round_type
        self.patience = Patience(run.stop, run.log, waits_at_limits=False)

    def execute(self, tables: Sequence[str], triggered_by: str) -> RunResult:
        """Claim the tables, run the rounds and return the result."""
        started = time.monotonic()
        control, inventory = self.patience.attempts()(self._begin, tables, triggered_by)
        self.patience.renew()
        for table, error in inventory.missing.items():
            self.run.fail(table, error)
        try:
            self._retry_rounds(control, inventory.tables)
        finally:
            self._clean_up(inventory)
        rows = self.patience.attempts()(self._read_batches)
        result = RunResult(self.run.execution_id, rows, self.run.errors)
        level = self.run.log.info if result.exit_code == EXIT_OK else self.run.log.error
        level(
            "run_finished" if result.exit_code == EXIT_OK else "run_failed",
            path=self.run.path,
            status=result.status,
            tables=len(rows),
            tables_failed=len(self.run.errors),
            duration_seconds=round(time.monotonic() - started, 3),
        )
        return result

    def _begin(self, tables: Sequence[str], triggered_by: str) -> tuple[Control, Inventory]:
        """Take the run's lock and claim its tables; both connections stay open until the stack is closed."""
        run = self.run
        with ExitStack() as opened:
            control = opened.enter_context(run.open_control())
            with translated("target"):
                require_control(control.connection, control.schema)
                control.migrate()
                control.take_lock("run", run.lock_wait_s)
            opened.callback(run.close_watcher)
            try:
                run.open_watcher()
                if not run.full:
                    with translated("target"):
                        home = find_home(control.read_records().values())
                    check_home(run.watcher, control.connection, home)
                with translated("source"):
                    inventory = take_inventory(run.watcher, run.settings, tables)
                require_tables(inventory)
                inventory = self._leave_unwritable(control, inventory)
            except ReplicatorError as error:
                if self.patience.gives_up(error):
                    self._record_unread(control, tables, error, triggered_by)
                raise
            with translated("target"):
                copying = list_copying(control) & {chosen.table for chosen in inventory.tables}
            inventory = leave_out(inventory, copying)
            run.own_control = control
            names = [chosen.table for chosen in inventory.tables] + sorted(inventory.missing)
            run.log.info("run_started", path=run.path, tables=len(names), triggered_by=triggered_by)
            with translated("target"):
                run.claim(control, names, triggered_by)
                self._skip_copying(control, sorted(copying), triggered_by)
                run.has_written = True
                drop_shadows(control)
                if not tables and run.path == "sync":
                    self._forget_mistyped(control, {*names, *copying})
                    self._record_vanished(control, inventory, triggered_by)
            for pattern in inventory.idle_patterns:
                run.log.warning("pattern_unmatched", pattern=pattern, path=run.path)
            self.stack.enter_context(opened.pop_all())
        return control, inventory

    def _skip_copying(self, control: Control, tables: Sequence[str], triggered_by: str) -> None:
        """Leave to the listener what it is reading: a claim of ours would end that."""
        run = self.run
        if tables:
            run.batch_ids |= control.start_batches(run.execution_id, tables, path=run.path, triggered_by=triggered_by)
        for table in tables:
            run.skip(table, f"{table} is being read by the listener")

    def _record_unread(
        self, control: Control, tables: Sequence[str], error: ReplicatorError, triggered_by: str
    ) -> None:
        """Leave a trace of a run that could not even list the source's tables; a usage error is none."""
        if isinstance(error, UsageError):
            return
        names = name_expected(self.run.settings, tables)
        with translated("target"):
            expected = list(names) or sorted(control.read_records())
            self.run.claim(control, expected, triggered_by)
        for table in expected:
            self.run.fail(table, error)

    def _leave_unwritable(self, control: Control, inventory: Inventory) -> Inventory:
        """Leave out tables whose name the target cannot write down, with an error that no batch can record either."""
        names = {name: name for name in inventory.missing}
        names |= {chosen.table: chosen.table + "".join(chosen.target) for chosen in inventory.tables}
        with translated("target"):
            texts = list_unwritable(control.connection, list(names.values()))
        tables = [table for table, text in names.items() if text in texts]
        for table in tables:
            self.run.fail(table, unwritable(table))
        return leave_out(inventory, tables)

    def _forget_mistyped(self, control: Control, names: Set[str]) -> None:
        """Forget tables of which only a refused try is known and that are not selected: their names were mistyped.

        names: of all that are selected. What a listener has parked is the listener's to forget.
        """
        records = control.read_records()
        streams = StreamControl(control.connection, control.schema, control.pipeline)
        kept = names | list_landed(records).keys() | streams.read_parked().keys() | streams.read_tables().keys()
        for table in records.keys() - kept:
            control.forget(table)
            self.run.log.info("table_forgotten", table=table, path=self.run.path, reason="it was never copied")

    def _record_vanished(self, control: Control, inventory: Inventory, triggered_by: str) -> None:
        """Leave one `skipped` row for each table that the source has no longer: `health` finds it there."""
        gone = find_vanished(self.run.settings, inventory, list_landed(control.read_records()))
        last = control.read_last_batches() if gone else {}
        new = [table for table in gone if last.get(table, {}).get("status") != "skipped"]
        ids = control.start_batches(self.run.execution_id, new, path="sync", triggered_by=triggered_by) if new else {}
        for table, batch_id in ids.items():
            error = vanished(table)
            self.run.log.warning(
                "table_skipped", table=table, path="sync", error_type=error.id, error_message=error.message
            )
            control.fail_batch(batch_id, error, started_at=None, attempts=1, strategy=None, status="skipped")

    def _read_batches(self) -> list[dict[str, Any]]:
        with self.run.open_control() as control, translated("target"):
            return control.read_batches(self.run.execution_id)

    def _clean_up(self, inventory: Inventory) -> None:
        with suppress(ReplicatorError, psycopg.Error), self.run.open_control() as control:
            for table, kept_days in inventory.retention_days.items():
                control.delete_expired(table, kept_days * 86400.0)

    def _retry_rounds(self, control: Control, tables: Sequence[Chosen]) -> None:
        """Run rounds until no table is left, or passing errors have lasted five minutes."""
        left = list(tables)
        settled = False
        holder: list[Control] = [control]
        try:
            for attempt in self.patience.attempts():
                with attempt, waiting_out(FAILOVER if self.run.has_written else ()):
                    if attempt.retry_state.attempt_number > 1:
                        left = self._resume(holder, left)
                    self._run_round(holder[0], left)
            settled = True
        except PassingError as error:
            settled = True
            for chosen in left:
                self.run.fail(chosen.table, error)
        finally:
            for chosen in () if settled else left:
                self.run.fail(chosen.table, unfinished())
            if holder[0] is not control:
                holder[0].connection.close()

    def _resume(self, holder: list[Control], left: list[Chosen]) -> list[Chosen]:
        """Reconnect after a passing error and claim the tables again; return those that are still to be done.

        Gone are those whose COMMIT landed without an answer, and those that a younger run declared dead meanwhile.
        """
        self._reconnect(holder)
        control = holder[0]
        with translated("target"):
            control.take_lock("run", self.run.lock_wait_s)
            # Claimed first: that waits for a COMMIT of ours that is still on its way.
            self.run.claim_again(control, [chosen.table for chosen in left])
            statuses = {row["table_name"]: row["status"] for row in control.read_batches(self.run.execution_id)}
        for chosen in left:
            if statuses.get(chosen.table) not in ("running", "success"):
                self.run.fail(chosen.table, fenced(chosen.table))
        return [chosen for chosen in left if statuses.get(chosen.table) == "running"]

    def _reconnect(self, holder: list[Control]) -> None:
        control = holder[0]
        with translated("target"):
            is_lost = control.connection.closed or (self.run.has_written and is_standby(control.connection))
        if is_lost or control.connection.broken:
            control.connection.close()
            connection = connect(self.run.target_conninfo, side="target", timeout_s=self.run.timeout_s)
            holder[0] = Control(connection, control.schema, control.pipeline)
        if self.run.watcher.closed or self.run.watcher.broken:
            self.run.open_watcher()

    def _make_round(self, control: Control, pending: list[Chosen]) -> Round:
        return self.round_type(self.run, control, pending)

    def _run_round(self, control: Control, pending: list[Chosen]) -> None:
        """Load what is pending in one snapshot, shrinking the list. Raises the passing error that left the rest."""
        if not pending:
            return
        round_ = self._make_round(control, list(pending))
        before = len(pending)
        try:
            round_.execute()
        except psycopg.Error as error:
            raise translate(error, side="target") from error
        finally:
            pending[:] = left = round_.left
        if len(left) < before:
            self.patience.renew()
        if left and self.run.stop.is_set():
            for chosen in left:
                self.run.fail(chosen.table, interrupted())
            pending.clear()
            return
        if left:
            raise round_.passing or gave_way()


def list_copying(control: Control) -> set[str]:
    """Return the tables that a listener at work reads beside its stream."""
    streams = StreamControl(control.connection, control.schema, control.pipeline)
    copying = streams.read_copying()
    return set(copying) if copying and streams.is_listening() else set()


def unwritable(table: str) -> ConfigError:
    """Return the error of a table whose name, or its target's, is not to be had in the target's encoding."""
    return ConfigError(
        f"the name of {table} has a character that the target's encoding lacks",
        why="neither the table nor the record of its batches can have this name there",
        hint="create the target database with encoding 'UTF8' template template0; or take the table out",
        id="name_not_writable",
        sqlstate="22P05",
        table=table,
    )


def interrupted() -> OperatorError:
    """Return the error of a table that a signal kept from landing."""
    return OperatorError(
        "the run was stopped before this table landed",
        why="a signal asked the process to end",
        hint="nothing is half done: run replicator sync again",
        id="interrupted",
    )


def unfinished() -> OperatorError:
    """Return the error of a table whose run ended by an error that is told beside it."""
    return OperatorError(
        "the run ended before this table landed",
        why="an error that concerns the whole run",
        hint="see the run's own error; nothing is half done",
        id="unfinished",
    )
