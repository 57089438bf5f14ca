"""Which way the kernel would send one packet, by its own routing decision, in words.

Policy rules, tables and nexthop objects included, since it is the kernel that answers. Changes
nothing.
"""

import errno
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from kersey_control.rtnl_library import IPRoute, NetlinkError

_UNICAST, _LOCAL = 1, 2
_KINDS = {_UNICAST: "unicast", _LOCAL: "local", 3: "broadcast", 5: "multicast"}
_METRIC_MTU = "RTAX_MTU"


@dataclass(frozen=True, slots=True)
class Way:
    """How a packet leaves: `kind` is unicast or local, or the name of the refusal.

    `device` is empty for a refusal; `mtu` is what the route says, 0 if it says nothing.
    """

    kind: str
    device: str = ""
    gateway: IPv4Address | None = None
    source: IPv4Address | None = None
    mtu: int = 0

    def __str__(self) -> str:
        if not self.device:
            return self.kind
        via = f" via {self.gateway}" if self.gateway else ""
        source = f" from {self.source}" if self.source else ""
        return f"dev {self.device}{via}{source}"

    @property
    def is_refused(self) -> bool:
        """Return whether the kernel would not send at all."""
        return not self.device


def look_up(
    netlink: Any,
    destination: IPv4Address,
    *,
    source: IPv4Address | None = None,
    incoming: int = 0,
) -> Way:
    """Return the way to an address; with `source` and `incoming` (ifindex), of a forwarded packet.

    `netlink` is an IPRoute. The kernel's refusals are answers.
    """
    question: dict[str, Any] = {"dst": str(destination)}
    if source is not None:
        question["src"] = str(source)
    if incoming:
        question["iif"] = incoming
    try:
        (message, *_rest) = netlink.route("get", **question)
    except NetlinkError as error:
        return Way(_refusal(int(error.code)))
    return _way(message)


def open_lookup() -> Any:
    """Return the socket that `look_up` asks by; a context manager."""
    return IPRoute()


def _way(message: Any) -> Way:
    gateway, source = message.get("gateway"), message.get("prefsrc")
    metrics = message.get_attr("RTA_METRICS")
    return Way(
        kind=_KINDS.get(int(message["type"]), f"type {message['type']}"),
        device=device_name(int(message.get("oif") or 0)),
        gateway=IPv4Address(gateway) if gateway else None,
        source=IPv4Address(source) if source else None,
        mtu=int(metrics.get_attr(_METRIC_MTU) or 0) if metrics else 0,
    )


def device_name(ifindex: int) -> str:
    """Return a device's name in this namespace; its number if it is gone, empty for 0."""
    try:
        return socket.if_indextoname(ifindex) if ifindex else ""
    except OSError:
        return f"ifindex {ifindex}"


def _refusal(code: int) -> str:
    """Return what the kernel says instead of a way, as ip-route(8) calls it."""
    names = {
        errno.ENETUNREACH: "no route",
        errno.EHOSTUNREACH: "unreachable",
        errno.EINVAL: "blackhole",
        errno.EACCES: "prohibited",
        errno.EXDEV: "refused by the reverse path filter",
    }
    return names.get(code, errno.errorcode.get(code, str(code)))
