"""Netlink by hand: a request, its answers, and attributes.

For the few messages of the loader; a library's socket per thread would be in the namespace of that
thread, and this one stays in the namespace that it was made in.
"""

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_BUFFER = 1 << 16


class Netlink:
    """One socket of a netlink family (socket.NETLINK_*); a context manager."""

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        self._sequence = 0

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
        """Close the socket."""
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send one request, and return the answers that come before its acknowledgement.

        Raises OSError with the errno of the kernel.
        """
        self._send(kind, _REQUEST | _ACK | flags, body)
        return list(self._answers())

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of all that the kernel has. Raises OSError with its errno."""
        self._send(kind, _REQUEST | _DUMP, body)
        return list(self._answers())

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0)
        self._socket.send(header + body)

    def _answers(self) -> Iterator[bytes]:
        """Yield the bodies that answer the last request, up to its end."""
        while True:
            data = self._socket.recv(_BUFFER)
            while data:
                size, kind, _, sequence, _ = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : size], data[_aligned(size) :]
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                if kind == _ERROR:
                    _raise_for(body)
                if kind in (_ERROR, _DONE):
                    return
                yield body


def _raise_for(body: bytes) -> None:
    (code,) = struct.unpack_from("=i", body)
    if code:
        raise OSError(-code, os.strerror(-code))


def _aligned(size: int) -> int:
    return (size + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to four bytes."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(_aligned(size) - size)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute in a row of them."""
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : size]
        data = data[max(_aligned(size), _ATTRIBUTE.size) :]
