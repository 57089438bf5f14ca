"""The health endpoint over real sockets; the daemon's state is a value."""

import http.client
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from kersey_control.errors import InvalidInputError
from kersey_control.health import _IDLE_CLIENT, HealthServer, HealthState
from kersey_control.status import Status


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Daemon:
    """A status, the clock it is judged by, and a running server."""

    server: HealthServer
    clock: Clock
    status: Status = field(default_factory=Status)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    clock, status = Clock(), Status(heartbeat=1000.0, store_trouble="")
    state = HealthState(status, max_silence=10.0, clock=clock)
    with HealthServer(state, address="127.0.0.1", port=0) as server:
        yield Daemon(server, clock, status)


def ask(port: int, path: str, *, host: str = "127.0.0.1", timeout: float = 10) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_healthz_is_ok_while_the_control_loop_turns(daemon: Daemon) -> None:
    daemon.clock.now += 9.0
    assert ask(daemon.server.port, "/healthz") == (200, "ok\n")


def test_healthz_fails_with_the_reason_once_the_loop_is_silent_and_recovers(daemon: Daemon) -> None:
    daemon.clock.now += 42.0
    code, text = ask(daemon.server.port, "/healthz")
    assert (code, text) == (503, "the control loop has been silent for 42 s (limit 10 s)\n")
    daemon.status.heartbeat = daemon.clock.now
    assert ask(daemon.server.port, "/healthz")[0] == 200


def test_silence_does_not_count_while_no_turn_is_expected_and_counts_behind_it(
    daemon: Daemon,
) -> None:
    daemon.status.busy_until = daemon.clock.now + 900.0
    daemon.clock.now += 909.0
    assert ask(daemon.server.port, "/healthz") == (200, "ok\n")
    daemon.clock.now += 2.0
    code, text = ask(daemon.server.port, "/healthz")
    assert (code, text) == (503, "the control loop has been silent for 11 s (limit 10 s)\n")


def test_readyz_waits_for_the_first_snapshot_and_says_what_is_in_the_way(daemon: Daemon) -> None:
    daemon.status.store_trouble = "etcd does not answer"
    code, text = ask(daemon.server.port, "/readyz")
    assert code == 503
    assert "first snapshot" in text
    assert "etcd does not answer" in text
    daemon.status.ready = True
    assert ask(daemon.server.port, "/readyz?verbose=1") == (200, "ok\n")


def test_losing_the_store_later_is_no_reason_to_be_unready(daemon: Daemon) -> None:
    daemon.status.ready = True
    daemon.status.store_trouble = "etcd does not answer"
    assert ask(daemon.server.port, "/readyz")[0] == 200


def test_head_answers_without_a_body(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.server.port), timeout=10) as client:
        client.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"Content-Length: 3" in head
    assert body == b""


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz/"])
def test_other_paths_are_not_found(daemon: Daemon, path: str) -> None:
    assert ask(daemon.server.port, path)[0] == 404


def test_a_client_that_says_nothing_holds_up_nobody(daemon: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", daemon.server.port)):
        # Sooner than the silent client is let go, so that its end cannot be what lets us in.
        assert ask(daemon.server.port, "/healthz", timeout=_IDLE_CLIENT / 2)[0] == 200


def test_requests_write_no_log(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    ask(daemon.server.port, "/healthz")
    ask(daemon.server.port, "/nonsense")
    assert capfd.readouterr() == ("", "")


def test_a_v6_address_can_be_listened_on() -> None:
    state = HealthState(Status(ready=True), max_silence=1.0, clock=lambda: 0.0)
    with HealthServer(state, address="::1", port=0) as server:
        assert ask(server.port, "/readyz", host="::1")[0] == 200


@pytest.mark.parametrize("address", ["192.0.2.200", "no such host"])
def test_an_address_that_is_not_ours_is_a_clear_error(address: str) -> None:
    state = HealthState(Status(), max_silence=1.0, clock=lambda: 0.0)
    with (
        pytest.raises(InvalidInputError, match="healthz-ip and healthz-port"),
        HealthServer(state, address=address, port=0),
    ):
        pass


def test_a_port_in_use_is_a_clear_error(daemon: Daemon) -> None:
    state = HealthState(Status(), max_silence=1.0, clock=lambda: 0.0)
    with (
        pytest.raises(InvalidInputError, match="Address already in use"),
        HealthServer(state, address="127.0.0.1", port=daemon.server.port),
    ):
        pass


def test_closing_frees_the_port_and_may_be_repeated(daemon: Daemon) -> None:
    port = daemon.server.port
    daemon.server.close()
    daemon.server.close()
    assert daemon.server.port == 0
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/healthz")
