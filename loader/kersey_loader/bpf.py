"""bpf(2) by its raw system call: maps, pins, object information and test runs.

Knows the kernel's ABI and nothing of ours. Every failure is a BpfError with the errno; a missing
element is None or False, as absence is an answer. File descriptors are closed by their owners.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kersey_loader.errors import BpfError
from kersey_loader.layout import MapSpec

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE = 0
_MAP_LOOKUP = 1
_MAP_UPDATE = 2
_MAP_DELETE = 3
_MAP_NEXT_KEY = 4
_OBJ_PIN = 6
_OBJ_GET = 7
_PROG_TEST_RUN = 10
_PROG_GET_BY_ID = 13
_OBJ_GET_INFO = 15
_PROG_QUERY = 16
_MAP_LOOKUP_BATCH = 24
_MAP_UPDATE_BATCH = 26
_LINK_CREATE = 28
_LINK_UPDATE = 29
_LINK_DETACH = 34

_F_RDONLY_PROG = 0x80  # set by the kernel itself on device maps
_BATCH = 8192
_HASH_BATCH = 2048  # each part is one hold of the interpreter's lock for who goes through it

_CLOSED = 0xFFFFFFFF  # -1 as the kernel's structs have it

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(call: str, command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise BpfError(call, errno.ENOSYS, f"unknown machine {platform.machine()}")
    result: int = _libc.syscall(number, command, ctypes.byref(attr), ctypes.sizeof(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise BpfError(call, code, os.strerror(code))
    return result


def _attr(layout: str, *values: int | bytes) -> ctypes.Array[ctypes.c_char]:
    # The kernel accepts any size as long as what it does not know is zero.
    return ctypes.create_string_buffer(struct.pack("=" + layout, *values), 128)


def possible_cpus() -> int:
    """Return how many values a per-CPU entry has (possible, not online CPUs)."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return int(text.strip().replace("-", ",").split(",")[-1]) + 1


class Descriptor:
    """A file descriptor of a map or program; a context manager."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close it; a second time does nothing. Using it then is a BpfError with EBADF."""
        if 0 <= self.fd < _CLOSED:
            os.close(self.fd)
            self.fd = _CLOSED

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def pin(fd: int, path: Path) -> None:
    """Give an object a name on bpffs, which keeps it alive."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(f"pin {path}", _OBJ_PIN, _attr("QII", ctypes.addressof(name), fd, 0))


def open_pin(path: Path) -> int | None:
    """Return a new descriptor of what is pinned at `path`, or None if nothing is."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        return _bpf(f"open {path}", _OBJ_GET, _attr("QII", ctypes.addressof(name), 0, 0))
    except BpfError as error:
        if error.code == errno.ENOENT:
            return None
        raise


def _info(fd: int, size: int, *, prefix: bytes = b"") -> bytes:
    buffer = ctypes.create_string_buffer(prefix, size)
    _bpf("object info", _OBJ_GET_INFO, _attr("IIQ", fd, size, ctypes.addressof(buffer)))
    return buffer.raw


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map."""

    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def map_info(fd: int) -> MapInfo:
    """Return what the kernel says of a map, flags that it sets itself left out."""
    kind, id_, key_size, value_size, entries, flags = struct.unpack_from("=6I", _info(fd, 80))
    return MapInfo(id_, kind, key_size, value_size, entries, flags & ~_F_RDONLY_PROG)


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program; the run figures need kernel.bpf_stats_enabled."""

    id: int
    name: str
    map_ids: frozenset[int]
    run_time_ns: int
    run_count: int
    verified_instructions: int


def program_info(fd: int) -> ProgramInfo:
    """Return what the kernel says of a program."""
    ids = (ctypes.c_uint32 * 64)()
    prefix = bytes(52) + struct.pack("=IQ", len(ids), ctypes.addressof(ids))
    raw = _info(fd, 232, prefix=prefix)
    (count,) = struct.unpack_from("=I", raw, 52)
    run_time, runs = struct.unpack_from("=QQ", raw, 192)
    (verified,) = struct.unpack_from("=I", raw, 216)
    name = raw[64:80].split(b"\0")[0].decode()
    (id_,) = struct.unpack_from("=I", raw, 4)
    return ProgramInfo(id_, name, frozenset(ids[:count]), run_time, runs, verified)


def program_name(id_: int) -> str:
    """Return the name of the program with this id, at most 15 characters."""
    with Descriptor(_bpf(f"program {id_}", _PROG_GET_BY_ID, _attr("III", id_, 0, 0))) as program:
        return program_info(program.fd).name


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a TCX or XDP link; `ifindex` is 0 once the device is gone."""

    program: int
    ifindex: int


def create_link(program: int, ifindex: int, attach_type: int, *, flags: int = 0) -> int:
    """Attach a program to a hook of a device, on TCX behind all others; returns the link's fd.

    `flags` are XDP_FLAGS_* for an XDP hook.
    """
    attr = _attr("IIIIIIQ", program, ifindex, attach_type, flags, 0, 0, 0)
    return _bpf(f"link to device {ifindex}", _LINK_CREATE, attr)


def update_link(link: int, program: int) -> None:
    """Replace a link's program at once: no packet meets neither or both."""
    _bpf("replace a link's program", _LINK_UPDATE, _attr("IIII", link, program, 0, 0))


def detach_link(link: int) -> None:
    """Take a link's program off its hook now; dropping the last reference does it later."""
    _bpf("detach a link", _LINK_DETACH, _attr("II", link, 0))


def link_info(link: int) -> LinkInfo:
    """Return what the kernel says of a TCX or XDP link."""
    _, _, program, _, ifindex, _ = struct.unpack_from("=6I", _info(link, 64))
    return LinkInfo(program, ifindex)


def query_tcx(ifindex: int, attach_type: int) -> None:
    """Ask for the programs of a hook; the answer is that it can be asked."""
    _bpf(f"query device {ifindex}", _PROG_QUERY, _attr("IIII", ifindex, attach_type, 0, 0))


@dataclass(frozen=True, slots=True)
class RunResult:
    """The answer of a program to one packet; `verdict` is its return value as a signed number."""

    verdict: int
    packet: bytes
    context: bytes


def run_once(fd: int, packet: bytes, context: bytes = b"") -> RunResult:
    """Run a program once on `packet`, Ethernet header first; `context` is a struct __sk_buff.

    XDP programs take none.

    A redirect is answered, not carried out. Map changes are real.
    """
    return _run(fd, packet, context, times=1)[0]


def time_runs(fd: int, packet: bytes, times: int) -> int:
    """Return nanoseconds a run of a program that leaves `packet` as it is, one after the other."""
    return _run(fd, packet, b"", times=times)[1]


def _run(fd: int, packet: bytes, context: bytes, *, times: int) -> tuple[RunResult, int]:
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(len(packet) + 256)
    context_in = ctypes.create_string_buffer(context, max(len(context), 1))
    context_out = ctypes.create_string_buffer(max(len(context), 1))
    attr = _attr(
        "IIIIQQIIIIQQIII",
        *(fd, 0, len(packet), len(data_out)),
        *(ctypes.addressof(data_in), ctypes.addressof(data_out)),
        *(times, 0, len(context), len(context)),
        # The kernel wants no address where the size is zero.
        *((ctypes.addressof(context_in), ctypes.addressof(context_out)) if context else (0, 0)),
        *(0, 0, 0),
    )
    _bpf("test run", _PROG_TEST_RUN, attr)
    (verdict, _, size) = struct.unpack_from("=iII", attr, 4)
    (duration,) = struct.unpack_from("=I", attr, 36)
    return RunResult(verdict, data_out.raw[:size], context_out.raw[: len(context)]), duration


class Map(Descriptor):
    """An open map. Keys and values are bytes as they lie in memory."""

    def __init__(self, fd: int, spec: MapSpec) -> None:
        super().__init__(fd)
        self.spec = spec
        self.cpus = possible_cpus() if spec.type.per_cpu else 1
        per_cpu = (spec.value_size + 7) // 8 * 8 * self.cpus
        self._value_size = per_cpu if spec.type.per_cpu else spec.value_size

    @classmethod
    def create(cls, spec: MapSpec) -> Self:
        """Make a new, empty map; it lives as long as a descriptor, pin or program holds it."""
        attr = _attr(
            "IIIIIII16s",
            *(spec.type, spec.key_size, spec.value_size, spec.max_entries, 0, 0, 0),
            spec.name.encode(),
        )
        return cls(_bpf(f"create map {spec.name}", _MAP_CREATE, attr), spec)

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of `key`, of all possible CPUs one after the other, or None."""
        key_buffer = ctypes.create_string_buffer(key, len(key))
        value = ctypes.create_string_buffer(self._value_size)
        attr = _attr("IIQQQ", self.fd, 0, ctypes.addressof(key_buffer), ctypes.addressof(value), 0)
        try:
            _bpf(f"look up in {self.spec.name}", _MAP_LOOKUP, attr)
        except BpfError as error:
            if error.code == errno.ENOENT:
                return None
            raise
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self._check_value(value)
        key_buffer = ctypes.create_string_buffer(key, len(key))
        value_buffer = ctypes.create_string_buffer(value, len(value))
        addresses = ctypes.addressof(key_buffer), ctypes.addressof(value_buffer)
        _bpf(f"update {self.spec.name}", _MAP_UPDATE, _attr("IIQQQ", self.fd, 0, *addresses, 0))

    def delete(self, key: bytes) -> bool:
        """Remove `key`; False if it was not there."""
        key_buffer = ctypes.create_string_buffer(key, len(key))
        attr = _attr("IIQQQ", self.fd, 0, ctypes.addressof(key_buffer), 0, 0)
        try:
            _bpf(f"remove from {self.spec.name}", _MAP_DELETE, attr)
        except BpfError as error:
            if error.code == errno.ENOENT:
                return False
            raise
        return True

    def __iter__(self) -> Iterator[bytes]:
        """Yield every key; one that appears or goes meanwhile may be yielded or not."""
        size = self.spec.key_size
        key, following = ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
        previous = 0
        while True:
            attr = _attr("IIQQQ", self.fd, 0, previous, ctypes.addressof(following), 0)
            try:
                _bpf(f"iterate {self.spec.name}", _MAP_NEXT_KEY, attr)
            except BpfError as error:
                if error.code == errno.ENOENT:
                    return
                raise
            yield following.raw
            key.raw = following.raw
            previous = ctypes.addressof(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key with its value, as iteration yields keys."""
        for key in self:
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def update_all(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Set many keys with few system calls, in order (kernel 5.6)."""
        pending = list(items)
        for start in range(0, len(pending), _BATCH):
            part = pending[start : start + _BATCH]
            keys = b"".join(key for key, _ in part)
            values = b"".join(value for _, value in part)
            self._update_batch(keys=keys, values=values, count=len(part))

    def values(self, count: int | None = None) -> bytes:
        """Return the values of an array, or of its first `count` entries, in their order."""
        entries, size = self.spec.max_entries if count is None else count, self._value_size
        keys = ctypes.create_string_buffer(entries * self.spec.key_size)
        values = ctypes.create_string_buffer(entries * size)
        cursor = ctypes.create_string_buffer(8)
        done = 0
        while done < entries:
            attr = _attr(
                "QQQQIIQQ",
                ctypes.addressof(cursor) if done else 0,
                ctypes.addressof(cursor),
                ctypes.addressof(keys) + done * self.spec.key_size,
                ctypes.addressof(values) + done * size,
                *(min(entries - done, _BATCH), self.fd, 0, 0),
            )
            self._lookup_batch(attr)
            (count,) = struct.unpack_from("=I", attr, 32)
            if not count:
                break
            done += count
        return values.raw

    def value_batches(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the values of a hash map in parts: how many, and their bytes one after the other.

        The bytes are good until the next part is asked for. An element that comes or goes meanwhile
        may be in or not. No recency of an LRU map changes by it (kernel 5.6).
        """
        keys = ctypes.create_string_buffer(_HASH_BATCH * self.spec.key_size)
        values = ctypes.create_string_buffer(_HASH_BATCH * self._value_size)
        cursor = ctypes.create_string_buffer(8)
        begun, more = False, True
        while more:
            attr = _attr(
                "QQQQIIQQ",
                *(ctypes.addressof(cursor) if begun else 0, ctypes.addressof(cursor)),
                *(ctypes.addressof(keys), ctypes.addressof(values)),
                *(_HASH_BATCH, self.fd, 0, 0),
            )
            begun, more = True, self._lookup_batch(attr)
            (count,) = struct.unpack_from("=I", attr, 32)
            yield count, memoryview(values)[: count * self._value_size]

    def _lookup_batch(self, attr: ctypes.Array[ctypes.c_char]) -> bool:
        """Read one part; False if it is the last one."""
        try:
            _bpf(f"read {self.spec.name}", _MAP_LOOKUP_BATCH, attr)
        except BpfError as error:
            # The last part ends with ENOENT, and is complete all the same.
            if error.code != errno.ENOENT:
                raise
            return False
        return True

    def _update_batch(self, *, keys: bytes, values: bytes, count: int) -> None:
        key_buffer = ctypes.create_string_buffer(keys, len(keys))
        value_buffer = ctypes.create_string_buffer(values, len(values))
        addresses = ctypes.addressof(key_buffer), ctypes.addressof(value_buffer)
        attr = _attr("QQQQIIQQ", 0, 0, *addresses, count, self.fd, 0, 0)
        _bpf(f"update {self.spec.name}", _MAP_UPDATE_BATCH, attr)

    def _check_value(self, value: bytes) -> None:
        if len(value) != self._value_size:
            raise BpfError(
                f"update {self.spec.name}",
                errno.EINVAL,
                f"value of {len(value)} bytes, expected {self._value_size}",
            )


def open_map(path: Path, spec: MapSpec) -> Map | None:
    """Open a pinned map if it is exactly as `spec` says; None if there is none or another one."""
    fd = open_pin(path)
    if fd is None:
        return None
    info = map_info(fd)
    found = (info.type, info.key_size, info.value_size, info.max_entries, info.flags)
    if found != (spec.type, spec.key_size, spec.value_size, spec.max_entries, 0):
        os.close(fd)
        return None
    return Map(fd, spec)
