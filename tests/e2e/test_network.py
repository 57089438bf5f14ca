"""A working network: who reaches whom, and what a node shows of it."""

import json
import re
from ipaddress import IPv4Network

from overlay_view import SUBNETS, ip_json, overlay_link, peer_routes, ready, subnet_of
from testbed import Cluster, icmp_probe, ordered_pairs, ping, reachability, wait_until
from testbed.addresses import OUTSIDE


def test_every_pod_reaches_every_pod(three_nodes: Cluster) -> None:
    results = reachability(ordered_pairs(three_nodes.pods))
    assert len(results) == 30
    assert [result for result in results if result.rtt_ms is None] == []


def test_a_packet_between_nodes_loses_two_hops(shared_network: Cluster) -> None:
    source, destination = shared_network.pods
    done = source.namespace.run("ping", "-n", "-c", "1", "-w", "5", str(destination.address))
    assert "ttl=62" in done.stdout


def test_nodes_reach_pods_of_other_nodes_and_pods_reach_nodes(shared_network: Cluster) -> None:
    one, two = shared_network.nodes
    assert ping(one.namespace, two.pods[0].address) is not None
    assert ping(two.pods[0].namespace, one.address) is not None


def test_the_device_has_flannels_attributes(shared_network: Cluster) -> None:
    node = shared_network.nodes[0]
    link = overlay_link(node)
    assert link is not None
    data = link["linkinfo"]["info_data"]
    assert link["mtu"] == 1450
    assert (data["id"], data["port"], data["learning"]) == (1, 8472, False)
    assert data["local"] == str(node.address)
    (address,) = ip_json(node, "-4", "addr", "show", "dev", "flannel.1")
    base = subnet_of(node).split("/")[0]
    assert [(a["local"], a["prefixlen"]) for a in address["addr_info"]] == [(base, 32)]


def test_the_lease_is_flannels_byte_for_byte_with_a_node_id_behind(
    shared_network: Cluster,
) -> None:
    node = shared_network.nodes[0]
    link = overlay_link(node)
    assert link is not None
    value = shared_network.etcd.get(SUBNETS + subnet_of(node).replace("/", "-"))
    assert value == (
        f'{{"PublicIP":"{node.address}","PublicIPv6":null,"BackendType":"vxlan",'
        f'"BackendData":{{"VNI":1,"VtepMAC":"{link["address"]}"}},"NodeID":"node1"}}'
    )


def test_subnet_env_is_flannels(shared_network: Cluster) -> None:
    node = shared_network.nodes[0]
    gateway = node.pod_subnet().gateway
    assert node.daemon.subnet_file.read_text() == (
        f"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )


def test_routes_are_marked_as_ours(shared_network: Cluster) -> None:
    one, two = shared_network.nodes
    (route,) = ip_json(one, "route", "show", "dev", "flannel.1")
    assert route["dst"] == subnet_of(two)
    assert route["protocol"] == "75"
    assert route["gateway"] == subnet_of(two).split("/")[0]
    assert "onlink" in route["flags"]


def test_a_packet_of_full_size_passes_and_a_larger_one_is_answered_with_the_mtu(
    shared_network: Cluster,
) -> None:
    source, destination = shared_network.pods
    mtu = json.loads(source.namespace.run("ip", "-json", "link", "show", "eth0").stdout)[0]["mtu"]
    assert mtu == 1450
    header = 28  # IPv4 and ICMP
    assert (
        ping(source.namespace, destination.address, "-M", "do", "-s", str(mtu - header)) is not None
    )
    too_large = source.namespace.run(
        *f"ping -n -c 1 -w 2 -M do -s {mtu - header + 1} {destination.address}".split(), check=False
    )
    assert re.search(r"message too long, mtu[=:] ?1450", too_large.stderr + too_large.stdout)


def test_pods_leave_the_network_masqueraded_as_their_node(shared_network: Cluster) -> None:
    pod = shared_network.pods[0]
    rules = pod.node.namespace.run("iptables", "-t", "nat", "-S", "FLANNEL-POSTRTG").stdout
    assert "MASQUERADE" in rules
    switch = shared_network.switch
    assert ping(pod.namespace, OUTSIDE) is not None
    # The outside has no route to pods: only a masqueraded packet can have been answered.
    assert "10.244." not in switch.run("ip", "route").stdout


def test_twelve_nodes_that_start_at_once_get_twelve_subnets(cluster: Cluster) -> None:
    ready(cluster, nodes=12, pods=0)
    subnets = {IPv4Network(subnet_of(node)) for node in cluster.nodes}
    assert len(subnets) == 12
    everyone = {str(subnet) for subnet in subnets}
    wait_until(
        lambda: all(peer_routes(node) == everyone - {subnet_of(node)} for node in cluster.nodes),
        timeout=20,
        what="each node has routes to the eleven others",
    )


def test_a_node_that_joins_is_reached_and_one_whose_lease_ends_is_forgotten(
    network: Cluster,
) -> None:
    one = network.nodes[0]
    joined = network.add_node()
    joined.daemon.start()
    pod = joined.add_pod()
    assert ping(network.pods[0].namespace, pod.address, timeout=10) is not None
    joined.daemon.stop()
    key = SUBNETS + subnet_of(joined).replace("/", "-")
    lease = network.etcd.lease_of(key)
    assert lease is not None
    network.etcd.revoke(lease)
    wait_until(
        lambda: subnet_of(joined) not in peer_routes(one), timeout=5, what="route of the lost node"
    )
    neighbours = one.namespace.run("ip", "neigh", "show", "dev", "flannel.1").stdout
    assert subnet_of(joined).split("/")[0] not in neighbours


def test_restart_keeps_subnet_and_mac_and_loses_no_packet(network: Cluster) -> None:
    one, two = network.nodes
    before = (subnet_of(one), overlay_link(one))
    with icmp_probe(one.pods[0].namespace, two.pods[0].address, rate=500) as probe:
        probe.wait_flowing()
        one.daemon.restart()
        one.daemon.wait_ready()
        one.daemon.kill()
        one.daemon.start("--ip-masq")
        one.daemon.wait_ready()
        report = probe.stop()
    assert report.lost == 0
    after = overlay_link(one)
    assert after is not None
    assert before[1] is not None
    assert (str(one.daemon.subnet_file.read_text()).split("\n")[1], after["address"]) == (
        f"FLANNEL_SUBNET={one.pod_subnet().gateway}",
        before[1]["address"],
    )
    assert after["ifindex"] == before[1]["ifindex"]
