"""Which tables a stream can bring. Each is looked at by itself: one in trouble keeps none of the others back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import psycopg

from replicator.apply.job import Job
from replicator.apply.ownership import find_shared_targets
from replicator.apply.target import find_tied, list_unwritable, plan_renames, plan_target, take_replica_role
from replicator.apply.target_catalog import read_target_catalog
from replicator.capture.publication import (
    Identity,
    Published,
    check_identity,
    has_publication,
    plan_table,
    read_identities,
)
from replicator.db import Connection, translate, translated
from replicator.errors import (
    ConfigError,
    DataRefused,
    DecisionError,
    OperatorError,
    PassingError,
    PreflightError,
    ReplicatorError,
)
from replicator.relation import KIND_NAMES, LOGGED, PARTITIONED, TABLE
from replicator.stream.publishing import bring_up_publication
from replicator.stream.session import ListenSession
from replicator.stream.table import check_key
from replicator.sync.inventory import Chosen, Inventory, leave_out, take_inventory
from replicator.sync.preparation import prepare_jobs

_OF_THE_WHOLE = frozenset({"source_changed", "fenced", "no_tables"})
"""Errors that may name a table and concern the pipeline."""
_GONE = frozenset({"42P01", "42703", "42704", "3F000"})


def is_of_one_table(error: ReplicatorError) -> bool:
    """Say whether an error is one table's own trouble, which a person has to end."""
    return error.table is not None and isinstance(error, OperatorError) and error.id not in _OF_THE_WHOLE


def went_away(error: ReplicatorError) -> bool:
    """Say whether an error only tells that something was dropped between two looks at a catalog."""
    return isinstance(error, OperatorError) and error.table is None and error.sqlstate in _GONE


def may_be_of_one_table(error: ReplicatorError) -> bool:
    """Say whether an error that names no table may be about one of those that were at hand."""
    is_state = error.sqlstate in _GONE or error.sqlstate in ("42501", "55P03")
    return error.table is None and is_state and isinstance(error, OperatorError | PassingError)


def name_table(error: ReplicatorError, table: str) -> ReplicatorError:
    """Return an error of a table's load with its name, unless it may concern more than the table."""
    if isinstance(error, ConfigError | DecisionError | DataRefused):
        error.table = error.table or table
    return error


def take_writable_inventory(session: ListenSession, source: Connection) -> Inventory:
    """Return the tables that the configuration selects, without those whose names the target cannot write down.

    Nothing in the control schema could speak of them; `sync` tells of each.
    """
    inventory = take_inventory(source, session.settings)
    connection = session.control.connection
    if connection.info.parameter_status("server_encoding") == "UTF8":
        return inventory
    texts = {one.table: one.table + "".join(one.target) for one in inventory.tables}
    with translated("target"):
        odd = set(list_unwritable(connection, list(texts.values())))
    out = {table for table, text in texts.items() if text in odd}
    for table in sorted(out - session.memory.unwritable):
        session.log.warning(
            "table_skipped", path="listen", table=table, reason="the target's encoding lacks a character of its name",
            hint="create the target database with encoding 'UTF8' template template0; or take the table out",
        )  # fmt: skip
    session.memory.unwritable |= out
    return leave_out(inventory, out)


def lift_delete_stop(chosen: Chosen) -> Chosen:
    """Return a table without a limit of deletes: a stream has none, and what it was to bring is brought whole."""
    return replace(chosen, settings=chosen.settings.model_copy(update={"max_delete_fraction": 1.0}))


@dataclass
class Candidates:
    """The tables that were looked at.

    jobs: of those that a stream can bring. refused: why it cannot bring others, until somebody acts. skipped: why
    others have no stream at all; the nightly sync has them. postponed: those that went away or changed meanwhile.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    refused: dict[str, ReplicatorError] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    postponed: set[str] = field(default_factory=set)

    def refuse(self, table: str, error: ReplicatorError) -> None:
        """Take a table out because of its own trouble; a transient error only puts it off."""
        self.jobs.pop(table, None)
        if isinstance(error, PassingError):
            self.postponed.add(table)
        else:
            error.table = error.table or table
            self.refused[table] = error


def examine(session: ListenSession, chosen: Sequence[Chosen], *, looks_at_target: bool) -> Candidates:
    """Look at tables and publish those that a stream can bring.

    looks_at_target: also whether the target can take them, as far as catalogs tell. Raises what concerns all of them,
    and lost connections.
    """
    found = Candidates()
    with translated("target"):
        records = session.control.read_records()
    with translated("source"):
        kinds = [table for table in chosen if table.kind in (TABLE, PARTITIONED)]
        failed: dict[str, ReplicatorError] = {}
        jobs = prepare_jobs(
            session.watcher, kinds, records, mask_key=session.access.mask_key, failed=failed,
            target=session.control.connection,
        )  # fmt: skip
        for table in chosen:
            if table not in kinds:
                found.skipped[table.table] = KIND_NAMES[table.kind]
        for name, error in failed.items():
            found.refuse(name, error)
        for name, job in jobs.items():
            if job.mapping.relation.persistence == LOGGED:
                found.jobs[name] = job
            else:
                found.skipped[name] = "table that is unlogged"
        identities = read_identities(session.watcher, [job.mapping.relation.oid for job in found.jobs.values()])
        _check_names(found, identities)
        _check_owners(session, found)
        if looks_at_target:
            _check_target(session, found)
        _publish(session, found, identities)
    return found


def _check_names(found: Candidates, identities: Mapping[int, Sequence[Identity]]) -> None:
    for name, job in list(found.jobs.items()):
        try:
            check_identity(name, job.mapping, identities[job.mapping.relation.oid])
            check_key(job)
        except OperatorError as error:
            found.refuse(name, error)


def _check_owners(session: ListenSession, found: Candidates) -> None:
    with translated("target"):
        shared = find_shared_targets(session.control, found.jobs.values())
    for name, error in shared.items():
        found.refuse(name, error)


def _check_target(session: ListenSession, found: Candidates) -> None:
    connection = session.control.connection
    with translated("target"):
        catalog = read_target_catalog(connection, list(found.jobs.values()))
    for name, job in list(found.jobs.items()):
        try:
            with translated("target", name):
                renames = plan_renames(connection, job)
                plan_target(connection, job, renames, catalog=None if renames else catalog)
        except OperatorError as error:
            found.refuse(name, error)


def _publish(session: ListenSession, found: Candidates, identities: Mapping[int, Sequence[Identity]]) -> None:
    """Bring the publication up to the tables; those that it cannot hold are refused.

    Raises PreflightError where there is no publication and the role may not make one.
    """
    if not found.jobs:
        return
    only_copied = session.settings.listen.publish_columns == "copied"
    wanted = {
        name: plan_table(job.mapping, identities[job.mapping.relation.oid], only_copied=only_copied)
        for name, job in found.jobs.items()
    }
    try:
        bring_up_publication(session, list(wanted.values()), found.jobs)
    except (OperatorError, psycopg.Error) as error:
        if session.watcher.closed:
            raise
        _publish_each(session, found, wanted)
        if not has_publication(session.watcher, session.settings.publication_name):
            raise error from None


def _publish_each(session: ListenSession, found: Candidates, wanted: Mapping[str, Published]) -> None:
    for name, one in wanted.items():
        try:
            bring_up_publication(session, [one], {name: found.jobs[name]})
        except PreflightError as error:
            found.refuse(name, error)
        except psycopg.errors.UndefinedTable:
            found.jobs.pop(name)
            found.postponed.add(name)
        except psycopg.Error as error:
            found.refuse(name, translate(error, side="source", table=name))


def tie_refused(session: ListenSession, chosen: Iterable[Chosen], refused: dict[str, ReplicatorError]) -> None:
    """Refuse also the tables that foreign keys of the target tie to refused ones.

    Under the replica role foreign keys do not fire, and nothing ties.
    """
    if not refused:
        return
    with translated("target"):
        connection = session.control.connection
        if take_replica_role(connection):
            return
        groups = find_tied(connection, {table.table: table.target for table in chosen})
    for group in groups:
        causes = sorted(group & refused.keys())
        for name in sorted(group - refused.keys()) if causes else ():
            refused[name] = _tied(name, causes[0])


TIED = "foreign_key_tie"


def _tied(table: str, cause: str) -> OperatorError:
    return OperatorError(
        f"{table} cannot be kept apart from {cause}",
        why="foreign keys of the target tie them, and the target role may not set session_replication_role",
        hint=f"fix {cause}; or, as a superuser: grant set on parameter session_replication_role to the target role",
        id=TIED,
        table=table,
    )
