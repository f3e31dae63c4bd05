"""The one transaction that brings a table of the target to a snapshot of the source.

Order inside it: fence, DDL, staging COPY, upsert, deletes, position, `etl_control`, COMMIT. Where the role may not set
session_replication_role, tables tied by foreign keys share the transaction: upserts parents first, deletes children
first. Deletes go ahead if a vanished row holds a unique value that another row took over, unless a foreign key forbids
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg

from replicator.apply.job import Incoming, Job, Session, explain_kept_rows
from replicator.apply.keyed import KeyedLoad
from replicator.apply.multiset import MultisetLoad
from replicator.apply.sequence import move_sequences
from replicator.apply.table_load import TableLoad
from replicator.batch import Figures
from replicator.db import translate
from replicator.errors import DataRefused, ReplicatorError


def load_group(
    session: Session,
    group: Sequence[Incoming],
    *,
    attempts: int,
    also: Callable[[Session, Incoming], None] | None = None,
    ahead: Callable[[Session, Incoming], None] | None = None,
    keyed: Callable[[Session, Incoming, int], TableLoad] = KeyedLoad,
) -> list[Figures]:
    """Load tables in one target transaction, parents first; return their figures in order.

    keyed: makes the load of a table with a key. ahead, also: what else belongs into the transaction with each table,
    once it is locked and at the end.
    Raises our errors, with nothing of the group changed. A lost answer to COMMIT is the caller's to settle: the
    batch's own row tells whether it landed.
    """
    loads = [(keyed if incoming.job.mapping.key else MultisetLoad)(session, incoming, attempts) for incoming in group]
    current = loads[0]
    try:
        with session.connection.transaction():
            for current in loads:
                current.prepare()
                if ahead is not None:
                    ahead(session, current.incoming)
            for current in loads:
                current.stage()
                current.write()
            for current in reversed(loads):
                current.remove()
            for current in loads:
                current.audit()
                current.finish()
                if also is not None:
                    also(session, current.incoming)
            move_sequences(session.connection, [fed for load in loads for fed in load.sequences])
    except psycopg.errors.NotNullViolation as error:
        raise _refuse_null(current.job, error) from error
    except psycopg.Error as error:
        raise _explain(error, current.job) from error
    return [load.figures for load in loads]


_CONSTRAINT_CLASS = "23"
"""What refuses single rows; a value that a type does not take ends the COPY of all of them."""


def _explain(error: psycopg.Error, job: Job) -> ReplicatorError:
    ours = translate(error, side="target", table=job.table)
    if isinstance(ours, DataRefused):
        ours = explain_kept_rows(ours, job, error)
    may_go_aside = job.mapping.key and job.settings.on_row_error == "stop"
    if may_go_aside and isinstance(ours, DataRefused) and (ours.sqlstate or "").startswith(_CONSTRAINT_CLASS):
        return ours.or_aside()
    return ours


def _refuse_null(job: Job, error: psycopg.errors.NotNullViolation) -> ReplicatorError:
    column = error.diag.column_name
    if column not in job.mapping.key or error.diag.table_name != job.target[1]:
        return _explain(error, job)
    return DataRefused(
        f"key column {column} of {job.table} is NULL in a row of the source",
        why="rows are told apart by their key",
        hint='configure another key for the table, or leave such rows out: where = "... is not null"',
        id="key_null",
        sqlstate=error.sqlstate,
        table=job.table,
    )
