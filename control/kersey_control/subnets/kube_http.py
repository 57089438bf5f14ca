"""HTTP/1.1 to one Kubernetes API server: requests with a deadline, streams that can be given up.

It promises that every wait (connecting, TLS, an answer, the next line of a watch) ends soon after
the client is closed or the caller's `stop` is set, that no exception of the standard library gets
out, and that a refusal names verb and resource as RBAC does. Credentials are read for each request.
It never retries but once, with a new token, and never sleeps unasked.

Why not a library: lightkube cannot ask for bookmarks, and it and its transport cost 11 MB for ever;
the official client needs 400 MB for 5,000 nodes.
"""

import errno
import http.client
import io
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from kersey_control import __version__
from kersey_control.errors import (
    StoreAuthError,
    StoreConflictError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from kersey_control.subnets.kube_access import Access

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logger = logging.getLogger(__name__)

POLL = 0.1
"""Seconds between two looks at whether anybody still wants the answer."""

CONNECT_TIMEOUT = 5.0
CALL_TIMEOUT = 15.0
MAX_ANSWER = 64 << 20
MAX_LINE = 16 << 20
"""Ten times the largest object that etcd holds for an API server."""
MAX_MESSAGE = 64 << 10
PIECE = 64 << 10
MAX_RETRY_AFTER = 60
PATCH_TYPE = "application/strategic-merge-patch+json"
OBJECT_TYPE = "application/json"
_METHODS = {"create": "POST", "patch": "PATCH"}
"""HTTP's word for a verb; all others only read."""
_KEEPALIVE = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),  # milliseconds
)


class HistoryLostError(StoreError):
    """Report that the server cannot go on from where we were. List again."""


class NotFoundError(StoreRefusedError):
    """Report that there is no such object, or not any more."""


class BusyError(StoreUnavailableError):
    """Report that the server cannot serve now; it wants to be left alone for some seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


_ERRORS: dict[int, type[StoreError]] = {
    HTTPStatus.UNAUTHORIZED: StoreAuthError,
    HTTPStatus.FORBIDDEN: StoreAuthError,
    HTTPStatus.REQUEST_TIMEOUT: StoreUnavailableError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: StoreConflictError,
    HTTPStatus.GONE: HistoryLostError,
}


class _GivenUpError(Exception):
    """End a wait because nobody wants its outcome any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: verb and resource as RBAC names them, the target, and what to write there."""

    verb: str
    resource: str
    target: str
    body: bytes = b""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"

    def encode(self, access: Access, authorization: str) -> bytes:
        """Return the request as it goes over the wire."""
        host = f"[{access.host}]" if ":" in access.host else access.host
        lines = [
            f"{_METHODS.get(self.verb, 'GET')} {access.path}{self.target} HTTP/1.1",
            f"Host: {host}:{access.port}",
            f"User-Agent: kersey/{__version__}",
            "Accept: application/json",
            "Accept-Encoding: identity",
        ]
        if authorization:
            lines.append(f"Authorization: {authorization}")
        if self.body:
            kind = PATCH_TYPE if self.verb == "patch" else OBJECT_TYPE
            lines += [f"Content-Type: {kind}", f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class KubeClient:
    """An API server. Methods may be called from any thread; each connection belongs to one."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._closing = threading.Event()

    def close(self) -> None:
        """End every request and stream in progress; twice does no harm."""
        self._closing.set()

    @property
    def is_closed(self) -> bool:
        """Say whether close() was called."""
        return self._closing.is_set()

    def pause(self, seconds: float, stop: threading.Event | None = None) -> None:
        """Return after `seconds`, or soon after `stop` is set or the client is closed."""
        deadline = time.monotonic() + seconds
        waited_for = stop or self._closing
        while not self.is_closed and (left := deadline - time.monotonic()) > 0:
            if waited_for.wait(min(left, POLL)):
                return

    @contextmanager
    def connected(self, stop: threading.Event | None = None) -> Iterator["Connection"]:
        """Give a connection, opened with its first request, that also heeds `stop`."""
        connection = Connection(self.access, _Patience(self._closing, stop))
        try:
            yield connection
        finally:
            connection.close()

    def ask(self, request: Request) -> bytes:
        """Return the answer to one request on a connection of its own. Raises StoreError."""
        with self.connected() as connection:
            return connection.ask(request)


class Connection:
    """One connection at a time, made anew when the server has closed it. For one thread."""

    def __init__(self, access: Access, patience: "_Patience") -> None:
        self._access = access
        self._patience = patience
        self._wire: _Wire | None = None

    def close(self) -> None:
        """Close the connection; twice does no harm."""
        if self._wire is not None:
            self._wire.close()
        self._wire = None

    def ask(self, request: Request) -> bytes:
        """Return the body of the answer. Raises StoreError by what the server said."""
        response = self._exchange(request)
        with self._translated(request):
            body = response.read(MAX_ANSWER + 1)
        if len(body) > MAX_ANSWER:
            self.close()
            raise StoreRefusedError(self._about(request, f"more than {MAX_ANSWER} bytes"))
        if response.will_close:
            self.close()
        return body

    def stream(self, request: Request, *, silence: float) -> Iterator[bytes]:
        """Send a request; return the lines of its answer as they come, once it is accepted.

        The lines end with the stream, whoever ends it: the server, a fault of the network, `stop`,
        or `silence` seconds without a byte. Raises StoreError only for the request itself.
        """
        return self._lines(self._exchange(request), request, silence)

    def _lines(
        self, response: http.client.HTTPResponse, request: Request, silence: float
    ) -> Iterator[bytes]:
        rest = b""
        try:
            while len(rest) <= MAX_LINE:
                self._patience.allow(silence)
                piece = response.read1(PIECE)
                if not piece:
                    return
                *lines, rest = (rest + piece).split(b"\n")
                yield from filter(None, lines)
        except _GivenUpError:
            return
        except (OSError, http.client.HTTPException) as error:
            logger.debug("stream cut", extra={"request": str(request), "error": repr(error)})
        finally:
            self.close()

    def _exchange(self, request: Request) -> http.client.HTTPResponse:
        """Return the head of a good answer, its body unread; once more if the token was renewed."""
        shown = self._access.authorization()
        response = self._send(request, shown)
        if response.status == HTTPStatus.UNAUTHORIZED:
            renewed = self._access.authorization()
            if renewed != shown:
                self.close()
                response = self._send(request, renewed)
        if response.status in (HTTPStatus.OK, HTTPStatus.CREATED):
            return response
        with self._translated(request):
            body = response.read(MAX_MESSAGE)
        self.close()
        raise _refusal(self._about(request, _words(response, body)), request, response)

    def _send(self, request: Request, authorization: str) -> http.client.HTTPResponse:
        with self._translated(request):
            if self._wire is None:
                self._wire = _Wire(self._access, self._patience)
            self._patience.allow(CALL_TIMEOUT)
            return self._wire.exchange(request.encode(self._access, authorization))

    @contextmanager
    def _translated(self, request: Request) -> Iterator[None]:
        """Let only our own errors out; what failed once is not used again."""
        try:
            yield
        except _GivenUpError:
            self.close()
            raise StoreUnavailableError(self._about(request, "the client is closed")) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            words = str(error) or type(error).__name__
            raise StoreUnavailableError(self._about(request, words)) from None

    def _about(self, request: Request, words: str) -> str:
        return f"kubernetes {self._access}: {request}: {words}"


def _refusal(message: str, request: Request, response: http.client.HTTPResponse) -> StoreError:
    """Return what a status means to the caller."""
    status = response.status
    if request.verb == "watch" and status == HTTPStatus.GATEWAY_TIMEOUT:
        # An API server that was restored from a backup has not reached our revision yet and says
        # so by a timeout; waiting for it would last for ever.
        return HistoryLostError(message)
    if status in _ERRORS:
        return _ERRORS[status](message)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
        return StoreRefusedError(message)
    text = response.headers.get("Retry-After", "")
    seconds = int(text) if text.isascii() and text.isdigit() else 0
    return BusyError(message, min(seconds, MAX_RETRY_AFTER))


class _Status(msgspec.Struct):
    message: str = ""


def _words(response: http.client.HTTPResponse, body: bytes) -> str:
    """Return status and explanation; a proxy between may answer with anything."""
    try:
        message = msgspec.json.decode(body, type=_Status).message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = ""
    status = f"HTTP {response.status} {response.reason}"
    return f"{status}: {message}" if message else status


class _Patience:
    """How long to wait on: asked at every look, on one thread."""

    def __init__(self, closing: threading.Event, stop: threading.Event | None) -> None:
        self._ends = (closing,) if stop is None else (closing, stop)
        self._deadline = 0.0

    def allow(self, seconds: float) -> None:
        """Let the next waits last `seconds` from now, together."""
        self._deadline = time.monotonic() + seconds

    def check(self) -> None:
        """Raise _GivenUpError when nobody waits any more, TimeoutError when it took too long."""
        if any(end.is_set() for end in self._ends):
            raise _GivenUpError
        if time.monotonic() > self._deadline:
            raise TimeoutError("no answer in time")


class _Wire:
    """One open socket, with TLS where the server has it."""

    def __init__(self, access: Access, patience: _Patience) -> None:
        self._patience = patience
        self._socket = _open(access, patience)

    def close(self) -> None:
        self._socket.close()

    def exchange(self, data: bytes) -> http.client.HTTPResponse:
        """Send a request and return the answer's head; the body comes as it is read."""
        self._socket.settimeout(CONNECT_TIMEOUT)  # a small request: it fits the socket's buffer
        self._socket.sendall(data)
        self._socket.settimeout(POLL)
        response = http.client.HTTPResponse(self)  # type: ignore[arg-type]  # needs makefile only
        response.begin()
        return response

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return what an answer is read from; closing it leaves the socket open."""
        return io.BufferedReader(_Incoming(self._socket, self._patience), PIECE)


class _Incoming(io.RawIOBase):
    """The bytes of a socket; between two of them patience is asked."""

    def __init__(self, source: socket.socket, patience: _Patience) -> None:
        self._source = source
        self._patience = patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        while True:
            self._patience.check()
            try:
                return self._source.recv_into(buffer)
            except TimeoutError:
                continue


def _open(access: Access, patience: _Patience) -> socket.socket:
    """Return a connected socket; each address of the host is tried. Raises OSError."""
    context = access.tls_context() if access.is_secure else None
    trouble: OSError = OSError(f"no address for {access.host}")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        access.host, access.port, type=socket.SOCK_STREAM
    ):
        plain = socket.socket(family, kind, protocol)
        patience.allow(CONNECT_TIMEOUT)
        try:
            _connect(plain, address, patience)
            return plain if context is None else _secured(plain, context, access, patience)
        except OSError as error:
            plain.close()
            trouble = error
        except BaseException:
            plain.close()
            raise
    raise trouble


def _connect(plain: socket.socket, address: object, patience: _Patience) -> None:
    for option in _KEEPALIVE:
        plain.setsockopt(*option)
    plain.setblocking(False)
    result = plain.connect_ex(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
    if result == errno.EINPROGRESS:
        ready = select.poll()
        ready.register(plain, select.POLLOUT)
        while not ready.poll(POLL * 1000):
            patience.check()
        result = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if result:
        raise OSError(result, os.strerror(result))


def _secured(
    plain: socket.socket, context: ssl.SSLContext, access: Access, patience: _Patience
) -> ssl.SSLSocket:
    plain.settimeout(POLL)
    secure = context.wrap_socket(
        plain,
        server_hostname=access.tls_name or access.host,
        do_handshake_on_connect=False,
    )
    try:
        while True:
            patience.check()
            try:
                secure.do_handshake()
            except TimeoutError:
                continue
            return secure
    except BaseException:
        secure.close()
        raise
