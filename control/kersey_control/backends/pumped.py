"""What udp and ipip share: a device for bare IP packets, and a pump where no kernel device carries.

The TUN device outlives the daemon, and so do its address and routes; the pump does not. Where
programs are attached they carry nearly everything, and the pump has what they leave.
"""

import logging
import sys
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import ClassVar

from kersey_control.addresses import gateway_of
from kersey_control.backends.base import Backend, PeerFollower
from kersey_control.backends.device import (
    ignore_router_advertisements,
    keep_address,
    outer_source,
    pod_mtu,
)
from kersey_control.carriers import Carrier
from kersey_control.errors import KernelError
from kersey_control.netlink import Link, Links
from kersey_control.node_table import NodeTable
from kersey_control.options import SpoofCheck
from kersey_control.peer import Peer
from kersey_control.proxy import Proxy
from kersey_control.reconcile import DeviceRoute, KernelObject
from kersey_control.rtnetlink import Rtnl
from kersey_control.tun import Tun
from kersey_control.uplink import Uplink

logger = logging.getLogger(__name__)

_SWITCH_SECONDS = 0.0005
"""How long another thread of the daemon may keep the pump waiting for the interpreter; ten times
that, Python's default, let a busy control loop cut the pump to a third."""


@dataclass(frozen=True, slots=True)
class PumpOptions:
    """How a pump works: whether programs carry most packets, and what becomes of forged ones."""

    has_programs: bool
    check: SpoofCheck


@dataclass(frozen=True, slots=True)
class _Place:
    """The device as it stands, and what its packets leave by."""

    ifindex: int
    uplink: Uplink
    source: IPv4Address
    mtu: int


@dataclass(frozen=True, slots=True)
class _Pump:
    """A running proxy, and for which ends it was started."""

    proxy: Proxy
    carrier: Carrier
    source: IPv4Address
    address: IPv4Address


class Nodes:
    """Which node has which subnet, for the pump."""

    def __init__(self, network: IPv4Network) -> None:
        self._network = network
        self._peers: dict[IPv4Network, Peer] = {}
        self._proxy: Proxy | None = None

    def serve(self, proxy: Proxy | None) -> None:
        """Tell this pump from now on."""
        self._proxy = proxy
        self._tell()

    @property
    def table(self) -> NodeTable:
        """Return the peers as of now."""
        return NodeTable.of(self._peers.values(), network=self._network)

    def replace_peers(self, peers: Iterable[Peer]) -> None:
        """Make these all the peers."""
        self._peers = {peer.subnet: peer for peer in peers}
        self._tell()

    def put_peer(self, peer: Peer) -> None:
        """Take one in."""
        self._peers[peer.subnet] = peer
        self._tell()

    def remove_peer(self, subnet: IPv4Network) -> None:
        """Forget one."""
        self._peers.pop(subnet, None)
        self._tell()

    def _tell(self) -> None:
        if self._proxy is not None:
            self._proxy.use(self.table)


class PumpedBackend(Backend):
    """Own a device that takes bare IP packets, and carry them if nothing else does."""

    hops: ClassVar[int]
    """What each end of the tunnel takes from the inner TTL."""

    device_name: str

    def __init__(
        self, *, network: IPv4Network, links: Links, rtnl: Rtnl, pump: PumpOptions
    ) -> None:
        self._network = network
        self._links = links
        self._rtnl = rtnl
        self._pump_options = pump
        self._place_now: _Place | None = None
        self._tun: Tun | None = None
        self._pump: _Pump | None = None
        self._nodes = Nodes(network)

    @property
    def ifindex(self) -> int:
        """Return our device's ifindex; another one after the device was made again."""
        return self._place.ifindex

    @property
    def carrier(self) -> int:
        """Return the TUN device's ifindex, 0 where the kernel has a device of its own."""
        return self._place.ifindex if self._tun is not None else 0

    @property
    def followers(self) -> tuple[PeerFollower, ...]:
        """Return the pump's table of nodes."""
        return (self._nodes,)

    @property
    def mtu(self) -> int:
        """Return the uplink's MTU less our headers, in bytes of IP packet."""
        return self._place.mtu

    @property
    def source(self) -> IPv4Address:
        """Return the outer source address."""
        return self._place.source

    def prepare(self, uplink: Uplink) -> None:
        """Have the device, up and with the right MTU. Idempotent. Raises KernelError."""
        mtu = pod_mtu(self.device_name, uplink, self.overhead)
        source = outer_source(self._links, uplink)
        found = self._ensure_device(source)
        self._links.mark(found)
        if found.mtu != mtu:
            self._links.change(found, mtu=mtu)
        if not found.up:
            self._links.change(found, up=True)
            self._log("set up")
        self._place_now = _Place(found.ifindex, uplink, source, mtu)
        ignore_router_advertisements(self.device_name)

    def assign(self, subnet: IPv4Network) -> None:
        """Give the device the subnet's base as a /32, and have the pump run for it."""
        keep_address(self._links, self.ifindex, subnet, self._network)
        if self._tun is not None:
            self._keep_pump(self._tun, gateway_of(subnet))

    def close(self) -> None:
        """End the pump; the device stays, and its queue waits for the next run."""
        self._stop_pump()
        if self._tun is not None:
            self._tun.close()
            self._tun = None

    def common_objects(self) -> Iterable[KernelObject]:
        """Return the one route that leads the whole network to a TUN device, as flannel's udp has.

        Who has which subnet is decided behind it, packet by packet.
        """
        return (DeviceRoute(self._network, self.ifindex),) if self._tun is not None else ()

    @property
    def _place(self) -> _Place:
        if self._place_now is None:
            raise KernelError(f"{self.device_name}: not prepared yet")
        return self._place_now

    @abstractmethod
    def _open_carrier(self, source: IPv4Address) -> Carrier:
        """Return a socket that carries packets from our address. Raises KernelError."""

    def _ensure_device(self, source: IPv4Address) -> Link:
        """Return our device, made or adopted. Raises KernelError."""
        del source
        return self._ensure_tun()

    def _ensure_tun(self) -> Link:
        if self._tun is None or self._tun.name_now != self.device_name:
            self._stop_pump()
            if self._tun is not None:
                self._give_up(self._tun)
            self._tun = Tun(self.device_name)
            self._log("opened")
        found = self._links.find(self.device_name)
        if found is None:
            raise KernelError(f"{self.device_name}: deleted by someone while being prepared")
        return found

    def _give_up(self, tun: Tun) -> None:
        """Leave a device that was deleted, and delete one that someone gave another name."""
        name = tun.name_now
        tun.close()
        renamed = self._links.find(name) if name is not None else None
        if renamed is not None:
            self._links.delete(renamed)
            self._log("deleted, it had another name")

    def _keep_pump(self, tun: Tun, address: IPv4Address) -> None:
        """Have a pump between the device and a socket at our present address."""
        source, running = self._place.source, self._pump
        if (
            running is not None
            and (running.source, running.address) == (source, address)
            and running.proxy.is_running
        ):
            return
        self._stop_pump()
        carrier = self._open_carrier(source)
        proxy = Proxy(
            tun,
            carrier,
            table=self._nodes.table,
            address=address,
            hops=self.hops,
            check=self._pump_options.check,
        )
        sys.setswitchinterval(_SWITCH_SECONDS)
        proxy.start()
        self._pump = _Pump(proxy, carrier, source, address)
        self._nodes.serve(proxy)
        logger.info("pump started", extra={"device": self.device_name, "source": str(source)})

    def _stop_pump(self) -> None:
        if self._pump is not None:
            self._nodes.serve(None)
            self._pump.proxy.close()
            self._pump.carrier.close()
            self._pump = None

    def _log(self, event: str) -> None:
        logger.info("overlay device %s", event, extra={"device": self.device_name})
