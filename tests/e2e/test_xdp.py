"""The uplink's XDP program under real traffic, on veth in native mode: as without it."""

import socket
from contextlib import closing

import packets as p
import pytest
from fast_view import pins_of
from foreign_xdp import foreign_program
from kersey_loader.layout import Config
from kersey_loader.view import open_view
from operator_command import asked, asked_json
from overlay_view import ip_json, ready
from testbed import Backend, Cluster, Node, transfer, udp_probe, wait_until

BACKENDS = [Backend(name) for name in ("vxlan", "udp", "ipip", "host-gw")]
STRANGER = "198.18.77.7"


def counted(node: Node, program: str, verdict: str) -> int:
    """Return how often a program came to a verdict, as the daemon tells."""
    verdicts = asked_json(node, "status")["fast_path"]["verdicts"]
    return int(verdicts.get(program, {}).get(verdict, 0))


def xdp_of(node: Node) -> dict[str, str]:
    found: dict[str, str] = asked_json(node, "status")["fast_path"]["xdp"]
    return found


def on_uplink(node: Node) -> str | None:
    """Return the name of the XDP program on the uplink, as the kernel tells."""
    (link,) = ip_json(node, "link", "show", "dev", "eth0")
    name: str | None = link.get("xdp", {}).get("prog", {}).get("name")
    return name


def duties_told(node: Node) -> int:
    """Return what from_uplink knows of the XDP program; 0: it believes no frame's mark."""
    with open_view(pins_of(node)) as view:
        return int(Config.from_buffer_copy(view.maps["cfg"].lookup(bytes(4)) or b"").wire)


def send_forged(cluster: Cluster, node: Node, backend: Backend, *, count: int) -> None:
    """Have a machine on the link that is no node send tunnel packets to a node."""
    inner = p.ipv4(p.udp(b"forged", src=1, dst=2), src="10.244.9.9", dst="10.244.1.2")
    frame = p.ethernet(inner, dst="0e:00:00:00:00:01", src="0e:00:00:00:00:02")
    bodies = {
        "vxlan": p.udp(p.vxlan(frame), src=50000, dst=8472),
        "udp": p.udp(inner, src=8285, dst=8285),
        "ipip": inner,
    }
    protocol = 4 if backend.type == "ipip" else socket.IPPROTO_UDP
    outer = p.ipv4(bodies[backend.type], src=STRANGER, dst=str(node.address), protocol=protocol)
    with closing(
        cluster.switch.call(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        )
    ) as raw:
        for _ in range(count):
            raw.sendto(outer, (str(node.address), 0))


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_native_xdp_carries_every_packet_and_survives_restarts(
    cluster: Cluster, backend: Backend
) -> None:
    is_direct = backend.type == "host-gw"
    options = ["--ip-masq", "--datapath=bpf", "--xdp=native", "--audit-interval=2"]
    if is_direct:
        options.append("--xdp-redirect")
    ready(cluster, *options, nodes=2, config=backend.network_config)
    one, two = cluster.nodes
    source, destination = cluster.pods
    if is_direct:
        # A redirected frame has lost that its checksum was left to the device.
        for namespace in (*(pod.namespace for pod in cluster.pods), one.namespace, two.namespace):
            namespace.run("ethtool", "-K", "eth0", "tx", "off")
        for pod in cluster.pods:
            pod.namespace.run("ethtool", "-K", "eth0", "gro", "on")
        for node in cluster.nodes:
            node.daemon.restart()
            node.daemon.wait_ready()
    for node in cluster.nodes:
        assert xdp_of(node)["mode"] == "native", xdp_of(node)
        assert on_uplink(node) == "wire"
        node.namespace.run("ethtool", "-K", "eth0", "gro", "on")  # as it is on a NIC
    verdict = "fast" if is_direct else "decapsulated"
    assert transfer(source.namespace, destination.namespace, destination.address, size=4 << 20)
    assert counted(two, "wire", verdict) > 1000
    if not is_direct:
        # GRO has merged what wire has opened.
        assert counted(two, "from_uplink", "fast") < counted(two, "wire", verdict) // 2
    with udp_probe(
        source.namespace, destination.namespace, destination.address, rate=1_000
    ) as probe:  # with XDP a veth queues 256 frames: a busy machine overruns that by itself
        probe.wait_flowing(1_000)
        before = counted(two, "wire", verdict)
        for node in (one, two):
            node.daemon.restart()
            node.daemon.wait_ready()
        two.daemon.kill()
        two.daemon.start(*options)
        two.daemon.wait_ready()
        probe.wait_flowing(1_000)
        report = probe.stop()
    assert report.lost == 0, (report.sent, report.lost, report.longest_gap)
    assert counted(two, "wire", verdict) - before > 1_000
    if not is_direct:
        before = counted(two, "wire", "unknown_node")
        send_forged(cluster, two, backend, count=50)
        assert counted(two, "wire", "unknown_node") - before == 50
    two.daemon.stop()
    assert on_uplink(two) == "wire"
    asked(two, "cleanup", "--cache-dir=")
    assert on_uplink(two) is None


def test_switching_modes_and_off_again(cluster: Cluster) -> None:
    backend = Backend("vxlan")
    ready(cluster, "--datapath=bpf", "--xdp=auto", nodes=2)
    one = cluster.nodes[0]
    assert xdp_of(one)["mode"] == "off"
    assert "TSO" in xdp_of(one)["reason"]
    assert on_uplink(one) is None
    one.daemon.restart("--datapath=bpf", "--xdp=native")
    one.daemon.wait_ready()
    (link,) = ip_json(one, "link", "show", "dev", "eth0")
    assert link["xdp"]["mode"] == 1
    one.daemon.restart("--datapath=bpf", "--xdp=generic")
    one.daemon.wait_ready()
    (link,) = ip_json(one, "link", "show", "dev", "eth0")
    assert link["xdp"]["mode"] == 2
    send_forged(cluster, one, backend, count=10)
    assert counted(one, "wire", "unknown_node") == 10
    source, destination = cluster.pods[1], cluster.pods[0]
    assert transfer(source.namespace, destination.namespace, destination.address, size=4 << 20)
    assert counted(one, "wire", "decapsulated") == 0
    one.daemon.restart("--datapath=bpf", "--xdp=off")
    one.daemon.wait_ready()
    assert on_uplink(one) is None
    assert asked_json(one, "status")["fast_path"]["xdp"] is None
    # Long before --audit-interval.
    wait_until(
        lambda: not duties_told(one), timeout=20, what="frames with its mark believed no more"
    )


@pytest.mark.parametrize("name", ["xdp_dispatcher", "somebody"])
def test_somebody_elses_program_stays_and_ours_comes_once_it_is_gone(
    cluster: Cluster, name: str
) -> None:
    cluster.start_etcd()
    node = cluster.add_node()
    with foreign_program(node, name):
        node.daemon.start("--datapath=bpf", "--xdp=native", "--audit-interval=1")
        node.daemon.wait_ready()
        assert xdp_of(node)["mode"] == "off"
        assert name in xdp_of(node)["reason"]
        assert ("libxdp" in xdp_of(node)["reason"]) == (name == "xdp_dispatcher")
        assert on_uplink(node) == name
    wait_until(lambda: on_uplink(node) == "wire", timeout=10, what="ours attached")
    wait_until(lambda: xdp_of(node)["mode"] == "native", timeout=5, what="told so")
