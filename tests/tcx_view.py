"""Which programs the kernel has on a device's TCX hooks, pinned or not, asked of bpf(2) itself."""

import ctypes
import errno
import os
import platform
import struct

from kersey_loader.bpf import program_name

HOOKS = {"ingress": 46, "egress": 47}
"""BPF_TCX_INGRESS and BPF_TCX_EGRESS of include/uapi/linux/bpf.h."""

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_PROG_QUERY = 16
_MOST = 64
_ATTR = struct.Struct("=IIIIQII")
_COUNT_AT = 24
_ATTR_SIZE = 128
_libc = ctypes.CDLL(None, use_errno=True)


def programs_on(ifindex: int, hook: str) -> list[str]:
    """Return the names of the programs on a hook of a device, in the order in which they run.

    Works in the network namespace of the calling thread. Raises OSError, also without the device.
    """
    ids = (ctypes.c_uint32 * _MOST)()
    asked = _ATTR.pack(ifindex, HOOKS[hook], 0, 0, ctypes.addressof(ids), _MOST, 0)
    attr = ctypes.create_string_buffer(asked, _ATTR_SIZE)
    if _libc.syscall(_SYSCALL[platform.machine()], _PROG_QUERY, ctypes.byref(attr), _ATTR_SIZE) < 0:
        code = ctypes.get_errno()
        if code == errno.ENOENT:  # nothing was ever attached there
            return []
        raise OSError(code, os.strerror(code))
    count = struct.unpack_from("=I", attr, _COUNT_AT)[0]
    return [program_name(id_) for id_ in ids[:count]]
