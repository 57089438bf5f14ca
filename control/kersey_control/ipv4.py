"""IPv4 packets as the proxy meets them: read, judged, and changed in place. Pure.

Nothing here raises for any bytes: what is no sound packet gets a reason. Numbers are in host byte
order; addresses are ints, as they are looked up.
"""

import struct
from enum import StrEnum
from typing import NamedTuple, Self

SMALLEST = 20
_VERSION = 4
LONGEST = 65535
DONT_FRAGMENT, MORE_FRAGMENTS, OFFSET = 0x4000, 0x2000, 0x1FFF
ECN = 0x3
NOT_ECT, ECT_1, ECT_0, CE = range(4)

_FIXED = struct.Struct("!BBHHHBBHII")
_WORD = struct.Struct("!H")
_TTL, _CHECKSUM = 8, 10


class Drop(StrEnum):
    """Why a packet goes no further; where bpf/verdict.h knows the same reason, by its name."""

    TRUNCATED = "truncated"
    """shorter than its header, or than its total length, says"""
    NOT_IPV4 = "not_ipv4"
    LENGTH = "length"
    """longer than its total length says"""
    MALFORMED = "malformed"
    """impossible header length, or wrong header checksum"""
    TTL = "ttl"
    """expired here"""
    NO_PEER = "no_peer"
    """no lease has the destination"""
    TOO_BIG = "too_big"
    """for the way to the node"""
    CONGESTION = "congestion"
    """marked on the way, and the inner packet has no room for the mark (RFC 6040)"""
    UNKNOWN_NODE = "unknown_node"
    """outer source serves no lease"""
    FOREIGN_SOURCE = "foreign_source"
    """inner source is a pod address that is not of the sender's lease"""
    OUTSIDE_SOURCE = "outside_source"
    """inner source is no pod's and not the sender's own"""
    UPLINK_BUSY = "uplink_busy"
    """the kernel had no room to send"""
    UPLINK_REFUSED = "uplink_refused"
    """the kernel would not send: no way to the node, or a rule against it"""
    DEVICE_REFUSED = "device_refused"
    """the TUN device would not take it: down, or no memory"""


class Header(NamedTuple):
    """The fixed part of an IPv4 header (RFC 791). A tuple: one is made for every packet."""

    version_length: int
    tos: int
    total: int
    ident: int
    fragment: int
    ttl: int
    protocol: int
    checksum: int
    source: int
    destination: int

    @classmethod
    def of(cls, packet: memoryview) -> Self:
        """Return the header of a packet that is known to be sound."""
        return cls._make(_FIXED.unpack_from(packet))

    @property
    def size(self) -> int:
        """Return the header's length in bytes, options included."""
        return (self.version_length & 0xF) * 4


def read_header(packet: memoryview) -> Header | Drop:
    """Return the header of a whole, sound packet, else the reason why it is none."""
    if len(packet) < SMALLEST:
        return Drop.TRUNCATED
    if packet[0] >> 4 != _VERSION:
        return Drop.NOT_IPV4
    header = Header.of(packet)
    size = (header.version_length & 0xF) * 4
    if size < SMALLEST or size > header.total:
        return Drop.MALFORMED
    if header.total != len(packet):
        return Drop.TRUNCATED if header.total > len(packet) else Drop.LENGTH
    # A sound header's one's complement sum is all ones: as a big number, divisible by 0xFFFF.
    return Drop.MALFORMED if int.from_bytes(packet[:size]) % 0xFFFF else header


def checksum(data: bytes | bytearray | memoryview) -> int:
    """Return the Internet checksum of `data` (RFC 1071), by the division of one big number.

    Exact for anything that is not all zero, as no header of ours is.
    """
    total = int.from_bytes(data) << 8 * (len(data) % 2)
    return 0xFFFF - (total % 0xFFFF or 0xFFFF)


def amended(old_sum: int, old: int, new: int) -> int:
    """Return a header checksum after one of its words went from `old` to `new` (RFC 1624)."""
    total = (~old_sum & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def take_hops(packet: memoryview, header: Header, hops: int) -> None:
    """Lower the TTL by `hops`, which is less than the TTL, in place."""
    old = header.ttl << 8 | header.protocol
    packet[_TTL] = header.ttl - hops
    _WORD.pack_into(packet, _CHECKSUM, amended(header.checksum, old, old - (hops << 8)))


def set_tos(packet: memoryview, tos: int) -> None:
    """Put another TOS byte into the header, in place."""
    old, sum_ = _WORD.unpack_from(packet)[0], _WORD.unpack_from(packet, _CHECKSUM)[0]
    packet[1] = tos
    _WORD.pack_into(packet, _CHECKSUM, amended(sum_, old, old & 0xFF00 | tos))


def outer_ecn(tos: int) -> int:
    """Return what goes outside of an inner packet's TOS: its ECN, and ECT(0) for CE.

    RFC 6040 section 4.1 would have CE copied; the kernel's tunnels and our programs do not, so
    that only marks of the underlay itself are seen as its own.
    """
    ecn = tos & ECN
    return ECT_0 if ecn == CE else ecn


def merged_ecn(*, outer: int, inner: int) -> int | None:
    """Return the ECN field of a packet that leaves a tunnel, None if it has to be dropped.

    By the table in RFC 6040 section 4.2; both arguments are TOS bytes.
    """
    outer, inner = outer & ECN, inner & ECN
    if outer == CE:
        return None if inner == NOT_ECT else CE
    if outer == ECT_1 and inner == ECT_0:
        return ECT_1
    return inner
