"""Hear what changes in the kernel, and tell apart what contradicts us from what we did ourselves.

Promises that no change of devices, addresses, routes, neighbours, forwarding entries, nexthops,
queueing disciplines or filters passes unnoticed: a change is reported, or `OVERFLOW` says that some
were lost and everything must be read again. It never changes anything, and never calls back after
`close`. The kernel says nothing when a program is detached from a TCX hook.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from threading import Thread
from types import TracebackType
from typing import Protocol, Self

from kersey_control.devices import parse_filter, parse_qdisc
from kersey_control.reconcile import KernelObject, Key
from kersey_control.rtnetlink import (
    RTM_DELNEIGH,
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_NEWNEIGH,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    enlarge_receive_buffer,
    parse,
)

logger = logging.getLogger(__name__)

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWQDISC, _RTM_DELQDISC = 36, 37
_RTM_NEWTFILTER, _RTM_DELTFILTER = 44, 45
_CLSACT = "clsact"
_IFLA_IFNAME = 3
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUPS = (1, 3, 4, 5, 7, 32)  # link, neighbour, TC, IPv4 address, IPv4 route, nexthop
_RECEIVE_BUFFER = 16 << 20

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")


class ChangeKind(StrEnum):
    """What a change is about; OVERFLOW stands for any number of lost ones.

    QDISC is a queueing discipline or a filter: who shapes or filters a pod's packets has changed.
    """

    LINK = "link"
    ADDRESS = "address"
    OBJECT = "object"
    QDISC = "qdisc"
    OVERFLOW = "overflow"


@dataclass(frozen=True, slots=True)
class KernelChange:
    """One change. `name` is set for links; `key` and `obj` for the objects of `reconcile`.

    `obj` is None for what cannot be ours. `ifindex` is 0 where the kernel named none. `ours` is set
    where a filter of ours, or the clsact that could hold one, went.
    """

    kind: ChangeKind
    ifindex: int = 0
    gone: bool = False
    name: str = ""
    key: Key = ()
    obj: KernelObject | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Watched:
    """What concerns us: our device, if any, and the uplink, by number and by name."""

    overlay: int | None
    uplink: int
    names: frozenset[str]


def is_relevant(
    change: KernelChange, watched: Watched, desired: Mapping[Key, KernelObject]
) -> bool:
    """Return whether the kernel may now differ from what we want; `desired` is forwarding's.

    Our own doings agree with `desired` and therefore never count, however many they are.
    """
    if change.kind is ChangeKind.OVERFLOW:
        return True
    if change.kind is ChangeKind.QDISC:
        return change.ours
    if change.kind is not ChangeKind.OBJECT:
        return change.ifindex in (watched.overlay, watched.uplink) or change.name in watched.names
    wanted = desired.get(change.key)
    if change.gone or wanted is not None:
        return wanted is not None and (change.gone or change.obj != wanted)
    return change.obj is not None and change.ifindex == watched.overlay


class Monitor:
    """Call `report` from a thread of its own for each change in this network namespace.

    A context manager: it hears everything from construction on. Changes made by the sockets in
    `own_ports` are left out where the kernel says who made them (it does not for forwarding entries
    and links). What `report` raises is logged, and the next change is reported as if nothing was.
    """

    def __init__(
        self, report: Callable[[KernelChange], None], own_ports: frozenset[int] = frozenset()
    ) -> None:
        self._report = report
        self._own_ports = own_ports
        self._socket = _subscribe()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = Thread(target=self._run, name="kernel-monitor", daemon=True)
        self._closed = False
        self._thread.start()

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
        """End the thread and wait for it; twice without harm."""
        if self._closed:
            return
        self._closed = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        self._socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._wake_read in ready:
                return
            for change in self._receive():
                self._tell(change)

    def _receive(self) -> list[KernelChange]:
        try:
            data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                logger.warning("kernel monitor receives", extra={"error": str(error)})
            self._drain()
            return [KernelChange(ChangeKind.OVERFLOW)]
        return parse_changes(data, self._own_ports)

    def _drain(self) -> None:
        """Throw away what is queued: until then the kernel loses more, and does not say so again.

        Whoever hears of the loss reads everything again, so nothing may be lost after it has.
        """
        while True:
            try:
                self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return

    def _tell(self, change: KernelChange) -> None:
        try:
            self._report(change)
        except Exception:  # the thread must outlive a faulty listener
            logger.exception("kernel change not handled", extra={"kind": change.kind})


def parse_changes(data: bytes, own_ports: frozenset[int]) -> list[KernelChange]:
    """Return the changes in one datagram from the kernel, those made by `own_ports` left out."""
    changes: list[KernelChange] = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, port = _HEADER.unpack_from(data, offset)
        if port not in own_ports:
            change = _parse_change(kind, data[offset + _HEADER.size : offset + length])
            if change is not None:
                changes.append(change)
        offset += max(_HEADER.size, (length + 3) & ~3)
    return changes


def _parse_change(kind: int, payload: bytes) -> KernelChange | None:
    parser = _COMING.get(kind)
    if parser is not None:
        return parser(payload, gone=False)
    parser = _GOING.get(kind)
    return None if parser is None else parser(payload, gone=True)


def _parse_link(payload: bytes, *, gone: bool) -> KernelChange | None:
    family, _, ifindex, _, _ = _IFINFO.unpack_from(payload)
    if family != socket.AF_UNSPEC:
        return None  # a bridge port's state, not the device's
    return KernelChange(ChangeKind.LINK, ifindex=ifindex, gone=gone, name=_link_name(payload))


def _parse_address(payload: bytes, *, gone: bool) -> KernelChange:
    ifindex = _IFADDR.unpack_from(payload)[-1]
    return KernelChange(ChangeKind.ADDRESS, ifindex=ifindex, gone=gone)


def _parse_qdisc(payload: bytes, *, gone: bool) -> KernelChange | None:
    """Return None for a new clsact: it does nothing before it has a filter."""
    qdisc = parse_qdisc(payload)
    is_clsact = qdisc.kind == _CLSACT
    if is_clsact and not gone:
        return None
    return KernelChange(ChangeKind.QDISC, ifindex=qdisc.ifindex, gone=gone, ours=is_clsact)


def _parse_filter(payload: bytes, *, gone: bool) -> KernelChange | None:
    """Return None for a filter of ours that comes, or takes the place of ours."""
    found = parse_filter(payload)
    if found.is_ours and not gone:
        return None
    return KernelChange(ChangeKind.QDISC, ifindex=found.ifindex, gone=gone, ours=found.is_ours)


def _parse_object(kind: int, payload: bytes, *, gone: bool) -> KernelChange | None:
    observed = parse(kind, payload)
    if observed is None:
        return None
    return KernelChange(
        ChangeKind.OBJECT, ifindex=observed.ifindex, gone=gone, key=observed.key, obj=observed.obj
    )


class _Parser(Protocol):
    def __call__(self, payload: bytes, *, gone: bool) -> KernelChange | None: ...


_COMING: Mapping[int, _Parser] = {
    _RTM_NEWLINK: _parse_link,
    _RTM_NEWADDR: _parse_address,
    _RTM_NEWQDISC: _parse_qdisc,
    _RTM_NEWTFILTER: _parse_filter,
    **{kind: partial(_parse_object, kind) for kind in (RTM_NEWROUTE, RTM_NEWNEIGH, RTM_NEWNEXTHOP)},
}
_GOING: Mapping[int, _Parser] = {
    _RTM_DELLINK: _parse_link,
    _RTM_DELADDR: _parse_address,
    _RTM_DELQDISC: _parse_qdisc,
    _RTM_DELTFILTER: _parse_filter,
    **{kind: partial(_parse_object, kind) for kind in (RTM_DELROUTE, RTM_DELNEIGH, RTM_DELNEXTHOP)},
}


def _link_name(payload: bytes) -> str:
    offset = _IFINFO.size
    while offset + _ATTRIBUTE.size <= len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if kind == _IFLA_IFNAME:
            return payload[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return ""


def _subscribe() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        enlarge_receive_buffer(sock, _RECEIVE_BUFFER)
        sock.bind((0, 0))
        for group in _GROUPS:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        undo.pop_all()
    return sock
