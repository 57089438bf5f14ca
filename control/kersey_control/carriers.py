"""How packets travel between nodes when user space carries them: bare in UDP, or IP in IP.

Sockets only: a carrier knows neither routes nor devices, and judges nothing. All are non-blocking,
and work in the network namespace of the thread that makes them. Nodes are ints in host byte order.
"""

import contextlib
import errno
import socket
import struct
from functools import lru_cache
from ipaddress import IPv4Address
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from kersey_control.errors import KernelError
from kersey_control.ipv4 import DONT_FRAGMENT, LONGEST
from kersey_control.rtnetlink import enlarge_receive_buffer

UDP_PORT = 8285
"""flannel's default."""

# include/uapi/linux/udp.h, in.h and asm-generic/socket.h, as far as the socket module lacks them
_UDP_SEGMENT, _UDP_GRO = 103, 104
_IP_MTU_DISCOVER, _IP_MTU = 10, 14
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_SNDBUFFORCE = 32
_BUFFER = 4 << 20  # 1,800 full packets as the kernel counts them: 20 ms at 1 Gbit/s

_ANCILLARY = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(1)
_SEGMENTS = 64  # UDP_MAX_SEGMENTS before Linux 6.9
_UDP_PAYLOAD = LONGEST - 28
_INT = struct.Struct("=i")
_SIZE = struct.Struct("=H")
_ADDRESS = struct.Struct("!I")
_OUTER = struct.Struct("!BBHHHBBHII")
_KNOWN_NODES = 4096


class CarrierError(KernelError):
    """Report a socket that cannot be had: an address that is not ours, a port that is taken."""


class Arrival(NamedTuple):
    """Packets that arrived from one node, one behind the other, each `size` bytes but the last.

    `tos` is the outer header's.
    """

    node: int
    packets: memoryview
    size: int
    tos: int


class Carrier(Protocol):
    """A socket that carries inner packets to nodes and from nodes."""

    @property
    def overhead(self) -> int:
        """Bytes in front of an inner packet, outer IP header included."""

    @property
    def most(self) -> int:
        """How many packets of one size `send` takes at once."""

    @property
    def carries_ecn(self) -> bool:
        """Whether the ECN of the inner packet goes outside."""

    def fileno(self) -> int:
        """Return the descriptor, for poll."""

    def send(self, packets: memoryview, *, size: int, node: int, ecn: int) -> None:
        """Send packets of `size` bytes, the last one at most so long, each on its own.

        Raises OSError, EMSGSIZE where the way to the node is too narrow; then none was sent.
        """

    def send_in_fragments(self, packet: memoryview, *, node: int, ecn: int) -> None:
        """Send one packet so that routers may fragment the outer one. Raises OSError."""

    def receive(self, room: memoryview) -> Arrival | None:
        """Receive into `room`, None if nothing is there. Raises OSError."""

    def close(self) -> None:
        """Close the socket; twice without harm."""

    def mtu_to(self, node: int) -> int:
        """Return the length in bytes of the longest inner packet for the way to a node.

        Raises OSError.
        """


class _Socket:
    """What carriers share: the socket's lifetime, its buffers, the kernel's path MTU."""

    overhead: int

    def __init__(self, address: IPv4Address, port: int, kind: int, protocol: int) -> None:
        self._address = str(address)
        self._resources = contextlib.ExitStack()
        try:
            self._socket = self._open(port, kind, protocol)
            # Made now, since the thread that asks later may be in another network namespace.
            self._asker = self._resources.enter_context(
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            )
            self._asker.bind((self._address, 0))
        except OSError as error:
            self.close()
            name = errno.errorcode.get(error.errno or 0, "")
            raise CarrierError(f"socket at {address}, port {port}: {name} ({error})") from error

    def _open(self, port: int, kind: int, protocol: int) -> socket.socket:
        opened = self._resources.enter_context(
            socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK, protocol)
        )
        enlarge_receive_buffer(opened, _BUFFER)
        with contextlib.suppress(PermissionError):
            opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        opened.bind((self._address, port))
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; twice without harm."""
        self._resources.close()

    def fileno(self) -> int:
        """Return the descriptor, for poll."""
        return self._socket.fileno()

    def mtu_to(self, node: int) -> int:
        """Return the length of the longest inner packet that the way to a node takes."""
        self._asker.connect((_text(node), UDP_PORT))  # any port: nothing is sent
        return self._asker.getsockopt(socket.IPPROTO_IP, _IP_MTU) - self.overhead


class UdpCarrier(_Socket):
    """One inner packet as the whole payload of a UDP datagram, as flannel's udp backend does it.

    Every datagram leaves from `port` to the same port of the node, with DF set. `merge` lets the
    kernel hand over many equal datagrams at once, and network cards merge them earlier: never where
    programs read the same datagrams. No ECN goes outside: flannel does not look at that header,
    so a mark of the underlay would be lost instead of a packet (RFC 6040 section 4.1). Marks that
    arrive are honoured. Raises CarrierError.
    """

    overhead = 28
    carries_ecn = False

    def __init__(
        self,
        address: IPv4Address,
        port: int = UDP_PORT,
        *,
        merge: bool = False,
    ) -> None:
        super().__init__(address, port, socket.SOCK_DGRAM, 0)
        self.most = _SEGMENTS
        self._port = port
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        if merge:
            with contextlib.suppress(OSError):  # before Linux 5.0
                self._socket.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)

    def send(self, packets: memoryview, *, size: int, node: int, ecn: int) -> None:
        """Send each packet as a datagram; see Carrier."""
        target = (_text(node), self._port)
        if len(packets) <= size and not ecn:
            self._socket.sendto(packets, target)
            return
        notes: list[tuple[int, int, bytes]] = []
        if len(packets) > size:
            notes.append((socket.SOL_UDP, _UDP_SEGMENT, _SIZE.pack(size)))
        if ecn:
            notes.append((socket.IPPROTO_IP, socket.IP_TOS, _INT.pack(ecn)))
        try:
            self._socket.sendmsg([packets], notes, 0, target)
        except OSError as error:
            if error.errno == errno.EIO:  # this uplink cannot, before Linux 6.2
                self.most = 1
            raise

    def send_in_fragments(self, packet: memoryview, *, node: int, ecn: int) -> None:
        """Send one datagram without DF; see Carrier."""
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        try:
            self.send(packet, size=len(packet), node=node, ecn=ecn)
        finally:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)

    def receive(self, room: memoryview) -> Arrival | None:
        """Receive one datagram, or with `merge` many of one sender; see Carrier."""
        try:
            length, notes, _, (host, _) = self._socket.recvmsg_into([room], _ANCILLARY)
        except BlockingIOError:
            return None
        size, tos = length, 0
        for level, kind, value in notes:
            if (level, kind) == (socket.SOL_UDP, _UDP_GRO):
                size = _INT.unpack(value)[0]
            elif (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS):
                tos = value[0]
        return Arrival(_number(host), room[:length], size, tos)


class IpipCarrier(_Socket):
    """One inner packet behind one IPv4 header (RFC 2003), as the kernel's ipip device does it.

    Outer TTL, DF and ECN are the inner ones. The socket hears protocol 4 for its address, whole
    packets after reassembly. Raises CarrierError.
    """

    overhead = 20
    most = 1
    carries_ecn = True

    def __init__(self, address: IPv4Address) -> None:
        super().__init__(address, 0, socket.SOCK_RAW, socket.IPPROTO_IPIP)
        self._source = int(address)
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)

    def send(self, packets: memoryview, *, size: int, node: int, ecn: int) -> None:
        """Send one packet; see Carrier. The kernel fills in identification and checksum."""
        fragment = (packets[6] << 8) & DONT_FRAGMENT
        ttl = packets[8]
        header = _OUTER.pack(
            *(0x45, ecn, self.overhead + size, 0, fragment, ttl, socket.IPPROTO_IPIP, 0),
            *(self._source, node),
        )
        self._socket.sendmsg([header, packets], [], 0, (_text(node), 0))

    def send_in_fragments(self, packet: memoryview, *, node: int, ecn: int) -> None:
        """Let the kernel make the outer header: with one of ours it never fragments."""
        notes = [
            (socket.IPPROTO_IP, socket.IP_TTL, _INT.pack(packet[8])),
            (socket.IPPROTO_IP, socket.IP_TOS, _INT.pack(ecn)),
        ]
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 0)
        try:
            self._socket.sendmsg([packet], notes, 0, (_text(node), 0))
        finally:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)

    def receive(self, room: memoryview) -> Arrival | None:
        """Receive one packet and look behind its outer header; see Carrier."""
        try:
            length = self._socket.recv_into(room)
        except BlockingIOError:
            return None
        start = (room[0] & 0xF) * 4  # sound: the kernel has read it
        packet = room[start:length]
        return Arrival(_ADDRESS.unpack_from(room, 12)[0], packet, len(packet), room[1])


@lru_cache(_KNOWN_NODES)
def _text(node: int) -> str:
    return socket.inet_ntoa(_ADDRESS.pack(node))


@lru_cache(_KNOWN_NODES)
def _number(host: str) -> int:
    return int(_ADDRESS.unpack(socket.inet_aton(host))[0])
