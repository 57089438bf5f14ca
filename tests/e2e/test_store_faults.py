"""The lease store fails in every way it can, and packets keep flowing."""

import json
from ipaddress import IPv4Network

import pytest
from overlay_view import SUBNETS, ip_json, lease_key, overlay_link, peer_routes, subnet_of
from testbed import Cluster, Node, icmp_probe, make_vtep, ping, wait_until
from testbed.cluster import CONFIG_KEY

FREE = IPv4Network("10.244.255.0/24")
"""Beyond the first hundred subnets, from which daemons choose."""


def log_of(node: Node) -> str:
    return node.daemon.log.read_text()


def wait_log(node: Node, text: str, timeout: float = 30.0) -> None:
    wait_until(lambda: text in log_of(node), timeout=timeout, what=f"{node.name} logs {text!r}")


def test_etcd_killed_and_brought_back_under_a_running_ping_loses_nothing(
    network: Cluster,
) -> None:
    one, two = network.nodes
    key, subnet = lease_key(one), subnet_of(one)
    with icmp_probe(one.pods[0].namespace, two.pods[0].address, rate=200) as probe:
        probe.wait_flowing()
        network.etcd.kill()
        wait_log(one, "lease store lost")
        probe.wait_flowing(200)
        network.etcd.start()
        wait_log(one, "lease store answers again")
        report = probe.stop()
    assert report.lost == 0
    assert log_of(one).count("lease store lost") == 1
    assert network.etcd.get(key) is not None
    assert subnet_of(one) == subnet


def test_a_hanging_etcd_is_noticed_and_forwarding_goes_on(network: Cluster) -> None:
    one, two = network.nodes
    network.etcd.pause()
    try:
        wait_log(one, "lease store lost", timeout=40)
        assert ping(one.pods[0].namespace, two.pods[0].address) is not None
        assert one.daemon.status("/healthz") == 200
    finally:
        network.etcd.resume()
    wait_log(one, "lease store answers again", timeout=40)


def test_changes_during_an_outage_that_ends_in_a_compaction_are_not_missed(
    network: Cluster,
) -> None:
    one, two = network.nodes
    gone = subnet_of(two)
    two.daemon.stop()
    # Only this daemon loses etcd, so that the store can change while it is away.
    drop = f"INPUT -s {network.etcd.endpoint.split('/')[2].split(':')[0]} -j DROP".split()
    one.namespace.run("iptables", "-I", *drop)
    wait_log(one, "lease store lost", timeout=40)
    foreign = make_vtep(network.add_node(), FREE)
    network.etcd.delete(lease_key(two))
    network.etcd.put(SUBNETS + foreign.lease_key, foreign.lease_value)
    network.etcd.compact()
    one.namespace.run("iptables", "-D", *drop)
    wait_until(
        lambda: peer_routes(one) == {str(foreign.subnet)},
        timeout=40,
        what="routes follow the snapshot",
    )
    assert gone not in peer_routes(one)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("garbage", "{}"),
        ("10.244.250.0-24", "not JSON"),
        ("10.244.250.0-24", '{"PublicIP":"no address"}'),
        ("10.244.250.7-24", '{"PublicIP":"198.18.0.99"}'),
        ("a10.244.250.0-24", '{"PublicIP":"198.18.0.99"}'),
    ],
)
def test_an_unreadable_record_is_skipped_and_everything_else_works(
    shared_network: Cluster, key: str, value: str
) -> None:
    one, two = shared_network.nodes
    before = log_of(one).count("record skipped")
    shared_network.etcd.put(SUBNETS + key, value)
    try:
        wait_until(
            lambda: log_of(one).count("record skipped") == before + 1,
            timeout=5,
            what="skipped record logged",
        )
        assert peer_routes(one) == {subnet_of(two)}
        assert ping(one.pods[0].namespace, two.pods[0].address) is not None
    finally:
        shared_network.etcd.delete(SUBNETS + key)


def test_garbage_in_the_store_does_not_keep_a_node_from_starting(network: Cluster) -> None:
    one, two = network.nodes
    network.etcd.put(SUBNETS + "garbage", "{}")
    one.daemon.restart()
    one.daemon.wait_ready()
    assert peer_routes(one) == {subnet_of(two)}


def test_own_key_deleted_is_claimed_again_with_the_same_subnet(network: Cluster) -> None:
    one, two = network.nodes
    key = lease_key(one)
    before = network.etcd.get(key)
    with icmp_probe(two.pods[0].namespace, one.pods[0].address, rate=200) as probe:
        probe.wait_flowing()
        network.etcd.delete(key)
        wait_until(lambda: network.etcd.get(key) == before, timeout=10, what="the same lease again")
        report = probe.stop()
    # The peer forgets us while the key is gone: that is what deleting a lease means.
    assert report.longest_gap < 2.0
    assert one.daemon.is_running
    assert network.etcd.lease_of(key) is not None


def test_own_lease_expired_is_claimed_again_with_the_same_subnet(network: Cluster) -> None:
    one = network.nodes[0]
    key = lease_key(one)
    lease = network.etcd.lease_of(key)
    assert lease is not None
    network.etcd.revoke(lease)
    wait_until(lambda: network.etcd.get(key) is not None, timeout=10, what="a lease again")
    assert network.etcd.lease_of(key) != lease


def test_a_daemon_restarted_without_etcd_leaves_the_kernel_forwarding(network: Cluster) -> None:
    one, two = network.nodes
    with icmp_probe(one.pods[0].namespace, two.pods[0].address, rate=200) as probe:
        probe.wait_flowing()
        network.etcd.kill()
        one.daemon.restart()
        wait_until(lambda: one.daemon.status() == 503, timeout=10, what="alive, not ready")
        assert one.daemon.status("/healthz") == 200
        probe.wait_flowing(100)
        network.etcd.start()
        one.daemon.wait_ready()
        report = probe.stop()
    assert report.lost == 0
    assert log_of(one).count("cannot start yet") <= 2


def test_a_second_node_with_our_address_is_refused_by_name(network: Cluster) -> None:
    one = network.nodes[0]
    value = json.loads(network.etcd.get(lease_key(one)) or "{}")
    one.daemon.stop()
    value["NodeID"] = "somebody-else"
    network.etcd.put(lease_key(one), json.dumps(value))
    one.daemon.start()
    wait_until(lambda: not one.daemon.is_running, timeout=15, what="the daemon refuses")
    assert one.daemon.process.exit_code == 1
    assert "somebody-else" in one.daemon.log_tail()
    assert "node1" in one.daemon.log_tail()
    assert json.loads(network.etcd.get(lease_key(one)) or "{}") == value


def test_a_reservation_stays_one(cluster: Cluster) -> None:
    cluster.start_etcd()
    node = cluster.add_node()
    key = SUBNETS + "10.244.77.0-24"
    cluster.etcd.put(key, f'{{"PublicIP":"{node.address}","PublicIPv6":null}}')
    node.daemon.start()
    node.daemon.wait_ready()
    assert subnet_of(node) == "10.244.77.0/24"
    assert cluster.etcd.lease_of(key) is None
    assert '"BackendType":"vxlan"' in (cluster.etcd.get(key) or "")


def test_a_config_written_late_is_waited_for(cluster: Cluster) -> None:
    cluster.etcd.start()
    node = cluster.add_node()
    node.daemon.start()
    wait_log(node, "cannot start yet")
    assert node.daemon.status("/healthz") == 200
    cluster.etcd.put(CONFIG_KEY, '{"Network":"10.9.0.0/16"}')
    node.daemon.wait_ready()
    assert subnet_of(node).startswith("10.9.")


def test_a_config_change_is_followed_where_it_can_be_and_reported_where_not(
    network: Cluster,
) -> None:
    node = network.nodes[0]
    network.etcd.put(CONFIG_KEY, '{"Network":"10.244.0.0/16","SubnetLen":31,"Backend":{}}')
    wait_log(node, "new network config refused")
    assert "SubnetLen" in log_of(node)
    backend = '{"Type":"vxlan","MTU":1400,"VNI":7}'
    network.etcd.put(CONFIG_KEY, f'{{"Network":"10.244.0.0/16","Backend":{backend}}}')
    wait_until(
        lambda: "FLANNEL_MTU=1350" in node.daemon.subnet_file.read_text(),
        timeout=10,
        what="the new MTU in subnet.env",
    )
    wait_log(node, "only a restart can follow")
    link = overlay_link(node)
    assert link is not None
    assert link["mtu"] == 1350
    assert link["linkinfo"]["info_data"]["id"] == 1


def test_dual_stack_records_of_others_do_no_harm(cluster: Cluster) -> None:
    cluster.start_etcd()
    record = (
        '{"PublicIP":"198.18.0.200","PublicIPv6":"fd77::11","BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:63"},'
        '"BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:64"}}'
    )
    cluster.etcd.put(SUBNETS + "10.244.99.0-24&fd05:0:0:1::-64", record)
    node = cluster.add_node()
    node.daemon.start()
    node.daemon.wait_ready()
    assert peer_routes(node) == {"10.244.99.0/24"}


def test_leases_of_another_backend_are_reported_one_by_one(cluster: Cluster) -> None:
    cluster.start_etcd()
    for number, kind in enumerate(("host-gw", "wireguard")):
        cluster.etcd.put(
            f"{SUBNETS}10.244.{90 + number}.0-24",
            f'{{"PublicIP":"198.18.0.{200 + number}","PublicIPv6":null,"BackendType":"{kind}"}}',
        )
    node = cluster.add_node()
    node.daemon.start()
    node.daemon.wait_ready()
    log = log_of(node)
    assert "10.244.90.0/24" in log
    assert "host-gw" in log
    assert "10.244.91.0/24" in log
    assert "wireguard" in log
    assert ip_json(node, "route", "show", "dev", "flannel.1") == []
