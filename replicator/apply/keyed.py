"""The loading of a table with a key: upsert what changed, find deletes by hashes of keys, audit by hashes of rows.

With on_row_error = "quarantine" rows that the target refuses are put aside. Whatever is in quarantine when a load
begins is read again in it, so at its end quarantine holds what was refused now, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
from psycopg import sql

from replicator.apply import merge, sieve_merge
from replicator.apply.comparison import Comparison, Pace, find_heap_bytes
from replicator.apply.encode import encode_rows
from replicator.apply.merge import Place
from replicator.apply.sieve import Sieve
from replicator.apply.stream_control import StreamControl
from replicator.apply.table_load import TableLoad, key_not_unique
from replicator.apply.upsert import check_unique, upsert_rows
from replicator.batch import DUE_MARK
from replicator.catalog import deletes_go_on
from replicator.cell import is_text
from replicator.db import TAKEN
from replicator.digest import SLOTS, bucket_of, count_buckets, in_buckets
from replicator.errors import DataRefused
from replicator.strategy import FULL, XMIN


class KeyedLoad(TableLoad):
    """The loading of a table whose rows are told apart by their key."""

    sieve: Sieve | None = None
    has_made_way = False

    def prepare(self) -> None:
        super().prepare()
        control = self.session.control
        self.streams = StreamControl(self.session.connection, control.schema, control.pipeline)
        waiting = self.streams.read_waiting_keys(self.job.table)
        self.waiting = {key for key in waiting if len(key) == len(self.target.key)}
        self.had_waiting = bool(waiting)
        if len(self.waiting) < len(waiting):
            self._read_all("rows in quarantine are named by another key")
        if self.job.settings.on_row_error == "quarantine":
            self.sieve = Sieve(
                self.session.connection,
                self.job.table,
                self.target,
                self.job.batch_id,
                self.figures,
                write=self._write_staged,
                make_way=self._try_to_make_way,
            )

    @property
    def _may_fill_directly(self) -> bool:
        # What COPY brings in cannot be tried again by halves. A table that was made here refuses nothing.
        return self.sieve is None or self.evolution.creates or bool(self.evolution.after)

    def _stage_changes(self) -> None:
        if self.reading.load_type == FULL:
            self.staged = self._copy_to_staging(self.staging, self.incoming.source.read_all(self.shape))
            return
        marks = (DUE_MARK,) if self.reading.since_xid is not None and self.reading.strategy != XMIN else ()
        self.staged = self._copy_to_staging(self.staging, self.incoming.source.read_changes(self.shape), marks=marks)

    def write(self) -> None:
        """Insert and update what was staged, and what is in quarantine."""
        if self.staged:
            with self.figures.phase("merge"):
                if self.reading.audit and not self.reading.audits_by_hashes:
                    missed = merge.count_missed(self.target, self.staging, DUE_MARK)
                    self.figures.rows_missed_before += self._count(missed)
                self._upsert(self.staging, self.staged)
        if self.waiting and self.reading.load_type != FULL:
            with self.figures.phase("merge"):
                self._retry_waiting()

    def _retry_waiting(self) -> None:
        """Read the rows in quarantine again: nothing else would, for their source versions are old by now."""
        refused = set(self.sieve.refused) if self.sieve else set()
        keys, found = f"replicator_waiting_{self.job.batch_id}", f"replicator_retried_{self.job.batch_id}"
        self._run(merge.create_staging(self.target, keys, self.target.key))
        self._copy(
            merge.copy_into(merge.staging_name(keys), self.target.key, binary=False),
            encode_rows(sorted(key for key in self.waiting - refused if all(map(is_text, key)))),
        )
        buckets = count_buckets(self._count(merge.sum_target(self.target, sql.SQL("0"))))
        bucket = bucket_of(merge.hash_key(self.target, "s", self.shape.digest), buckets)
        rows = self.session.connection.execute(sieve_merge.list_buckets(keys, bucket)).fetchall()
        if not rows:
            return
        chosen = [row["bucket"] for row in rows]
        read = self._copy_to_staging(found, self.incoming.source.read_bucket_rows(self.shape, buckets, chosen))
        kept = read - self._run(sieve_merge.keep_keys(self.target, found, keys)) if read else 0
        if kept:
            self.figures.rows_extracted += kept
            self._upsert(found, kept)

    @property
    def _whole(self) -> Place:
        """Return where every row of the source is staged after a full read."""
        return self.staging

    def _upsert(self, staging: Place, staged: int) -> None:
        if self.sieve is None:
            self._write_staged(staging, staged)
        else:
            self.sieve.land(staging, staged)

    def _write_staged(self, staging: Place, staged: int) -> None:
        try:
            with self.session.connection.transaction():
                written, inserted = self._merge(staging)
        except TAKEN as error:
            written, inserted = self._hand_over(staging, error)
        if self.triggers and self._count(merge.count_missed(self.target, staging, None)):
            raise self._interference()
        self.figures.rows_inserted += inserted
        self.figures.rows_updated += written - inserted
        self.figures.rows_unchanged += staged - written

    def _merge(self, staging: Place) -> tuple[int, int]:
        """Run the upsert; return (written, inserted) rows."""
        try:
            return upsert_rows(self.session.connection, self.job, self.target, staging)
        except psycopg.errors.CardinalityViolation as error:
            raise key_not_unique(self.job, error.sqlstate) from error

    def _hand_over(self, staging: Place, taken: psycopg.Error) -> tuple[int, int]:
        """Write rows that take over a unique value: deletes go ahead, where they go no further than the rows."""
        members = [member.oid for member in self.relation.members]
        if not self.session.replica and deletes_go_on(self.session.connection, members):
            raise self._tied(taken) from taken
        try:
            with self.session.connection.transaction():
                self._make_way()
                return self._exchange(staging)
        except psycopg.errors.ForeignKeyViolation as error:
            # On a delete the server names the table that refers to the row, else the row's own.
            if error.diag.table_name == self.target.name:
                raise
            raise self._tied(taken) from taken

    def _tied(self, taken: psycopg.Error) -> DataRefused:
        role = sql.Identifier(self.session.connection.info.user)
        return DataRefused(
            f"rows of {self.job.table} take over unique values of rows that a foreign key of the target refers to",
            why="one of the two would have to be deleted for a moment, and the foreign key fires",
            hint=sql.SQL("grant set on parameter session_replication_role to {}").format(role).as_string(),
            id="target_refused_row",
            sqlstate=taken.sqlstate,
            table=self.job.table,
        )

    def _try_to_make_way(self) -> None:
        """Delete vanished rows once for all the parts of a staging table, if no foreign key is in the way."""
        members = [member.oid for member in self.relation.members]
        if self.session.replica or not deletes_go_on(self.session.connection, members):
            with suppress(psycopg.errors.ForeignKeyViolation), self.session.connection.transaction():
                self._make_way()
        self.has_made_way = True

    def _make_way(self) -> None:
        """Delete vanished rows ahead of the upsert: one of them may hold a unique value that a staged row took over."""
        if self.job.settings.deletes == "ignore" or self.has_made_way:
            return
        here = self._count(merge.sum_target(self.target, sql.SQL("0")))
        if self.reading.load_type == FULL:
            self._delete(self._whole, None, here)
            return
        self._read_keys(self.incoming.source.read_keys(self.shape))
        self._delete(self.keys, None, here)
        self._run(merge.drop_staging(self.keys))

    def _exchange(self, staging: Place) -> tuple[int, int]:
        """Write rows that swap a unique value among themselves: delete, then insert."""
        kept = f"replicator_kept_{self.job.batch_id}"
        try:
            with self.session.connection.transaction():
                return self._merge(staging)
        except TAKEN:
            self._run(merge.keep_extra(self.target, staging, kept))
            self._run(merge.delete_kept(self.target, kept))
            replaced = self._run(merge.insert_kept(self.target, staging, kept))
            self._run(merge.drop_staging(kept))
            written, inserted = self._merge(staging)
            return replaced + written, inserted

    def remove(self) -> None:
        """Delete what the source no longer has, and bring back the keys that the target lost."""
        if self.filled_directly:
            check_unique(self.session.connection, self.job, self.target, filled=True)
        if self.filled_directly or self.job.settings.deletes == "ignore":
            return
        with self.figures.phase("delete"):
            if self.reading.load_type == FULL:
                self._remove_absent()
            elif not self.reading.audits_by_hashes:
                self._remove_by_keys()

    def _remove_absent(self) -> None:
        here = self._count(merge.sum_target(self.target, sql.SQL("0")))
        self._check_source_has_rows(self.staged, here)
        self._ensure_staging()
        self._delete(self._whole, None, here)
        self._check_key(self.staged)

    def _remove_by_keys(self) -> None:
        target, digest, source = self.target, self.shape.digest, self.incoming.source
        hashed = merge.hash_key(target, "t", digest)
        with ThreadPoolExecutor(1) as beside:
            # The source sums its keys while the target sums its own: two servers, one wait.
            summing = beside.submit(source.sum_rows, self.shape, by_row=False)
            here = self._total(merge.sum_target(target, hashed))
            there = summing.result()
        if here == there:
            return
        self._check_source_has_rows(there.rows, here.rows)
        buckets = count_buckets(max(there.rows, here.rows))
        theirs = source.sum_buckets(self.shape, buckets, by_row=False)
        ours = self._totals(merge.sum_target_buckets(target, hashed, bucket_of(hashed, buckets)))
        chosen = sorted(b for b in theirs.keys() | ours.keys() if theirs.get(b) != ours.get(b))
        self._read_keys(source.read_bucket_keys(self.shape, buckets, chosen))
        self._delete(self.keys, in_buckets(hashed, buckets, chosen), here.rows)
        self._fetch_missing(buckets, chosen)
        self._check_key(there.rows)

    def _check_key(self, there: int) -> None:
        """Raise DataRefused when the source has more rows than keys: the last writer of a key would win, unseen.

        So it does for rows of the target that share a key, where no unique index forbids it.
        """
        check_unique(self.session.connection, self.job, self.target)
        here = self._count(merge.sum_target(self.target, sql.SQL("0")))
        if there > here + (self.sieve.count_absent() if self.sieve else 0):
            raise key_not_unique(self.job)

    def _read_keys(self, pieces: Iterator[bytes]) -> None:
        if not self._copy_to_new(self.keys, self.target.key, pieces):
            self._run(merge.create_staging(self.target, self.keys, self.target.key))

    def _delete(self, keys: Place, only: sql.Composable | None, here: int) -> None:
        gone = self._count(merge.count_vanished(self.target, keys, only))
        # A part of what was here before this load: a wrong source ten times as large is a wrong source.
        self._check_deletes(gone, here - self.figures.rows_inserted)
        if gone:
            deleted = self._run(merge.delete_vanished(self.target, keys, only))
            if self.triggers and deleted < gone:
                raise self._interference()
            self.figures.rows_deleted += deleted

    def _fetch_missing(self, buckets: int, chosen: Sequence[int]) -> None:
        """Bring the rows back whose keys the source has and the target lacks: deleted here by hand."""
        self._take_refused_out(self.keys)
        missing = self._count(merge.count_new(self.target, self.keys))
        if not missing:
            return
        self.figures.rows_missed_before += missing
        name = f"replicator_missing_{self.job.batch_id}"
        read = self._copy_to_staging(name, self.incoming.source.read_bucket_rows(self.shape, buckets, chosen))
        read -= self._take_refused_out(name)
        self.figures.rows_extracted += missing
        unchanged = self.figures.rows_unchanged
        self._upsert(name, read)
        self.figures.rows_unchanged = unchanged

    def _take_refused_out(self, staging: Place) -> int:
        return self.sieve.take_out(staging) if self.sieve else 0

    def finish(self) -> None:
        """Write what is in quarantine now, position and record."""
        refused = self.sieve.refused if self.sieve else {}
        if self.had_waiting:
            self.streams.release_others(self.job.table, refused)
        for key, error in refused.items():
            self.streams.quarantine(self.job.table, key, None, error)
        super().finish()

    def audit(self) -> None:
        """Find by hashes what the reading cannot see, and repair it."""
        if self.reading.load_type == FULL and not self.filled_directly and self.job.settings.deletes != "ignore":
            # Every row of both sides was compared by the merge.
            self.proved = () if self.has_refused else range(SLOTS)
        if not self.reading.slots or self.filled_directly:
            return
        self.figures.rows_missed_before += self._repair(self.reading.slots)
        self.proved = () if self.has_refused else self.reading.slots

    @property
    def has_refused(self) -> bool:
        """Say whether rows are put aside, which the target then lacks."""
        return bool(self.sieve and self.sieve.refused)

    def _compare(self) -> Comparison:
        return Comparison(
            self.session.connection,
            self.target,
            self.shape,
            f"replicator_audit_{self.job.batch_id}",
            find_heap_bytes(self.relation),
            Pace(),
        )

    def _repair(self, slots: Sequence[int]) -> int:
        """Compare the rows of these slots of keys by hashes and write those that differ; return how many did."""
        source, comparison = self.incoming.source, self._compare()
        staging = comparison.staging
        with self.figures.phase("audit"):
            compared = comparison.compare(source, slots)
            if not compared.buckets:
                return 0
            self._check_source_has_rows(compared.rows_source, compared.rows_target)
            read = comparison.stage(source, compared.buckets)
            if self.job.settings.deletes != "ignore":
                here = self._count(merge.sum_target(self.target, sql.SQL("0")))
                self._delete(staging, comparison.among(compared.buckets), here)
            read -= self._take_refused_out(staging)
            missed = self._count(merge.count_missed(self.target, staging, None))
            unchanged = self.figures.rows_unchanged
            self._upsert(staging, read)
            self.figures.rows_unchanged = unchanged
            self.figures.rows_extracted += missed
            return missed
