"""Finds out which other pipeline writes a table of the target: each would delete the rows of the other."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from replicator.apply.control import Control, Owner
from replicator.apply.job import Job
from replicator.errors import ConfigError, PassingError
from replicator.selection import format_table_name


def find_shared_targets(control: Control, jobs: Iterable[Job]) -> dict[str, ConfigError]:
    """Return the error of each job whose target another pipeline writes, by table."""
    by_target = {job.target: job for job in jobs}
    owners = control.find_owners(by_target)
    return {
        by_target[target].table: share_target(control, by_target[target], owner) for target, owner in owners.items()
    }


def claim_target(control: Control, job: Job) -> None:
    """Make sure, inside the load's transaction, that no other pipeline writes the target.

    Raises ConfigError where one does, PassingError where one is about to: its commit tells.
    """
    is_new = job.record.target != format_table_name(*job.target)
    if is_new and not control.lock_target(job.target):
        raise PassingError(
            f"another pipeline is at {format_table_name(*job.target)}",
            why="it loads the table for the first time",
            hint="it is tried again by itself",
            id="table_locked",
            sqlstate="55P03",
            table=job.table,
        )
    for error in find_shared_targets(control, [job]).values():
        raise error


def share_target(control: Control, job: Job, owner: Owner) -> ConfigError:
    """Return the error of a target that another pipeline writes."""
    target = format_table_name(*job.target)
    place = "" if owner.schema == control.schema else f" (control schema {owner.schema})"
    through = "" if owner.target == target else f" by way of {owner.target}"
    settings = {"REPLICATOR_PIPELINE": owner.pipeline}
    if place:
        settings["REPLICATOR_TARGET__CONTROL_SCHEMA"] = owner.schema
    command = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in settings.items()), "replicator forget"])
    return ConfigError(
        f"pipelines {control.pipeline} and {owner.pipeline}{place} both write {target}",
        why=f"{owner.pipeline} copies {owner.table} there{through}, and each would delete the rows of the other",
        hint="give one of them another target; or, where "
        f"{owner.pipeline} no longer copies that table: {command} {shlex.quote(owner.table)} --yes",
        id="target_shared",
        table=job.table,
    )
