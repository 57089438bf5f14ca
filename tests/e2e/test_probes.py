"""Daemons that ask each other: who answers, what is lost in which direction, and who says so."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import IPv4Network

import pytest
from backend_cases import Case
from kersey_control.status_socket import ask_peers, ask_status
from kersey_control.told import ToldReach
from operator_command import asked, asked_json
from overlay_view import SUBNETS, overlay_link, ready, subnet_of
from prometheus_client.parser import text_string_to_metric_families
from testbed import Backend, Cluster, Node, wait_until
from testbed.health import http_get
from testbed.vtep import make_vtep

PROBE_PORT, METRICS_PORT = 8475, 9475
OPTIONS = ("--probe-interval=1", f"--metrics-port={METRICS_PORT}")
QUIETLY = ("--probe=false",)
FLANNELS = IPv4Network("10.244.253.0/24")
PATIENCE = 40.0


@pytest.fixture(scope="module")
def network(module_cluster: Cluster) -> Cluster:
    """Give a module's tests two nodes that ask each other every second."""
    return ready(module_cluster, *OPTIONS, nodes=2)


def reach(node: Node, other: Node) -> ToldReach:
    """Return what a node's probes know of another one; by the socket, as it is asked often."""
    peers = {each.subnet: each for each in ask_peers(node.state_dir)}
    known = peers.get(subnet_of(other))
    return (known and known.reach) or ToldReach()


def wait_for(node: Node, other: Node, **expected: object) -> ToldReach:
    """Return what a node knows of another once it is this."""

    def matching() -> ToldReach | None:
        known = reach(node, other)
        is_so = all(getattr(known, name) == value for name, value in expected.items())
        return known if is_so else None

    what = f"{node.name} knows of {other.name}: {expected}"
    found = wait_until(matching, timeout=PATIENCE, what=what)
    assert found is not None
    return found


def wait_well(network: Cluster) -> None:
    one, two = network.nodes[:2]
    for node, other in ((one, two), (two, one)):
        wait_for(node, other, answering="answers", means="probe")


CASES = [
    Case(Backend("vxlan", direct_routing=True), "netlink"),
    Case(Backend("udp"), "bpf"),  # where programs put even the node's own packets into the tunnel
    Case(Backend("ipip"), "netlink"),
    Case(Backend("host-gw"), "netlink"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_peers_of_every_backend_answer(cluster: Cluster, case: Case) -> None:
    options = ("--probe-interval=1", f"--datapath={case.datapath}")
    one, two = ready(cluster, *options, nodes=2, pods=0, config=case.backend.network_config).nodes
    for node, other in ((one, two), (two, one)):
        found = wait_for(node, other, answering="answers", loss_out=0.0, loss_in=0.0)
        inside = str(IPv4Network(subnet_of(other))[0])
        assert found.asked == (str(other.address) if case.backend.type == "host-gw" else inside)
        assert found.means == "probe"
        assert 0 < (found.round_trip_seconds or 0) < 1
        assert (found.loss or 0) < 1  # the first question may have come before the other was ready
        assert "\nwarning" not in asked(node, "status").stdout
    assert asked(one, "peers").returncode == 0


@contextmanager
def dropped(node: Node, rule: str, *, hook: str = "input") -> Iterator[None]:
    """Have a node's packet filter drop what a rule matches."""
    chain = f"add chain inet lost c {{ type filter hook {hook} priority 0; }}"
    for command in ("add table inet lost", chain, f"add rule inet lost c {rule} drop"):
        node.namespace.run("nft", command)
    try:
        yield
    finally:
        node.namespace.run("nft", "delete table inet lost")


def lost_on_arrival(network: Cluster) -> AbstractContextManager[None]:
    return dropped(network.nodes[1], "udp dport 8472")


def lost_on_leaving(network: Cluster) -> AbstractContextManager[None]:
    return dropped(network.nodes[0], "udp dport 8472", hook="output")


@pytest.mark.parametrize("plant", [lost_on_arrival, lost_on_leaving])
def test_one_way_loss_is_named_at_both_ends(
    network: Cluster, plant: Callable[[Cluster], AbstractContextManager[None]]
) -> None:
    wait_well(network)
    one, two = network.nodes[:2]
    with plant(network):
        wait_for(one, two, answering="silent", one_way="out", loss_in=0.0)
        wait_for(two, one, answering="silent", one_way="in", loss_out=0.0)
        for node, other, words in ((one, two, ("to", "from")), (two, one, ("from", "to"))):
            there, back = words
            line = (
                f"warning    one way: packets {there} {subnet_of(other)} ({other.address}) are"
                f" lost, those {back} it arrive: is UDP port 8472 {there} it blocked by a firewall?"
            )
            assert line in asked(node, "status").stdout.splitlines()
            assert asked(node, "peers", check=False).returncode == 1
            assert samples(node)["kersey_peers_one_way"] == 1
        for node, other, there, flags in ((one, two, "to", ()), (two, one, "from", QUIETLY)):
            found = doctors_finding(node, *flags)
            assert found["severity"] == "error"
            assert re.match(rf"packets {there} .*{other.address}.* are lost, those", found["what"])
            assert "udp dport 8472 accept" in found["fix"]
    wait_well(network)
    assert "warning" not in asked(one, "status").stdout


def doctors_finding(node: Node, *flags: str) -> dict[str, str]:
    """Return what the doctor's check of reach found."""
    told = asked_json(node, "doctor", *flags, check=False)
    (found,) = (each for each in told["findings"] if each["check"] == "reach")
    finding: dict[str, str] = found
    return finding


def samples(node: Node) -> dict[str, float]:
    """Return the node's metrics that have no labels, or those of a peer or a reason."""
    answer = http_get(node.namespace, port=METRICS_PORT, path="/metrics")
    assert answer is not None
    return {
        " ".join((found.name, *found.labels.values())): found.value
        for family in text_string_to_metric_families(answer[1])
        for found in family.samples
        if found.labels.keys() <= {"peer", "reason", "direction"}
    }


def test_a_dead_peer_is_named_and_its_return_noticed(network: Cluster) -> None:
    wait_well(network)
    one, two = network.nodes[:2]
    network.switch.ip(f"link set {two.name} down")
    try:
        wait_for(one, two, answering="silent", one_way=None)
        wait_until(
            lambda: samples(one)[f"kersey_peer_loss_ratio {subnet_of(two)} both"] > 0.2,
            timeout=PATIENCE,
            what="the loss of whole round trips",
        )
        status = asked(one, "status").stdout.splitlines()
        name = f"{subnet_of(two)} ({two.address})"
        assert f"warning    silent: 1 of 1 peers programmed, no answer: {name}" in status
        found = samples(one)
        assert (found["kersey_peers_silent"], found["kersey_peers_one_way"]) == (1, 0)
        assert found[f"kersey_peer_answering {subnet_of(two)}"] == 0
        assert re.search(r"peers do not answer .*count=1", one.daemon.log_tail(5))
    finally:
        network.switch.ip(f"link set {two.name} up")
    wait_well(network)
    found = samples(one)
    assert (found["kersey_peers_silent"], found["kersey_peers_one_way"]) == (0, 0)
    assert found[f"kersey_peer_answering {subnet_of(two)}"] == 1
    assert 0 < found[f"kersey_peer_round_trip_seconds {subnet_of(two)}"] < 1
    assert found["kersey_probes_sent_total"] > 5


def test_peers_whose_probe_port_is_closed_answer_pings(network: Cluster) -> None:
    wait_well(network)
    one, two = network.nodes[:2]
    with dropped(two, f"udp dport {PROBE_PORT}"):
        found = wait_for(one, two, means="echo")
        assert (found.answering, found.loss_out, found.loss_in) == ("answers", None, None)
        row = next(
            line for line in asked(one, "peers").stdout.splitlines() if subnet_of(two) in line
        )
        assert f"{IPv4Network(subnet_of(two))[0]} ping  yes" in row
    wait_well(network)


def test_garbage_and_strangers_change_nothing(network: Cluster) -> None:
    wait_well(network)
    one, two = network.nodes[:2]
    before = samples(two)

    def shout() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for size in (0, 1, 44, 1400):
                for _ in range(200):
                    sender.sendto(bytes(size), (str(two.address), PROBE_PORT))

    def refused() -> float:
        for namespace in (one.pods[0].namespace, network.switch):  # again: sockets overflow
            namespace.call(shout)
        now, name = samples(two), "kersey_probes_refused_total other_port"
        return now[name] - before[name]

    wait_until(lambda: refused() > 400, timeout=PATIENCE, what="refused datagrams")
    assert len(ask_peers(two.state_dir)) == 1
    wait_well(network)


@contextmanager
def socket_of(node: Node) -> Iterator[socket.socket]:
    """Give a UDP socket of a node's namespace."""
    made = node.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with made:
        yield made


def test_a_restarted_or_killed_daemon_is_no_silence(network: Cluster) -> None:
    wait_well(network)
    one, two = network.nodes[:2]
    before = one.daemon.log.read_text().count("peers do not answer")
    two.daemon.kill()
    wait_for(one, two, means="echo", answering="answers")
    two.daemon.restart()
    two.daemon.wait_ready()
    wait_well(network)
    wait_for(one, two, answering="answers", loss_out=0.0, loss_in=0.0)
    assert one.daemon.log.read_text().count("peers do not answer") == before


def test_a_port_that_is_taken_is_named_and_taken_over_once_free(network: Cluster) -> None:
    wait_well(network)
    one, two = network.nodes[:2]
    one.daemon.stop()
    with socket_of(one) as holder:
        holder.bind(("", PROBE_PORT))
        one.daemon.restart()
        one.daemon.wait_ready()
        wait_until(
            lambda: ask_status(one.state_dir).probes_trouble, timeout=PATIENCE, what="trouble"
        )
        trouble = f"UDP port {PROBE_PORT}: Address already in use"
        assert f"warning    probes: peers are not asked whether they answer: {trouble}" in (
            asked(one, "status").stdout
        )
        assert trouble in asked(one, "doctor", "--probe=false", check=False).stdout
        assert reach(one, two) == ToldReach()
        assert "kersey_peers_silent" not in samples(one)
    wait_well(network)
    assert ask_status(one.state_dir).probes_trouble == ""


def test_a_node_of_flannel_is_pinged(network: Cluster) -> None:
    one = network.nodes[0]
    flannel = network.add_node()
    vtep = make_vtep(flannel, FLANNELS)
    network.etcd.put(SUBNETS + vtep.lease_key, vtep.lease_value)
    try:
        link = overlay_link(one)
        assert link is not None
        vtep.add_peer(subnet=IPv4Network(subnet_of(one)), address=one.address, mac=link["address"])
        found = wait_for(one, flannel, answering="answers", means="echo")
        assert (found.loss_out, found.loss_in) == (None, None)
        assert found.asked == str(FLANNELS[0])
    finally:
        network.etcd.delete(SUBNETS + vtep.lease_key)


def test_without_probes_nothing_is_sent_and_nothing_said(network: Cluster) -> None:
    one, two = network.nodes[:2]
    one.daemon.restart("--probe-interval=0", f"--metrics-port={METRICS_PORT}")
    one.daemon.wait_ready()
    assert reach(one, two) == ToldReach()
    assert not [name for name in samples(one) if re.search("probe|peers_(silent|one)", name)]
    line = next(line for line in asked(one, "peers").stdout.splitlines() if subnet_of(two) in line)
    assert line.split()[4:9] == ["-"] * 5
    one.daemon.restart(*OPTIONS)
    one.daemon.wait_ready()
    wait_well(network)
