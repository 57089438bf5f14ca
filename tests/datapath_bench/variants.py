"""The five ways between two nodes, all up at the same time, each in a testbed of its own.

The nodes of a pair are joined by one veth, `wire0`, which is the daemons' uplink: the testbed's
switch would add the same cost to every way and so flatter each ratio. Bare node-to-node uses the
nodes of the kernel's VXLAN, so that it meets the same rules.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Self

from fast_view import fast_path_of
from kersey_loader.datapath import Datapath
from kersey_loader.layout import Program, Verdict
from testbed import Cluster, Namespace, Node, Pod, PodSubnet

from datapath_bench.figures import Mode, Variant, fast_part

_WIRE = "wire0"
_WIRE_MTU = 1500
_PROVING = (Program.FROM_POD, Program.FROM_UPLINK)
"""The programs that can take a packet over, and see every packet of the overlay."""

_DAEMON: Mapping[Variant, tuple[str, ...]] = {
    Variant.VXLAN: ("--datapath=netlink",),
    Variant.HOST_GW: ("--datapath=netlink",),
    Variant.STRICT: ("--datapath=bpf",),
    Variant.DIRECT: ("--datapath=bpf", "--admission=direct"),
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
        return (f"--iface={_WIRE}", *_DAEMON[self.variant], _MODES[mode])

    @contextlib.contextmanager
    def with_room_for(self, flows: int) -> Iterator["Site"]:
        """Give both daemons larger maps for a while; yield the site with those open."""
        option = f"--max-flows={flows}"
        for node in self.nodes:
            node.daemon.restart(*self.options(Mode.PLAIN), option)
        self.wait_ready()
        with contextlib.ExitStack() as stack:
            opened = tuple(
                stack.enter_context(fast_path_of(node, max_flows=flows)) for node in self.nodes
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
    """All variants, up from entering to leaving. Needs root and a private /run/netns."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.sites: dict[Variant, Site] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            clusters = {
                variant: stack.enter_context(Cluster(prefix=f"kd{number}-"))
                for number, variant in enumerate(_DAEMON)
            }
            for variant, cluster in clusters.items():
                _start(cluster, variant)
            for variant, cluster in clusters.items():
                self.sites[variant] = stack.enter_context(_site(cluster, variant))
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
        ways = {Variant.BARE: _bare(self.sites[Variant.VXLAN])}
        for variant, site in self.sites.items():
            near, far = site.pods
            ways[variant] = Way(variant, near.namespace, far.namespace, far.address, site)
        return ways


def _start(cluster: Cluster, variant: Variant) -> None:
    cluster.start_etcd()
    near, far = cluster.add_node(), cluster.add_node()
    near.namespace.ip(
        f"link add {_WIRE} mtu {_WIRE_MTU} type veth"
        f" peer name {_WIRE} mtu {_WIRE_MTU} netns {far.namespace.name}"
    )
    for node in (near, far):
        node.namespace.ip(f"addr add {_wire_address(node)}/24 dev {_WIRE}", f"link set {_WIRE} up")
        node.daemon.start(f"--iface={_WIRE}", *_DAEMON[variant], _MODES[Mode.PLAIN])


@contextlib.contextmanager
def _site(cluster: Cluster, variant: Variant) -> Iterator[Site]:
    near, far = cluster.nodes
    for node in (near, far):
        node.daemon.wait_ready()
    if variant is Variant.HOST_GW:
        _route_directly(near, far)
        _route_directly(far, near)
    pods = near.add_pod(), far.add_pod()
    with contextlib.ExitStack() as stack:
        fast = [near, far] if variant.is_fast else []
        opened = tuple(stack.enter_context(fast_path_of(node)) for node in fast)
        yield Site(variant, (near, far), pods, opened)


def _route_directly(node: Node, other: Node) -> None:
    # Longer prefixes than the daemon's own route through its tunnel, which stays and is not used.
    for half in other.pod_subnet().gateway.network.subnets():
        node.namespace.ip(f"route add {half} via {_wire_address(other)} dev {_WIRE}")
    node.use_subnet(PodSubnet(node.pod_subnet().gateway, _WIRE_MTU))


def _bare(site: Site) -> Way:
    near, far = site.nodes
    return Way(Variant.BARE, near.namespace, far.namespace, _wire_address(far), site)
