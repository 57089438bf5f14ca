"""How each tunnel looks on the wire, built by hand: what the programs are compared with.

Written from the formats alone (RFC 7348, RFC 2003, RFC 6040, flannel's udp proxy); shares nothing
with the loader's templates but the tunnel's values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import packets as p
from kersey_loader.tunnel import IpipTunnel, Tunnel, TunnelKind, UdpTunnel, VxlanTunnel

NOWHERE = "00:00:00:00:00:00"
VNI, VXLAN_PORT = 1, 8472
UDP_PORT = 8285
IPIP = 4
_OUR_VTEP = "0e:00:00:00:00:01"
_ECT0, _CE = 2, 3

Encapsulate = Callable[..., bytes]
"""From an inner packet, as it is inside the tunnel, to the outer one; keywords as of `ipv4`."""


@dataclass(frozen=True)
class Wire:
    """A kind of tunnel: `room` in bytes; `hops` that each end takes from the inner TTL."""

    kind: TunnelKind
    tunnel: Tunnel | None
    encapsulate: Encapsulate
    room: int = 0
    hops: int = 1

    def leave(self, packet: bytes) -> bytes:
        """Return an inner packet as it is after one end of the tunnel, router included."""
        for _ in range(self.hops):
            packet = p.hop(packet)
        return packet

    def cross(self, packet: bytes) -> bytes:
        """Return an inner packet as it is after one end of the tunnel without the router."""
        for _ in range(self.hops - 1):
            packet = p.hop(packet)
        return packet


def outer_tos(inner: bytes) -> int:
    """Return the TOS that an outer header gets: ECN alone is copied, CE never (RFC 6040, 4.1)."""
    ecn = inner[1] & 3
    return _ECT0 if ecn == _CE else ecn


def _in_vxlan(inner: bytes, *, dst_vtep: str = NOWHERE, sport: int = 50000, **ip: object) -> bytes:
    frame = p.ethernet(inner, dst=dst_vtep, src=_OUR_VTEP)
    fields: dict[str, object] = {"tos": outer_tos(inner), **ip}
    return p.ipv4(p.udp(p.vxlan(frame), src=sport, dst=VXLAN_PORT), **fields)  # type: ignore[arg-type]


def _in_udp(
    inner: bytes, *, sport: int = UDP_PORT, udp_length: int | None = None, **ip: object
) -> bytes:
    datagram = p.udp(inner, src=sport, dst=UDP_PORT, length=udp_length)
    fields: dict[str, object] = {"tos": 0, "fragment": p.DONT_FRAGMENT, **ip}
    return p.ipv4(datagram, **fields)  # type: ignore[arg-type]


def _in_ipip(inner: bytes, **ip: object) -> bytes:
    fields: dict[str, object] = {
        "tos": outer_tos(inner),
        "ttl": inner[8],
        "fragment": int.from_bytes(inner[6:8]) & p.DONT_FRAGMENT,
        "protocol": IPIP,
        **ip,
    }
    return p.ipv4(inner, **fields)  # type: ignore[arg-type]


def _in_nothing(inner: bytes, **_ip: object) -> bytes:
    return inner


VXLAN_WIRE = Wire(
    TunnelKind.VXLAN,
    VxlanTunnel(vni=VNI, port=VXLAN_PORT, mac=p.mac(_OUR_VTEP)),
    _in_vxlan,
    room=50,
)
UDP_WIRE = Wire(TunnelKind.UDP, UdpTunnel(UDP_PORT), _in_udp, room=28, hops=2)
IPIP_WIRE = Wire(TunnelKind.IPIP, IpipTunnel(), _in_ipip, room=20)
NO_WIRE = Wire(TunnelKind.NONE, None, _in_nothing)
