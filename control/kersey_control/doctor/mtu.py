"""MTUs on this node: what the tunnel adds must fit, and pods must not send more than it carries."""

from collections.abc import Iterator
from dataclasses import dataclass

from kersey_control.doctor.finding import Finding, error, listed, warning
from kersey_control.doctor.host import Host
from kersey_control.node_view import NodeView


@dataclass(frozen=True, slots=True)
class Sizes:
    """MTUs in bytes of IP packet, 0 where unknown. `pods` are bridge and pod ports by name.

    `overhead` is what the tunnel adds; `told` is what the CNI plugin reads in subnet.env.
    """

    uplink: int
    overlay: int
    overhead: int
    told: int
    pods: dict[str, int]


def check(host: Host, view: NodeView) -> Iterator[Finding]:
    """Compare all MTUs of this node."""
    uplink, overlay = host.device(view.uplink), view.overlay
    found = host.pod_ports(view)
    ports = {device.name: device.mtu for device in host.devices if device.ifindex in found.ports}
    bridge = {found.bridge.name: found.bridge.mtu} if found.bridge else {}
    sizes = Sizes(
        uplink=uplink.mtu if uplink else 0,
        overlay=overlay.mtu if overlay else 0,
        overhead=view.overhead,
        told=view.env.mtu if view.env else 0,
        pods=bridge | ports,
    )
    yield from judge(sizes, overlay=overlay.name if overlay else "")


def judge(sizes: Sizes, *, overlay: str) -> Iterator[Finding]:
    """Say which MTU does not go with another."""
    if sizes.uplink and sizes.overlay + sizes.overhead > sizes.uplink:
        yield error(
            f"MTU of {overlay} is {sizes.overlay}, but the uplink's {sizes.uplink} leaves"
            f" {sizes.uplink - sizes.overhead} beside {sizes.overhead} bytes of tunnel",
            "the largest packets of pods are cut in two on the wire, or lost",
            f"ip link set dev {overlay} mtu {sizes.uplink - sizes.overhead}",
        )
    limit = sizes.overlay or sizes.uplink
    large = [name for name, mtu in sizes.pods.items() if mtu > limit]
    if limit and large:
        yield warning(
            f"MTU of {listed(large)} is {max(sizes.pods[name] for name in large)}, larger than the"
            f" {limit} that the overlay carries",
            "pods send packets that do not fit; connections that do not learn of it hang with the"
            " first large answer",
            " && ".join(f"ip link set dev {name} mtu {limit}" for name in large[:4])
            + "; the pods' own ends likewise, or make the pods anew",
        )
    if sizes.told and limit and sizes.told > limit:
        yield warning(
            f"subnet.env says MTU {sizes.told}, the overlay carries {limit}",
            "new pods get an MTU that does not fit",
            "restart kerseyd, which writes the file",
        )
