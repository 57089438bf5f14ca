"""What an answer of the metrics port costs a daemon with 1,000 peers, and what it does without one.

CPU seconds are the kernel's for the whole process. A scrape is asked for as Prometheus does, with
compression. Counters of all peers are filled with large numbers, the flow map with flows. Run it as
root in namespaces of its own: `scripts/bench metrics`.
"""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

from bench.bench_leases import CONFIG, leases, routes, rss_mb
from kersey_control.instance import instance_of
from kersey_loader.datapath import Datapath, Settings, load
from kersey_loader.layout import Flow, FlowKey
from testbed import Cluster, Node, wait_until

PEERS = 1_000
LISTED = (0, 100, 1_000)
SCRAPES = 100
IDLE_SECONDS = 30.0
FLOWS = 65_536
PORT = 9475
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    with Cluster(prefix="kb-") as cluster:
        cluster.start_etcd(CONFIG)
        cluster.etcd.put_many(leases(PEERS))
        node = cluster.add_node()
        for listed in LISTED:
            node.daemon.start(
                "--datapath=bpf", f"--metrics-port={PORT}", f"--metrics-peers={listed}"
            )
            node.daemon.wait_ready()
            wait_until(lambda: routes(node) == PEERS, timeout=60, what="all peers")
            fill_counters(node)
            show(f"scrape, {listed:>5,} peers listed", scrape(node, "/metrics"))
            node.daemon.stop()
        node.daemon.start("--datapath=bpf", f"--metrics-port={PORT}", "--status-page")
        node.daemon.wait_ready()
        wait_until(lambda: routes(node) == PEERS, timeout=60, what="all peers")
        show("status page's answer", scrape(node, "/status.json"))
        node.daemon.stop()
        node.daemon.start("--datapath=bpf", f"--metrics-port={PORT}")
        node.daemon.wait_ready()
        show("idle, flow map empty", idle(node))
        fill_flows(node)
        show(f"idle, {FLOWS:,} flows", idle(node))
        node.daemon.restart("--datapath=bpf")
        node.daemon.wait_ready()
        show("idle, no metrics", idle(node))


def show(what: str, figures: str) -> None:
    print(f"{PEERS:,} peers  {what:<28} {figures}", flush=True)


def scrape(node: Node, path: str) -> str:
    """Return CPU and time of one answer, its size, and the memory after many in a row."""
    node.namespace.call(lambda: [ask(path) for _ in range(10)])
    before, began = cpu(node), time.monotonic()
    sizes = node.namespace.call(lambda: [ask(path) for _ in range(SCRAPES)])
    seconds, used = time.monotonic() - began, cpu(node) - before
    return (
        f"{1e3 * used / SCRAPES:6.1f} ms CPU {1e3 * seconds / SCRAPES:6.1f} ms"
        f" {sizes[-1] / 1024:7.1f} KiB sent {rss_mb(node):6.1f} MB resident"
    )


def ask(path: str) -> int:
    connection = HTTPConnection("127.0.0.1", PORT, timeout=10)
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    size = len(connection.getresponse().read())
    connection.close()
    return size


def idle(node: Node) -> str:
    """Return the share of a CPU that the daemon takes by itself, and its memory."""
    time.sleep(3)  # what a start leaves behind
    before = cpu(node)
    time.sleep(IDLE_SECONDS)
    share = (cpu(node) - before) / IDLE_SECONDS
    return f"{100 * share:6.2f} % of a CPU {rss_mb(node):6.1f} MB resident"


def cpu(node: Node) -> float:
    """Return the CPU seconds of the daemon, its ended threads included."""
    fields = Path(f"/proc/{node.daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def maps_of(node: Node) -> Iterator[Datapath]:
    instance = instance_of(node.daemon.subnet_file)
    settings = Settings(
        directory=node.bpf_dir / f"instance-{instance:08x}",
        network=IPv4Network("10.0.0.0/8"),
        subnet_len=24,
        handle=instance,
    )
    with load(settings) as datapath:
        assert datapath.adopted
        yield datapath


def fill_counters(node: Node) -> None:
    random = Random(1)
    with maps_of(node) as datapath:
        counters = datapath.maps["peer_counters"]
        for number in range(1, PEERS + 1):
            cells = [random.randrange(1 << 40) for _ in range(8 * counters.cpus)]
            counters.update(number.to_bytes(4, "little"), struct.pack(f"={len(cells)}Q", *cells))


def fill_flows(node: Node) -> None:
    """Put in flows that look admitted but for their age: counting them costs the same."""
    with maps_of(node) as datapath:
        stamp = datapath.generation << 48 | 1
        value = bytes(Flow(egress=stamp, ingress=stamp, egress_port=9, ingress_port=9))
        keys = (bytes(FlowKey(local=tuple(n.to_bytes(4)))) for n in range(FLOWS))
        datapath.maps["flows"].update_all((key, value) for key in keys)


if __name__ == "__main__":
    main()
