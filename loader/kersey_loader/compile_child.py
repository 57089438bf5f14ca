"""The compiler, as a process of its own: it loads LLVM, pins the programs and is gone.

Run by the distribution's Python with nothing but the distribution's bcc; imports nothing of ours.
Reads a request as JSON from stdin. All that the compiler and the verifier say is on stderr; the
exit status says which of the two refused. Never attaches anything.

Where the request names a file for it, the instructions are kept there, and the next request for the
same text, by the same bcc, loads them without it. A file that is of no use costs a compilation,
nothing else. Programs that are loaded from it have no line information (BTF, for bpftool).
"""

import base64
import ctypes
import hashlib
import json
import os
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

EXIT_COMPILE = 10
EXIT_VERIFIER = 11
EXIT_PIN = 12
EXIT_NO_BCC = 13

KEPT = "kept"
"""All of stdout where nothing had to be compiled."""

_FORMAT = 1
"""Of the file; another one is not read."""

_LIBRARIES = ("libbcc.so.0", "libclang-cpp.so.*", "libLLVM*.so*")

_INSTRUCTION_SIZE = 8
_LOAD_ADDRESS = 0x18  # BPF_LD | BPF_IMM | BPF_DW
_MAP_DESCRIPTOR = 1  # BPF_PSEUDO_MAP_FD, the source register of that instruction
_LICENSE = b"GPL"  # as bcc says of every program
_SCHED_CLS = 3  # BPF_PROG_TYPE_SCHED_CLS
_XDP = 6  # BPF_PROG_TYPE_XDP
_XDP_HAS_FRAGS = 1 << 5
_LOG_SIZE = 1 << 20


class _Failure(Exception):  # noqa: N818 - the end of this process, with its exit status
    def __init__(self, status: int, words: object) -> None:
        super().__init__(str(words))
        self.status = status


class _Built(NamedTuple):
    """All programs as instructions, those for TC loaded; `maps` names them by descriptor."""

    code: dict[str, bytes]
    loaded: dict[str, int]
    maps: dict[int, str]
    is_kept: bool


def main() -> int:
    """Load and pin what the request on stdin names, compiled now or by an earlier run."""
    request = json.load(sys.stdin)
    try:
        built = _read(request) or _compile(request)
        for name, path in request["pins"].items():
            _pin(built.loaded[name], path)
        for name, path in request["xdp_pins"].items():
            fd = _load_xdp(name, built.code[name])
            if fd is not None:  # packets do without one: it only helps the others
                _pin(fd, path)
    except _Failure as failure:
        print(failure, file=sys.stderr)
        return failure.status
    if built.is_kept:
        print(KEPT)
    elif request["kept"]:
        _keep(request, built)
    return 0


def _compile(request: dict[str, Any]) -> _Built:
    # libbcc reads it once, on its first compilation: no headers of the running kernel are needed.
    os.environ["BCC_KERNEL_SOURCE"] = request["headers"]
    try:
        from bcc import BPF, lib  # noqa: PLC0415 - its absence is an answer, not a crash
    except (ImportError, OSError) as error:
        raise _Failure(EXIT_NO_BCC, error) from error
    try:
        module = BPF(text=request["text"], cflags=request["cflags"])
    except Exception as error:  # bcc raises nothing more specific
        raise _Failure(EXIT_COMPILE, error) from error
    code = {
        name: ctypes.string_at(
            lib.bpf_function_start(module.module, name.encode()),
            lib.bpf_function_size(module.module, name.encode()),
        )
        for name in (*request["pins"], *request["xdp_pins"])
    }
    try:
        loaded = {name: module.load_func(name, BPF.SCHED_CLS).fd for name in request["pins"]}
    except Exception as error:  # bcc raises nothing more specific
        raise _Failure(EXIT_VERIFIER, error) from error
    maps = {lib.bpf_table_fd(module.module, name.encode()): name for name in request["maps"]}
    return _Built(code, loaded, maps, is_kept=False)


def _keep(request: dict[str, Any], built: _Built) -> None:
    """Write the instructions down, each with its map's place in a list of names."""
    names = list(built.maps.values())
    path = Path(request["kept"])
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        placed = {
            name: _with_maps(code, lambda fd: names.index(built.maps[fd]))
            for name, code in built.code.items()
        }
        encoded = {name: base64.b64encode(code).decode() for name, code in placed.items()}
        text = json.dumps({"of": _key(request), "maps": names, "programs": encoded})
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished.touch(mode=0o600)
        unfinished.write_text(f"{_sum(text)}\n{text}")
        unfinished.replace(path)
    except (OSError, LookupError) as error:
        print(f"the compiled programs are not kept: {error!r}", file=sys.stderr)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _read(request: dict[str, Any]) -> _Built | None:
    """Return what an earlier run kept of this text, with the maps of this one.

    None where there is nothing, or nothing of use.
    """
    if not request["kept"]:
        return None
    try:
        text = _read_own(Path(request["kept"]))
        if text["of"] != _key(request):
            return None
        maps = [_open(request["maps"][name]) for name in text["maps"]]
        code = {
            name: _with_maps(base64.b64decode(text["programs"][name]), maps.__getitem__)
            for name in (*request["pins"], *request["xdp_pins"])
        }
        loaded = {name: _load(_SCHED_CLS, name, code[name]) for name in request["pins"]}
        return _Built(code, loaded, {}, is_kept=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
        print(f"{request['kept']} is of no use: {error!r}", file=sys.stderr)
        return None


def _read_own(path: Path) -> dict[str, Any]:
    """Return what a file says that nobody but us can have written: it enters the kernel."""
    with path.open() as file:
        found = os.fstat(file.fileno())
        is_ours = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022
        _expect(is_ours, "somebody else may have written it")
        expected, _, text = file.read().partition("\n")
    _expect(expected == _sum(text), "its sum is wrong")
    kept: dict[str, Any] = json.loads(text)
    return kept


def _expect(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - its one purpose
    if not condition:
        raise ValueError(otherwise)


def _with_maps(code: bytes, number: Callable[[int], int]) -> bytes:
    """Return the instructions with `number` of each map's number in its place."""
    changed = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION_SIZE):
        if code[at] == _LOAD_ADDRESS and code[at + 1] >> 4 == _MAP_DESCRIPTOR:
            struct.pack_into("=i", changed, at + 4, number(*struct.unpack_from("=i", code, at + 4)))
    return bytes(changed)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _key(request: dict[str, Any]) -> list[Any]:
    """Return what has to be the same for instructions to be the same: text and compiler.

    The compiler by its files as Debian has them: to load it is what takes the time.
    """
    bcc = find_spec("bcc")
    files = [] if bcc is None or bcc.origin is None else [Path(bcc.origin)]
    files += [path for name in _LIBRARIES for path in Path("/usr/lib").glob(f"*-linux-gnu/{name}")]
    versions = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return [_FORMAT, request["digest"], *map(list, sorted(versions))]


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf 1.0; most of it stays zero."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("attach", ctypes.c_uint32 * 5),
        ("debug_information", ctypes.c_uint64 * 5),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


def _load(kind: int, name: str, code: bytes, *, flags: int = 0) -> int:
    """Return the descriptor of a program. Raises OSError with the verifier's log.

    By libbpf, since bcc neither loads instructions of an earlier run nor takes flags.
    """
    libbpf, log = _libbpf(), ctypes.create_string_buffer(_LOG_SIZE)
    libbpf.bpf_prog_load.argtypes = (
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t),
        ctypes.POINTER(_LoadOptions),
    )
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions),
        prog_flags=flags,
        log_size=_LOG_SIZE,
        log_buf=ctypes.addressof(log),
    )
    count = len(code) // _INSTRUCTION_SIZE
    fd = libbpf.bpf_prog_load(kind, name.encode(), _LICENSE, code, count, options)
    if fd < 0:
        raise OSError(-fd, f"{name} is refused: {os.strerror(-fd)}\n{log.value.decode()}")
    return int(fd)


def _load_xdp(name: str, code: bytes) -> int | None:
    """Return the descriptor of an XDP program; None after saying why it was refused.

    That frames may come in several buffers can be said since 5.18.
    """
    try:
        return _load(_XDP, name, code, flags=_XDP_HAS_FRAGS)
    except OSError:
        pass
    try:
        return _load(_XDP, name, code)
    except OSError as error:
        print(error.strerror, file=sys.stderr)
        return None


def _pin(fd: int, path: str) -> None:
    if _libbpf().bpf_obj_pin(fd, path.encode()) != 0:
        error = os.strerror(ctypes.get_errno())
        raise _Failure(EXIT_PIN, f"cannot pin {path}: {error}")


def _open(path: str) -> int:
    fd = int(_libbpf().bpf_obj_get(path.encode()))
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"cannot open {path}")
    return fd


def _libbpf() -> ctypes.CDLL:
    return ctypes.CDLL("libbpf.so.1", use_errno=True)


if __name__ == "__main__":
    sys.exit(main())
