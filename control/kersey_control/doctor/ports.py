"""Who else uses the tunnel's UDP port on this node."""

from collections.abc import Iterable, Iterator

from kersey_control.doctor.finding import Finding, error
from kersey_control.doctor.host import Host, Process
from kersey_control.netlink import Link
from kersey_control.node_view import NodeView

_OURS = "kerseyd"


def check(host: Host, view: NodeView) -> Iterator[Finding]:
    """Look for processes and devices on our port."""
    port = view.port
    if not port:
        return
    yield from judge_holders(port, host.udp_holders(port))
    if view.backend == "vxlan" and view.overlay is not None:
        yield from judge_devices(view.overlay, host.vxlans)


def judge_holders(port: int, holders: Iterable[Process]) -> Iterator[Finding]:
    """Say which processes hold the port; the kernel's own socket belongs to none."""
    for process in holders:
        if process.name != _OURS:
            yield error(
                f"UDP port {port} is held by {process.name} (pid {process.pid})",
                "tunnel packets of other nodes go to that process, and our device cannot listen",
                f"kill {process.pid}; its command line is {process.command!r}",
            )


def judge_devices(ours: Link, devices: Iterable[Link]) -> Iterator[Finding]:
    """Say which other VXLAN devices take packets off our port."""
    for link in devices:
        if link.ifindex == ours.ifindex or link.vxlan is None or ours.vxlan is None:
            continue
        if not link.up or link.vxlan.port != ours.vxlan.port:
            continue
        if link.vxlan.external:
            yield error(
                f"{link.name} takes every tunnel packet on UDP port {ours.vxlan.port}"
                " (external mode)",
                f"packets for {ours.name} may be given to it, whatever their VNI",
                "give one of both networks another port: Backend.Port in the network config",
            )
