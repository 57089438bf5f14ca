"""/metrics over HTTP or HTTPS, on threads of its own.

Promises: an answer while the daemon starts, without a fast path, while it closes, and while the
control loop hangs, which never waits for a scrape; a client that connects and says nothing holds up
nobody, in a TLS handshake neither. Keeps no access log.
"""

import gzip
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from kersey_control.errors import InvalidInputError
from kersey_control.metrics.certificates import Certificates
from kersey_control.metrics.collector import StatusCollector
from kersey_control.metrics.peers import peer_text
from kersey_control.metrics.readings import Reader
from kersey_control.metrics.survey import Survey
from kersey_control.options import Options
from kersey_control.status import Status

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The older text format, whoever asks: the newer one costs twice the CPU and says the same."""

MOST_CONNECTIONS = 16
"""At a time; further ones are closed, so that nobody can fill the daemon with threads."""

_PATH = "/metrics"
_PATIENCE = 5.0  # seconds for a client to say what it wants
_FASTEST = 1  # gzip level: a third larger than the default, at a tenth of its CPU


@contextmanager
def serve_metrics(status: Status, options: Options) -> Iterator[None]:
    """Serve `status` as the options say. Raises InvalidInputError if they cannot be followed."""
    certificates = None
    if options.metrics_certfile is not None and options.metrics_keyfile is not None:
        certificates = Certificates(
            certfile=options.metrics_certfile,
            keyfile=options.metrics_keyfile,
            cafile=options.metrics_cafile,
        )
    reader = Reader(status)
    server = MetricsServer(
        Page(status, reader, peers=options.metrics_peers),
        address=options.metrics_ip,
        port=options.metrics_port,
        certificates=certificates,
    )
    with Survey(reader), server:
        yield


class Page:
    """What /metrics says now: everything of `status`, and the `peers` busiest peers."""

    def __init__(self, status: Status, reader: Reader, *, peers: int) -> None:
        self._status = status
        self._reader = reader
        self._peers = peers
        self._process = ProcessCollector(namespace="kersey", registry=None)

    def __call__(self) -> bytes:
        """Return the text. From any thread."""
        readings = self._reader.read()
        registry = CollectorRegistry()  # our own: nothing of Python's gets in by accident
        registry.register(self._process)
        registry.register(StatusCollector(self._status, readings, now=time.monotonic()))
        text = generate_latest(registry)
        if readings.peers is None:
            return text
        return text + peer_text(readings.peers, self._peers).encode()


class MetricsServer:
    """Serve what `page` returns. A context manager; port 0 takes any free port.

    Entering raises InvalidInputError when the address cannot be listened on.
    """

    def __init__(
        self,
        page: Callable[[], bytes],
        *,
        address: str,
        port: int,
        certificates: Certificates | None = None,
    ) -> None:
        self._page = page
        self._wanted = (address, port)
        self._certificates = certificates
        self._server: _Server | None = None
        self._thread: Thread | None = None

    @property
    def port(self) -> int:
        """Return the port in use; 0 outside the context."""
        return self._server.server_port if self._server else 0

    def __enter__(self) -> Self:
        try:
            self._server = _listen(*self._wanted, self._page, self._certificates)
        except OSError as error:
            raise InvalidInputError(
                field="metrics-ip and metrics-port",
                value=":".join(map(str, self._wanted)),
                expected=f"an address to listen on ({error.strerror or error})",
            ) from error
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        self._server = self._thread = None


class _Server(ThreadingHTTPServer):
    """A thread for each connection, which also does the TLS handshake, and one that makes pages.

    Were pages made by the connections' own threads, the memory of each would stay in as many malloc
    arenas as glibc allows: eight a CPU, 36 MB with 1,000 peers and two CPUs.
    """

    daemon_threads = True

    def __init__(
        self,
        target: tuple[Any, ...],
        *,
        family: int,
        page: Callable[[], bytes],
        certificates: Certificates | None,
    ) -> None:
        self.address_family = family
        self._page = page
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="metrics-page")
        self._certificates = certificates
        self._connections = 0
        self._lock = Lock()
        super().__init__(target, _Handler)

    def server_bind(self) -> None:
        """Bind without the reverse name lookup of http.server, which can hang for seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def server_close(self) -> None:
        """Stop listening; connections in progress end by themselves."""
        super().server_close()
        self._maker.shutdown(wait=False)

    def body(self, encoding: str) -> bytes:
        """Return the page as it is now, in this encoding. Pages asked for at once take turns."""
        try:
            making = self._maker.submit(self._make, encoding)
        except RuntimeError as error:
            raise ConnectionAbortedError("the server was closed meanwhile") from error
        return making.result()

    def _make(self, encoding: str) -> bytes:
        page = self._page()
        return gzip.compress(page, compresslevel=_FASTEST) if encoding == "gzip" else page

    def verify_request(self, request: object, client_address: object) -> bool:
        """Accept a connection if there are not too many; each is shut down once, in any case."""
        del request, client_address
        with self._lock:
            self._connections += 1
            return self._connections <= MOST_CONNECTIONS

    def shutdown_request(self, request: Any) -> None:
        """End a connection, refused or served."""
        with self._lock:
            self._connections -= 1
        super().shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, on a thread of its own."""
        request.settimeout(_PATIENCE)
        if self._certificates is None:
            super().finish_request(request, client_address)
            return
        with self._lock:
            context = self._certificates.context()
        with context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a defect of ours; what clients do wrong is theirs to see."""
        del request
        error = sys.exception()
        if isinstance(error, OSError):  # timeouts, resets, failed handshakes
            logger.debug("scrape not served", extra={"reason": str(error)})
        else:
            logger.error("scrape failed", exc_info=error, extra={"client": str(client_address)})


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "kersey"
    sys_version = ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Answer with the metrics, compressed where that is understood."""
        if self.path.partition("?")[0] != _PATH:
            self._answer(HTTPStatus.NOT_FOUND, f"the metrics are at {_PATH}\n".encode())
            return
        encoding = "gzip" if "gzip" in self.headers.get("Accept-Encoding", "") else ""
        self._answer(HTTPStatus.OK, self.server.body(encoding), encoding)

    def log_message(self, *_args: object) -> None:
        """Write no access log."""

    def _answer(self, code: HTTPStatus, body: bytes, encoding: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(body)


def _listen(
    address: str, port: int, page: Callable[[], bytes], certificates: Certificates | None
) -> _Server:
    family, _, _, _, target = socket.getaddrinfo(
        address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return _Server(target, family=family, page=page, certificates=certificates)
