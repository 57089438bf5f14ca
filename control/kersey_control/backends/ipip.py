"""The ipip backend: IP in IP (RFC 2003), with the device `flannel.ipip` as flannel has it.

The kernel's own ipip device where it has the module, else a TUN device of the same name with a
pump and one route for the whole network; the wire is the same. With DirectRouting a peer whose
node is a neighbour on the uplink's link is reached by a plain route, others through the tunnel.
"""

import errno
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from kersey_loader.tunnel import IpipTunnel

from kersey_control.backends.base import check_lease, refusal, routed_by
from kersey_control.backends.pumped import PumpedBackend, PumpOptions
from kersey_control.carriers import Carrier, IpipCarrier
from kersey_control.errors import KernelError
from kersey_control.lease import Lease
from kersey_control.netconfig import IpipConfig
from kersey_control.netlink import Link, Links, RequestError
from kersey_control.peer import Peer, Via
from kersey_control.reconcile import KernelObject, KernelState
from kersey_control.rtnetlink import Rtnl
from kersey_control.underlay import Underlay


class IpipBackend(PumpedBackend):
    """Own `flannel.ipip`."""

    name = lease_type = "ipip"
    overhead = 20  # IP
    hops = 0
    device_name = "flannel.ipip"

    def __init__(
        self,
        config: IpipConfig,
        *,
        network: IPv4Network,
        subnet_len: int,
        links: Links,
        rtnl: Rtnl,
        underlay: Underlay,
        pump: PumpOptions,
    ) -> None:
        super().__init__(network=network, links=links, rtnl=rtnl, pump=pump)
        self._direct_routing = config.direct_routing
        self._subnet_len = subnet_len
        self._underlay = underlay

    @property
    def tunnel(self) -> IpipTunnel:
        """Return IP in IP."""
        return IpipTunnel()

    @property
    def has_direct_peers(self) -> bool:
        """Return whether DirectRouting is set."""
        return self._direct_routing

    def peer(self, lease: Lease) -> Peer:
        """Return the peer that a lease describes."""
        check_lease(lease, frozenset({self.lease_type}))
        is_direct = self._direct_routing and self._underlay.is_neighbour(
            lease.public_ip, self._place.uplink.ifindex
        )
        via = Via.DIRECT if is_direct else Via.IPIP
        return Peer(subnet=lease.subnet, node=lease.public_ip, via=via)

    def objects(self, peer: Peer) -> Iterable[KernelObject]:
        """Return nexthop and route: through the kernel's device with the node as the gateway."""
        if peer.via is Via.DIRECT:
            return routed_by(peer, self._place.uplink.ifindex, peer.node, onlink=False)
        if peer.via is not Via.IPIP:
            raise refusal("via", peer.via, "ipip or direct")
        if self.carrier:
            return ()
        return routed_by(peer, self.ifindex, peer.node, onlink=True)

    def actual(self) -> KernelState:
        """Read back every kernel object that is ours to keep or remove. Raises KernelError."""
        place = self._place
        return self._rtnl.owned(
            overlay=place.ifindex,
            uplink=place.uplink.ifindex,
            network=self._network,
            adopt=self._subnet_len if self._direct_routing else None,
        )

    def _open_carrier(self, source: IPv4Address) -> Carrier:
        return IpipCarrier(source)

    def _ensure_device(self, source: IPv4Address) -> Link:
        """Return the kernel's ipip device, or a TUN device where the kernel has no ipip.

        A device that is there is kept if it can serve: a restart must not cut the traffic.
        """
        found = self._links.find(self.device_name)
        if found is not None and found.kind == "ipip":
            if found.local == source:
                return found
            self._links.delete(found)
            self._log("deleted, its address is not ours")
            found = None
        if found is not None:
            return self._ensure_tun()
        return self._create(source)

    def _create(self, source: IPv4Address) -> Link:
        try:
            self._links.create_ipip(self.device_name, source)
        except RequestError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return self._ensure_tun()
        self._log("created")
        found = self._links.find(self.device_name)
        if found is None:
            raise KernelError(f"{self.device_name}: deleted by someone while being prepared")
        return found
