"""Debian's kernels, as their packages bring them: nothing is built, nothing is patched."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from vm.archive import RELEASE, Archive, default_suites
from vm.cache import cached, fingerprint
from vm.command import run
from vm.disk import make_disk
from vm.errors import VmError
from vm.initrd import __file__ as initrd_source
from vm.initrd import initrd

DEFAULT_KERNEL = "linux-image-cloud-amd64"

_PREFIXES = ("linux-image-", "linux-binary-", "linux-modules-")
_MEGABYTES = 700


@dataclass(frozen=True, slots=True)
class Kernel:
    """What QEMU boots, and the disk with its modules."""

    release: str
    vmlinuz: Path
    initrd: Path
    modules: Path

    @property
    def version(self) -> tuple[int, int]:
        """Return the first two numbers of the release."""
        major, minor = self.release.split(".")[:2]
        return int(major), int(minor)


def kernel(package: str) -> Kernel:
    """Return the kernel of a package: `NAME`, `NAME=VERSION` or `NAME/SUITE`. Raises VmError.

    A package that only depends on the newest one (linux-image-cloud-amd64) stands for that one as
    it was when first asked for; it is asked again once the cache is gone.
    """
    made = cached(
        f"kernel-{fingerprint(package, Path(initrd_source).read_text())}",
        lambda directory: _build(package, directory),
    )
    return Kernel(
        release=(made / "release").read_text(),
        vmlinuz=made / "vmlinuz",
        initrd=made / "initrd",
        modules=made / "modules.ext4",
    )


def _build(package: str, made: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kersey-kernel-") as scratch:
        tree = Path(scratch) / "tree"
        named = package.partition("/")[2:]
        suites = dict.fromkeys(filter(None, (*default_suites(), *named)))
        archive = Archive(Path(scratch) / "apt", *suites)
        for part in (*_packages(archive, package), f"busybox-static/{RELEASE}"):
            run(["dpkg", "--extract", archive.download(part), tree])
        _arrange(tree, made)


def _packages(archive: Archive, package: str) -> list[str]:
    """Return the packages that kernel and modules are in, all with their versions.

    Up to Debian 13 that is one package, which another may stand for; later kernels are in two.
    """
    found = [
        part
        for name, _, version in (need.partition(" ") for need in archive.depends(package))
        if name.startswith(_PREFIXES)
        for part in _packages(archive, f"{name}={version.strip('(=) ')}")
    ]
    return found or [package]


def _arrange(tree: Path, made: Path) -> None:
    """Fill `made` with what stands at one place up to Debian 13 and at another since."""
    (modules,) = (path.parent for path in tree.glob("**/lib/modules/*/kernel"))
    release = modules.name
    run(["depmod", "--basedir", modules.parents[2], release])
    vmlinuz = _one_of(tree / f"boot/vmlinuz-{release}", modules / "vmlinuz")
    busybox = _one_of(tree / "bin/busybox", tree / "usr/bin/busybox")
    (made / "vmlinuz").write_bytes(vmlinuz.read_bytes())
    (made / "initrd").write_bytes(initrd(busybox=busybox, modules=modules))
    make_disk(made / "modules.ext4", modules.parent, megabytes=_MEGABYTES)
    (made / "release").write_text(release)


def _one_of(*paths: Path) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise VmError(f"the packages have none of {', '.join(map(str, paths))}")
