"""The two sockets of probes: a UDP port on every address, and a raw one for echo. Never blocks.

Every datagram says by control data which of our addresses it leaves from, so that neither a new
address nor a device that was made again needs another socket.
"""

import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

from kersey_control import echo
from kersey_control.errors import UnavailableError
from kersey_control.probes.message import SIZE

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Datagrams read in a row: other things have their turn in between."""

_IP_PKTINFO = 8
_PKTINFO = struct.Struct("=I4s4s")  # struct in_pktinfo: ifindex, our address, the header's
_ROOM = 256  # an echo reply has at most 60 + 8 bytes of headers


class ProbeSockets:
    """Both sockets, open while the context lasts. Entering raises UnavailableError.

    Without the right to a raw socket there is only the other one.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._identity = int.from_bytes(os.urandom(2))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._raw: socket.socket | None = None

    def __enter__(self) -> Self:
        try:
            self._udp.bind(("", self._port))
        except OSError as error:
            self._udp.close()
            raise UnavailableError(f"UDP port {self._port}: {error.strerror}") from error
        self._udp.setblocking(False)
        try:
            self._raw = echo.open_echo_socket()
            self._raw.setblocking(False)
        except OSError as error:
            logger.warning("peers cannot be pinged", extra={"reason": str(error)})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._udp.close()
        if self._raw is not None:
            self._raw.close()

    def filenos(self) -> tuple[int, ...]:
        """Return what to wait for."""
        return tuple(each.fileno() for each in (self._udp, self._raw) if each is not None)

    def send(self, data: bytes, to: IPv4Address, *, source: IPv4Address | None) -> None:
        """Send a probe; what the kernel will not send is lost. None: by the route's address."""
        self._send(self._udp, data, (str(to), self._port), source)

    def ping(
        self, number: int, body: bytes, to: IPv4Address, *, source: IPv4Address | None
    ) -> None:
        """Send an echo request, as `send`."""
        if self._raw is not None:
            message = echo.request(self._identity, number, body)
            self._send(self._raw, message, (str(to), 0), source)

    def probes(self) -> Iterator[tuple[bytes, IPv4Address, int]]:
        """Yield some of the datagrams that wait, and the address and port that each is from."""
        return _receive(self._udp, SIZE + 1)

    def replies(self) -> Iterator[echo.Reply | None]:
        """Yield some of the echo replies that wait, None for each that is not to us."""
        if self._raw is None:
            return
        for packet, _, _ in _receive(self._raw, _ROOM):
            reply = echo.read_reply(packet)
            is_ours = reply is not None and reply.identity == self._identity
            yield reply if is_ours else None

    def _send(
        self,
        by: socket.socket,
        data: bytes,
        to: tuple[str, int],
        source: IPv4Address | None,
    ) -> None:
        control = []
        if source is not None:
            info = _PKTINFO.pack(0, source.packed, bytes(4))
            control = [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
        with suppress(OSError):
            by.sendmsg([data], control, 0, to)


def _receive(source: socket.socket, room: int) -> Iterator[tuple[bytes, IPv4Address, int]]:
    for _ in range(AT_ONCE):
        try:
            data, (address, port) = source.recvfrom(room)
        except OSError:  # nothing more, or an error of something that was sent
            return
        yield data, IPv4Address(address), port
