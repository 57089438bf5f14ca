"""What can be known of this node from outside the daemon: what it says, else what it left.

Reads the socket, subnet.env, the kernel and the pins, in that order of trust; changes nothing. The
parts that cannot be had are None with a reason, never an error: this is for when things are broken.
"""

from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Protocol

from kersey_loader.errors import LoaderError
from kersey_loader.view import View, ViewedConfig, open_view

from kersey_control.errors import KernelError, UnavailableError
from kersey_control.instance import instance_of
from kersey_control.netlink import Link, Links
from kersey_control.reconcile import FdbEntry, KernelState, Neighbour, Nexthop, Route
from kersey_control.rtnetlink import Rtnl
from kersey_control.status_socket import NoDaemonError, ask_peers, ask_status
from kersey_control.told import ToldOptions, ToldPeer, ToldStatus

DEFAULT_PORTS = {"vxlan": 8472, "udp": 8285}
OVERHEADS = {"vxlan": 50, "udp": 28, "ipip": 20}
"""Bytes in front of a pod's IP packet; the other backends add none."""

_BACKEND_OF_DEVICE = {"flannel0": "udp", "flannel.ipip": "ipip"}
_OVERLAY_PREFIX = "flannel"


class Places(Protocol):
    """Where the daemon's files are, as the operator says."""

    @property
    def subnet_file(self) -> Path:
        """Its --subnet-file."""
        ...

    @property
    def state_dir(self) -> Path:
        """Its --state-dir."""
        ...

    @property
    def bpf_dir(self) -> Path:
        """Its --bpf-dir."""
        ...


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What subnet.env says; `mtu` in bytes."""

    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    masquerade: bool


@dataclass(frozen=True, slots=True)
class NodeView:
    """This node. `silence` says why the daemon told nothing; `backend` may be empty if unknown.

    `pins_trouble` says why `programs` is None.
    """

    places: Places
    told: ToldStatus | None
    silence: str
    is_stopped: bool
    env: SubnetEnv | None
    overlay: Link | None
    programs: ViewedConfig | None
    pins_trouble: str

    @property
    def pins(self) -> Path:
        """Return where the programs' maps are pinned."""
        told = self.told and self.told.options.pins
        return Path(told) if told else pins_of(self.places)

    @property
    def backend(self) -> str:
        """Return the backend's name, that of the overlay device where nobody says."""
        if self.told is not None and self.told.backend:
            return self.told.backend
        if self.overlay is None:
            return ""
        is_vxlan = self.overlay.vxlan is not None
        return "vxlan" if is_vxlan else _BACKEND_OF_DEVICE.get(self.overlay.name, "")

    @property
    def network(self) -> IPv4Network | None:
        """Return the pod network."""
        if self.told is not None and self.told.network:
            return IPv4Network(self.told.network)
        return self.env.network if self.env else None

    @property
    def subnet(self) -> IPv4Network | None:
        """Return this node's subnet."""
        if self.told is not None and self.told.subnet:
            return IPv4Network(self.told.subnet)
        return self.env.subnet if self.env else None

    @property
    def port(self) -> int:
        """Return the UDP port of the tunnel, 0 where it has none."""
        if self.overlay is not None and self.overlay.vxlan is not None:
            return self.overlay.vxlan.port
        if self.programs is not None and self.programs.port:
            return self.programs.port
        return DEFAULT_PORTS.get(self.backend, 0)

    @property
    def overhead(self) -> int:
        """Return the bytes that the tunnel puts in front of a pod's packet."""
        return OVERHEADS.get(self.backend, 0)

    @property
    def uplink(self) -> str:
        """Return the uplink's name, empty if unknown."""
        return self.told.uplink.interface if self.told and self.told.uplink else ""

    @property
    def address(self) -> IPv4Address | None:
        """Return the address by which this node sends to others."""
        if self.told is not None and self.told.uplink is not None:
            return IPv4Address(self.told.uplink.address)
        return self.programs.node if self.programs else None

    def open_pins(self) -> View:
        """Open the programs' maps. Raises UnavailableError in words."""
        return open_pins(self.pins)


def view_node(places: Places) -> NodeView:
    """Look at this node. Raises nothing that one broken part could cause."""
    told, silence, is_stopped = _ask(places.state_dir)
    options = told.options if told else ToldOptions()
    subnet_file = Path(options.subnet_file or places.subnet_file)
    programs, trouble = _programs(Path(options.pins or pins_of(places)))
    return NodeView(
        places=places,
        told=told,
        silence=silence,
        is_stopped=is_stopped,
        env=read_subnet_env(subnet_file),
        overlay=_overlay(told, subnet_file),
        programs=programs,
        pins_trouble=trouble,
    )


def pins_of(places: Places) -> Path:
    """Return where a daemon with these files pins."""
    return places.bpf_dir / f"instance-{instance_of(places.subnet_file):08x}"


def open_pins(pins: Path) -> View:
    """Open the maps in a directory of pins. Raises UnavailableError in words."""
    try:
        return open_view(pins)
    except PermissionError:
        raise UnavailableError(f"{pins} is for root only (use sudo)") from None
    except (LoaderError, OSError) as error:
        raise UnavailableError(str(error)) from None


def read_subnet_env(path: Path) -> SubnetEnv | None:
    """Return what a subnet file says; None if there is none or it cannot be understood."""
    try:
        lines = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
        return SubnetEnv(
            network=IPv4Network(lines["FLANNEL_NETWORK"]),
            subnet=IPv4Interface(lines["FLANNEL_SUBNET"]).network,
            mtu=int(lines["FLANNEL_MTU"]),
            masquerade=lines.get("FLANNEL_IPMASQ") == "true",
        )
    except (OSError, ValueError, KeyError):
        return None


def read_peers(view: NodeView) -> list[ToldPeer]:
    """Return the daemon's peers, or where none answers those that the kernel holds.

    Those that the programs know where the kernel's state names none, as with the udp backend, whose
    one route is for all. Raises KernelError.
    """
    if view.told is not None:
        with suppress(UnavailableError):  # it ended meanwhile
            return ask_peers(view.places.state_dir)
    overlay = view.overlay.ifindex if view.overlay else None
    uplink = view.programs.uplink if view.programs else overlay
    if view.network is None or not uplink:
        return []
    with Rtnl() as rtnl:
        state = rtnl.owned(overlay=overlay, uplink=uplink, network=view.network)
    return peers_in_kernel(state, overlay=overlay, via=view.backend) or _peers_in_maps(view)


def _peers_in_maps(view: NodeView) -> list[ToldPeer]:
    try:
        with view.open_pins() as pins:
            peers = sorted(pins.peers().items())
    except UnavailableError:
        return []
    return [
        ToldPeer(
            str(subnet), str(peer.node), "direct" if peer.direct else view.backend, "programmed"
        )
        for subnet, peer in peers
    ]


def peers_in_kernel(state: KernelState, *, overlay: int | None, via: str) -> list[ToldPeer]:
    """Return the peers that these kernel objects make up, by subnet.

    One that is not whole is failing, and the reason names what is missing. The udp backend has no
    objects for a peer.
    """
    nexthops = {obj.id: obj for obj in state.values() if isinstance(obj, Nexthop)}
    macs = {obj.address: obj.mac for obj in state.values() if isinstance(obj, Neighbour)}
    nodes = {obj.mac: obj.node for obj in state.values() if isinstance(obj, FdbEntry)}
    found = []
    for route in sorted(obj for obj in state.values() if isinstance(obj, Route)):
        nexthop = nexthops.get(route.nexthop)
        if nexthop is None:
            found.append(_broken(route, via, "its nexthop object is missing"))
        elif nexthop.ifindex != overlay:
            found.append(_whole(route, nexthop.gateway, "direct"))
        elif via != "vxlan":
            found += [_whole(route, nexthop.gateway, via)] if int(nexthop.gateway) else []
        elif (mac := macs.get(nexthop.gateway)) is None:
            found.append(_broken(route, via, f"no neighbour entry for {nexthop.gateway}"))
        elif (node := nodes.get(mac)) is None:
            found.append(_broken(route, via, f"no forwarding entry for {mac}"))
        else:
            found.append(_whole(route, node, via, mac))
    return found


def _whole(route: Route, node: IPv4Address, via: str, mac: str | None = None) -> ToldPeer:
    return ToldPeer(str(route.subnet), str(node), via, "programmed", mac=mac)


def _broken(route: Route, via: str, reason: str) -> ToldPeer:
    return ToldPeer(str(route.subnet), "", via, "failing", reason)


def _ask(state_dir: Path) -> tuple[ToldStatus | None, str, bool]:
    try:
        return ask_status(state_dir), "", False
    except NoDaemonError as error:
        return None, str(error), True
    except UnavailableError as error:
        return None, str(error), False


def _programs(pins: Path) -> tuple[ViewedConfig | None, str]:
    try:
        with open_pins(pins) as view:
            config = view.config
    except (UnavailableError, LoaderError) as error:
        return None, str(error)
    return config, "" if config else f"the programs in {pins} have not been told anything yet"


def _overlay(told: ToldStatus | None, subnet_file: Path) -> Link | None:
    """Return the overlay device: the daemon's, else ours by its mark, else flannel's usual one."""
    try:
        with Links(instance_of(subnet_file)) as links:
            if told is not None:
                return links.find(told.device) if told.device else None
            ours = [each for each in links.of_instance() if each.name.startswith(_OVERLAY_PREFIX)]
            return ours[0] if ours else links.find("flannel.1")
    except KernelError:
        return None
