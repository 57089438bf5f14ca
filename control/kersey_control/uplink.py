"""The uplink: the node's external interface, and the address that others reach it by.

Pure: a choice over values that `host_network` reads. It can be made again at any time, since
addresses, MTUs and routes change under a running node. The order in which interfaces are tried is
flannel's (main.go, pkg/ipmatch).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from kersey_control.errors import UplinkError


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
