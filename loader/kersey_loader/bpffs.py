"""The BPF file system: where it is, and making sure that it is there. Mounts, never unmounts."""

import ctypes
import os
from pathlib import Path

from kersey_loader.errors import BpfError

_MAGIC = 0xCAFE4A11
_DEFAULT = Path("/sys/fs/bpf")

_libc = ctypes.CDLL(None, use_errno=True)


def is_bpffs(path: Path) -> bool:
    """Return whether `path`, or its nearest existing parent, is on a BPF file system."""
    while not path.exists():
        path = path.parent
    buffer = (ctypes.c_long * 32)()  # struct statfs is 120 bytes; f_type is its first word
    if _libc.statfs(os.fsencode(path), ctypes.byref(buffer)):
        return False
    return int(buffer[0]) & 0xFFFFFFFF == _MAGIC


def ensure_bpffs(directory: Path) -> None:
    """Make `directory` exist on a BPF file system, mounting one if there is none yet.

    Below /sys/fs/bpf that is the mount point; anywhere else it is the directory itself. Raises
    BpfError.
    """
    if not is_bpffs(directory):
        if directory.is_relative_to(_DEFAULT):
            _mount(_DEFAULT)
        else:
            directory.mkdir(parents=True, exist_ok=True)
            _mount(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _mount(point: Path) -> None:
    if _libc.mount(b"bpf", os.fsencode(point), b"bpf", ctypes.c_ulong(0), b"mode=0700"):
        code = ctypes.get_errno()
        raise BpfError(f"mount bpffs on {point}", code, os.strerror(code))
