"""Which backends there are to be tested, and with what: one word here runs all tests of one."""

from dataclasses import dataclass

from testbed import Backend

BACKENDS_READY = ("vxlan", "udp", "host-gw", "ipip")
"""Of vxlan, udp, host-gw, ipip: those that the daemon has."""

DIRECT_ROUTING_READY: tuple[str, ...] = ("vxlan", "ipip")
"""Of vxlan, ipip: those that leave out the tunnel between nodes of one link."""

FAST_PATH_READY = ("vxlan", "host-gw")
"""The backends that have a fast path."""

DATAPATHS = ("bpf", "netlink")

SWITCHES_READY = ("netlink",)
"""The datapaths that leave nothing behind. With bpf one thing stays: the pin of the link on a
device that was deleted, one more with every switch."""

VARIANTS_READY: tuple[dict[str, object], ...] = ({"VNI": 7}, {"Port": 4789})
"""Other settings of vxlan that a restart can change to."""


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


def is_ready(backend: Backend, datapath: str) -> bool:
    """Return whether that backend has that datapath."""
    return datapath != "bpf" or backend.type in FAST_PATH_READY


BACKENDS = [
    *(Backend(name) for name in BACKENDS_READY),
    *(Backend(name, direct_routing=True) for name in DIRECT_ROUTING_READY),
]
_ALL = [
    Case(backend, datapath)
    for backend in BACKENDS
    for datapath in DATAPATHS
    if is_ready(backend, datapath)
]
ROUTED_CASES = [case for case in _ALL if case.links > 1]
CASES = [*ROUTED_CASES, *(case for case in _ALL if case not in ROUTED_CASES)]
"""The same ones first: pytest takes tests together by a parameter's place in its list."""
