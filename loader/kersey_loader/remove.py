"""Take every trace of the fast path out of this network namespace and bpffs, for good.

Ours are known by the filter's name and by the names of pin directories, whatever network they were
made for. Detached by this, packets take the kernel's own path at once.
"""

import shutil
from pathlib import Path

from kersey_loader.attach import FilterHooks
from kersey_loader.errors import BpfError
from kersey_loader.pins import KEPT_FILES
from kersey_loader.tcx import remove_link
from kersey_loader.xdp import WireHook


def remove_network(directory: Path, *, handle: int) -> int:
    """Take one network's programs off all devices, and unpin what is in `directory`.

    Returns how many pins there were but for those of XDP. Raises AttachError, BpfError.
    """
    _detach_wires(directory.parent, directory.name)
    with FilterHooks(handle) as hooks:
        hooks.remove_all(of_every_network=False)
    return remove_pins(directory.parent, directory.name)


def detach_everything(directory: Path) -> int:
    """Remove all our XDP links in `directory`, then all our filters; return how many of these.

    Raises AttachError.
    """
    _detach_wires(directory, "*")
    with FilterHooks(0) as hooks:
        return hooks.remove_all(of_every_network=True)


def remove_pins(directory: Path, network: str = "*") -> int:
    """Unpin all maps and programs of networks in `directory`; return how many. Raises BpfError."""
    homes = [
        path
        for kind in ("links", "maps-*", "programs-*")
        for path in directory.glob(f"{network}/{kind}")
        if path.is_dir()
    ]
    count = sum(1 for home in homes for _ in home.iterdir())
    try:
        for link in directory.glob(f"{network}/links/*"):
            remove_link(link)
        for home in homes:
            shutil.rmtree(home)
        for parent in {home.parent for home in homes}:
            parent.rmdir()
    except OSError as error:
        raise BpfError(f"unpin below {directory}", error.errno or 0, str(error)) from error
    return count


def remove_kept(cache: Path) -> int:
    """Remove the files of compiled programs in `cache`; return how many. Raises BpfError."""
    files = list(cache.glob(KEPT_FILES))
    try:
        for path in files:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise BpfError(f"remove from {cache}", error.errno or 0, str(error)) from error
    return len(files)


def _detach_wires(directory: Path, network: str) -> None:
    """Take the XDP programs off: before any of TC, which alone know the frames that they opened."""
    for home in directory.glob(f"{network}/links"):
        WireHook(home).detach()
