"""The uplink: the node's external interface, and the address that others reach it by.

The choice is pure, over values that `read_host_network` fills from the kernel; it can be made again
at any time, since addresses, MTUs and routes change under a running node. The order in which
interfaces are tried is flannel's (main.go, pkg/ipmatch). Never changes anything in the kernel.
"""

import errno
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Protocol

from kersey_control.errors import KernelError, UplinkError

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


@dataclass(frozen=True, slots=True)
class Uplink:
    """The chosen interface. `public_ip` is what the lease says; behind NAT it is not `address`."""

    ifindex: int
    name: str
    address: IPv4Address
    public_ip: IPv4Address
    mtu: int
    reason: str
    """Why this interface was chosen, for the log and `kersey status`."""
    prefixlen: int = 32
    """Of `address`: which nodes are neighbours on the link."""

    @property
    def on_link(self) -> IPv4Network:
        """Return the addresses that are reached without a router."""
        return IPv4Network((int(self.address), self.prefixlen), strict=False)


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """One IPv4 address of an interface; `temporary` ones are secondary, in IPv4's terms."""

    address: IPv4Address
    permanent: bool = True
    temporary: bool = False
    deprecated: bool = False
    prefixlen: int = 32


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """One interface; addresses in the kernel's order."""

    ifindex: int
    name: str
    mtu: int
    up: bool
    loopback: bool
    addresses: tuple[LinkAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """One IPv4 default route of the main table; without a gateway the link itself reaches all."""

    name: str
    gateway: IPv4Address | None
    metric: int


@dataclass(frozen=True, slots=True)
class RouteLookup:
    """What the kernel answers about the way to one address: the interface, and its own address."""

    ifindex: int
    source: IPv4Address | None


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """What the kernel holds, as far as the choice needs it; `reach` only if it was asked for."""

    links: tuple[LinkInfo, ...]
    default_routes: tuple[DefaultRoute, ...] = ()
    reach: RouteLookup | None = None


class UplinkOptions(Protocol):
    """What the operator may say about the uplink; `kersey_control.options.Options` does."""

    @property
    def iface(self) -> Sequence[str]:
        """Names or addresses, tried in order."""
        ...

    @property
    def iface_regex(self) -> Sequence[re.Pattern[str]]:
        """Patterns, tried in order after all of `iface`."""
        ...

    @property
    def iface_can_reach(self) -> IPv4Address | None:
        """An address whose route names the interface, tried last."""
        ...

    @property
    def public_ip(self) -> IPv4Address | None:
        """What the lease shall say; it also finds the interface if none of the others is given."""
        ...


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An interface to try; `address` is None where the link's best one shall be taken."""

    link: LinkInfo
    reason: str
    address: IPv4Address | None = None


def find_uplink(options: UplinkOptions) -> Uplink:
    """Return the uplink as of now. Raises UplinkError, or KernelError when it cannot be read."""
    return choose_uplink(options, read_host_network(options.iface_can_reach))


def choose_uplink(options: UplinkOptions, host: HostNetwork) -> Uplink:
    """Return the first candidate that can carry the overlay.

    Raises UplinkError that lists every candidate with what is wrong with it.
    """
    rejected: list[str] = []
    for candidate in _candidates(options, host, rejected):
        trouble = _trouble(candidate)
        if trouble is None:
            return _uplink(candidate, options.public_ip)
        rejected.append(f"{candidate.link.name}, {candidate.reason}: {trouble}")
    raise UplinkError("no interface can be the uplink", rejected)


def _candidates(
    options: UplinkOptions, host: HostNetwork, rejected: list[str]
) -> Iterator[_Candidate]:
    """Yield what to try, in flannel's order; a wish that fits no interface goes to `rejected`."""
    for wish, found in _wishes(options, host):
        if not found:
            rejected.append(f"{wish}: fits no interface")
        yield from found


def _wishes(
    options: UplinkOptions, host: HostNetwork
) -> Iterator[tuple[str, tuple[_Candidate, ...]]]:
    """Yield each thing that was asked for with the interfaces that fit it."""
    if not (options.iface or options.iface_regex or options.iface_can_reach):
        yield from _unasked(options.public_ip, host)
        return
    for name in options.iface:
        yield f"--iface {name}", tuple(_named(host, name))
    for pattern in options.iface_regex:
        yield f"--iface-regex {pattern.pattern}", tuple(_matching(host, pattern))
    if options.iface_can_reach is not None:
        yield (
            f"--iface-can-reach {options.iface_can_reach}",
            tuple(_reaching(host, options.iface_can_reach)),
        )


def _unasked(
    public_ip: IPv4Address | None, host: HostNetwork
) -> Iterator[tuple[str, tuple[_Candidate, ...]]]:
    """Yield what fits when no interface flag is given.

    A public address that no usable interface has is one that others translate to ours (NAT): then
    the default route decides, where flannel gives up.
    """
    if public_ip is not None:
        owners = tuple(_owning(host, public_ip, f"it has --public-ip {public_ip}"))
        yield f"--public-ip {public_ip}", owners
    yield "default route", tuple(_by_default_route(host))


def _named(host: HostNetwork, name: str) -> Iterator[_Candidate]:
    try:
        address = IPv4Address(name)
    except ValueError:
        for link in host.links:
            if link.name == name:
                yield _Candidate(link, f"--iface {name}")
    else:
        yield from _owning(host, address, f"--iface {name}")


def _owning(host: HostNetwork, address: IPv4Address, reason: str) -> Iterator[_Candidate]:
    for link in host.links:
        if any(own.address == address for own in link.addresses):
            yield _Candidate(link, reason, address)


def _matching(host: HostNetwork, pattern: re.Pattern[str]) -> Iterator[_Candidate]:
    """Yield what matches anywhere in an address, then what matches in a name."""
    for link in host.links:
        for own in link.addresses:
            if pattern.search(str(own.address)):
                reason = f"--iface-regex {pattern.pattern} matches {own.address}"
                yield _Candidate(link, reason, own.address)
    for link in host.links:
        if pattern.search(link.name):
            yield _Candidate(link, f"--iface-regex {pattern.pattern} matches its name")


def _reaching(host: HostNetwork, target: IPv4Address) -> Iterator[_Candidate]:
    for link in host.links:
        if host.reach is not None and link.ifindex == host.reach.ifindex:
            yield _Candidate(link, f"--iface-can-reach {target}", host.reach.source)


def _by_default_route(host: HostNetwork) -> Iterator[_Candidate]:
    """Yield the interfaces of the default routes, the one that the kernel prefers first."""
    links = {link.name: link for link in host.links}
    for route in sorted(host.default_routes, key=lambda route: route.metric):
        if route.name in links:
            via = f" via {route.gateway}" if route.gateway else ""
            reason = f"default route{via} metric {route.metric}"
            yield _Candidate(links[route.name], reason)


def _trouble(candidate: _Candidate) -> str | None:
    """Return why this interface cannot carry the overlay, None if it can."""
    link = candidate.link
    if link.loopback:
        return "is a loopback interface"
    if not link.up:
        return "is down"
    if link.mtu <= 0:
        return "has MTU 0"
    if candidate.address is None and _best_address(link) is None:
        return "has no usable IPv4 address"
    return None


def _best_address(link: LinkInfo) -> IPv4Address | None:
    """Return the address that flannel takes: global, permanent, not temporary; the first of equals.

    Deprecated addresses are never taken, link-local ones only where nothing else is.
    """
    usable = [
        own
        for own in link.addresses
        if not (own.deprecated or own.address.is_loopback or own.address.is_multicast)
    ]
    best = min(
        usable,
        key=lambda own: (own.address.is_link_local, not own.permanent, own.temporary),
        default=None,
    )
    return None if best is None else best.address


def _uplink(candidate: _Candidate, public_ip: IPv4Address | None) -> Uplink:
    link = candidate.link
    address = candidate.address or _best_address(link)
    if address is None:
        raise UplinkError(f"{link.name} has no usable IPv4 address")
    return Uplink(
        ifindex=link.ifindex,
        name=link.name,
        address=address,
        public_ip=public_ip or address,
        mtu=link.mtu,
        reason=candidate.reason,
        prefixlen=next((own.prefixlen for own in link.addresses if own.address == address), 32),
    )


def read_host_network(can_reach: IPv4Address | None = None) -> HostNetwork:
    """Read interfaces, addresses and default routes of this namespace. Raises KernelError."""
    # Here, because pyroute2 costs memory that commands which only look at an Uplink need not pay.
    from kersey_control.rtnl_library import IPRoute, NetlinkError  # noqa: PLC0415

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
    return tuple(
        LinkInfo(
            ifindex=message["index"],
            name=message.get_attr("IFLA_IFNAME"),
            mtu=message.get_attr("IFLA_MTU") or 0,
            up=bool(message["flags"] & _IFF_UP),
            loopback=bool(message["flags"] & _IFF_LOOPBACK),
            addresses=tuple(addresses.get(message["index"], ())),
        )
        for message in ipr.get_links()
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
    from kersey_control.rtnl_library import NetlinkError  # noqa: PLC0415  # as above

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
