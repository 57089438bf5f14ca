"""How long leases take from etcd to the kernel, and what the daemon weighs, on one node.

Leases written at once, one after the other, and read by a daemon that starts: each is timed from
the first write (or the start) to the last route. Run it as root in namespaces of its own:
`scripts/bench leases`.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from testbed import Cluster, Node, wait_until
from testbed.cluster import SUBNETS_PREFIX

SIZES = (1_000, 10_000)
SINGLE_EVENTS = 200
AS_USERS = ("--probe-interval=5",)
"""The daemon as it is by default: the testbed's own options switch probes off."""

CONFIG = {"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMax": "10.0.99.0"}
"""Daemons choose below 10.0.100.0, so that the leases of the benchmark are free."""


def lease(number: int, *, node: int | None = None) -> tuple[str, str]:
    """Return key and value of the lease number `number`, as flannel writes it."""
    subnet = (10 << 24) + ((256 + number) << 8)
    address = (198 << 24) + (19 << 16) + (number if node is None else node)
    mac = "0e:00:" + number.to_bytes(4).hex(":")
    value = {
        "PublicIP": dotted(address),
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": mac},
    }
    return f"{SUBNETS_PREFIX}{dotted(subnet)}-24", json.dumps(value, separators=(",", ":"))


def dotted(address: int) -> str:
    return ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))


def leases(count: int) -> dict[str, str]:
    return dict(lease(number) for number in range(count))


def routes(node: Node) -> int:
    return node.namespace.call(_count_routes)


def _count_routes() -> int:
    # Cheaper than `ip route` and therefore less in the daemon's way on a small machine.
    with Path("/proc/thread-self/net/route").open(encoding="ascii") as file:
        return sum(line.startswith("flannel.1\t") for line in file)


def timed(action: Callable[[], object], node: Node, count: int) -> float:
    began = time.monotonic()
    action()
    wait_until(lambda: routes(node) == count, timeout=120, what=f"{count} routes")
    return time.monotonic() - began


def rss_mb(node: Node) -> float:
    """Return the daemon's resident memory once it has come to rest."""
    time.sleep(3)
    with Path(f"/proc/{node.daemon.process.pid}/status").open(encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def measure(count: int) -> Iterator[tuple[str, float, str]]:
    """Yield name, figure and unit of everything measured with `count` leases."""
    with Cluster(prefix="kb-") as cluster:
        cluster.start_etcd(CONFIG)
        node = cluster.add_node()
        node.daemon.start(*AS_USERS)
        node.daemon.wait_ready()
        records = leases(count)
        yield (
            "written at once, to the kernel",
            timed(lambda: cluster.etcd.put_many(records), node, count),
            "s",
        )
        yield "daemon RSS", rss_mb(node), "MB"
        node.daemon.stop()
        yield "restart onto the same state, to ready", restart(node), "s"
        node.daemon.stop()
        node.namespace.ip("link del flannel.1")
        yield (
            "start from nothing, to the kernel",
            timed(lambda: node.daemon.start(*AS_USERS), node, count),
            "s",
        )
        node.daemon.wait_ready()
        yield "daemon RSS after a start", rss_mb(node), "MB"
        if count == SIZES[0]:
            yield from single_events(cluster, node, count)


def restart(node: Node) -> float:
    began = time.monotonic()
    node.daemon.start(*AS_USERS)
    node.daemon.wait_ready()
    return time.monotonic() - began


def single_events(cluster: Cluster, node: Node, count: int) -> Iterator[tuple[str, float, str]]:
    """Time single new leases, etcdctl's own start (some 20 ms) included."""
    times = []
    for number in range(count, count + SINGLE_EVENTS):
        key, value = lease(number)
        began = time.monotonic()
        cluster.etcd.put(key, value)
        written = time.monotonic()
        while routes(node) != number + 1:
            time.sleep(0.0005)
        times.append((time.monotonic() - began, time.monotonic() - written))
    after = sorted(after for _, after in times)
    yield "one lease, from etcdctl's end to the route, median", 1e3 * statistics.median(after), "ms"
    yield "the same, 99th percentile", 1e3 * after[int(len(after) * 0.99)], "ms"


def main() -> None:
    for count in SIZES:
        for name, figure, unit in measure(count):
            print(f"{count:>7,} leases  {name:<55} {figure:9.2f} {unit}", flush=True)


if __name__ == "__main__":
    main()
