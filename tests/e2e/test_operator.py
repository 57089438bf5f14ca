"""The operator's command against a running network, and what it leaves when it cleans up."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import packets as p
import pytest
from fast_view import pins_of
from kersey_loader import layout
from kersey_loader.view import open_view
from operator_command import KERSEY, asked, asked_json, files_of, kersey
from overlay_view import lease_key, overlay_link, subnet_of
from testbed import Cluster, Node, udp_probe, wait_until
from testbed.namespace import run_here

CONFIG_KEY = "/coreos.com/network/config"
FLOW = ("--protocol=udp", "--port=7")


def kernel_state(node: Node) -> list[str]:
    commands = (
        "ip -d link",
        "ip route show table all",
        "ip nexthop",
        "nft list ruleset",
        "tc qdisc show",
    )
    return [node.namespace.run(*command.split()).stdout for command in commands]


def test_leases_lists_every_node_as_a_table_and_as_json(shared_network: Cluster) -> None:
    one, two = shared_network.nodes
    endpoint = f"--etcd-endpoints={shared_network.etcd.endpoint}"
    table = kersey(one, "leases", endpoint).stdout.splitlines()
    assert table[0].split() == ["SUBNET", "NODE", "BACKEND", "NODE", "ID", "EXPIRES"]
    assert any(subnet_of(two) in line and "node2" in line for line in table)
    found = json.loads(kersey(one, "leases", "--json", endpoint).stdout)
    assert {lease["subnet"] for lease in found["leases"]} == {subnet_of(one), subnet_of(two)}
    assert all(86_000 < lease["expires_in_seconds"] <= 86_400 for lease in found["leases"])


def test_leases_without_a_store_fails_in_words(shared_network: Cluster) -> None:
    done = kersey(
        shared_network.nodes[0], "leases", "--etcd-endpoints=http://127.0.0.1:1", check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("kersey: ")
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_cleanup_is_refused_under_a_running_daemon(shared_network: Cluster) -> None:
    node = shared_network.nodes[0]
    done = asked(node, "cleanup", check=False)
    assert done.returncode == 1
    assert "running kerseyd" in done.stderr
    assert overlay_link(node) is not None


def test_a_second_daemon_with_the_same_files_is_refused(shared_network: Cluster) -> None:
    node = shared_network.nodes[0]
    done = node.namespace.run(*node.daemon.command("--healthz-port=0"), check=False)
    assert done.returncode == 1
    assert "running kerseyd" in done.stderr


def test_an_unknown_command_and_a_bad_flag_name_themselves(shared_network: Cluster) -> None:
    node = shared_network.nodes[0]
    misplaced = ("leases", "--kube-api-url=http://192.0.2.1")
    done = kersey(node, *misplaced, check=False)
    assert (done.returncode, "--kube-subnet-mgr" in done.stderr) == (2, True)
    for arguments in (("lease",), ("leases", "--etcd-endpoint=x"), ("version", "surplus")):
        done = kersey(node, *arguments, check=False)
        assert done.returncode == 2
        assert repr(arguments[-1].split("=")[0].lstrip("-"))[1:-1] in done.stderr


def test_status_says_what_the_daemon_does_and_why(shared_network: Cluster) -> None:
    node = shared_network.nodes[0]
    state = f"--state-dir={node.state_dir}"
    lines = kersey(node, "status", state).stdout.splitlines()
    shown = {line.split()[0]: line for line in lines}
    assert "ready" in shown["daemon"]
    assert str(node.address) in shown["uplink"]
    assert subnet_of(node) in shown["lease"]
    assert "1 desired, 1 programmed" in shown["peers"]
    told = json.loads(kersey(node, "status", "--json", state).stdout)
    assert told["ready"] is True
    assert told["pid"] == node.daemon.process.pid
    assert told["device"] == "flannel.1"
    assert told["datapath"]["mode"] == "bpf"
    assert told["store"] == {"connected": True, "trouble": ""}


def test_status_without_a_daemon_says_so(shared_network: Cluster) -> None:
    done = kersey(shared_network.nodes[0], "status", "--state-dir=/nonexistent", check=False)
    assert done.returncode == 1
    assert "no kerseyd runs here" in done.stderr


def flows(node: Node, *filters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked_json(node, "flows", *filters)["shown"]
    return found


def is_fast(node: Node) -> bool:
    return any(flow["fast"] for flow in flows(node, *FLOW))


def test_flushed_flows_are_fast_again_without_a_packet_lost(shared_network: Cluster) -> None:
    one = shared_network.nodes[0]
    source, destination = shared_network.pods
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=200) as probe:
        probe.wait_flowing(50)
        said = asked(one, "flush", "flows").stdout
        wait_until(partial(is_fast, one), timeout=10, what="fast again")
        report = probe.stop()
    assert said == "every flow is witnessed anew by its next packets\n"
    assert report.lost == 0
    asked(one, "flush", "flows")
    (flow,) = flows(one, *FLOW)
    assert (flow["fast"], flow["egress_age"]) == (False, None)
    assert flow["reason"] == "flushed, not seen since"


@pytest.fixture(scope="module")
def remote(shared_network: Cluster) -> Iterator[str]:
    """Have datagrams flow between the two pods, fast; give the remote pod's address."""
    source, destination = shared_network.pods
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=100):
        wait_until(partial(is_fast, shared_network.nodes[0]), timeout=10, what="a fast flow")
        yield str(destination.address)


@pytest.mark.usefixtures("remote")
def test_peers_shows_where_each_is_and_what_took_which_path(shared_network: Cluster) -> None:
    one, two = shared_network.nodes
    (peer,) = asked_json(one, "peers")["peers"]
    assert (peer["subnet"], peer["node"]) == (subnet_of(two), str(two.address))
    assert (peer["via"], peer["condition"], peer["reason"]) == ("vxlan", "programmed", "")
    assert peer["next_hop"] == f"dev eth0 from {one.address}"
    assert peer["traffic"]["fast_sent"]["packets"] > 0
    assert peer["traffic"]["fast_received"]["packets"] > 0
    assert peer["traffic"]["slow_sent"]["bytes"] > 0
    header, line = asked(one, "peers").stdout.splitlines()
    assert header.split()[:4] == ["SUBNET", "NODE", "VIA", "STATE"]
    assert line.split()[:4] == [subnet_of(two), str(two.address), "vxlan", "programmed"]


def test_a_peer_whose_lease_is_unusable_is_listed_with_its_reason(
    shared_network: Cluster,
) -> None:
    one = shared_network.nodes[0]
    key = "/coreos.com/network/subnets/10.244.250.0-24"
    shared_network.etcd.put(key, '{"PublicIP": "198.18.0.250", "BackendType": "ipip"}')
    try:
        wait_until(
            lambda: asked(one, "peers", check=False).returncode == 1,
            timeout=10,
            what="an unusable peer",
        )
        done = asked(one, "peers", check=False)
        assert "10.244.250.0/24: BackendType: got 'ipip', expected 'vxlan'" in done.stdout
        status = asked(one, "status").stdout
        assert "1 failing" in status
        assert "failing    10.244.250.0/24: BackendType: got 'ipip'" in status
    finally:
        shared_network.etcd.delete(key)
    wait_until(
        lambda: asked(one, "peers", check=False).returncode == 0, timeout=10, what="one peer again"
    )


def test_flows_shows_a_fast_flow_from_both_ends_and_filters_it(
    shared_network: Cluster, remote: str
) -> None:
    one, two = shared_network.nodes
    flow, *others = flows(one, *FLOW)
    assert not any(other["fast"] for other in others)
    assert (flow["remote"], flow["remote_port"], flow["protocol"]) == (remote, 7, "udp")
    assert (flow["fast"], flow["reason"]) == (True, "")
    assert flow["device"] == one.pods[0].port
    assert flow["peer"] == str(two.address)
    assert 0.0 <= flow["egress_age"] <= 5.5
    assert flows(two, f"--pod={remote}", *FLOW)[0]["pod_port"] == 7
    assert flows(one, f"--peer={two.address}", *FLOW)
    assert flows(one, "--peer=198.18.0.99", *FLOW) == []
    assert flows(one, "--protocol=tcp", "--port=7") == []
    lines = asked(one, "flows", f"--peer={subnet_of(two)}", *FLOW).stdout.splitlines()
    assert lines[0].split()[:4] == ["POD", "REMOTE", "PROTO", "DEVICE"]
    assert lines[1].endswith("fast")
    assert "of --max-flows 65,536" in lines[-1]


def test_watch_shows_flows_again_and_again_until_it_is_interrupted(
    shared_network: Cluster,
) -> None:
    node = shared_network.nodes[0]
    command = node.namespace.command(
        KERSEY, "flows", "--watch", "--interval=1", "--json", *files_of(node)
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
    assert all(look["room"] == 65536 for look in looks)


def forge(sender: Node, victim: Node, times: int = 1) -> None:
    """Have a node send tunnel packets for an address that is none of its own."""
    inner = p.ipv4(p.udp(b"forged", src=53, dst=4444), src="192.0.2.1", dst="10.244.9.9")
    frame = p.ethernet(inner, dst="0e:00:00:00:00:01", src="0e:00:00:00:00:02")
    with sender.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as out:
        for _ in range(times):
            out.sendto(p.vxlan(frame), (str(victim.address), 8472))


@contextmanager
def drops(node: Node, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Run `kersey drops` on a node until it ends; it tells of packets from here on."""
    command = node.namespace.command(KERSEY, "drops", *flags, *files_of(node))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        try:
            wait_until(lambda: watcher(node) == watching.pid, timeout=10, what="a watcher")
            yield watching
        finally:
            watching.kill()


def watcher(node: Node) -> int:
    """Return the process id of who watches, or of who did and was killed; 0 for nobody."""
    with open_view(pins_of(node)) as view:
        entry = view.maps["watches"].lookup(bytes(4)) or b""
    return int(layout.Watch.from_buffer_copy(entry).watcher)


def drop(watching: subprocess.Popen[str]) -> dict[str, Any]:
    assert watching.stdout is not None
    found: dict[str, Any] = json.loads(watching.stdout.readline())
    return found


def test_drops_shows_forged_packets_as_they_come_until_it_is_interrupted(
    shared_network: Cluster,
) -> None:
    one, two = shared_network.nodes
    with drops(one) as watching:
        assert watching.stdout is not None
        header = watching.stdout.readline()
        forge(two, one)
        explained, line = (watching.stdout.readline() for _ in range(2))
        second = asked(one, "drops", check=False)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
        rest, said = watching.stdout.read(), watching.stderr and watching.stderr.read()
    assert header.split()[:3] == ["TIME", "REASON", "FATE"]
    assert explained.startswith("  outside_source: its inner source is neither ")
    assert line.split()[1:] == [
        *("outside_source", "dropped", "eth0", str(two.address), ">", str(one.address)),
        *("192.0.2.1:53", ">", "10.244.9.9:4444", "udp", str(14 + 20 + 8 + 8 + 14 + 20 + 8 + 6)),
    ]
    assert (rest, said) == ("1 packet\n", "")
    assert second.returncode == 1
    assert f"process {watching.pid} is watching already" in second.stderr
    assert watcher(one) == 0
    assert "tunnel packets so far (kersey drops" in asked(one, "status").stdout


def test_drops_in_json_says_how_much_it_left_out_and_one_that_was_killed_is_forgotten(
    shared_network: Cluster,
) -> None:
    one, two = shared_network.nodes
    with drops(one, "--json") as killed:
        killed.kill()
    with drops(one, "--json", "--rate=1", f"--peer={two.address}") as watching:
        forge(two, one, times=50)
        shown = drop(watching)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
        assert watching.stdout is not None
        *packets, sums = map(json.loads, watching.stdout.read().splitlines())
    assert shown["dropped"] is True
    assert (shown["outer_source"], shown["source"]) == (str(two.address), "192.0.2.1")
    assert sums["shown"] == 1 + len(packets)
    assert sums["shown"] + sums["not_shown"] == 50
    assert sums["not_shown"] > 0


def test_drops_tells_why_packets_of_pods_are_slow(shared_network: Cluster) -> None:
    one = shared_network.nodes[0]
    source, destination = shared_network.pods
    found = f"--peer={destination.address}"
    with drops(one, "--reason=protocol", found, "--count=1", "--json") as watching:
        source.namespace.run("ping", "-c1", "-W2", str(destination.address), check=False)
        packet = drop(watching)
        assert watching.wait(10) == 0
    assert (packet["reason"], packet["dropped"], packet["protocol"]) == ("protocol", False, "icmp")
    assert {packet["source"], packet["destination"]} == {
        *(str(source.address), str(destination.address))
    }


def steps(node: Node, *arguments: str, check: bool = True) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in asked_json(node, "trace", *arguments, check=check)}


def test_trace_follows_a_packet_out_and_in(shared_network: Cluster, remote: str) -> None:
    one, two = shared_network.nodes
    pod = one.pods[0]
    out = steps(one, str(pod.address), remote, "--port=7", "--protocol=udp")
    back = steps(one, remote, str(pod.address))
    assert pod.port in out["pod"]["says"]
    assert out["route"]["says"].startswith("dev flannel.1 via ")
    assert str(two.address) in out["peer"]["says"]
    assert out["underlay"]["says"].startswith("dev eth0")
    assert out["verdict"]["says"] == "by the fast path"
    assert back["sender check"]["ok"] is True
    assert back["route"]["says"] == "dev cni0"
    assert pod.port in back["delivery"]["says"]
    assert all(step["ok"] is not False for step in (*out.values(), *back.values()))


@pytest.mark.parametrize(
    ("destination", "step", "words"),
    [
        ("198.19.0.1", "masquerade", "this node's address"),
        ("10.244.251.9", "route", "no node has a lease for this address"),
        ("198.18.0.12", "route", "dev eth0"),
    ],
)
def test_trace_knows_where_else_pods_go(
    shared_network: Cluster, destination: str, step: str, words: str
) -> None:
    one = shared_network.nodes[0]
    found = steps(one, str(one.pods[0].address), destination, check=False)
    assert words in found[step]["says"]
    assert "fast" not in found["verdict"]["says"]


@contextmanager
def done_and_undone(node: Node, command: str, undo: str) -> Iterator[None]:
    node.namespace.run(*command.split())
    try:
        yield
    finally:
        node.namespace.run(*undo.split())


@pytest.mark.parametrize(
    ("command", "undo", "step", "words"),
    [
        (
            "ip rule add to REMOTE table 99 prio 10",
            "ip rule del to REMOTE table 99 prio 10",
            "route",
            "a route or policy rule of somebody else's takes it",
        ),
        (
            "sysctl -qw net.ipv4.conf.cni0.forwarding=0",
            "sysctl -qw net.ipv4.conf.cni0.forwarding=1",
            "forwarding",
            "net.ipv4.conf.cni0.forwarding is 0",
        ),
        (
            "iptables -I FORWARD -j DROP",
            "iptables -D FORWARD -j DROP",
            "rules",
            "iptables -A FORWARD -j DROP",
        ),
    ],
)
def test_trace_names_the_step_that_stops_a_packet(
    shared_network: Cluster, command: str, undo: str, step: str, words: str
) -> None:
    one, two = shared_network.nodes
    pod, remote = str(one.pods[0].address), str(two.pods[0].address)
    one.namespace.run(*["ip", "route", "replace", "default", "via", "198.18.0.1", "table", "99"])
    with done_and_undone(one, command.replace("REMOTE", remote), undo.replace("REMOTE", remote)):
        done = asked(one, "trace", pod, remote, check=False)
    assert done.returncode == 1
    fault = next(line for line in done.stdout.splitlines() if line.startswith("FAULT"))
    assert fault.split()[1] == step
    assert words in fault
    assert f"does not arrive: {step}: " in done.stdout


def test_trace_between_pods_of_others_names_the_node_to_ask(shared_network: Cluster) -> None:
    one, two = shared_network.nodes
    remote = str(two.pods[0].address)
    done = asked(one, "trace", remote, "198.19.0.1", check=False)
    assert done.returncode == 1
    assert f"run kersey trace on node {two.address}" in done.stderr


def as_nobody(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = node.namespace.command(KERSEY, *arguments, *files_of(node))
    privileges = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    name, *rest = command[command.index("exec") + 1 :]
    return subprocess.run(
        ["ip", "netns", "exec", name, *privileges, *rest],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "status"),
    [("status", 1), ("peers", 0), ("flows", 1), ("drops", 1), ("flush flows", 1)],
)
def test_who_is_not_root_is_told_so_in_words(
    shared_network: Cluster, command: str, status: int
) -> None:
    node = shared_network.nodes[0]
    for folder in (shared_network.state_dir, node.state_dir):  # temporary ones are root's alone
        folder.chmod(0o755)
    done = as_nobody(node, *command.split())
    assert done.returncode == status
    assert "root" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_daemon_commands_work_from_what_it_left(
    shared_network: Cluster, remote: str
) -> None:
    one, two = shared_network.nodes
    one.daemon.stop()
    try:
        status = asked(one, "status", check=False)
        assert status.returncode == 1
        assert "none runs; the kernel forwards" in status.stdout
        assert "1 left, 1 of them whole" in status.stdout
        assert "no kerseyd runs here" in status.stderr
        (peer,) = asked_json(one, "peers")["peers"]
        assert (peer["node"], peer["condition"]) == (str(two.address), "programmed")
        assert peer["traffic"]["fast_sent"]["packets"] > 0
        assert is_fast(one)
        assert steps(one, str(one.pods[0].address), remote)["route"]["ok"] is True
        with drops(one, "--count=1", "--json") as watching:
            forge(two, one)
            assert drop(watching)["reason"] == "outside_source"
            assert watching.wait(10) == 0
        assert asked(one, "flush", "flows").returncode == 0
        wait_until(partial(is_fast, one), timeout=10, what="fast again by itself")
    finally:
        one.daemon.start("--ip-masq")
        one.daemon.wait_ready()


def test_a_broken_pin_directory_is_named_and_peers_are_shown_all_the_same(
    shared_network: Cluster, tmp_path: Path
) -> None:
    node = shared_network.nodes[0]
    elsewhere = (f"--bpf-dir={tmp_path}", f"--subnet-file={tmp_path}/x", "--state-dir=/nowhere")
    for command in ("flows", "drops"):
        done = kersey(node, command, *elsewhere, check=False)
        assert done.returncode == 1
        assert f"nothing of a fast path is pinned in {tmp_path}/instance-" in done.stderr
    done = kersey(node, "peers", *elsewhere)
    assert "no traffic figures" in done.stderr


@pytest.fixture
def newcomer(shared_network: Cluster, *, nftables: bool) -> Iterator[Node]:
    """Give a test a node that joins the network; its lease is gone from the store afterwards."""
    config = {"Network": "10.244.0.0/16", "EnableNFTables": nftables, "Backend": {"Type": "vxlan"}}
    shared_network.etcd.put(CONFIG_KEY, json.dumps(config))
    node = shared_network.add_node()
    yield node
    shared_network.etcd.delete(lease_key(node))


@pytest.mark.parametrize("nftables", [False, True])
def test_cleanup_leaves_the_node_as_it_was_before(newcomer: Node) -> None:
    node = newcomer
    node.namespace.ip("route add 10.250.0.0/16 via 198.18.0.1")
    for table in ("nat", "filter"):  # nft keeps a base chain once it was asked for
        node.namespace.run("iptables", "-t", table, "-S")
    node.namespace.run("iptables", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
    node.namespace.run(
        *["iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.1", "-j", "RETURN"]
    )
    before = kernel_state(node)
    cache = node.state_dir / "cache"
    node.daemon.start("--ip-masq", "--ip-blackhole-route", f"--cache-dir={cache}")
    node.daemon.wait_ready()
    assert kernel_state(node) != before
    assert [path.name for path in cache.iterdir()] == ["programs-vxlan.json"]
    assert list(node.bpf_dir.glob("*/links"))
    node.add_pod()
    assert "blackhole" in node.namespace.run("ip", "route").stdout
    node.daemon.stop()
    said = asked(node, "cleanup", f"--cache-dir={cache}").stdout
    assert "device flannel.1" in said
    assert "blackhole route" in said
    assert "pinned programs, links and maps" in said
    assert f"compiled programs in {cache}" in said
    assert not cache.exists()
    assert not list(node.bpf_dir.glob("instance-*"))
    node.remove_pod(node.pods[0])
    node.namespace.ip("link del cni0")
    assert "\n".join(kernel_state(node)).splitlines() == "\n".join(before).splitlines()
    assert not node.daemon.subnet_file.exists()
    assert asked(node, "cleanup", f"--cache-dir={cache}").returncode == 0


@pytest.mark.parametrize("nftables", [False])
def test_compiled_programs_that_resist_keep_nothing_else(newcomer: Node) -> None:
    cache = newcomer.state_dir / "cache"
    newcomer.daemon.start(f"--cache-dir={cache}")
    newcomer.daemon.wait_ready()
    gateway = newcomer.pod_subnet().gateway
    newcomer.daemon.stop()
    run_here("mount", "--bind", cache, cache)
    try:
        run_here("mount", "-o", "remount,bind,ro", cache)
        done = asked(newcomer, "cleanup", f"--cache-dir={cache}", check=False)
    finally:
        run_here("umount", cache)
    assert done.returncode == 1
    assert f"kersey: remove from {cache}: " in done.stderr
    assert "removed device flannel.1" in done.stdout
    assert str(gateway.ip) not in newcomer.namespace.run("ip", "address").stdout
    assert not newcomer.daemon.subnet_file.exists()
    assert asked(newcomer, "cleanup", f"--cache-dir={cache}").returncode == 0
    assert not cache.exists()
