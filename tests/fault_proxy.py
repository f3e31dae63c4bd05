"""Stand between the tool and a server, and break the connection in the ways that networks do.

    with FaultProxy(server.host, server.port) as proxy:
        pair.write_config(source={"dsn": pair.dsn_of_source(port=proxy.port)})
        proxy.lose_answer_to(b"COMMIT")

Each connection has two pumps, one thread for each direction. A pump looks at the proxy's switches between
two reads, at the latest every `TICK_S`. In the proxy's own process talk through psycopg, not through libpq's
blocking calls (`pgconn.get_result`): those hold the interpreter's lock, and no pump would turn.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

TICK_S = 0.05
CHUNK_BYTES = 65536
LONGEST_MESSAGE_BYTES = 1024
READY = b"Z\x00\x00\x00\x05"
"""ReadyForQuery up to its last byte: the server has done, and answered, all that it was asked."""


class FaultProxy:
    """Forward TCP connections to `host:port` from a free port of 127.0.0.1, until told otherwise.

    `connections` counts those accepted, `lost_answers` the answers that were swallowed: a test asserts that
    its fault happened.
    """

    def __init__(self, host: str, port: int) -> None:
        self.connections = 0
        self.lost_answers = 0
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TICK_S)
        self.port: int = self._listener.getsockname()[1]
        self._links: list[Link] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._chunk_bytes = CHUNK_BYTES
        self._fatal_message: bytes | None = None
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        self._flowing.set()
        self.reset()
        self._acceptor.join()
        for link in self._links:
            link.join()
        self._listener.close()

    @property
    def live(self) -> int:
        """Return how many connections are open."""
        return sum(not link.ended.is_set() for link in self._links)

    def reset(self) -> None:
        """Reset (RST) every connection that is open now."""
        for link in self._links:
            link.ended.set()

    def refuse(self, on: bool = True) -> None:
        """Reset new connections at once, as a host whose server is down."""
        self._refusing = on

    def black_hole(self) -> None:
        """Deliver nothing any more in either direction, and keep every connection open."""
        self._flowing.clear()

    def trickle(self) -> None:
        """Deliver one byte at a time, each in a packet of its own."""
        self._chunk_bytes = 1

    def lose_answer_to(self, message: bytes) -> None:
        """Deliver the next client bytes that contain `message`, swallow the server's answer, then reset.

        The server's ReadyForQuery is waited for, so what the client asked for is done. Happens once.
        """
        self._fatal_message = message

    def heal(self) -> None:
        """Forward as if nothing had been."""
        self._refusing = False
        self._chunk_bytes = CHUNK_BYTES
        self._fatal_message = None
        self._flowing.set()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                self.connections += 1
                self._open(client)

    def _open(self, client: socket.socket) -> None:
        """Connect to the server on behalf of `client`, or reset the client."""
        try:
            if self._refusing:
                raise ConnectionRefusedError
            server = socket.create_connection(self._server, timeout=10)
        except OSError:
            close_with_reset(client)
            return
        self._links.append(Link(self, client, server))

    def _takes_fatal(self, sent: bytes, data: bytes) -> bool:
        """Say whether the message whose answer is to be lost ends in `data`; true for one link only.

        `sent`: what went before, of which no more is looked at than a message that began there.
        """
        with self._lock:
            message = self._fatal_message
            if message is None or message not in sent[max(0, len(sent) - len(message) + 1) :] + data:
                return False
            self._fatal_message = None
            return True


class Link:
    """One proxied connection."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self.ended = threading.Event()
        self._proxy = proxy
        self._client, self._server = client, server
        self._swallowing = False
        self._sent = b""
        self._swallowed = b""
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(TICK_S)
        self._to_server = threading.Thread(target=self._pump, args=(client, server, self._note_request), daemon=True)
        self._to_client = threading.Thread(target=self._pump, args=(server, client, self._filter_answer), daemon=True)
        self._closer = threading.Thread(target=self._close, daemon=True)
        for thread in (self._to_server, self._to_client, self._closer):
            thread.start()

    def join(self) -> None:
        """Wait until both ends are closed."""
        self._closer.join()

    def _pump(self, reader: socket.socket, writer: socket.socket, judge: Callable[[bytes], bytes]) -> None:
        """Forward from one end to the other until either ends; `judge` returns what may pass of each chunk."""
        try:
            while not self.ended.is_set():
                with contextlib.suppress(TimeoutError):
                    data = reader.recv(self._proxy._chunk_bytes)
                    if not data:
                        break
                    self._send(writer, judge(data))
        except OSError:
            pass
        finally:
            self.ended.set()

    def _send(self, writer: socket.socket, data: bytes) -> None:
        """Send all of `data`, waiting out a black hole first."""
        rest = memoryview(data)
        while rest and not self.ended.is_set():
            if self._proxy._flowing.wait(TICK_S):
                with contextlib.suppress(TimeoutError):
                    rest = rest[writer.send(rest[: self._proxy._chunk_bytes]) :]

    def _note_request(self, data: bytes) -> bytes:
        """Look for the fatal message in the client's bytes, also where two chunks meet."""
        if self._proxy._takes_fatal(self._sent, data):
            self._swallowing = True
        self._sent = (self._sent + data)[-LONGEST_MESSAGE_BYTES:]
        return data

    def _filter_answer(self, data: bytes) -> bytes:
        """Pass the server's bytes on, or swallow them and end the link once the server is done."""
        if not self._swallowing:
            return data
        self._swallowed += data
        if self._swallowed[:-1].endswith(READY):
            self._proxy.lost_answers += 1
            self.ended.set()
        return b""

    def _close(self) -> None:
        self._to_server.join()
        self._to_client.join()
        for end in (self._client, self._server):
            close_with_reset(end)


def close_with_reset(end: socket.socket) -> None:
    """Close a socket so that its peer sees RST, not an orderly end."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
