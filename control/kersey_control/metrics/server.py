"""/metrics and, if asked for, the status page over HTTP or HTTPS, on threads of their own.

Promises: an answer while the daemon starts, without a fast path, while it closes, and while the
control loop hangs, which never waits for a scrape; a client that connects and says nothing holds up
nobody, in a TLS handshake neither. Keeps no access log.
"""

import gzip
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from kersey_control.errors import InvalidInputError
from kersey_control.metrics.certificates import Certificates
from kersey_control.metrics.collector import StatusCollector
from kersey_control.metrics.history import History
from kersey_control.metrics.peers import peer_text, reach_text
from kersey_control.metrics.readings import Reader
from kersey_control.metrics.resource import Resource
from kersey_control.metrics.status_page import page_resources
from kersey_control.metrics.survey import Survey
from kersey_control.options import Options
from kersey_control.status import Status
from kersey_control.told import ToldOptions
from kersey_control.web_server import WebServer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The older text format, whoever asks: the newer one costs twice the CPU and says the same."""

_PATIENCE = 5.0  # seconds for a client to say what it wants
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_FASTEST = 1  # gzip level: a third larger than the default, at a tenth of its CPU


@contextmanager
def serve_metrics(status: Status, options: Options, told: ToldOptions) -> Iterator[None]:
    """Serve `status` as the options say; `told` are those that the status page shows.

    Raises InvalidInputError if the options cannot be followed.
    """
    certificates = None
    if options.metrics_certfile is not None and options.metrics_keyfile is not None:
        certificates = Certificates(
            certfile=options.metrics_certfile,
            keyfile=options.metrics_keyfile,
            cafile=options.metrics_cafile,
        )
    reader = Reader(status)
    page = Page(status, reader, peers=options.metrics_peers)
    resources = {"/metrics": Resource(page, CONTENT_TYPE)}
    history = History() if options.status_page else None
    if history is not None:
        resources |= page_resources(status, told, reader, history)
    server = MetricsServer(
        resources,
        address=options.metrics_ip,
        port=options.metrics_port,
        certificates=certificates,
    )
    with Survey(reader, history), server:
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
        if readings.peers is not None:
            text += peer_text(readings.peers, self._peers).encode()
        if readings.reaches is not None:
            text += reach_text(readings.reaches, self._peers).encode()
        return text


class MetricsServer:
    """Serve resources by their paths. A context manager; port 0 takes any free port.

    Entering raises InvalidInputError when the address cannot be listened on.
    """

    def __init__(
        self,
        resources: Mapping[str, Resource],
        *,
        address: str,
        port: int,
        certificates: Certificates | None = None,
    ) -> None:
        self._resources = resources
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
            self._server = _Server(
                *self._wanted, resources=self._resources, certificates=self._certificates
            )
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


class _Server(WebServer):
    """One thread makes all pages; that of a connection does the TLS handshake.

    Were pages made by the connections' own threads, the memory of each would stay in as many malloc
    arenas as glibc allows: eight a CPU, 36 MB with 1,000 peers and two CPUs.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        resources: Mapping[str, Resource],
        certificates: Certificates | None,
    ) -> None:
        self.resources = resources
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="metrics-page")
        self._certificates = certificates
        self._certificates_lock = Lock()
        super().__init__(address, port, _Handler)

    def server_close(self) -> None:
        """Stop listening; connections in progress end by themselves."""
        super().server_close()
        self._maker.shutdown(wait=False)

    def body(self, resource: Resource, encoding: str) -> bytes:
        """Return it as it is now, in this encoding. Those who ask at once take turns."""
        try:
            making = self._maker.submit(_make, resource, encoding)
        except RuntimeError as error:
            raise ConnectionAbortedError("the server was closed meanwhile") from error
        return making.result()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, on a thread of its own."""
        request.settimeout(_PATIENCE)
        if self._certificates is None:
            super().finish_request(request, client_address)
            return
        with self._certificates_lock:
            context = self._certificates.context()
        with context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "kersey"
    sys_version = ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Answer with what is at the path, compressed where that is understood."""
        resource = self.server.resources.get(self.path.partition("?")[0])
        if resource is None:
            there = ", ".join(self.server.resources)
            self._answer(HTTPStatus.NOT_FOUND, f"there is: {there}\n".encode(), _TEXT)
            return
        encoding = "gzip" if "gzip" in self.headers.get("Accept-Encoding", "") else ""
        headers = {"Content-Type": resource.content_type, **resource.headers}
        if encoding:
            headers["Content-Encoding"] = encoding
        self._answer(HTTPStatus.OK, self.server.body(resource, encoding), headers)

    do_HEAD = do_GET  # noqa: N815  # http.server's name; _answer leaves the body out

    def log_message(self, *_args: object) -> None:
        """Write no access log."""

    def _answer(self, code: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _make(resource: Resource, encoding: str) -> bytes:
    body = resource.make()
    return gzip.compress(body, compresslevel=_FASTEST) if encoding == "gzip" else body
