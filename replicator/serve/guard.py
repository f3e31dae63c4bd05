"""Who may ask for what: foreign Host headers are refused, and whatever is not a page on loopback needs the token.

It decides from the path alone and ahead of every route, so that a route that is forgotten is closed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from replicator.errors import ConfigError
from replicator.telemetry.log import get_logger

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEAST_TOKEN_LENGTH = 32
"""Characters: 128 bits in hexadecimal."""

MOST_BODY_BYTES = 512 * 1024
"""Of a request: the longest that means anything names a thousand tables."""

_OPEN_PATHS = frozenset({"/livez", "/readyz"})
_STATIC = "/static/"
_READING = frozenset({"GET", "HEAD"})
_HINT = "openssl rand -hex 32 > {path} && chmod 600 {path}"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def read_token(path: Path | None, host: str) -> str | None:
    """Return the API's token; None when there is no file and only this machine can ask.

    Raises ConfigError for a bind that others reach without a token, and for a token that can be guessed.
    """
    hint = _HINT.format(path=path or "api.token")
    try:
        token = path.read_text("utf-8-sig").strip() if path is not None else None
    except FileNotFoundError:
        token = None
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"serve.token_file: {path} cannot be read", why=why, hint=hint) from None
    if token is None:
        if is_loopback(host):
            return None
        raise ConfigError(
            f"serve.host is {host}, and there is no token file",
            why="others than this machine could read the pages and start runs",
            hint=f"{hint}; or bind to 127.0.0.1",
            id="token_missing",
        )
    if len(token) < LEAST_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"serve.token_file: the token in {path} cannot be used",
            why=f"it should be at least {LEAST_TOKEN_LENGTH} printable ASCII characters without spaces",
            hint=hint,
            id="token_weak",
        )
    return token


def token_is_exposed(path: Path | None) -> bool:
    """Say whether others than owner and group of the token file may read or write it; False when there is none."""
    return path is not None and path.exists() and bool(path.stat().st_mode & 0o006)


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches what is bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_host(header: str) -> str:
    """Return the name or address of a Host header, without its port; empty when it has another form."""
    if header.startswith("["):
        name, bracket, port = header[1:].partition("]")
        return name.lower() if bracket and (not port or port[0] == ":") else ""
    name, _, port = header.partition(":")
    return name.lower() if not port or port.isdigit() else ""


class Hosts:
    """The names that this server answers to. A page of a stranger whose name leads here by DNS has another one."""

    def __init__(self, host: str) -> None:
        self._is_open = not is_loopback(host)
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}
        if self._is_open:
            self._names.add(socket.gethostname().lower())

    def accepts(self, header: str) -> bool:
        """Say whether the Host header is ours; beyond loopback any address is, for DNS cannot rebind one."""
        name = read_host(header)
        if name in self._names:
            return bool(name)
        if not self._is_open:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class Token:
    """The bearer token. Compared by hashes, in a time that depends on neither."""

    def __init__(self, token: str | None) -> None:
        self._digest = None if token is None else _digest(token.encode())

    @property
    def path(self) -> Path | None:
        """Return the file that it was read from; None where there is none."""
        return None

    @property
    def is_set(self) -> bool:
        """Say whether there is one at all; without it nothing is allowed that needs it."""
        return self._digest is not None

    def matches(self, authorization: bytes) -> bool:
        """Say whether an Authorization header carries the token."""
        scheme, _, given = authorization.partition(b" ")
        same = hmac.compare_digest(_digest(given.strip()), self._digest or bytes(32))
        return same and self._digest is not None and scheme.lower() == b"bearer"


class FileToken(Token):
    """The token of a file, read again whenever the file changes: one that is gone or cannot be used opens nothing."""

    def __init__(self, path: Path | None, host: str) -> None:
        self._path, self._host = path, host
        self._seen = self._stamp()
        super().__init__(read_token(path, host))

    @property
    def path(self) -> Path | None:
        """Return where the token is looked for."""
        return self._path

    def matches(self, authorization: bytes) -> bool:
        """Say whether an Authorization header carries the token that the file holds now."""
        seen = self._stamp()
        if seen != self._seen:
            self._seen = seen
            self._read_again()
        return super().matches(authorization)

    def _read_again(self) -> None:
        try:
            super().__init__(read_token(self._path, self._host))
        except ConfigError as error:
            super().__init__(None)
            get_logger().error("token_unusable", file=str(self._path), error_message=error.message, hint=error.hint)
            return
        get_logger().info("token_read", file=str(self._path), token_set=self.is_set)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_ino, found.st_size)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


class Guard:
    """The outermost layer of the application. refuse: makes the answer from status, path and reason."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: Token,
        hosts: Hosts,
        pages_need_token: bool,
        refuse: Callable[[int, str, str], Response],
    ) -> None:
        self.app = app
        self._token, self._hosts, self._pages_need_token, self._refuse = token, hosts, pages_need_token, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._judge(scope["method"], scope["path"], headers)
        if refusal is None:
            body = await _read_body(headers, receive)
            if body is None:
                refusal = self._refuse(413, scope["path"], f"a request's body may have {MOST_BODY_BYTES} bytes")
                # What is still to come is not read.
                refusal.headers["Connection"] = "close"
            else:
                receive = _replay(body, receive)
        if scope["method"] == "HEAD":
            # Answered as GET is; the server keeps the body to itself.
            scope = {**scope, "method": "GET"}
        await (refusal or self.app)(scope, receive, _with_headers(send))

    def _judge(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Response | None:
        if not self._hosts.accepts(headers.get(b"host", b"").decode("latin-1")):
            return self._refuse(400, path, "the Host header names another server")
        if not self._needs_token(method, path) or self._token.matches(headers.get(b"authorization", b"")):
            return None
        if not self._token.is_set:
            file = self._token.path
            where = "serve.token_file is empty" if file is None else f"there is no usable token file {file}"
            return self._refuse(401, path, f"{where}, so nothing is allowed that needs the token")
        whose = "" if self._token.path is None else f"; the right one is in {self._token.path}"
        return self._refuse(401, path, f"the bearer token is missing or wrong{whose}")

    def _needs_token(self, method: str, path: str) -> bool:
        if method not in _READING or path == "/api" or path.startswith("/api/"):
            return True
        return self._pages_need_token and path not in _OPEN_PATHS and not path.startswith(_STATIC)


async def _read_body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
    """Return a request's body, or None when it is too long."""
    length = headers.get(b"content-length", b"0")
    # HTTP's parser lets nothing but digits through; Python refuses numbers beyond thousands of them.
    if len(length) > len(str(MOST_BODY_BYTES)) or int(length) > MOST_BODY_BYTES:
        return None
    body = b""
    while len(body) <= MOST_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body if len(body) <= MOST_BODY_BYTES else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that has been read, and then what comes after it."""
    rest = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        message = next(rest, None)
        return await receive() if message is None else message

    return receive_again


def _with_headers(send: Send) -> Send:
    extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *extra]
        await send(message)

    return send_with_headers
