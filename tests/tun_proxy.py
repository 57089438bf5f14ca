"""A TUN device, and the plainest user-space proxy behind it: the slow path of udp and ipip.

Written from flannel's description: a packet of the device goes, with one hop less where the tunnel
takes one, to the node of its subnet; a datagram's payload goes, with one hop less, to the device.
Counts what it had to carry, so that tests can tell who did.
"""

import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Self

from testbed.namespace import Namespace
from wires import IPIP, UDP_PORT, UDP_WIRE, Wire

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TUN, _IFF_NO_PI = 1, 0x1000
_IP_MTU_DISCOVER, _PMTUDISC_DO = 10, 2


def open_tun(name: str) -> int:
    """Make a TUN device in the caller's network namespace; it goes with the descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def let_go(tun: int) -> None:
    """Keep the device without a process behind it; the descriptor leads nowhere from now on."""
    fcntl.ioctl(tun, _TUNSETPERSIST, 1)
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nowhere, tun, inheritable=False)
    os.close(nowhere)


class Proxy:
    """Carries between `tun` and a socket at `address` until it is left. A context manager."""

    def __init__(
        self,
        wire: Wire,
        *,
        namespace: Namespace,
        tun: int,
        address: str,
        peers: Mapping[IPv4Network, str],
    ) -> None:
        self._wire, self._tun, self._peers = wire, tun, peers
        self._socket = namespace.call(lambda: _bound(wire, address))
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.sent = 0
        self.received = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        self._socket.close()
        os.close(self._stop)
        os.close(self._stopped)

    def stop(self) -> None:
        """Carry nothing any more; a second time does nothing."""
        if self._thread.is_alive():
            os.write(self._stopped, b"x")
            self._thread.join()

    def _serve(self) -> None:
        sources = [self._tun, self._socket.fileno(), self._stop]
        while self._stop not in (ready := select.select(sources, [], [])[0]):
            if self._tun in ready:
                self._send(os.read(self._tun, 1 << 16))
            if self._socket.fileno() in ready:
                self._receive(self._socket.recv(1 << 16))

    def _send(self, packet: bytes) -> None:
        node = self._node_of(packet)
        if packet[0] >> 4 != 4 or node is None or packet[8] < self._wire.hops:
            return
        self.sent += 1
        with suppress(OSError):  # larger than the path takes: flannel loses it, too
            self._socket.sendto(self._wire.cross(packet), (node, UDP_PORT))

    def _receive(self, packet: bytes) -> None:
        if self._wire is not UDP_WIRE:
            packet = packet[(packet[0] & 0xF) * 4 :]  # a raw socket gives the outer header as well
        if packet[8] >= self._wire.hops:
            self.received += 1
            os.write(self._tun, self._wire.cross(packet))

    def _node_of(self, packet: bytes) -> str | None:
        address = IPv4Address(packet[16:20])
        return next((node for subnet, node in self._peers.items() if address in subnet), None)


def _bound(wire: Wire, address: str) -> socket.socket:
    if wire is UDP_WIRE:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    else:
        opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, IPIP)
    opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
    opened.bind((address, UDP_PORT))
    return opened
