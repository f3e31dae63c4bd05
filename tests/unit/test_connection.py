"""What half a request does to a server: nothing to others, and not for long to itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest
import uvicorn

from replicator.serve.connection import HttpConnection
from tests.wait import wait_until

HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Half"


class Impatient(HttpConnection):
    most = 5
    request_s = 0.5


async def answer(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(answer, http=Impatient, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    wait_until(lambda: server.started, what="the server listens")
    yield int(listening.getsockname()[1])
    server.should_exit = True
    thread.join()


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_many_half_requests_keep_nobody_out(port: int) -> None:
    with ExitStack() as stack:
        halves = [
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=5))) for _ in range(40)
        ]
        for half in halves:
            half.sendall(HALF)
            assert httpx.get(f"http://127.0.0.1:{port}/", timeout=5).status_code == 204
        assert all(is_closed(half) for half in halves), "the last ones once their time is up"


@pytest.mark.parametrize("sent", [b"", HALF, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"])
def test_a_request_that_does_not_come_whole_in_time_is_given_up(port: int, sent: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def test_a_connection_that_asks_again_and_again_is_kept(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as web:
        before = None
        for _ in range(4):
            answered = web.get("/")
            stream = answered.extensions["network_stream"].get_extra_info("client_addr")
            assert before in (None, stream)
            before = stream
            threading.Event().wait(0.2)
