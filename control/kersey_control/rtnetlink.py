"""Bulk rtnetlink: the per-peer kernel objects, packed by hand, hundreds to one system call.

Promises one answer per object: an operation that fails is reported with its own errno and never
holds up another. Knows only the objects of `reconcile`; devices and addresses are `netlink`'s.
Numbers are in host byte order as rtnetlink has them, addresses in network byte order; constants are
from the kernel's include/uapi/linux/{netlink,rtnetlink,neighbour,nexthop}.h. Kernel floor 5.10.
"""

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from kersey_control.addresses import mac_bytes, mac_from_bytes
from kersey_control.errors import KernelError
from kersey_control.reconcile import (
    DeviceRoute,
    FdbEntry,
    KernelObject,
    KernelState,
    Key,
    Neighbour,
    Nexthop,
    Plan,
    Route,
    StrayRoute,
    key_of,
    state_of,
)

logger = logging.getLogger(__name__)

PROTOCOL = 75
"""The route protocol number that marks our routes and nexthops (`ip route show proto 75`)."""

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP_INTR = 0x1, 0x4, 0x10
_DUMP = 0x300
_REPLACE, _EXCL, _CREATE = 0x100, 0x200, 0x400
_ACK_TLVS, _ACK_MESSAGE = 0x200, 1

_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHECK = 270, 10, 11, 12
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 8 << 20  # room for an answer to each message of a batch, whatever fails
_BATCH = 400  # messages in one send: beyond some hundred the system call no longer counts

_AF_BRIDGE = 7
_NUD_PERMANENT = 0x80
_NTF_SELF = 0x02
_NDA_DST, _NDA_LLADDR, _NDA_PORT, _NDA_VNI, _NDA_IFINDEX = 1, 2, 6, 7, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = 7, 8, 15, 18, 30
_NHA_ID, _NHA_OIF, _NHA_GATEWAY = 1, 5, 6
_RTNH_F_ONLINK = 4
_TABLE_MAIN, _SCOPE_GLOBAL, _SCOPE_LINK, _SCOPE_ANY, _UNICAST = 254, 0, 253, 255, 1
_PROTOCOL_KERNEL, _PROTOCOL_BOOT = 2, 3

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_ERRNO = struct.Struct("=i")
_NDMSG = struct.Struct("=BxxxiHBB")
_NHMSG = struct.Struct("=BBBxI")
_RTMSG = struct.Struct("=8BI")
_NEIGH = struct.Struct("=IHHII BxxxiHBB HH4s HH6sxx")
_NEIGH_KEY = struct.Struct("=IHHII BxxxiHBB HH4s")
_FDB_KEY = struct.Struct("=IHHII BxxxiHBB HH6sxx")
_NEXTHOP = struct.Struct("=IHHII BBBxI HHI HHI HH4s")
_LOOKUP = struct.Struct("=IHHII 8BI HH4s")
_NEXTHOP_KEY = struct.Struct("=IHHII BBBxI HHI")
_ROUTE = struct.Struct("=IHHII 8BI HH4s HHI")

# What a removal may answer when somebody else, or the kernel with the device, was faster.
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV})

_DUMP_TRIES = 8

# Kinds that exist only on the overlay device, where everything is ours to overwrite.
_ON_OUR_DEVICE = frozenset((FdbEntry, Neighbour))


AnyRoute: TypeAlias = Route | DeviceRoute | StrayRoute


class Failure(NamedTuple):
    """One object that the kernel refused, with the errno and the kernel's own words, if any."""

    obj: KernelObject
    errno: int
    detail: str = ""

    @property
    def reason(self) -> str:
        """Return the errno's name and the kernel's explanation."""
        name = errno.errorcode.get(self.errno, str(self.errno))
        return f"{name}: {self.detail or os.strerror(self.errno)}"


class Observed(NamedTuple):
    """One object as a kernel message shows it: its identity, and its value if it could be ours.

    `obj` is None for a neighbour entry that is not permanent and for a nexthop without our mark.
    `ifindex` is 0 where the message names none.
    """

    key: Key
    ifindex: int
    obj: KernelObject | None


class Hop(NamedTuple):
    """How the kernel would send to an address: device, and the router if it is not on the link."""

    ifindex: int
    is_on_link: bool


class Rtnl:
    """A socket for bulk requests in the network namespace of the thread that makes it.

    A context manager. One thread at a time.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sequence = 0
        try:
            for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHECK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            enlarge_receive_buffer(self._socket, _RECEIVE_BUFFER)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self.port_id: int = self._socket.getsockname()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; twice without harm."""
        self._socket.close()

    def apply(self, plan: Plan) -> tuple[Failure, ...]:
        """Carry out a plan in its order and return what failed; what is already gone is removed.

        Everything else of the plan is in the kernel when this returns. Raises KernelError only
        where the socket itself fails.
        """
        puts = [(obj, _put_flags(obj, plan.replaced)) for obj in plan.put]
        removals = [(obj, None) for obj in plan.remove]
        failures: list[Failure] = []
        for batch in _batches([*puts, *removals]):
            failures += self._send(batch)
        return tuple(failures)

    def owned(
        self, *, overlay: int | None, uplink: int, network: IPv4Network, adopt: int | None = None
    ) -> KernelState:
        """Read back what is ours: all on the overlay device, and elsewhere what bears our mark.

        `overlay` and `uplink` are ifindexes, `overlay` None where there is no such device. Besides
        the overlay only nexthops of our protocol whose id is an address of `network` count, with
        their routes: on any device, since a former uplink keeps them while it is up. With `adopt`,
        a prefix length, the uplink's routes to subnets of that length count as well if they are
        flannel's, which are those of `ip route add` through a gateway. Raises KernelError.
        """
        nexthops = tuple(self._nexthops(overlay, network))
        found: list[KernelObject] = list(nexthops)
        if overlay is not None:
            found += _one_route_per_place(self._routes(overlay))
            found += self._neighbours(overlay)
            found += self._fdb(overlay)
        for ifindex in {uplink, *(each.ifindex for each in nexthops)} - {overlay}:
            flannels = adopt if ifindex == uplink else None
            found += (
                route
                for route in self._routes(ifindex)
                if _is_marked(route, network) or _is_flannels(route, network, flannels)
            )
        return state_of(found)

    def hops(self, addresses: Iterable[IPv4Address]) -> dict[IPv4Address, Hop]:
        """Return how the kernel would send to each address; one that it cannot reach is left out.

        Hundreds to one system call. Raises KernelError.
        """
        wanted = list(addresses)
        found: dict[IPv4Address, Hop] = {}
        for start in range(0, len(wanted), _BATCH):
            found |= self._look_up(wanted[start : start + _BATCH])
        return found

    def nexthops(self) -> tuple[Nexthop, ...]:
        """Return every nexthop object of our protocol, whatever its device. Raises KernelError."""
        return tuple(self._marked_nexthops())

    def _send(self, batch: list[tuple[KernelObject, int | None]]) -> list[Failure]:
        """Send one batch, only its last message asking for an answer; failures answer unasked."""
        first = self._sequence + 1
        self._sequence += len(batch)
        *body, last = batch
        packed = [_encode(obj, flags, first + i, 0) for i, (obj, flags) in enumerate(body)]
        packed.append(_encode(*last, self._sequence, _ACK))
        answers, complete = self._exchange(b"".join(packed), self._sequence)
        if not complete:
            # Nobody can say what was refused, so all counts as failed; who reads back the
            # kernel's state finds out.
            answers = dict.fromkeys(range(first, self._sequence + 1), (errno.ENOBUFS, "")) | answers
        failures: list[Failure] = []
        for sequence, (code, detail) in answers.items():
            if code == 0 or sequence < first:
                continue
            obj, flags = batch[sequence - first]
            if flags is not None or not _is_gone(obj, code):
                failures.append(Failure(obj, code, detail))
        return failures

    def _exchange(self, data: bytes, last: int) -> tuple[dict[int, tuple[int, str]], bool]:
        """Send requests; return (errno, text) by sequence number, and whether none was lost.

        rtnetlink works inside send(), so every answer is queued when it returns. After an overflow
        the kernel drops all further answers until the queue is empty: it is read to its end.
        """
        self._transmit(data)
        answers: dict[int, tuple[int, str]] = {}
        complete = True
        while last not in answers or not complete:
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                complete = False
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(f"rtnetlink answers: {_name(error.errno)}") from error
                logger.warning("rtnetlink answers lost")
                complete = False
                continue
            for kind, flags, sequence, start, end in _messages(data):
                if kind == _NLMSG_ERROR:
                    answers[sequence] = _parse_error(data, flags, start, end)
        return answers, complete

    def _look_up(self, addresses: list[IPv4Address]) -> dict[IPv4Address, Hop]:
        """Ask for the routes to some addresses; each gets one answer, a route or an error."""
        first = self._sequence + 1
        self._sequence += len(addresses)
        self._transmit(b"".join(_encode_lookup(a, first + i) for i, a in enumerate(addresses)))
        found: dict[IPv4Address, Hop] = {}
        open_questions = len(addresses)
        while open_questions:
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except OSError as error:  # rtnetlink answers inside send(): nothing more will come
                raise KernelError(f"rtnetlink route look-up: {_name(error.errno)}") from error
            for kind, _flags, sequence, start, end in _messages(data):
                if sequence < first:
                    continue
                open_questions -= 1
                if kind == RTM_NEWROUTE and (hop := _parse_hop(data[start:end])) is not None:
                    found[addresses[sequence - first]] = hop
        return found

    def _transmit(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise KernelError(f"rtnetlink request: {_name(error.errno)}") from error

    def dump(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        """Return (type, payload) of each message of a dump that nothing changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            messages = self._dump_once(kind, body)
            if messages is not None:
                return messages
        raise KernelError(f"rtnetlink dump {kind}: changed under all of {_DUMP_TRIES} readings")

    def _dump_once(self, kind: int, body: bytes) -> list[tuple[int, bytes]] | None:
        self._sequence += 1
        header = _HEADER.pack(16 + len(body), kind, _REQUEST | _DUMP, self._sequence, 0)
        self._transmit(header + body)
        found: list[tuple[int, bytes]] = []
        interrupted = False
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except OSError as error:
                raise KernelError(f"rtnetlink dump {kind}: {_name(error.errno)}") from error
            for got, flags, sequence, start, end in _messages(data):
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                interrupted = interrupted or bool(flags & _DUMP_INTR)
                if got in (_NLMSG_DONE, _NLMSG_ERROR):
                    _check_dump(kind, data, start, end)
                    return None if interrupted else found
                found.append((got, data[start:end]))

    def _nexthops(self, overlay: int | None, network: IPv4Network) -> Iterator[Nexthop]:
        for nexthop in self._marked_nexthops():
            if nexthop.ifindex == overlay or _contains(network, nexthop.id):
                yield nexthop

    def _marked_nexthops(self) -> Iterator[Nexthop]:
        for _, payload in self.dump(RTM_GETNEXTHOP, _NHMSG.pack(socket.AF_UNSPEC, 0, 0, 0)):
            nexthop = _our_nexthop(payload)
            if nexthop is not None:
                yield nexthop

    def _routes(self, ifindex: int) -> Iterator[AnyRoute]:
        body = _RTMSG.pack(socket.AF_INET, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0)
        body += _ATTRIBUTE.pack(8, _RTA_OIF) + _U32.pack(ifindex)
        for _, payload in self.dump(RTM_GETROUTE, body):
            observed = parse_route(payload, through=ifindex)
            if observed is not None and isinstance(observed.obj, AnyRoute):
                yield observed.obj

    def _neighbours(self, ifindex: int) -> Iterator[KernelObject]:
        return self._neighbour_dump(socket.AF_INET, ifindex)

    def _fdb(self, ifindex: int) -> Iterator[KernelObject]:
        return self._neighbour_dump(_AF_BRIDGE, ifindex)

    def _neighbour_dump(self, family: int, ifindex: int) -> Iterator[KernelObject]:
        body = _NDMSG.pack(family, 0, 0, 0, 0)
        body += _ATTRIBUTE.pack(8, _NDA_IFINDEX) + _U32.pack(ifindex)
        for _, payload in self.dump(RTM_GETNEIGH, body):
            observed = parse_neighbour(payload)
            if observed is not None and observed.obj is not None and observed.ifindex == ifindex:
                yield observed.obj


def enlarge_receive_buffer(sock: socket.socket, size: int) -> None:
    """Ask for a receive buffer of `size` bytes, beyond the system's limit where that is allowed."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def parse(kind: int, payload: bytes) -> Observed | None:
    """Return what a message on a route, neighbour, forwarding entry or nexthop is about.

    None if that is nothing of IPv4, or nothing that could ever be ours.
    """
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return parse_route(payload) if payload[0] == socket.AF_INET else None
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        return parse_neighbour(payload)
    return _parse_nexthop(payload)


def parse_route(payload: bytes, through: int = 0) -> Observed | None:
    """Return the route in an RTM_NEWROUTE payload, None for one that the kernel keeps itself.

    Tables other than main are the operator's.

    `through` is the ifindex by which the kernel filtered: messages of routes through a nexthop
    object do not name it when net.ipv4.nexthop_compat_mode is 0.
    """
    _, length, _, tos, table, protocol, scope, kind, _ = _RTMSG.unpack_from(payload)
    attributes = attributes_of(payload, _RTMSG.size)
    base = IPv4Address(attributes.get(_RTA_DST, b"\0\0\0\0"))
    subnet = IPv4Network((base, length))
    ifindex = _number(attributes, _RTA_OIF) or through
    nexthop = _number(attributes, _RTA_NH_ID)
    metric = _number(attributes, _RTA_PRIORITY)
    place = metric == 0 and tos == 0
    if _number(attributes, _RTA_TABLE, table) != _TABLE_MAIN or protocol == _PROTOCOL_KERNEL:
        return None
    gateway = attributes.get(_RTA_GATEWAY)
    ours = protocol == PROTOCOL and kind == _UNICAST and place
    if ours and _RTA_PREFSRC not in attributes and _RTA_METRICS not in attributes:
        made: Route | DeviceRoute | None = None
        if nexthop and scope == _SCOPE_GLOBAL:
            made = Route(subnet, nexthop)
        elif scope == _SCOPE_LINK and ifindex and not gateway:
            made = DeviceRoute(subnet, ifindex)
        if made is not None:
            return Observed(key_of(made), ifindex, made)
    stray = StrayRoute(
        subnet=subnet,
        ifindex=ifindex,
        gateway=IPv4Address(gateway) if gateway else None,
        nexthop=nexthop,
        protocol=protocol,
        metric=metric,
        tos=tos,
        replaceable=place,
    )
    return Observed(key_of(stray), ifindex, stray)


def parse_neighbour(payload: bytes) -> Observed | None:
    """Return the IPv4 neighbour or VXLAN forwarding entry in an RTM_NEWNEIGH payload."""
    family, ifindex, state, _, _ = _NDMSG.unpack_from(payload)
    attributes = attributes_of(payload, _NDMSG.size)
    permanent = bool(state & _NUD_PERMANENT)
    address, mac = attributes.get(_NDA_DST, b""), attributes.get(_NDA_LLADDR, b"")
    entry: Neighbour | FdbEntry
    if len(address) != 4:  # noqa: PLR2004  # an entry without destination, or IPv6
        return None
    if family == socket.AF_INET:
        entry = Neighbour(ifindex, IPv4Address(address), mac_from_bytes(mac))
    elif family == _AF_BRIDGE and mac:
        plain = not attributes.keys() & {_NDA_PORT, _NDA_VNI, _NDA_IFINDEX}
        entry = FdbEntry(ifindex, mac_from_bytes(mac), IPv4Address(address), plain)
    else:
        return None
    return Observed(key_of(entry), ifindex, entry if permanent else None)


def _parse_nexthop(payload: bytes) -> Observed:
    identity = _number(attributes_of(payload, _NHMSG.size), _NHA_ID)
    nexthop = _our_nexthop(payload)
    return Observed((Nexthop, identity), nexthop.ifindex if nexthop else 0, nexthop)


def _our_nexthop(payload: bytes) -> Nexthop | None:
    _, _, protocol, flags = _NHMSG.unpack_from(payload)
    if protocol != PROTOCOL:
        return None
    attributes = attributes_of(payload, _NHMSG.size)
    gateway = attributes.get(_NHA_GATEWAY, b"\0\0\0\0")
    return Nexthop(
        id=_number(attributes, _NHA_ID),
        ifindex=_number(attributes, _NHA_OIF),
        gateway=IPv4Address(gateway[:4]),
        onlink=bool(flags & _RTNH_F_ONLINK),
    )


def _one_route_per_place(routes: Iterable[AnyRoute]) -> list[AnyRoute]:
    """Mark all but one of the routes in one place (subnet, metric 0) as removable only.

    Routes pile up there by `ip route append`. Ours is the one to keep, wherever it stands: to
    replace the first by what exists already as the second is refused with EEXIST.
    """
    kept: dict[Key, AnyRoute] = {}
    rest: list[AnyRoute] = []
    for route in routes:
        key = key_of(route)
        held = kept.setdefault(key, route)
        if held is not route:
            stays, goes = (route, held) if _is_as_made(route) else (held, route)
            kept[key] = stays
            rest.append(_as_removable(goes))
    return [*kept.values(), *rest]


def _is_as_made(route: AnyRoute) -> bool:
    if isinstance(route, Route):
        return route.nexthop == int(route.subnet.network_address)
    return isinstance(route, DeviceRoute)


def _as_removable(route: AnyRoute) -> StrayRoute:
    if isinstance(route, StrayRoute):
        return route._replace(replaceable=False)
    return StrayRoute(
        subnet=route.subnet,
        ifindex=route.ifindex if isinstance(route, DeviceRoute) else 0,
        gateway=None,
        nexthop=route.nexthop if isinstance(route, Route) else 0,
        protocol=PROTOCOL,
        metric=0,
        tos=0,
        replaceable=False,
    )


def _is_marked(route: AnyRoute, network: IPv4Network) -> bool:
    if isinstance(route, DeviceRoute):
        return False
    return route.nexthop != 0 and (
        (isinstance(route, Route) or route.protocol == PROTOCOL)
        and _contains(network, route.nexthop)
    )


def _is_flannels(route: AnyRoute, network: IPv4Network, length: int | None) -> bool:
    """Return whether this is a route to a lease as flannel makes them without a tunnel."""
    return (
        isinstance(route, StrayRoute)
        and route.replaceable
        and route.protocol == _PROTOCOL_BOOT
        and route.gateway is not None
        and route.subnet.prefixlen == length
        and _contains(network, int(route.subnet.network_address))
    )


def _contains(network: IPv4Network, address: int) -> bool:
    return address & int(network.netmask) == int(network.network_address)


def _put_flags(obj: KernelObject, replaced: frozenset[Key]) -> int:
    """Return how to put an object: what should be new must not overwrite what is not ours."""
    if type(obj) in _ON_OUR_DEVICE or (replaced and key_of(obj) in replaced):
        return _CREATE | _REPLACE
    return _CREATE | _EXCL


def _encode(obj: KernelObject, flags: int | None, sequence: int, ack: int) -> bytes:
    """Return the message that puts `obj` with these flags, or removes it if they are None."""
    if flags is None:
        return _encode_removal(obj, _REQUEST | ack, sequence)
    flags |= _REQUEST | ack
    if isinstance(obj, FdbEntry):
        return _encode_neighbour(obj, obj.node, flags, sequence)
    if isinstance(obj, Neighbour):
        return _encode_neighbour(obj, obj.address, flags, sequence)
    if isinstance(obj, Nexthop):
        return _encode_nexthop(obj, flags, sequence)
    if isinstance(obj, Route | DeviceRoute):
        return _encode_route(obj, RTM_NEWROUTE, flags, sequence)
    raise TypeError(f"{obj!r} can be removed, never put")


def _encode_neighbour(
    obj: Neighbour | FdbEntry, address: IPv4Address, flags: int, sequence: int
) -> bytes:
    """Return RTM_NEWNEIGH. Without NTF_SELF a forwarding entry would be looked up in a bridge."""
    bridge = isinstance(obj, FdbEntry)
    return _NEIGH.pack(
        *(_NEIGH.size, RTM_NEWNEIGH, flags, sequence, 0),
        *(_AF_BRIDGE if bridge else socket.AF_INET, obj.ifindex, _NUD_PERMANENT),
        *(_NTF_SELF if bridge else 0, 0),
        *(8, _NDA_DST, address.packed),
        *(10, _NDA_LLADDR, mac_bytes(obj.mac)),
    )


def _encode_nexthop(obj: Nexthop, flags: int, sequence: int) -> bytes:
    return _NEXTHOP.pack(
        *(_NEXTHOP.size, RTM_NEWNEXTHOP, flags, sequence, 0),
        *(socket.AF_INET, 0, PROTOCOL, _RTNH_F_ONLINK if obj.onlink else 0),
        *(8, _NHA_ID, obj.id),
        *(8, _NHA_OIF, obj.ifindex),
        *(8, _NHA_GATEWAY, obj.gateway.packed),
    )


def _encode_route(obj: Route | DeviceRoute, kind: int, flags: int, sequence: int) -> bytes:
    subnet = obj.subnet
    scope = _SCOPE_GLOBAL if isinstance(obj, Route) else _SCOPE_LINK
    return _ROUTE.pack(
        *(_ROUTE.size, kind, flags, sequence, 0),
        *(socket.AF_INET, subnet.prefixlen, 0, 0),
        *(_TABLE_MAIN, PROTOCOL, scope, _UNICAST, 0),
        *(8, _RTA_DST, subnet.network_address.packed),
        *((8, _RTA_NH_ID, obj.nexthop) if isinstance(obj, Route) else (8, _RTA_OIF, obj.ifindex)),
    )


def _encode_lookup(address: IPv4Address, sequence: int) -> bytes:
    return _LOOKUP.pack(
        *(_LOOKUP.size, RTM_GETROUTE, _REQUEST, sequence, 0),
        *(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0),
        *(8, _RTA_DST, address.packed),
    )


def _parse_hop(payload: bytes) -> Hop | None:
    """Return the way of a unicast route, None for our own and for unreachable addresses."""
    kind = _RTMSG.unpack_from(payload)[7]
    attributes = attributes_of(payload, _RTMSG.size)
    if kind != _UNICAST:
        return None
    return Hop(
        ifindex=_number(attributes, _RTA_OIF),
        is_on_link=not attributes.keys() & {_RTA_GATEWAY, _RTA_VIA},
    )


def _encode_removal(obj: KernelObject, flags: int, sequence: int) -> bytes:
    if isinstance(obj, Neighbour):
        return _NEIGH_KEY.pack(
            *(_NEIGH_KEY.size, RTM_DELNEIGH, flags, sequence, 0),
            *(socket.AF_INET, obj.ifindex, 0, 0, 0),
            *(8, _NDA_DST, obj.address.packed),
        )
    if isinstance(obj, FdbEntry):
        # Without a destination: naming one that has changed meanwhile removes nothing and the
        # kernel calls it a success.
        return _FDB_KEY.pack(
            *(_FDB_KEY.size, RTM_DELNEIGH, flags, sequence, 0),
            *(_AF_BRIDGE, obj.ifindex, 0, _NTF_SELF, 0),
            *(10, _NDA_LLADDR, mac_bytes(obj.mac)),
        )
    if isinstance(obj, Nexthop):
        return _NEXTHOP_KEY.pack(
            *(_NEXTHOP_KEY.size, RTM_DELNEXTHOP, flags, sequence, 0),
            *(socket.AF_INET, 0, 0, 0),
            *(8, _NHA_ID, obj.id),
        )
    if isinstance(obj, Route | DeviceRoute):
        return _encode_route(obj, RTM_DELROUTE, flags, sequence)
    return _encode_stray_removal(obj, flags, sequence)


def _encode_stray_removal(obj: StrayRoute, flags: int, sequence: int) -> bytes:
    """Name the route by all we know: what is left out matches any route to the subnet."""
    body = _RTMSG.pack(
        *(socket.AF_INET, obj.subnet.prefixlen, 0, obj.tos),
        *(_TABLE_MAIN, obj.protocol, _SCOPE_ANY, 0, 0),
    )
    body += _ATTRIBUTE.pack(8, _RTA_DST) + obj.subnet.network_address.packed
    if obj.metric:
        body += _ATTRIBUTE.pack(8, _RTA_PRIORITY) + _U32.pack(obj.metric)
    if obj.nexthop:  # excludes device and gateway
        body += _ATTRIBUTE.pack(8, _RTA_NH_ID) + _U32.pack(obj.nexthop)
    else:
        body += _ATTRIBUTE.pack(8, _RTA_OIF) + _U32.pack(obj.ifindex)
        if obj.gateway is not None:
            body += _ATTRIBUTE.pack(8, _RTA_GATEWAY) + obj.gateway.packed
    return _HEADER.pack(16 + len(body), RTM_DELROUTE, flags, sequence, 0) + body


def _batches(
    requests: list[tuple[KernelObject, int | None]],
) -> Iterator[list[tuple[KernelObject, int | None]]]:
    return (requests[i : i + _BATCH] for i in range(0, len(requests), _BATCH))


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (type, flags, sequence, payload start, payload end) of each message in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, offset + 16, offset + length
        offset += (length + 3) & ~3


def attributes_of(data: bytes, offset: int) -> dict[int, bytes]:
    """Return the attributes from `offset` on, by type; the last of several wins."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        found[kind] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _number(attributes: dict[int, bytes], kind: int, default: int = 0) -> int:
    raw = attributes.get(kind)
    return default if raw is None else int(_U32.unpack(raw)[0])


def _parse_error(data: bytes, flags: int, start: int, end: int) -> tuple[int, str]:
    """Return (errno, text) of an NLMSG_ERROR; 0 is an acknowledgement."""
    code = -_ERRNO.unpack_from(data, start)[0]
    if not code or not flags & _ACK_TLVS:
        return code, ""
    text = attributes_of(data[start + 20 : end], 0).get(_ACK_MESSAGE, b"")
    return code, text.rstrip(b"\0").decode(errors="replace")


def _check_dump(kind: int, data: bytes, start: int, end: int) -> None:
    code = -_ERRNO.unpack_from(data, start)[0] if end - start >= _ERRNO.size else 0
    if code:
        raise KernelError(f"rtnetlink dump {kind}: {_name(code)}")


def _is_gone(obj: KernelObject, code: int) -> bool:
    """Return whether a removal's errno says that there is nothing to remove.

    EINVAL is what a route gets whose nexthop object is gone, and the route with it.
    """
    through_nexthop = isinstance(obj, Route | StrayRoute) and obj.nexthop != 0
    return code in _GONE or (code == errno.EINVAL and through_nexthop)


def _name(code: int | None) -> str:
    return errno.errorcode.get(code or 0, str(code))
