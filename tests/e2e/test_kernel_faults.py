"""Someone else changes the kernel under a running daemon, and it comes back within a second."""

import json
import time
from ipaddress import IPv4Address

import pytest
from kersey_control.fast_path import LIBERAL
from overlay_view import lease_key, overlay_link, peer_routes, subnet_of
from testbed import Cluster, Node, icmp_probe, ping, wait_until

REPAIR = 1.0
"""Seconds that a repair may take; what is asserted leaves room for a busy machine on top."""


def readdress(node: Node, address: IPv4Address) -> None:
    """Change the uplink's address, as a DHCP server may."""
    node.namespace.ip(
        f"addr del {node.address}/24 dev eth0",
        f"addr add {address}/24 dev eth0",
        "route add default via 198.18.0.1",
    )


def rules(node: Node, table: str, chain: str) -> str:
    return node.namespace.run("iptables", "-t", table, "-S", chain, check=False).stdout


def test_device_deleted_under_traffic_comes_back_with_its_mac_and_all_peers(
    network: Cluster,
) -> None:
    one, two = network.nodes
    before = overlay_link(one)
    assert before is not None
    with icmp_probe(one.pods[0].namespace, two.pods[0].address, rate=200) as probe:
        probe.wait_flowing()
        one.namespace.ip("link del flannel.1")
        wait_until(lambda: overlay_link(one), timeout=5, what="device again")
        probe.wait_flowing()
        report = probe.stop()
    after = overlay_link(one)
    assert after is not None
    assert (after["address"], after["mtu"]) == (before["address"], before["mtu"])
    assert peer_routes(one) == {subnet_of(two)}
    assert report.longest_gap < REPAIR + 1.0


def test_conntrack_forgives_gaps_again_soon_after_somebody_set_it_back(
    shared_network: Cluster,
) -> None:
    one = shared_network.nodes[0]
    one.namespace.sysctl(LIBERAL.replace("/", "."), 0)
    one.namespace.run("iptables", "-w", "-A", "FORWARD", "-j", "ACCEPT")
    wait_until(
        lambda: one.namespace.run("cat", f"/proc/sys/{LIBERAL}").stdout == "1\n",
        timeout=30,
        what="conntrack set right",
    )  # the audit comes after 60 s
    one.namespace.run("iptables", "-w", "-D", "FORWARD", "-j", "ACCEPT")


@pytest.mark.parametrize(
    "damage",
    [
        "ip neigh flush dev flannel.1 nud permanent",
        "ip nexthop flush",
        "ip addr flush dev flannel.1",
        "ip link set flannel.1 down",
        "ip link set eth0 down",
        "ip link set flannel.1 address 0e:00:00:00:00:99",
    ],
)
def test_damage_is_repaired(shared_network: Cluster, damage: str) -> None:
    one, two = shared_network.nodes
    began = time.monotonic()
    one.namespace.run(*damage.split())
    if "eth0" in damage:  # a flap: its routes go with it, and the default route is not ours to mend
        one.namespace.ip("link set eth0 up", "route add default via 198.18.0.1")
    assert ping(one.namespace, two.pods[0].address, timeout=10) is not None
    assert ping(two.pods[0].namespace, one.pods[0].address, timeout=10) is not None
    assert time.monotonic() - began < REPAIR + 3.0
    assert overlay_link(one)["address"] == vtep_mac(shared_network, one)  # type: ignore[index]


def vtep_mac(network: Cluster, node: Node) -> str:
    value = json.loads(network.etcd.get(lease_key(node)) or "")
    return str(value["BackendData"]["VtepMAC"])


def test_a_forwarding_entry_pointed_elsewhere_is_put_right(shared_network: Cluster) -> None:
    one, two = shared_network.nodes
    entry = f"bridge fdb replace {vtep_mac(shared_network, two)} dev flannel.1 self permanent dst"
    one.namespace.run(*entry.split(), "198.18.0.250")
    wait_until(
        lambda: (
            f"dst {two.address} "
            in one.namespace.run(*["bridge", "fdb", "show", "dev", "flannel.1"]).stdout
        ),
        timeout=REPAIR + 2.0,
        what="entry points at the peer again",
    )


def test_a_route_of_someone_elses_stays(shared_network: Cluster) -> None:
    one = shared_network.nodes[0]
    one.namespace.ip("route add 10.250.0.0/16 via 198.18.0.1 dev eth0")
    one.namespace.run("ip", "nexthop", "flush")
    wait_until(lambda: peer_routes(one), timeout=5, what="peer routes again")
    assert "10.250.0.0/16" in one.namespace.run("ip", "route").stdout


def test_masquerade_rules_flushed_by_someone_else_come_back_whole(
    shared_network: Cluster,
) -> None:
    one = shared_network.nodes[0]
    before = rules(one, "nat", "FLANNEL-POSTRTG"), rules(one, "filter", "FLANNEL-FWD")
    assert "MASQUERADE" in before[0]
    for command in ("-t nat -F", "-t nat -X", "-F", "-X"):
        one.namespace.run("iptables", *command.split())
    wait_until(
        lambda: (
            (rules(one, "nat", "FLANNEL-POSTRTG"), rules(one, "filter", "FLANNEL-FWD")) == before
        ),
        timeout=REPAIR + 3.0,
        what="the same rules",
    )
    assert "-j FLANNEL-POSTRTG" in rules(one, "nat", "POSTROUTING")
    assert "-j FLANNEL-FWD" in rules(one, "filter", "FORWARD")


def test_a_foreign_drop_before_our_forward_rules_is_named_in_the_log(network: Cluster) -> None:
    one = network.nodes[0]
    one.namespace.run("iptables", "-I", "FORWARD", "-j", "REJECT")
    one.daemon.restart()
    one.daemon.wait_ready()
    assert "a foreign rule stops pod traffic" in one.daemon.log_tail(40)


def test_a_peers_mac_and_address_changed_while_we_were_down_are_followed(
    network: Cluster,
) -> None:
    one, two = network.nodes
    one.daemon.stop()
    two.daemon.stop()
    two.namespace.ip("link set flannel.1 address 0e:00:00:00:00:77")
    readdress(two, IPv4Address("198.18.0.77"))
    two.daemon.start()
    two.daemon.wait_ready()
    one.daemon.start()
    one.daemon.wait_ready()
    assert subnet_of(two) in peer_routes(one)
    entry = one.namespace.run("bridge", "fdb", "show", "dev", "flannel.1").stdout
    assert "0e:00:00:00:00:77 dst 198.18.0.77 " in entry
    assert ping(one.pods[0].namespace, two.pods[0].address) is not None


def test_stale_state_of_a_peer_that_went_while_we_were_down_is_removed(network: Cluster) -> None:
    one, two = network.nodes
    one.daemon.stop()
    two.daemon.stop()
    network.etcd.delete(lease_key(two))
    assert peer_routes(one) == {subnet_of(two)}
    one.daemon.start()
    one.daemon.wait_ready()
    assert peer_routes(one) == set()
    left = one.namespace.run("bridge", "fdb", "show", "dev", "flannel.1").stdout
    assert str(two.address) not in left


def test_uplink_mtu_changed_is_followed_by_device_and_subnet_env(network: Cluster) -> None:
    one = network.nodes[0]
    one.namespace.ip("link set eth0 mtu 1400")
    wait_until(
        lambda: "FLANNEL_MTU=1350\n" in one.daemon.subnet_file.read_text(),
        timeout=REPAIR + 2.0,
        what="subnet.env follows",
    )
    link = overlay_link(one)
    assert link is not None
    assert link["mtu"] == 1350


def test_uplink_address_changed_is_published_and_peers_follow(network: Cluster) -> None:
    one, two = network.nodes
    moved = IPv4Address("198.18.0.88")
    readdress(one, moved)
    wait_until(
        lambda: json.loads(network.etcd.get(lease_key(one)) or "{}").get("PublicIP") == str(moved),
        timeout=10,
        what="the lease names the new address",
    )
    assert ping(two.pods[0].namespace, one.pods[0].address, timeout=10) is not None
    assert ping(one.pods[0].namespace, two.pods[0].address, timeout=10) is not None
    subnet = subnet_of(one)
    one.daemon.restart()
    one.daemon.wait_ready()
    assert f"FLANNEL_SUBNET={one.pod_subnet().gateway}" in one.daemon.subnet_file.read_text()
    assert subnet == subnet_of(one)
