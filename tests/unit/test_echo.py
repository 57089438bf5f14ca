"""Echo replies as bytes: who sent them, and for which of the doctor's questions they count."""

import socket
import time
from ipaddress import IPv4Address

import pytest
from kersey_control import echo
from kersey_control.doctor.pings import Ping, _collect
from kersey_control.echo import Reply, read_reply
from scapy.layers.inet import ICMP, IP, IPOption_NOP

ASKED, OTHER = IPv4Address("198.18.0.2"), IPv4Address("198.18.0.3")
REPLY = 0


def packet(sender: IPv4Address, *, number: int = 3, kind: int = REPLY, options: int = 0) -> bytes:
    """Return an IPv4 packet with an echo message of identity 9."""
    header = IP(src=str(sender), dst="198.18.0.1", options=[IPOption_NOP()] * options)
    return bytes(header / ICMP(type=kind, id=9, seq=number) / b"body")


@pytest.mark.parametrize("options", [0, 8])
def test_a_reply_says_who_sent_it(options: int) -> None:
    assert read_reply(packet(ASKED, options=options)) == Reply(ASKED, 9, 3, b"body")


def test_what_is_no_reply_is_none() -> None:
    whole = packet(ASKED)
    assert read_reply(packet(ASKED, kind=8)) is None
    assert all(read_reply(whole[:size]) is None for size in range(echo.HEADERS))
    assert read_reply(bytes(1) + whole[1:]) is None


def test_the_doctor_believes_only_whom_it_asked() -> None:
    waiting = {3: Ping(ASKED, 84)}
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs, ours:
        theirs.send(packet(OTHER))
        theirs.send(packet(ASKED, number=5))
        theirs.send(packet(ASKED))
        _collect(ours, waiting, 9, time.monotonic() + 10)
        assert waiting == {}
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):  # it was the last one that was believed
            ours.recv(1)
