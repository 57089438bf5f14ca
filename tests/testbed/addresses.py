"""The testbed's address plan: links 198.18.0.0/24, 198.18.1.0/24 ... and the world at 198.19.0.1.

All from 198.18.0.0/15, which RFC 2544 sets aside for benchmarks, so nothing real is shadowed.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

_FIRST_LINK = IPv4Network("198.18.0.0/24")
LARGEST_LINK = 256


@dataclass(frozen=True, slots=True)
class Link:
    """One Ethernet segment of the underlay with a subnet of its own, counted from 1."""

    number: int

    @property
    def network(self) -> IPv4Network:
        """The subnet of the hosts on this link."""
        base = _FIRST_LINK.network_address + (self.number - 1) * _FIRST_LINK.num_addresses
        return IPv4Network((base, _FIRST_LINK.prefixlen))

    @property
    def gateway(self) -> IPv4Address:
        """The switch's own address on this link, the default gateway of all hosts on it."""
        return self.network[1]

    @property
    def bridge(self) -> str:
        """The name of the bridge that is this link, in the switch."""
        return f"br{self.number - 1}"


FIRST_LINK = Link(1)
UNDERLAY = FIRST_LINK.network
SWITCH = FIRST_LINK.gateway
"""The default gateway of the nodes on the first link, an address of the switch itself."""

ETCD = UNDERLAY[2]
OUTSIDE = IPv4Address("198.19.0.1")
"""An address behind the switch that is neither node nor pod: what masquerading is for."""

LARGEST_NODE_INDEX = 240


def node_address(index: int, *, link: Link = FIRST_LINK) -> IPv4Address:
    """Return the underlay address of node `index`, counted from 1 over all links."""
    return link.network[10 + index]
