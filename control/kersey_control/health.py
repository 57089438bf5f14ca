"""The health endpoint: /healthz (is the control loop alive) and /readyz (are the peers in place).

Promises: an answer from its own thread even while the control loop hangs, which is what /healthz is
for; 503 with the reason in words. Never asks the kernel or the store: it reports what it was told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from threading import Thread
from types import TracebackType
from typing import Self

from kersey_control.errors import InvalidInputError
from kersey_control.status import Status
from kersey_control.web_server import WebServer

_IDLE_CLIENT = 5.0  # seconds until a client that sends nothing is let go


@dataclass(frozen=True, slots=True)
class Health:
    """What is wrong, in words, empty if nothing is."""

    trouble: str
    waiting_for: str


@dataclass(frozen=True, slots=True)
class HealthState:
    """Judge the daemon's status: the loop is alive unless silent for more than `max_silence` s.

    `clock` is that of `Status.silence`, monotonic seconds.
    """

    status: Status
    max_silence: float
    clock: Callable[[], float]

    def __call__(self) -> Health:
        """Return the health as of now."""
        silence = self.status.silence(self.clock())
        trouble = (
            f"the control loop has been silent for {silence:.0f} s (limit {self.max_silence:.0f} s)"
            if silence > self.max_silence
            else ""
        )
        return Health(trouble, "" if self.status.ready else self._missing())

    def _missing(self) -> str:
        reasons = (self.status.store_trouble, self.status.lease_trouble)
        known = "; ".join(reason for reason in reasons if reason)
        return f"the first snapshot of leases is not in the kernel yet{known and f' ({known})'}"


class HealthServer:
    """Serve /healthz and /readyz. A context manager; port 0 takes any free port.

    Entering raises InvalidInputError when the address cannot be listened on.
    """

    def __init__(self, health: Callable[[], Health], *, address: str, port: int) -> None:
        self._health = health
        self._wanted = (address, port)
        self._server: WebServer | None = None
        self._thread: Thread | None = None

    @property
    def port(self) -> int:
        """Return the port in use; 0 outside the context."""
        return self._server.server_port if self._server else 0

    def __enter__(self) -> Self:
        self._server = _listen(*self._wanted, _handler(self._health))
        self._thread = Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving and free the port; harmless when repeated."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        self._server = self._thread = None


class _Handler(BaseHTTPRequestHandler):
    server_version = "kersey"
    sys_version = ""
    timeout = _IDLE_CLIENT

    def health(self) -> Health:
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer with the state in words."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with the state's code alone."""
        self._answer(with_body=False)

    def log_message(self, *_args: object) -> None:
        """Write no access log: probes come every few seconds."""

    def _answer(self, *, with_body: bool) -> None:
        code, text = self._judge(self.path.partition("?")[0])
        body = f"{text}\n".encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _judge(self, path: str) -> tuple[HTTPStatus, str]:
        if path not in {"/healthz", "/readyz"}:
            return HTTPStatus.NOT_FOUND, "there are /healthz and /readyz"
        health = self.health()
        trouble = health.trouble if path == "/healthz" else health.waiting_for
        return (HTTPStatus.SERVICE_UNAVAILABLE, trouble) if trouble else (HTTPStatus.OK, "ok")


def _handler(judge: Callable[[], Health]) -> type[_Handler]:
    """Return a handler class that asks `judge`; http.server makes an instance per connection."""

    class Handler(_Handler):
        def health(self) -> Health:
            return judge()

    return Handler


def _listen(address: str, port: int, handler: type[_Handler]) -> WebServer:
    try:
        return WebServer(address, port, handler)
    except OSError as error:
        raise InvalidInputError(
            field="healthz-ip and healthz-port",
            value=f"{address}:{port}",
            expected=f"an address to listen on ({error.strerror or error})",
        ) from error
