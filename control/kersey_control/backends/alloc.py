"""The alloc backend: a lease and nothing else, for networks that route pods by themselves.

It programs no routes and owns no device; subnet.env says what the lease is. What an earlier backend
left on the uplink goes.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network

from kersey_control.backends.base import Backend, check_lease
from kersey_control.errors import KernelError
from kersey_control.lease import Lease
from kersey_control.peer import Peer, Via
from kersey_control.reconcile import KernelObject, KernelState
from kersey_control.rtnetlink import Rtnl
from kersey_control.uplink import Uplink


class AllocBackend(Backend):
    """Hold a lease."""

    name = "alloc"
    lease_type = ""

    def __init__(self, network: IPv4Network, rtnl: Rtnl) -> None:
        self._network = network
        self._rtnl = rtnl
        self._uplink_now: Uplink | None = None

    @property
    def uplink(self) -> Uplink:
        """Return the uplink."""
        if self._uplink_now is None:
            raise KernelError(f"{self.name}: no uplink yet")
        return self._uplink_now

    @property
    def mtu(self) -> int:
        """Return the uplink's MTU, as flannel does."""
        return self.uplink.mtu

    def prepare(self, uplink: Uplink) -> None:
        """Take note of the uplink."""
        self._uplink_now = uplink

    def peer(self, lease: Lease) -> Peer:
        """Return the peer that a lease describes."""
        check_lease(lease, frozenset({self.lease_type, self.name}))
        return Peer(subnet=lease.subnet, node=lease.public_ip, via=Via.EXTERNAL)

    def objects(self, peer: Peer) -> Iterable[KernelObject]:
        """Return nothing: whoever routes pods knows the leases."""
        del peer
        return ()

    def actual(self) -> KernelState:
        """Read back what is ours on the uplink, none of which is wanted. Raises KernelError."""
        return self._rtnl.owned(overlay=None, uplink=self.uplink.ifindex, network=self._network)
