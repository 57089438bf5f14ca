"""Pings and single datagrams to many addresses at once, and which of them were answered.

One raw socket a volley. Every question is asked a few times and every volley ends within `WAIT`
seconds, whatever answers.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from typing import NamedTuple

from kersey_control import echo

WAIT = 1.2
"""Seconds until what has not been answered counts as lost."""

_TRIES = 3
_BETWEEN = 0.3
_IP_MTU_DISCOVER, _PROBE = 10, 3  # DF set, whatever the kernel believes of the path
_BUFFER = 4 << 20
_CLOSED_PORT = 33499
"""Of traceroute's range: a port that nobody listens on."""


class Ping(NamedTuple):
    """A question: `size` is the whole IP packet's, in bytes, and it may not be fragmented."""

    address: IPv4Address
    size: int


def answered_pings(questions: Sequence[Ping]) -> frozenset[Ping]:
    """Return which pings were answered. Raises PermissionError without the right to send them."""
    waiting = dict(enumerate(questions))
    identity = int.from_bytes(os.urandom(2))
    with echo.open_echo_socket() as raw:
        raw.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        end = time.monotonic() + WAIT
        for attempt in range(_TRIES):
            for number, question in waiting.items():
                _send(raw, question, identity, number)
            last = attempt == _TRIES - 1
            until = end if last else min(end, time.monotonic() + _BETWEEN)
            _collect(raw, waiting, identity, until)
            if not waiting:
                break
    lost = set(waiting.values())
    return frozenset(question for question in questions if question not in lost)


def refused_datagrams(addresses: Iterable[IPv4Address]) -> frozenset[IPv4Address]:
    """Return which hosts answered a datagram to a closed UDP port, as every host does.

    The answer proves more than a ping: a host drops a datagram with a wrong checksum in silence.
    """
    with ExitStack() as opened:
        sockets = {}
        for address in addresses:
            made = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made.setblocking(False)
            with suppress(OSError):  # no route
                made.connect((str(address), _CLOSED_PORT))
                sockets[made] = address
        return frozenset(_refused(sockets))


def _refused(sockets: dict[socket.socket, IPv4Address]) -> set[IPv4Address]:
    found: set[IPv4Address] = set()
    poll = select.poll()
    by_number = {made.fileno(): made for made in sockets}
    for made in sockets:
        poll.register(made, 0)  # errors are always told
    end = time.monotonic() + WAIT
    for attempt in range(_TRIES):
        for made, address in sockets.items():
            if address not in found:
                with suppress(OSError):
                    made.send(b"kersey doctor")
        until = end if attempt == _TRIES - 1 else min(end, time.monotonic() + _BETWEEN)
        while len(found) < len(sockets) and (left := until - time.monotonic()) > 0:
            for number, _ in poll.poll(1000 * left):
                made = by_number[number]
                if made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
                    found.add(sockets[made])
    return found


def _send(raw: socket.socket, question: Ping, identity: int, number: int) -> None:
    body = bytes(max(0, question.size - echo.HEADERS))
    with suppress(OSError):  # no way, or larger than the device's MTU: not answered
        raw.sendto(echo.request(identity, number, body), (str(question.address), 0))


def _collect(raw: socket.socket, waiting: dict[int, Ping], identity: int, until: float) -> None:
    """Take answers off `waiting` until a time, or until none is missing."""
    while waiting and (left := until - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            packet = raw.recv(1 << 16)
        except TimeoutError:
            return
        reply = echo.read_reply(packet)
        if reply is None or reply.identity != identity:
            continue
        question = waiting.get(reply.number)
        if question is not None and question.address == reply.sender:
            del waiting[reply.number]
