"""A peer: a remote lease as the datapath sees it. Pure values, no I/O."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from kersey_control.addresses import Mac


class Via(StrEnum):
    """How a peer's node is reached; one peer has one way at a time."""

    VXLAN = "vxlan"
    DIRECT = "direct"
    UDP = "udp"
    IPIP = "ipip"
    EXTERNAL = "external"
    """By routes that somebody else makes (alloc, extension)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A remote subnet and the node that serves it.

    `node` is the outer destination of a tunnel, or the next hop of a direct route. `mac` is the
    peer's VTEP address and is present exactly when `via` is VXLAN.
    """

    subnet: IPv4Network
    node: IPv4Address
    via: Via
    mac: Mac | None = None
