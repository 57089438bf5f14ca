"""Numbered packets at a steady rate from one namespace to another and back: what exactly was lost.

Promises to count each packet once, at the far end and on return, and never to lose one itself:
receive buffers hold seconds of traffic, and replies still under way at the end are waited for.
UDP runs against an echo of our own, ICMP against the kernel's.
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import pairwise
from typing import Self

from testbed.namespace import Namespace
from testbed.waiting import wait_until

_NUMBER = struct.Struct("!Q")
_ICMP = struct.Struct("!BBHHH")
_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_SO_RCVBUFFORCE = 33  # missing from the socket module
_RECEIVE_BUFFER = 64 << 20  # some 80,000 small packets as the kernel accounts them
_POLL = 0.05
_TICK = 0.001
_DRAIN = 1.0
_ECHO_PORT = 7


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """One probe's result. `refused` packets never left: the sender's own kernel had no way.

    `longest_gap` is in seconds, between replies, the start and the end of sending included.
    `arrived` is what the far end saw, None where the kernel answered itself (ICMP).
    """

    sent: int
    refused: int
    arrived: int | None
    returned: int
    duplicates: int
    longest_gap: float
    missing: tuple[int, ...]
    """The numbers of the packets without a reply, counted from 0."""

    @property
    def lost(self) -> int:
        """All packets without a reply, refused ones included."""
        return len(self.missing)


class _Tally:
    """The numbers seen by one receiver, each counted once, and when they came. One writer."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.times: list[float] = []
        self.duplicates = 0

    def note(self, number: int) -> None:
        if number >= len(self.seen):
            self.seen.extend(bytes(number + 1 - len(self.seen) + 4096))
        if self.seen[number]:
            self.duplicates += 1
            return
        self.seen[number] = 1
        self.times.append(time.monotonic())

    def missing(self, sent: int) -> tuple[int, ...]:
        return tuple(i for i in range(sent) if i >= len(self.seen) or not self.seen[i])


@dataclass(frozen=True, slots=True)
class _Wire:
    """How numbers become packets: send one, read one back (None for a packet of someone else)."""

    source: socket.socket
    send: Callable[[int], None]
    number_in: Callable[[bytes], int | None]
    echo: socket.socket | None


class Probe:
    """A running flow of `rate` packets a second; make one by `udp_probe` or `icmp_probe`."""

    def __init__(self, wire: _Wire, rate: float) -> None:
        self._wire = wire
        self._rate = rate
        self._sent = 0
        self._refused = 0
        self._returned = _Tally()
        self._arrived = _Tally()
        self._started = time.monotonic()
        self._ended = 0.0
        self._stop_sending = threading.Event()
        self._stop_all = threading.Event()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._readers = [threading.Thread(target=self._collect, daemon=True)]
        if wire.echo is not None:
            self._readers.append(
                threading.Thread(target=self._echo, args=(wire.echo,), daemon=True)
            )
        self._report: ProbeReport | None = None
        for thread in (*self._readers, self._sender):
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def sent(self) -> int:
        """How many numbers were used so far."""
        return self._sent

    @property
    def returned(self) -> int:
        """How many came back so far: what to wait for to know that traffic flows."""
        return len(self._returned.times)

    def wait_flowing(self, packets: int = 20, *, timeout: float = 10.0) -> None:
        """Return once `packets` more have come back than now."""
        goal = self.returned + packets
        wait_until(lambda: self.returned >= goal, timeout=timeout, what=f"{packets} more replies")

    def stop(self) -> ProbeReport:
        """Stop sending, wait for the last replies, return the report; again, the same one."""
        if self._report is None:
            self._stop_sending.set()
            self._sender.join()
            self._ended = time.monotonic()
            self._drain()
            self._stop_all.set()
            for thread in self._readers:
                thread.join()
            self._close_sockets()
            self._report = self._make_report()
        return self._report

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN
        while self.returned < self._sent - self._refused and time.monotonic() < deadline:
            time.sleep(_POLL)

    def _close_sockets(self) -> None:
        self._wire.source.close()
        if self._wire.echo is not None:
            self._wire.echo.close()

    def _make_report(self) -> ProbeReport:
        moments = [self._started, *self._returned.times]
        if not self._returned.times or moments[-1] < self._ended:
            moments.append(self._ended)
        return ProbeReport(
            sent=self._sent,
            refused=self._refused,
            arrived=None if self._wire.echo is None else len(self._arrived.times),
            returned=self.returned,
            duplicates=self._returned.duplicates,
            longest_gap=max(later - earlier for earlier, later in pairwise(moments)),
            missing=self._returned.missing(self._sent),
        )

    def _send(self) -> None:
        while not self._stop_sending.wait(_TICK):
            due = int((time.monotonic() - self._started) * self._rate)
            while self._sent < due and not self._stop_sending.is_set():
                self._send_one()

    def _send_one(self) -> None:
        try:
            self._wire.send(self._sent)
        except OSError:  # no route, no device, a firewall's reject: a lost packet, and counted
            self._refused += 1
        self._sent += 1

    def _collect(self) -> None:
        self._read(self._wire.source, self._note_reply)

    def _note_reply(self, packet: bytes, _sender: object) -> None:
        number = self._wire.number_in(packet)
        if number is not None:
            self._returned.note(number)

    def _echo(self, echo: socket.socket) -> None:
        def answer(packet: bytes, sender: tuple[str, int]) -> None:
            self._arrived.note(_NUMBER.unpack_from(packet)[0])
            try:
                echo.sendto(packet, sender)
            except OSError:  # no way back at this moment: the number stays missing in the report
                return

        self._read(echo, answer)

    def _read(self, source: socket.socket, take: Callable[[bytes, tuple[str, int]], None]) -> None:
        while not self._stop_all.is_set():
            try:
                packet, sender = source.recvfrom(65535)
            except TimeoutError:
                continue
            take(packet, sender)


def udp_probe(
    source: Namespace,
    destination: Namespace,
    address: IPv4Address,
    *,
    rate: float = 1000,
    size: int = 64,
    port: int = _ECHO_PORT,
) -> Probe:
    """Start sending UDP packets of `size` payload bytes to `address`, echoed in `destination`.

    Good for 10,000 packets a second. `size` is at least 8.
    """
    echo = destination.call(lambda: _udp_socket(port))
    sender = source.call(lambda: _udp_socket(0))
    padding = bytes(size - _NUMBER.size)
    target = (str(address), port)

    def send(number: int) -> None:
        # Not a connected socket: on one, an ICMP error would fail a later, innocent send.
        sender.sendto(_NUMBER.pack(number) + padding, target)

    return Probe(
        _Wire(sender, send, lambda packet: int(_NUMBER.unpack_from(packet)[0]), echo), rate
    )


def icmp_probe(source: Namespace, address: IPv4Address, *, rate: float = 100) -> Probe:
    """Start sending ICMP echo requests to `address`, which the kernel there answers."""
    sender = source.call(
        lambda: _prepared(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    )
    identifier = int.from_bytes(os.urandom(2))
    target = (str(address), 0)

    def send(number: int) -> None:
        sender.sendto(_echo_request(identifier, number), target)

    return Probe(_Wire(sender, send, lambda packet: _echo_number(packet, identifier), None), rate)


def _udp_socket(port: int) -> socket.socket:
    udp = _prepared(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind(("", port))
    return udp


def _prepared(made: socket.socket) -> socket.socket:
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    made.settimeout(_POLL)
    return made


def _echo_request(identifier: int, number: int) -> bytes:
    """Return an ICMP echo request (RFC 792); the full number is in its data."""
    data = _NUMBER.pack(number)
    head = _ICMP.pack(_ECHO_REQUEST, 0, 0, identifier, number & 0xFFFF)
    total = sum(struct.unpack("!8H", head + data))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    head = _ICMP.pack(_ECHO_REQUEST, 0, total ^ 0xFFFF, identifier, number & 0xFFFF)
    return head + data


def _echo_number(packet: bytes, identifier: int) -> int | None:
    """Return the number in an answer to us; a raw socket sees everyone's ICMP, with IP header."""
    icmp = packet[(packet[0] & 0xF) * 4 :]
    kind, _code, _checksum, their_identifier, _sequence = _ICMP.unpack_from(icmp)
    if kind != _ECHO_REPLY or their_identifier != identifier:
        return None
    return int(_NUMBER.unpack_from(icmp, _ICMP.size)[0])
