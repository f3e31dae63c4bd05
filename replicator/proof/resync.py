"""Reads tables whole again and exchanges their contents in one transaction each; readers never see an empty moment.

A table that a listener keeps is compared row by row instead, and what differs is written in the stream's own time.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import psycopg

from replicator.apply.stream_control import StreamControl
from replicator.config.settings import Settings
from replicator.errors import ReplicatorError
from replicator.proof.judgement import Look
from replicator.proof.streamed_repair import repair_streamed
from replicator.proof.verify import VerifyPipeline, list_streamed
from replicator.sync.exchange import ExchangeRound
from replicator.sync.pipeline import Pipeline, default_jobs
from replicator.sync.run import ProgressHook, Run, RunResult


def resync(
    settings: Settings,
    target_conninfo: str,
    *,
    tables: Sequence[str] = (),
    jobs: int | None = None,
    triggered_by: str = "manual",
    execution_id: uuid.UUID | None = None,
    progress: ProgressHook | None = None,
    stop: threading.Event | None = None,
) -> RunResult:
    """Read tables whole again, all by default, and write what differs.

    jobs: tables at a time, or ranges of a large one. Raises our errors when not even a list of tables could be made.
    """
    run = Run(
        settings,
        target_conninfo,
        full=True,
        jobs=jobs or default_jobs(),
        progress=progress,
        stop=stop,
        path="resync",
        execution_id=execution_id,
    )
    streamed, pulled = list_streamed(run, tables)
    if streamed:
        with ExitStack() as stack:
            look = Run(settings, target_conninfo, full=False, jobs=run.jobs, stop=run.stop, path="resync")
            verdicts = VerifyPipeline(look, stack, Look()).look_at(streamed)
        run.errors |= look.errors
        result = repair_streamed(run, [verdicts[table] for table in sorted(verdicts)], triggered_by)
        if not pulled:
            return result
    with ExitStack() as stack:
        result = Pipeline(run, stack, ExchangeRound).execute(pulled, triggered_by)
    _call_listener(run, result)
    return result


def _call_listener(run: Run, result: RunResult) -> None:
    """Ask the listener to take in at once what it had parked."""
    landed = [row["table_name"] for row in result.rows if row["status"] == "success"]
    with suppress(ReplicatorError, psycopg.Error), run.open_control() as control:
        streams = StreamControl(control.connection, control.schema, control.pipeline)
        for table in landed:
            streams.request_parked(table)
