"""The proxy of the udp backend on a real kernel: against itself, and against a foreign peer."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import packets
import proxy_process
import pytest
from kersey_control.carriers import CarrierError, UdpCarrier
from kersey_control.ipv4 import Drop
from kersey_control.node_table import NodeTable
from kersey_control.options import SpoofCheck
from proxy_lab import DEVICE, NETWORK, Node, open_nodes, transfer, udp_socket
from testbed import ping, wait_until
from udp_peer import PORT, Datagram, UdpPeer

Pair = tuple[Node, Node]


@pytest.fixture
def nodes(requires: Callable[..., None]) -> Iterator[Pair]:
    """Give a test two nodes without a tunnel."""
    requires("ip", "ping")
    with open_nodes() as pair:
        yield pair


@pytest.fixture
def tunnel(nodes: Pair) -> Pair:
    """Give a test two nodes with a proxy each."""
    first, second = nodes
    first.start(second.peer())
    second.start(first.peer())
    return nodes


@pytest.fixture
def foreign(nodes: Pair) -> Iterator[tuple[Node, UdpPeer]]:
    """Give a test a node with a proxy, and a foreign peer in the place of the second one."""
    first, second = nodes
    first.start(second.peer())
    with UdpPeer(second.namespace, second.address, first.address) as peer:
        yield first, peer


def test_pods_reach_pods(tunnel: Pair) -> None:
    first, second = tunnel
    assert ping(first.pod, second.pod_address) is not None
    assert ping(second.pod, first.pod_address) is not None
    assert ping(first.namespace, second.pod_address) is not None


@pytest.mark.parametrize("merge", [False, True])
def test_tcp_arrives_whole(nodes: Pair, merge: bool) -> None:  # noqa: FBT001
    first, second = nodes
    first.start(second.peer(), merge=merge)
    second.start(first.peer(), merge=merge)
    transfer(first, second)
    transfer(second, first)
    assert first.running.counters.failures == second.running.counters.failures == 0
    assert set(first.running.counters.dropped) <= {Drop.UPLINK_BUSY}


@pytest.mark.parametrize("size", [0, 1, 1444, 1445, 9000, 65507])
def test_udp_of_every_size_arrives(tunnel: Pair, size: int) -> None:
    """Beyond 1,444 bytes in fragments, which the pod's own stack makes for the device's MTU."""
    first, second = tunnel
    payload = bytes(n & 0xFF for n in range(size))
    with udp_socket(first.pod) as sender, udp_socket(second.pod, 5001) as receiver:
        sender.sendto(payload, (str(second.pod_address), 5001))
        assert receiver.recv(65536) == payload


def test_a_burst_of_datagrams_stays_in_order_and_whole(tunnel: Pair) -> None:
    first, second = tunnel
    sizes = [1400] * 70 + [1000] * 3 + [1400] * 2
    with udp_socket(first.pod) as sender, udp_socket(second.pod, 5001) as receiver:
        for number, size in enumerate(sizes):
            sender.sendto(bytes([number]) * size, (str(second.pod_address), 5001))
        found = [receiver.recv(2000) for _ in sizes]
    assert found == [bytes([number]) * size for number, size in enumerate(sizes)]


def echo(node: Node, *, kind: int = 8, ttl: int = 64, src: str = "", ident: int = 7) -> bytes:
    """Return an ICMP echo request, or reply, for a node's pod, from a pod of the other one."""
    body = b"\0\0" + b"\0\1\0\1" + b"0123456789"
    head = bytes([kind, 0])
    message = head + packets.checksum(head + body).to_bytes(2) + body[2:]
    return packets.ipv4(
        message,
        src=src or "10.244.2.9",
        dst=str(node.pod_address),
        protocol=1,
        ttl=ttl,
        ident=ident,
    )


def test_a_foreign_peer_gets_the_stacks_packet_byte_for_byte(
    foreign: tuple[Node, UdpPeer],
) -> None:
    first, peer = foreign
    with udp_socket(first.pod, 5000) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
        sender.sendto(b"hello", ("10.244.2.9", 5001))
        inner = peer.receive()
    ident, fragment = int.from_bytes(inner[4:6]), int.from_bytes(inner[6:8])
    datagram = packets.udp(b"hello", src=5000, dst=5001)
    pseudo = packets.ipv4(b"", src=str(first.pod_address), dst="10.244.2.9")[12:20]
    checksum = packets.checksum(pseudo + b"\0\x11\0\x0d" + datagram)
    expected = packets.ipv4(
        datagram[:6] + checksum.to_bytes(2) + datagram[8:],
        src=str(first.pod_address),
        dst="10.244.2.9",
        ttl=62,  # 64, one hop for the node's routing, one for the proxy
        tos=0xB8,
        ident=ident,
        fragment=fragment,
    )
    assert inner == expected
    assert peer.seen(inner) == Datagram(
        source="198.18.0.1",
        destination="198.18.0.2",
        source_port=PORT,
        destination_port=PORT,
        dont_fragment=True,
        tos=0,
        has_checksum=True,
        inner=inner,
    )


def test_a_packet_of_a_foreign_peer_reaches_the_pod_byte_for_byte(
    foreign: tuple[Node, UdpPeer],
) -> None:
    first, peer = foreign
    sent = packets.ipv4(
        packets.udp(b"hello", src=5001, dst=5000),
        src="10.244.2.9",
        dst=str(first.pod_address),
        tos=0x28,
        fragment=packets.DONT_FRAGMENT,
    )
    with udp_socket(first.pod, 5000) as receiver, first.pod_frames() as frames:
        peer.send_from_stack(sent)
        assert receiver.recv(100) == b"hello"
        expected = packets.hop(packets.hop(packets.hop(sent)))  # peer, proxy, routing
        wait_until(
            lambda: expected in [frame.raw[14:] for frame in frames.frames],
            timeout=5,
            what="the same bytes at the pod",
        )


def test_a_foreign_peer_is_answered(foreign: tuple[Node, UdpPeer]) -> None:
    first, peer = foreign
    request = echo(first)
    peer.send_from_stack(request)
    answer = peer.receive()
    assert answer[8] == 62
    assert answer[12:20] == request[16:20] + request[12:16]
    assert answer[20] == 0
    assert answer[24:] == request[24:]


def test_a_datagram_longer_than_the_mtu_is_not_cut_short(foreign: tuple[Node, UdpPeer]) -> None:
    first, peer = foreign
    first.namespace.ip("link set pod0 mtu 9000")
    first.pod.ip("link set eth0 mtu 9000")
    payload = bytes(n & 0xFF for n in range(1472))
    inner = packets.ipv4(
        packets.udp(payload[:1444], src=1, dst=5000), src="10.244.2.9", dst=str(first.pod_address)
    )
    first.namespace.ip(f"link set {DEVICE} mtu 1000")
    with udp_socket(first.pod, 5000) as receiver:
        peer.send(inner)
        assert receiver.recv(2000) == payload[:1444]


@pytest.mark.parametrize(
    ("src", "reason"),
    [
        ("10.244.2.9", None),
        ("198.18.0.2", None),
        ("10.244.3.9", Drop.FOREIGN_SOURCE),
        ("10.244.1.9", Drop.FOREIGN_SOURCE),
        ("192.0.2.1", Drop.OUTSIDE_SOURCE),
    ],
)
@pytest.mark.parametrize("check", [SpoofCheck.DROP, SpoofCheck.COUNT])
def test_forged_inner_sources_are_dropped_or_counted(
    nodes: Pair, src: str, reason: Drop | None, check: SpoofCheck
) -> None:
    first, second = nodes
    first.start(second.peer(), check=check)
    with (
        UdpPeer(second.namespace, second.address, first.address) as peer,
        first.pod_frames() as frames,
    ):
        peer.send(echo(first, kind=0, src=src, ident=1))  # a reply, which nobody answers
        peer.send(
            echo(first, kind=0, ident=2)
        )  # behind the first one: when it is here, so would that be
        wait_until(
            lambda: any(f.raw[18:20] == b"\0\2" for f in frames.frames),
            timeout=5,
            what="the packet behind",
        )
    arrived = any(frame.raw[18:20] == b"\0\1" for frame in frames.frames)
    # A source that no route leads back to is refused by the kernel's reverse path filter.
    known = reason is not Drop.OUTSIDE_SOURCE
    assert arrived == (known and (reason is None or check is SpoofCheck.COUNT))
    assert first.running.counters.dropped == ({reason: 1} if reason else {})


def test_a_stranger_is_dropped(nodes: Pair) -> None:
    first, second = nodes
    second.namespace.ip("address add 198.18.0.77/24 dev eth0")
    first.start(second.peer())
    with UdpPeer(second.namespace, second.address + 75, first.address) as stranger:
        stranger.send(echo(first))
        wait_until(
            lambda: first.running.counters.dropped == {Drop.UNKNOWN_NODE: 1},
            timeout=5,
            what="the dropped packet",
        )
    assert first.running.counters.received_packets == 0


def test_pods_learn_that_there_is_no_such_pod(tunnel: Pair) -> None:
    first, _ = tunnel
    said = first.pod.run("ping", "-n", "-c", "1", "-w", "5", "10.244.9.9", check=False).stdout
    assert "From 10.244.1.0 icmp_seq=1 Destination Net Unreachable" in said
    assert first.running.counters.answered >= 1
    said = first.namespace.run("ping", "-n", "-c", "1", "-w", "5", "10.244.9.9", check=False).stdout
    assert "From 10.244.1.0 icmp_seq=1 Destination Net Unreachable" in said


@pytest.mark.parametrize(("ttl", "hop"), [(1, "10.244.1.1"), (2, "10.244.1.0"), (3, "10.244.2.0")])
def test_every_hop_of_a_trace_answers(tunnel: Pair, ttl: int, hop: str) -> None:
    first, second = tunnel
    command = ["ping", "-n", "-c", "1", "-w", "5", "-t", str(ttl), str(second.pod_address)]
    said = first.pod.run(*command, check=False).stdout
    assert f"From {hop} icmp_seq=1 Time to live exceeded" in said


def test_a_narrow_way_is_told_to_the_sender(nodes: Pair) -> None:
    first, second = nodes
    first.start(second.peer())
    second.start(first.peer())
    first.namespace.ip("route add 198.18.0.2/32 dev eth0 mtu 1300")
    whole = ["ping", "-n", "-c", "1", "-w", "5", str(second.pod_address), "-s"]
    said = first.pod.run(*whole, "1400", "-M", "do", check=False).stdout
    assert "From 10.244.1.0 icmp_seq=1 Frag needed and DF set (mtu = 1272)" in said
    assert first.running.counters.dropped == {Drop.TOO_BIG: 1}
    assert ping(first.pod, second.pod_address, "-s", "1244", "-M", "do") is not None
    first.pod.ip("route flush cache")
    assert ping(first.pod, second.pod_address, "-s", "1400", "-M", "dont") is not None
    transfer(first, second)


def test_a_new_table_counts_at_once(tunnel: Pair) -> None:
    first, second = tunnel
    assert ping(first.pod, second.pod_address) is not None
    first.running.use(NodeTable.of([], network=NETWORK))
    assert ping(first.pod, second.pod_address, timeout=1) is None
    first.running.use(NodeTable.of([second.peer()], network=NETWORK))
    assert ping(first.pod, second.pod_address) is not None


def test_marks_of_the_underlay_reach_the_pod(foreign: tuple[Node, UdpPeer]) -> None:
    first, peer = foreign
    sent = packets.ipv4(
        packets.udp(b"hello", src=1, dst=5000), src="10.244.2.9", dst=str(first.pod_address), tos=2
    )
    with udp_socket(first.pod, 5000) as receiver:
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        peer.send(sent, tos=3)
        _, notes, _, _ = receiver.recvmsg(100, 100)
    assert [value for _, _, value in notes] == [b"\3"]


def test_a_deleted_device_ends_the_proxy_and_is_told_once(tunnel: Pair) -> None:
    first, second = tunnel
    first.namespace.ip(f"link del {DEVICE}")
    wait_until(lambda: not first.running.is_running, timeout=5, what="the proxy's end")
    assert first.gone == [DEVICE]
    assert second.gone == []
    first.stop()
    first.start(second.peer())
    assert ping(first.pod, second.pod_address) is not None


def test_closing_is_immediate_and_repeatable(tunnel: Pair) -> None:
    first, _ = tunnel
    proxy = first.running
    proxy.close()
    proxy.close()
    assert not proxy.is_running
    assert "proxy" not in [t.name for t in threading.enumerate() if t is proxy._thread]
    assert first.gone == []


def test_a_new_proxy_takes_over_what_waits_in_the_device(nodes: Pair) -> None:
    first, second = nodes
    second.start(first.peer())
    tun = first.hold()
    first.set_up_device()
    with udp_socket(first.pod) as sender, udp_socket(second.pod, 5001) as receiver:
        sender.sendto(b"early", (str(second.pod_address), 5001))
        first.pump(tun, first.carrier("udp"), second.peer())
        assert receiver.recv(100) == b"early"


def test_an_address_that_is_not_ours_is_refused(nodes: Pair) -> None:
    first, second = nodes
    with pytest.raises(CarrierError, match=r"198\.18\.0\.2, port 8285: EADDRNOTAVAIL"):
        first.namespace.call(lambda: UdpCarrier(second.address))
    first.carrier("udp")
    with pytest.raises(CarrierError, match="EADDRINUSE"):
        first.carrier("udp")


def test_a_killed_process_leaves_device_and_route_and_is_followed(nodes: Pair) -> None:
    first, second = nodes
    second.start(first.peer())

    def route() -> str:
        return first.namespace.run("ip", "route", "get", str(second.pod_address)).stdout

    numbers: list[int] = []
    for _ in range(2):
        with ExitStack() as undo:
            process = undo.enter_context(
                subprocess.Popen(
                    first.namespace.command(sys.executable, Path(proxy_process.__file__), "1", "2"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            undo.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if not numbers:
                first.set_up_device()
            assert ping(first.pod, second.pod_address) is not None
        assert process.returncode == -9
        assert f"dev {DEVICE}" in route()
        shown = first.namespace.run("ip", "-j", "address", "show", DEVICE).stdout
        numbers.append(json.loads(shown)[0]["ifindex"])
        assert json.loads(shown)[0]["addr_info"][0]["local"] == "10.244.1.0"
    assert len(set(numbers)) == 1


def test_noise_on_the_port_ends_nothing(tunnel: Pair) -> None:
    first, second = tunnel
    with second.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as noise:
        for number in range(300):
            noise.sendto(bytes([number & 0xFF]) * (number % 60), (str(first.address), PORT))
    wait_until(
        lambda: sum(first.running.counters.dropped.values()) == 300, timeout=5, what="all of it"
    )
    assert first.running.counters.failures == 0
    assert ping(first.pod, second.pod_address) is not None
