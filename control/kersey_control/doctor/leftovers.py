"""What another overlay, or an earlier run, left on this node and still disturbs."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from kersey_control.devices import Device
from kersey_control.doctor.finding import Finding, error, note, warning
from kersey_control.doctor.host import Host, Process
from kersey_control.netlink import Links
from kersey_control.node_view import NodeView
from kersey_control.rtnl_library import IPRoute

_OVERLAY_PREFIX = "flannel"
_BRIDGES = frozenset({"cni0", "cbr0"})
_FLANNEL = "flanneld"
_MAIN = 254
_UNICAST = 1


def check(host: Host, view: NodeView) -> Iterator[Finding]:
    """Look for devices, addresses, processes, routes and pins that nobody serves any more."""
    with Links() as links:
        yield from judge_devices(view, host.devices, {link.name for link in links.owned()})
    yield from judge_processes(host.processes)
    for device in host.devices:
        if device.name in _BRIDGES and view.subnet is not None and view.network is not None:
            yield from judge_bridge(
                device.name, host.addresses(device.ifindex), view.subnet, view.network
            )
    yield from _routes(host, view)
    yield from judge_pins(view.pins, view.places.bpf_dir)


def judge_devices(
    view: NodeView, devices: Iterable[Device], owned: Iterable[str]
) -> Iterator[Finding]:
    """Say which overlay devices are not the one in use; `owned` bear the mark of Kersey."""
    current = view.overlay.name if view.overlay else ""
    for device in devices:
        if device.name == current or not device.name.startswith(_OVERLAY_PREFIX):
            continue
        of_kersey = device.name in set(owned)
        whose = "an earlier or a second Kersey" if of_kersey else "flannel, it seems"
        yield warning(
            f"device {device.name} ({device.kind}) is not the overlay device in use"
            f"{f', {current}' if current else ''}",
            f"it is of {whose}; its routes, its port or its address may take packets away",
            f"ip link del {device.name}",
        )


def judge_processes(processes: Iterable[Process]) -> Iterator[Finding]:
    """Say whether flannel itself still runs."""
    for process in processes:
        if process.name == _FLANNEL:
            yield error(
                f"flanneld runs here (pid {process.pid})",
                "two daemons keep the same device, routes and rules, and undo each other's work",
                f"kill {process.pid}; in a cluster, take this node out of flannel's DaemonSet",
            )


def judge_bridge(
    name: str, addresses: Iterable[IPv4Interface], subnet: IPv4Network, network: IPv4Network
) -> Iterator[Finding]:
    """Say whether the pods' bridge has an address of another subnet than ours."""
    for address in addresses:
        if address.ip in network and address.ip not in subnet:
            yield error(
                f"{name} has {address}, which is not of this node's subnet {subnet}",
                "the CNI plugin refuses to make pods, and pods of the old subnet cannot be reached"
                " from other nodes",
                f"ip link del {name}; then make this node's pods anew",
            )


def _routes(host: Host, view: NodeView) -> Iterator[Finding]:
    """Find routes into the pod network that lead neither through us nor to our own pods."""
    if view.network is None:
        return
    names = {device.ifindex: device.name for device in host.devices}
    with IPRoute() as netlink:
        for message in netlink.get_routes(family=2, table=_MAIN, type=_UNICAST):
            destination, ifindex = message.get("dst"), int(message.get("oif") or 0)
            if not destination or int(message["type"]) != _UNICAST:
                continue
            route = IPv4Network((destination, int(message["dst_len"])))
            yield from judge_route(route, names.get(ifindex, ""), int(message["proto"]), view)


def judge_route(
    route: IPv4Network, device: str, protocol: int, view: NodeView
) -> Iterator[Finding]:
    """Say whether a route takes packets for pods of other nodes elsewhere."""
    network, subnet = view.network, view.subnet
    if network is None or not route.subnet_of(network) or protocol in _OUR_PROTOCOLS:
        return
    if subnet is not None and route.subnet_of(subnet):
        return
    if view.overlay is not None and device == view.overlay.name:
        return
    yield warning(
        f"a route to {route} leads through {device or 'no device'}, and is not Kersey's",
        "packets for pods there take that way instead of the overlay's",
        f"ip route del {route}" + (f" dev {device}" if device else ""),
    )


_OUR_PROTOCOLS = frozenset({75, 2})
"""Ours, and the kernel's own for connected networks, which the check on bridges judges."""


def judge_pins(pins: Path, bpf_dir: Path) -> Iterator[Finding]:
    """Say which pins are of another daemon than the one that this view is of."""
    try:
        others = [path for path in sorted(bpf_dir.iterdir()) if path != pins and _has_pins(path)]
    except OSError:
        return  # absent, or not ours to look at: the check on programs says so
    for path in others:
        yield note(
            f"{path} holds pins of another daemon, or of an earlier version",
            "where no daemon uses them any more they keep memory, and programs on devices",
            "stop every kerseyd, then kersey cleanup",
        )


def _has_pins(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())
