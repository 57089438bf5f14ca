"""The thread that asks peers: what it does when strangers send more than it can use."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address

import pytest
from kersey_control import echo
from kersey_control.options import parse_options
from kersey_control.probes.prober import Prober
from kersey_control.probes.sockets import AT_ONCE, ProbeSockets
from kersey_control.status import Status
from testbed.waiting import wait_until

PORT = 18475


@contextmanager
def stranger(kind: str) -> Iterator[None]:
    """Leave as many datagrams or echo replies in our sockets as are read in a row, and more."""
    protocol = socket.IPPROTO_UDP if kind == "probes" else socket.IPPROTO_ICMP
    form = socket.SOCK_DGRAM if kind == "probes" else socket.SOCK_RAW
    with socket.socket(socket.AF_INET, form, protocol) as sender:
        for number in range(2 * AT_ONCE):
            data = b"x" if kind == "probes" else echo.request(1, number, b"flood")
            with suppress(OSError):
                sender.sendto(data, ("127.0.0.1", PORT))
        yield


def test_a_reply_is_of_the_address_that_sent_it() -> None:
    asked = IPv4Address("127.0.0.2")
    with ProbeSockets(PORT) as sockets:
        sockets.ping(7, b"body", asked, source=None)
        reply = wait_until(lambda: next(sockets.replies(), None), timeout=10, what="a reply")
    assert reply is not None
    assert (reply.sender, reply.number, reply.body) == (asked, 7, b"body")


@pytest.mark.parametrize("kind", ["probes", "replies"])
def test_a_flood_leaves_the_interpreter_to_others(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("kersey_control.probes.prober.time.sleep", pauses.append)
    each = Prober(Status(), parse_options([f"--probe-port={PORT}"], {}))
    with ProbeSockets(PORT) as sockets, stranger(kind):
        each._take_in(sockets)
        assert len(pauses) == 1
        for _ in range(3):
            each._take_in(sockets)
        before = len(pauses)
        each._take_in(sockets)
        assert len(pauses) == before
