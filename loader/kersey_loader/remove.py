"""Take every trace of the fast path out of this network namespace and bpffs, for good.

Ours are known by the filter's name and by the names of pin directories, whatever network they were
made for. Detached by this, packets take the kernel's own path at once.
"""

import shutil
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kersey_loader.attach import NAME_PREFIX, PRIORITY, Direction
from kersey_loader.errors import AttachError, BpfError
from kersey_loader.tcx import remove_link

_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL


def remove_network(directory: Path, *, handle: int) -> int:
    """Take one network's programs off all devices, and unpin what is in `directory`.

    Returns how many pins there were. Raises AttachError, BpfError.
    """
    detach_everything(handle)
    return remove_pins(directory.parent, directory.name)


def detach_everything(handle: int | None = None) -> int:
    """Remove all our filters, or those with `handle`; return how many. Raises AttachError.

    An empty clsact stays: to remove it would stop the device's queues for a moment.
    """
    count = 0
    with IPRoute() as netlink:
        for link in netlink.get_links():
            ifindex = link["index"]
            try:
                count += _detach(netlink, ifindex, handle)
            except NetlinkError as error:
                raise AttachError(f"cannot detach from device {ifindex}: {error}") from error
    return count


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


def _detach(netlink: IPRoute, ifindex: int, handle: int | None) -> int:
    found = [
        (direction, message)
        for direction in Direction
        for message in netlink.get_filters(index=ifindex, parent=direction)
    ]
    ours = [
        (direction, message)
        for direction, message in found
        if _is_ours(message) and handle in {None, message["handle"]}
    ]
    for direction, message in ours:
        netlink.tc(
            "del-filter",
            "bpf",
            ifindex,
            message["handle"],
            parent=direction,
            prio=PRIORITY,
            protocol=_ALL_PROTOCOLS,
        )
    return len(ours)


def _is_ours(message: Any) -> bool:
    options = message.get_attr("TCA_OPTIONS")
    name = options.get_attr("TCA_BPF_NAME") if options is not None else None
    return isinstance(name, str) and name.startswith(NAME_PREFIX)
