"""Whether this machine can run the fast path, and if not, every reason why. Changes nothing."""

import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kersey_loader import bpf
from kersey_loader.bpffs import is_bpffs
from kersey_loader.errors import BpfError
from kersey_loader.layout import MapSpec, MapType
from kersey_loader.pins import INTERPRETER

OLDEST_KERNEL = (5, 13)
"""For BPF_F_ADJ_ROOM_ENCAP_L2_ETH; bpf_redirect_peer and bpf_redirect_neigh are of 5.10."""

_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21
_CAP_BPF = 39


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Whether the fast path can be tried, and what is missing, one sentence each."""

    available: bool
    missing: tuple[str, ...]


def probe(directory: Path) -> Capabilities:
    """Return what is missing for a fast path whose pins are to be in `directory`.

    That the kernel accepts the programs is only known after loading them.
    """
    checks: tuple[Callable[[], str | None], ...] = (
        _machine,
        _kernel,
        _rights,
        lambda: _file_system(directory),
        _maps,
        _compiler,
    )
    missing = tuple(reason for check in checks if (reason := check()) is not None)
    return Capabilities(available=not missing, missing=missing)


def _machine() -> str | None:
    machine = platform.machine()
    return None if machine in ("x86_64", "aarch64") else f"machine {machine} is not supported"


def _kernel() -> str | None:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) >= OLDEST_KERNEL:
        return None
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return f"kernel {release} is too old: {oldest} is needed to put VXLAN headers on GSO packets"


def _rights() -> str | None:
    status = Path("/proc/self/status").read_text()
    held = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    bits = int(held[1], 16) if held else 0
    if bits >> _CAP_NET_ADMIN & 1 and (bits >> _CAP_SYS_ADMIN | bits >> _CAP_BPF) & 1:
        return None
    return f"uid {os.geteuid()} lacks CAP_NET_ADMIN and CAP_SYS_ADMIN"


def _file_system(directory: Path) -> str | None:
    if is_bpffs(directory):
        return None
    if re.search(r"\bbpf$", Path("/proc/filesystems").read_text(), re.MULTILINE):
        return None
    return f"{directory} is not on a bpf file system, and the kernel has none to mount"


def _maps() -> str | None:
    try:
        for kind in (MapType.LRU_HASH, MapType.DEVMAP_HASH):
            bpf.Map.create(MapSpec("probe", kind, 4, 4, 8)).close()
    except BpfError as error:
        return f"the kernel does not let us create BPF maps ({error})"
    return None


def _compiler() -> str | None:
    if not Path(INTERPRETER).exists():
        return f"{INTERPRETER} is missing: the distribution's Python runs the compiler"
    spec = "import importlib.util, sys; sys.exit(importlib.util.find_spec('bcc') is None)"
    done = subprocess.run([INTERPRETER, "-I", "-c", spec], capture_output=True, check=False)
    if done.returncode:
        return f"{INTERPRETER} has no module bcc: install the distribution's bcc (python3-bpfcc)"
    return None
