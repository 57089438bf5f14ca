"""The fast path: whether it can be, whether it is, and whether its maps are large enough."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kersey_loader.bpffs import is_bpffs
from kersey_loader.errors import LoaderError
from kersey_loader.probe import probe
from kersey_loader.view import ViewedFlow

from kersey_control.doctor.finding import Finding, note, warning
from kersey_control.errors import UnavailableError
from kersey_control.fast_path import NOT_WANTED
from kersey_control.node_view import NodeView
from kersey_control.told import ToldStatus
from kersey_control.verdicts import forged_among

RECENT = 60.0
"""Seconds: a flow seen since then is in use. Older ones stay in the map until their place is
needed, so that a full map alone says nothing."""

_FULL = 0.75
_PERCENT = 100
_SLOWER = "packets take the kernel's own path: everything works, but slower"
_CURES = (
    ("bcc", "apt-get install python3-bpfcc"),
    ("CAP_", "sudo kersey doctor; a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN"),
    ("BPF maps", "raise RLIMIT_MEMLOCK, or give the container CAP_SYS_ADMIN"),
    ("too old", "a newer kernel"),
    ("file system", "a kernel with CONFIG_BPF_SYSCALL"),
)


def check(view: NodeView) -> Iterator[Finding]:
    """Look at what the fast path needs, and at what it says of itself."""
    told = view.told
    if told is not None and not _is_wanted(told):
        return
    if os.geteuid() != 0:
        return  # what we lack says nothing of the daemon
    directory = view.pins.parent
    yield from judge_lacks(probe(directory).missing)
    if not is_bpffs(directory):
        yield no_file_system(directory)
    if told is not None:
        mode, why = told.datapath.mode, told.datapath.reason
        trouble = view.pins_trouble if is_bpffs(directory) else ""
        yield from judge_mode(mode, why, view.pins, trouble)
        yield from judge_troubles(told.fast_path.troubles if told.fast_path else {})
        yield from judge_senders(told.fast_path.verdicts if told.fast_path else {})
    yield from _flows(view)


def _is_wanted(told: ToldStatus) -> bool:
    """Return whether somebody misses a fast path that is not there: not by option or backend."""
    return told.options.datapath != "netlink" and told.datapath.reason not in NOT_WANTED


def judge_lacks(missing: Iterable[str]) -> Iterator[Finding]:
    """Say what this machine lacks for a fast path."""
    for reason in missing:
        cure = next((cure for word, cure in _CURES if word in reason), "none known")
        yield warning(f"no fast path here: {reason}", _SLOWER, cure)


def no_file_system(directory: Path) -> Finding:
    """Say that pins have no place that outlives the daemon."""
    return warning(
        f"{directory}, for the pins, is not on a BPF file system",
        "programs and maps have no place to stay: a restart of the daemon finds nothing again, and"
        " kersey has nothing to show",
        f"mount -t bpf bpf {mount_point(directory)}, then restart kerseyd",
    )


def mount_point(directory: Path) -> Path:
    """Return where a BPF file system for this directory belongs."""
    usual = Path("/sys/fs/bpf")
    return usual if directory.is_relative_to(usual) else directory


def judge_mode(mode: str, why: str, pins: Path, pins_trouble: str) -> Iterator[Finding]:
    """Say why the daemon does without, or where its maps cannot be found."""
    if why in NOT_WANTED:
        return
    if mode != "bpf":
        yield warning(
            f"kerseyd runs without a fast path: {why}",
            _SLOWER,
            "mend what is named, then restart kerseyd",
        )
    elif pins_trouble:
        yield warning(
            f"the maps of the running kerseyd are not in {pins}: {pins_trouble}",
            "the next start has to load everything anew, and flows cannot be shown; perhaps the"
            " file system was unmounted, or is in another mount namespace",
            "run kersey where kerseyd runs (nsenter, kubectl exec), or restart kerseyd",
        )


def judge_troubles(troubles: Mapping[str, str]) -> Iterator[Finding]:
    """Say what of the fast path the daemon cannot do."""
    for step, why in troubles.items():
        yield warning(
            f"fast path, {step}: {why}",
            "what it concerns takes the kernel's own path; the daemon tries again with every audit",
            "restart kerseyd if it stays, and look into its log",
        )


def judge_senders(verdicts: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Say how many packets the sender check took for forged."""
    counts = forged_among(verdicts)
    if counts:
        shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        yield note(
            f"tunnel packets refused since the programs started: {shown}",
            "their sender may not send them: forged, or from a node whose lease says another"
            " address than it sends from (NAT, several uplinks)",
            "kersey drops shows them as they come, kersey peers each node's address; --public-ip"
            " and --iface set it, and --spoof-check=count lets such packets pass",
        )


def _flows(view: NodeView) -> Iterator[Finding]:
    if view.programs is None:
        return
    try:
        with view.open_pins() as pins:
            yield from judge_flows(pins.flows(), pins.max_flows)
    except (UnavailableError, LoaderError) as error:
        yield note(
            f"flows cannot be read: {error}",
            "whether the map is large enough is unknown",
            "kersey flows",
        )


def judge_flows(flows: Iterable[ViewedFlow], room: int) -> Iterator[Finding]:
    """Say whether so many flows are in use that they take each other's place in the map."""
    recent = sum(flow.age <= RECENT for flow in flows)
    if recent >= _FULL * room:
        yield warning(
            f"{recent:,} flows in use within {RECENT:.0f} s, {_PERCENT * recent / room:.0f} % of"
            f" --max-flows {room:,}",
            "flows push each other out of the map, and go back to the kernel's own path",
            f"restart kerseyd with --max-flows={4 * room}",
        )
