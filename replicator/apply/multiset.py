"""The loading of a table without a key: both sides are multisets of rows, and only their difference is written."""

from __future__ import annotations

from replicator.apply import merge
from replicator.apply.table_load import TableLoad
from replicator.batch import Totals
from replicator.db import TAKEN
from replicator.digest import SLOTS


class MultisetLoad(TableLoad):
    """The loading of a table in which equal rows are told apart by their number alone."""

    here = there = Totals()

    def _stage_changes(self) -> None:
        with self.figures.phase("compare"):
            self.there = self.incoming.source.sum_rows(self.shape, by_row=True)
            self.here = self._total(merge.sum_target(self.target, merge.hash_row(self.target, "t", self.shape.digest)))
        if self.there == self.here:
            self.figures.rows_extracted = self.there.rows
        else:
            self.staged = self._copy_to_staging(self.staging, self.incoming.source.read_all(self.shape))

    def write(self) -> None:
        """Delete the rows that the source lacks, then insert those that the target lacks, each as often as it does.

        In this order a unique constraint that the target alone has holds as long as it holds in the source.
        """
        if self.filled_directly:
            return
        self._delete_surplus()
        with self.figures.phase("merge"):
            if self.staged:
                self.figures.rows_inserted = self._insert()
            self.figures.rows_unchanged = self.there.rows - self.figures.rows_inserted

    def _insert(self) -> int:
        try:
            with self.session.connection.transaction():
                return self._run(merge.insert_plain(self.target, self.staging))
        except TAKEN:
            # The target has a unique index, and the version of a row that is to go still holds its value.
            self.remove()
            return self._run(merge.insert_plain(self.target, self.staging))

    def remove(self) -> None:
        """Do nothing: `write` has done it."""

    def _delete_surplus(self) -> None:
        if self.there == self.here or self.job.settings.deletes == "ignore":
            return
        with self.figures.phase("delete"):
            self._check_source_has_rows(self.there.rows, self.here.rows)
            # A changed row is one that goes and one that comes, so only how many fewer there are tells of a loss.
            self._check_deletes(max(0, self.here.rows - self.there.rows), self.here.rows)
            self._ensure_staging()
            self.figures.rows_deleted += self._run(merge.delete_plain(self.target, self.staging))

    def audit(self) -> None:
        """Look only for what a trigger did: a comparison of all rows leaves nothing else to find."""
        if not self.filled_directly and self.job.settings.deletes != "ignore":
            self.proved = range(SLOTS)
        if self.triggers and self.there != self.here and self.job.settings.deletes != "ignore":
            self._compare_all()
