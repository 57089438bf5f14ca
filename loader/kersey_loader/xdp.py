"""The XDP program on the uplink: what a device offers, and our link on it.

The link is pinned beside those of TCX and outlives every process; its program is replaced in its
place. A device has room for one program: where somebody else's is, attaching fails and that one
stays. Works in the network namespace of the calling thread. Numbers are those of
include/uapi/linux/{if_link,netdev,genetlink,ethtool}.h.
"""

import ctypes
import errno
import fcntl
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path

from kersey_loader.bpf import (
    Descriptor,
    LinkInfo,
    create_link,
    link_info,
    open_pin,
    pin,
    program_name,
    update_link,
)
from kersey_loader.errors import AttachError, BpfError
from kersey_loader.netlink import Netlink, attribute, attributes
from kersey_loader.tcx import remove_link

_ATTACH_TYPE = 37  # BPF_XDP
_SUFFIX = "-xdp"

_GETLINK = 18
_IFINFO = struct.Struct("=BxHiII")
_ADDRESS, _IFNAME, _MTU, _LINKINFO, _XDP, _INFO_KIND = 1, 3, 4, 18, 43, 1
_XDP_ATTACHED, _XDP_PROGRAM = 2, 4

_NETLINK_GENERIC = 16
_GENL_CONTROL, _GENL_HEADER = 0x10, struct.Struct("=BBxx")
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
_NETDEV_DEV_GET, _NETDEV_IFINDEX, _NETDEV_FEATURES = 1, 1, 3

_SIOCETHTOOL, _GET_DRIVER = 0x8946, 3
_DRIVER_INFO = struct.Struct("=I32s160x")  # struct ethtool_drvinfo
_IFREQ = struct.Struct("=16sQ16x")


class Mode(IntEnum):
    """Where a program runs, as the kernel numbers it: in the driver, or on packets made already."""

    NATIVE = 1
    GENERIC = 2

    @property
    def flag(self) -> int:
        """Return the XDP_FLAGS_* that asks for it."""
        return {Mode.NATIVE: 1 << 2, Mode.GENERIC: 1 << 1}[self]


class Features(IntFlag):
    """enum netdev_xdp_act, as far as used: what a driver has of XDP."""

    NONE = 0
    BASIC = 1
    NDO_XMIT = 4


@dataclass(frozen=True, slots=True)
class XdpDevice:
    """A device as far as XDP is concerned.

    `kind` is that of a virtual device, empty for a NIC; `mtu` in bytes; `address` in wire order,
    empty where it has none. `features` is None where the kernel does not tell (before 6.3). `mode`
    and `program`, its id, are of what is on the device now, whoever put it there; 0 if nothing is.
    Mode 3 and above are not ours.
    """

    ifindex: int
    name: str
    kind: str
    driver: str
    mtu: int
    address: bytes
    features: Features | None
    mode: int = 0
    program: int = 0

    @property
    def program_name(self) -> str:
        """Return the name of the program that is on it. Raises BpfError if that is gone."""
        return program_name(self.program)


def read_device(ifindex: int) -> XdpDevice:
    """Return what the kernel says of a device. Raises AttachError, also if it is gone."""
    try:
        with Netlink(socket.NETLINK_ROUTE) as route:
            (found,) = route.ask(_GETLINK, 0, _IFINFO.pack(0, 0, ifindex, 0, 0))
    except OSError as error:
        raise AttachError(f"cannot look at device {ifindex}: {error}") from error
    facts = dict(attributes(found[_IFINFO.size :]))
    xdp = dict(attributes(facts.get(_XDP, b"")))
    name = _text(facts[_IFNAME])
    return XdpDevice(
        ifindex=ifindex,
        name=name,
        kind=_text(dict(attributes(facts.get(_LINKINFO, b""))).get(_INFO_KIND, b"")),
        driver=_driver(name),
        mtu=_number(facts.get(_MTU, b"")),
        address=facts.get(_ADDRESS, b""),
        features=features_of(ifindex),
        mode=_number(xdp.get(_XDP_ATTACHED, b"")),
        program=_number(xdp.get(_XDP_PROGRAM, b"")),
    )


def features_of(ifindex: int) -> Features | None:
    """Return what a device's driver has of XDP; None where the kernel does not tell (6.3)."""
    asked = _GENL_HEADER.pack(_GET_FAMILY, 1) + attribute(_FAMILY_NAME, b"netdev\0")
    try:
        with Netlink(_NETLINK_GENERIC) as generic:
            (family,) = generic.ask(_GENL_CONTROL, 0, asked)
            number = _number(_generic_facts(family)[_FAMILY_ID])
            asked = _GENL_HEADER.pack(_NETDEV_DEV_GET, 1)
            asked += attribute(_NETDEV_IFINDEX, struct.pack("=I", ifindex))
            (device,) = generic.ask(number, 0, asked)
    except OSError:
        return None
    return Features(_number(_generic_facts(device)[_NETDEV_FEATURES]) & sum(Features))


class WireHook:
    """Our XDP link, pinned in `home` on bpffs under the device that it is for; one at a time."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def attach(self, device: XdpDevice, mode: Mode, *, fd: int) -> None:
        """Have a program on a device in this mode and on no other, in the place of ours if there.

        Raises AttachError with the reason; then nothing of ours is on any device.
        """
        path = self._home / f"{device.ifindex}{_SUFFIX}"
        if device.mode != mode or self.on() != device.ifindex:
            self.detach()
        try:
            known = open_pin(path)
            if known is not None:
                with Descriptor(known) as link:
                    update_link(link.fd, fd)
                return
            made = create_link(fd, device.ifindex, _ATTACH_TYPE, flags=mode.flag)
            with Descriptor(made) as link:
                self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
                pin(link.fd, path)
        except BpfError as error:
            raise AttachError(_refusal(error, device, mode)) from error

    def detach(self) -> None:
        """Take ours off whatever device it is on. Without it, does nothing. Raises AttachError."""
        for path in self._pins():
            try:
                remove_link(path)
            except (BpfError, OSError) as error:
                raise AttachError(f"cannot take {path.name} off: {error}") from error

    def on(self) -> int:
        """Return the ifindex of the device that ours is on; 0 if there is none."""
        return next((info.ifindex for info in self._living()), 0)

    def program(self) -> int:
        """Return the id of our program that is on a device; 0 if there is none."""
        return next((info.program for info in self._living()), 0)

    def _living(self) -> Iterator[LinkInfo]:
        for path in self._pins():
            fd = open_pin(path)
            if fd is not None:
                with Descriptor(fd) as link:
                    info = link_info(link.fd)
                if info.ifindex:  # else the device is gone
                    yield info

    def _pins(self) -> tuple[Path, ...]:
        return tuple(self._home.glob(f"*{_SUFFIX}"))


def _refusal(error: BpfError, device: XdpDevice, mode: Mode) -> str:
    """Return why a device does not take a program; a link is not told the kernel's own text."""
    match error.code:
        case errno.EBUSY | errno.EEXIST:
            return f"another XDP program is on {device.name}"
        case errno.EOPNOTSUPP:
            return (
                f"{device.driver or device.kind} has no {mode.name.lower()} XDP for {device.name}"
            )
        case _:
            return f"{device.name} with MTU {device.mtu} refuses {mode.name.lower()} XDP: {error}"


def _driver(name: str) -> str:
    """Return the name of a device's driver, empty where it has none."""
    info = ctypes.create_string_buffer(_DRIVER_INFO.pack(_GET_DRIVER, b""), _DRIVER_INFO.size)
    request = _IFREQ.pack(name.encode(), ctypes.addressof(info))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
    return _text(_DRIVER_INFO.unpack(info.raw)[1])


def _generic_facts(body: bytes) -> dict[int, bytes]:
    return dict(attributes(body[_GENL_HEADER.size :]))


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder)


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode(errors="replace")
