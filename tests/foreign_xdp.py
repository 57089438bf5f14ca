"""An XDP program that is not ours: it passes every frame on. Loaded by bpf(2) itself."""

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed import Node
from testbed.namespace import run_here

_PASS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit
_XDP = 6  # BPF_PROG_TYPE_XDP
_libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)


@contextmanager
def foreign_program(node: Node, name: str) -> Iterator[None]:
    """Have a program of this name on a node's uplink for a while, as `ip link` puts it there."""
    text = ctypes.create_string_buffer(_PASS, len(_PASS))
    fd = _libbpf.bpf_prog_load(_XDP, name.encode(), b"GPL", text, len(_PASS) // 8, None)
    assert fd >= 0, fd
    pin = node.bpf_dir / name
    assert _libbpf.bpf_obj_pin(fd, str(pin).encode()) == 0
    run_here("bpftool", "prog", "show", "pinned", pin)
    try:
        _attach(node, pin)
        yield
    finally:
        node.namespace.ip("link set eth0 xdp off")
        pin.unlink()


def _attach(node: Node, pin: Path) -> None:
    node.namespace.ip(f"link set eth0 xdp pinned {pin}")
