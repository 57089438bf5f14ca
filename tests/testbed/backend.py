"""The network's backend as a testbed is asked for it, and the form that it gives to packets."""

from dataclasses import dataclass

from testbed.wire import Form

PURPOSES = {
    "vxlan": "Ethernet frames in UDP, port 8472; crosses routers; the default",
    "udp": "IP packets in UDP, port 8285; where VXLAN is filtered; without BPF a slow user-space"
    " proxy",
    "host-gw": "no tunnel: plain routes from node to node; needs all nodes on one link",
    "ipip": "IP packets in IP, protocol 4; crosses routers; the smallest header",
}
"""What each backend is, in a line for --help."""

DIRECT_ROUTING = frozenset({"vxlan", "ipip"})
"""The backends that can leave out the tunnel between nodes of one link."""

_TUNNELS = {"vxlan": Form.VXLAN, "udp": Form.UDP, "host-gw": Form.PLAIN, "ipip": Form.IPIP}


@dataclass(frozen=True, slots=True)
class Backend:
    """Backend.Type and Backend.DirectRouting of the network config."""

    type: str = "vxlan"
    direct_routing: bool = False

    def __str__(self) -> str:
        return f"{self.type} with DirectRouting" if self.direct_routing else self.type

    @property
    def network_config(self) -> dict[str, object]:
        """The network configuration that the lease store gets."""
        backend: dict[str, object] = {"Type": self.type}
        if self.direct_routing:
            backend["DirectRouting"] = True
        return {"Network": "10.244.0.0/16", "Backend": backend}

    def form(self, *, same_link: bool) -> Form:
        """Return how pod packets go between two nodes that share a link, or do not."""
        return Form.PLAIN if self.direct_routing and same_link else _TUNNELS[self.type]

    def objection(self, *, links: int) -> str | None:
        """Return why there can be no such network on that many links, None if there can."""
        if self.direct_routing and self.type not in DIRECT_ROUTING:
            able = " or ".join(sorted(DIRECT_ROUTING, reverse=True))
            reason = "it is direct already" if self.type == "host-gw" else "it always tunnels"
            return f"--direct-routing: got backend {self.type} ({reason}), expected {able}"
        if self.type == "host-gw" and links > 1:
            return f"--links: got {links}, expected 1 with backend host-gw, which crosses no router"
        return None
