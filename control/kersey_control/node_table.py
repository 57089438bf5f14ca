"""Which node has which pod address: the proxy's routes and its sender check. Pure, and immutable.

The control loop makes a new table for every change and hands it over in one assignment, so that no
packet ever sees half of one. With leases of one size a look-up is a single one in a dict.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Protocol, Self

from kersey_control.peer import Peer


class Table(Protocol):
    """What the proxy asks for each packet; addresses are ints in host byte order."""

    def node_of(self, address: int) -> int | None:
        """Return the node whose lease has this address, None if no peer's has."""

    def is_node(self, address: int) -> bool:
        """Return whether a peer's node has this address."""

    def is_pod(self, address: int) -> bool:
        """Return whether the address is of the pod network."""


@dataclass(frozen=True, slots=True)
class NodeTable:
    """The peers of a moment; make one by `of`."""

    network: int
    netmask: int
    levels: tuple[tuple[int, Mapping[int, int]], ...]
    """Per prefix length, longest first: how far to shift an address, and subnet number to node."""
    nodes: frozenset[int]

    @classmethod
    def of(cls, peers: Iterable[Peer], *, network: IPv4Network) -> Self:
        """Return the table of these peers; of two with one subnet, the last one counts.

        Our own lease is not among them: a packet for a pod that we do not have would come back. Nor
        is a peer whose node has a pod's address: what is sent there enters the tunnel once more.
        """
        levels: dict[int, dict[int, int]] = {}
        for peer in peers:
            shift = 32 - peer.subnet.prefixlen
            number = int(peer.subnet.network_address) >> shift
            levels.setdefault(shift, {})[number] = int(peer.node)
        nodes = {node for level in levels.values() for node in level.values()}
        inside = {node for node in nodes if any(node >> s in levels[s] for s in levels)}
        if inside:
            levels = {
                shift: {number: node for number, node in level.items() if node not in inside}
                for shift, level in levels.items()
            }
        return cls(
            network=int(network.network_address),
            netmask=int(network.netmask),
            levels=tuple(sorted(levels.items())),
            nodes=frozenset(nodes - inside),
        )

    def node_of(self, address: int) -> int | None:
        """Return the node of the longest prefix that has this address, None without one."""
        for shift, subnets in self.levels:
            node = subnets.get(address >> shift)
            if node is not None:
                return node
        return None

    def is_node(self, address: int) -> bool:
        """Return whether a peer's node has this address."""
        return address in self.nodes

    def is_pod(self, address: int) -> bool:
        """Return whether the address is of the pod network."""
        return address & self.netmask == self.network
