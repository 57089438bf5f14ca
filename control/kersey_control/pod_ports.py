"""Which devices of this node are pod ports: the host ends of pods' veths.

A pod port is a veth whose other end is in another network namespace, and which is a port of the
bridge that has an address of our subnet (`bridge`), or carries a host route for an address of our
subnet (`ptp`, routed pods). The reading is packed by hand, since it happens whenever a pod comes or
goes, beside hundreds of others. Nothing here changes anything.

A port whose packets somebody shapes or filters is set apart: the fast path would go past that. The
CNI's bandwidth plugin puts a tbf on the port, and an ingress qdisc that leads to an ifb. A foreign
program at a TCX hook is not seen: the order of programs there is its owner's to choose.
"""

import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

from kersey_control.devices import (
    Device,
    Filter,
    Hook,
    Qdisc,
    read_devices,
    read_filters,
    read_qdiscs,
)
from kersey_control.rtnetlink import Rtnl, attributes_of

_RTM_GETADDR, _RTM_GETROUTE = 22, 26
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=8BI")
_U32 = struct.Struct("=I")

_IFA_LOCAL = 2
_RTA_DST, _RTA_OIF = 1, 4
_TABLE_MAIN = 254

_CLSACT = "clsact"
_FILTER = "filter "
_PLAIN_QUEUES = frozenset(("noqueue", "pfifo_fast", "fq_codel", "mq", _CLSACT))
"""What a device has by itself or as the system's default; clsact only holds filters."""


@dataclass(frozen=True, slots=True)
class PodPorts:
    """The pod ports and, where pods are bridged, their bridge; `mtu` is the smallest of all.

    Those in `shaped`, with what shapes them, are left to the stack and not in `ports`.
    `largest_mtu` is that of a port, shaped or not, 0 where there is none.
    """

    ports: frozenset[int]
    bridge: Device | None
    mtu: int | None
    largest_mtu: int = 0
    shaped: Mapping[int, str] = field(default_factory=dict)

    @property
    def foreign_filters(self) -> frozenset[str]:
        """Return the kinds of filters of someone else on pod ports."""
        found = (why for why in self.shaped.values() if why.startswith(_FILTER))
        return frozenset(why.removeprefix(_FILTER) for why in found)


def find_pod_ports(
    devices: Iterable[Device],
    *,
    bridges: frozenset[int],
    routed: frozenset[int],
    uplink: int,
) -> PodPorts:
    """Return the pod ports among `devices`.

    `bridges` are the devices with an address of our subnet, `routed` those with a host route to
    one, all by ifindex.
    """
    known = {device.ifindex: device for device in devices}
    bridge = next((known[i] for i in sorted(bridges & known.keys()) if _is_bridge(known[i])), None)
    ports = [
        device
        for device in known.values()
        if _is_pod_end(device)
        and device.ifindex != uplink
        and ((bridge is not None and device.master == bridge.ifindex) or device.ifindex in routed)
    ]
    mtus = [device.mtu for device in ports] + ([bridge.mtu] if bridge else [])
    return PodPorts(
        ports=frozenset(port.ifindex for port in ports),
        bridge=bridge,
        mtu=min(mtus, default=None),
        largest_mtu=max((port.mtu for port in ports), default=0),
    )


def read_pod_ports(
    rtnl: Rtnl, *, subnet: IPv4Network, overlay: int | None, uplink: int
) -> PodPorts:
    """Return the pod ports of this namespace for our subnet. Raises KernelError."""
    devices = read_devices(rtnl)
    unbridged = any(_is_pod_end(each) and not each.master for each in devices)
    found = find_pod_ports(
        devices,
        bridges=frozenset(_holders(rtnl, subnet)) - {overlay},
        routed=frozenset(_routed(rtnl, subnet)) if unbridged else frozenset(),
        uplink=uplink,
    )
    bridge = found.bridge.ifindex if found.bridge else None
    past = {ifindex for ifindex in (overlay, bridge) if ifindex is not None}
    return set_apart_shaped(found, shapers=_read_shapers(rtnl, found.ports | past), past=past)


def set_apart_shaped(
    found: PodPorts, *, shapers: Mapping[int, str], past: Collection[int]
) -> PodPorts:
    """Return the pod ports with the shaped ones apart.

    `shapers` says by ifindex what shapes a device; `past` are the devices that the fast path of
    every port goes past, so that one of them that is shaped leaves no port.
    """
    common = next((shapers[each] for each in sorted(past) if each in shapers), None)
    shaped = {port: reason for port in found.ports if (reason := shapers.get(port) or common)}
    return replace(found, ports=found.ports - shaped.keys(), shaped=shaped)


def find_shapers(qdiscs: Iterable[Qdisc], filters: Iterable[Filter]) -> dict[int, str]:
    """Return what shapes or filters packets of a device, by ifindex, in words."""
    shapers = {each.ifindex: f"{_FILTER}{each.kind}" for each in filters if not each.is_ours}
    queues = (each for each in qdiscs if each.kind not in _PLAIN_QUEUES)
    return shapers | {each.ifindex: f"qdisc {each.kind}" for each in queues}


def _read_shapers(rtnl: Rtnl, among: Collection[int]) -> dict[int, str]:
    """Ask for filters only where there can be some: that takes two dumps for each device."""
    qdiscs = [each for each in read_qdiscs(rtnl) if each.ifindex in among]
    holders = [each.ifindex for each in qdiscs if each.kind == _CLSACT]
    filters = (
        each for holder in holders for hook in Hook for each in read_filters(rtnl, holder, hook)
    )
    return find_shapers(qdiscs, filters)


def _is_bridge(device: Device) -> bool:
    return device.kind == "bridge"


def _is_pod_end(device: Device) -> bool:
    return device.kind == "veth" and device.is_shared


def _holders(rtnl: Rtnl, subnet: IPv4Network) -> Iterator[int]:
    """Yield the devices that have an address of `subnet`."""
    for _, payload in rtnl.dump(_RTM_GETADDR, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0)):
        local = attributes_of(payload, _IFADDR.size).get(_IFA_LOCAL)
        if local and IPv4Address(local) in subnet:
            yield _IFADDR.unpack_from(payload)[-1]


def _routed(rtnl: Rtnl, subnet: IPv4Network) -> Iterator[int]:
    """Yield the devices that host routes of the main table to addresses of `subnet` go through."""
    body = _RTMSG.pack(socket.AF_INET, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0)
    for _, payload in rtnl.dump(_RTM_GETROUTE, body):
        if payload[1] != 32:  # noqa: PLR2004  # the prefix length of a host route
            continue
        attributes = attributes_of(payload, _RTMSG.size)
        destination = attributes.get(_RTA_DST)
        if destination and IPv4Address(destination) in subnet:
            yield _number(attributes.get(_RTA_OIF))


def _number(raw: bytes | None) -> int:
    return int(_U32.unpack(raw)[0]) if raw else 0
