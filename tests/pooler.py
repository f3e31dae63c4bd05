"""A small PostgreSQL pooler: what pgbouncer does to sessions, on a real server and in one thread for each client.

    with Pooler(server.host, server.port, by_transaction=True) as pooler:
        pair.write_config(source={"dsn": pair.dsn_of_source(port=pooler.port)})

By transaction: all clients share one session of the server, each for as long as its transaction lasts. By session:
each has its own. Either way the process id of the greeting is the pooler's invention, as pgbouncer's is.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

ENCRYPTION_REQUESTS = (80877103, 80877104)
"""SSLRequest and GSSENCRequest, which come ahead of the startup message."""
CANCEL_REQUEST = 80877102
INVENTED_KEY = struct.pack("!cIII", b"K", 12, 4_000_000, 1)


class Upstream:
    """One session of the server, and whose turn it is."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.turn = threading.Lock()
        self.greeting = b""


class Pooler:
    """Accept clients on a free port of 127.0.0.1 until the block ends."""

    def __init__(self, host: str, port: int, *, by_transaction: bool) -> None:
        self._server, self._by_transaction = (host, port), by_transaction
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._shared: Upstream | None = None
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), client:
            startup = self._read_startup(client)
            if self._shared is None or not self._by_transaction:
                upstream = Upstream(self._server)
                self._sockets.append(upstream.socket)
                self._log_in(client, upstream, startup)
                self._shared = upstream
            else:
                upstream = self._shared
                client.sendall(struct.pack("!cII", b"R", 8, 0) + upstream.greeting)
            self._relay(client, upstream)

    def _read_startup(self, client: socket.socket) -> bytes:
        while True:
            head = read_exactly(client, 8)
            length, code = struct.unpack("!II", head)
            if code == CANCEL_REQUEST:
                raise EOFError
            if code not in ENCRYPTION_REQUESTS:
                return head + read_exactly(client, length - 8)
            client.sendall(b"N")

    def _log_in(self, client: socket.socket, upstream: Upstream, startup: bytes) -> None:
        """Let the first client prove its password to the server itself, and keep what the server says then."""
        upstream.socket.sendall(startup)
        is_in = False
        while True:
            kind, message = read_message(upstream.socket)
            if is_in:
                message = INVENTED_KEY if kind == b"K" else message
                upstream.greeting += message
            client.sendall(message)
            if kind == b"Z":
                return
            if kind == b"R":
                is_in = message[5:9] == b"\0\0\0\0"
                if not is_in and message[5:9] != b"\0\0\0\x0c":
                    upstream.socket.sendall(read_message(client)[1])

    def _relay(self, client: socket.socket, upstream: Upstream) -> None:
        is_mine = False
        try:
            while True:
                kind, message = read_message(client)
                if kind == b"X":
                    return
                if not is_mine:
                    upstream.turn.acquire()
                    is_mine = True
                upstream.socket.sendall(message)
                if kind in (b"Q", b"S"):
                    is_mine = self._answer(client, upstream)
                    if not is_mine:
                        upstream.turn.release()
        finally:
            if is_mine:
                upstream.socket.sendall(struct.pack("!cI", b"Q", 13) + b"rollback\0")
                while read_message(upstream.socket)[0] != b"Z":
                    pass
                upstream.turn.release()

    def _answer(self, client: socket.socket, upstream: Upstream) -> bool:
        """Pass the server's answer on; say whether a transaction is still open after it."""
        while True:
            kind, message = read_message(upstream.socket)
            client.sendall(message)
            if kind == b"Z":
                return message[5:6] != b"I"


def read_message(source: socket.socket) -> tuple[bytes, bytes]:
    """Return the type byte of the next message, and all of its bytes."""
    head = read_exactly(source, 5)
    return head[:1], head + read_exactly(source, struct.unpack("!I", head[1:])[0] - 4)


def read_exactly(source: socket.socket, count: int) -> bytes:
    """Return that many bytes. Raises EOFError when there are no more."""
    data = b""
    while len(data) < count:
        piece = source.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
