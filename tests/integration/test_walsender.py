"""The connection to the walsender: it stays up, says only what is safe, and leaves nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from psycopg import sql

from replicator.capture.envelope import Keepalive
from replicator.capture.pgoutput import Commit, Insert, decode
from replicator.capture.walsender import WalSender, choose_interval, quote_text
from replicator.db import PINNED
from replicator.errors import LockHeldError, OperatorError, PassingError
from replicator.position import Lsn
from tests.conftest import MakeCluster, SharedServers
from tests.fault_proxy import FaultProxy
from tests.servers import Server
from tests.wait import wait_until

PUBLICATION = "p\"ub, 'one' \\ %s"


class Source:
    """A database with a published and an unpublished table, and a slot whose name no other test has."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.database = server.create_database(server.invent_name("streamed"))
        self.slot = f"slot_of_{self.database}"
        self.session = server.connect(self.database)
        self.session.execute("create table t (id int primary key, note text); create table unpublished (id int)")
        self.session.execute(sql.SQL("create publication {} for table t").format(sql.Identifier(PUBLICATION)))

    def open(self, *, port: int | None = None, user: str = "streamer", silence_s: float = 60.0) -> WalSender:
        if port is None:
            return WalSender.open(self.server.admin_dsn(self.database), silence_s=silence_s)
        dsn = self.server.dsn(self.database, user=user, password="secret", port=port)
        return WalSender.open(dsn, silence_s=silence_s)

    def stream(self, *, port: int | None = None, silence_s: float = 60.0) -> WalSender:
        """Open a stream from the slot, which is made if there is none."""
        if self.slot_fact("slot_name") is None:
            with self.open() as sender:
                sender.create_slot(self.slot)
        sender = self.open(port=port, silence_s=silence_s)
        sender.start(self.slot, publications=[PUBLICATION])
        return sender

    def slot_fact(self, column: str) -> str | None:
        query = sql.SQL("select {}::text from pg_replication_slots where slot_name = {}")
        rows = self.session.execute(query.format(sql.Identifier(column), self.slot)).fetchall()
        return rows[0][0] if rows else None

    def confirmed(self) -> Lsn:
        return Lsn.parse(self.slot_fact("confirmed_flush_lsn") or "")

    def insert(self, first: int, last: int) -> None:
        self.session.execute("insert into t select n, 'x' from generate_series(%s::int, %s::int) n", [first, last])

    def wal_end(self) -> Lsn:
        row = self.session.execute("select pg_current_wal_insert_lsn()::text").fetchone()
        assert row
        return Lsn.parse(row[0])

    def close(self) -> None:
        self.session.close()
        self.server.drop_database(self.database)


@pytest.fixture(params=[15, 18])
def version(request: pytest.FixtureRequest) -> int:
    chosen: int = request.param
    return chosen


@pytest.fixture
def source(version: int, shared_servers: SharedServers) -> Iterator[Source]:
    source = Source(shared_servers.get("source", version))
    yield source
    source.close()


@pytest.fixture
def own_source(version: int, make_cluster: MakeCluster) -> Iterator[Source]:
    """Return a source on a server of the test's own, whose patience with a silent client is 2 s."""
    source = Source(make_cluster(version, settings={"wal_sender_timeout": "2s"}))
    yield source
    source.session.close()


def read_until(sender: WalSender, reached: Callable[[], bool], timeout_s: float = 20.0) -> list[bytes | Keepalive]:
    items: list[bytes | Keepalive] = []
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, f"not reached; received {len(items)} items"
        items += sender.receive(0.1)
    return items


def repeat(call: Callable[[float], object], timeout_s: float = 20.0) -> None:
    """Call with a tenth of a second again and again, until it raises or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        call(0.1)


def read_transactions(sender: WalSender, wanted: int, timeout_s: float = 20.0) -> list[tuple[list[int], Lsn]]:
    """Read this many transactions, or more if they come along; of each the inserted ids and its end."""
    transactions: list[tuple[list[int], Lsn]] = []
    ids: list[int] = []
    deadline = time.monotonic() + timeout_s
    while len(transactions) < wanted:
        assert time.monotonic() < deadline, f"received {len(transactions)} of {wanted} transactions"
        for item in sender.receive(1):
            message = None if isinstance(item, Keepalive) else decode(item)
            if isinstance(message, Insert) and isinstance(message.new[0], bytes):
                ids.append(int(message.new[0]))
            elif isinstance(message, Commit):
                transactions.append((ids, message.end_lsn))
                ids = []
    return transactions


def read_transaction(sender: WalSender) -> tuple[list[int], Lsn]:
    """Read the one transaction that there is."""
    (transaction,) = read_transactions(sender, 1)
    return transaction


def test_a_stream_brings_every_change_and_the_slot_follows_what_is_confirmed(source: Source) -> None:
    with source.stream() as sender:
        source.insert(1, 1000)
        ids, first_end = read_transaction(sender)
        assert ids == list(range(1, 1001))
        before = source.confirmed()
        assert before < first_end
        source.insert(1001, 1010)
        ids, second_end = read_transaction(sender)
        assert ids == list(range(1001, 1011))
        sender.confirm(first_end)
        sender.confirm(Lsn(1))
        read_until(sender, lambda: source.confirmed() == first_end)
        assert sender.confirmed == first_end
        assert sender.received >= second_end
        assert abs((sender.server_time_s or 0) - time.time()) < 60
    wait_until(lambda: source.slot_fact("active") == "false", what="the slot is free")
    with source.stream() as sender:
        assert read_transaction(sender) == (list(range(1001, 1011)), second_end)


def test_a_stream_begins_where_it_is_told(source: Source) -> None:
    with source.stream() as sender:
        source.insert(1, 1)
        source.insert(2, 2)
        (_, end), _ = read_transactions(sender, 2)
        assert sender.stop()
    with source.open() as sender:
        sender.start(source.slot, publications=[PUBLICATION], at=end)
        assert sender.confirmed == end
        assert read_transaction(sender)[0] == [2]


def test_what_was_confirmed_just_before_the_stop_is_known_to_the_source(source: Source) -> None:
    """S17: a run shorter than any interval."""
    with source.stream() as sender:
        source.insert(1, 10)
        _, end = read_transaction(sender)
        sender.confirm(end)
        assert sender.stop() is True
    assert (source.confirmed(), source.slot_fact("active")) == (end, "false")


def test_an_unconfirmed_change_is_sent_again(source: Source) -> None:
    """B1: receipt confirms nothing."""
    for _ in range(2):
        with source.stream() as sender:
            if source.session.execute("select from t").rowcount == 0:
                source.insert(1, 3)
            assert read_transaction(sender)[0] == [1, 2, 3]
            assert sender.stop()


def test_stopping_amid_a_large_transaction_frees_the_slot(source: Source) -> None:
    with source.stream() as sender:
        source.insert(1, 200_000)
        assert sender.receive(20)
        begun = time.monotonic()
        sender.stop(timeout_s=3)
        assert time.monotonic() - begun < 4
        wait_until(lambda: source.slot_fact("active") == "false", what="the slot is free")


def test_stopping_what_never_streamed_or_is_gone_says_no(source: Source) -> None:
    assert source.open().stop() is False
    sender = source.stream()
    source.session.execute("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s",
                           [source.slot])  # fmt: skip
    wait_until(lambda: source.slot_fact("active") == "false", what="the walsender is gone")
    assert sender.stop() is False


def test_a_slot_in_use_and_one_that_is_missing_are_told_apart(source: Source) -> None:
    with source.stream():
        with source.open() as second, pytest.raises(LockHeldError) as held:
            second.start(source.slot, publications=[PUBLICATION])
        with source.open() as second, pytest.raises(LockHeldError):
            second.drop_slot(source.slot)
    assert (held.value.id, held.value.sqlstate) == ("slot_active", "55006")
    wait_until(lambda: source.slot_fact("active") == "false", what="the slot is free")
    with source.open() as sender:
        sender.drop_slot(source.slot)
        with pytest.raises(OperatorError) as missing:
            sender.drop_slot(source.slot)
        assert missing.value.id == "slot_missing"
        with pytest.raises(OperatorError) as missing:
            sender.start(source.slot, publications=[PUBLICATION])
        assert missing.value.id == "slot_missing"


def test_a_taken_name_is_refused(source: Source) -> None:
    with source.stream(), source.open() as sender, pytest.raises(OperatorError) as taken:
        sender.create_slot(source.slot)
    assert taken.value.sqlstate == "42710"


def test_a_hostile_slot_name_is_a_name(source: Source) -> None:
    with source.open() as sender:
        with pytest.raises(OperatorError):
            sender.create_slot('x" LOGICAL pgoutput; DROP_REPLICATION_SLOT "y')
        with pytest.raises(OperatorError):
            sender.drop_slot('x"; select 1; --')
        assert sender.identify().database == source.database


def test_a_missing_publication_stops_the_stream_with_its_name(source: Source, version: int) -> None:
    """S20: up to 17 the server stops with an error, from 18 on it only warns and leaves the changes out."""
    source.session.execute(
        sql.SQL("alter database {} set client_min_messages = error").format(sql.Identifier(source.database))
    )
    with source.stream() as sender:
        sender.stop()
    source.session.execute(sql.SQL("drop publication {}").format(sql.Identifier(PUBLICATION)))
    with source.stream() as sender:
        source.insert(1, 1)
        with pytest.raises(OperatorError) as lost:
            read_until(sender, lambda: False)
        assert lost.value.id == "publication_missing"
        assert lost.value.sqlstate == ("42704" if version < 18 else "55000")
        assert PUBLICATION in lost.value.what


def test_a_slot_of_a_new_server_survives_failover_and_a_temporary_one_dies(source: Source, version: int) -> None:
    with source.open() as sender:
        made = sender.create_slot(source.slot)
        assert (made.name, made.snapshot) == (source.slot, None)
        assert made.consistent_point == source.confirmed()
        sender.create_slot(f"{source.slot}_tmp", temporary=True)
        rows = source.session.execute("select slot_name from pg_replication_slots where temporary").fetchall()
        assert (f"{source.slot}_tmp",) in rows
    if version >= 17:
        assert source.slot_fact("failover") == "true"
    query = "select from pg_replication_slots where temporary and database = current_database()"
    wait_until(lambda: source.session.execute(query).rowcount == 0, what="the temporary slot is gone")


def test_an_exported_snapshot_and_the_stream_meet_without_gap_or_overlap(source: Source) -> None:
    source.insert(1, 3)
    with source.open() as sender:
        made = sender.create_slot(source.slot, export=True)
        source.insert(4, 6)
        with source.server.connect(source.database) as reader:
            reader.execute("begin isolation level repeatable read")
            assert made.snapshot
            reader.execute(sql.SQL("set transaction snapshot {}").format(made.snapshot))
            assert reader.execute("select array_agg(id order by id) from t").fetchone() == ([1, 2, 3],)
        sender.start(source.slot, publications=[PUBLICATION], at=made.consistent_point)
        assert read_transaction(sender)[0] == [4, 5, 6]


def test_the_cluster_names_itself(source: Source) -> None:
    with source.open() as sender:
        system = sender.identify()
    query = "select system_identifier::text, (select timeline_id from pg_control_checkpoint()) from pg_control_system()"
    row = source.session.execute(query).fetchone()
    assert (system.identifier, system.timeline) == row
    assert system.database == source.database
    assert 0 < system.position <= source.wal_end()


def test_the_session_is_pinned_whatever_the_database_says(source: Source) -> None:
    """B19, V4: the walsender writes values as text with these settings."""
    name = sql.Identifier(source.database)
    for setting in ("datestyle = 'German, DMY'", "extra_float_digits = 0", "bytea_output = escape",
                    "intervalstyle = sql_standard", "search_path = public"):  # fmt: skip
        source.session.execute(sql.SQL("alter database {} set " + setting).format(name))
    source.session.execute("create table v (a float8, b date, c bytea, d interval)")
    source.session.execute(sql.SQL("alter publication {} add table v").format(sql.Identifier(PUBLICATION)))
    with source.stream() as sender:
        source.session.execute("insert into v values (0.30000000000000004, '2026-02-01', '\\x00ff', '1 day 02:03:04')")
        inserts = [
            message
            for item in read_until(sender, lambda: sender.received >= source.wal_end())
            if isinstance(item, bytes) and isinstance(message := decode(item), Insert)
        ]
    assert inserts[0].new == (b"0.30000000000000004", b"2026-02-01", b"\\x00ff", b"1 day 02:03:04")
    with source.open() as sender:
        query = sql.SQL("select current_setting({}, true) as now")
        now = {name: sender._connection.execute(query.format(sql.Literal(name))).fetchone() for name in PINNED}
    known = {name: row["now"] for name, row in now.items() if row and row["now"] is not None}
    assert known == {name: PINNED[name] for name in known}
    assert len(known) >= len(PINNED) - 1


def test_messages_of_unpublished_tables_only_move_the_end_of_the_wal(source: Source) -> None:
    """S16: what the keepalive says may be confirmed when nothing is in hand."""
    with source.stream() as sender:
        source.session.execute("insert into unpublished select generate_series(1, 1000)")
        wanted = source.wal_end()
        items = read_until(sender, lambda: sender.received >= wanted)
        assert not [item for item in items if isinstance(item, bytes) and isinstance(decode(item), Insert)]
        sender.confirm(sender.received)
        read_until(sender, lambda: source.confirmed() >= wanted)


def test_a_confirmation_from_another_thread_is_said_while_the_reading_thread_waits(source: Source) -> None:
    with source.stream() as sender:
        source.insert(1, 1)
        _, end = read_transaction(sender)

        def load() -> None:
            sender.confirm(end)
            wait_until(lambda: source.confirmed() == end, what="the server knows")
            sender.wake()

        loader = threading.Thread(target=load)
        loader.start()
        begun = time.monotonic()
        sender.hold(60)
        assert time.monotonic() - begun < 20
        loader.join()


def test_wake_ends_a_wait_now_or_the_next_one(source: Source) -> None:
    with source.stream() as sender:
        read_until(sender, lambda: sender.received > 0)
        for wait in (sender.receive, sender.hold):
            begun = time.monotonic()
            sender.wake()
            wait(30)
            threading.Timer(0.2, sender.wake).start()
            wait(30)
            assert time.monotonic() - begun < 10


@pytest.mark.parametrize("way", ["hold", "receive"])
def test_a_consumer_that_does_nothing_for_five_seconds_stays_connected(own_source: Source, way: str) -> None:
    """S21: the server's patience is 2 s; the reading thread speaks, whatever the loader does."""
    with own_source.stream() as sender:
        own_source.insert(1, 100_000)
        pid = own_source.slot_fact("active_pid")
        taken: list[bytes | Keepalive] = []
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if way == "hold":
                sender.hold(end - time.monotonic())
            else:
                taken += sender.receive(0.5)
        assert own_source.slot_fact("active_pid") == pid
        while not any(isinstance(item, bytes) and item[:1] == b"C" for item in taken):
            taken += sender.receive(10)
        assert sum(isinstance(item, bytes) and item[:1] == b"I" for item in taken) == 100_000
        assert own_source.slot_fact("active_pid") == pid


def test_a_client_that_says_nothing_is_cut_off_by_this_server(own_source: Source) -> None:
    """The other half of the proof: without a word for 10 s the connection does not last."""
    with own_source.stream() as sender:
        own_source.insert(1, 10)
        wait_until(lambda: own_source.slot_fact("active") == "false", what="the server lost patience")
        with pytest.raises(PassingError):
            read_until(sender, lambda: False)


def test_a_source_stops_fast_while_the_stream_is_idle_and_confirmed(own_source: Source) -> None:
    """S18."""
    ended: list[BaseException] = []

    def follow(sender: WalSender) -> None:
        try:
            while True:
                for item in sender.receive(1):
                    if isinstance(item, Keepalive):
                        sender.confirm(item.wal_end)
        except PassingError as error:
            ended.append(error)

    with own_source.stream() as sender:
        thread = threading.Thread(target=follow, args=(sender,))
        thread.start()
        own_source.session.execute("insert into unpublished select generate_series(1, 1000)")
        own_source.session.close()
        begun = time.monotonic()
        own_source.server.stop("fast", timeout_s=30)  # type: ignore[attr-defined]
        took_s = time.monotonic() - begun
        thread.join(10)
    assert took_s < 5
    (error,) = ended
    assert isinstance(error, PassingError)
    assert error.id == "connection_lost"


def test_a_server_that_asks_again_and_again_is_answered_at_a_measured_pace(own_source: Source) -> None:
    """A server that shuts down while work is in hand asks after every answer: 100 times a second is enough."""
    with own_source.stream() as sender:
        own_source.insert(1, 10)
        sender.confirm(read_transaction(sender)[1])
        own_source.insert(11, 20)
        read_transaction(sender)
        own_source.session.close()
        stopping = threading.Thread(target=own_source.server.stop, args=("fast", 60))  # type: ignore[attr-defined]
        stopping.start()
        asked = 0
        end = time.monotonic() + 2
        while time.monotonic() < end:
            asked += sum(isinstance(item, Keepalive) and item.reply_requested for item in sender.receive(0.1))
        sender.confirm(sender.received)
        with pytest.raises(PassingError):
            read_until(sender, lambda: False)
        stopping.join()
    assert 1 <= asked <= 220


def test_a_question_is_answered_at_once_and_once(source: Source) -> None:
    with source.stream() as sender:
        read_until(sender, lambda: sender.received > 0)
        # A server that has just begun may ask by itself, once.
        while sender.receive(0.5):
            pass
        asked_at = time.monotonic()
        sender._asked = True
        sender.receive(0.2)
        answered_at = sender._spoke_at
        assert answered_at - asked_at < 0.2
        sender.receive(1)
        assert sender._spoke_at == answered_at


def test_a_killed_source_is_a_passing_error(own_source: Source) -> None:
    with own_source.stream() as sender:
        read_until(sender, lambda: sender.received > 0)
        own_source.server.kill()  # type: ignore[attr-defined]
        with pytest.raises(PassingError):
            read_until(sender, lambda: False)


@pytest.fixture
def proxied(source: Source) -> Iterator[tuple[Source, FaultProxy]]:
    source.session.execute("create role streamer login replication password 'secret'")
    with FaultProxy(source.server.host, source.server.port) as proxy:
        yield source, proxy
    source.session.execute("drop role streamer")


@pytest.mark.parametrize("call", ["receive", "hold"])
def test_a_reset_connection_is_a_passing_error(proxied: tuple[Source, FaultProxy], call: str) -> None:
    source, proxy = proxied
    with source.stream(port=proxy.port) as sender:
        source.insert(1, 1)
        read_transaction(sender)
        proxy.reset()
        with pytest.raises(PassingError) as lost:
            repeat(getattr(sender, call))
        assert lost.value.id == "connection_lost"
    wait_until(lambda: source.slot_fact("active") == "false", what="the slot is free")


def test_a_silent_network_is_noticed(proxied: tuple[Source, FaultProxy]) -> None:
    source, proxy = proxied
    with source.stream(port=proxy.port, silence_s=2) as sender:
        read_until(sender, lambda: sender.received > 0)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            sender.receive(0.5)
        proxy.black_hole()
        begun = time.monotonic()
        with pytest.raises(PassingError) as lost:
            read_until(sender, lambda: False)
        assert 1 < time.monotonic() - begun < 10
        assert "silent" in (lost.value.why or "")
        proxy.heal()


def test_one_byte_packets_change_nothing(proxied: tuple[Source, FaultProxy]) -> None:
    source, proxy = proxied
    with source.stream(port=proxy.port) as sender:
        proxy.trickle()
        source.insert(1, 20)
        ids, end = read_transaction(sender)
        sender.confirm(end)
        assert sender.stop()
    assert (ids, source.confirmed()) == (list(range(1, 21)), end)


def test_a_role_that_may_not_replicate_is_not_retried(proxied: tuple[Source, FaultProxy]) -> None:
    source, proxy = proxied
    source.session.execute("alter role streamer noreplication")
    with pytest.raises(OperatorError) as refused:
        source.open(port=proxy.port)
    assert refused.value.id == "no_connection"


@pytest.mark.parametrize(("timeout_s", "interval_s"), [(0, 10), (60, 10), (6, 2), (0.3, 0.1)])
def test_the_server_hears_three_times_within_its_patience(timeout_s: float, interval_s: float) -> None:
    assert choose_interval(timeout_s) == pytest.approx(interval_s)


def test_texts_are_quoted_as_the_replication_grammar_reads_them() -> None:
    assert quote_text("a'b\\c").as_string() == "'a''b\\c'"
