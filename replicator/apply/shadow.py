"""The loading of a large table through a shadow: an unlogged table in the control schema that many sessions fill.

The load's transaction holds the shadow's lock from before it is made until it is dropped, in that same transaction. A
shadow whose lock is free was left by a load that ended early: `drop_shadows` drops it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from replicator.apply import merge
from replicator.apply.control import Control
from replicator.apply.job import Incoming
from replicator.apply.keyed import KeyedLoad
from replicator.apply.merge import Place, Target
from replicator.batch import Shape
from replicator.db import Connection
from replicator.errors import PassingError
from replicator.statement import statement
from replicator.strategy import FULL

_OWNER_WAIT = "1s"
"""How long a shadow's owner, whose process is gone, has to be noticed by the server; then the next run drops it."""

_SAMPLE_ROWS = 10_000
_FEW = 0.25
"""Measured: from about a quarter of the rows on it is quicker to try them all, and twice as quick if all differ."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What was brought into a shadow. rows_read: as the source counted; rows_staged: as the target did."""

    rows_read: int = 0
    rows_staged: int = 0
    bytes_copied: int = 0

    def __add__(self, other: Filled) -> Filled:
        return Filled(
            self.rows_read + other.rows_read,
            self.rows_staged + other.rows_staged,
            self.bytes_copied + other.bytes_copied,
        )


@dataclass(frozen=True, slots=True)
class Filling:
    """What is to be done by other sessions: make a shadow, then bring every row, in `shape`, in by COPY."""

    incoming: Incoming
    shape: Shape
    target: Target
    shadow: sql.Identifier

    @property
    def into(self) -> sql.Composed:
        """Return the COPY ... FROM STDIN."""
        return merge.copy_into(self.shadow, [c.name for c in self.target.columns], binary=self.shape.binary)

    def make_shadow(self, connection: Connection) -> None:
        """Make the shadow, empty, for the owner alone: default privileges may open the control schema to others."""
        with connection.transaction():
            connection.execute(merge.drop_left(self.shadow))
            connection.execute(merge.create_shadow(self.target, self.shadow))
            for row in connection.execute(
                statement("control.list_grantees"), {"shadow": self.shadow.as_string()}
            ).fetchall():
                grantee = sql.Identifier(row["grantee"]) if row["grantee"] else sql.SQL("PUBLIC")
                connection.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(self.shadow, grantee))


@dataclass
class ShadowLoad(KeyedLoad):
    """The loading of a table all of whose rows are read. fill: does a filling, and raises what keeps it from that."""

    fill: Callable[[Filling], Filled] = field(kw_only=True)
    shadow: sql.Identifier | None = field(init=False, default=None)

    @property
    def _whole(self) -> Place:
        return self.shadow or self.staging

    def _stage_changes(self) -> None:
        if self.reading.load_type != FULL or self.evolution.before or self.evolution.reindexes:
            # Others do not see yet what this transaction has made of the table, and would wait for its end.
            super()._stage_changes()
            return
        control = self.session.control
        name = name_shadow(control.pipeline, self.job.table)
        control.wait_for_shadow(name)
        self.shadow, self.has_staging = sql.Identifier(control.schema, name), True
        with self.figures.phase("copy"):
            filled = self.fill(Filling(self.incoming, self.shape, self.target, self.shadow))
            self.staged = self._count(merge.count_staged(self.shadow))
            self._check_filled(filled)
        self.figures.rows_extracted += self.staged
        self.figures.bytes_copied += filled.bytes_copied

    def _check_filled(self, filled: Filled) -> None:
        if not filled.rows_read == filled.rows_staged == self.staged:
            raise PassingError(
                f"{self.staged} of {filled.rows_read} rows of {self.job.table} are in its shadow",
                why="a server was restarted, or somebody else wrote there",
                hint="it is tried again by itself",
                id="shadow_incomplete",
                table=self.job.table,
            )

    def write(self) -> None:
        """Insert and update what differs; what is equal is told by reading alone."""
        if self.shadow is None:
            super().write()
            return
        with self.figures.phase("merge"):
            self._run(sql.SQL("ANALYZE {}").format(self.shadow))
            if not self._is_mostly_equal(self.shadow):
                self._upsert(self.shadow, self.staged)
                return
            differing = self._run(merge.stage_differing(self.target, self.shadow, self.staging))
            self.figures.rows_unchanged += self.staged - differing
            if differing:
                self._upsert(self.staging, differing)

    def _is_mostly_equal(self, shadow: sql.Identifier) -> bool:
        """Say whether so few rows differ that to find them first costs less than to try them all."""
        percent = min(100.0, 100.0 * _SAMPLE_ROWS / max(1, self.staged))
        row = self.session.connection.execute(merge.count_unlike(self.target, shadow, percent)).fetchone()
        return row is None or row["differing"] <= _FEW * row["rows"]

    def finish(self) -> None:
        """Write position and record, and drop the shadow with the same commit."""
        super().finish()
        if self.shadow is not None:
            self._run(merge.drop_staging(self.shadow))


def name_shadow(pipeline: str, table: str) -> str:
    """Return the name of a table's shadow, which holds no name of the source."""
    return prefix_shadows(pipeline) + _digest(table)


def prefix_shadows(pipeline: str) -> str:
    """Return how the names of a pipeline's shadows begin: pipelines may share a target."""
    return f"shadow_{_digest(pipeline)}_"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def drop_shadows(control: Control) -> None:
    """Drop the shadows of the pipeline that no live session owns."""
    for name in control.list_shadows(prefix_shadows(control.pipeline)):
        unowned = (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege)
        with suppress(*unowned), control.connection.transaction():
            control.connection.execute("SELECT set_config('lock_timeout', %s, true)", [_OWNER_WAIT])
            control.wait_for_shadow(name)
            control.connection.execute(merge.drop_left(sql.Identifier(control.schema, name)))
