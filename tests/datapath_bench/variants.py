"""The ways between two nodes, all up at the same time, each in a testbed of its own.

The nodes of a pair are joined by one veth, `wire0`, which is the daemons' uplink: the testbed's
switch would add the same cost to every way and so flatter each ratio. Bare node-to-node uses the
nodes of the kernel's VXLAN, so that it meets the same rules.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Self

from fast_view import fast_path_of
from kersey_loader.datapath import Datapath
from kersey_loader.layout import Program, Verdict
from kersey_loader.tunnel import TunnelKind
from testbed import Backend, Cluster, Namespace, Node, Pod, wait_acquainted

from datapath_bench.figures import BARE, VXLAN, Carrier, Mode, Variant, fast_part

WIRE = "wire0"
_WIRE_MTU = 1500
_PROVING = (Program.FROM_POD, Program.FROM_UPLINK)
"""The programs that can take a packet over, and see every packet of the overlay."""

_DAEMON: Mapping[Carrier, tuple[str, ...]] = {
    Carrier.KERNEL: ("--datapath=netlink",),
    Carrier.PUMP: ("--datapath=netlink",),
    Carrier.BPF: ("--datapath=bpf",),
    Carrier.BPF_DIRECT: ("--datapath=bpf", "--admission=direct"),
    Carrier.BPF_XDP: ("--datapath=bpf", "--xdp=native"),
}
_TUNNELS: Mapping[str, TunnelKind] = {
    "vxlan": TunnelKind.VXLAN,
    "host-gw": TunnelKind.NONE,
    "udp": TunnelKind.UDP,
    "ipip": TunnelKind.IPIP,
}
_MODES: Mapping[Mode, str] = {
    Mode.PLAIN: "--iptables-forward-rules=false",
    Mode.RULES: "--ip-masq",
}


def _wire_address(node: Node) -> IPv4Address:
    return IPv4Address("198.18.1.0") + node.index


@dataclass(frozen=True, slots=True)
class Site:
    """Two nodes with a pod each, and the programs of both where there are any."""

    variant: Variant
    nodes: tuple[Node, Node]
    pods: tuple[Pod, Pod]
    datapaths: tuple[Datapath, ...]

    def options(self, mode: Mode) -> tuple[str, ...]:
        """Return what both daemons are told."""
        return _options(self.variant, mode)

    @contextlib.contextmanager
    def with_room_for(self, flows: int) -> Iterator["Site"]:
        """Give both daemons larger maps for a while; yield the site with those open."""
        option = f"--max-flows={flows}"
        for node in self.nodes:
            node.daemon.restart(*self.options(Mode.PLAIN), option)
        self.wait_ready()
        with contextlib.ExitStack() as stack:
            tunnel = _TUNNELS[self.variant.backend]
            opened = tuple(
                stack.enter_context(fast_path_of(node, max_flows=flows, tunnel=tunnel))
                for node in self.nodes
            )
            yield replace(self, datapaths=opened)
        self.restart(Mode.PLAIN)
        self.wait_ready()

    def restart(self, mode: Mode) -> None:
        """Give both daemons the options of `mode`; they may take a while to be ready."""
        for node in self.nodes:
            node.daemon.restart(*self.options(mode))

    def wait_ready(self) -> None:
        for node in self.nodes:
            node.daemon.wait_ready()

    def forget_connections(self) -> None:
        """Empty conntrack on both nodes, so that each measurement finds it alike."""
        for node in self.nodes:
            node.namespace.run("conntrack", "-F")

    def verdicts(self) -> dict[tuple[int, Program, Verdict], int]:
        """Return all counters of the programs that can take packets over."""
        return {
            (number, program, verdict): count
            for number, datapath in enumerate(self.datapaths)
            for (program, verdict), count in datapath.counters().items()
            if program in _PROVING
        }

    def fast_since(self, before: Mapping[tuple[int, Program, Verdict], int]) -> float | None:
        """Return the fast part of the packets since `before`, None without programs."""
        if not self.datapaths:
            return None
        return fast_part(
            (key[2] is Verdict.FAST, count - before[key]) for key, count in self.verdicts().items()
        )


@dataclass(frozen=True, slots=True)
class Way:
    """Where a load of one variant runs: from the client to the server's address."""

    variant: Variant
    client: Namespace
    server: Namespace
    address: IPv4Address
    site: Site


class Layout:
    """All variants, up from entering to leaving. Needs root and a private /run/netns.

    Whether a slow path is the kernel's or a pump's is the kernel's choice: `sites` and `ways` name
    each variant as it was found. VXLAN by the kernel must be among them, since bare uses its nodes.
    """

    def __init__(self, variants: Sequence[Variant], mode: Mode = Mode.PLAIN) -> None:
        self._variants = variants
        self._mode = mode
        self._stack = contextlib.ExitStack()
        self.sites: dict[Variant, Site] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            clusters = {
                variant: stack.enter_context(Cluster(prefix=f"kd{number}-"))
                for number, variant in enumerate(self._variants)
            }
            for variant, cluster in clusters.items():
                _start(cluster, variant, self._mode)
            for variant, cluster in clusters.items():
                site = stack.enter_context(_site(cluster, variant))
                self.sites[site.variant] = site
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def set_mode(self, mode: Mode) -> None:
        """Restart all daemons with or without rules; programs and devices stay."""
        for site in self.sites.values():
            site.restart(mode)
        for site in self.sites.values():
            site.wait_ready()

    def ways(self) -> dict[Variant, Way]:
        """Return every variant's way, bare first."""
        ways = {BARE: _bare(self.sites[VXLAN])}
        for variant, site in self.sites.items():
            near, far = site.pods
            ways[variant] = Way(variant, near.namespace, far.namespace, far.address, site)
        return ways


def _options(variant: Variant, mode: Mode) -> tuple[str, ...]:
    return (f"--iface={WIRE}", *_DAEMON[variant.carrier], _MODES[mode])


def _start(cluster: Cluster, variant: Variant, mode: Mode) -> None:
    cluster.start_etcd(Backend(variant.backend).network_config)
    near, far = cluster.add_node(), cluster.add_node()
    near.namespace.ip(
        f"link add {WIRE} mtu {_WIRE_MTU} type veth"
        f" peer name {WIRE} mtu {_WIRE_MTU} netns {far.namespace.name}"
    )
    for node in (near, far):
        node.namespace.ip(f"addr add {_wire_address(node)}/24 dev {WIRE}", f"link set {WIRE} up")
        node.daemon.start(*_options(variant, mode))


@contextlib.contextmanager
def _site(cluster: Cluster, variant: Variant) -> Iterator[Site]:
    wait_acquainted(cluster)
    near, far = cluster.nodes
    pods = near.add_pod(), far.add_pod()
    tunnel = _TUNNELS[variant.backend]
    with contextlib.ExitStack() as stack:
        fast = [near, far] if variant.is_fast else []
        opened = tuple(stack.enter_context(fast_path_of(node, tunnel=tunnel)) for node in fast)
        yield Site(_as_found(variant, near), (near, far), pods, opened)


def _as_found(variant: Variant, node: Node) -> Variant:
    """Name the pump where the daemon made a TUN device and no programs are in front of it."""
    is_pumped = not variant.is_fast and _has_tun(node)
    return replace(variant, carrier=Carrier.PUMP) if is_pumped else variant


def _has_tun(node: Node) -> bool:
    shown = node.namespace.run("ip", "-json", "link", "show", "type", "tun").stdout
    return bool(json.loads(shown or "[]"))


def _bare(site: Site) -> Way:
    near, far = site.nodes
    return Way(BARE, near.namespace, far.namespace, _wire_address(far), site)
