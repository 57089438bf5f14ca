"""The tunnels that the programs know: what is ours in each, and the headers a peer gets in front.

Values only; every multi-byte field of bytes is in network byte order. bpf/lib/tunnel_*.h has the
other half: what differs from packet to packet.
"""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import ClassVar

_ETHERNET = bytes(12) + b"\x08\x00"  # the neighbour entry fills the addresses in
_TTL = 64
_UDP, _IPIP = 17, 4
_DONT_FRAGMENT = 0x4000
_IP_AT, _IP_SIZE = 14, 20


class TunnelKind(StrEnum):
    """Which programs are compiled: those that know this tunnel."""

    VXLAN = "vxlan"
    UDP = "udp"
    IPIP = "ipip"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Identity:
    """How programs tell the tunnel's packets from others. What a tunnel does not have is zero."""

    port: bytes = bytes(2)
    vni: bytes = bytes(4)
    mac: bytes = bytes(6)


@dataclass(frozen=True, slots=True)
class VxlanTunnel:
    """VXLAN (RFC 7348): what the kernel's own device sends. `mac` is our device's, six bytes."""

    vni: int
    port: int
    mac: bytes
    kind: ClassVar[TunnelKind] = TunnelKind.VXLAN

    def __str__(self) -> str:
        return f"UDP port {self.port}"

    @property
    def identity(self) -> Identity:
        """Return what programs compare."""
        return Identity(_port(self.port), (self.vni << 8).to_bytes(4, "big"), self.mac)

    def template(self, *, source: IPv4Address, destination: IPv4Address, mac: bytes) -> bytes:
        """Return all headers in front of a packet to the peer whose device has `mac`."""
        identity = self.identity
        return (
            _ETHERNET
            + _ipv4(source, destination, protocol=_UDP)
            + bytes(2) + identity.port + bytes(4)
            + bytes.fromhex("08000000") + identity.vni
            + mac + self.mac + bytes.fromhex("0800")
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class UdpTunnel:
    """flannel's udp backend: the inner packet is the payload of a datagram, port to same port."""

    port: int
    kind: ClassVar[TunnelKind] = TunnelKind.UDP

    def __str__(self) -> str:
        return f"UDP port {self.port}"

    @property
    def identity(self) -> Identity:
        """Return what programs compare."""
        return Identity(_port(self.port))

    def template(self, *, source: IPv4Address, destination: IPv4Address, mac: bytes) -> bytes:
        """Return all headers in front of a packet to a peer; `mac` is not needed."""
        del mac
        ports = _port(self.port) * 2
        header = _ipv4(source, destination, protocol=_UDP, fragment=_DONT_FRAGMENT)
        return _ETHERNET + header + ports + bytes(4)


@dataclass(frozen=True, slots=True)
class IpipTunnel:
    """IP in IP (RFC 2003). TTL and DF of the outer header are the inner packet's."""

    kind: ClassVar[TunnelKind] = TunnelKind.IPIP

    def __str__(self) -> str:
        return "IP protocol 4"

    @property
    def identity(self) -> Identity:
        """Return what programs compare: nothing but addresses."""
        return Identity()

    def template(self, *, source: IPv4Address, destination: IPv4Address, mac: bytes) -> bytes:
        """Return all headers in front of a packet to a peer; `mac` is not needed."""
        del mac
        return _ETHERNET + _ipv4(source, destination, protocol=_IPIP, ttl=0)


Tunnel = VxlanTunnel | UdpTunnel | IpipTunnel


def tunnel_of(kind: TunnelKind, identity: Identity) -> Tunnel | None:
    """Return the tunnel that has this identity; None where there is no tunnel."""
    port, vni = int.from_bytes(identity.port), int.from_bytes(identity.vni) >> 8
    match kind:
        case TunnelKind.VXLAN:
            return VxlanTunnel(vni, port, identity.mac)
        case TunnelKind.UDP:
            return UdpTunnel(port)
        case TunnelKind.IPIP:
            return IpipTunnel()
        case TunnelKind.NONE:
            return None


def partial_sum(template: bytes) -> int:
    """Return the sum of the outer IPv4 header's words as they lie in memory (RFC 1071)."""
    header = template[_IP_AT : _IP_AT + _IP_SIZE]
    return sum(int.from_bytes(header[at : at + 2], "little") for at in range(0, len(header), 2))


def _ipv4(
    source: IPv4Address,
    destination: IPv4Address,
    *,
    protocol: int,
    fragment: int = 0,
    ttl: int = _TTL,
) -> bytes:
    """Return an outer header with what a packet decides left zero, the checksum included."""
    fixed = b"\x45" + bytes(5) + fragment.to_bytes(2, "big") + bytes([ttl, protocol, 0, 0])
    return fixed + source.packed + destination.packed


def _port(number: int) -> bytes:
    return number.to_bytes(2, "big")
