"""The first file system of a test machine: the right modules in the right order, in a true archive.

The archive is taken apart here by the format's own rules (the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst).
"""

import gzip
import lzma
from pathlib import Path
from typing import NamedTuple

from vm.initrd import initrd

_HEAD = 110
_DIRECTORY, _REGULAR, _CHARACTER = 0o040000, 0o100000, 0o020000


class Member(NamedTuple):
    kind: int
    is_executable: bool
    device: tuple[int, int]
    data: bytes


def unpacked(archive: bytes) -> dict[str, Member]:
    found: dict[str, Member] = {}
    place = 0
    while True:
        head = archive[place : place + _HEAD]
        assert head[:6] == b"070701"
        field = [int(head[6 + 8 * number : 14 + 8 * number], 16) for number in range(13)]
        mode, size, device, length = field[1], field[6], (field[9], field[10]), field[11]
        name = archive[place + _HEAD : place + _HEAD + length]
        assert name.endswith(b"\0")
        place = aligned(place + _HEAD + length)
        data = archive[place : place + size]
        place = aligned(place + size)
        if name == b"TRAILER!!!\0":
            assert place == len(archive)
            return found
        member = Member(mode & 0o170000, bool(mode & 0o111), device, data)
        found[name.rstrip(b"\0").decode()] = member


def aligned(place: int) -> int:
    return place + 3 & ~3


def made(tmp_path: Path, dependencies: dict[str, str]) -> dict[str, Member]:
    """Return the archive for a kernel with these modules; each file's content is its own name."""
    modules = tmp_path / "modules"
    for path in dependencies:
        file = modules / path
        file.parent.mkdir(parents=True, exist_ok=True)
        plain = file.name.removesuffix(".xz").encode()
        file.write_bytes(lzma.compress(plain) if path.endswith(".xz") else plain)
    lines = "".join(f"{path}: {needs}\n" for path, needs in dependencies.items())
    (modules / "modules.dep").write_text(lines)
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"static")
    return unpacked(gzip.decompress(initrd(busybox=busybox, modules=modules)))


def module_order(members: dict[str, Member]) -> list[str]:
    return [member.data.decode() for name, member in sorted(members.items()) if "modules/" in name]


def test_modules_come_after_what_they_need_each_once(tmp_path: Path) -> None:
    members = made(
        tmp_path,
        {
            "kernel/a/virtio_ring.ko": "",
            "kernel/a/virtio.ko": "kernel/a/virtio_ring.ko",
            "kernel/b/virtio_pci.ko": "kernel/a/virtio.ko kernel/a/virtio_ring.ko",
            "kernel/b/virtio_blk.ko": "kernel/a/virtio.ko kernel/a/virtio_ring.ko",
            "kernel/c/sound.ko": "",
        },
    )
    assert module_order(members) == [
        "virtio_ring.ko",
        "virtio.ko",
        "virtio_pci.ko",
        "virtio_blk.ko",
    ]


def test_compressed_modules_are_plain_in_the_archive(tmp_path: Path) -> None:
    members = made(tmp_path, {"kernel/virtio-blk.ko.xz": "", "kernel/ext4.ko.xz": ""})
    assert module_order(members) == ["virtio-blk.ko", "ext4.ko"]
    assert not any(name.endswith(".xz") for name in members)


def test_kernel_with_everything_built_in_needs_no_module(tmp_path: Path) -> None:
    assert module_order(made(tmp_path, {"kernel/sound.ko": ""})) == []


def test_archive_has_what_starts_first(tmp_path: Path) -> None:
    members = made(tmp_path, {"kernel/ext4.ko": ""})
    assert members["init"].is_executable
    assert members["init"].data.startswith(b"#!/bin/busybox sh\n")
    assert members["bin/busybox"] == Member(_REGULAR, True, (0, 0), b"static")
    assert members["dev/console"].kind == _CHARACTER
    assert members["dev/console"].device == (5, 1)
    assert members["root"].kind == _DIRECTORY
