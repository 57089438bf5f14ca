"""Faults planted in a running network, each named by `kersey doctor` in words that mend it."""

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from operator_command import asked, asked_json, files_of, kersey
from overlay_view import overlay_link
from testbed import Cluster, Namespace, Node, Process, wait_until
from testbed.namespace import run_here

HEALTHY, LOOK, BROKEN = 0, 3, 4
CONFIG_KEY = "/coreos.com/network/config"
HOLD_PORT = """
import signal, socket
holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
holder.bind(("", 8472))
signal.pause()
"""
Plant = Callable[[Cluster], AbstractContextManager[None]]


def acquainted(node: Node) -> bool:
    """Return whether the node's daemon has a way to its peer."""
    return bool(asked_json(node, "status")["peers"]["programmed"] == 1)


@pytest.fixture(scope="module")
def network(shared_network: Cluster) -> Cluster:
    """Give the tests two nodes that know each other."""
    for node in shared_network.nodes:
        wait_until(partial(acquainted, node), timeout=20, what=f"{node.name} knows its peer")
    return shared_network


def findings(node: Node, *flags: str, status: int | None = None) -> list[dict[str, str]]:
    """Return what the doctor found; `status` is its exit status, None is any."""
    done = asked(node, "doctor", "--json", *flags, check=False)
    assert status in (None, done.returncode), (done.stdout, done.stderr)
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return found


def finding(node: Node, check: str, *flags: str, status: int | None = None) -> dict[str, str]:
    """Return the one finding of a check, and assert that there is no other one at all."""
    (found,) = findings(node, *flags, status=status)
    assert found["check"] == check
    assert found["why"]
    return found


def is_found(node: Node, check: str) -> bool:
    return any(each["check"] == check for each in findings(node, "--probe=false"))


def is_healthy(node: Node) -> bool:
    return asked(node, "doctor", check=False).returncode == HEALTHY


@contextmanager
def commands(namespace: Namespace, *pairs: tuple[str, str]) -> Iterator[None]:
    """Run the first command of each pair now, and the second ones afterwards, in reverse."""
    for command, _ in pairs:
        namespace.run(*command.split())
    try:
        yield
    finally:
        for _, undo in reversed(pairs):
            namespace.run(*undo.split())


def on_node(*pairs: tuple[str, str]) -> Plant:
    return lambda network: commands(network.nodes[0].namespace, *pairs)


def on_switch(*pairs: tuple[str, str]) -> Plant:
    return lambda network: commands(network.switch, *pairs)


def sysctls(*names: str, good: int, bad: int) -> Plant:
    return on_node(*[(f"sysctl -qw {name}={bad}", f"sysctl -qw {name}={good}") for name in names])


def nft_rule(table: str, rule: str, hook: str) -> tuple[tuple[str, str], ...]:
    """Return the commands that put a rule into a table of its own, and take it out."""
    chain = f"nft add chain inet {table} c {{ type filter hook {hook} priority 0; }}"
    return (
        (f"nft add table inet {table}", f"nft delete table inet {table}"),
        (chain, "true"),
        (f"nft add rule inet {table} c {rule}", "true"),
    )


def large_pods(network: Cluster) -> AbstractContextManager[None]:
    node = network.nodes[0]
    names = (node.pods[0].port, "cni0")
    sizes = [(f"ip link set {name} mtu 1500", f"ip link set {name} mtu 1450") for name in names]
    return commands(node.namespace, *sizes)


@contextmanager
def bad_config(network: Cluster) -> Iterator[None]:
    good = network.etcd.get(CONFIG_KEY) or ""
    network.etcd.put(CONFIG_KEY, '{"Network": "10.244.0.0/33"}')
    try:
        yield
    finally:
        network.etcd.put(CONFIG_KEY, good)


class Fault(NamedTuple):
    """A planted fault, and what the doctor must say of it."""

    name: str
    plant: Plant
    check: str
    severity: str
    what: str
    fix: str


STATIC = [
    Fault("pods", large_pods, "mtu", "warning", "is 1500, larger than the 1450", "cni0 mtu 1450"),
    Fault(
        "port",
        on_node(*nft_rule("one", "udp dport 8472 drop", "input")),
        "rules",
        "error",
        "nft inet one c: udp dport 8472 drop",
        "nft delete rule inet one c handle 2",
    ),
    Fault(
        "device",
        on_node(
            (
                "ip link add flannel.7 type vxlan id 7 dstport 8472 dev eth0 nolearning",
                "ip link del flannel.7",
            )
        ),
        "leftovers",
        "warning",
        "device flannel.7 (vxlan) is not the overlay device in use, flannel.1",
        "ip link del flannel.7",
    ),
    Fault(
        "forward",
        on_node(("iptables -I FORWARD -j DROP", "iptables -D FORWARD -j DROP")),
        "rules",
        "error",
        "a rule stops all forwarded packets: iptables -A FORWARD -j DROP",
        "iptables -D FORWARD -j DROP",
    ),
    Fault(
        "rule on pods",
        on_node(*nft_rule("two", "ip saddr 10.244.0.0/16 tcp dport 443 drop", "forward")),
        "rules",
        "warning",
        "nft inet two c: ip saddr 10.244.0.0/16 tcp dport 443 drop",
        "nft delete rule inet two c handle 2",
    ),
    Fault(
        "forwarding",
        sysctls("net.ipv4.conf.cni0.forwarding", good=1, bad=0),
        "forwarding",
        "error",
        "net.ipv4.conf.cni0.forwarding is 0",
        "sysctl -w net.ipv4.conf.cni0.forwarding=1",
    ),
    Fault(
        "rp_filter",
        sysctls("net.ipv4.conf.eth0.rp_filter", "net.ipv4.conf.all.rp_filter", good=2, bad=1),
        "rp_filter",
        "warning",
        "rp_filter is strict on eth0",
        "sysctl -w net.ipv4.conf.eth0.rp_filter=2",
    ),
    Fault(
        "route",
        on_node(
            (
                "ip route add 10.244.240.0/24 via 198.18.0.1",
                "ip route del 10.244.240.0/24 via 198.18.0.1",
            )
        ),
        "leftovers",
        "warning",
        "a route to 10.244.240.0/24 leads through eth0, and is not Kersey's",
        "ip route del 10.244.240.0/24 dev eth0",
    ),
    Fault(
        "bridge",
        on_node(
            ("ip addr add 10.244.241.1/24 dev cni0", "ip addr del 10.244.241.1/24 dev cni0"),
        ),
        "leftovers",
        "error",
        "cni0 has 10.244.241.1/24, which is not of this node's subnet",
        "ip link del cni0",
    ),
    Fault("config", bad_config, "store", "error", "Network: got '10.244.0.0/33'", "config check"),
]
"""Faults that show without a packet and do not hide each other."""

LIVE = [
    Fault(
        "narrow path",
        on_switch(("ip link set node2 mtu 1400", "ip link set node2 mtu 1500")),
        "reach",
        "error",
        "the path to node 198.18.0.12",
        "ip link set dev eth0 mtu 1400",
    ),
    Fault(
        "closed port",
        lambda network: commands(
            network.nodes[1].namespace, *nft_rule("fw", "udp dport 8472 drop", "input")
        ),
        "reach",
        "error",
        "nothing comes back through the tunnel from node 198.18.0.12",
        "udp dport 8472 accept",
    ),
    Fault(
        "dead peer",
        on_switch(("ip link set node2 down", "ip link set node2 up")),
        "reach",
        "error",
        "no answer from node 198.18.0.12",
        "etcdctl del /coreos.com/network/subnets/10.244.",
    ),
    Fault(
        # As where a network card computes them wrongly: pings pass untouched.
        "wrong checksums",
        on_node(
            ("ethtool -K eth0 tx off", "ethtool -K eth0 tx on"),
            *nft_rule("fw", "oifname flannel.1 meta l4proto udp udp checksum set 0xbad", "output"),
        ),
        "reach",
        "warning",
        "but UDP datagrams are not answered",
        "ethtool -K flannel.1 tx-checksum-ip-generic off",
    ),
]


def by_name(fault: Fault) -> str:
    return fault.name


def test_a_healthy_node_has_nothing_to_say(network: Cluster) -> None:
    for node in network.nodes:
        done = asked(node, "doctor", check=False)
        assert (done.returncode, done.stderr) == (HEALTHY, ""), done.stdout
        assert str(node.address) in done.stdout.splitlines()[0]
        assert done.stdout.splitlines()[1].startswith("no findings; in order: rights, daemon")


@pytest.fixture(scope="module")
def diagnosis(network: Cluster) -> list[dict[str, str]]:
    """Give the doctor's findings with all static faults planted at once."""
    with ExitStack() as planted:
        for fault in STATIC:
            planted.enter_context(fault.plant(network))
        return findings(network.nodes[0], "--probe=false", status=BROKEN)


@pytest.mark.parametrize("fault", STATIC, ids=by_name)
def test_a_planted_fault_is_named_with_its_cure(
    diagnosis: list[dict[str, str]], fault: Fault
) -> None:
    (found,) = (each for each in diagnosis if fault.what in each["what"])
    assert (found["check"], found["severity"]) == (fault.check, fault.severity)
    assert fault.fix in found["fix"]
    assert found["why"]


def test_nothing_but_the_planted_faults_is_named(diagnosis: list[dict[str, str]]) -> None:
    assert len(diagnosis) == len(STATIC)


@pytest.mark.parametrize("fault", LIVE, ids=by_name)
def test_a_fault_that_only_packets_show_is_named_with_its_cure(
    network: Cluster, fault: Fault
) -> None:
    status = BROKEN if fault.severity == "error" else LOOK
    with fault.plant(network):
        found = finding(network.nodes[0], fault.check, status=status)
    assert fault.what in found["what"]
    assert fault.fix in found["fix"]


def test_who_else_holds_the_tunnels_port_is_named(network: Cluster, tmp_path: Path) -> None:
    one = network.nodes[0]
    program = Path(sys.executable)
    one.daemon.stop()  # it would take the port back at once
    one.namespace.ip("link set flannel.1 down")  # the kernel lets go of it
    with Process(one.namespace, [program, "-c", HOLD_PORT], log=tmp_path / "log") as holder:
        wait_until(partial(is_found, one, "ports"), timeout=20, what="the port held")
        found = {each["check"]: each for each in findings(one, "--probe=false", status=BROKEN)}
    assert found["device"]["what"] == "flannel.1 is down"
    said = found["ports"]
    assert said["what"] == f"UDP port 8472 is held by {program.name} (pid {holder.pid})"
    assert said["fix"].startswith(f"kill {holder.pid};")
    one.daemon.start("--ip-masq")
    one.daemon.wait_ready()


def test_a_device_that_sends_outer_checksums_is_named(network: Cluster) -> None:
    """Flannel's own device, which a kerseyd that takes over keeps: it has all peers on it."""
    one = network.nodes[0]
    link = overlay_link(one)
    assert link is not None
    one.daemon.stop()
    one.namespace.ip(
        "link del flannel.1",
        f"link add flannel.1 address {link['address']} mtu 1450 type vxlan id 1 dstport 8472"
        f" dev eth0 local {one.address} nolearning udpcsum",
    )
    one.daemon.start("--ip-masq")
    one.daemon.wait_ready()
    found = finding(one, "offload", "--probe=false", status=LOOK)
    assert "flannel.1 sends outer UDP checksums" in found["what"]
    one.namespace.ip("link del flannel.1")  # the cure
    wait_until(partial(is_healthy, one), timeout=20, what="a device without them")


@contextmanager
def second_daemon(node: Node, folder: Path) -> Iterator[Process]:
    command = [
        word
        for word in node.daemon.command("--healthz-port=0", f"--state-dir={folder}")
        if not str(word).startswith(("--subnet-file", "--bpf-dir"))
    ]
    command += [f"--subnet-file={folder}/subnet.env", "--datapath=netlink"]
    with Process(node.namespace, command, log=folder / "log") as process:
        yield process


def test_a_second_daemon_is_named(network: Cluster, tmp_path: Path) -> None:
    one = network.nodes[0]
    with second_daemon(one, tmp_path) as process:
        wait_until(partial(is_found, one, "daemon"), timeout=20, what="two daemons")
        (found,) = (each for each in findings(one) if each["check"] == "daemon")
        assert "2 kerseyd run in this network namespace" in found["what"]
        assert found["fix"].startswith(f"kill {process.pid};")
    wait_until(partial(is_healthy, one), timeout=20, what="one daemon again")


def test_a_lost_store_is_named_by_doctor_and_status(network: Cluster) -> None:
    one = network.nodes[0]
    flags = ("--probe=false", "--etcd-endpoints=http://127.0.0.1:1")
    found = finding(one, "store", *flags, status=HEALTHY)
    assert "does not answer this command" in found["what"]  # but the daemon, so a note
    network.etcd.stop()
    try:
        wait_until(
            lambda: not asked_json(one, "status")["store"]["connected"],
            timeout=30,
            what="the daemon misses its store",
        )
        found = finding(one, "store", "--probe=false", status=BROKEN)
        assert found["fix"].startswith("etcdctl --endpoints=http://198.18.0.2:2379")
        assert "\nstore      lost: " in asked(one, "status").stdout
    finally:
        network.etcd.start()
    wait_until(
        lambda: asked_json(one, "status")["store"]["connected"], timeout=30, what="the store again"
    )


def test_a_full_flow_map_is_named(network: Cluster) -> None:
    one, two = network.nodes
    one.daemon.restart("--ip-masq", "--max-flows=1024")
    one.daemon.wait_ready()
    remote = str(two.pods[0].address)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in range(20000, 24000):
                sender.sendto(b"x", (remote, port))

    def is_full() -> bool:
        one.pods[0].namespace.call(send)
        return is_found(one, "fast path")

    wait_until(is_full, timeout=20, what="a full flow map")
    found = finding(one, "fast path", "--probe=false", status=LOOK)
    assert "of --max-flows 1,024" in found["what"]
    assert found["fix"] == "restart kerseyd with --max-flows=4096"


def test_a_missing_bpf_file_system_is_named(network: Cluster) -> None:
    one = network.nodes[0]
    run_here("umount", "--lazy", one.bpf_dir)
    try:
        found = finding(one, "fast path", "--probe=false", status=LOOK)
        assert "is not on a BPF file system" in found["what"]
        assert f"mount -t bpf bpf {one.bpf_dir}" in found["fix"]
    finally:
        run_here("mount", "-t", "bpf", "bpf", one.bpf_dir)
    found = finding(one, "fast path", "--probe=false", status=LOOK)
    assert "the maps of the running kerseyd are not in" in found["what"]


def test_without_a_daemon_the_doctor_says_so_and_looks_at_the_rest(network: Cluster) -> None:
    one = network.nodes[0]
    one.daemon.stop()
    with sysctls("net.ipv4.ip_forward", good=1, bad=0)(network):
        found = {each["check"]: each["what"] for each in findings(one, status=BROKEN)}
    assert "no kerseyd runs here" in found["daemon"]
    assert found["forwarding"] == "net.ipv4.ip_forward is 0"


def test_a_daemon_elsewhere_is_found_all_the_same(network: Cluster) -> None:
    two = network.nodes[1]
    done = kersey(two, "doctor", "--probe=false", *files_of(network.nodes[0]), check=False)
    pid = two.daemon.process.pid
    assert f"no kerseyd runs here with --state-dir={network.nodes[0].state_dir}" in done.stdout
    assert f"but kerseyd runs as pid {pid}" in done.stdout
