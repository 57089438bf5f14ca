"""A cluster of flannel's, taken over node by node and given back, while its pods talk."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cni_lab import CniNode
from cni_runtime import CniRuntime, Container
from flannel_node import DEVICE, FlannelNode, write_cni_config
from kube_network import KubeNetwork
from overlay_view import NodeState, difference, ip_json, node_state
from testbed import (
    Cluster,
    Probe,
    Stream,
    clean,
    fast_packets,
    icmp_probe,
    ping,
    tcp_stream,
    wait_until,
)
from testbed.addresses import OUTSIDE
from testbed.cluster import DEFAULT_CONFIG

CIDRS = ("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24")
LATE = "10.244.4.0/24"
OPTIONS = ("--ip-masq", "--cni-conf-dir=")
"""As the overlay `migration` has them: the CNI configuration stays flannel's."""

KUBE_PROXY = (
    "iptables -w -t nat -N KUBE-POSTROUTING",
    "iptables -w -t nat -A POSTROUTING -j KUBE-POSTROUTING",
    "iptables -w -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "iptables -w -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully",
)
"""What kube-proxy has on every node. It also keeps connections tracked while flannel's own chain is
empty, as it is for a moment at each start of flannel's: without, masqueraded ones can be reset."""

RATE = 100
FAST = 200


@dataclass
class Member:
    """A node that flannel set up, with flannel's pods; `before` is its kernel's state then."""

    flannel: FlannelNode
    cni: CniNode
    pod: Container
    before: NodeState

    @property
    def device(self) -> tuple[int, str]:
        """Return what other nodes know the device by, and what its routes know it by."""
        (link,) = ip_json(self.cni.node, "link", "show", DEVICE)
        return link["ifindex"], link["address"]


@dataclass
class Talk:
    """Traffic that runs through it all: pings and connections in a ring, one to the world."""

    pings: list[Probe]
    streams: list[Stream]

    def go_on(self) -> None:
        """Return once all of it has made some way."""
        for probe in self.pings:
            probe.wait_flowing()
        for stream in self.streams:
            stream.wait_flowing()

    def assert_unharmed(self) -> None:
        """End it; nothing was lost, doubled or reset."""
        pings = [probe.stop() for probe in self.pings]
        assert [(report.lost, report.duplicates) for report in pings] == [(0, 0)] * len(pings)
        streams = [stream.stop() for stream in self.streams]
        assert [
            report for report in streams if report.broken or report.sent != report.returned
        ] == []


@pytest.fixture
def network(cluster: Cluster, tmp_path: Path) -> Iterator[KubeNetwork]:
    """Give a test an API server without nodes; the daemons' options are those of the overlay."""
    network = KubeNetwork(cluster, tmp_path, DEFAULT_CONFIG, *OPTIONS)
    network.serve()
    try:
        yield network
    finally:
        network.api.stop()


@pytest.fixture
def members(network: KubeNetwork) -> Iterator[list[Member]]:
    """Give a test three nodes of flannel's with a pod each."""
    with ExitStack() as stack:
        flannels = [FlannelNode(network.add_node(cidr), network.api) for cidr in CIDRS]
        nodes = [cni_node(each, network.cluster) for each in flannels]
        for node in nodes:
            node.node.namespace.run("sh", "-ec", "\n".join(KUBE_PROXY))
        for each in (*flannels, *flannels):  # in the second turn all know all
            each.start()
        for node in nodes:
            stack.callback(node.close)
        pods = [node.add(f"old{node.node.index}") for node in nodes]
        yield [
            Member(flannel, node, pod, node_state(node.node))
            for flannel, node, pod in zip(flannels, nodes, pods, strict=True)
        ]


def cni_node(flannel: FlannelNode, cluster: Cluster) -> CniNode:
    node = flannel.node
    folder = node.state_dir / "net.d"
    write_cni_config(folder, flannel.subnet)
    runtime = CniRuntime(node.namespace, conf_dir=folder, state=node.state_dir / "cni")
    return CniNode(node, runtime, cluster.switch, OPTIONS)


@pytest.fixture
def talk(network: KubeNetwork, members: list[Member]) -> Iterator[Talk]:
    with ExitStack() as stack:
        pings, streams = [], []
        for one, two in zip(members, members[1:] + members[:1], strict=True):
            source, target = one.pod.namespace, two.pod
            pings.append(stack.enter_context(icmp_probe(source, target.address, rate=RATE)))
            streams.append(
                stack.enter_context(tcp_stream(source, target.namespace, target.address))
            )
        world = tcp_stream(members[0].pod.namespace, network.cluster.switch, OUTSIDE)
        streams.append(stack.enter_context(world))
        talk = Talk(pings, streams)
        talk.go_on()
        yield talk


def take_over(network: KubeNetwork, member: Member) -> None:
    """Flannel has ended without a trace; our daemon starts, and pods' flows become fast."""
    node, device, notes = member.cni.node, member.device, member.flannel.annotations
    network.start(node)
    node.daemon.wait_ready()
    assert member.device == device
    assert member.flannel.annotations == notes
    wait_until(
        lambda: (fast_packets(node, network.cluster) or 0) > FAST,
        timeout=30,
        what=f"{node.name}: packets on the fast path",
    )


def give_back(network: KubeNetwork, member: Member) -> None:
    """By the documented command, after which flannel starts as if nothing had been."""
    node, device, notes = member.cni.node, member.device, member.flannel.annotations
    node.daemon.stop()
    clean(node, network.cluster, "--keep-network")
    member.flannel.start()
    assert member.device == device
    assert member.flannel.annotations == notes


def assert_pods_reach_each_other(nodes: list[CniNode]) -> None:
    pods = [pod for node in nodes for pod in node.pods.values()]
    for one in pods:
        for two in pods:
            assert one is two or ping(one.namespace, two.address, timeout=5) is not None, (one, two)


def test_a_cluster_goes_over_and_back_node_by_node_and_no_pod_notices(
    network: KubeNetwork, members: list[Member], talk: Talk
) -> None:
    nodes = [member.cni for member in members]
    for member in members:
        take_over(network, member)
        talk.go_on()
        member.cni.add(f"young{member.cni.node.index}")  # by flannel's configuration still
        assert_pods_reach_each_other(nodes)
    assert not [seen for seen in network.api.of("patch") if b"annotations" in seen.body]
    for member in members:
        give_back(network, member)
        talk.go_on()
        member.cni.remove(member.cni.pods[f"young{member.cni.node.index}"])
        assert_pods_reach_each_other(nodes)
    late = FlannelNode(network.add_node(LATE), network.api)
    newcomer = cni_node(late, network.cluster)
    late.start()
    for member in members:
        member.flannel.hear()
    try:
        newcomer.add("newcomer")
        assert_pods_reach_each_other([*nodes, newcomer])
    finally:
        newcomer.close()
    talk.assert_unharmed()
    assert [member.flannel.patches for member in members] == [1, 1, 1]


def test_what_a_node_keeps_of_us_is_what_the_documentation_says(
    network: KubeNetwork, members: list[Member]
) -> None:
    one = members[0]
    network.start(one.cni.node)
    one.cni.node.daemon.wait_ready()
    give_back(network, one)
    left = difference(node_state(one.cni.node), one.before)
    assert list(left) == ["nexthops"]
    assert all(line.startswith("+ id ") for line in left["nexthops"])
    one.cni.node.namespace.run("ip", "nexthop", "flush", "protocol", "75")
    assert difference(node_state(one.cni.node), one.before) == {}
