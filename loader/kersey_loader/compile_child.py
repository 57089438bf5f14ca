"""The compiler, as a process of its own: it loads LLVM, pins the programs and is gone.

Run by the distribution's Python with nothing but the distribution's bcc; imports nothing of ours.
Reads a request as JSON from stdin. All that the compiler and the verifier say is on stderr; the
exit status says which of the two refused. Never attaches anything.
"""

import ctypes
import json
import os
import sys
from typing import Any

EXIT_COMPILE = 10
EXIT_VERIFIER = 11
EXIT_PIN = 12
EXIT_NO_BCC = 13

_INSTRUCTION_SIZE = 8
_LICENSE = b"GPL"  # as bcc says of every program
_XDP = 6  # BPF_PROG_TYPE_XDP
_XDP_HAS_FRAGS = 1 << 5
_LOG_SIZE = 1 << 20


def main() -> int:
    """Compile, load and pin what the request on stdin names."""
    request = json.load(sys.stdin)
    # libbcc reads it once, on its first compilation: no headers of the running kernel are needed.
    os.environ["BCC_KERNEL_SOURCE"] = request["headers"]
    try:
        from bcc import BPF, lib  # noqa: PLC0415 - its absence is an answer, not a crash
    except (ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_NO_BCC
    try:
        module = BPF(text=request["text"], cflags=request["cflags"])
    except Exception as error:  # noqa: BLE001 - bcc raises nothing more specific
        print(error, file=sys.stderr)
        return EXIT_COMPILE
    for name, path in request["pins"].items():
        try:
            program = module.load_func(name, BPF.SCHED_CLS)
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more specific
            print(error, file=sys.stderr)
            return EXIT_VERIFIER
        if not _pin(program.fd, path):
            return EXIT_PIN
    for name, path in request["xdp_pins"].items():
        fd = _load_xdp(module, lib, name)  # packets do without one: it only helps the others
        if fd is not None and not _pin(fd, path):
            return EXIT_PIN
    return 0


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


def _load_xdp(module: Any, lib: Any, name: str) -> int | None:
    """Return the descriptor of an XDP program; None after saying why it was refused.

    By libbpf, since bcc cannot say that frames may come in several buffers; that flag is of 5.18.
    """
    libbpf, log = _libbpf(), ctypes.create_string_buffer(_LOG_SIZE)
    libbpf.bpf_prog_load.argtypes = (
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t),
        ctypes.POINTER(_LoadOptions),
    )
    text = lib.bpf_function_start(module.module, name.encode())
    count = lib.bpf_function_size(module.module, name.encode()) // _INSTRUCTION_SIZE
    for flags in (_XDP_HAS_FRAGS, 0):
        options = _LoadOptions(
            sz=ctypes.sizeof(_LoadOptions),
            prog_flags=flags,
            log_size=_LOG_SIZE,
            log_buf=ctypes.addressof(log),
        )
        fd = libbpf.bpf_prog_load(_XDP, name.encode(), _LICENSE, text, count, options)
        if fd >= 0:
            return int(fd)
    print(f"{name} is refused: {os.strerror(-fd)}\n{log.value.decode()}", file=sys.stderr)
    return None


def _pin(fd: int, path: str) -> bool:
    if _libbpf().bpf_obj_pin(fd, path.encode()) == 0:
        return True
    print(f"cannot pin {path}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    return False


def _libbpf() -> ctypes.CDLL:
    return ctypes.CDLL("libbpf.so.1", use_errno=True)


if __name__ == "__main__":
    sys.exit(main())
