"""Packets to send: what they are, how they become bytes, and how random ones are made.

The same shot with the same number is the same IP packet everywhere; only Ethernet addresses differ
between testbeds. The number is its IPv4 identification, so every packet and every ICMP error that
comes of it tells whose it is. Values only, nothing is sent here.
"""

import random
import struct
from dataclasses import dataclass, fields, replace
from enum import Enum, auto
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from hypothesis import strategies as st
from packets import ACK, DONT_FRAGMENT, FIN, MORE_FRAGMENTS, PSH, RST, SYN, TCP, UDP, checksum

from oracle.offload import Offload

ICMP = 1
MTU = 1450
SMALL_MTU = 1400
CONTROL = SYN | FIN | RST
CLIENT_ADDRESS, SERVER_ADDRESS = IPv4Address("10.244.1.2"), IPv4Address("10.244.2.2")
GHOST = IPv4Network("10.244.77.0/24")
"""A lease whose node drops everything."""

SERVICE_PORT, BACKEND_PORT = 80, 8080
CLIENT_START, SERVER_START = 1000, 5000
_URG, _ECN_FLAGS = 0x20, 0xC0
_VALID_FLAGS = {  # tcp_valid_flags of net/netfilter/nf_conntrack_proto_tcp.c
    *(SYN, SYN | _URG, SYN | ACK, RST, RST | ACK),
    *(FIN | ACK, FIN | ACK | _URG, ACK, ACK | _URG),
}
_CHECKSUM_AT = {TCP: 16, UDP: 6}
_UDP_HEADER = 8
_ETHERTYPE = 0x0800
_RESERVED = 0x8000  # RFC 791: must be zero; nobody cares


class End(Enum):
    """Which pod of a flow."""

    CLIENT = 1
    SERVER = 2

    @property
    def address(self) -> IPv4Address:
        """Return the pod's own address."""
        return CLIENT_ADDRESS if self is End.CLIENT else SERVER_ADDRESS

    @property
    def gateway(self) -> IPv4Address:
        """Return the address of the pod's bridge."""
        return self.address - 1


CLIENT, SERVER = End.CLIENT, End.SERVER


class Lane(Enum):
    """How the client reaches the server: what each believes the other's address to be."""

    DIRECT = (SERVER_ADDRESS, CLIENT_ADDRESS)
    SERVICE = (IPv4Address("10.96.0.10"), CLIENT_ADDRESS)
    MASQUERADED = (IPv4Address("10.96.0.11"), IPv4Address("10.244.1.0"))

    def remote(self, end: End) -> IPv4Address:
        """Return whom `end` sends to."""
        return self.value[0] if end is CLIENT else self.value[1]


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection; `client_port` is its own among all flows ever used."""

    protocol: int
    client_port: int
    lane: Lane = Lane.DIRECT

    def ports(self, sender: End) -> tuple[int, int]:
        """Return source and destination port as `sender` writes them."""
        if sender is SERVER:
            return BACKEND_PORT, self.client_port
        direct = self.lane is Lane.DIRECT
        return self.client_port, BACKEND_PORT if direct else SERVICE_PORT


class Target(Enum):
    """Where a packet goes, if not to the flow's other end."""

    FLOW = auto()
    OTHER_GATEWAY = auto()
    NOBODY = auto()


class Checksum(Enum):
    """What stands in a checksum field."""

    RIGHT = auto()
    WRONG = auto()
    ZERO = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One packet. The defaults are a plain one, as an admitted flow carries it.

    `length_error`, `udp_length_error` and `data_offset` falsify header fields, `trailer` is behind
    the IP packet in the frame. `foreign_port` sends it from the neighbour pod, `to_neighbour` to
    that pod's Ethernet address.
    """

    sender: End = CLIENT
    protocol: int = UDP
    primed: bool = True
    flags: int = ACK
    size: int = 32
    """Bytes behind the transport header."""
    ttl: int = 64
    tos: int = 0
    fragment: int = 0
    options: bytes = b""
    length_error: int = 0
    trailer: int = 0
    ip_checksum: Checksum = Checksum.RIGHT
    checksum: Checksum = Checksum.RIGHT
    udp_length_error: int = 0
    data_offset: int = 5
    icmp_type: int = 8
    target: Target = Target.FLOW
    foreign_port: bool = False
    to_neighbour: bool = False
    vlan: int | None = None
    segment: int = 0
    """With it, a sending stack's UDP_SEGMENT: datagrams of so many payload bytes, in one frame."""

    def __str__(self) -> str:
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in changed)
        return f"{self.sender.name} {self.protocol}: {', '.join(shown) or 'plain'}"

    @property
    def is_control(self) -> bool:
        """Whether it opens or ends a connection."""
        return self.protocol == TCP and bool(self.flags & CONTROL)

    @property
    def has_valid_flags(self) -> bool:
        """Whether TCP's flags are a combination that conntrack takes for one."""
        return self.protocol != TCP or self.flags & ~(PSH | _ECN_FLAGS) in _VALID_FLAGS

    @property
    def datagrams(self) -> int:
        """Return how many packets a network without segmentation offload would see."""
        return max(1, -(-self.size // self.segment)) if self.segment else 1

    def may_arrive_fast(self, *, direct: bool = False) -> bool:
        """Whether the receiving node may take it: what the sending one mended is not seen.

        With `direct` admission that is so for what opens and ends a connection, too.
        """
        return (
            self.protocol in _CHECKSUM_AT
            and (direct or not self.is_control)
            and self.ttl > 1
            and not self.fragment & ~(DONT_FRAGMENT | _RESERVED)
            and not self.options
            and self._length_on_wire + min(self.length_error, 0) <= MTU
            and self.target is Target.FLOW
        )

    def may_leave_fast(self, *, direct: bool = False) -> bool:
        """Whether it has nothing that is always left to the stack."""
        odd = self.length_error or self.trailer or self.vlan
        beside = self.foreign_port or self.to_neighbour
        return self.may_arrive_fast(direct=direct) and not (odd or beside)

    @property
    def length(self) -> int:
        """Return the true length of the IP packet in bytes."""
        return self._headers + self.size

    @property
    def _headers(self) -> int:
        return 20 + len(self.options) + {TCP: 20, UDP: 8}.get(self.protocol, 8)

    @property
    def _length_on_wire(self) -> int:
        """Return the length of the longest packet that comes of it."""
        return self._headers + (min(self.segment, self.size) if self.segment else self.size)

    def packet(self, number: int, flow: Flow) -> bytes:
        """Return the IP packet, identified by `number`."""
        source, destination = self.sender.address, self._destination(flow)
        body = self._transport(number, flow, source.packed + destination.packed)
        words = 5 + len(self.options) // 4
        header = struct.pack(
            "!BBHHHBBH4s4s",
            *(0x40 | words, self.tos, (self.length + self.length_error) & 0xFFFF),
            *(number, self.fragment),
            *(self.ttl, self.protocol, 0, source.packed, destination.packed),
        )
        header += self.options
        right = checksum(header)
        return header[:10] + _sum_field(self.ip_checksum, right) + header[12:] + body

    def frame(self, number: int, flow: Flow, *, source: bytes, destination: bytes) -> bytes:
        """Return the whole frame; `source` and `destination` are Ethernet addresses."""
        tag = b"" if self.vlan is None else struct.pack("!HH", 0x8100, self.vlan)
        head = destination + source + tag + struct.pack("!H", _ETHERTYPE)
        return head + self.packet(number, flow) + bytes(self.trailer)

    def offload(self, frame: bytes) -> Offload:
        """Return what a sending stack would ask of the device for this frame."""
        if not self.segment:
            return Offload(linear=len(frame))
        start = len(frame) - self.trailer - self.size - _UDP_HEADER
        return Offload(linear=start + _UDP_HEADER, segment=self.segment, checksum_start=start)

    def _destination(self, flow: Flow) -> IPv4Address:
        if self.target is Target.OTHER_GATEWAY:
            return (SERVER if self.sender is CLIENT else CLIENT).gateway
        if self.target is Target.NOBODY:
            return IPv4Address("10.244.78.5")
        return flow.lane.remote(self.sender)

    def _transport(self, number: int, flow: Flow, addresses: bytes) -> bytes:
        payload = random.Random(number).randbytes(self.size)
        if self.protocol == TCP:
            raw = self._tcp_header(number, flow) + payload
        elif self.protocol == UDP:
            length = 8 + self.size + self.udp_length_error
            raw = struct.pack("!HHHH", *flow.ports(self.sender), length & 0xFFFF, 0) + payload
        else:
            raw = struct.pack("!BBHHH", self.icmp_type, 0, 0, flow.client_port, number) + payload
            return raw[:2] + _sum_field(self.checksum, checksum(raw)) + raw[4:]
        pseudo = addresses + struct.pack("!HH", self.protocol, len(raw))
        at = _CHECKSUM_AT[self.protocol]
        # Where a device is to segment, the field holds the pseudo header's sum, not inverted.
        right = checksum(pseudo) ^ 0xFFFF if self.segment else checksum(pseudo + raw)
        return raw[:at] + _sum_field(self.checksum, right) + raw[at + 2 :]

    def _tcp_header(self, number: int, flow: Flow) -> bytes:
        """Return the header; data is never in order, or the stack would merge packets (GRO)."""
        own, other = CLIENT_START, SERVER_START
        if self.sender is SERVER:
            own, other = other, own
        opening = self.flags & (SYN | ACK)
        sequence = own if self.flags & SYN else own + 1
        if not self.flags & CONTROL and self.size:
            sequence += random.Random(-number).randrange(1, 40000)
        acknowledged = 0 if opening == SYN else other + 1
        offset_flags = self.data_offset << 12 | self.flags
        return struct.pack(
            "!HHIIHHHH",
            *(*flow.ports(self.sender), sequence, acknowledged, offset_flags, 65535, 0, 0),
        )


def _sum_field(kind: Checksum, right: int) -> bytes:
    value = {Checksum.RIGHT: right, Checksum.WRONG: right ^ 0x5A5A, Checksum.ZERO: 0}[kind]
    return struct.pack("!H", value)


_RECORD_ROUTE = bytes([7, 11, 4, *bytes(8), 1])
_LOOSE_SOURCE_ROUTE = bytes([131, 7, 4, 10, 244, 2, 2, 0])
_ROUTER_ALERT = bytes([148, 4, 0, 0])
_OPTIONS = st.sampled_from(
    [
        bytes([1, 1, 1, 0]),
        _RECORD_ROUTE,
        _LOOSE_SOURCE_ROUTE,
        _ROUTER_ALERT,
        bytes([7, 3, 9, 0]),  # a record route that is malformed: parameter problem
        bytes([0x99, 40, 1, 1]),  # longer than the header
        bytes(40),
    ]
)
_FRAGMENTS = [MORE_FRAGMENTS, 1, 185, MORE_FRAGMENTS | 2, DONT_FRAGMENT | 5, 0x1FFF, _RESERVED]
_OTHER_PROTOCOLS = [ICMP, 2, 4, 41, 47, 50, 132, 136, 254]

_TWISTS: dict[str, st.SearchStrategy[Any]] = {
    "ttl": st.sampled_from([0, 1, 2, 3, 63, 255]),
    "tos": st.integers(0, 255),
    "fragment": st.sampled_from(_FRAGMENTS),
    "options": _OPTIONS,
    "size": st.integers(0, 64) | st.integers(1380, 1560),
    "flags": st.sampled_from([0, PSH, 0x20, ACK | 0x20, ACK | 0xC0]) | st.integers(0, 255),
    "protocol": st.sampled_from(_OTHER_PROTOCOLS),
    "icmp_type": st.integers(0, 20),
    "length_error": st.sampled_from([-30, -8, -1, 1, 8, 60000]),
    "trailer": st.integers(1, 50),
    "ip_checksum": st.sampled_from(list(Checksum)),
    "checksum": st.sampled_from(list(Checksum)),
    "udp_length_error": st.sampled_from([-40, -8, -1, 1, 700]),
    "data_offset": st.sampled_from([0, 4, 6, 15]),
    "target": st.sampled_from(list(Target)),
    "foreign_port": st.booleans(),
    "to_neighbour": st.booleans(),
    "vlan": st.sampled_from([None, 0, 5]),
    "primed": st.just(value=False),
}
_DRAWN_MORE_OFTEN = ("size", "size", "flags", "tos", "ttl", "fragment")
_OF_SEGMENTED = ("ttl", "tos", "checksum", "target", "foreign_port", "to_neighbour", "primed")
"""What may change in a packet that the device segments: its headers are always in order."""

_SEGMENTS = st.sampled_from([1, 100, 1372, 1373, 1421, 1422, 1423, 1500]) | st.integers(1, 1600)
_SEGMENTED = 5
"""One shot of so many."""


@st.composite
def shots(draw: st.DrawFn) -> Shot:
    """Draw a plain packet with up to four things changed: most bugs need one or two of them."""
    return draw(_segmented() if draw(st.integers(1, _SEGMENTED)) == 1 else _single())


@st.composite
def _segmented(draw: st.DrawFn) -> Shot:
    """Draw some datagrams in one, the last one perhaps shorter."""
    segment = draw(_SEGMENTS)
    basic = Shot(
        sender=draw(st.sampled_from(End)),
        fragment=draw(st.sampled_from([0, DONT_FRAGMENT])),
        segment=segment,
        size=draw(st.integers(2, 4)) * segment - draw(st.integers(0, segment - 1)),
    )
    chosen = draw(st.lists(st.sampled_from(_OF_SEGMENTED), max_size=2, unique=True))
    return replace(basic, **{name: draw(_TWISTS[name]) for name in chosen})


@st.composite
def _single(draw: st.DrawFn) -> Shot:
    basic = Shot(
        sender=draw(st.sampled_from(End)),
        protocol=draw(st.sampled_from([TCP, UDP])),
        fragment=draw(st.sampled_from([0, DONT_FRAGMENT])),
        flags=draw(st.sampled_from([ACK, ACK | PSH])),
    )
    names = [*_TWISTS, *_DRAWN_MORE_OFTEN]
    chosen = draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    return replace(basic, **{name: draw(_TWISTS[name]) for name in chosen})
