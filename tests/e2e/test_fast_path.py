"""The fast path under rules, faults and restarts: as without it, only faster."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from threading import Thread

import pytest
from fast_view import Counters, fast_path_of, pins_of
from kersey_loader.layout import Program, Verdict
from kersey_loader.tcx import remove_link
from overlay_view import ip_json, lease_key, overlay_link, peer_routes, ready, subnet_of
from testbed import Cluster, Namespace, Node, Pod, Probe, ping, udp_probe, wait_until

SERVICE = IPv4Address("10.96.0.10")
MAX_AGE = 5
"""Seconds for which a direction is fast before the stack has to see it again."""

FAST_SENT = (Program.FROM_POD, Verdict.FAST)
FAST_RECEIVED = (Program.FROM_UPLINK, Verdict.FAST)


@pytest.fixture
def fast_network(cluster: Cluster) -> Cluster:
    """Give a test two nodes with one pod each, whose fast path must work."""
    return ready(cluster, "--ip-masq", "--datapath=bpf", nodes=2)


def iptables(node: Node, *rules: str) -> None:
    for rule in rules:
        node.namespace.run("iptables", "-w", *rule.split())


@contextmanager
def tcp_echo(namespace: Namespace, port: int = 7) -> Iterator[None]:
    """Echo every connection in `namespace` until its client closes it."""

    def listen() -> socket.socket:
        made = socket.create_server(("", port))
        made.settimeout(0.2)
        return made

    listener, connections = namespace.call(listen), []

    def serve() -> None:
        while listener.fileno() >= 0:
            try:
                connection, _ = listener.accept()
            except (TimeoutError, OSError):
                continue
            thread = Thread(target=echo, args=(connection,), daemon=True)
            thread.start()
            connections.append(thread)

    acceptor = Thread(target=serve, daemon=True)
    acceptor.start()
    try:
        yield
    finally:
        listener.close()
        acceptor.join()
        for thread in connections:
            thread.join(5)


def echo(connection: socket.socket) -> None:
    with connection:
        connection.settimeout(30)
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            pass


def dial(namespace: Namespace, address: IPv4Address, port: int = 7) -> socket.socket:
    return namespace.call(lambda: socket.create_connection((str(address), port), timeout=5))


def transact(connection: socket.socket, times: int, size: int = 100) -> None:
    """Send and have echoed `times` messages; raises if one is lost or wrong."""
    for number in range(times):
        message = number.to_bytes(4) * (size // 4)
        connection.sendall(message)
        received = b""
        while len(received) < len(message):
            part = connection.recv(65536)
            assert part, "the connection was closed"
            received += part
        assert received == message


def conntrack(node: Node, *arguments: str) -> str:
    return node.namespace.run("conntrack", "-L", *arguments).stdout


def test_tcp_and_udp_between_pods_take_the_fast_path(fast_network: Cluster) -> None:
    (one, two), (source, destination) = fast_network.nodes, fast_network.pods
    counters = Counters(one)
    with tcp_echo(destination.namespace), dial(source.namespace, destination.address) as tcp:
        transact(tcp, 200)
    assert counters(*FAST_SENT) > 180, counters.changed
    assert counters(*FAST_RECEIVED) > 180, counters.changed
    counters = Counters(two)
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=500) as probe:
        probe.wait_flowing(200)
        report = probe.stop()
    assert report.lost == 0
    assert counters(*FAST_SENT) > 180, counters.changed


def test_pings_and_first_packets_stay_in_the_stack(fast_network: Cluster) -> None:
    counters = Counters(fast_network.nodes[0])
    source, destination = fast_network.pods
    assert ping(source.namespace, destination.address) is not None
    assert counters(*FAST_SENT) == 0, counters.changed


def test_a_large_transfer_arrives_whole_and_fast(fast_network: Cluster) -> None:
    source, destination = fast_network.pods
    counters = Counters(fast_network.nodes[0])
    with tcp_echo(destination.namespace), dial(source.namespace, destination.address) as tcp:
        transact(tcp, 20, size=1 << 20)
    assert counters(*FAST_SENT) > 100, counters.changed
    for pod in fast_network.pods:
        statistics = pod.namespace.run("cat", "/proc/net/snmp").stdout
        tcp_lines = [line.split() for line in statistics.splitlines() if line.startswith("Tcp:")]
        assert dict(zip(*tcp_lines, strict=True))["InCsumErrors"] == "0"


def service_rules(node: Node, backend: IPv4Address) -> None:
    """Put up what kube-proxy would: a service address, its masquerade mark, and INVALID drop."""
    iptables(
        node,
        f"-t nat -A PREROUTING -d {SERVICE} -p tcp --dport 80 -j DNAT --to {backend}:7",
        f"-t nat -A PREROUTING -d {SERVICE} -p udp --dport 80 -j DNAT --to {backend}:7",
        "-t nat -N KUBE-POSTROUTING",
        "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        "-t nat -I POSTROUTING -j KUBE-POSTROUTING",
        "-I FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )


def test_services_work_across_revalidation_beside_admitted_direct_connections(
    fast_network: Cluster,
) -> None:
    one, two = fast_network.nodes
    source, destination = fast_network.pods
    for node in (one, two):
        service_rules(node, destination.address)
    time.sleep(1.0)  # the flush that the daemon does on hearing of these rules
    counters = Counters(one)
    with (
        tcp_echo(destination.namespace),
        dial(source.namespace, SERVICE, 80) as service,
        dial(source.namespace, destination.address) as direct,
        udp_service(source, destination) as datagrams,
    ):
        ends = time.monotonic() + 13.0  # the limit of an admission is 5 s: two re-validations
        while time.monotonic() < ends:
            transact(service, 20)
            transact(direct, 20)
            datagrams(20)
            time.sleep(0.05)
    changed = counters.changed
    assert counters(*FAST_SENT) > 1000, changed
    assert counters(Program.FROM_POD, Verdict.STALE) >= 2, changed
    assert "INVALID" not in drops(one), drops(one)


@contextmanager
def udp_service(source: Pod, destination: Pod) -> Iterator[Callable[[int], None]]:
    """Yield a function that has datagrams to the service echoed."""

    def bound(port: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", port))
        made.settimeout(2)
        return made

    server = destination.namespace.call(lambda: bound(7))
    client = source.namespace.call(lambda: bound(0))

    def exchange(times: int) -> None:
        for number in range(times):
            client.sendto(number.to_bytes(4), (str(SERVICE), 80))
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)
            answer, origin = client.recvfrom(100)
            assert (int.from_bytes(answer), origin) == (number, (str(SERVICE), 80))

    with server, client:
        yield exchange


def drops(node: Node) -> str:
    """Return the FORWARD rules that dropped something."""
    listing = node.namespace.run("iptables", "-nvxL", "FORWARD").stdout.splitlines()
    return "\n".join(line for line in listing if re.match(r"\s+[1-9]\d*\s.*DROP", line))


def test_a_forbidden_pair_is_never_connected(fast_network: Cluster) -> None:
    one = fast_network.nodes[0]
    source, destination = fast_network.pods
    iptables(one, f"-I FORWARD -s {source.address} -d {destination.address} -j DROP")
    counters = Counters(one)
    with tcp_echo(destination.namespace), pytest.raises(TimeoutError):
        dial(source.namespace, destination.address)
    assert counters(*FAST_SENT) == 0, counters.changed


def test_a_rule_added_later_stops_an_admitted_flow(fast_network: Cluster) -> None:
    one = fast_network.nodes[0]
    source, destination = fast_network.pods
    counters = Counters(one)
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=200) as probe:
        probe.wait_flowing(100)
        assert counters(*FAST_SENT) > 50, counters.changed
        iptables(one, f"-I FORWARD -s {source.address} -d {destination.address} -j DROP")
        # At once, since the daemon hears of the rules; without it, within 5 seconds.
        wait_until(lambda: is_silent(probe), timeout=6, what="the flow is stopped")


@pytest.mark.parametrize("way", ["-s {0} -d {1}", "-s {1} -d {0}"], ids=["out", "in"])
def test_a_rule_that_nobody_tells_of_stops_an_admitted_flow_when_it_is_checked_again(
    fast_network: Cluster, requires: Callable[..., None], way: str
) -> None:
    requires("iptables-legacy")  # it sends no event
    one = fast_network.nodes[0]
    source, destination = fast_network.pods
    rule = way.format(source.address, destination.address)
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=200) as probe:
        counters = Counters(one)
        wait_until(lambda: counters(*FAST_SENT) > 100, timeout=5, what="the flow is fast")
        counters = Counters(one)
        one.namespace.run("iptables-legacy", "-w", "-I", "FORWARD", *rule.split(), "-j", "DROP")
        wait_until(lambda: is_silent(probe), timeout=MAX_AGE + 3, what="the flow is stopped")
    assert counters(Program.FROM_POD, Verdict.STALE) > 0, counters.changed
    assert counters(Program.FROM_POD, Verdict.FLUSHED) == 0, counters.changed


def is_silent(probe: Probe) -> bool:
    """Return whether nothing came back for the time of sixty packets."""
    before = probe.returned
    time.sleep(0.3)
    return probe.returned == before


def test_a_hostport_like_translation_works(fast_network: Cluster) -> None:
    one, two = fast_network.nodes
    source, destination = fast_network.pods
    iptables(
        two,
        f"-t nat -A PREROUTING -d {two.address} -p tcp --dport 8080"
        f" -j DNAT --to {destination.address}:7",
    )
    with tcp_echo(destination.namespace):
        for client in (source.namespace, one.namespace):
            with dial(client, two.address, 8080) as connection:
                transact(connection, 50)


def test_node_to_pod_pod_to_node_and_pods_of_one_node_work(fast_network: Cluster) -> None:
    one, two = fast_network.nodes
    neighbour = two.add_pod()
    source, destination = one.pods[0], two.pods[0]
    for server, clients, address in (
        (destination.namespace, (one, two, neighbour, source), destination.address),
        (two.namespace, (destination, source), two.address),
    ):
        with tcp_echo(server):
            for client in clients:
                with dial(client.namespace, address) as connection:
                    transact(connection, 50)


def test_finished_connections_leave_no_established_entry(fast_network: Cluster) -> None:
    one, two = fast_network.nodes
    source, destination = fast_network.pods
    with tcp_echo(destination.namespace):
        for _ in range(50):
            with dial(source.namespace, destination.address) as connection:
                transact(connection, 5)
    for node in (one, two):
        wait_until(
            partial(has_no_established, node), timeout=5, what="no connection is left established"
        )


def has_no_established(node: Node) -> bool:
    return "ESTABLISHED" not in conntrack(node, "-p", "tcp", "--dport", "7")


def test_a_pod_that_goes_is_replaced_by_a_new_one_with_its_address(
    fast_network: Cluster,
) -> None:
    two = fast_network.nodes[1]
    source, destination = fast_network.pods
    address = destination.address
    counters = Counters(fast_network.nodes[0])
    client = source.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with client:
        client.settimeout(1)
        for number in range(50):
            exchange(client, destination, number)
        assert counters(*FAST_SENT) > 30, counters.changed
        two.remove_pod(destination)
        replacement = two.add_pod(address=address)
        for number in range(50, 100):  # the very next packet of the flow must arrive
            exchange(client, replacement, number)


def exchange(client: socket.socket, server: Pod, number: int) -> None:
    """Have one datagram echoed; the server's socket is made anew, as after a pod's start."""

    def bound() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", 9000))
        made.settimeout(2)
        return made

    with server.namespace.call(bound) as listener:
        client.sendto(number.to_bytes(4), (str(server.address), 9000))
        data, sender = listener.recvfrom(100)
        assert int.from_bytes(data) == number
        listener.sendto(data, sender)
        assert int.from_bytes(client.recv(100)) == number


def detach_all(node: Node) -> int:
    """Take every program off its device, as an operator would; return how many."""
    links = list((pins_of(node) / "links").iterdir())
    for link in links:
        remove_link(link)
    return len(links)


def test_every_program_detached_by_hand_under_traffic_loses_nothing(
    fast_network: Cluster,
) -> None:
    one, two = fast_network.nodes
    source, destination = fast_network.pods
    with udp_probe(
        source.namespace, destination.namespace, destination.address, rate=2000
    ) as probe:
        probe.wait_flowing(500)
        for node in (one, two):
            assert detach_all(node) == 4
        probe.wait_flowing(500)
        report = probe.stop()
    assert report.lost == 0


def test_detached_programs_come_back_with_the_next_repair(fast_network: Cluster) -> None:
    one = fast_network.nodes[0]
    assert detach_all(one) == 4
    one.namespace.ip("nexthop flush")  # any damage leads to a repair of everything
    with fast_path_of(one) as datapath:
        wait_until(lambda: len(datapath.attachments()) == 4, timeout=5, what="programs back")


@pytest.mark.parametrize("how", ["restart", "kill", "changed program"])
def test_restart_and_upgrade_under_ten_thousand_packets_a_second_lose_nothing(
    fast_network: Cluster, how: str
) -> None:
    one, two = fast_network.nodes
    source, destination = fast_network.pods
    counters = Counters(one)
    with udp_probe(
        source.namespace, destination.namespace, destination.address, rate=10_000
    ) as probe:
        probe.wait_flowing(5_000)
        for node in (one, two):
            if how == "kill":
                node.daemon.kill()
                node.daemon.start("--ip-masq", "--datapath=bpf")
            elif how == "restart":
                node.daemon.restart()
            else:
                node.daemon.stop()
                for home in pins_of(node).glob("programs-*"):
                    for pin in home.iterdir():
                        pin.unlink()
                    home.rmdir()
                node.daemon.start("--ip-masq", "--datapath=bpf")
            node.daemon.wait_ready()
        probe.wait_flowing(5_000)
        report = probe.stop()
    assert report.lost == 0, (report.sent, report.lost, report.longest_gap)
    assert counters(*FAST_SENT) > report.sent * 0.9, counters.changed


def test_the_daemon_down_leaves_the_fast_path_fast(fast_network: Cluster) -> None:
    one, two = fast_network.nodes
    source, destination = fast_network.pods
    for node in (one, two):
        node.daemon.stop()
    counters = Counters(one)
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=500) as probe:
        probe.wait_flowing(500)
        report = probe.stop()
    assert report.lost == 0
    assert counters(*FAST_SENT) > 400, counters.changed


def test_pods_are_served_within_a_tenth_of_a_second_and_forgotten(fast_network: Cluster) -> None:
    one = fast_network.nodes[0]
    pod = one.add_pod()
    ifindex = next(link["ifindex"] for link in ip_json(one, "link") if link["ifname"] == pod.port)
    with fast_path_of(one) as datapath:
        wait_until(lambda: ifindex in datapath.pod_ports(), timeout=2, what="pod port served")
        one.remove_pod(pod)
        wait_until(lambda: ifindex not in datapath.pod_ports(), timeout=2, what="pod port gone")


def test_routed_pods_take_the_fast_path(cluster: Cluster) -> None:
    ready(cluster, "--datapath=bpf", nodes=2, pods=0)
    one, two = cluster.nodes
    source, destination = one.add_pod(routed=True), two.add_pod(routed=True)
    counters = Counters(one)
    with tcp_echo(destination.namespace), dial(source.namespace, destination.address) as tcp:
        transact(tcp, 200)
    assert counters(*FAST_SENT) > 150, counters.changed


def test_a_device_made_again_is_part_of_the_fast_path_again(fast_network: Cluster) -> None:
    one = fast_network.nodes[0]
    source, destination = fast_network.pods
    one.namespace.ip("link del flannel.1")
    wait_until(lambda: overlay_link(one) and peer_routes(one), timeout=5, what="device again")
    assert ping(source.namespace, destination.address, timeout=5) is not None
    counters = Counters(one)
    with tcp_echo(destination.namespace), dial(source.namespace, destination.address) as tcp:
        transact(tcp, 200)
    assert counters(*FAST_SENT) > 150, counters.changed


def test_a_peer_whose_lease_ends_is_a_stranger_to_the_sender_check(
    fast_network: Cluster,
) -> None:
    one, two = fast_network.nodes
    source, destination = fast_network.pods
    two.daemon.stop()
    fast_network.etcd.delete(lease_key(two))
    wait_until(lambda: subnet_of(two) not in peer_routes(one), timeout=5, what="peer forgotten")
    counters = Counters(one)
    assert ping(destination.namespace, source.address, timeout=1) is None
    assert counters(Program.FROM_UPLINK, Verdict.UNKNOWN_NODE) > 0, counters.changed


def test_direct_admission_carries_whole_connections_past_conntrack(cluster: Cluster) -> None:
    ready(cluster, "--ip-masq", "--datapath=bpf", "--admission=direct", nodes=2)
    one = cluster.nodes[0]
    source, destination = cluster.pods
    with tcp_echo(destination.namespace):
        with dial(source.namespace, destination.address) as connection:  # the stack learns the pods
            transact(connection, 5)
        node_entries = conntrack(one, "-p", "tcp", "--dport", "7").count("dport=7")
        counters = Counters(one)
        for _ in range(20):
            with dial(source.namespace, destination.address) as connection:
                transact(connection, 2)
    assert counters(*FAST_SENT) > 20 * 4, counters.changed
    assert conntrack(one, "-p", "tcp", "--dport", "7").count("dport=7") == node_entries


def test_without_bpf_the_reason_is_told_and_packets_flow(cluster: Cluster) -> None:
    cluster.start_etcd()
    node = cluster.add_node()
    node.daemon.start("--bpf-dir=/proc/kersey")
    node.daemon.wait_ready()
    assert "mode=netlink" in node.daemon.log_tail(30)
    assert "/proc/kersey" in node.daemon.log_tail(30)
    node.daemon.stop()
    node.daemon.start("--bpf-dir=/proc/kersey", "--datapath=bpf")
    wait_until(lambda: not node.daemon.is_running, timeout=10, what="refusal")
    assert node.daemon.process.exit_code == 1
    assert "/proc/kersey" in node.daemon.log_tail(3)
