"""The udp backend: a pod's packet as the payload of a UDP datagram, as flannel's udp carries it.

The TUN device `flannel0` has one route for the whole network; who has which subnet is decided
packet by packet, by programs or by the pump. Like flannel, leases name no backend type.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from kersey_loader.tunnel import UdpTunnel

from kersey_control.backends.base import check_lease
from kersey_control.backends.pumped import PumpedBackend, PumpOptions
from kersey_control.carriers import Carrier, UdpCarrier
from kersey_control.lease import Lease
from kersey_control.netconfig import UdpConfig
from kersey_control.netlink import Links
from kersey_control.peer import Peer, Via
from kersey_control.reconcile import KernelObject, KernelState
from kersey_control.rtnetlink import Rtnl


class UdpBackend(PumpedBackend):
    """Own `flannel0`."""

    name = "udp"
    lease_type = ""
    overhead = 28  # UDP 8, IP 20
    hops = 1
    device_name = "flannel0"

    def __init__(
        self,
        config: UdpConfig,
        *,
        network: IPv4Network,
        links: Links,
        rtnl: Rtnl,
        pump: PumpOptions,
    ) -> None:
        super().__init__(network=network, links=links, rtnl=rtnl, pump=pump)
        self._port = config.port

    @property
    def tunnel(self) -> UdpTunnel:
        """Return bare IP in UDP."""
        return UdpTunnel(self._port)

    def peer(self, lease: Lease) -> Peer:
        """Return the peer that a lease describes."""
        check_lease(lease, frozenset({self.lease_type, self.name}))
        return Peer(subnet=lease.subnet, node=lease.public_ip, via=Via.UDP)

    def objects(self, peer: Peer) -> Iterable[KernelObject]:
        """Return nothing: the network's route leads to every peer."""
        del peer
        return ()

    def actual(self) -> KernelState:
        """Read back every kernel object that is ours to keep or remove. Raises KernelError."""
        place = self._place
        return self._rtnl.owned(
            overlay=place.ifindex, uplink=place.uplink.ifindex, network=self._network
        )

    def _open_carrier(self, source: IPv4Address) -> Carrier:
        # Where programs take datagrams off, the network card must not merge them.
        return UdpCarrier(source, self._port, merge=not self._pump_options.has_programs)
