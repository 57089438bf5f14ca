"""A node that speaks flannel's udp mode, one datagram at a time, in the hands of a test.

Made from the description of the wire alone, and of nothing that we have: an inner IPv4 packet is
the whole payload of a UDP datagram from port 8285 to port 8285, DF set, with a checksum; each end
takes one from the inner TTL.
"""

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

import packets
from testbed import Capture, Frame, Namespace, wait_until

PORT = 8285
_ETHERNET = 14
_PATIENCE = 5.0
_IP_MTU_DISCOVER, _PMTUDISC_DO = 10, 2


@dataclass(frozen=True, slots=True)
class Datagram:
    """What a datagram of the tunnel looks like on the wire."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    dont_fragment: bool
    tos: int
    has_checksum: bool
    inner: bytes


class UdpPeer:
    """The end of the tunnel at `address`, in a namespace that has this address. A context manager.

    `node` is the other end.
    """

    def __init__(self, namespace: Namespace, address: IPv4Address, node: IPv4Address) -> None:
        self._node = str(node)
        self._socket = namespace.call(lambda: _bound(str(address)))
        self._capture = Capture(namespace, "eth0")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._capture.stop()
        self._socket.close()

    def send(self, inner: bytes, *, tos: int = 0) -> None:
        """Send an inner packet as it is."""
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        self._socket.sendto(inner, (self._node, PORT))

    def send_from_stack(self, packet: bytes) -> None:
        """Send what our stack would hand over: one hop is ours."""
        self.send(packets.hop(packet))

    def receive(self) -> bytes:
        """Return the next inner packet, byte for byte. TimeoutError after some seconds."""
        inner, sender = self._socket.recvfrom(65536)
        assert sender == (self._node, PORT)
        return inner

    def seen(self, inner: bytes) -> Datagram:
        """Return the datagram in which this inner packet came, as captured."""
        return wait_until(
            lambda: [found for found in self._datagrams() if found.inner == inner],
            timeout=_PATIENCE,
            what="the datagram on the wire",
        )[0]

    def _datagrams(self) -> list[Datagram]:
        found = (_datagram(frame) for frame in self._capture.frames if not frame.outgoing)
        return [datagram for datagram in found if datagram is not None]


def _bound(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
    made.settimeout(_PATIENCE)
    made.bind((address, PORT))
    return made


def _datagram(frame: Frame) -> Datagram | None:
    ip = frame.raw[_ETHERNET:]
    if frame.raw[12:14] != b"\x08\x00" or ip[9] != packets.UDP:
        return None
    source_port, destination_port, length, checksum = struct.unpack_from("!HHHH", ip, 20)
    return Datagram(
        source=str(IPv4Address(ip[12:16])),
        destination=str(IPv4Address(ip[16:20])),
        source_port=source_port,
        destination_port=destination_port,
        dont_fragment=bool(ip[6] & 0x40),
        tos=ip[1],
        has_checksum=checksum != 0,
        inner=ip[28 : 20 + length],
    )
