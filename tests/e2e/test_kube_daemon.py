"""Daemons that keep their leases in the Kubernetes API: from node objects to packets."""

import json
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from kube_network import KubeNetwork, foreign_annotations, keyed
from manifests import base
from operator_command import kersey
from overlay_view import ip_json, overlay_link, peer_routes, subnet_of
from testbed import (
    Cluster,
    Node,
    fast_packets,
    icmp_probe,
    ordered_pairs,
    ping,
    reachability,
    told_by,
    udp_probe,
    wait_acquainted,
    wait_until,
)
from testbed.addresses import node_address

ONE, TWO, THREE = "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"
MAC = "0e:2a:00:00:00:77"
HOST_GW = {"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}
DATAGRAMS = 200


@pytest.fixture
def empty(cluster: Cluster, tmp_path: Path) -> Iterator[KubeNetwork]:
    """Give a test an API server that knows no nodes yet."""
    yield from serving(KubeNetwork(cluster, tmp_path))


@pytest.fixture
def network(empty: KubeNetwork) -> KubeNetwork:
    """Give a test two ready nodes with a pod each."""
    empty.up(ONE, TWO)
    wait_acquainted(empty.cluster)
    return empty


def serving(network: KubeNetwork) -> Iterator[KubeNetwork]:
    network.serve()
    try:
        yield network
    finally:
        network.api.stop()


def log_of(node: Node) -> str:
    return node.daemon.log.read_text()


def wait_log(node: Node, text: str, timeout: float = 30.0) -> None:
    wait_until(lambda: text in log_of(node), timeout=timeout, what=f"{node.name} logs {text!r}")


def cni_subnet(node: Node) -> str:
    """Return the subnet in the CNI configuration that a node's daemon wrote to its folder."""
    document = json.loads((node.state_dir / "10-kersey.conflist").read_text())
    subnet: str = document["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]
    return subnet


def mac_of(node: Node) -> str:
    link = overlay_link(node)
    assert link is not None
    return str(link["address"])


def assert_fast(network: KubeNetwork) -> None:
    """Let the first two pods talk, and see that programs carried it at both nodes."""
    source, destination, *_ = network.cluster.pods
    nodes = source.node, destination.node
    before = [fast_packets(node, network.cluster) or 0 for node in nodes]
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=500) as probe:
        probe.wait_flowing(DATAGRAMS)
        assert probe.stop().lost == 0
    for node, count in zip(nodes, before, strict=True):
        told = told_by(node, network.cluster)
        assert (fast_packets(node, network.cluster) or 0) - count > DATAGRAMS, told
        assert told["fast_path"]["troubles"] == {}


def test_all_pods_reach_each_other_on_the_fast_path(empty: KubeNetwork) -> None:
    nodes = empty.up(ONE, TWO, THREE)
    wait_acquainted(empty.cluster)
    assert [subnet_of(node) for node in nodes] == [ONE, TWO, THREE]
    answers = reachability(ordered_pairs(empty.cluster.pods))
    assert [answer for answer in answers if answer.rtt_ms is None] == []
    assert_fast(empty)
    for node in nodes:
        wait_until(partial(empty.is_available, node), timeout=10, what="condition cleared")
        assert empty.says(node, "kube-subnet-manager") == "true"
        assert empty.says(node, "public-ip") == str(node.address)
        data = f'{{"VNI":1,"VtepMAC":"{mac_of(node)}"}}'
        assert empty.says(node, "backend-data") == data


def events_of(network: KubeNetwork, node: Node) -> dict[str, tuple[str, int]]:
    """Return of each reason the last message about a node, and how often it came."""
    return {
        event["reason"]: (event["message"], event["count"])
        for event in network.api.events
        if event["involvedObject"]["name"] == node.name
    }


def wait_event(network: KubeNetwork, node: Node, reason: str, *, count: int = 1) -> str:
    """Return the message of an event once it came so often."""
    wait_until(
        lambda: events_of(network, node).get(reason, ("", 0))[1] == count,
        timeout=30,
        what=f"{node.name}: event {reason}",
    )
    return events_of(network, node)[reason][0]


def asked_of(network: KubeNetwork) -> set[tuple[str, str]]:
    """Return verb and resource of every request so far, as RBAC names them."""
    return {
        (
            seen.verb,
            next(
                (kind for kind in ("nodes/status", "events") if kind.split("/")[-1] in seen.path),
                "nodes",
            ),
        )
        for seen in network.api.requests
    }


def test_trouble_becomes_events_and_the_role_in_the_manifests_allows_that_and_no_more(
    network: KubeNetwork,
) -> None:
    one, two = network.cluster.nodes
    for count in (1, 2):
        one.namespace.ip("link set eth0 mtu 1400")
        message = wait_event(network, one, "PodMtuTooLarge", count=count)
        assert message.startswith("pods have MTU 1450, the overlay carries 1350")
        one.namespace.ip("link set eth0 mtu 1500")
        wait_event(network, one, "PodMtuFits", count=count)
    assert events_of(network, two) == {}
    given = {
        (verb, resource)
        for rule in base()["ClusterRole", "kersey"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert asked_of(network) == given


def test_nodes_that_claim_what_is_ours_are_named_in_events(network: KubeNetwork) -> None:
    one, two = network.cluster.nodes
    for name, cidr, address, mac in (
        ("twin", ONE, IPv4Address("198.18.0.77"), "0e:2a:00:00:00:77"),
        ("double", THREE, one.address, "0e:2a:00:00:00:78"),
    ):
        network.api.put(name, cidr=cidr, annotations=keyed(foreign_annotations(address, mac)))
    assert "node twin: podCIDR: got '10.244.1.0/24'" in wait_event(network, one, "NodeIgnored")
    assert f"{THREE}: node: got our own address" in wait_event(network, one, "PeersRefused")
    assert peer_routes(one) == {TWO}
    network.api.delete("twin")
    wait_event(network, one, "NodesRead")
    network.api.delete("double")
    wait_event(network, one, "PeersProgrammed")
    assert "PeersRefused" not in events_of(network, two)


def test_a_node_without_a_fast_path_says_so_in_an_event(empty: KubeNetwork) -> None:
    wished, node = empty.add_node(ONE), empty.add_node(TWO)
    empty.start(wished, "--datapath=netlink")
    wished.daemon.wait_ready()
    empty.start(node, "--bpf-dir=/proc/nowhere")
    assert "packets take the kernel's own path" in wait_event(empty, node, "FastPathOff")
    assert events_of(empty, wished) == {}


def test_the_daemon_is_kept_free_of_what_only_etcd_needs(network: KubeNetwork) -> None:
    node = network.cluster.nodes[0]
    mapped = Path(f"/proc/{node.daemon.process.pid}/maps").read_text()
    assert "/msgspec/" in mapped
    assert "grpc" not in mapped
    assert node.namespace.run("ss", "-Htn", "dst", ":2379").stdout == ""


def test_status_shows_the_store_up_and_away(network: KubeNetwork) -> None:
    node = network.cluster.nodes[0]

    def shown() -> str:
        state = f"--state-dir={node.state_dir}"
        return node.namespace.run(network.cluster.kersey, "status", state).stdout

    assert "store      connected" in shown()
    assert f"{ONE} of 10.244.0.0/16, ends never" in shown()
    with network.outage():
        wait_until(
            lambda: f"lost: kubernetes {network.api.url}" in shown(), timeout=30, what="lost shown"
        )
    wait_until(lambda: "store      connected" in shown(), timeout=30, what="connected shown")


def test_leases_are_listed_from_any_node_without_a_node_of_its_own(network: KubeNetwork) -> None:
    one, two = network.cluster.nodes
    network.api.put("broken", cidr="10.244.9.0/24", annotations=keyed(garbled()))
    store = ("--kube-subnet-mgr", f"--kube-api-url={network.api.url}")
    done = kersey(one, "leases", *store)
    rows = {row.split()[0]: row.split()[1:] for row in done.stdout.splitlines()[1:]}
    assert rows == {
        subnet_of(node): [str(node.address), "vxlan", node.name, "never"] for node in (one, two)
    }
    assert "kersey: record skipped: broken: node broken: public-ip" in done.stderr
    found = json.loads(kersey(one, "leases", "--json", *store).stdout)
    assert [each["expires_in_seconds"] for each in found["leases"]] == [None, None]
    assert [each["record"] for each in found["skipped"]] == ["broken"]
    with network.outage():
        done = kersey(one, "leases", *store, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert network.api.url.removeprefix("http://") in done.stderr


def garbled() -> dict[str, str]:
    return {**foreign_annotations(node_address(77), MAC), "public_ip": "nowhere"}


def test_traffic_goes_on_without_the_api_and_a_new_node_joins_after_it(
    network: KubeNetwork,
) -> None:
    one, two = network.cluster.nodes
    with icmp_probe(one.pods[0].namespace, two.pods[0].address, rate=200) as probe:
        probe.wait_flowing()
        with network.outage():
            wait_log(one, "lease store lost")
            new = network.add_node(THREE)
            network.start(new)
            two.daemon.restart()
            for waiting in (new, two):
                wait_log(waiting, "cannot start yet, waiting")
                assert (waiting.daemon.status(), waiting.daemon.status("/healthz")) == (503, 200)
            probe.wait_flowing(200)
        wait_acquainted(network.cluster)
        report = probe.stop()
    assert report.lost == 0
    assert log_of(one).count("lease store lost") == 1
    assert ping(one.pods[0].namespace, new.add_pod().address) is not None


def test_a_daemon_that_an_api_server_keeps_waiting_ends_at_once_when_it_is_told(
    empty: KubeNetwork,
) -> None:
    node = empty.add_node(ONE)
    with empty.api.hanging():
        empty.start(node)
        wait_until(lambda: node.daemon.status("/healthz") == 200, timeout=10, what="alive")
        wait_until(
            lambda: "ESTAB" in node.namespace.run("ss", "-tn").stdout, timeout=10, what="asking"
        )
        assert node.daemon.process.stop(timeout=5) == 0


def test_a_node_without_a_pod_cidr_waits_for_one(network: KubeNetwork) -> None:
    one = network.cluster.nodes[0]
    node = network.add_node("")
    network.start(node)
    wait_log(node, "podCIDR: got '', expected an IPv4 subnet")
    assert (node.daemon.status(), node.daemon.status("/healthz")) == (503, 200)
    assert overlay_link(node) is None
    assert network.says(node, "public-ip") is None
    assert not network.is_available(node)
    assert "podCIDR: got ''" in wait_event(network, node, "CannotStart")
    network.api.put(node.name, cidr=THREE)
    node.daemon.wait_ready()
    wait_event(network, node, "Started")
    assert subnet_of(node) == THREE
    assert ping(one.pods[0].namespace, node.add_pod().address, timeout=10) is not None


def test_a_pod_cidr_outside_of_the_network_waits_for_a_config_that_has_it(
    empty: KubeNetwork,
) -> None:
    node = empty.add_node("10.9.1.0/24")
    empty.start(node)
    wait_log(node, "podCIDR: got '10.9.1.0/24', expected a subnet of Network 10.244.0.0/16")
    empty.write_config({"Network": "10.9.0.0/16"})
    node.daemon.wait_ready()
    assert subnet_of(node) == "10.9.1.0/24"


def test_a_node_that_went_while_the_daemon_was_down_leaves_nothing_behind(
    network: KubeNetwork,
) -> None:
    one, two = network.cluster.nodes
    assert peer_routes(one) == {TWO}
    for node in (one, two):
        node.daemon.stop()
    network.api.delete(two.name)
    one.daemon.restart()
    one.daemon.wait_ready()
    assert peer_routes(one) == set()
    assert ip_json(one, "nexthop") == []
    assert ip_json(one, "neigh", "show", "dev", "flannel.1", "nud", "permanent") == []
    entries = one.namespace.run("bridge", "fdb", "show", "dev", "flannel.1").stdout
    assert str(two.address) not in entries


def test_a_node_that_goes_and_comes_again_is_forgotten_and_reached(network: KubeNetwork) -> None:
    one, two = network.cluster.nodes
    network.api.delete(two.name)
    wait_until(lambda: peer_routes(one) == set(), timeout=10, what="the route is gone")
    network.api.put(two.name, cidr=TWO)
    wait_until(
        lambda: network.says(two, "public-ip") == str(two.address), timeout=60, what="annotated"
    )
    wait_until(lambda: network.is_available(two), timeout=20, what="condition cleared again")
    assert ping(one.pods[0].namespace, two.pods[0].address, timeout=10) is not None
    assert "subnet is another one" not in log_of(two)


@pytest.mark.parametrize("cidr", ["10.244.7.0/24", "10.244.7.64/26"])
def test_a_node_made_anew_with_another_pod_cidr_moves_there(empty: KubeNetwork, cidr: str) -> None:
    one, two = empty.add_node(ONE), empty.add_node(TWO)
    for node in (one, two):
        empty.start(node, f"--cni-conf-dir={node.state_dir}")
    wait_acquainted(empty.cluster)
    assert cni_subnet(two) == TWO
    empty.api.delete(two.name)
    empty.api.put(two.name, cidr=cidr)
    wait_until(lambda: peer_routes(one) == {cidr}, timeout=60, what="the new subnet is routed")
    wait_log(two, "our subnet is another one now")
    wait_until(lambda: cni_subnet(two) == cidr, timeout=10, what="new pods get it")
    source, moved = one.add_pod(), two.add_pod()
    assert moved.address in IPv4Network(cidr)
    assert ping(source.namespace, moved.address, timeout=10) is not None
    assert ping(moved.namespace, source.address, timeout=10) is not None
    with udp_probe(source.namespace, moved.namespace, moved.address, rate=500) as probe:
        probe.wait_flowing(DATAGRAMS)
        assert probe.stop().lost == 0
    troubles = told_by(two, empty.cluster)["fast_path"]["troubles"]
    if cidr.endswith("/24"):
        assert troubles == {}
    else:
        assert troubles == {"configure": f"subnet {cidr}: not a /24 of 10.244.0.0/16"}


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("public_ip", "198.18.0.99"),
        ("backend_data", '{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}'),
        ("kube_subnet_manager", None),
    ],
)
def test_tampering_with_our_annotations_is_made_good(
    network: KubeNetwork, annotation: str, text: str | None
) -> None:
    one, two = network.cluster.nodes
    name = annotation.replace("_", "-")
    before = network.says(one, name)
    network.api.annotate(one.name, **{annotation: text})
    wait_until(lambda: network.says(one, name) == before, timeout=10, what="annotation as before")
    wait_log(one, "our lease is gone from the store or changed, writing it again")
    assert ping(two.pods[0].namespace, one.pods[0].address, timeout=10) is not None
    assert network.api.nodes[one.name]["spec"]["podCIDR"] == ONE


def test_a_flannel_node_is_taken_over_with_its_mac_though_its_device_is_gone(
    empty: KubeNetwork,
) -> None:
    taken, other = node_address(1), node_address(2)
    one = empty.add_node(ONE, **foreign_annotations(taken, MAC))
    two = empty.add_node(TWO, **foreign_annotations(other, MAC.replace("77", "78"), vni=9))
    for node in (one, two):
        empty.start(node)
        node.daemon.wait_ready()
        node.add_pod()
    wait_acquainted(empty.cluster)
    assert mac_of(one) == MAC
    assert mac_of(two) != MAC.replace("77", "78")  # of another VNI, so nobody knows us by it
    patches = [seen.body for seen in empty.api.of("patch") if f"/{one.name}/" in seen.path]
    assert not any(b"annotations" in body for body in patches)  # all is as flannel wrote it
    assert ping(one.pods[0].namespace, two.pods[0].address) is not None


def test_the_administrators_addresses_are_advertised(empty: KubeNetwork) -> None:
    second = IPv4Address("198.18.0.201")
    one = empty.add_node(ONE, node_public_ip=str(second))
    one.namespace.ip(f"addr add {second}/24 dev eth0")
    two = empty.add_node(TWO, public_ip_overwrite="198.18.0.202")
    for node in (one, two):
        empty.start(node)
        node.daemon.wait_ready()
    assert empty.says(one, "public-ip") == str(second)
    assert told_by(one, empty.cluster)["uplink"]["public_ip"] == str(second)
    assert empty.says(two, "public-ip") == "198.18.0.202"
    assert told_by(two, empty.cluster)["uplink"]["public_ip"] == str(two.address)


def test_a_pod_cidr_of_another_length_than_the_config_says_is_fast_too(
    empty: KubeNetwork,
) -> None:
    empty.write_config({"Network": "10.244.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}})
    one, two = empty.up("10.244.1.64/26", "10.244.2.128/26")
    wait_acquainted(empty.cluster)
    assert_fast(empty)
    larger = empty.add_node(THREE)
    empty.start(larger)
    wait_acquainted(empty.cluster)
    assert ping(one.pods[0].namespace, larger.add_pod().address) is not None
    new = {"Network": "10.244.0.0/16", "SubnetLen": 25, "Backend": {"Type": "vxlan", "MTU": 1400}}
    empty.write_config(new)
    wait_until(
        lambda: "FLANNEL_MTU=1350" in two.daemon.subnet_file.read_text(),
        timeout=20,
        what="the new MTU in subnet.env",
    )
    assert "only a restart can follow" not in log_of(two)


def test_host_gw_takes_over_flannels_routes_of_the_pod_cidrs_length(
    cluster: Cluster, tmp_path: Path
) -> None:
    for network in serving(KubeNetwork(cluster, tmp_path, HOST_GW)):
        one = network.add_node("10.244.1.0/26")
        one.namespace.ip(f"route add 10.244.9.64/26 via {node_address(9)} dev eth0")
        network.start(one)
        one.daemon.wait_ready()
        (two,) = network.up("10.244.2.0/26")
        wait_acquainted(cluster)
        assert ping(two.pods[0].namespace, one.add_pod().address, timeout=10) is not None
        routes = {route["dst"] for route in ip_json(one, "route") if "gateway" in route}
        assert routes == {"default", "10.244.2.0/26"}
