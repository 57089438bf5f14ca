"""Which backends there are to be tested, and with what: one word here runs all tests of one."""

from dataclasses import dataclass

from testbed import Backend

BACKENDS = [
    *(Backend(name) for name in ("vxlan", "udp", "host-gw", "ipip")),
    *(Backend(name, direct_routing=True) for name in ("vxlan", "ipip")),
]

DATAPATHS = ("bpf", "netlink")

VARIANTS: tuple[dict[str, object], ...] = ({"VNI": 7}, {"Port": 4789})
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


_ALL = [Case(backend, datapath) for backend in BACKENDS for datapath in DATAPATHS]
ROUTED_CASES = [case for case in _ALL if case.links > 1]
CASES = [*ROUTED_CASES, *(case for case in _ALL if case not in ROUTED_CASES)]
"""The same ones first: pytest takes tests together by a parameter's place in its list."""
