"""The folded changes of one table on their way into its target, inside the stream's transaction.

Three steps, which the loader runs for all tables of a batch in the order that foreign keys ask for: `stage` brings the
rows to the target and joins moved ones with what they were, `remove` deletes, `write` inserts and updates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from psycopg import sql

from replicator.apply import merge, stream_merge
from replicator.apply.encode import decode_rows, encode_rows
from replicator.apply.job import Job
from replicator.apply.merge import Target
from replicator.apply.staging import Staging
from replicator.apply.upsert import check_written, upsert_rows
from replicator.batch import Figures
from replicator.cell import UNCHANGED, Cell, Cells
from replicator.changes import KeyText, RowFinder, Segment
from replicator.db import Connection
from replicator.fold import GONE, UNKNOWN, Key, KeyedFold, MultisetFold, Partial

Known = tuple[int, ...]
_MOST_COLUMNS = 1600


@dataclass(frozen=True)
class LiveTable:
    """One shape of a table of the stream, and its target as it takes that shape.

    version: see Segment. binary: cells are in the types' binary format, else in their text.
    """

    job: Job
    version: int
    target: Target
    binary: bool = False

    @property
    def columns(self) -> list[str]:
        """Return the target's columns that are written, in the stream's order."""
        return [column.name for column in self.target.columns]


class ChangeLoad(ABC):
    """One segment's way into the target."""

    def __init__(
        self, connection: Connection, staging: Staging, live: LiveTable, segment: Segment, figures: Figures
    ) -> None:
        self.connection, self.staging, self.live, self.target = connection, staging, live, live.target
        self.segment, self.figures = segment, figures
        self.deletes = live.job.settings.deletes
        self.quarantines = live.job.settings.on_row_error == "quarantine" and isinstance(segment.fold, KeyedFold)

    def _run(self, statement: sql.Composed) -> int:
        return self.connection.execute(statement).rowcount

    def _stage(self, kind: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
        """Copy rows of some of the target's columns into a staging table."""
        name = self.staging.take(
            (self.live.job.table, self.live.version, kind, tuple(columns)),
            lambda name: merge.create_staging(self.target, name, columns, lasting=True),
        )
        self._fill(name, columns, rows)
        return name

    def _fill(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
        if self.live.binary:
            self.figures.bytes_copied += self.staging.fill_binary(name, columns, rows)
        else:
            self.staging.fill(name, columns, self._counted(encode_rows(rows)))

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.figures.bytes_copied += len(piece)
            yield piece

    def clear(self) -> None:
        """Empty the target where the source was emptied: ahead of all that came after."""
        if self.segment.fold.truncated and self.deletes != "ignore":
            self.figures.rows_deleted += self._run(stream_merge.delete_all(self.target))

    @abstractmethod
    def stage(self) -> None:
        """Bring the rows to the target."""

    @abstractmethod
    def remove(self, *, spare: bool) -> None:
        """Delete what is gone; spare: rows have been written already, and one may look like a gone one."""

    @abstractmethod
    def write(self) -> None:
        """Insert and update."""

    @abstractmethod
    def exchange(self) -> None:
        """Write after all where the rows trade unique values among themselves: take all of them out first."""


class KeyedChanges(ChangeLoad):
    """Changes of a table whose rows are told apart by their key."""

    def __init__(
        self,
        connection: Connection,
        staging: Staging,
        live: LiveTable,
        segment: Segment,
        figures: Figures,
        finder: RowFinder,
    ) -> None:
        super().__init__(connection, staging, live, segment, figures)
        self.finder = finder
        self.whole: list[str] = []
        self.gone: list[str] = []
        self.partial: list[tuple[str, list[str]]] = []
        self.moved: list[tuple[str, bool]] = []

    def stage(self) -> None:  # noqa: PLR0912  # one branch for each kind of row
        """Sort the folded rows by what is known of them, and bring each kind to the target."""
        fold = self.segment.fold
        assert isinstance(fold, KeyedFold)
        whole: list[Cells] = []
        gone: list[KeyText] = []
        unknown: list[KeyText] = []
        partial: defaultdict[Known, list[Cells]] = defaultdict(list)
        moved: defaultdict[Known, list[Cells]] = defaultdict(list)
        # With its old key beside it the widest row is too wide for a staging table.
        fits = len(self.live.columns) + len(self.target.extra) + len(self.target.key) <= _MOST_COLUMNS
        for key, row in fold.rows.items():
            if row is GONE:
                gone.append(key_cells(key))
            elif row is UNKNOWN:
                unknown.append(key_cells(key))
            elif not isinstance(row, Partial):
                whole.append(row)
            else:
                known = tuple([place for place, cell in enumerate(row.cells) if cell is not UNCHANGED])
                cells = tuple([row.cells[place] for place in known])
                if row.base != key and not fits:
                    if len(known) == len(row.cells):
                        whole.append(cells)
                    else:
                        unknown.append(key_cells(key))
                elif row.base != key:
                    moved[known].append((*cells, *key_cells(row.base)))
                else:
                    (whole if len(known) == len(row.cells) else partial[known]).append(cells)
        if whole:
            self.whole.append(self._stage("whole", self.live.columns, whole))
        if gone:
            self.gone.append(self._stage("gone", self.target.key, gone))
        lost = [key for known, rows in moved.items() for key in self._stage_moved(known, rows)]
        lost += [key for known, rows in partial.items() for key in self._stage_partial(known, rows)]
        if unknown:
            # The target writes them as text, which every source reads.
            lost += self._read_keys(
                stream_merge.copy_keys(self.target, self._stage("unknown", self.target.key, unknown))
            )
        if lost:
            self._find(lost)

    def _stage_partial(self, known: Known, rows: list[Cells]) -> list[KeyText]:
        """Stage rows of which some cells stay; return the keys of those that the target does not have."""
        columns = [self.live.columns[place] for place in known]
        name = self._stage("partial", columns, rows)
        self.partial.append((name, columns))
        return self._read_keys(stream_merge.copy_absent_keys(self.target, name))

    def _stage_moved(self, known: Known, rows: list[Cells]) -> list[KeyText]:
        """Stage rows that left another key; return the keys of those whose cells the target cannot complete."""
        columns = [self.live.columns[place] for place in known]
        bases = [stream_merge.base_name(place) for place in range(len(self.target.key))]
        name = self.staging.take(
            (self.live.job.table, self.live.version, "moved", known),
            lambda name: stream_merge.create_moved(self.target, name, columns),
        )
        self._fill(name, [*columns, *bases], rows)
        resolved = self.staging.invent_name()
        self._run(stream_merge.resolve_moved(self.target, name, columns, resolved, by_base=True))
        is_whole = len(known) == len(self.live.columns)
        self.moved.append((resolved, is_whole))
        return [] if is_whole else self._read_keys(stream_merge.copy_unfound_keys(self.target, resolved))

    def _find(self, texts: Sequence[KeyText]) -> None:
        """Read rows again at the source, by the text of their keys; those that it does not have are gone."""
        table, version = self.live.job.table, self.live.version
        keys = self.staging.take(
            (table, version, "lost"),
            lambda name: merge.create_staging(self.target, name, self.target.key, lasting=True),
        )
        self.staging.fill(keys, self.target.key, encode_rows(texts))
        rows = self.staging.take(
            (table, version, "found"),
            lambda name: merge.create_staging(self.target, name, self.live.columns, lasting=True),
        )
        if self.staging.fill(rows, self.live.columns, self._counted(self.finder.find_rows(table, version, texts))):
            self._run(stream_merge.drop_found_keys(self.target, keys, rows))
            self.whole.append(rows)
        self.gone.append(keys)

    def _read_keys(self, copy_out: sql.Composed) -> list[KeyText]:
        with self.connection.cursor().copy(copy_out) as copy:
            return list(decode_rows(b"".join(bytes(piece) for piece in copy)))

    def remove(self, *, spare: bool) -> None:
        """Delete what is gone."""
        if self.deletes == "ignore":
            return
        spared = [*self.whole, *(name for name, _ in self.moved)] if spare else []
        for name in self.gone:
            self.figures.rows_deleted += self._run(stream_merge.delete_gone(self.target, name, spared))

    def write(self) -> None:
        """Insert and update."""
        for name in self.whole:
            self._upsert(name)
        for name, columns in self.partial:
            self.figures.rows_updated += self._run(stream_merge.update_partial(self.target, name, columns))
            self._check_written(name)
        for name, is_whole in self.moved:
            self._insert_resolved(name, is_whole=is_whole)

    def _upsert(self, name: str) -> None:
        written, inserted = upsert_rows(self.connection, self.live.job, self.target, name)
        self.figures.rows_inserted += inserted
        self.figures.rows_updated += written - inserted

    def _insert_resolved(self, name: str, *, is_whole: bool) -> None:
        for found in (True, False) if is_whole else (True,):
            if not self.target.has_unique_key:
                self.figures.rows_updated += self._run(stream_merge.update_resolved(self.target, name, found=found))
            self.figures.rows_inserted += self._run(stream_merge.insert_resolved(self.target, name, found=found))
        self._check_written(name)

    def _check_written(self, staging: str) -> None:
        check_written(self.connection, self.live.job, self.target, staging)

    def exchange(self) -> None:
        """Take every row that is to be written out, then put its new version in, with what only the target has."""
        resolved = list(self.moved)
        for name, columns, is_whole in [
            *((name, self.live.columns, True) for name in self.whole),
            *((name, columns, False) for name, columns in self.partial),
        ]:
            table = self.staging.invent_name()
            self._run(stream_merge.resolve_moved(self.target, name, columns, table, by_base=False))
            resolved.append((table, is_whole))
        for name, _ in resolved:
            self.figures.rows_updated += self._run(stream_merge.delete_resolved(self.target, name))
        for name, is_whole in resolved:
            self._insert_resolved(name, is_whole=is_whole)


class MultisetChanges(ChangeLoad):
    """Changes of a table without a key: images come and go."""

    def stage(self) -> None:
        """Bring the images to the target, each as often as it comes or goes."""
        fold = self.segment.fold
        assert isinstance(fold, MultisetFold)
        self.coming = {cells: count for cells, count in fold.counts.items() if count > 0}
        self.going = {cells: -count for cells, count in fold.counts.items() if count < 0}
        if self.target.columns:
            if self.coming:
                self.arrivals = self._stage("coming", self.live.columns, _repeat(self.coming))
            if self.going:
                self.departures = self._stage("going", self.live.columns, _repeat(self.going))

    def remove(self, *, spare: bool) -> None:  # noqa: ARG002  # images that come and go are never the same
        """Delete one row for each image that goes."""
        if not self.going or self.deletes == "ignore":
            return
        if self.target.columns:
            statement = stream_merge.delete_images(self.target, self.departures)
        else:
            statement = stream_merge.delete_empty(self.target, sum(self.going.values()))
        self.figures.rows_deleted += self._run(statement)

    def write(self) -> None:
        """Insert the images that come."""
        if not self.coming:
            return
        if self.target.columns:
            statement = stream_merge.insert_images(self.target, self.arrivals)
        else:
            statement = stream_merge.insert_empty(self.target, sum(self.coming.values()))
        self.figures.rows_inserted += self._run(statement)

    def exchange(self) -> None:
        """Write again: without a key there is nothing to trade."""
        self.write()


def key_cells(key: Key) -> KeyText:
    """Return a key's cells, in key order."""
    return key if isinstance(key, tuple) else (key,)


def _repeat(images: dict[Cells, int]) -> Iterator[Cells]:
    for cells, count in images.items():
        for _ in range(count):
            yield cells


def make_load(
    connection: Connection,
    staging: Staging,
    live: LiveTable,
    segment: Segment,
    figures: Figures,
    finder: RowFinder,
) -> ChangeLoad:
    """Return the load that fits the segment's table."""
    if isinstance(segment.fold, KeyedFold):
        return KeyedChanges(connection, staging, live, segment, figures, finder)
    return MultisetChanges(connection, staging, live, segment, figures)
