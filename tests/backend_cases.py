"""Which backends there are to be tested, and with what: one word here runs all tests of one."""

from dataclasses import dataclass

from testbed import Backend

BACKENDS_READY = ("vxlan",)
"""Of vxlan, udp, host-gw, ipip: those that the daemon has."""

DIRECT_ROUTING_READY: tuple[str, ...] = ()
"""Of vxlan, ipip: those that leave out the tunnel between nodes of one link."""

DATAPATHS = ("bpf", "netlink")

ROUTE_CHANGES_FOLLOWED = ("netlink",)
"""The datapaths that obey a host route to another node. The fast path does not: to a node on the
uplink's own subnet it sends straight, whatever the routes say."""

SWITCHES_READY = ("netlink",)
"""The datapaths that leave nothing behind. With bpf, the link pinned for a device that was deleted
stays, dead, until someone lists the links."""

VARIANTS_READY: tuple[dict[str, object], ...] = ({"Port": 4789},)
"""Other settings of vxlan that a restart can change to. {"VNI": 7} cannot be among them while a
daemon takes the nexthops on its former device for someone else's: no peer is programmed then."""


@dataclass(frozen=True, slots=True)
class Case:
    """A backend with one of the datapaths."""

    backend: Backend
    datapath: str

    def __str__(self) -> str:
        direct = "-direct" if self.backend.direct_routing else ""
        return f"{self.backend.type}{direct}-{self.datapath}"

    @property
    def links(self) -> int:
        """Two wherever packets can cross a router: then some pairs share a link and some do not."""
        return 1 if self.backend.type == "host-gw" else 2


BACKENDS = [
    *(Backend(name) for name in BACKENDS_READY),
    *(Backend(name, direct_routing=True) for name in DIRECT_ROUTING_READY),
]
_ALL = [Case(backend, datapath) for backend in BACKENDS for datapath in DATAPATHS]
ROUTED_CASES = [case for case in _ALL if case.links > 1 and case.datapath in ROUTE_CHANGES_FOLLOWED]
CASES = [*ROUTED_CASES, *(case for case in _ALL if case not in ROUTED_CASES)]
"""The same ones first: pytest takes tests together by a parameter's place in its list."""
