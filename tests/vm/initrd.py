"""The first file system of a machine: what it takes to mount the real one, and nothing else.

One image of Debian's files serves every kernel: its modules are on a disk of their own, which is
mounted here before systemd starts.
"""

import gzip
import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT_DISK, MODULES_DISK = "/dev/vda", "/dev/vdb"

_WANTED = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
"""Modules, each built into some of the kernels. ext4 asks for crc32c by name, not by symbol."""

_INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod "$module"; done
while ! [ -b {ROOT_DISK} ] || ! [ -b {MODULES_DISK} ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 {ROOT_DISK} /root &&
/bin/busybox mount -t ext4 -o ro {MODULES_DISK} /root/usr/lib/modules &&
/bin/busybox mount --move /dev /root/dev &&
exec /bin/busybox switch_root /root /sbin/init
echo initrd: cannot mount the disks
"""

_DIRECTORY, _FILE, _DEVICE = 0o040755, 0o100755, 0o020600
_CONSOLE = (5, 1)  # without /dev/console nothing that /init says is seen


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def initrd(*, busybox: Path, modules: Path) -> bytes:
    """Return a compressed archive for a kernel whose modules are in `modules` (with modules.dep).

    `busybox` must be linked statically.
    """
    entries = [_Entry(name, _DIRECTORY) for name in ("bin", "dev", "modules", "root")]
    entries.append(_Entry("dev/console", _DEVICE, device=_CONSOLE))
    entries.append(_Entry("bin/busybox", _FILE, busybox.read_bytes()))
    entries.append(_Entry("init", _FILE, _INIT.encode()))
    for number, path in enumerate(_in_order(modules, _WANTED)):
        name = f"modules/{number:02}-{path.name.removesuffix('.xz')}"
        entries.append(_Entry(name, _FILE, _plain(path)))
    return gzip.compress(_cpio(entries), compresslevel=1)


def _plain(path: Path) -> bytes:
    """Return a module's bytes; since Debian 13 they are compressed, which insmod cannot read."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _in_order(modules: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the files of the wanted modules and of those they need, these first."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    found: dict[str, None] = {}
    for name in wanted:
        if name in by_name:
            # modules.dep names the nearest need first, and each list is complete.
            found.update(dict.fromkeys([*reversed(needs[by_name[name]]), by_name[name]]))
    return [modules / path for path in found]


def _cpio(entries: Iterable[_Entry]) -> bytes:
    """Return entries as the kernel unpacks them (Documentation/driver-api/early-userspace)."""
    parts = [_member(number, entry) for number, entry in enumerate(entries, start=1)]
    return b"".join([*parts, _member(0, _Entry("TRAILER!!!", 0))])


def _member(number: int, entry: _Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if entry.mode == _DIRECTORY else 1
    fields = (
        number,
        entry.mode,
        0,
        0,
        links,
        0,
        len(entry.data),
        0,
        0,
        *entry.device,
        len(name),
        0,
    )
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
