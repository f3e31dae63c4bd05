"""The loading of a table whose rows are compared by hashes: those that differ are written, and looked at again."""

from __future__ import annotations

from replicator.apply.keyed import KeyedLoad
from replicator.digest import SLOTS
from replicator.errors import DataRefused
from replicator.strategy import FULL


class RepairLoad(KeyedLoad):
    """The loading that finds what to write by looking at both sides, whatever the position says."""

    def _stage_changes(self) -> None:
        if self.reading.load_type == FULL:
            super()._stage_changes()

    def remove(self) -> None:
        """Do nothing but after a full read: what is too much is found together with the rest."""
        if self.reading.load_type == FULL:
            super().remove()

    def audit(self) -> None:
        """Mend what differs, then prove that nothing does."""
        if self.reading.load_type == FULL or self.filled_directly:
            return
        self._repair(range(SLOTS))
        self.figures.rows_extracted = self.figures.rows_inserted + self.figures.rows_updated
        if self.job.settings.deletes == "ignore" or self.has_refused:
            return
        with self.figures.phase("verify"):
            if self._compare().compare(self.incoming.source).buckets:
                raise self._not_repaired()
        self.proved = range(SLOTS)

    def _not_repaired(self) -> DataRefused:
        return DataRefused(
            f"rows of {self.job.table} differ still after the repair",
            why="the target changes what is written: a trigger, or a column that no UPDATE may set",
            hint="look at one of them with: replicator verify --show-values; then hint the target's definition",
            id="not_repaired",
            table=self.job.table,
        )
