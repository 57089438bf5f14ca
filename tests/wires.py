"""How each tunnel looks on the wire, built by hand: what the programs are compared with.

`wrap` says what a node sends for an inner packet, which is given as it is in the tunnel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import packets as p
from kersey_loader.tunnel import Tunnel, TunnelKind, VxlanTunnel

NOWHERE = "00:00:00:00:00:00"
VNI, VXLAN_PORT = 1, 8472
_OUR_VTEP = "0e:00:00:00:00:01"

Wrap = Callable[..., bytes]


@dataclass(frozen=True)
class Wire:
    """A kind of tunnel: `room` in bytes; `hops` that each end takes from the inner TTL."""

    kind: TunnelKind
    tunnel: Tunnel | None
    room: int = 0
    hops: int = 1

    def leave(self, packet: bytes) -> bytes:
        """Return an inner packet as it is after one end of the tunnel."""
        for _ in range(self.hops):
            packet = p.hop(packet)
        return packet


VXLAN = Wire(TunnelKind.VXLAN, VxlanTunnel(vni=VNI, port=VXLAN_PORT, mac=p.mac(_OUR_VTEP)), room=50)
NONE = Wire(TunnelKind.NONE, None)
