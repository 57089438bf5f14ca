"""Pods of a node that was flannel's: they live on, and are deleted rightly by ours."""

from ipaddress import IPv4Network

from cni_lab import CniNode
from cni_runtime import CniRuntime
from flannel_node import CNI_NAME, write_cni_config
from overlay_view import SUBNETS, overlay_link, ready
from testbed import Cluster, Node, Vtep, clean, icmp_probe, make_vtep, ping

FLANNELS = IPv4Network("10.244.255.0/24")
OTHERS = IPv4Network("10.244.254.0/24")


def test_flannels_pods_outlive_the_change_and_the_way_back(cluster: Cluster) -> None:
    cluster.start_etcd()
    taken, other = cluster.add_node(), cluster.add_node()
    first, second = make_vtep(taken, FLANNELS), make_vtep(other, OTHERS)
    for end, peer in ((first, second), (second, first)):
        cluster.etcd.put(SUBNETS + end.lease_key, end.lease_value)
        end.add_peer(subnet=peer.subnet, address=peer.node.address, mac=peer.mac)
    folder = taken.state_dir / "net.d"
    before = write_cni_config(folder, FLANNELS)
    options = ("--ip-masq", f"--cni-conf-dir={folder}", f"--cni-conf-name={CNI_NAME}")
    runtime = CniRuntime(taken.namespace, conf_dir=folder, state=taken.state_dir / "cni")
    node = CniNode(taken, runtime, cluster.switch, options)
    target = other.add_pod()
    try:
        old = node.add("old")
        with icmp_probe(old.namespace, target.address, rate=200) as probe:
            probe.wait_flowing()
            taken.daemon.start(*options)
            taken.daemon.wait_ready()
            young = node.add("young")
            probe.wait_flowing()
            report = probe.stop()
        assert report.lost == 0
        assert young.address in FLANNELS
        assert young.address != old.address
        node.remove(old)
        assert node.runtime.reserved == [str(young.address)]
        taken.daemon.stop()
        clean(taken, cluster, f"--cni-conf-dir={folder}")
        assert [path.name for path in folder.iterdir()] == [CNI_NAME]
        assert (folder / CNI_NAME).read_text() == before
    finally:
        node.close()
    assert node.runtime.reserved == []


def test_a_node_given_back_to_flannel_hears_nodes_that_come_later(cluster: Cluster) -> None:
    """Programs that nobody tells of new nodes would drop their packets."""
    ready(cluster, "--ip-masq", nodes=1)
    (ours,) = cluster.nodes
    ours.daemon.stop()
    state = ours.state_dir / "kersey"
    state.mkdir()
    clean(ours, cluster, "--keep-network", f"--state-dir={state}")
    assert not state.exists()  # else a removal of the package would clean up after flannel
    late = cluster.add_node()
    theirs = make_vtep(late, OTHERS)
    here = Vtep(ours, ours.pod_subnet().gateway.network, mac=mac_of(ours))
    here.add_peer(subnet=OTHERS, address=late.address, mac=theirs.mac)
    theirs.add_peer(subnet=here.subnet, address=ours.address, mac=here.mac)
    pod = late.add_pod()
    assert ping(pod.namespace, ours.pods[0].address, timeout=5) is not None


def mac_of(node: Node) -> str:
    link = overlay_link(node)
    assert link is not None
    return str(link["address"])
