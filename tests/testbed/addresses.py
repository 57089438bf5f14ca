"""The testbed's address plan: 198.18.0.0/24 joins nodes, 198.19.0.1 is the world outside.

All from 198.18.0.0/15, which RFC 2544 sets aside for benchmarks, so nothing real is shadowed.
"""

from ipaddress import IPv4Address, IPv4Network

UNDERLAY = IPv4Network("198.18.0.0/24")
SWITCH = UNDERLAY[1]
"""The nodes' default gateway, an address of the switch itself."""

ETCD = UNDERLAY[2]
OUTSIDE = IPv4Address("198.19.0.1")
"""An address behind the switch that is neither node nor pod: what masquerading is for."""

LARGEST_NODE_INDEX = 240


def node_address(index: int) -> IPv4Address:
    """Return the underlay address of node `index`, counted from 1."""
    return UNDERLAY[10 + index]
