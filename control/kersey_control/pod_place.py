"""Where a pod of this node is: the device that its packets come in by, as the kernel knows it."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from kersey_control.route_lookup import device_name, look_up
from kersey_control.rtnl_library import NetlinkError

_AF_INET = 2


@dataclass(frozen=True, slots=True)
class PodPlace:
    """The device that routes lead to (`cni0`, or the pod port), and the pod port; ifindexes.

    `port` is 0 where the bridge has not learned yet which port it is, `mac` empty without a
    neighbour entry.
    """

    device: int
    port: int
    mac: str

    def __str__(self) -> str:
        mac = f", {self.mac}" if self.mac else ", no neighbour entry yet"
        if self.port == self.device:
            return f"at port {device_name(self.port)}{mac}"
        port = f"port {device_name(self.port)}" if self.port else "an unknown port"
        return f"at {port} of {device_name(self.device)}{mac}"


def find_pod(netlink: Any, address: IPv4Address) -> PodPlace | None:
    """Return where a pod is, None if the kernel has no local device for its address.

    `netlink` is an IPRoute.
    """
    way = look_up(netlink, address)
    if way.is_refused or way.kind != "unicast" or way.gateway is not None:
        return None
    link = netlink.get_links(ifname=way.device)[0]
    device = int(link["index"])
    mac = _neighbour(netlink, address, device)
    info = link.get("linkinfo")
    is_bridge = bool(info) and info.get("kind") == "bridge"
    port = _learned(netlink, mac, device) if is_bridge else device
    return PodPlace(device=device, port=port, mac=mac)


def _neighbour(netlink: Any, address: IPv4Address, device: int) -> str:
    for entry in netlink.get_neighbours(family=_AF_INET, ifindex=device):
        if entry.get("dst") == str(address) and entry.get("lladdr"):
            return str(entry.get("lladdr"))
    return ""


def _learned(netlink: Any, mac: str, bridge: int) -> int:
    """Return the port behind which a bridge has seen a MAC, 0 if none."""
    if not mac:
        return 0
    try:
        entries = netlink.fdb("dump", master=bridge)
    except NetlinkError:
        return 0
    for entry in entries:
        if entry.get("lladdr") == mac and entry.get("master") == bridge:
            return int(entry["ifindex"])
    return 0
