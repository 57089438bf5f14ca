"""What this host offers as an uplink: interfaces, addresses and default routes, read as values.

The choice among them is `uplink`'s, pure. Reads the network namespace of the calling thread and
changes nothing.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from kersey_control.devices import read_devices
from kersey_control.errors import KernelError
from kersey_control.rtnetlink import Rtnl
from kersey_control.rtnl_library import IPRoute, NetlinkError
from kersey_control.uplink import (
    DefaultRoute,
    HostNetwork,
    LinkAddress,
    LinkInfo,
    RouteLookup,
    Uplink,
    UplinkOptions,
    choose_uplink,
)

# Of this thread's namespace. A dump by netlink would decode every route of every peer to find the
# few default routes; here they are the first lines, since the kernel lists by destination.
_ROUTES = Path("/proc/thread-self/net/route")
_RTF_UP = 0x1
_RTF_GATEWAY = 0x2
_RTF_REJECT = 0x200
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFA_F_TEMPORARY = 0x01  # of IPv4: secondary
_IFA_F_DEPRECATED = 0x20
_IFA_F_PERMANENT = 0x80


def find_uplink(options: UplinkOptions) -> Uplink:
    """Return the uplink as of now. Raises UplinkError, or KernelError when it cannot be read."""
    return choose_uplink(options, read_host_network(options.iface_can_reach))


def read_host_network(can_reach: IPv4Address | None = None) -> HostNetwork:
    """Read interfaces, addresses and default routes of this namespace. Raises KernelError."""
    try:
        with IPRoute() as ipr:
            return HostNetwork(
                links=_read_links(ipr),
                default_routes=tuple(_default_routes()),
                reach=None if can_reach is None else _look_up(ipr, can_reach),
            )
    except NetlinkError as error:
        name = errno.errorcode.get(error.code, str(error.code))
        raise KernelError(f"reading interfaces: {name}") from error
    except OSError as error:
        raise KernelError(f"reading interfaces: {error}") from error


def _read_links(ipr: Any) -> tuple[LinkInfo, ...]:
    addresses: dict[int, list[LinkAddress]] = {}
    for message in ipr.get_addr(family=socket.AF_INET):
        addresses.setdefault(message["index"], []).append(_link_address(message))
    with Rtnl() as rtnl:
        devices = read_devices(rtnl)
    return tuple(
        LinkInfo(
            ifindex=device.ifindex,
            name=device.name,
            mtu=device.mtu,
            up=bool(device.flags & _IFF_UP),
            loopback=bool(device.flags & _IFF_LOOPBACK),
            addresses=tuple(addresses.get(device.ifindex, ())),
        )
        for device in devices
    )


def _link_address(message: Any) -> LinkAddress:
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    # On a point-to-point link IFA_ADDRESS is the other end.
    address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return LinkAddress(
        IPv4Address(address),
        permanent=bool(flags & _IFA_F_PERMANENT),
        temporary=bool(flags & _IFA_F_TEMPORARY),
        deprecated=bool(flags & _IFA_F_DEPRECATED),
        prefixlen=message["prefixlen"],
    )


def _look_up(ipr: Any, target: IPv4Address) -> RouteLookup | None:
    try:
        (message, *_rest) = ipr.route("get", dst=str(target))
    except NetlinkError:
        return None  # the kernel's way to say that there is no route
    source = message.get_attr("RTA_PREFSRC")
    return RouteLookup(
        ifindex=message.get_attr("RTA_OIF"),
        source=None if source is None else IPv4Address(source),
    )


def _default_routes() -> Iterator[DefaultRoute]:
    """Yield the usable default routes of the main table; a multipath one by its first way."""
    with _ROUTES.open() as lines:
        next(lines, None)
        for line in lines:
            name, destination, gateway, flags, _, _, metric, mask, *_ = line.split()
            if int(destination, 16):
                return
            wanted = int(flags, 16) & (_RTF_UP | _RTF_REJECT) == _RTF_UP
            if wanted and not int(mask, 16):
                yield DefaultRoute(
                    name=name,
                    gateway=_gateway(gateway) if int(flags, 16) & _RTF_GATEWAY else None,
                    metric=int(metric) & 0xFFFFFFFF,  # printed as signed
                )


def _gateway(text: str) -> IPv4Address | None:
    """Read an address that the kernel prints as a number of the machine's byte order."""
    address = IPv4Address(struct.pack("=I", int(text, 16)))
    return address if int(address) else None  # a gateway of IPv6 is not shown
