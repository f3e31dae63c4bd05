"""Brings the publication up to the stream's tables; one that lists columns in another way costs no table a new copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replicator.apply.job import Job
from replicator.capture.publication import Published, ensure_publication, plan_publication
from replicator.db import translated
from replicator.stream.definition import define, is_redefined
from replicator.stream.session import ListenSession


def bring_up_publication(
    session: ListenSession, tables: Sequence[Published], jobs: Mapping[str, Job]
) -> dict[int, str]:
    """Make or change the publication; return by root what ties it to the publication from now on.

    Raises PreflightError as `ensure_publication` does, and the source's errors as they are.
    """
    name = session.settings.publication_name
    before = session.read_memberships(session.watcher, jobs)
    wished = plan_publication(session.watcher, name, tables, session.version).wished
    lacking = ensure_publication(session.watcher, name, tables, session.version).wished
    now = session.read_memberships(session.watcher, jobs)
    for (schema, table), statement in lacking.items():
        session.log.warning(
            "publication_columns_differ", table=f"{schema}.{table}", path="listen", hint=statement.as_string()
        )
    exchanged = wished.keys() - lacking.keys()
    _carry_definitions(session, [job for job in jobs.values() if _name(job) in exchanged], before, now)
    return now


def _carry_definitions(
    session: ListenSession, jobs: Sequence[Job], before: Mapping[int, str], now: Mapping[int, str]
) -> None:
    """Take note of memberships that changed under our own hands, in one transaction each: no change was left out."""
    if not jobs:
        return
    with translated("target"):
        known = session.streams.read_tables()
        for job in jobs:
            there = known.get(job.table)
            if there is not None and not is_redefined(there.definition, define(job, before)):
                session.streams.save_definition(job.table, define(job, now))


def _name(job: Job) -> tuple[str, str]:
    return job.mapping.relation.schema, job.mapping.relation.name
