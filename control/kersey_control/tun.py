"""A persistent TUN device: where the kernel's stack hands IP packets to user space, and back.

The device outlives every process: while nobody holds it, its addresses and routes stay, and
programs on its hooks see each packet. MTU, addresses and state are `netlink`'s. Works in the
network namespace of the thread that makes the `Tun`.
"""

import contextlib
import errno
import fcntl
import io
import os
import socket
import struct
from types import TracebackType
from typing import Self

from kersey_control.errors import InvalidInputError, KernelError

_CLONE = "/dev/net/tun"
# include/uapi/linux/if_tun.h
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_TUNSETOFFLOAD, _TUNGETIFF = 0x400454D0, 0x800454D2
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCGIFMTU = 0x8921
_NAME_SIZE = 16
_IFREQ = struct.Struct("16sH22x")
_IFREQ_NUMBER = struct.Struct("=16si20x")

_GONE = frozenset((errno.EBADFD, errno.ENODEV, errno.ENXIO))
_REASONS = {
    errno.EBUSY: "another process holds it",
    errno.EINVAL: "there is a device of this name that is no plain TUN device",
    errno.ENOENT: f"{_CLONE} is missing",
    errno.ENODEV: f"{_CLONE} is missing: the kernel has no TUN devices",
    errno.ENXIO: f"{_CLONE} is missing: the kernel has no TUN devices",
    errno.EPERM: "CAP_NET_ADMIN is missing",
    errno.EACCES: f"{_CLONE} may not be opened",
}


class TunError(KernelError):
    """Report a TUN device that cannot be had, by name and reason; `errno` says which."""

    def __init__(self, name: str, code: int) -> None:
        reason = _REASONS.get(code, os.strerror(code))
        super().__init__(f"TUN device {name}: {errno.errorcode.get(code, code)} ({reason})")
        self.errno = code


class TunGoneError(KernelError):
    """Report that the device was deleted while we held it. Make a new one."""


class Tun:
    """A TUN device held by this process: made, or adopted from an earlier one with all it has.

    Without packet information and without offloads: one read is one IP packet, as the kernel would
    put it on a wire. A context manager; leaving it leaves the device. Raises TunError, and
    InvalidInputError for a name that no device can have.
    """

    def __init__(self, name: str) -> None:
        self.name = _checked(name)
        with contextlib.ExitStack() as opened:
            self._file = opened.enter_context(_attached(name))
            self._asker = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._resources = opened.pop_all()

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
        """Let go of the device, which stays; twice without harm."""
        self._resources.close()

    def fileno(self) -> int:
        """Return the descriptor, non-blocking, for poll."""
        return self._file.fileno()

    @property
    def mtu(self) -> int:
        """The device's MTU in bytes as of now. Raises TunGoneError."""
        try:
            found = fcntl.ioctl(self._file, _TUNGETIFF, bytes(_IFREQ.size))  # it may be renamed
            answer = fcntl.ioctl(self._asker, _SIOCGIFMTU, found)
        except OSError as error:
            raise self._gone(error) from error
        return int(_IFREQ_NUMBER.unpack(answer)[1])

    @property
    def is_alive(self) -> bool:
        """Whether the device that we hold still exists, under whatever name."""
        return self.name_now is not None

    @property
    def name_now(self) -> str | None:
        """The name of the device that we hold, which someone may have changed; None: deleted."""
        try:
            found = fcntl.ioctl(self._file, _TUNGETIFF, bytes(_IFREQ.size))
        except OSError:
            return None
        return found[:_NAME_SIZE].partition(b"\0")[0].decode(errors="replace")

    def read_into(self, room: memoryview) -> int | None:
        """Read one packet into `room`; return its length, None if there is none now.

        What does not fit is lost. Raises TunGoneError.
        """
        try:
            return self._file.readinto(room)
        except OSError as error:
            raise self._gone(error) from error

    def write(self, packet: memoryview) -> bool:
        """Give one packet to the kernel's stack; return whether it was taken.

        Not taken: the device is down or there is no memory. Raises TunGoneError.
        """
        try:
            return self._file.write(packet) is not None
        except OSError as error:
            if error.errno in _GONE or not self.is_alive:
                raise self._gone(error) from error
            return False

    def _gone(self, error: OSError) -> TunGoneError:
        return TunGoneError(f"TUN device {self.name}: deleted ({error.strerror})")


def _checked(name: str) -> str:
    raw = name.encode()
    if not 0 < len(raw) < _NAME_SIZE or any(c in name for c in "/%: ") or name in (".", ".."):
        raise InvalidInputError(field="TUN device", value=name, expected="a device name")
    return name


def _attached(name: str) -> io.FileIO:
    try:
        file = io.FileIO(_CLONE, "r+")
    except OSError as error:
        raise TunError(name, error.errno or 0) from error
    try:
        _attach(file, name)
    except OSError as error:
        file.close()
        raise TunError(name, error.errno or 0) from error
    return file


def _attach(file: io.FileIO, name: str) -> None:
    os.set_blocking(file.fileno(), False)
    fcntl.ioctl(file, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
    # An adopted device may have been left with offloads, which would give us unfinished packets.
    fcntl.ioctl(file, _TUNSETOFFLOAD, 0)
    fcntl.ioctl(file, _TUNSETPERSIST, 1)
