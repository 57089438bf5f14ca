"""Pods that the real CNI plugins add by the daemon's own configuration, bridged and routed."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Network
from itertools import permutations

import pytest
from cni_churn import Footprint, churn, resident_kb
from cni_lab import CniNode, cni_nodes, name_told, names_told
from cni_runtime import INTERFACE, PluginError
from fast_view import Counters
from kersey_loader.layout import Program, Verdict
from overlay_view import subnet_of
from testbed import Cluster, ping, udp_probe, wait_until

FAST_SENT = (Program.FROM_POD, Verdict.FAST)
FAST_RECEIVED = (Program.FROM_UPLINK, Verdict.FAST)


@pytest.fixture(scope="module", params=["bridge", "routed"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[CniNode, CniNode]]:
    """Give a module's tests two nodes in each mode, all without pods."""
    mode = str(request.param)
    with (
        Cluster(prefix=f"cni{mode[0]}-") as cluster,
        cni_nodes(cluster, f"--cni-mode={mode}") as nodes,
    ):
        yield nodes


@pytest.fixture
def nodes(pair: tuple[CniNode, CniNode]) -> Iterator[tuple[CniNode, CniNode]]:
    """Give a test the two nodes, and end its pods."""
    with ExitStack() as stack:
        for each in pair:
            stack.callback(each.close)
        yield pair


def test_pods_come_up_as_told_and_reach_each_other_and_the_nodes(
    nodes: tuple[CniNode, CniNode],
) -> None:
    pods = [each.add(f"p{number}-{each.node.index}") for each in nodes for number in (1, 2)]
    for pod in pods:
        owner = nodes[0] if pod.name in nodes[0].pods else nodes[1]
        assert pod.address in IPv4Network(subnet_of(owner.node))
        link = json.loads(pod.namespace.run("ip", "-json", "link", "show", INTERFACE).stdout)
        assert link[0]["mtu"] == 1450
        owner.runtime.check(pod)
    for source, destination in permutations(pods, 2):
        assert ping(source.namespace, destination.address, timeout=5) is not None
    for each in nodes:
        assert ping(pods[0].namespace, each.node.address, timeout=5) is not None
        assert ping(each.node.namespace, pods[-1].address, timeout=5) is not None


def test_their_packets_take_the_fast_path(nodes: tuple[CniNode, CniNode]) -> None:
    one, two = nodes
    source, destination = one.add("source"), two.add("destination")
    sender, receiver = Counters(one.node), Counters(two.node)
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=500) as probe:
        wait_until(
            lambda: sender(*FAST_SENT) > 200 and receiver(*FAST_RECEIVED) > 200,
            timeout=20,
            what="200 packets on the fast path",
        )
        report = probe.stop()
    assert report.lost == 0
    assert one.fast_ports == {one.ifindex_of(source)}


def test_a_host_port_answers_from_outside_and_from_the_pod_itself(
    nodes: tuple[CniNode, CniNode],
) -> None:
    one, two = nodes
    web = one.add("web", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    other, far = one.add("other"), two.add("far")
    outside = one.outside
    with names_told(web, 80):
        assert name_told(outside, one.node.address, 8080) == ("web", "198.18.0.1")
        for client in (other, far, web):
            assert name_told(client.namespace, one.node.address, 8080)[0] == "web"
        one.remove(web)
    with pytest.raises(OSError, match=r"refused|timed out"):
        name_told(outside, one.node.address, 8080)


def test_a_limited_pod_gets_its_shaper(nodes: tuple[CniNode, CniNode]) -> None:
    one, _ = nodes
    one.restart("--cni-bandwidth")
    limits = {
        "ingressRate": 10_000_000,
        "ingressBurst": 1_000_000,
        "egressRate": 10_000_000,
        "egressBurst": 1_000_000,
    }
    pod = one.add("limited", bandwidth=limits)
    shown = one.node.namespace.run("tc", "qdisc", "show", "dev", pod.port).stdout
    assert "tbf" in shown
    one.remove(pod)
    assert not one.veths
    assert "bwp" not in one.node.namespace.run("ip", "link").stdout
    one.restart()
    assert "bandwidth" not in {plugin["type"] for plugin in one.runtime.config()["plugins"]}


def test_a_pod_that_was_tampered_with_fails_its_check(nodes: tuple[CniNode, CniNode]) -> None:
    one, _ = nodes
    pod = one.add("tampered")
    one.runtime.check(pod)
    pod.namespace.ip(f"addr flush dev {INTERFACE}")
    with pytest.raises(PluginError, match="CHECK"):
        one.runtime.check(pod)


def test_a_deleted_pod_leaves_nothing_also_when_deleted_twice(
    nodes: tuple[CniNode, CniNode],
) -> None:
    one, _ = nodes
    pod = one.add("gone")
    assert one.runtime.reserved == [str(pod.address)]
    wait_until(lambda: one.fast_ports, timeout=5, what="the pod's port is known")
    one.runtime.delete(pod)
    one.remove(pod)
    assert (one.runtime.reserved, one.veths) == ([], set())
    wait_until(lambda: not one.fast_ports, timeout=5, what="the pod's port is forgotten")


def test_a_new_pod_gets_the_mtu_that_the_uplink_has_now(nodes: tuple[CniNode, CniNode]) -> None:
    one, _ = nodes
    assert one.runtime.config()["plugins"][0]["mtu"] == 1450
    try:
        one.node.namespace.ip("link set eth0 mtu 1400")
        wait_until(
            lambda: one.runtime.config()["plugins"][0]["mtu"] == 1350,
            timeout=10,
            what="the configuration follows",
        )
        pod = one.add("smaller")
        link = json.loads(pod.namespace.run("ip", "-json", "link", "show", INTERFACE).stdout)
        assert link[0]["mtu"] == 1350
    finally:
        one.node.namespace.ip("link set eth0 mtu 1500")
    wait_until(
        lambda: one.runtime.config()["plugins"][0]["mtu"] == 1450,
        timeout=10,
        what="the configuration follows",
    )


def test_pods_that_come_and_go_leave_nothing(nodes: tuple[CniNode, CniNode]) -> None:
    """On both nodes at once, 250 in each mode; `scripts/bench pods` does more on one."""
    targets = [each.add(f"target{each.node.index}") for each in nodes]

    def churn_both(count: int, *, first: int) -> None:
        with ThreadPoolExecutor(len(nodes)) as pool:
            far = zip(nodes, reversed(targets), strict=True)
            running = [pool.submit(churn, each, there, count, first=first) for each, there in far]
            for each in running:
                each.result()

    with names_told(targets[0], 80), names_told(targets[1], 80):
        churn_both(10, first=0)  # chains of portmap, and what the daemon makes once
        before = [(settled(each), resident_kb(each)) for each in nodes]
        churn_both(115, first=10)
    for each, (footprint, memory) in zip(nodes, before, strict=True):
        assert settled(each) == footprint
        assert resident_kb(each) < memory + 2048, "KiB"


def test_a_pod_that_ends_while_the_daemon_is_down_leaves_nothing(
    nodes: tuple[CniNode, CniNode],
) -> None:
    one, two = nodes
    target = two.add("target")
    with names_told(target, 80):
        churn(one, target, 1)
        before = settled(one)
        pod = one.add("short")
        wait_until(lambda: one.fast_ports, timeout=5, what="the pod's port is known")
        assert Footprint.of(one).pins > before.pins
        one.node.daemon.kill()
        one.remove(pod)
        one.restart()
    after = settled(one)
    assert (after.pins, after.pod_ports, after.endpoints) == (before.pins, 0, 0)


def settled(each: CniNode) -> Footprint:
    """Return the footprint once the daemon has followed the last pod's end."""
    wait_until(lambda: not each.dead_links, timeout=5, what="links of gone ports are removed")
    return Footprint.of(each)
