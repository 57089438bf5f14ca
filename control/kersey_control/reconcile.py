"""Desired versus actual kernel state, as values: what to put, what to remove, in which order.

Pure. `rtnetlink` reads the actual objects and carries a plan out; this module never does I/O. The
order within a plan is what keeps packets flowing: everything new is in place before anything old
goes, and an object never refers to one that is not there yet.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple, TypeAlias

from kersey_control.addresses import Mac


class Nexthop(NamedTuple):
    """A nexthop object (kernel 5.3): routes refer to it by id, so that many stay linear.

    `id` is the peer subnet's base address as a number: unique on a host, since subnets of all its
    networks are disjoint, and the same after a restart.
    """

    id: int
    ifindex: int
    gateway: IPv4Address
    onlink: bool


class Neighbour(NamedTuple):
    """A permanent neighbour entry on the overlay device."""

    ifindex: int
    address: IPv4Address
    mac: Mac


class FdbEntry(NamedTuple):
    """A permanent VXLAN forwarding entry: frames for `mac` go to the node at `node`.

    `plain` is False only in entries read from the kernel that carry a port, VNI or interface of
    their own; such an entry never equals a desired one.
    """

    ifindex: int
    mac: Mac
    node: IPv4Address
    plain: bool = True


class Route(NamedTuple):
    """A route as we make them: main table, metric 0, our protocol, through a nexthop object."""

    subnet: IPv4Network
    nexthop: int


class DeviceRoute(NamedTuple):
    """A route of our protocol whose device alone is the way: main table, metric 0, no gateway.

    Without a nexthop object, which the kernel deletes with its routes when the device loses its
    carrier, as a TUN device does while no process holds it.
    """

    subnet: IPv4Network
    ifindex: int


class StrayRoute(NamedTuple):
    """A route through our device that is not of our making, or not of our present shape.

    Only ever read from the kernel, never desired. `replaceable` says that a put of the subnet's
    `Route` takes its place in one step; the others (another metric or TOS, a second route appended
    to the same place) can only be removed.
    """

    subnet: IPv4Network
    ifindex: int
    gateway: IPv4Address | None
    nexthop: int
    protocol: int
    metric: int
    tos: int
    replaceable: bool


KernelObject: TypeAlias = Nexthop | Neighbour | FdbEntry | Route | DeviceRoute | StrayRoute
Key: TypeAlias = tuple[object, ...]
KernelState: TypeAlias = dict[Key, KernelObject]

# A changed VTEP MAC decides the order: the forwarding entry of the new MAC stands before the
# neighbour entry names that MAC. Gateway resolution comes before the nexthop, that before routes.
_PUT_ORDER: dict[type, int] = {
    FdbEntry: 0,
    Neighbour: 1,
    Nexthop: 2,
    StrayRoute: 3,
    DeviceRoute: 3,
    Route: 3,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in order: put all of `put`, then remove all of `remove`.

    `replaced` are the keys in `put` that are known to exist with another value. A route or nexthop
    that is not among them must be new: if one exists nevertheless, it belongs to someone else.
    """

    put: tuple[KernelObject, ...] = ()
    remove: tuple[KernelObject, ...] = ()
    replaced: frozenset[Key] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


def key_of(obj: KernelObject) -> Key:
    """Return what identifies an object to the kernel: two objects with one key cannot both exist.

    Addresses enter as numbers: hashing `ipaddress` values is most of the cost of a large plan.
    """
    if isinstance(obj, Nexthop):
        return (Nexthop, obj.id)
    if isinstance(obj, Neighbour):
        return (Neighbour, obj.ifindex, int(obj.address))
    if isinstance(obj, FdbEntry):
        return _fdb_key(obj)
    if isinstance(obj, Route | DeviceRoute) or obj.replaceable:
        return (Route, int(obj.subnet.network_address), obj.subnet.prefixlen)
    return (StrayRoute, *obj)


def _fdb_key(entry: FdbEntry) -> Key:
    """Return the key of a forwarding entry: only multicast and all-zero MACs have many nodes."""
    if int(entry.mac[1], 16) & 1 or entry.mac == "00:00:00:00:00:00":
        return (FdbEntry, entry.ifindex, entry.mac, int(entry.node))
    return (FdbEntry, entry.ifindex, entry.mac)


def state_of(objects: Iterable[KernelObject]) -> KernelState:
    """Index objects by their kernel identity; the last of two with one key wins."""
    return {key_of(obj): obj for obj in objects}


def plan(desired: Mapping[Key, KernelObject], actual: Mapping[Key, KernelObject]) -> Plan:
    """Return the shortest plan that makes `actual` equal to `desired`."""
    put = [obj for key, obj in desired.items() if actual.get(key) != obj]
    remove = [obj for key, obj in actual.items() if key not in desired]
    replaced = frozenset(
        key for key, obj in actual.items() if key in desired and desired[key] != obj
    )
    put.sort(key=_rank)
    remove.sort(key=_rank, reverse=True)
    return Plan(put=tuple(put), remove=tuple(remove), replaced=replaced)


def _rank(obj: KernelObject) -> int:
    return _PUT_ORDER[type(obj)]
