"""A pod whose packets somebody shapes: what the shaper allows is what passes, fast path or not."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

import pytest
from fast_view import Counters, fast_path_of
from kersey_loader.layout import Program, Verdict
from overlay_view import ip_json, ready
from testbed import Cluster, Node, Pod, wait_until

RATE = 1_000_000
"""Bits per second that the shaper lets through."""

BURST = 32 * 1024
LIMIT = f"rate {RATE}bit burst {BURST} latency 50ms"
SIZE = 1000
OFFERED = 2000
"""Datagrams offered at once: 16 times what a second of the rate would carry."""

FAST_SENT = (Program.FROM_POD, Verdict.FAST)
FAST_RECEIVED = (Program.FROM_UPLINK, Verdict.FAST)


@pytest.fixture
def network(cluster: Cluster) -> Cluster:
    """Give a test a node with two pods, a node with one, and a fast path that must work."""
    ready(cluster, "--datapath=bpf", nodes=2)
    cluster.nodes[0].add_pod()
    for node in cluster.nodes:
        for pod in node.pods:
            wait_until(partial(is_served, pod), timeout=5, what=f"{pod} served")
    return cluster


def is_served(pod: Pod) -> bool:
    with fast_path_of(pod.node) as datapath:
        return port_of(pod) in datapath.pod_ports()


def port_of(pod: Pod) -> int:
    links = ip_json(pod.node, "link", "show", "dev", pod.port)
    return int(links[0]["ifindex"])


def tc(node: Node, command: str) -> str:
    return node.namespace.run("tc", *command.split()).stdout


def shape_towards(pod: Pod) -> str:
    """Limit what the pod receives, as the CNI's bandwidth plugin does; return by which device."""
    tc(pod.node, f"qdisc add dev {pod.port} root tbf {LIMIT}")
    return pod.port


def shape_from(pod: Pod) -> str:
    """Limit what the pod sends, as the CNI's bandwidth plugin does; return by which device."""
    pod.node.namespace.ip("link add bwp0 type ifb", "link set bwp0 up")
    tc(pod.node, f"qdisc add dev {pod.port} ingress")
    redirect = "action mirred egress redirect dev bwp0"
    tc(
        pod.node,
        f"filter add dev {pod.port} parent ffff: protocol all u32 match u32 0 0 {redirect}",
    )
    tc(pod.node, f"qdisc add dev bwp0 root tbf {LIMIT}")
    return "bwp0"


@dataclass(frozen=True, slots=True)
class Shaper:
    """What a device's tbf counted: bytes and packets let through, packets dropped and waiting."""

    bytes: int
    packets: int
    dropped: int
    waiting: int

    @classmethod
    def of(cls, node: Node, device: str) -> Self:
        """Read the counters."""
        shown = tc(node, f"-s qdisc show dev {device}").partition("qdisc tbf")[2]
        pattern = r"Sent (\d+) bytes (\d+) pkt \(dropped (\d+),.* backlog \S+ (\d+)p"
        found = re.search(pattern, shown, re.DOTALL)
        assert found is not None, shown
        return cls(*map(int, found.groups()))


@contextmanager
def conversation(one: Pod, two: Pod) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield sockets of two pods that can exchange datagrams."""
    near, far = (pod.namespace.call(partial(udp_socket, str(pod.address))) for pod in (one, two))
    with near, far:
        near.connect(far.getsockname())
        far.connect(near.getsockname())
        yield near, far


def udp_socket(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 0))
    made.settimeout(5)
    return made


def exchange(one: socket.socket, two: socket.socket) -> None:
    for sender, receiver in ((one, two), (two, one)):
        sender.send(b"datagram")
        assert receiver.recv(100) == b"datagram"


def is_fast(counters: Counters, sockets: tuple[socket.socket, socket.socket]) -> bool:
    """Return whether both directions of a flow have been fast since the counters were made."""
    exchange(*sockets)
    return min(counters(*FAST_SENT), counters(*FAST_RECEIVED)) > 0


def wait_fast(node: Node, sockets: tuple[socket.socket, socket.socket]) -> None:
    counters = Counters(node)
    wait_until(lambda: is_fast(counters, sockets), timeout=10, what="a fast flow")


def drained(receiver: socket.socket) -> int:
    """Return how many bytes have arrived."""
    receiver.setblocking(False)
    total = 0
    with suppress(BlockingIOError):
        while True:
            total += len(receiver.recv(2 * SIZE))
    receiver.settimeout(5)
    return total


Shape = Callable[[Pod], str]
WAYS: dict[str, Shape] = {"to the pod": shape_towards, "from the pod": shape_from}


@pytest.mark.parametrize("shape", WAYS.values(), ids=WAYS.keys())
def test_a_limit_put_on_a_pod_with_a_fast_flow_holds_and_other_pods_stay_fast(
    network: Cluster, shape: Shape
) -> None:
    one, two = network.nodes
    limited, free = one.pods
    (remote,) = two.pods
    with conversation(limited, remote) as (near, far):
        wait_fast(one, (near, far))
        device = shape(limited)
        wait_until(lambda: not is_served(limited), timeout=5, what="the shaper is noticed")
        counters, before, began = Counters(one), Shaper.of(one, device), time.monotonic()
        sender, receiver = (far, near) if shape is shape_towards else (near, far)
        for _ in range(OFFERED):
            sender.send(bytes(SIZE))
        wait_until(lambda: not Shaper.of(one, device).waiting, timeout=10, what="empty queue")
        after, seconds = Shaper.of(one, device), time.monotonic() - began
        arrived = drained(receiver)
        assert after.packets - before.packets + after.dropped - before.dropped >= OFFERED
        assert 0 < arrived <= after.bytes - before.bytes < BURST + 2 * RATE / 8 * seconds
        assert not counters(*FAST_SENT) + counters(*FAST_RECEIVED), counters.changed
    assert is_served(free)
    with conversation(free, remote) as sockets:
        wait_fast(one, sockets)


@pytest.mark.parametrize("shape", WAYS.values(), ids=WAYS.keys())
def test_a_pod_whose_limit_goes_is_fast_again(network: Cluster, shape: Shape) -> None:
    one, two = network.nodes
    limited, remote = one.pods[0], two.pods[0]
    shape(limited)
    wait_until(lambda: not is_served(limited), timeout=5, what="the shaper is noticed")
    what = "root" if shape is shape_towards else "ingress"
    tc(one, f"qdisc del dev {limited.port} {what}")
    wait_until(lambda: is_served(limited), timeout=5, what="the shaper's end is noticed")
    with conversation(limited, remote) as sockets:
        wait_fast(one, sockets)


def test_a_limit_that_was_there_before_the_daemon_holds(network: Cluster) -> None:
    one = network.nodes[0]
    limited, free = one.pods
    one.daemon.stop()
    shape_towards(limited)
    one.daemon.start("--datapath=bpf")
    one.daemon.wait_ready()
    wait_until(lambda: not is_served(limited), timeout=5, what="the shaper is noticed")
    assert is_served(free)
