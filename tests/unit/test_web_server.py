"""What no client can do to /healthz and /metrics: stay for ever, keep others out, fill us up."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from kersey_control import web_server
from kersey_control.health import HealthServer, HealthState
from kersey_control.metrics.certificates import Certificates
from kersey_control.metrics.resource import Resource
from kersey_control.metrics.server import MetricsServer
from kersey_control.status import Status
from kersey_control.web_server import MOST_CONNECTIONS
from testbed import wait_until
from tls_authority import Authority

HOST = "127.0.0.1"
DRIP = 0.05
"""Seconds between two bytes, a hundredth of the silence after which a client is let go anyway."""


def health() -> HealthServer:
    state = HealthState(Status(), max_silence=10.0, clock=lambda: 0.0)
    return HealthServer(state, address=HOST, port=0)


def metrics(make: Callable[[], bytes] = lambda: b"x") -> MetricsServer:
    return MetricsServer({"/healthz": Resource(make, "text/plain")}, address=HOST, port=0)


@pytest.fixture(params=[health, metrics])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    with request.param() as server:
        yield server.port


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority", address=HOST)


@pytest.fixture
def secured(authority: Authority) -> Iterator[int]:
    certfile, keyfile = authority.issue("server")
    certificates = Certificates(certfile=certfile, keyfile=keyfile, cafile=None)
    with MetricsServer({}, address=HOST, port=0, certificates=certificates) as server:
        yield server.port


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=10)


def is_served(port: int) -> bool:
    with closing(http.client.HTTPConnection(HOST, port, timeout=10)) as client:
        try:
            client.request("GET", "/healthz")
            return client.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False


def has_ended(client: socket.socket) -> bool:
    """Send one more byte, after a while; return whether the server has ended the connection."""
    client.settimeout(DRIP)
    try:
        client.sendall(b"G")
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def expect_its_end(client: socket.socket) -> None:
    wait_until(lambda: has_ended(client), timeout=10, what="the end of a client that drips")


@pytest.fixture
def _short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "LIFETIME", 0.2)


@pytest.mark.usefixtures("_short_lives")
def test_a_client_that_drips_is_let_go(port: int) -> None:
    with connect(port) as client:
        expect_its_end(client)


@pytest.mark.usefixtures("_short_lives")
def test_a_client_that_drips_through_its_handshake_is_let_go(secured: int) -> None:
    with connect(secured) as client:
        client.sendall(b"\x16\x03\x01\x20\x00")  # a record of 8 KiB begins
        expect_its_end(client)


@pytest.mark.usefixtures("_short_lives")
def test_a_client_that_drips_behind_its_handshake_is_let_go(
    secured: int, authority: Authority
) -> None:
    with authority.client().wrap_socket(connect(secured), server_hostname=HOST) as client:
        expect_its_end(client)


def test_clients_that_drip_keep_nobody_out(port: int) -> None:
    with ExitStack() as opened:
        clients = [opened.enter_context(connect(port)) for _ in range(MOST_CONNECTIONS)]
        assert is_served(port)
        expect_its_end(clients[0])
        assert not has_ended(clients[-1])


def test_a_flood_of_connections_takes_few_threads(port: int) -> None:
    assert is_served(port)  # a thread that makes pages begins with the first one
    before = threading.active_count()
    with ExitStack() as opened:
        for _ in range(10 * MOST_CONNECTIONS):
            opened.enter_context(connect(port))
        wait_until(lambda: is_served(port), timeout=10, what="an answer behind the flood")
        assert threading.active_count() - before <= 2 * MOST_CONNECTIONS
    wait_until(lambda: threading.active_count() <= before, timeout=10, what="the threads' end")


def test_threads_that_wait_for_an_answer_are_few_too() -> None:
    before, free = threading.active_count(), threading.Event()

    def page() -> bytes:
        free.wait(30)
        return b"x"

    with metrics(page) as server, ExitStack() as opened:
        opened.callback(free.set)
        for _ in range(3 * MOST_CONNECTIONS):
            client = opened.enter_context(connect(server.port))
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert is_refused(client)
        assert threading.active_count() - before <= 2 * MOST_CONNECTIONS + 2  # accept, make pages
        free.set()
        wait_until(lambda: is_served(server.port), timeout=10, what="an answer")


def is_refused(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
