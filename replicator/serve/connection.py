"""One HTTP connection: a request that does not come whole in time, or comes in too many at once, keeps nobody out."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_WAITING = (h11.IDLE, h11.SEND_BODY)


class HttpConnection(H11Protocol):
    """uvicorn's, with what it lacks.

    most: connections at a time; of more, the one that has waited longest for its request goes, for a request that is
    whole is never given up. request_s: how long a request may take to arrive, and a connection until its first.
    """

    most: ClassVar[int] = 256
    request_s: ClassVar[float] = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            others = [one for one in self.connections if isinstance(one, HttpConnection) and one._deadline is not None]
            # Without another this one goes itself.
            min(others, key=_due_at, default=self).drop()
        if not transport.is_closing():
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unwatch()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Give the connection up."""
        self._unwatch()
        # At once, not with the loop's next turn: whoever comes meanwhile counts those that are there.
        self.connections.discard(self)
        self.transport.abort()

    def _watch(self) -> None:
        if self.conn.their_state not in _WAITING or self.transport.is_closing():
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.request_s, self.drop)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _due_at(connection: HttpConnection) -> float:
    return 0.0 if connection._deadline is None else connection._deadline.when()
