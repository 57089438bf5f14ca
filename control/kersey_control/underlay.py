"""How other nodes are reached: by the link itself or through a router, as the kernel would send.

Asks the kernel's routing decision, policy rules included, and keeps the answers, so that hundreds
of peers cost one system call. Changes nothing.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address

from kersey_control.rtnetlink import Hop, Rtnl


class Underlay:
    """The ways to nodes, as of the last survey. One thread at a time."""

    def __init__(self, rtnl: Rtnl) -> None:
        self._rtnl = rtnl
        self._hops: dict[IPv4Address, Hop | None] = {}
        self._unasked: set[IPv4Address] = set()

    def survey(self, nodes: Iterable[IPv4Address]) -> None:
        """Forget all answers; these nodes are asked for together as soon as one of them is."""
        self._hops = {}
        self._unasked = set(nodes)

    def is_neighbour(self, node: IPv4Address, uplink: int) -> bool:
        """Return whether packets to the node leave by `uplink` (ifindex) and need no router.

        Raises KernelError.
        """
        return self._hop(node) == Hop(uplink, is_on_link=True)

    def has_changed(self) -> bool:
        """Return whether the kernel now answers differently for any node. Raises KernelError."""
        found = self._rtnl.hops(self._hops)
        return any(found.get(node) != hop for node, hop in self._hops.items())

    def _hop(self, node: IPv4Address) -> Hop | None:
        if node not in self._hops:
            wanted = self._unasked | {node}
            self._unasked = set()
            found = self._rtnl.hops(wanted)
            self._hops |= {each: found.get(each) for each in wanted}
        return self._hops[node]
