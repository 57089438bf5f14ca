"""A BPF ring buffer, read where the kernel writes it: records in order, for one reader.

The kernel's layout (kernel/bpf/ringbuf.c): a page with the reader's position, a page with the
writer's, then the data, mapped twice in a row so that no record is cut. Knows nothing of ours.
"""

import mmap
import select
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from kersey_loader.bpf import Map

_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER = 8
_LENGTH = struct.Struct("I")
# In native format, which is one load or store of the processor's: never half a position.
_POSITION = struct.Struct("Q")


class Ring:
    """A mapped ring buffer; a context manager. Two readers at a time would take each other's."""

    def __init__(self, map_: Map) -> None:
        self._size = map_.spec.max_entries
        self._reader = mmap.mmap(map_.fd, mmap.PAGESIZE)
        self._writer = mmap.mmap(
            map_.fd, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
        )
        self._poll = select.poll()
        self._poll.register(map_.fd, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._reader.close()

    def wait(self, seconds: float) -> None:
        """Return when there is something to take, or after `seconds`."""
        self._poll.poll(max(0, seconds) * 1000)

    def take(self) -> Iterator[bytes]:
        """Yield the records that are there; the place of each is the kernel's again."""
        (at,) = _POSITION.unpack_from(self._reader)
        (end,) = _POSITION.unpack_from(self._writer)
        while at < end:
            start = mmap.PAGESIZE + at % self._size
            (length,) = _LENGTH.unpack_from(self._writer, start)
            if length & _BUSY:
                return  # being written, on another CPU
            size = length & ~_DISCARDED
            record = self._writer[start + _HEADER : start + _HEADER + size]
            at += -(-(_HEADER + size) // 8) * 8
            _POSITION.pack_into(self._reader, 0, at)
            if not length & _DISCARDED:
                yield record

    def clear(self) -> None:
        """Pass over all that is there."""
        _POSITION.pack_into(self._reader, 0, *_POSITION.unpack_from(self._writer))
