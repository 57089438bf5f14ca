"""Programs on devices: clsact and one direct-action filter of ours, replaced under RCU.

Every filter has our priority, our name and the handle of its network, so that ours are found again
and those of others are never touched. A filter stays when the process goes. Nothing here reads or
writes maps. Numbers are those of include/uapi/linux/{pkt_sched,pkt_cls}.h.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from kersey_loader.errors import AttachError
from kersey_loader.netlink import Netlink, attribute, attributes

PRIORITY = 0x4B52
NAME_PREFIX = "kersey:"

_GETLINK, _NEWQDISC, _NEWTFILTER, _DELTFILTER, _GETTFILTER = 18, 36, 44, 45, 46
_EXCL, _CREATE = 0x200, 0x400
_CLSACT, _CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_ALL_PROTOCOLS = 0x0300  # ETH_P_ALL in network byte order
_INFO = PRIORITY << 16 | _ALL_PROTOCOLS

_TCMSG = struct.Struct("=BxxxiIII")
_IFINFO = struct.Struct("=BxHiII")

_GONE = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


class Direction(IntEnum):
    """The two hooks of clsact, by the parent handle of their filters."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


class Attachment(NamedTuple):
    """A filter of ours that is on a device now."""

    ifindex: int
    direction: Direction
    program: str


class _Filter(NamedTuple):
    """A filter of any of our networks: its handle says which, `program` is the program's id."""

    attachment: Attachment
    handle: int
    program: int


class Hooks(Protocol):
    """A way to have programs on devices; both kinds replace without a gap and outlive us."""

    def attach(self, ifindex: int, direction: Direction, *, program: str, fd: int) -> None:
        """Put a program on a hook, or in the place of ours that is there. Raises AttachError."""
        ...

    def detach(self, ifindex: int, direction: Direction) -> None:
        """Take ours off a hook; without it, do nothing. Raises AttachError."""
        ...

    def attached(self, ifindex: int) -> tuple[Attachment, ...]:
        """Return what is ours on a device; nothing if the device is gone."""
        ...

    def all_attached(self) -> tuple[Attachment, ...]:
        """Return what is ours on every device."""
        ...

    def retire(self, current: frozenset[int]) -> None:
        """Take off what of ours runs other programs than those of the ids. Raises AttachError."""
        ...

    def close(self) -> None:
        """Close descriptors; programs stay."""
        ...


class FilterHooks:
    """One netlink socket for all filters of one network; a context manager.

    It stays in the network namespace that it was made in, whichever thread uses it.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._netlink = Netlink(socket.NETLINK_ROUTE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; filters stay."""
        self._netlink.close()

    def attach(self, ifindex: int, direction: Direction, *, program: str, fd: int) -> None:
        """Put a program on a hook, or in the place of ours that is there, without a gap.

        Raises AttachError, also if the device is gone.
        """
        options = (
            attribute(_BPF_FD, struct.pack("=I", fd))
            + attribute(_BPF_NAME, (NAME_PREFIX + program).encode() + b"\0")
            + attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
        )
        qdisc = _TCMSG.pack(0, ifindex, _CLSACT, _CLSACT_PARENT, 0)
        where = _TCMSG.pack(0, ifindex, self._handle, direction, _INFO)
        try:
            with suppress(FileExistsError):  # another's is as good: clsact belongs to nobody
                self._netlink.ask(_NEWQDISC, _CREATE | _EXCL, qdisc + attribute(_KIND, b"clsact\0"))
            body = where + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
            self._netlink.ask(_NEWTFILTER, _CREATE, body)
        except OSError as error:
            raise AttachError(f"cannot attach {program} to device {ifindex}: {error}") from error

    def detach(self, ifindex: int, direction: Direction) -> None:
        """Take our filter off a hook; clsact stays, others may use it. Without it, does nothing."""
        self._delete(_Filter(Attachment(ifindex, direction, ""), self._handle, 0))

    def attached(self, ifindex: int) -> tuple[Attachment, ...]:
        """Return our filters on a device; none if the device is gone."""
        return tuple(found.attachment for found in self._on_device(ifindex) if self._is_own(found))

    def all_attached(self) -> tuple[Attachment, ...]:
        """Return our filters on every device of the socket's network namespace."""
        return tuple(found.attachment for found in self._on_all_devices() if self._is_own(found))

    def retire(self, current: frozenset[int]) -> None:
        """Take off our filters with other programs than those of the ids. Raises AttachError."""
        for found in self._on_all_devices():
            if self._is_own(found) and found.program not in current:
                self._delete(found)

    def remove_all(self, *, of_every_network: bool) -> int:
        """Take our filters off every device, and return how many. Raises AttachError.

        An empty clsact stays: to remove it would stop the device's queues for a moment.
        """
        found = [each for each in self._on_all_devices() if of_every_network or self._is_own(each)]
        for each in found:
            self._delete(each)
        return len(found)

    def _is_own(self, found: _Filter) -> bool:
        return found.handle == self._handle

    def _on_all_devices(self) -> tuple[_Filter, ...]:
        links = self._netlink.dump(_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))
        indexes = [_IFINFO.unpack_from(link)[2] for link in links]
        return tuple(found for index in indexes for found in self._on_device(index))

    def _on_device(self, ifindex: int) -> Iterator[_Filter]:
        for direction in Direction:
            yield from self._on_hook(ifindex, direction)

    def _on_hook(self, ifindex: int, direction: Direction) -> Iterator[_Filter]:
        """Yield the filters of all our networks on a hook."""
        try:
            filters = self._netlink.dump(_GETTFILTER, _TCMSG.pack(0, ifindex, 0, direction, 0))
        except OSError as error:
            if error.errno in _GONE:
                return
            raise AttachError(f"cannot list filters of device {ifindex}: {error}") from error
        for message in filters:
            _, _, handle, _, info = _TCMSG.unpack_from(message)
            options = dict(attributes(message[_TCMSG.size :])).get(_OPTIONS, b"")
            facts = dict(attributes(options))
            name = facts.get(_BPF_NAME, b"").rstrip(b"\0").decode()
            if info >> 16 == PRIORITY and name.startswith(NAME_PREFIX):
                yield _Filter(
                    Attachment(ifindex, direction, name.removeprefix(NAME_PREFIX)),
                    handle,
                    int.from_bytes(facts.get(_BPF_ID, b""), "little"),
                )

    def _delete(self, found: _Filter) -> None:
        ifindex, direction, _ = found.attachment
        where = _TCMSG.pack(0, ifindex, found.handle, direction, _INFO)
        try:
            self._netlink.ask(_DELTFILTER, 0, where + attribute(_KIND, b"bpf\0"))
        except OSError as error:
            if error.errno not in _GONE:
                raise AttachError(f"cannot detach from device {ifindex}: {error}") from error
