"""Disk images made without mounting anything."""

from pathlib import Path

from vm.command import run


def make_disk(image: Path, tree: Path, *, megabytes: int) -> None:
    """Write an ext4 image with the files of `tree`; space that is not used takes none.

    Raises VmError, also where `megabytes` are too few.
    """
    options = "lazy_itable_init=1,lazy_journal_init=1"
    run(["mke2fs", "-q", "-t", "ext4", "-E", options, "-d", tree, image, f"{megabytes}m"])


def overlay(image: Path, base: Path) -> None:
    """Make a disk that starts as `base` and keeps changes to itself. Raises VmError."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, image])
