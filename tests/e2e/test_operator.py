"""The operator's command against a running network, and what it leaves when it cleans up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fast_view import pins_of
from overlay_view import overlay_link, subnet_of
from testbed import Cluster, Node

KERSEY = Path(sys.executable).with_name("kersey")


def kersey(node: Node, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return node.namespace.run(KERSEY, *arguments, check=check)


def cleanup(node: Node, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    files = (
        f"--subnet-file={node.daemon.subnet_file}",
        f"--state-dir={node.state_dir}",
        f"--bpf-dir={node.bpf_dir}",
    )
    return kersey(node, "cleanup", *files, check=check)


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
    done = cleanup(node, check=False)
    assert done.returncode == 1
    assert "running kerseyd" in done.stderr
    assert overlay_link(node) is not None


def test_a_second_daemon_with_the_same_files_is_refused(shared_network: Cluster) -> None:
    node = shared_network.nodes[0]
    done = node.namespace.run(*node.daemon.command("--healthz-port=0"), check=False)
    assert done.returncode == 1
    assert "running kerseyd" in done.stderr


@pytest.mark.parametrize("nftables", [False, True])
def test_cleanup_leaves_the_node_as_it_was_before(cluster: Cluster, *, nftables: bool) -> None:
    backend = {"Type": "vxlan"}
    cluster.start_etcd({"Network": "10.244.0.0/16", "EnableNFTables": nftables, "Backend": backend})
    other, node = cluster.add_node(), cluster.add_node()
    other.daemon.start()
    other.daemon.wait_ready()
    node.namespace.ip("route add 10.250.0.0/16 via 198.18.0.1")
    for table in ("nat", "filter"):  # nft keeps a base chain once it was asked for
        node.namespace.run("iptables", "-t", table, "-S")
    node.namespace.run("iptables", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
    node.namespace.run(
        *["iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.1", "-j", "RETURN"]
    )
    before = kernel_state(node)
    node.daemon.start("--ip-masq", "--ip-blackhole-route")
    node.daemon.wait_ready()
    assert kernel_state(node) != before
    assert (pins_of(node) / "links").is_dir()
    node.add_pod()
    assert "blackhole" in node.namespace.run("ip", "route").stdout
    node.daemon.stop()
    said = cleanup(node).stdout
    assert "device flannel.1" in said
    assert "blackhole route" in said
    assert "pinned programs, links and maps" in said
    assert not pins_of(node).exists()
    node.remove_pod(node.pods[0])
    node.namespace.ip("link del cni0")
    assert "\n".join(kernel_state(node)).splitlines() == "\n".join(before).splitlines()
    assert not node.daemon.subnet_file.exists()
    assert cleanup(node).returncode == 0


def test_an_unknown_command_and_a_bad_flag_name_themselves(shared_network: Cluster) -> None:
    node = shared_network.nodes[0]
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
    assert told["datapath"]["mode"] == "bpf"
    assert told["store"] == {"connected": True, "trouble": ""}


def test_status_without_a_daemon_says_so(shared_network: Cluster) -> None:
    done = kersey(shared_network.nodes[0], "status", "--state-dir=/nonexistent", check=False)
    assert done.returncode == 1
    assert "no kerseyd runs here" in done.stderr
