"""Speaks to a walsender: slots, the stream and its feedback. All of COPY_BOTH is here.

psycopg has no replication API, but it starts a stream by `execute`, and libpq's own calls then carry it
(PostgreSQL documentation, 55.4 "Streaming Replication Protocol"). One thread, the reading thread, calls everything;
`confirm` and `wake` may be called from any.

    caller                  reading thread                       server
    receive / hold ───────► answers keepalives, says where it is ──────► moves confirmed_flush_lsn, keeps us connected
    confirm(position) ────► is said within `_PAUSE_S`
    stop ─────────────────► says it once more, CopyDone ───────────────► CopyDone, slot free
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg
from psycopg import sql
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus

from replicator.capture.envelope import EPOCH_OFFSET_S, Keepalive, encode_status, read_envelope, read_header
from replicator.db import Connection, connect, translate, translated
from replicator.errors import LockHeldError, OperatorError, PassingError, ReplicatorError
from replicator.pooler import is_pooled, no_stream_through_pooler
from replicator.position import Lsn

_STANDBY = sql.SQL("select pg_catalog.pg_is_in_recovery() as standby")
_PATIENCE = sql.SQL("select setting from pg_catalog.pg_settings where name = 'wal_sender_timeout'")
_UNSET = Lsn(0)
_NO_ENCODING = "SQL_ASCII"
_IN_USE, _TAKEN, _UNDEFINED, _NO_FREE_SLOT = "55006", "42710", "42704", "53400"
_MAKES_SLOT = "ReplicationSlotCreate"
_MAX_INTERVAL_S = 10.0
# A server that shuts down asks again after each answer; so an answer that has nothing new waits a little.
_PAUSE_S = 0.01
# libpq may hold bytes that it has decrypted already, which no select() can see.
_ENCRYPTED_TICK_S = 0.05
_BATCH_BYTES = 1 << 20
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL
_PARENTHESES_SINCE = 150000
_FAILOVER_SINCE = 170000
_MESSAGES_SINCE = 140000


class System(NamedTuple):
    """Which cluster this is and how far its WAL has been flushed."""

    identifier: str
    timeline: int
    position: Lsn
    database: str


class NewSlot(NamedTuple):
    """A slot just made. Its stream begins at `consistent_point`, and `snapshot` shows all that was committed before.

    The snapshot can be imported until this connection's next command.
    """

    name: str
    consistent_point: Lsn
    snapshot: str | None


class WalSender:
    """One replication connection to the source's database.

    silence_s: after half of it without a word the server is asked for one, after all of it the connection is lost.
    """

    def __init__(self, connection: Connection, *, silence_s: float = 60.0) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._silence_s = silence_s
        self._interval_s = _MAX_INTERVAL_S
        self._lock = threading.Lock()
        self._confirmed = self._told = self._received = _UNSET
        self._clock_us: int | None = None
        self._publications = ""
        self._missing_state: str | None = None
        self._asked = self._pinged = self._woken = self._ended = False
        self._spoke_at = self._silent_s = 0.0
        self._poked, self._poker = socket.socketpair()
        self._poll = select.poll()
        self._poll.register(self._poked, select.POLLIN)
        for end in (self._poked, self._poker):
            end.setblocking(False)

    @classmethod
    def open(cls, conninfo: str, *, timeout_s: float = 10.0, silence_s: float = 60.0) -> Self:
        """Connect with a pinned session. Raises our errors as `db.connect` does, and where a pooler is in between."""
        connection = connect(conninfo, side="source", timeout_s=timeout_s, replication=True)
        if is_pooled(connection):
            try:
                # A pooler that ignores the parameter `replication` leads to a server that knows no such command.
                connection.execute("IDENTIFY_SYSTEM")
            except psycopg.Error as error:
                connection.close()
                raise no_stream_through_pooler() from error
        return cls(connection, silence_s=silence_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def confirmed(self) -> Lsn:
        """Return the position that was confirmed last."""
        return self._confirmed

    @property
    def received(self) -> Lsn:
        """Return how far the server's walsender has come, by the last that was received."""
        return self._received

    @property
    def server_time_s(self) -> float | None:
        """Return the server's clock when it sent the last that was received, in seconds since 1970."""
        return None if self._clock_us is None else self._clock_us / 1e6 + EPOCH_OFFSET_S

    @property
    def encoding(self) -> str:
        """Return the encoding of the source's database, as PostgreSQL calls it."""
        return (self._pgconn.parameter_status(b"server_encoding") or b"").decode()

    # ------------------------------------------------------------------------------------- before the stream

    def identify(self) -> System:
        """Ask which cluster this is."""
        row = self._ask(sql.SQL("IDENTIFY_SYSTEM"))
        return System(row["systemid"], int(row["timeline"]), Lsn.parse(row["xlogpos"]), row["dbname"])

    def create_slot(
        self, name: str, *, temporary: bool = False, export: bool = False, failover: bool = True
    ) -> NewSlot:
        """Create a slot for pgoutput; waits for every transaction that is open now to end.

        export: also export a snapshot. failover: let standbys keep the slot, where the server can (17 and later, a
        primary). Raises LockHeldError when the name is taken, OperatorError when no slot is free.
        """
        options = {"snapshot": "export" if export else "nothing"}
        if failover and not temporary and self._can_fail_over():
            options["failover"] = "true"
        words: list[sql.Composable] = [sql.SQL("CREATE_REPLICATION_SLOT"), sql.Identifier(name)]
        words += [sql.SQL("TEMPORARY LOGICAL pgoutput" if temporary else "LOGICAL pgoutput")]
        if self._version >= _PARENTHESES_SINCE:
            words.append(sql.SQL("({})").format(_list_options(options)))
        else:
            words.append(sql.SQL("EXPORT_SNAPSHOT" if export else "NOEXPORT_SNAPSHOT"))
        row = self._ask(sql.SQL(" ").join(words), slot=name)
        return NewSlot(row["slot_name"], Lsn.parse(row["consistent_point"]), row["snapshot_name"])

    def drop_slot(self, name: str) -> None:
        """Drop a slot. Raises LockHeldError while another session uses it, OperatorError when there is none."""
        with self._explained(name):
            self._connection.execute(sql.SQL("DROP_REPLICATION_SLOT {}").format(sql.Identifier(name)))

    @property
    def _version(self) -> int:
        return self._pgconn.server_version

    def _can_fail_over(self) -> bool:
        if self._version < _FAILOVER_SINCE:
            return False
        return self._ask(_STANDBY)["standby"] is False

    def _ask(self, command: sql.SQL | sql.Composed, *, slot: str = "") -> dict[str, Any]:
        with self._explained(slot):
            row = self._connection.execute(command).fetchone()
        assert row is not None
        return row

    @contextlib.contextmanager
    def _explained(self, slot: str) -> Iterator[None]:
        """Turn PostgreSQL's errors inside the block into ours."""
        try:
            yield
        except psycopg.Error as error:
            raise _explain(error, slot) from error

    # -------------------------------------------------------------------------------------------- the stream

    def start(
        self,
        slot: str,
        *,
        publications: Sequence[str],
        at: Lsn = _UNSET,
        messages: bool = True,
        binary: bool = False,
        is_raw: bool = False,
    ) -> None:
        """Start the stream at the slot's confirmed position, or at `at` if that is later.

        is_raw: texts come as the bytes that the source stores. So they always do from a database without encoding
        (SQL_ASCII): the server would check them, and end the stream at the first that is not UTF-8.
        `at` counts as confirmed: all before it is in the target. Raises LockHeldError while another session uses the
        slot, OperatorError when there is none or its WAL is gone. A missing publication shows at the first change, in
        `receive`.
        """
        options = {
            "proto_version": "1",
            "publication_names": ",".join(sql.Identifier(name).as_string() for name in publications),
        }
        if self._version >= _MESSAGES_SINCE:
            options |= {"messages": str(messages).lower(), "binary": str(binary).lower()}
        self._connection.execute("set client_min_messages = warning")
        self._connection.add_notice_handler(self._note_warning)
        timeout = self._ask(_PATIENCE)
        self._interval_s = choose_interval(int(timeout["setting"]) / 1000)
        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL {} ({})").format(
            sql.Identifier(slot), sql.SQL(str(at)), _list_options(options)
        )
        # Text for the server is encoded ahead: psycopg takes a session in SQL_ASCII to know nothing else.
        started = command.as_bytes(self._connection)
        with self._explained(slot):
            if is_raw or self.encoding == _NO_ENCODING:
                self._connection.execute("set client_encoding = 'SQL_ASCII'")
            self._connection.execute(started)
        self._publications = ", ".join(publications)
        self._confirmed = self._received = at
        self._spoke_at = time.monotonic()

    def receive(self, timeout_s: float) -> list[bytes | Keepalive]:
        """Return what has arrived, in order: payloads of the output plugin, and keepalives, answered already.

        At most about 1 MiB, or one larger message. Empty after `timeout_s` or `wake`. Raises PassingError when the
        connection is lost or the source stops, OperatorError when the server ends the stream with an error.
        """
        deadline = time.monotonic() + timeout_s
        with translated("source"):
            while not (items := self._read()):
                due = self._speak()
                if self._is_over(deadline):
                    break
                self._wait(min(deadline, due), read=True)
            self._speak()
        return items

    def hold(self, timeout_s: float) -> None:
        """Stay connected for `timeout_s` or until `wake`, and take nothing: for when memory is full.

        The server waits with what it has yet to send; it only needs to hear from us. Raises PassingError when the
        connection is lost.
        """
        deadline = time.monotonic() + timeout_s
        with translated("source"):
            while True:
                due = self._speak()
                if self._is_over(deadline):
                    return
                self._wait(min(deadline, due), read=False)

    def confirm(self, position: Lsn) -> None:
        """Say that all before `position` is committed in the target; the server may forget it. From any thread.

        A position below an earlier one changes nothing.
        """
        with self._lock:
            if position <= self._confirmed:
                return
            self._confirmed = position
        self._poke()

    def ask(self) -> None:
        """Ask the server how far it has come; its keepalive answers. From the reading thread."""
        with translated("source"):
            self._say(reply_requested=True)

    def cancel(self) -> None:
        """End the command that runs, outside of the stream. From any thread."""
        with contextlib.suppress(psycopg.Error):
            self._connection.cancel_safe(timeout=5.0)

    def wake(self) -> None:
        """Make a `receive` or `hold` that waits return now, or the next one at once. From any thread."""
        self._woken = True
        self._poke()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Confirm once more, leave the stream and close. Returns whether the server has acknowledged it in time.

        What arrives meanwhile is dropped: it is unconfirmed, so the slot sends it again. False is no loss: at worst the
        server repeats what was confirmed last.
        """
        try:
            return self._leave(time.monotonic() + timeout_s)
        except (psycopg.Error, OSError):
            return False
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection, as after a kill; the slot is free once the server notices."""
        self._poked.close()
        with self._lock:
            self._poker.close()
        self._connection.close()

    def _read(self) -> list[bytes | Keepalive]:
        """Return the messages that have arrived whole, without waiting. An encrypted one may take a read of its own."""
        items: list[bytes | Keepalive] = []
        left = _BATCH_BYTES
        while left > 0 and not self._ended:
            taken = self._take(items, left)
            if not taken and not self._ended:
                self._pgconn.consume_input()
                taken = self._take(items, left)
            if not taken:
                break
            left -= taken
        if self._missing_state:
            raise self._publication_missing(self._missing_state)
        if self._ended and not items:
            raise self._end()
        return items

    def _note_warning(self, warning: psycopg.errors.Diagnostic) -> None:
        """Note a publication that is missing: from 18 on the server warns and leaves its changes out."""
        if warning.source_function == "LoadPublications":
            self._missing_state = warning.sqlstate

    def _take(self, items: list[bytes | Keepalive], most_bytes: int) -> int:
        """Move the messages that libpq has whole to `items`; return their bytes."""
        get, taken, last = self._pgconn.get_copy_data, 0, None
        while taken < most_bytes:
            size, envelope = get(1)
            if size <= 0:
                self._ended = size < 0
                break
            item = read_envelope(envelope)
            if isinstance(item, Keepalive):
                self._note_keepalive(item)
            else:
                last = envelope
            items.append(item)
            taken += size
        if last is not None:
            _, wal_end, self._clock_us = read_header(last)
            self._received = max(self._received, wal_end)
        return taken

    def _note_keepalive(self, keepalive: Keepalive) -> None:
        self._received = max(self._received, keepalive.wal_end)
        self._clock_us = keepalive.clock_us
        self._asked = self._asked or keepalive.reply_requested

    def _speak(self) -> float:
        """Tell the server where we are if that is due, and return when it will be (`time.monotonic`)."""
        now = time.monotonic()
        has_news = self._asked or self._confirmed > self._told
        due = self._spoke_at + (_PAUSE_S if has_news else self._interval_s)
        if self._silent_s > self._silence_s:
            raise PassingError(
                "the connection to the source was lost",
                why=f"the server has been silent for {self._silence_s:g} s",
                hint="it is tried again by itself; if it lasts, look at the network between here and the source",
            )
        wants_word = self._silent_s > self._silence_s / 2 and not self._pinged
        if now < due and not wants_word:
            return due
        self._say(reply_requested=wants_word)
        self._pinged = self._pinged or wants_word
        return self._spoke_at + self._interval_s

    def _say(self, *, reply_requested: bool = False) -> None:
        confirmed = self._confirmed
        status = encode_status(
            written=max(self._received, confirmed),
            flushed=confirmed,
            clock_us=int((time.time() - EPOCH_OFFSET_S) * 1e6),
            reply_requested=reply_requested,
        )
        self._spoke_at = time.monotonic()
        try:
            if self._pgconn.put_copy_data(status) > 0:
                self._told, self._asked = confirmed, False
            self._pgconn.flush()
        except psycopg.OperationalError:
            # With the connection in order the server has ended the stream, and the next read tells why.
            if self._pgconn.status != ConnStatus.OK:
                raise

    def _is_over(self, deadline: float) -> bool:
        if self._woken:
            self._woken = False
            return True
        return time.monotonic() >= deadline

    def _wait(self, until: float, *, read: bool) -> None:
        """Wait for the server's bytes (`read`), for room to send ours, for a poke, or until then."""
        unsent = self._pgconn.flush() == 1
        server = self._pgconn.socket
        self._poll.register(server, (select.POLLIN if read else 0) | (select.POLLOUT if unsent else 0))
        begun = time.monotonic()
        ready = dict(self._poll.poll(1000 * max(0.0, min(until - begun, self._longest_wait()))))
        if self._poked.fileno() in ready:
            self._drain_pokes()
        if ready.get(server, 0) & ~select.POLLOUT:
            self._pinged, self._silent_s = False, 0.0
        elif read:
            self._silent_s += time.monotonic() - begun
        if not read and ready.get(server, 0) & _BROKEN:
            self._pgconn.consume_input()

    def _longest_wait(self) -> float:
        encrypted = self._pgconn.ssl_in_use
        return _ENCRYPTED_TICK_S if encrypted else self._silence_s / 4

    def _poke(self) -> None:
        """Wake the reading thread out of its select."""
        with self._lock, contextlib.suppress(OSError):
            self._poker.send(b"!")

    def _drain_pokes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._poked.recv(4096):
                pass

    def _end(self) -> ReplicatorError:
        """Return the error for a stream that the server has ended."""
        result = self._pgconn.get_result()
        if result is None or result.status in (ExecStatus.COMMAND_OK, ExecStatus.COPY_IN):
            return PassingError(
                "the source has ended the stream",
                why="it is shutting down",
                hint="it is tried again by itself as soon as the source is back",
            )
        error = error_from_result(result)
        if error.sqlstate == _UNDEFINED:
            return self._publication_missing(_UNDEFINED)
        return translate(error, side="source")

    def _publication_missing(self, sqlstate: str) -> OperatorError:
        return OperatorError(
            f"the source has lost a publication, one of: {self._publications}",
            why=f"SQLSTATE {sqlstate}: it did not exist when a change was made",
            hint="create it again, then `replicator listen --repair-gap` for what was written in between",
            id="publication_missing",
            sqlstate=sqlstate,
        )

    def _leave(self, deadline: float) -> bool:
        self._say()
        self._pgconn.put_copy_end(None)
        while True:
            size, _ = self._pgconn.get_copy_data(1)
            if size < 0:
                return self._is_acknowledged(deadline)
            if not size and not self._wait_for_more(deadline):
                return False

    def _is_acknowledged(self, deadline: float) -> bool:
        while self._pgconn.is_busy():
            if not self._wait_for_more(deadline):
                return False
        result = self._pgconn.get_result()
        return result is not None and result.status == ExecStatus.COMMAND_OK

    def _wait_for_more(self, deadline: float) -> bool:
        """Wait for the server's bytes and read them; False when it is too late."""
        if time.monotonic() >= deadline:
            return False
        self._wait(deadline, read=True)
        self._pgconn.consume_input()
        return True


def choose_interval(wal_sender_timeout_s: float) -> float:
    """Return how often to speak unasked: three times within the server's patience (0: endless), at most every 10 s."""
    return min(_MAX_INTERVAL_S, wal_sender_timeout_s / 3) if wal_sender_timeout_s > 0 else _MAX_INTERVAL_S


def quote_text(text: str) -> sql.SQL:
    """Quote a string for the replication grammar: a backslash is itself there, and E'' (`sql.Literal`) is unknown."""
    return sql.SQL("'" + text.replace("'", "''") + "'")


def _list_options(options: Mapping[str, str]) -> sql.Composed:
    pairs = [sql.SQL("{} {}").format(sql.Identifier(name), quote_text(value)) for name, value in options.items()]
    return sql.SQL(", ").join(pairs)


def _explain(error: psycopg.Error, slot: str) -> ReplicatorError:
    """Return our error for one that a slot's command met."""
    if error.sqlstate in (_IN_USE, _TAKEN):
        return LockHeldError(
            f"the replication slot {slot} is in use",
            why="another session reads or makes it, or the server has not noticed yet that one has died",
            hint="stop the other listener, or wait: the server notices after wal_sender_timeout, or once the "
            "transactions have ended that a new slot waits for",
            id="slot_active",
            sqlstate=error.sqlstate,
        )
    if error.sqlstate == _NO_FREE_SLOT and error.diag.source_function == _MAKES_SLOT:
        return OperatorError(
            "the source has no free replication slot",
            why=f"SQLSTATE {error.sqlstate}: max_replication_slots is reached",
            hint="drop a slot that nobody needs (select * from pg_replication_slots), or raise the setting",
            id="no_free_slot",
            sqlstate=error.sqlstate,
        )
    if error.sqlstate == _UNDEFINED and slot:
        return OperatorError(
            f"the replication slot {slot} does not exist on the source",
            why=f"SQLSTATE {error.sqlstate}",
            hint="replicator listen --repair-gap",
            id="slot_missing",
            sqlstate=error.sqlstate,
        )
    return translate(error, side="source")
