"""Follows a stream that has been made ready, until it ends, is stopped, or a table is to be read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import psycopg

from replicator.apply.control import Control
from replicator.apply.stream_control import STREAM_LOCK, StreamControl
from replicator.apply.stream_load import TARGET_CHANGED, Landed, StreamLoader
from replicator.apply.target import take_replica_role
from replicator.capture.collector import Collector
from replicator.capture.intake import Intake
from replicator.capture.lookup import Delivered, Lookup
from replicator.capture.pgoutput import Relation as RelationMessage
from replicator.capture.raw_intake import CONVERSION_STATES, find_codec, recode_relation
from replicator.capture.signature import read_signatures
from replicator.capture.source_state import read_end_of_wal
from replicator.capture.walsender import WalSender
from replicator.catalog import read_relations
from replicator.changes import Changes, KeyText
from replicator.continuity import Expectation
from replicator.db import Connection, closing, translated
from replicator.errors import DataRefused, OperatorError, ReplicatorError
from replicator.position import Lsn, Origin
from replicator.relation import LOGGED, PARTITIONED, TABLE
from replicator.stream.candidate import is_of_one_table, take_writable_inventory
from replicator.stream.definition import define, is_redefined
from replicator.stream.join import TableJoiner
from replicator.stream.join_board import JoinBoard, LoadedTable
from replicator.stream.loop import Changed, LoadingThread, Search, Stream, Until, Watch, narrow
from replicator.stream.overlap import find_overlaps
from replicator.stream.session import ListenSession, Outcome
from replicator.stream.start import Started
from replicator.stream.summary import StreamSummary
from replicator.stream.table import VERSION, Newcomers, StreamedTable, list_members, spell_keys, streams_binary
from replicator.sync.inventory import Inventory
from replicator.sync.preparation import prepare_jobs

_RAW_TRANSACTIONS = 1000
"""Most in a batch while the source's own bytes are taken: the first look at where the odd ones are."""


class StreamFollower:
    """One run of a stream, with all that it needs opened and closed.

    until: when a bounded one ends. renew: takes note that something landed. search: for the transaction of a row that
    the target refuses; afterwards, how the next run goes on with it.
    """

    def __init__(
        self,
        session: ListenSession,
        started: Started,
        until: Until,
        renew: Callable[[], None],
        search: Search | None,
    ) -> None:
        self.session, self.started, self.until, self.renew = session, started, until, renew
        self.search = search
        self.settings, self.access, self.log, self.stop = session.settings, session.access, session.log, session.stop
        self.control, self.streams, self.watcher = session.control, session.streams, session.watcher
        self.tables = started.tables
        self.signatures = started.signatures
        self.summary = StreamSummary(session.log)

    def follow(self) -> Outcome:
        """Follow the stream; say whether it is to begin anew. Raises what ended it."""
        position = self.started.state.position
        assert position is not None
        delivered = Delivered()
        lookup = Lookup(self.access, delivered, self.stop)
        self.session.stack.callback(lookup.close)
        loader = self._open_loader(lookup)
        self.by_oid = self._index_members()
        self.newcomers = Newcomers(self.tables)
        resume = self.started.resume
        self.expectation = Expectation(resume.awaited, is_promoted=resume.has_new_timeline)
        self.collector = Collector(self._resolve, position, self.started.origins, delivered, self.expectation)
        board = JoinBoard()
        self.joiner = None
        if self.search is None:
            self.joiner = TableJoiner(self.session, board, self.started, delivered, binary=self._streams_binary())
        watch = self._open_watch()
        with self._start_stream(resume.start_at) as sender:
            leave_out = partial(self._leave_out, loader)
            loading = LoadingThread(loader, sender, position, self._tell, board.note_landed, leave_out)
            stream = Stream(
                sender,
                self.collector,
                loading,
                watch,
                cap_bytes=self.settings.listen.batch_bytes // 2,
                until=self.until,
                search=self.search,
                stop=self.stop,
                joiner=self.joiner,
                board=board,
                admit=partial(self._admit, loader, lookup),
            )
            loading.start()
            watch.start()
            if self.joiner is not None:
                self.joiner.start()
            try:
                stream.run()
            except OperatorError as error:
                if error.table is not None and error.table in self._look_for_changes().redefined:
                    # The target refused what a changed definition explains: a new enum label, a wider type.
                    self._mark_stale(error.table)
                    return Outcome.AGAIN
                if error is not loading.error and self._can_stream_raw(error):
                    self._stream_raw()
                    return Outcome.AGAIN
                if isinstance(error, DataRefused) and loading.failed is not None:
                    self._seek(error, loading.failed, loader.refused_key)
                    return Outcome.AGAIN
                raise
            finally:
                self._end(loader, loading, watch, sender)
            if loading.error is not None:
                raise loading.error
        return self._conclude(has_more=board.needs_restart or self.joiner is None)

    def _open_watch(self) -> Watch:
        return Watch(
            self.session.stack.enter_context(closing(self.access.open())),
            self.settings.slot_name,
            self.settings.listen.heartbeat.total_seconds(),
            self._find_changed,
            self.log,
        )

    def _end(self, loader: StreamLoader, loading: LoadingThread, watch: Watch, sender: WalSender) -> None:
        """End the threads, once what is in hand has landed, and confirm it."""
        if self.joiner is not None:
            self.joiner.finish()
        watch.finish()
        loading.finish()
        self.summary.flush()
        if loading.error is None:
            with suppress(psycopg.Error, ReplicatorError):
                loader.move_sequences()
        if self.expectation.is_met:
            sender.confirm(loading.position)
        sender.stop()
        self.session.result.position = loading.position

    def _resolve(self, message: RelationMessage) -> Intake | None:
        """Return the intake of a relation that is described; None when its changes are not taken as they come."""
        if self.raw_encoding is not None:
            message = recode_relation(message, find_codec(self.raw_encoding) or "utf-8")
        collector = self.collector
        table = self.by_oid.get(message.oid)
        is_known = table is not None or collector.keeps(message.oid)
        root = self.newcomers.find_root(message, is_known=is_known)
        if root is not None and not (collector.is_live(root) and collector.passes_over(root)):
            collector.discard(root)
        if table is None or not collector.is_live(table):
            return None
        intake = self.tables[table].make_intake(message, encoding=self.raw_encoding)
        if intake is None and not collector.passes_over(table):
            collector.discard(table)
        return intake

    def _admit(self, loader: StreamLoader, lookup: Lookup, loaded: LoadedTable, received: Lsn) -> bool:
        """Make a loaded table live with the batch in hand; False: it is to be read again.

        received: all before it is in hand or in the target.
        """
        streamed, collector = loaded.streamed, self.collector
        if not collector.adopt(loaded.window, streamed.make_intake, loaded.has, Origin(received)):
            return False
        job, version = streamed.job, streamed.layout.version
        loader.introduce(job, version, streamed.fitted)
        loader.follow_sequences(loaded.table, streamed.sequences)
        lookup.introduce(loaded.table, version, job.mapping, streamed.shape, loaded.spellings)
        self._forget_members(loaded.table)
        self.tables[loaded.table] = streamed
        self.started.definitions[loaded.table] = loaded.definition
        self.by_oid |= dict.fromkeys(loaded.window.oids, loaded.table)
        self.newcomers.expect(loaded.table, job.mapping.relation)
        collector.changes.joined[loaded.table] = loaded.definition
        if collector.changes.position is None:
            collector.changes.position = received
        return True

    def _leave_out(self, loader: StreamLoader, error: ReplicatorError, changes: Changes) -> bool:
        """Say whether a batch is loaded without the table that an error is about, and prepare that.

        The table is read again beside the stream, which finds out whether the source has it right by now. Not where
        foreign keys tie it to others.
        """
        table = error.table
        is_parted = table in changes.segments and not changes.is_open and self.joiner is not None
        is_its_own = is_of_one_table(error) or error.id == TARGET_CHANGED
        if not (is_parted and loader.replica and self.session.parks and is_its_own):
            return False
        assert table is not None
        if isinstance(error, DataRefused) and changes.commit_lsn is not None:
            key = loader.spell_refused_key(table)
            located = error.at(str(changes.commit_lsn), has_key=key is not None)
            with translated("target"):
                self.streams.save_refused(table, key, changes.commit_lsn, located)
        self.log.warning(
            "table_left_out", path="listen", table=table, error_type=error.id, error_message=error.message,
            sqlstate=error.sqlstate, lsn=None if changes.commit_lsn is None else str(changes.commit_lsn),
        )  # fmt: skip
        loader.leave_out(table)
        changes.stale |= {table}
        return True

    @property
    def raw_encoding(self) -> str | None:
        """Return the encoding in which texts come, where the source is not asked to convert them."""
        return self._encoding if self.search is not None and self.search.is_raw else None

    @property
    def _encoding(self) -> str:
        return self.watcher.info.parameter_status("server_encoding") or ""

    def _can_stream_raw(self, error: OperatorError) -> bool:
        """Say whether the source ended the stream at a text that it cannot convert, and other means may find it."""
        is_conversion = isinstance(error, DataRefused) and error.sqlstate in CONVERSION_STATES and error.table is None
        return is_conversion and self.raw_encoding is None and find_codec(self._encoding) is not None

    def _stream_raw(self) -> None:
        """Let the next run take texts as the source stores them, up to where it stands now."""
        with translated("source"):
            self.search = Search(_RAW_TRANSACTIONS, read_end_of_wal(self.watcher), is_raw=True)
        self.log.info("unconvertible_text_sought", path="listen", lsn=str(self.search.until))

    def _seek(self, error: DataRefused, failed: Changes, key: KeyText | None) -> None:
        """Go on with the search for a refused row's transaction. Raises the error, located, once it is found."""
        search = narrow(self.search, failed)
        if search is not None:
            self.search = search
            self.log.info(
                "refused_row_sought", path="listen", table=error.table, transactions=search.transactions,
                lsn=str(search.until),
            )  # fmt: skip
            return
        if failed.commit_lsn is None:
            raise error
        located = error.at(str(failed.commit_lsn), has_key=key is not None)
        with translated("target"):
            self.streams.save_refused(error.table or "-", key, failed.commit_lsn, located)
        raise located from error

    def _conclude(self, *, has_more: bool) -> Outcome:
        """Say how the session ended. has_more: it ended for the next one to go on."""
        self.search = None
        if self.stop.is_set():
            return Outcome.DONE
        if has_more:
            return Outcome.AGAIN
        # A bounded stream has reached its end; what changed without a message is made up for now.
        found = self._look_for_changes()
        for table in found.redefined:
            self._mark_stale(table)
        return Outcome.AGAIN if found.redefined or found.new else Outcome.DONE

    def _mark_stale(self, table: str) -> None:
        with translated("target"):
            self.streams.mark_stale(table)

    @contextmanager
    def _start_stream(self, position: Lsn) -> Iterator[WalSender]:
        """Start the stream, waiting for the server to notice that an earlier reader of the slot is gone."""

        def start() -> WalSender:
            sender = WalSender.open(self.access.conninfo, timeout_s=self.access.connect_timeout_s)
            try:
                sender.start(
                    self.settings.slot_name,
                    publications=[self.settings.publication_name],
                    at=position,
                    binary=self._streams_binary(),
                    is_raw=self.raw_encoding is not None,
                )
            except BaseException:
                sender.close()
                raise
            return sender

        sender = self.session.outlast(start, self.settings.slot_name)
        try:
            self.log.info("stream_started", path="listen", lsn=str(position), tables=len(self.tables))
            yield sender
        finally:
            sender.close()

    def _open_loader(self, lookup: Lookup) -> StreamLoader:
        connection = self.session.connect_target()
        self.session.stack.enter_context(closing(connection))
        control = Control(connection, self.streams.schema, self.streams.pipeline)
        wait_s = self.settings.lock_wait.total_seconds()
        with translated("target"):
            control.take_lock(STREAM_LOCK, wait_s)
            replica = take_replica_role(connection)
            wait_ms = max(1, int(wait_s * 1000))
            connection.execute("SELECT set_config('lock_timeout', %s, false)", [f"{wait_ms}ms"])
            # A batch is staged in temporary tables: with PostgreSQL's 8 MB most of it would go through files.
            # A server that a pooler hands on has had some already, and keeps what it has.
            with suppress(psycopg.errors.InvalidParameterValue):
                connection.execute("SET temp_buffers = '64MB'")
            # What changes was in use just now, and is looked up in memory or on flash. With PostgreSQL's 4, meant for
            # turning disks, a large batch would read a whole table in order, each time.
            connection.execute("SET random_page_cost = 1.1")
        loader = StreamLoader(
            connection,
            StreamControl(connection, self.streams.schema, self.streams.pipeline, self.streams.epoch),
            control,
            lookup,
            self.session.result.execution_id,
            replica=replica,
            digest=self.started.digest,
            binary=self._streams_binary(),
        )
        with translated("source"):
            spellings = spell_keys(self.watcher, [table.job for table in self.tables.values()])
        for name, table in self.tables.items():
            loader.introduce(table.job, VERSION, table.fitted)
            loader.follow_sequences(name, table.sequences)
            lookup.introduce(name, VERSION, table.job.mapping, table.shape, spellings[name])
        # What a killed listener had left to its end.
        loader.move_sequences()
        return loader

    def _streams_binary(self) -> bool:
        """Say whether every table can take its cells in binary: one stream has one format.

        The key of a row that is sought is needed as text.
        """
        is_free = self.search is None and not self.session.memory.needs_text
        return is_free and all(map(streams_binary, self.tables.values()))

    def _index_members(self) -> dict[int, str]:
        """Return the table of every relation that the stream may speak of."""
        return {oid: name for name, table in self.tables.items() for oid in list_members(table)}

    def _forget_members(self, name: str) -> None:
        """Forget which relations made a table up: one of them may bear another table's name by now."""
        before = self.tables.get(name)
        for oid in () if before is None else list_members(before):
            if self.by_oid.get(oid) == name:
                del self.by_oid[oid]

    def _find_changed(self, connection: Connection) -> Changed:
        """Return the tables whose definition is not the one that was copied, those that a resync asks for, new ones.

        Looked into are only tables of which the catalog's rows were written anew since the last look.
        """
        with translated("target"):
            known = self.streams.read_tables()
            parked = self.streams.read_parked().keys()
        inventory = take_writable_inventory(self.session, connection)
        chosen = {one.table: one for one in inventory.tables if one.kind in (TABLE, PARTITIONED)}
        live = {name: table for name, table in dict(self.tables).items() if not self._is_joining(name)}
        redefined = {name for name in live if name not in chosen or (name in known and known[name].is_stale)}
        redefined |= self._find_redefined(connection, {name: live[name] for name in live.keys() - redefined})
        new = {name for name in chosen.keys() - live.keys() - parked if self._is_left(name)}
        new -= self._find_unlogged(connection, inventory)
        if redefined or new:
            # A partition may have been attached to another table that has a stream, or detached.
            overlaps = find_overlaps(connection, self.settings.publication_name, list(chosen.values()))
            redefined |= overlaps.keys() & live.keys()
            new -= overlaps.keys()
        return Changed(frozenset(redefined), frozenset(new))

    def _find_unlogged(self, connection: Connection, inventory: Inventory) -> set[str]:
        """Return which of the tables that had no stream have none still."""
        oids = {name: inventory.present[name] for name in self.session.memory.skipped & inventory.present.keys()}
        if not oids:
            return set()
        relations = read_relations(connection, oids.values())
        return {name for name, oid in oids.items() if oid in relations and relations[oid].persistence != LOGGED}

    def _is_left(self, table: str) -> bool:
        """Say whether nobody has a table in hand: it is new, or is back."""
        return (self.joiner is not None and self.joiner.has_left(table)) or not self._is_joining(table)

    def _find_redefined(self, connection: Connection, live: Mapping[str, StreamedTable]) -> set[str]:
        by_oid = {table.job.mapping.relation.oid: name for name, table in live.items()}
        signatures = read_signatures(connection, self.settings.publication_name, list(by_oid))
        touched = {by_oid[oid] for oid in signatures.find_changed(self.signatures) if oid in by_oid}
        records = {name: live[name].job.record for name in touched}
        looked_into = [live[name].chosen for name in sorted(touched)]
        target, mask_key = self.streams.connection, self.access.mask_key
        jobs = prepare_jobs(connection, looked_into, records, mask_key=mask_key, lenient=True, target=target)
        memberships = self.session.read_memberships(connection, jobs)
        self.signatures = signatures
        return {
            name
            for name in touched
            if name not in jobs
            or jobs[name].mapping.relation.persistence != LOGGED
            or is_redefined(self.started.definitions[name], define(jobs[name], memberships))
        }

    def _is_joining(self, table: str) -> bool:
        is_waiting = self.joiner is not None and self.joiner.is_joining(table)
        return is_waiting or not self.collector.is_live(table)

    def _look_for_changes(self) -> Changed:
        with translated("source"):
            return self._find_changed(self.watcher)

    def _tell(self, landed: Landed, duration_s: float) -> None:
        """Log a batch that landed, and count it."""
        for table, figures in landed.figures.items():
            self.session.result.rows[table] = self.session.result.rows.get(table, 0) + figures.rows_extracted
            self.log.debug("batch_loaded", table=table, path="listen", lsn=str(landed.position), **figures.counts())
        for table, rows in landed.corrected.items():
            self.log.warning("refused_rows_corrected", table=table, path="listen", rows=rows)
        self.session.result.transactions += landed.transactions
        self.renew()
        self.summary.add(landed, duration_s)
        if landed.figures:
            self.log.debug(
                "position_confirmed",
                path="listen",
                lsn=str(landed.position),
                transactions=landed.transactions,
                rows_extracted=sum(figures.rows_extracted for figures in landed.figures.values()),
                duration_seconds=round(duration_s, 3),
            )
