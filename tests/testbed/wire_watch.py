"""Watches all uplinks of a cluster at once and says in which form pod packets crossed them.

Each packet is counted once, where it leaves a node. A super-packet that a device would have split
is one packet, as it is on a veth.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from testbed.backend import Backend
from testbed.capture import Capture
from testbed.node import Node
from testbed.wire import Form, WireFormat, WirePacket

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class WireTally:
    """Pod packets on the underlay by form, and in words those in a form that nobody asked for."""

    counts: Mapping[Form, int]
    headers: str
    """What the tunnel's headers had in common, e.g. `VNI 1, port 8472`; empty if there were none.
    """
    unexpected: tuple[str, ...]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        if not self.total:
            return "on the wire: no pod packets"
        plain = self.counts[Form.PLAIN]
        tunnels = [form for form in Form if form is not Form.PLAIN and self.counts[form]]
        if not tunnels:
            return f"on the wire: {plain:,} plain packets, 0 in a tunnel"
        said = ", ".join(f"{self.counts[form]:,} {form} packets" for form in tunnels)
        return f"on the wire: {said} ({self.headers}), {plain:,} plain"

    @property
    def complaint(self) -> str | None:
        """What is wrong with the forms, None if nothing is."""
        if not self.unexpected:
            return None
        examples = "; ".join(self.unexpected[:_EXAMPLES])
        return f"{len(self.unexpected)} packets in a form that the backend does not use: {examples}"


class WireWatch:
    """Captures on the uplinks of `nodes` from its entering until `stop`, or until it is left."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._stack = ExitStack()
        self._captures: dict[Node, Capture] = {}

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for node in self._nodes:
                self._captures[node] = undo.enter_context(Capture(node.namespace, "eth0"))
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def so_far(self, node: Node) -> list[WirePacket]:
        """Return the pod packets that left one node until now. Raises WireError."""
        return _sent(self._captures[node])

    def stop(self) -> dict[Node, list[WirePacket]]:
        """Stop; return the pod packets that left each node. Raises WireError for a damaged one."""
        self._stack.close()
        return {node: _sent(capture) for node, capture in self._captures.items()}


def _sent(capture: Capture) -> list[WirePacket]:
    return WireFormat().packets(frame for frame in capture.frames if frame.outgoing)


def tally(sent: Mapping[Node, Sequence[WirePacket]], backend: Backend) -> WireTally:
    """Return the count of what the nodes of a cluster with that backend sent."""
    packets = [packet for each in sent.values() for packet in each]
    unexpected = [
        complaint
        for node, each in sent.items()
        for packet in each
        if (complaint := _complaint(node, packet, list(sent), backend)) is not None
    ]
    return WireTally(
        counts=Counter(packet.form for packet in packets),
        headers=_common_headers(packets),
        unexpected=tuple(unexpected),
    )


def _complaint(
    node: Node, packet: WirePacket, nodes: Sequence[Node], backend: Backend
) -> str | None:
    inner = packet.inner
    what = f"{packet.form} packet {inner.source} > {inner.destination} from {node.name}"
    subnets = ((each, each.pod_subnet().gateway.network) for each in nodes)
    to = next((each for each, subnet in subnets if inner.destination in subnet), None)
    if to is None:
        return f"{what} to no node's pods"
    if packet.form is not backend.form(same_link=to.link == node.link):
        return f"{what} to {to.name}"
    return None


def _common_headers(packets: Sequence[WirePacket]) -> str:
    vnis = {f"VNI {packet.vxlan.vni}" for packet in packets if packet.vxlan is not None}
    ports = {f"port {packet.udp.destination}" for packet in packets if packet.udp is not None}
    ipip = {"protocol 4" for packet in packets if packet.form is Form.IPIP}
    return ", ".join([*sorted(vnis), *sorted(ports), *ipip])
