"""What a frame of the underlay carries of the pod network, field by field.

Reads captured bytes and nothing else; shares no code with what writes them. What is in none of the
four forms below is no pod packet. What claims to be in one, and is not whole, is a WireError.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from testbed.capture import Frame
from testbed.errors import ClusterError

_POD_NETWORK = IPv4Network("10.244.0.0/16")
_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_VXLAN = struct.Struct("!II")
_ETHERTYPE_IPV4 = 0x0800
_PROTOCOL_IPIP, _PROTOCOL_UDP = 4, 17
_DONT_FRAGMENT, _MORE_FRAGMENTS, _OFFSET = 0x4000, 0x2000, 0x1FFF


class WireError(ClusterError):
    """Report a packet of a tunnel that does not hold what the tunnel's format says."""


class Form(StrEnum):
    """How a pod's packet crosses the underlay."""

    VXLAN = "vxlan"
    UDP = "udp"
    IPIP = "ipip"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Ethernet:
    """An Ethernet header; MACs as `ip` shows them, `kind` is the EtherType."""

    destination: str
    source: str
    kind: int


@dataclass(frozen=True, slots=True)
class Ipv4:
    """An IPv4 header with what is behind it; sizes and the offset in bytes.

    `present` is the size of all bytes that were there for the packet, `intact` whether the header's
    checksum is right. `payload` ends where `total_length` says.
    """

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    ttl: int
    tos: int
    identification: int
    dont_fragment: bool
    more_fragments: bool
    offset: int
    total_length: int
    present: int
    intact: bool
    payload: bytes

    @property
    def is_fragment(self) -> bool:
        return self.more_fragments or self.offset > 0


@dataclass(frozen=True, slots=True)
class Udp:
    """A UDP header. Under checksum offload, `checksum` may be that of the pseudo header alone."""

    source: int
    destination: int
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN header: its first word, the VNI of its second, and the inner Ethernet header."""

    flags: int
    vni: int
    reserved: int
    frame: Ethernet


@dataclass(frozen=True, slots=True)
class WirePacket:
    """One packet of the pod network as the underlay sees it.

    `outer` is the header behind `frame`; in a plain packet it is `inner` itself. A tunnel's own
    headers are None where the form has none.
    """

    at: float
    """time.monotonic(), as in Frame."""
    outgoing: bool
    form: Form
    frame: Ethernet
    outer: Ipv4
    udp: Udp | None
    vxlan: Vxlan | None
    inner: Ipv4


@dataclass(frozen=True, slots=True)
class WireFormat:
    """By what pod packets are known: the pods' network, and the ports of the tunnels."""

    network: IPv4Network = _POD_NETWORK
    vxlan_port: int = 8472
    udp_port: int = 8285

    def packets(self, frames: Iterable[Frame]) -> list[WirePacket]:
        """Return the pod packets in `frames`, in their order. Raises WireError.

        A frame of the udp form holds several where the device is to make datagrams of them
        (UDP_SEGMENT): they are read as it will make them, with lengths of their own.
        """
        return [packet for frame in frames for packet in self._read(frame)]

    def _read(self, frame: Frame) -> Iterator[WirePacket]:
        ethernet, behind = _read_ethernet(frame.raw)
        if ethernet.kind != _ETHERTYPE_IPV4:
            return
        outer = _read_ipv4(behind)
        form = self._form(outer)
        if form is None:
            return
        for datagram in _segments(outer) if form is Form.UDP else (outer,):
            udp, vxlan, inner = _read_tunnel(form, datagram)
            yield WirePacket(frame.at, frame.outgoing, form, ethernet, datagram, udp, vxlan, inner)

    def _form(self, outer: Ipv4) -> Form | None:
        # First the addresses: a pod may itself speak a tunnel's protocol.
        if outer.source in self.network or outer.destination in self.network:
            return Form.PLAIN
        if outer.protocol == _PROTOCOL_IPIP:
            return Form.IPIP
        if outer.protocol != _PROTOCOL_UDP or outer.offset:
            return None
        port = _read_udp(outer.payload)[0].destination
        return {self.vxlan_port: Form.VXLAN, self.udp_port: Form.UDP}.get(port)


def _segments(outer: Ipv4) -> Iterator[Ipv4]:
    """Yield the datagrams that a device makes of a super-packet: each of its first packet's size.

    Anything else yields itself.
    """
    udp, behind = _read_udp(outer.payload)
    size = _read_ipv4(behind).total_length
    if outer.is_fragment or size == len(behind):
        yield outer
        return
    for start in range(0, len(behind), size):
        part = behind[start : start + size]
        header = _UDP.pack(udp.source, udp.destination, _UDP.size + len(part), udp.checksum)
        length = outer.total_length - len(behind) + len(part)
        yield replace(outer, total_length=length, present=length, payload=header + part)


def _read_tunnel(form: Form, outer: Ipv4) -> tuple[Udp | None, Vxlan | None, Ipv4]:
    if form is Form.PLAIN:
        return None, None, outer
    if outer.is_fragment:
        raise WireError(f"{form} packet of {outer.source}: got a fragment, expected a whole packet")
    if form is Form.IPIP:
        return None, None, _read_ipv4(outer.payload)
    udp, behind = _read_udp(outer.payload)
    if form is Form.UDP:
        return udp, None, _read_ipv4(behind)
    vxlan, behind = _read_vxlan(behind)
    return udp, vxlan, _read_ipv4(behind)


def _read_ethernet(data: bytes) -> tuple[Ethernet, bytes]:
    destination, source, kind = _ETHERNET.unpack(_head(data, _ETHERNET, "Ethernet"))
    header = Ethernet(destination.hex(":"), source.hex(":"), kind)
    return header, data[_ETHERNET.size :]


def _read_ipv4(data: bytes) -> Ipv4:
    """Read a whole IPv4 packet; bytes behind its end are only counted."""
    first, tos, length, identification, fragment, ttl, protocol, _, source, destination = (
        _IPV4.unpack(_head(data, _IPV4, "IPv4"))
    )
    size = (first & 0xF) * 4
    if first >> 4 != 4 or not _IPV4.size <= size <= length <= len(data):
        raise WireError(f"IPv4 header: got {data[:20].hex()} with {len(data)} bytes, expected v4")
    return Ipv4(
        source=IPv4Address(source),
        destination=IPv4Address(destination),
        protocol=protocol,
        ttl=ttl,
        tos=tos,
        identification=identification,
        dont_fragment=bool(fragment & _DONT_FRAGMENT),
        more_fragments=bool(fragment & _MORE_FRAGMENTS),
        offset=(fragment & _OFFSET) * 8,
        total_length=length,
        present=len(data),
        intact=_is_intact(data[:size]),
        payload=data[size:length],
    )


def _is_intact(header: bytes) -> bool:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    return total > 0 and total % 0xFFFF == 0


def _read_udp(data: bytes) -> tuple[Udp, bytes]:
    header = Udp(*_UDP.unpack(_head(data, _UDP, "UDP")))
    return header, data[_UDP.size :]


def _read_vxlan(data: bytes) -> tuple[Vxlan, bytes]:
    flags, second = _VXLAN.unpack(_head(data, _VXLAN, "VXLAN"))
    frame, behind = _read_ethernet(data[_VXLAN.size :])
    if frame.kind != _ETHERTYPE_IPV4:
        raise WireError(f"inner EtherType: got {frame.kind:#06x}, expected {_ETHERTYPE_IPV4:#06x}")
    return Vxlan(flags, second >> 8, second & 0xFF, frame), behind


def _head(data: bytes, header: struct.Struct, name: str) -> bytes:
    if len(data) < header.size:
        raise WireError(f"{name} header: got {len(data)} bytes, expected {header.size}")
    return data[: header.size]
