"""The daemon as a service: what it tells its manager and its scraper, what it does by itself."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from overlay_view import SUBNETS, lease_key, peer_routes, ready, subnet_of
from prometheus_client.parser import text_string_to_metric_families
from testbed import Cluster, Node, wait_until
from testbed.cluster import CONFIG_KEY
from testbed.health import http_get

METRICS_PORT = 9464


@contextmanager
def service_manager(path: Path) -> Iterator["Messages"]:
    """Listen as systemd does; the list grows by each message's lines."""
    os.environ["NOTIFY_SOCKET"] = str(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.setblocking(False)
        try:
            yield Messages(listener)
        finally:
            del os.environ["NOTIFY_SOCKET"]


class Messages(list[str]):
    """What the daemon said so far, read whenever it is looked at."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self._listener = listener

    def heard(self, line: str) -> bool:
        while True:
            try:
                self.extend(self._listener.recv(4096).decode().splitlines())
            except BlockingIOError:
                return line in self


def test_the_service_manager_hears_of_ready_life_and_end(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    cluster.start_etcd()
    node = cluster.add_node()
    with service_manager(tmp_path / "notify") as messages:
        node.daemon.start()
        wait_until(lambda: messages.heard("READY=1"), timeout=15, what="ready is told")
        assert node.daemon.status() == 200
        wait_until(lambda: messages.heard("WATCHDOG=1"), timeout=5, what="life is told")
        node.daemon.stop()
        wait_until(lambda: messages.heard("STOPPING=1"), timeout=5, what="the end is told")


def metric(node: Node, name: str, **labels: str) -> float | None:
    answer = http_get(node.namespace, port=METRICS_PORT, path="/metrics")
    assert answer is not None
    for family in text_string_to_metric_families(answer[1]):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def test_metrics_tell_of_peers_datapath_and_repairs(cluster: Cluster) -> None:
    ready(cluster, f"--metrics-port={METRICS_PORT}", nodes=2)
    one = cluster.nodes[0]
    assert metric(one, "kersey_peers_programmed") == 1
    assert metric(one, "kersey_datapath_mode", mode="bpf") == 1
    assert metric(one, "kersey_repairs_total", kind="Route") == 0
    one.namespace.ip("nexthop flush")
    wait_until(
        lambda: metric(one, "kersey_repairs_total", kind="Route") == 1,
        timeout=5,
        what="the repair is counted",
    )
    assert metric(one, "kersey_packets_total", program="from_uplink", verdict="fast") is not None


def test_rules_flushed_come_back_on_the_event_alone(cluster: Cluster) -> None:
    ready(cluster, "--ip-masq", "--iptables-resync=3600", nodes=1, pods=0)
    node = cluster.nodes[0]
    node.namespace.run("iptables", "-t", "nat", "-F", "FLANNEL-POSTRTG")
    wait_until(
        lambda: (
            "MASQUERADE"
            in node.namespace.run("iptables", "-t", "nat", "-S", "FLANNEL-POSTRTG").stdout
        ),
        timeout=3,
        what="rules again",
    )


def test_the_periodic_audit_finds_what_no_event_told(cluster: Cluster) -> None:
    ready(cluster, "--audit-interval=1", nodes=2, pods=0)
    one, two = cluster.nodes
    sysctl = Path("/proc/sys/net/ipv6/conf/flannel.1/accept_ra")  # nobody announces a sysctl
    one.namespace.call(lambda: sysctl.write_text("1"))
    wait_until(
        lambda: one.namespace.call(sysctl.read_text).strip() == "0", timeout=5, what="0 again"
    )
    assert peer_routes(one) == {subnet_of(two)}


def test_a_live_change_of_the_subnet_range_counts_for_the_next_claim(cluster: Cluster) -> None:
    ready(cluster, nodes=1, pods=0)
    node = cluster.nodes[0]
    key, before = lease_key(node), subnet_of(node)
    backend = {"Type": "vxlan"}
    cluster.etcd.put(
        CONFIG_KEY,
        json.dumps({"Network": "10.244.0.0/16", "SubnetMin": "10.244.200.0", "Backend": backend}),
    )
    wait_until(
        lambda: "network config followed" in node.daemon.log.read_text(), timeout=5, what="followed"
    )
    cluster.etcd.delete(key)
    wait_until(
        lambda: before not in node.daemon.subnet_file.read_text(), timeout=15, what="a new subnet"
    )
    wait_until(
        lambda: any(
            int(name.removeprefix(SUBNETS).split(".")[2]) >= 200
            for name in cluster.etcd.get_prefix(SUBNETS)
        ),
        timeout=5,
        what="a lease in the new range",
    )


def test_a_record_nested_a_thousand_deep_is_skipped_by_itself(cluster: Cluster) -> None:
    ready(cluster, nodes=2, pods=0)
    one, two = cluster.nodes
    deep = "[" * 1_000 + "]" * 1_000
    for number, value in enumerate(
        (
            f'{{"PublicIP":"198.18.0.99","X":{deep}}}',
            f'{{"PublicIP":"198.18.0.99","BackendType":"vxlan","BackendData":{deep[7:-7]}}}',
        )
    ):
        cluster.etcd.put(f"{SUBNETS}10.244.25{number}.0-24", value)
    two.daemon.stop()
    cluster.etcd.delete(lease_key(two))
    wait_until(lambda: peer_routes(one) == set(), timeout=5, what="the removal is followed")
    one.daemon.restart()
    one.daemon.wait_ready()


def test_the_end_comes_soon_whatever_the_daemon_waits_for(cluster: Cluster) -> None:
    cluster.etcd.start()
    node = cluster.add_node()
    silent = ",".join(f"http://198.18.0.{number}:2379" for number in (240, 241, 242))
    node.daemon.start(f"--etcd-endpoints={silent}")
    wait_until(lambda: node.daemon.status("/healthz") == 200, timeout=10, what="alive")
    began = time.monotonic()
    node.daemon.stop()
    assert node.daemon.process.exit_code == 0
    assert time.monotonic() - began < 4
