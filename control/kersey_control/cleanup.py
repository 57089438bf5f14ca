"""Take out of this node everything that Kersey put there, or only what flannel cannot live with.

What is ours is known by its mark, not by what some config says: devices by their alias, routes and
nexthops by their protocol, rules by flannel's chain and table names. It works without a lease store
and without a config, and removing what is gone already is no error.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kersey_loader.errors import LoaderError
from kersey_loader.remove import detach_everything, remove_kept, remove_pins

from kersey_control.cni import remove_cni_configs
from kersey_control.errors import KernelError
from kersey_control.headroom import is_headroom
from kersey_control.masquerade import remove_all_rules
from kersey_control.netlink import Links
from kersey_control.node_identity import NODE_ID_FILE
from kersey_control.reconcile import Plan
from kersey_control.rtnetlink import Rtnl


def clean_node(
    *,
    subnet_file: Path,
    state_dir: Path,
    bpf_dir: Path,
    cache_dir: Path | None,
    cni_conf_dir: Path,
    links: Links,
    rtnl: Rtnl,
) -> Iterator[str]:
    """Remove it all, yielding a line for each thing removed. Raises KernelError at what resists.

    The lease is not touched: it belongs to the store, and ends by itself within a day.
    """
    for path in remove_cni_configs(cni_conf_dir):  # first: no new pods from here on
        yield f"CNI configuration {path}"
    yield from _fast_path(bpf_dir)
    for link in links.owned():
        links.delete(link)
        yield f"device {link.name}"
    nexthops = rtnl.nexthops()  # those of a deleted device went with it
    failures = rtnl.apply(Plan(remove=nexthops))
    if failures:
        raise KernelError(f"{len(failures)} nexthops stay, the first for {failures[0].reason}")
    if nexthops:
        yield f"{len(nexthops)} nexthops with their routes"
    for subnet in links.remove_blackholes():
        yield f"blackhole route {subnet}"
    remove_all_rules()
    yield "masquerade and forward rules"
    yield from _files(subnet_file, state_dir)
    yield from _cache(cache_dir)


def release_node(
    *, state_dir: Path, bpf_dir: Path, cache_dir: Path | None, links: Links
) -> Iterator[str]:
    """Leave a network that the kernel carries by itself, and that nothing marks as ours.

    Devices, addresses, routes, rules, `subnet.env` and CNI configuration stay: what flanneld finds
    when it starts is what it would have made, with nexthop objects below its routes until it
    replaces them. No packet is lost. Yields a line for each thing removed, raises as `clean_node`.
    """
    yield from _fast_path(bpf_dir)
    for link in links.owned():
        if is_headroom(link.name):
            links.delete(link)
            yield f"device {link.name}"
        else:
            links.unmark(link)
            yield f"the mark of device {link.name}, which stays"
    yield from _state(state_dir)
    yield from _cache(cache_dir)


def _fast_path(bpf_dir: Path) -> Iterator[str]:
    """Take our programs off every device, and their pins; packets take the kernel's own path."""
    try:
        detached = detach_everything(bpf_dir)
        unpinned = remove_pins(bpf_dir)
        with suppress(OSError):  # absent, or with pins of others
            bpf_dir.rmdir()
    except LoaderError as error:
        raise KernelError(str(error)) from error
    if detached:
        yield f"{detached} programs from devices"
    if unpinned:
        yield f"{unpinned} pinned programs, links and maps in {bpf_dir}"


def _files(subnet_file: Path, state_dir: Path) -> Iterator[str]:
    """Remove our files by name: the folders may hold others' too."""
    yield from _file(subnet_file)
    yield from _state(state_dir)


def _state(state_dir: Path) -> Iterator[str]:
    """Remove what says that a daemon of ours has run here."""
    yield from _file(state_dir / NODE_ID_FILE)
    with suppress(OSError):  # absent, or not empty
        state_dir.rmdir()
        yield f"folder {state_dir}"


def _cache(cache_dir: Path | None) -> Iterator[str]:
    """Remove compiled programs; last, since a disk that resists must not keep up the rest."""
    if cache_dir is None:
        return
    try:
        removed = remove_kept(cache_dir)
    except LoaderError as error:
        raise KernelError(str(error)) from error
    if removed:
        yield f"compiled programs in {cache_dir}"
    with suppress(OSError):  # absent, or with files of others
        cache_dir.rmdir()


def _file(path: Path) -> Iterator[str]:
    if path.exists():
        path.unlink()
        yield f"file {path}"
