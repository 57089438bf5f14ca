"""A real Prometheus scrapes three nodes: what an operator can ask, and what the dashboard asks."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from overlay_view import peer_routes, subnet_of
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import Prometheus
from testbed import Cluster, Node, icmp_probe, udp_probe, wait_until
from testbed.health import http_get
from tls_authority import Authority

DEPLOY = Path(__file__).parents[2] / "deploy"
PORT = 9475
FAST_SHARE = (
    'sum(rate(kersey_tunnel_packets_total{path="fast"}[6s]))'
    " / sum(rate(kersey_tunnel_packets_total[6s]))"
)


@dataclass(frozen=True)
class Watched:
    """Three nodes, the last one with TLS, and who watches them."""

    cluster: Cluster
    prometheus: Prometheus

    def wait(self, expression: str, *, timeout: float = 30) -> float:
        """Return the value of an expression once it has one that is not 0."""
        value = wait_until(
            lambda: self.prometheus.value(expression), timeout=timeout, what=expression
        )
        assert value is not None
        return value

    def numbers(self, expression: str) -> list[float]:
        """Return the values of all series of an expression that are numbers."""
        found = (each.value for each in self.prometheus.query(expression))
        return [value for value in found if not math.isnan(value)]


@pytest.fixture(scope="module")
def watched(module_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    for program in ("prometheus", "promtool", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"missing: {program}")
    cluster, directory = module_cluster, tmp_path_factory.mktemp("prometheus")
    cluster.start_etcd()
    nodes = [cluster.add_node() for _ in range(3)]
    authority = Authority(directory / "authority", address=str(nodes[2].address))
    certfile, keyfile = authority.issue("server")
    tls = (f"--metrics-certfile={certfile}", f"--metrics-keyfile={keyfile}")
    for node, options in zip(nodes, ((), (), tls), strict=True):
        node.daemon.start(
            *("--ip-masq", "--datapath=bpf", "--probe-interval=1"),
            f"--metrics-port={PORT}",
            *options,
        )
    for node in nodes:
        node.add_pod()
        node.daemon.wait_ready()
    jobs = [
        job("kersey", nodes[:2]),
        {
            **job("kersey-tls", nodes[2:]),
            "scheme": "https",
            "tls_config": {"ca_file": str(authority.certfile)},
        },
    ]
    rules = DEPLOY / "prometheus" / "kersey.rules.yml"
    with Prometheus(cluster.switch, directory, jobs=jobs, rules=rules) as prometheus:
        yield Watched(cluster, prometheus)


def job(name: str, nodes: list[Node]) -> dict[str, object]:
    targets = [f"{node.address}:{PORT}" for node in nodes]
    return {
        "job_name": name,
        "static_configs": [{"targets": targets, "labels": {"job": "kersey"}}],
    }


def page(node: Node) -> str:
    answer = http_get(node.namespace, port=PORT, path="/metrics")
    assert answer is not None
    assert answer[0] == 200
    return answer[1]


def sample(node: Node, name: str, **labels: str) -> float:
    """Return one sample of a node's page as it is now."""
    (value,) = (
        found.value
        for family in text_string_to_metric_families(page(node))
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    )
    return value


def test_every_node_is_scraped_with_tls_and_without(watched: Watched) -> None:
    watched.wait('sum(up{job="kersey"}) == 3')
    targets = watched.prometheus.targets()
    assert {target["health"] for target in targets} == {"up"}, targets
    assert sorted(target["scrapeUrl"].split(":")[0] for target in targets) == [
        "http",
        "http",
        "https",
    ]
    assert watched.prometheus.value("count(kersey_build_info)") == 3
    assert watched.prometheus.value("sum(kersey_peers_programmed)") == 6


def test_promtool_finds_nothing_to_correct_in_the_page(watched: Watched, tmp_path: Path) -> None:
    saved = tmp_path / "page"
    saved.write_text(page(watched.cluster.nodes[0]))
    node = watched.cluster.nodes[0].namespace
    done = node.run("sh", "-c", f"promtool check metrics <{saved}", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_fast_paths_share_rises_under_traffic(watched: Watched) -> None:
    recorded = "avg(instance:kersey_fast_path_share:ratio_rate5m)"
    source, destination, _ = watched.cluster.pods
    with icmp_probe(source.namespace, destination.address, rate=200):
        watched.wait(f"{FAST_SHARE} < bool 0.05 == 1")
    before = watched.wait(f"{recorded} + 1") - 1
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=2000):
        watched.wait(f"{FAST_SHARE} > 0.95")
        watched.wait(f"{recorded} > {before} + 0.2")


def test_what_one_node_sent_to_a_peer_is_what_that_peer_received(watched: Watched) -> None:
    one, two, _ = watched.cluster.nodes
    source, destination, _ = watched.cluster.pods
    with udp_probe(source.namespace, destination.namespace, destination.address) as probe:
        probe.wait_flowing(500)
        assert probe.stop().lost == 0

    def counts(node: Node, peer: Node, name: str, direction: str) -> list[float]:
        labels = {"peer": subnet_of(peer), "direction": direction}
        return [sample(node, name, path=path, **labels) for path in ("fast", "slow")]

    def are_equal(name: str) -> bool:
        sent, received = counts(one, two, name, "sent"), counts(two, one, name, "received")
        assert min(sent[0], received[0]) > 0
        return sum(sent) == sum(received)

    for name in ("kersey_peer_packets_total", "kersey_peer_bytes_total"):
        # Daemons' probes go on meanwhile: one may cross between the two looks.
        wait_until(partial(are_equal, name), timeout=10, what=f"equal {name}")


def test_a_total_is_the_sum_of_the_peers(watched: Watched) -> None:
    node = watched.cluster.nodes[0]
    for direction in ("sent", "received"):
        labels = {"direction": direction, "path": "fast"}
        peers = [
            sample(node, "kersey_peer_bytes_total", peer=subnet_of(other), **labels)
            for other in watched.cluster.nodes[1:]
        ]
        assert sample(node, "kersey_tunnel_bytes_total", **labels) == sum(peers) > 0


def test_maps_fill_as_flows_are_admitted(watched: Watched) -> None:
    node = watched.cluster.nodes[0]
    source, destination, _ = watched.cluster.pods
    with udp_probe(source.namespace, destination.namespace, destination.address):
        wait_until(
            lambda: sample(node, "kersey_flows_admitted") >= 1, timeout=30, what="an admitted flow"
        )
    assert sample(node, "kersey_map_entries", map="flows") >= 1
    assert sample(node, "kersey_map_max_entries", map="flows") == 65536
    assert sample(node, "kersey_map_entries", map="nodes") == 2
    assert sample(node, "kersey_map_entries", map="pod_ports") == 1


def panels() -> list[Any]:
    dashboard = json.loads((DEPLOY / "grafana" / "kersey.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def as_prometheus_gets_it(expression: str) -> str:
    """Fill in Grafana's variables; one that is left is an error in the query."""
    return expression.replace("$__rate_interval", "10s").replace("$instance", ".*")


def test_every_query_of_the_dashboard_returns_data(watched: Watched) -> None:
    source, destination, _ = watched.cluster.pods
    queries = [
        (panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]
    ]
    assert len(queries) > 30
    with udp_probe(source.namespace, destination.namespace, destination.address, rate=500):
        watched.wait(f"{FAST_SHARE} > 0.5")
        for title, expression in queries:
            wait_until(
                partial(watched.numbers, as_prometheus_gets_it(expression)),
                timeout=20,
                what=f"{title}: {expression}",
            )


def test_every_metric_of_dashboard_and_rules_exists(watched: Watched) -> None:
    exported = {
        found.name
        for node in watched.cluster.nodes[:2]
        for family in text_string_to_metric_families(page(node))
        for found in family.samples
    }
    for path in (DEPLOY / "grafana" / "kersey.json", DEPLOY / "prometheus" / "kersey.rules.yml"):
        text = re.sub(r"\w+:kersey\w+:\w+", "", path.read_text())  # recorded, not exported
        used = set(re.findall(r"\bkersey_\w+(?=[{\[ )])", text))
        assert len(used) > 20
        assert used <= exported, f"{path.name}: {used - exported}"


def test_repairs_of_foreign_changes_are_counted_by_kind(watched: Watched) -> None:
    node = watched.cluster.nodes[0]
    before = sample(node, "kersey_repairs_total", kind="Route")
    wanted = peer_routes(node)
    node.namespace.ip(f"route del {min(wanted)}")
    wait_until(
        lambda: sample(node, "kersey_repairs_total", kind="Route") == before + 1,
        timeout=10,
        what="the repair is counted",
    )
    assert peer_routes(node) == wanted
    assert sample(node, "kersey_reconcile_duration_seconds_count", task="repair") > 0


def test_kernel_requests_that_are_refused_are_counted(watched: Watched) -> None:
    node = watched.cluster.nodes[0]
    before = sample(node, "kersey_netlink_errors_total")
    taken = "10.244.254.0/24"
    node.namespace.ip(f"route add {taken} via {watched.cluster.nodes[1].address} metric 0")
    value = {
        "PublicIP": "198.18.0.99",
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "0e:00:00:00:fe:01"},
    }
    key = "/coreos.com/network/subnets/" + taken.replace("/", "-")
    watched.cluster.etcd.put(key, json.dumps(value))
    try:
        wait_until(
            lambda: sample(node, "kersey_netlink_errors_total") > before,
            timeout=10,
            what="the refusal is counted",
        )
        assert sample(node, "kersey_peers_desired") == 3
        assert sample(node, "kersey_peers_programmed") == 2
    finally:
        watched.cluster.etcd.delete(key)
        node.namespace.ip(f"route del {taken}")


def test_an_outage_of_the_store_shows_while_it_lasts_and_afterwards(watched: Watched) -> None:
    node = watched.cluster.nodes[0]
    watched.cluster.etcd.kill()
    watched.wait("min(kersey_store_stale_seconds) > 1")
    assert sample(node, "kersey_store_connected") == 0
    assert sample(node, "kersey_store_losses_total") == 1
    watched.cluster.etcd.start()
    watched.wait("max(kersey_store_stale_seconds) == bool 0 == 1")
    assert sample(node, "kersey_store_connected") == 1
    assert sample(node, "kersey_store_reconnects_total") == 1


def test_scrapes_during_ends_and_starts_are_whole_or_refused(watched: Watched) -> None:
    node = watched.cluster.nodes[1]
    already = len(node.daemon.log.read_text())
    packets = sample(
        node,
        "kersey_peer_packets_total",
        path="fast",
        direction="sent",
        peer=subnet_of(watched.cluster.nodes[0]),
    )
    seen = set()
    for _ in range(2):
        node.daemon.restart()
        while node.daemon.status() != 200:
            answer = http_get(node.namespace, port=PORT, path="/metrics")
            if answer is not None:
                seen.add(answer[0])
                assert "kersey_ready" in answer[1]
    assert seen == {200}
    assert sample(node, "kersey_map_read_failures_total", part="traffic") == 0
    log = node.daemon.log.read_text()[already:]
    assert "request failed" not in log
    assert "Traceback" not in log
    assert (
        sample(
            node,
            "kersey_peer_packets_total",
            path="fast",
            direction="sent",
            peer=subnet_of(watched.cluster.nodes[0]),
        )
        >= packets
    )
    assert sample(node, "kersey_tunnel_packets_total", path="fast", direction="sent") < packets
