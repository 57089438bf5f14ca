"""The socket between daemon and operator: questions, answers, and what a broken one costs."""

import resource
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from kersey_control import status_socket
from kersey_control.addresses import Mac
from kersey_control.errors import InvalidInputError, UnavailableError
from kersey_control.peer import Peer, Via
from kersey_control.status import PeerState, Status
from kersey_control.status_socket import (
    SOCKET_FILE,
    NoDaemonError,
    StatusSocket,
    ask_flush,
    ask_peers,
    ask_status,
    describe,
)
from kersey_control.told import ToldOptions, ToldPeer
from kersey_control.uplink import Uplink
from testbed import wait_until

OPTIONS = ToldOptions(admission="strict", etcd_endpoints=("http://one:2379",))
ONE, TWO, THREE = (IPv4Network(f"10.244.{n}.0/24") for n in (1, 2, 3))


def status() -> Status:
    return Status(
        backend="vxlan",
        network=IPv4Network("10.244.0.0/16"),
        uplink=Uplink(2, "eth0", IPv4Address("198.18.0.1"), IPv4Address("198.18.0.9"), 1500, "x"),
        heartbeat=time.monotonic() - 3.0,
        refused={TWO: "EPERM: no", THREE: "BackendType: got 'x', expected 'vxlan'"},
        peers=(
            PeerState(Peer(TWO, IPv4Address("198.18.0.2"), Via.DIRECT), "failing", "EPERM: no"),
            PeerState(
                Peer(ONE, IPv4Address("198.18.0.3"), Via.VXLAN, Mac("0e:00:00:00:00:01")),
                "programmed",
                "",
            ),
        ),
    )


class Flushes:
    """Count flushes; fail as told."""

    def __init__(self) -> None:
        self.count = 0
        self.trouble = ""

    def __call__(self) -> None:
        self.count += 1
        if self.trouble:
            raise UnavailableError(self.trouble)


@pytest.fixture
def flushes() -> Flushes:
    return Flushes()


@pytest.fixture
def state_dir(tmp_path: Path, flushes: Flushes) -> Iterator[Path]:
    """Give a test the state directory of a daemon that answers."""
    with StatusSocket(status(), tmp_path / "state", OPTIONS, flushes):
        yield tmp_path / "state"


def raw(state_dir: Path, line: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(state_dir / SOCKET_FILE))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_status_comes_back_as_it_is(state_dir: Path) -> None:
    told = ask_status(state_dir)
    assert told.backend == "vxlan"
    assert told.network == "10.244.0.0/16"
    assert told.uplink is not None
    assert (told.uplink.address, told.uplink.public_ip) == ("198.18.0.1", "198.18.0.9")
    assert told.options == OPTIONS
    assert told.fast_path is None
    assert told.subnet is None
    assert 3.0 <= told.silent_seconds < 60.0


def test_while_the_daemon_prepares_nobody_calls_it_silent() -> None:
    now = time.monotonic()
    busy = Status(heartbeat=now - 60.0, busy_until=now + 900.0)
    assert describe(busy, OPTIONS).silent_seconds == 0.0


def test_every_peer_is_told_by_subnet_and_refused_leases_too(state_dir: Path) -> None:
    assert ask_peers(state_dir) == [
        ToldPeer(str(ONE), "198.18.0.3", "vxlan", "programmed", "", "0e:00:00:00:00:01"),
        ToldPeer(str(TWO), "198.18.0.2", "direct", "failing", "EPERM: no"),
        ToldPeer(str(THREE), "", "", "refused", "BackendType: got 'x', expected 'vxlan'"),
    ]


def test_a_flush_reaches_the_daemon_and_its_reason_comes_back(
    state_dir: Path, flushes: Flushes
) -> None:
    ask_flush(state_dir)
    assert flushes.count == 1
    flushes.trouble = "there is no fast path: asked for"
    with pytest.raises(UnavailableError, match="kerseyd: there is no fast path: asked for"):
        ask_flush(state_dir)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"verb": "reboot"}\n', b"verb: got 'reboot', expected one of status, peers, flush"),
        (b"GET / HTTP/1.1\n", b"expected a JSON object"),
        (b"", b"expected a JSON object"),
        (b"x" * 4096, b"expected a JSON object"),
    ],
)
def test_nonsense_is_answered_in_words_and_harms_no_later_question(
    state_dir: Path, line: bytes, words: bytes
) -> None:
    assert words in raw(state_dir, line)
    assert ask_status(state_dir).backend == "vxlan"


def test_one_who_asks_nothing_does_not_keep_others_waiting_for_ever(state_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(state_dir / SOCKET_FILE))
        assert ask_status(state_dir).backend == "vxlan"


def test_a_lack_of_descriptors_is_told_once_and_ends_no_answers(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(status_socket, "ACCEPT_PAUSE", 0.01)
    # An accept() that waits has its descriptor already: it is the second client who finds none.
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        with no_descriptors():
            for client in (first, second):
                client.settimeout(10)
                client.connect(str(state_dir / SOCKET_FILE))
                client.sendall(b'{"verb": "peers"}\n')
            wait_until(lambda: "nobody can ask" in caplog.text, timeout=10, what="a warning")
            time.sleep(20 * status_socket.ACCEPT_PAUSE)  # further tries, that could be told, too
        for client in (first, second):
            assert client.recv(4096).startswith(b'{"')
    assert caplog.text.count("nobody can ask") == 1


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have this process open none meanwhile; those that are open work on."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # poll(2) heeds it, too
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_socket_is_for_root_alone(state_dir: Path) -> None:
    assert stat.S_IMODE((state_dir / SOCKET_FILE).stat().st_mode) == 0o600


def test_it_is_gone_with_the_daemon_without_a_word(
    tmp_path: Path, flushes: Flushes, caplog: pytest.LogCaptureFixture
) -> None:
    with StatusSocket(status(), tmp_path, OPTIONS, flushes):
        pass
    wait_until(lambda: not has_thread("status"), timeout=10, what="the thread's end")
    assert caplog.text == ""
    with pytest.raises(NoDaemonError, match=f"no kerseyd runs here with --state-dir={tmp_path}"):
        ask_status(tmp_path)


def has_thread(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


def test_a_socket_that_a_crash_left_is_no_daemon_and_is_taken_over(
    tmp_path: Path, flushes: Flushes
) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET_FILE))
    with pytest.raises(NoDaemonError):
        ask_status(tmp_path)
    with StatusSocket(status(), tmp_path, OPTIONS, flushes):
        assert ask_status(tmp_path).backend == "vxlan"


def test_a_daemon_that_talks_nonsense_is_reported_as_one_that_does_not_answer(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_FILE))
        listener.listen()
        listener.settimeout(5)

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(b"{}nonsense")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UnavailableError, match="does not answer"):
            ask_status(tmp_path)
        thread.join()


def test_a_state_directory_that_holds_no_socket_is_refused(
    tmp_path: Path, flushes: Flushes
) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InvalidInputError, match="state-dir"),
        StatusSocket(status(), tmp_path / "file", OPTIONS, flushes),
    ):
        pass
