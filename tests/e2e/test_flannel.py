"""Side by side with flannel, and in its place: its devices, its leases, its rules."""

import json
from ipaddress import IPv4Network

from overlay_view import SUBNETS, lease_key, overlay_link, peer_routes, ready, subnet_of
from testbed import Cluster, Node, icmp_probe, make_vtep, ping, wait_until

FLANNELS = IPv4Network("10.244.255.0/24")
OTHERS = IPv4Network("10.244.254.0/24")


def mac_of(node: Node) -> str:
    link = overlay_link(node)
    assert link is not None
    return str(link["address"])


def test_a_node_set_up_as_flannel_does_it_exchanges_traffic_with_ours(cluster: Cluster) -> None:
    ready(cluster, nodes=1)
    ours = cluster.nodes[0]
    theirs = cluster.add_node()
    vtep = make_vtep(theirs, FLANNELS)
    cluster.etcd.put(SUBNETS + vtep.lease_key, vtep.lease_value)
    vtep.add_peer(subnet=IPv4Network(subnet_of(ours)), address=ours.address, mac=mac_of(ours))
    pod = theirs.add_pod()
    assert ping(ours.pods[0].namespace, pod.address, timeout=10) is not None
    assert ping(pod.namespace, ours.pods[0].address, timeout=10) is not None
    # flannel changes its MAC at a reboot and tells so by its lease.
    theirs.namespace.ip(f"link set {vtep.device} address 0e:00:00:00:02:02")
    vtep.add_peer(subnet=IPv4Network(subnet_of(ours)), address=ours.address, mac=mac_of(ours))
    cluster.etcd.put(
        SUBNETS + vtep.lease_key, vtep.lease_value.replace(vtep.mac, "0e:00:00:00:02:02")
    )
    assert ping(ours.pods[0].namespace, pod.address, timeout=10) is not None


def test_a_flannel_node_is_taken_over_under_traffic_without_losing_a_packet(
    cluster: Cluster,
) -> None:
    cluster.start_etcd()
    taken, other = cluster.add_node(), cluster.add_node()
    first, second = make_vtep(taken, FLANNELS), make_vtep(other, OTHERS)
    for end, peer in ((first, second), (second, first)):
        cluster.etcd.put(SUBNETS + end.lease_key, end.lease_value)
        end.add_peer(subnet=peer.subnet, address=peer.node.address, mac=peer.mac)
    stale = IPv4Network("10.244.253.0/24")
    first.add_peer(subnet=stale, address=other.address, mac="0e:00:00:00:03:03")
    before = overlay_link(taken)
    assert before is not None
    pods = taken.add_pod(), other.add_pod()
    with icmp_probe(pods[0].namespace, pods[1].address, rate=500) as probe:
        probe.wait_flowing()
        taken.daemon.start("--ip-masq")
        taken.daemon.wait_ready()
        probe.wait_flowing()
        report = probe.stop()
    assert report.lost == 0
    after = overlay_link(taken)
    assert after is not None
    assert (after["ifindex"], after["address"]) == (before["ifindex"], first.mac)
    assert peer_routes(taken) == {str(OTHERS)}
    lease = json.loads(cluster.etcd.get(SUBNETS + first.lease_key) or "{}")
    assert lease["BackendData"]["VtepMAC"] == first.mac
    assert lease["NodeID"] == "node1"


def test_flannels_way_back_works_on_what_we_leave(network: Cluster) -> None:
    one, two = network.nodes
    one.daemon.stop()
    mac = mac_of(two)
    base = subnet_of(two).split("/")[0]
    # What flannel does for each peer at its start, with its own flags (replace).
    one.namespace.ip(f"neigh replace {base} lladdr {mac} dev flannel.1 nud permanent")
    one.namespace.run(
        *f"bridge fdb replace {mac} dev flannel.1 dst {two.address} self permanent".split()
    )
    one.namespace.ip(f"route replace {subnet_of(two)} via {base} dev flannel.1 onlink")
    assert ping(one.pods[0].namespace, two.pods[0].address) is not None
    (route,) = json.loads(
        one.namespace.run("ip", "-json", "route", "show", "dev", "flannel.1").stdout
    )
    assert "nhid" not in route
    one.daemon.start("--ip-masq")
    one.daemon.wait_ready()
    assert ping(one.pods[0].namespace, two.pods[0].address) is not None


def test_a_lease_with_another_vni_is_refused_by_itself(network: Cluster) -> None:
    one, two = network.nodes
    foreign = network.add_node()
    value = make_vtep(foreign, FLANNELS).lease_value.replace('"VNI":1', '"VNI":9')
    network.etcd.put(SUBNETS + "10.244.255.0-24", value)
    wait_until(lambda: "VNI" in one.daemon.log_tail(), timeout=5, what="the refusal is in the log")
    assert peer_routes(one) == {subnet_of(two)}
    assert network.etcd.get(lease_key(one)) is not None
