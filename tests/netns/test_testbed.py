"""The testbed itself keeps its promises; no daemon of ours is involved."""

import dataclasses
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from testbed import (
    Backend,
    Capture,
    Cluster,
    ClusterError,
    Form,
    Frame,
    Node,
    Vtep,
    WireFormat,
    WireWatch,
    icmp_probe,
    make_vtep,
    ordered_pairs,
    ping,
    reachability,
    tally,
    transfer,
    udp_probe,
    wait_until,
)
from testbed.addresses import OUTSIDE, Link
from testbed.record import Record, leave_running


def subnet_of(node: Node) -> IPv4Network:
    return IPv4Network(f"10.244.{node.index}.0/24")


def hand_made_mesh(
    cluster: Cluster, *, nodes: int, pods: int, routed: bool = False, links: int = 1
) -> list[Vtep]:
    added = [cluster.add_node(link=1 + turn % links) for turn in range(nodes)]
    vteps = [make_vtep(node, subnet_of(node)) for node in added]
    for ours in vteps:
        for peer in vteps:
            if peer is not ours:
                ours.add_peer(subnet=peer.subnet, address=peer.node.address, mac=peer.mac)
        for _ in range(pods):
            ours.node.add_pod(routed=routed)
    return vteps


@pytest.fixture(scope="module")
def mesh(module_cluster: Cluster) -> Cluster:
    hand_made_mesh(module_cluster, nodes=3, pods=2)
    return module_cluster


def test_every_pod_reaches_every_pod_through_hand_made_tunnels(mesh: Cluster) -> None:
    results = reachability(ordered_pairs(mesh.pods))
    assert len(results) == 30
    assert [result for result in results if result.rtt_ms is None] == []


def test_reachability_names_exactly_the_pairs_that_a_lost_route_cuts(cluster: Cluster) -> None:
    first, second = hand_made_mesh(cluster, nodes=2, pods=1)
    first.remove_peer(subnet=second.subnet, address=second.node.address, mac=second.mac)
    third = first.node.add_pod()
    results = reachability(ordered_pairs(cluster.pods), timeout=1)
    answered = {(r.source, r.destination) for r in results if r.rtt_ms is not None}
    local = first.node.pods[0]
    assert answered == {(local, third), (third, local)}


def test_pods_of_different_nodes_talk_in_vxlan_with_the_tunnel_mtu(mesh: Cluster) -> None:
    near, far = mesh.nodes[0].pods[0], mesh.nodes[1].pods[0]
    with Capture(mesh.nodes[0].namespace, "eth0") as capture:
        whole = ["-M", "do", "-s", str(1450 - 28)]
        assert ping(near.namespace, far.address, *whole) is not None
        wait_until(lambda: vxlan_frames(capture.frames), timeout=5, what="a VXLAN frame")
    assert {len(frame.raw) for frame in vxlan_frames(capture.frames)} == {1514}
    assert {frame.outgoing for frame in vxlan_frames(capture.frames)} == {True, False}
    too_large = ["-M", "do", "-s", str(1451 - 28)]
    assert ping(near.namespace, far.address, *too_large, timeout=1) is None


def vxlan_frames(frames: list[Frame]) -> list[Frame]:
    ports = (8472).to_bytes(2)
    return [f for f in frames if f.raw[12:14] == b"\x08\x00" and f.raw[36:38] == ports]


def test_nodes_have_a_default_route_to_the_world_outside(mesh: Cluster) -> None:
    assert ping(mesh.nodes[0].namespace, OUTSIDE) is not None


def test_routed_pods_reach_and_are_reached(cluster: Cluster) -> None:
    hand_made_mesh(cluster, nodes=2, pods=2, routed=True)
    results = reachability(ordered_pairs(cluster.pods))
    assert len(results) == 12
    assert [result for result in results if result.rtt_ms is None] == []
    assert ping(cluster.nodes[0].namespace, cluster.nodes[0].pods[0].address) is not None


@pytest.fixture(scope="module")
def two_links() -> Iterator[Cluster]:
    with Cluster(prefix="ktl-") as cluster:
        hand_made_mesh(cluster, nodes=3, pods=1, links=2)
        yield cluster


def test_nodes_of_two_links_are_joined_by_a_router(two_links: Cluster) -> None:
    first, second, third = two_links.nodes
    assert [str(node.address) for node in two_links.nodes] == [
        "198.18.0.11",
        "198.18.1.12",
        "198.18.0.13",
    ]
    assert ttl_of_answer(first, second) == 63
    assert ttl_of_answer(first, third) == 64
    assert ping(second.namespace, OUTSIDE) is not None
    results = reachability(ordered_pairs(two_links.pods))
    assert [result for result in results if result.rtt_ms is None] == []


def ttl_of_answer(source: Node, destination: Node) -> int:
    done = source.namespace.run("ping", "-n", "-c", "1", "-w", "5", str(destination.address))
    return int(done.stdout.split("ttl=")[1].split()[0])


def test_the_router_knows_no_pods(two_links: Cluster) -> None:
    assert "10.244." not in two_links.switch.run("ip", "route").stdout


def test_a_cluster_of_one_link_does_not_route(mesh: Cluster) -> None:
    forwarding = mesh.switch.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout
    assert forwarding == "0\n"


def test_a_node_reaches_its_neighbour_through_the_router_until_told_otherwise(
    two_links: Cluster,
) -> None:
    first, _, third = two_links.nodes
    first.reach_through_router(third)
    assert ttl_of_answer(third, first) == 63
    assert ttl_of_answer(third, first) == 63  # no redirect has undone it
    first.reach_as_before(third)
    assert ttl_of_answer(third, first) == 64


def test_a_node_takes_another_address_of_its_link(two_links: Cluster) -> None:
    second, before = two_links.nodes[1], two_links.nodes[1].address
    second.change_address(Link(2).network[99])
    assert str(second.address) == "198.18.1.99"
    assert ttl_of_answer(two_links.nodes[0], second) == 63
    assert ping(second.namespace, OUTSIDE) is not None
    second.change_address(before)
    assert ttl_of_answer(two_links.nodes[0], second) == 63


def test_every_pod_packet_on_the_wire_is_seen_once_and_in_its_form(two_links: Cluster) -> None:
    one, two, _ = two_links.pods
    with WireWatch(two_links.nodes) as watch:
        with udp_probe(one.namespace, two.namespace, two.address) as probe:
            probe.wait_flowing(50)
        report = probe.stop()
        sent = watch.stop()
    found = tally(sent, Backend("vxlan"))
    assert found.counts == {Form.VXLAN: 2 * report.sent}
    assert str(found) == (
        f"on the wire: {2 * report.sent:,} vxlan packets (VNI 1, port 8472), 0 plain"
    )
    assert found.complaint is None
    assert [len(sent[node]) for node in two_links.nodes] == [report.sent, report.sent, 0]


def test_packets_in_a_form_that_the_backend_does_not_use_are_named(two_links: Cluster) -> None:
    one, two, three = two_links.pods
    with WireWatch(two_links.nodes) as watch:
        for destination in (two, three):
            assert ping(one.namespace, destination.address) is not None
        sent = watch.stop()
    direct = tally(sent, Backend("vxlan", direct_routing=True))
    assert set(direct.unexpected) == {
        f"vxlan packet {one.address} > {three.address} from node1 to node3",
        f"vxlan packet {three.address} > {one.address} from node3 to node1",
    }
    assert len(tally(sent, Backend("udp")).unexpected) == 4


def test_a_packet_for_an_unknown_node_is_seen_in_plain(two_links: Cluster) -> None:
    one, first = two_links.pods[0], two_links.nodes[0]
    with WireWatch([first]) as watch:
        one.namespace.run("ping", "-c", "1", "-W", "1", "10.244.99.2", check=False)
        sent = watch.stop()
    found = tally(sent, Backend("vxlan"))
    assert (found.counts[Form.PLAIN], found.counts[Form.VXLAN]) == (1, 0)
    assert found.unexpected == (
        f"plain packet {one.address} > 10.244.99.2 from node1 to no node's pods",
    )


def test_a_transfer_tells_whether_all_bytes_arrived(two_links: Cluster) -> None:
    one, two, _ = two_links.pods
    assert transfer(one.namespace, two.namespace, two.address, size=1 << 20)
    with pytest.raises(OSError, match="refused"):
        transfer(one.namespace, two_links.pods[2].namespace, two.address, size=10)


def test_hand_made_routes_carry_plain_packets(cluster: Cluster) -> None:
    for _ in range(2):
        node = cluster.add_node()
        make_vtep(node, subnet_of(node))
        node.add_pod()
    one, two = cluster.nodes
    for near, far in ((one, two), (two, one)):
        near.namespace.ip(f"route add {subnet_of(far)} via {far.address}")
    with Capture(two.namespace, "eth0") as capture:
        assert ping(one.pods[0].namespace, two.pods[0].address) is not None
        frames = capture.stop()
    packets = WireFormat().packets(frames)
    assert [(p.form, p.inner.ttl, p.outgoing) for p in packets] == [
        (Form.PLAIN, 63, False),
        (Form.PLAIN, 63, True),
    ]


def test_a_new_pod_takes_the_address_of_a_deleted_one_at_once(mesh: Cluster) -> None:
    node, caller = mesh.nodes[2], mesh.nodes[0].pods[0]
    gone = node.add_pod()
    assert ping(caller.namespace, gone.address) is not None
    node.remove_pod(gone)
    assert ping(caller.namespace, gone.address, timeout=1) is None
    fresh = node.add_pod(address=gone.address)
    assert ping(caller.namespace, fresh.address) is not None
    node.remove_pod(fresh)


def test_udp_probe_loses_nothing_at_ten_thousand_packets_a_second(mesh: Cluster) -> None:
    near, far = mesh.nodes[0].pods[0], mesh.nodes[1].pods[0]
    with udp_probe(near.namespace, far.namespace, far.address, rate=10_000) as probe:
        wait_until(lambda: probe.sent >= 20_000, timeout=30, what="20,000 packets sent")
    report = probe.stop()
    assert report.lost == 0
    assert report.duplicates == 0
    assert report.sent == report.arrived == report.returned >= 20_000
    assert 0 < report.longest_gap < 1


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_probe_counts_what_an_interruption_loses(mesh: Cluster, protocol: str) -> None:
    near, far = mesh.nodes[0].pods[0], mesh.nodes[1].pods[0]
    probe = (
        udp_probe(near.namespace, far.namespace, far.address)
        if protocol == "udp"
        else icmp_probe(near.namespace, far.address, rate=1000)
    )
    with probe:
        probe.wait_flowing()
        mesh.switch.ip("link set node2 down")
        began, sent = time.monotonic(), probe.sent
        wait_until(lambda: probe.sent >= sent + 200, timeout=10, what="200 packets into nothing")
        interrupted = time.monotonic() - began
        mesh.switch.ip("link set node2 up")
        probe.wait_flowing()
    report = probe.stop()
    assert report.lost == report.sent - report.returned >= 199
    assert report.missing == tuple(range(report.missing[0], report.missing[0] + report.lost))
    assert report.longest_gap >= interrupted * 0.9
    assert report.refused == 0


def test_probe_counts_packets_without_any_route_as_refused(mesh: Cluster) -> None:
    near, far = mesh.nodes[0].pods[1], mesh.nodes[1].pods[0]
    near.namespace.ip("route del default")
    with udp_probe(near.namespace, far.namespace, far.address) as probe:
        wait_until(lambda: probe.sent >= 10, timeout=5, what="10 packets refused")
    near.namespace.ip(f"route add default via {mesh.nodes[0].pod_subnet().gateway.ip}")
    report = probe.stop()
    assert report.refused == report.lost == report.sent
    assert report.arrived == 0


def test_etcd_is_read_and_written_and_keeps_its_data_over_a_crash(cluster: Cluster) -> None:
    cluster.start_etcd()
    etcd = cluster.etcd
    assert '"Network": "10.244.0.0/16"' in str(etcd.get("/coreos.com/network/config"))
    etcd.put_many({f"/many/{i}": f'{{"PublicIP":"198.18.1.{i}"}}' for i in range(1500)})
    assert len(etcd.get_prefix("/many/")) == 1500
    etcd.kill()
    assert not etcd.is_running
    etcd.start()
    assert etcd.get("/many/7") == '{"PublicIP":"198.18.1.7"}'
    assert etcd.delete("/many/7")
    assert not etcd.delete("/many/7")
    assert etcd.get("/many/7") is None


def test_key_on_an_etcd_lease_goes_when_the_lease_is_revoked(cluster: Cluster) -> None:
    cluster.start_etcd()
    lease = cluster.etcd.grant(60)
    cluster.etcd.put("/held", "x", lease=lease)
    cluster.etcd.put("/free", "x")
    assert cluster.etcd.lease_of("/held") == lease
    assert cluster.etcd.lease_of("/free") is None
    cluster.etcd.revoke(lease)
    assert cluster.etcd.get("/held") is None


def test_compaction_makes_the_past_unreadable(cluster: Cluster) -> None:
    cluster.start_etcd()
    past = cluster.etcd.revision()
    cluster.etcd.put("/a", "1")
    cluster.etcd.compact()
    with pytest.raises(ClusterError, match="compacted"):
        cluster.etcd.etcdctl("get", "/a", f"--rev={past}")


def test_paused_etcd_answers_nobody_and_is_stopped_all_the_same(cluster: Cluster) -> None:
    cluster.start_etcd()
    cluster.etcd.pause()
    with pytest.raises(ClusterError):
        cluster.etcd.etcdctl("--command-timeout=1s", "get", "/a")
    cluster.etcd.resume()
    assert cluster.etcd.get("/a") is None
    cluster.etcd.pause()
    cluster.etcd.stop()
    assert not cluster.etcd.is_running


@pytest.fixture
def with_program(tmp_path: Path) -> Iterator[Callable[[str], Cluster]]:
    """Make clusters whose daemon is a shell script: what the testbed does with a daemon's end."""
    made: list[Cluster] = []

    def make(script: str) -> Cluster:
        program = tmp_path / "kerseyd"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        made.append(Cluster(prefix="ktp-", kerseyd=program))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


WRITE_SUBNET = r"""
for a; do case $a in --subnet-file=*) file=${a#*=};; esac; done
{
    echo FLANNEL_NETWORK=10.244.0.0/16
    echo FLANNEL_SUBNET=10.244.7.1/24
    echo FLANNEL_MTU=1450
} > "$file.new"
mv "$file.new" "$file"
echo "started $*"
exec sleep 1000
"""


def test_pods_get_address_gateway_and_mtu_from_the_daemons_subnet_file(
    with_program: Callable[[str], Cluster],
) -> None:
    cluster = with_program(WRITE_SUBNET)
    cluster.start(nodes=1, pods=2, options=["--datapath=netlink"])
    first, second = cluster.pods
    assert (str(first.address), str(second.address)) == ("10.244.7.2", "10.244.7.3")
    assert first.namespace.run("cat", "/sys/class/net/eth0/mtu").stdout == "1450\n"
    assert cluster.nodes[0].namespace.run("cat", "/sys/class/net/cni0/mtu").stdout == "1450\n"
    assert ping(first.namespace, cluster.nodes[0].pod_subnet().gateway.ip) is not None
    log = cluster.nodes[0].daemon.log_tail()
    assert "--node-id=node1" in log
    assert "--datapath=netlink" in log


def test_daemon_is_crashed_and_restarted_with_the_options_it_had(
    with_program: Callable[[str], Cluster],
) -> None:
    cluster = with_program(WRITE_SUBNET)
    cluster.start(nodes=1, pods=0, options=["--own"])
    daemon = cluster.nodes[0].daemon
    first = daemon.process
    daemon.wait_subnet()
    wait_until(lambda: "--own" in daemon.log_tail(), timeout=5, what="the start logged")
    daemon.kill()
    assert first.exit_code == -signal.SIGKILL
    daemon.restart()
    assert daemon.is_running
    assert daemon.process.pid != first.pid
    wait_until(lambda: daemon.log_tail().count("--own") == 2, timeout=5, what="two starts logged")


def test_daemon_that_ends_before_it_has_a_subnet_is_reported_with_its_log(
    with_program: Callable[[str], Cluster],
) -> None:
    cluster = with_program("echo cannot go on; exit 3")
    with pytest.raises(ClusterError, match=r"ended with 3:\ncannot go on"):
        cluster.start(nodes=1, pods=1)


def test_close_leaves_no_namespace_process_or_file(with_program: Callable[[str], Cluster]) -> None:
    cluster = with_program(WRITE_SUBNET)
    cluster.start(nodes=2, pods=2)
    processes, state_dir = cluster.processes, cluster.state_dir
    assert len(processes) == 3
    assert len(cluster.namespaces) == 8
    cluster.close()
    cluster.close()
    assert [process for process in processes if process.is_running] == []
    assert [space.name for space in cluster.namespaces if space.exists] == []
    assert not state_dir.exists()


def test_one_failure_on_close_hides_no_other_step(with_program: Callable[[str], Cluster]) -> None:
    cluster = with_program(WRITE_SUBNET)
    cluster.start(nodes=1, pods=1)
    processes, state_dir = cluster.processes, cluster.state_dir
    cluster.nodes[0].pods[0].close = fail  # type: ignore[method-assign]  # a step that cannot work
    pod = cluster.pods[0]
    with pytest.raises(RuntimeError, match="no way"):
        cluster.close()
    pod.namespace.close()
    assert [process for process in processes if process.is_running] == []
    assert [space.name for space in cluster.namespaces if space.exists] == []
    assert not state_dir.exists()


def fail() -> None:
    raise RuntimeError("no way")


def test_two_testbeds_do_not_see_each_other(cluster: Cluster, mesh: Cluster) -> None:
    hand_made_mesh(cluster, nodes=2, pods=1)
    before = {space.name for space in mesh.namespaces}
    assert before.isdisjoint(space.name for space in cluster.namespaces)
    cluster.close()
    assert all(space.exists for space in mesh.namespaces)
    assert ping(mesh.pods[0].namespace, mesh.pods[-1].address) is not None


def test_testbed_left_running_is_found_and_removed_by_its_record(
    tmp_path: Path, with_program: Callable[[str], Cluster]
) -> None:
    kerseyd = with_program(WRITE_SUBNET).kerseyd
    with Cluster(prefix="ktr-", kerseyd=kerseyd, state_dir=tmp_path / "state") as cluster:
        cluster.start(nodes=2, pods=1)
        processes = cluster.processes
        leave_running(cluster, backend="vxlan")
    record = Record.load(tmp_path / "state")
    assert [process.is_running for process in record.processes] == [True] * 3
    assert record.namespace_of("pod2-1") == "ktr-pod2-1"
    assert record.nodes[1].pods == {"pod2-1": "10.244.7.2"}
    cluster.etcd.pause()
    record.tear_down()
    assert [process.is_running for process in record.processes] == [False] * 3
    assert [process.is_running for process in processes] == [False] * 3
    assert [space.name for space in cluster.namespaces if space.exists] == []
    assert not (tmp_path / "state").exists()
    with pytest.raises(ClusterError, match="no testbed is up"):
        Record.load(tmp_path / "state")


def test_record_never_ends_a_process_that_took_over_a_pid(
    with_program: Callable[[str], Cluster],
) -> None:
    cluster = with_program(WRITE_SUBNET)
    cluster.start(nodes=1, pods=0)
    process = Record.of(cluster, backend="vxlan").processes[0]
    dataclasses.replace(process, started=process.started - 1).end()
    assert cluster.nodes[0].daemon.is_running
    process.end()
    assert not cluster.nodes[0].daemon.is_running


def test_a_capture_under_steady_traffic_has_all_that_passed_before_its_end(mesh: Cluster) -> None:
    near, far = mesh.nodes[0].pods[0], mesh.nodes[1].pods[0]
    flood = near.namespace.command("ping", "-f", "-q", "-c", "1000", str(far.address))
    with (
        udp_probe(near.namespace, far.namespace, far.address),
        Capture(near.namespace, "eth0") as capture,
        subprocess.Popen(flood, stdout=subprocess.DEVNULL) as pings,
    ):
        while pings.poll() is None:
            sum(range(5_000_000))  # no other thread runs meanwhile: frames wait to be read
        frames = capture.stop()
    echoes = [frame for frame in frames if len(frame.raw) == 14 + 20 + 8 + 56]
    assert len(echoes) >= 2000
    assert capture.stop() == frames
