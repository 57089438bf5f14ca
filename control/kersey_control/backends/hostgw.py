"""The host-gw backend: a plain route to each peer's subnet, with the peer's node as the gateway.

No device and no tunnel, so every node must be a neighbour on the uplink's link: one that is not is
refused by itself, with the reason (flannel logs a failed route and forgets).
"""

from collections.abc import Iterable
from ipaddress import IPv4Network

from kersey_control.backends.base import Backend, check_lease, refusal, routed_by
from kersey_control.errors import KernelError
from kersey_control.lease import Lease
from kersey_control.peer import Peer, Via
from kersey_control.reconcile import KernelObject, KernelState
from kersey_control.rtnetlink import Rtnl
from kersey_control.underlay import Underlay
from kersey_control.uplink import Uplink


class HostGwBackend(Backend):
    """Reach every peer by the uplink alone."""

    name = lease_type = "host-gw"

    def __init__(
        self, *, network: IPv4Network, subnet_len: int, rtnl: Rtnl, underlay: Underlay
    ) -> None:
        self._network = network
        self._subnet_len = subnet_len
        self._rtnl = rtnl
        self._underlay = underlay
        self._uplink_now: Uplink | None = None

    @property
    def has_direct_peers(self) -> bool:
        """Return True: there is nothing else."""
        return True

    @property
    def mtu(self) -> int:
        """Return the uplink's MTU: nothing is put in front of a packet."""
        return self._uplink.mtu

    def prepare(self, uplink: Uplink) -> None:
        """Take note of the uplink. Raises KernelError if others could not use it as a gateway."""
        if uplink.public_ip != uplink.address:
            raise KernelError(
                f"--public-ip: got {uplink.public_ip}, expected {uplink.name}'s own address"
                f" {uplink.address}: with host-gw it is other nodes' gateway"
            )
        self._uplink_now = uplink

    def peer(self, lease: Lease) -> Peer:
        """Return the peer that a lease describes; its node must be a neighbour."""
        check_lease(lease, frozenset({self.lease_type}))
        if not self._underlay.is_neighbour(lease.public_ip, self._uplink.ifindex):
            raise refusal(
                "PublicIP",
                str(lease.public_ip),
                f"a node on the link of {self._uplink.name} ({self._uplink.on_link}): host-gw has"
                " no tunnel",
            )
        return Peer(subnet=lease.subnet, node=lease.public_ip, via=Via.DIRECT)

    def objects(self, peer: Peer) -> Iterable[KernelObject]:
        """Return nexthop and route."""
        return routed_by(peer, self._uplink.ifindex, peer.node, onlink=False)

    def actual(self) -> KernelState:
        """Read back our routes and flannel's on the uplink. Raises KernelError."""
        return self._rtnl.owned(
            overlay=None,
            uplink=self._uplink.ifindex,
            network=self._network,
            adopt=self._subnet_len,
        )

    @property
    def _uplink(self) -> Uplink:
        if self._uplink_now is None:
            raise KernelError("host-gw: no uplink yet")
        return self._uplink_now
