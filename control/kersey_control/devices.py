"""All network devices of a namespace at a glance, and what is queued or filtered on them.

A node has hundreds of pods' veths, and a general library takes half a millisecond for each: here is
one dump for all of them, unpacked by hand. Values only; `netlink` is for looking at one device
closely, and for changing it. Numbers of queueing disciplines and filters are those of
include/uapi/linux/{rtnetlink,pkt_sched}.h.
"""

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from kersey_loader.attach import NAME_PREFIX, PRIORITY

from kersey_control.rtnetlink import Rtnl, attributes_of

_RTM_GETLINK, _RTM_GETQDISC, _RTM_GETTFILTER = 18, 38, 46
_TCMSG = struct.Struct("=BxxxiIII")
_TCA_KIND, _TCA_OPTIONS, _TCA_BPF_NAME = 1, 2, 7
_IFINFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 3, 4, 10, 18
_IFLA_EXT_MASK, _IFLA_LINK_NETNSID, _IFLA_INFO_KIND = 29, 37, 1
_SKIP_STATISTICS = 1 << 3


@dataclass(frozen=True, slots=True)
class Device:
    """What can be seen of a device at a glance; `master` is an ifindex, 0 if none.

    `flags` are IFF_*, `mtu` is in bytes. `is_shared` says that its other end (of a veth) is in
    another network namespace.
    """

    ifindex: int
    name: str
    kind: str
    mtu: int
    flags: int = 0
    master: int = 0
    is_shared: bool = False


class Hook(IntEnum):
    """Where filters of clsact are, by the parent that they name."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline of a device, whether at its root or below."""

    ifindex: int
    kind: str


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter, or all of one priority; `is_ours` goes by its priority and its name."""

    ifindex: int
    kind: str
    is_ours: bool


def read_qdiscs(rtnl: Rtnl) -> tuple[Qdisc, ...]:
    """Return the queueing disciplines of all devices. Raises KernelError."""
    body = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return tuple(parse_qdisc(payload) for _, payload in rtnl.dump(_RTM_GETQDISC, body))


def read_filters(rtnl: Rtnl, ifindex: int, hook: Hook) -> tuple[Filter, ...]:
    """Return the filters at a hook of a device, none without clsact or without the device.

    Raises KernelError.
    """
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, hook, 0)
    return tuple(parse_filter(payload) for _, payload in rtnl.dump(_RTM_GETTFILTER, body))


def parse_qdisc(payload: bytes) -> Qdisc:
    """Return the queueing discipline in an RTM_NEWQDISC or RTM_DELQDISC payload."""
    _, ifindex, _, _, _ = _TCMSG.unpack_from(payload)
    kind = attributes_of(payload, _TCMSG.size).get(_TCA_KIND, b"")
    return Qdisc(ifindex, _text(kind))


def parse_filter(payload: bytes) -> Filter:
    """Return the filter in an RTM_NEWTFILTER or RTM_DELTFILTER payload.

    Also all filters of one kind and priority together are told by one message, without options.
    """
    _, ifindex, _, _, info = _TCMSG.unpack_from(payload)
    attributes = attributes_of(payload, _TCMSG.size)
    kind = _text(attributes.get(_TCA_KIND, b""))
    is_ours = (kind, info >> 16) == ("bpf", PRIORITY)
    options = attributes.get(_TCA_OPTIONS)
    if is_ours and options is not None:
        name = attributes_of(options, 0).get(_TCA_BPF_NAME, b"")
        is_ours = _text(name).startswith(NAME_PREFIX)
    return Filter(ifindex, kind, is_ours)


def read_devices(rtnl: Rtnl, kind: str = "") -> tuple[Device, ...]:
    """Return all devices, or those of one kind, which the kernel then picks itself.

    Raises KernelError.
    """
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    if kind:
        body += _attribute(_IFLA_LINKINFO, _attribute(_IFLA_INFO_KIND, kind.encode() + b"\0"))
    else:
        body += _attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATISTICS))
    return tuple(_device(payload) for _, payload in rtnl.dump(_RTM_GETLINK, body))


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _device(payload: bytes) -> Device:
    _, _, ifindex, flags, _ = _IFINFO.unpack_from(payload)
    attributes = attributes_of(payload, _IFINFO.size)
    info = attributes_of(attributes.get(_IFLA_LINKINFO, b""), 0)
    return Device(
        ifindex=ifindex,
        name=_text(attributes.get(_IFLA_IFNAME, b"")),
        kind=_text(info.get(_IFLA_INFO_KIND, b"")),
        mtu=_number(attributes.get(_IFLA_MTU)),
        flags=flags,
        master=_number(attributes.get(_IFLA_MASTER)),
        is_shared=_IFLA_LINK_NETNSID in attributes,
    )


def _number(raw: bytes | None) -> int:
    return int(_U32.unpack(raw)[0]) if raw else 0


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
