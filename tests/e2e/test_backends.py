"""Every backend carries every kind of packet, in its own form, with and without the fast path.

backend_cases.py says what there is to be tested.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest
from backend_cases import CASES, ROUTED_CASES, Case
from overlay_view import ip_json
from testbed import (
    Capture,
    Cluster,
    Node,
    Pod,
    WirePacket,
    WireWatch,
    fast_packets,
    icmp_probe,
    ordered_pairs,
    reachability,
    told_by,
    transfer,
    udp_probe,
    wait_acquainted,
    wait_until,
)
from testbed.cluster import SUBNETS_PREFIX
from wire_view import HOPS_DELIVERED, SENT_TTL, WireView, delivered_ttls, wire_view

_TRANSFER = 2 << 20  # bytes
_DATAGRAMS = 60
_numbers = count(1)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def network(case: Case) -> Iterator[Cluster]:
    """Give the tests of a case three nodes with a pod each, the first and the last on one link."""
    with Cluster(prefix=f"kb{next(_numbers)}-") as cluster:
        cluster.start(
            nodes=3,
            pods=1,
            config=case.backend.network_config,
            options=[f"--datapath={case.datapath}"],
            links=case.links,
        )
        wait_acquainted(cluster)
        yield cluster


def fast_by_node(network: Cluster) -> list[int | None]:
    return [fast_packets(node, network) for node in network.nodes]


def test_every_pod_exchanges_every_kind_of_packet_with_every_pod(
    case: Case, network: Cluster
) -> None:
    pairs = ordered_pairs(network.pods)
    before = fast_by_node(network)
    assert [result for result in reachability(pairs) if result.rtt_ms is None] == []
    for source, destination in pairs:
        exchange_datagrams(source, destination)
        assert transfer(
            source.namespace, destination.namespace, destination.address, size=_TRANSFER
        ), (source, destination)
    for earlier, later in zip(before, fast_by_node(network), strict=True):
        if case.datapath == "netlink":
            assert (earlier, later) == (None, None)
        else:
            assert earlier is not None
            assert later is not None
            assert later - earlier > 4 * _DATAGRAMS


def exchange_datagrams(source: Pod, destination: Pod) -> None:
    """Have datagrams echoed, without loss or duplicates: the first are slow, others may be fast."""
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=500) as probe:
        probe.wait_flowing(_DATAGRAMS)
    report = probe.stop()
    assert (report.lost, report.duplicates) == (0, 0), report


def complaints(view: WireView, sent: Mapping[Node, Sequence[WirePacket]]) -> list[str]:
    packets = [packet for each in sent.values() for packet in each]
    return [line for packet in packets for line in view.complaints(packet)]


def test_not_even_the_first_packet_to_a_node_is_lost(network: Cluster) -> None:
    one, two, three = network.pods
    for other in (two, three):
        for node in network.nodes:
            node.namespace.ip("neigh flush dev eth0")
        exchange_datagrams(one, other)


@contextmanager
def pod_captures(pods: list[Pod]) -> Iterator[dict[Pod, Capture]]:
    with ExitStack() as stack:
        yield {pod: stack.enter_context(Capture(pod.namespace, "eth0")) for pod in pods}


def test_every_packet_on_the_wire_is_right_in_every_field(case: Case, network: Cluster) -> None:
    one, two, three = network.pods
    view = wire_view(network, case.backend)
    before = fast_by_node(network)
    with WireWatch(network.nodes) as watch:
        for source, destination in ((one, two), (three, one)):
            exchange_datagrams(source, destination)
            assert transfer(
                source.namespace, destination.namespace, destination.address, size=1 << 18
            )
        assert all(result.rtt_ms is not None for result in reachability([(one, two), (one, three)]))
        sent = watch.stop()
    assert complaints(view, sent) == []
    assert {packet.inner.protocol for packet in sent[network.nodes[0]]} == {1, 6, 17}
    if case.datapath == "bpf":  # so fast packets were among them, beside the slow first ones
        for earlier, later in zip(before, fast_by_node(network), strict=True):
            assert (later or 0) - (earlier or 0) > _DATAGRAMS


def test_packets_arrive_with_the_ttl_of_their_way(case: Case, network: Cluster) -> None:
    one, two, three = network.pods
    with pod_captures([two, three]) as captures:
        for pod in (two, three):
            exchange_datagrams(one, pod)
            with icmp_probe(one.namespace, pod.address) as probe:
                probe.wait_flowing(5)
        frames = {pod: capture.stop() for pod, capture in captures.items()}
    for pod, captured in frames.items():
        same_link = pod.node.link == one.node.link
        hops = HOPS_DELIVERED[case.backend.form(same_link=same_link)]
        assert delivered_ttls(pod, captured) == {SENT_TTL - hops}


def tun_devices(node: Node) -> list[dict[str, Any]]:
    links = ip_json(node, "link")
    return [link for link in links if link.get("linkinfo", {}).get("info_kind") == "tun"]


def test_killed_daemons_leave_the_network_at_work(case: Case, network: Cluster) -> None:
    one, two, _ = network.pods
    nodes = (one.node, two.node)
    # A TUN device without programs is served by the daemon itself: no promise then.
    may_lose = case.datapath == "netlink" and any(map(tun_devices, nodes))
    with udp_probe(one.namespace, two.namespace, two.address, rate=500) as probe:
        probe.wait_flowing(100)
        with killed(nodes):
            wait_until(lambda: not any(map(has_carrier, nodes)), timeout=5, what="carrier lost")
            if not may_lose:
                # Pings are never fast: what is left without a daemon is a whole slow path.
                answers = reachability([(one, two), (two, one)])
                assert [answer for answer in answers if answer.rtt_ms is None] == []
                probe.wait_flowing(300)
        probe.wait_flowing(100)
    report = probe.stop()
    assert report.lost == 0 or may_lose, report


@contextmanager
def killed(nodes: Sequence[Node]) -> Iterator[None]:
    """Kill the daemons, and have them back at the end, ready."""
    for node in nodes:
        node.daemon.kill()
    try:
        yield
    finally:
        for node in nodes:
            node.daemon.restart()
        for node in nodes:
            node.daemon.wait_ready()


def has_carrier(node: Node) -> bool:
    """Return whether a TUN device of the node still has the carrier that goes with its daemon.

    The kernel takes it away up to a second later, and what depends on it goes with it.
    """
    return any(link["operstate"] != "DOWN" for link in tun_devices(node))


def test_peers_of_another_type_are_told_one_by_one(network: Cluster) -> None:
    strangers = {"10.244.250.0/24": "wireguard", "10.244.251.0/24": "ipsec"}
    one = network.nodes[0]
    for number, (subnet, kind) in enumerate(strangers.items()):
        record = {"PublicIP": f"198.18.0.{200 + number}", "BackendType": kind, "BackendData": {}}
        network.etcd.put(SUBNETS_PREFIX + subnet.replace("/", "-"), json.dumps(record))
    wait_until(lambda: len(refused_by(one, network)) == 2, timeout=5, what="both refused")
    told = refused_by(one, network)
    for subnet, kind in strangers.items():
        assert kind in told[subnet]
        network.etcd.delete(SUBNETS_PREFIX + subnet.replace("/", "-"))
    wait_until(lambda: refused_by(one, network) == {}, timeout=5, what="strangers forgotten")


def refused_by(node: Node, network: Cluster) -> dict[str, str]:
    refused: dict[str, str] = told_by(node, network)["peers"]["refused"]
    return refused


@pytest.mark.parametrize("case", ROUTED_CASES, indirect=True, ids=str)
def test_a_route_through_the_router_is_followed_without_loss(case: Case, network: Cluster) -> None:
    one, _, three = network.nodes
    on_link = wire_view(network, case.backend)
    routed = wire_view(network, case.backend, routed={(one.name, three.name)})
    near, far = one.pods[0], three.pods[0]
    with udp_probe(near.namespace, far.namespace, far.address, rate=500) as probe:
        probe.wait_flowing(100)
        one.reach_through_router(three)
        wait_until(partial(agrees, one, routed), timeout=5, what="the way through the router")
        probe.wait_flowing(100)
        one.reach_as_before(three)
        wait_until(partial(agrees, one, on_link), timeout=5, what="the way on the link")
        probe.wait_flowing(100)
    report = probe.stop()
    assert report.lost == 0, report


def agrees(node: Node, view: WireView) -> bool:
    """Return whether the next packets that the node sends to others are right in every field."""
    with WireWatch([node]) as watch:
        wait_until(lambda: len(watch.so_far(node)) >= 20, timeout=5, what="packets on the wire")
        return complaints(view, watch.stop()) == []
