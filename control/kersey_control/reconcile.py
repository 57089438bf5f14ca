"""Desired versus actual kernel state, as values: what to put, what to remove, in which order.

Pure. `netlink` reads the actual objects and carries a plan out; this module never does I/O. The
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
    """A permanent VXLAN forwarding entry: frames for `mac` go to the node at `node`."""

    ifindex: int
    mac: Mac
    node: IPv4Address


class Route(NamedTuple):
    """A route of the main table, metric 0, through a nexthop object.

    `nexthop` is 0 in routes read from the kernel that do not use one of our objects; such a route
    never equals a desired one and is therefore replaced.
    """

    subnet: IPv4Network
    nexthop: int


KernelObject: TypeAlias = Nexthop | Neighbour | FdbEntry | Route
Key: TypeAlias = tuple[object, ...]
KernelState: TypeAlias = dict[Key, KernelObject]

_PUT_ORDER: dict[type, int] = {Neighbour: 0, FdbEntry: 1, Nexthop: 2, Route: 3}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in order: put all of `put`, then remove all of `remove`."""

    put: tuple[KernelObject, ...] = ()
    remove: tuple[KernelObject, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


def key_of(obj: KernelObject) -> Key:
    """Return what identifies an object to the kernel: two objects with one key cannot both exist."""
    match obj:
        case Nexthop():
            return (Nexthop, obj.id)
        case Neighbour():
            return (Neighbour, obj.ifindex, obj.address)
        case FdbEntry():
            return (FdbEntry, obj.ifindex, obj.mac)
        case Route():
            return (Route, obj.subnet)


def state_of(objects: Iterable[KernelObject]) -> KernelState:
    """Index objects by their kernel identity; the last of two with one key wins."""
    return {key_of(obj): obj for obj in objects}


def plan(desired: Mapping[Key, KernelObject], actual: Mapping[Key, KernelObject]) -> Plan:
    """Return the shortest plan that makes `actual` equal to `desired`."""
    put = [obj for key, obj in desired.items() if actual.get(key) != obj]
    remove = [obj for key, obj in actual.items() if key not in desired]
    put.sort(key=_rank)
    remove.sort(key=_rank, reverse=True)
    return Plan(put=tuple(put), remove=tuple(remove))


def _rank(obj: KernelObject) -> int:
    return _PUT_ORDER[type(obj)]
