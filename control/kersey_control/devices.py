"""All network devices of a namespace at a glance, read in one dump that is unpacked by hand.

A node has hundreds of pods' veths, and a general library takes half a millisecond for each. Values
only; `netlink` is for looking at one device closely, and for changing it.
"""

import socket
import struct
from dataclasses import dataclass

from kersey_control.rtnetlink import Rtnl, attributes_of

_RTM_GETLINK = 18
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
