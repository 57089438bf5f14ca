"""The proxy of the ipip backend on a real kernel: against itself, and against hand-made packets."""

import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Self

import packets
import pytest
from kersey_control.ipv4 import Drop
from proxy_lab import Node, open_nodes, transfer, udp_socket
from testbed import ping, wait_until

Pair = tuple[Node, Node]
MTU = 1480
FAR = "10.244.2.9"
DF = packets.DONT_FRAGMENT
CWR = 0x80


class IpipPeer:
    """The other end of the tunnel as a raw socket of protocol 4. A context manager."""

    def __init__(self, node: Node, to: IPv4Address, source: IPv4Address | None = None) -> None:
        self._to = (str(to), 0)
        self._socket = node.namespace.call(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP)
        )
        self._socket.settimeout(5)
        self._socket.bind((str(source or node.address), 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def send(self, inner: bytes, *, tos: int = 0) -> None:
        """Send an inner packet behind an outer header that this kernel makes, in fragments too."""
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        self._socket.sendto(inner, self._to)

    def receive(self) -> tuple[bytes, bytes]:
        """Return the next outer header and the inner packet behind it."""
        packet = self._socket.recv(65536)
        return packet[:20], packet[20:]


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
    first.start(second.peer(), kind="ipip", mtu=MTU)
    second.start(first.peer(), kind="ipip", mtu=MTU)
    return nodes


@pytest.fixture
def foreign(nodes: Pair) -> Iterator[tuple[Node, IpipPeer]]:
    """Give a test a node with a proxy, and a raw socket in the place of the second one."""
    first, second = nodes
    first.start(second.peer(), kind="ipip", mtu=MTU)
    with IpipPeer(second, first.address) as peer:
        yield first, peer


def to_pod(node: Node, payload: bytes = b"hello", *, src: str = FAR, tos: int = 0) -> bytes:
    """Return a UDP packet from afar for a node's pod, port 5000."""
    datagram = packets.udp(payload, src=5001, dst=5000)
    return packets.ipv4(datagram, src=src, dst=str(node.pod_address), tos=tos)


def test_pods_reach_pods(tunnel: Pair) -> None:
    first, second = tunnel
    assert ping(first.pod, second.pod_address) is not None
    assert ping(second.namespace, first.pod_address) is not None
    assert ping(first.pod, second.pod_address, "-s", "1452", "-M", "do") is not None


def test_tcp_arrives_whole(tunnel: Pair) -> None:
    first, second = tunnel
    transfer(first, second)
    transfer(second, first)
    assert first.running.counters.failures == second.running.counters.failures == 0
    assert set(first.running.counters.dropped) <= {Drop.UPLINK_BUSY}


def test_tcp_that_the_kernel_merges_inside_the_tunnel_arrives_whole(
    tunnel: Pair, requires: Callable[..., None]
) -> None:
    requires("ethtool")
    first, second = tunnel
    for node in tunnel:
        # A veth merges what it receives only where its other end does not send whole super-packets.
        node.namespace.run("ethtool", "-K", "eth0", "gro", "on", "tso", "off")
        node.namespace.run("sh", "-c", "echo 200000 >/sys/class/net/eth0/gro_flush_timeout")
    with IpipPeer(second, first.address) as observer:
        observer._socket.setblocking(False)
        transfer(first, second)
        seen: list[tuple[bytes, bytes]] = []
        while len(seen) < 1000:
            try:
                seen.append(observer.receive())
            except BlockingIOError:
                break
    assert max(len(inner) for _, inner in seen) > MTU
    assert second.running.counters.dropped == {}


@pytest.mark.parametrize(("tos", "ecn"), [(0xB8, 0), (0xB9, 1), (0xBA, 2), (0xBB, 2)])
@pytest.mark.parametrize("discover", [0, 2])
def test_the_outer_header_is_made_of_the_inner_one(
    foreign: tuple[Node, IpipPeer], tos: int, ecn: int, discover: int
) -> None:
    first, peer = foreign
    with udp_socket(first.pod, 5000) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
        sender.setsockopt(socket.IPPROTO_IP, 10, discover)  # IP_MTU_DISCOVER
        sender.sendto(b"hello", (FAR, 5001))
    outer, inner = peer.receive()
    fragment = DF if discover else 0
    assert (
        outer
        == packets.ipv4(
            inner,
            src="198.18.0.1",
            dst="198.18.0.2",
            protocol=4,
            ttl=32,
            tos=ecn,
            fragment=fragment,
            ident=int.from_bytes(outer[4:6]),
        )[:20]
    )
    assert (
        inner
        == packets.ipv4(
            inner[20:],
            src=str(first.pod_address),
            dst=FAR,
            ttl=32,  # routing took one hop, the tunnel none
            tos=tos,
            fragment=fragment,
            ident=int.from_bytes(inner[4:6]),
        )
    )
    assert inner.endswith(b"hello")


def test_a_packet_reaches_the_pod_byte_for_byte(foreign: tuple[Node, IpipPeer]) -> None:
    first, peer = foreign
    sent = to_pod(first, tos=0x28)
    with udp_socket(first.pod, 5000) as receiver, first.pod_frames() as frames:
        peer.send(sent)
        assert receiver.recv(100) == b"hello"
        wait_until(
            lambda: packets.hop(sent) in [frame.raw[14:] for frame in frames.frames],
            timeout=5,
            what="the same bytes at the pod",
        )


def test_a_fragmented_outer_packet_arrives_whole(foreign: tuple[Node, IpipPeer]) -> None:
    first, peer = foreign
    payload = bytes(n & 0xFF for n in range(5000))
    with udp_socket(first.pod, 5000) as receiver:
        peer.send(to_pod(first, payload))
        assert receiver.recv(65536) == payload


def test_a_merged_tcp_packet_reaches_the_pod_in_pieces(foreign: tuple[Node, IpipPeer]) -> None:
    """As a network card's driver merges it: whole, and with the pseudo-header's checksum."""
    first, peer = foreign
    data = bytes(n & 0xFF for n in range(4000))
    segment = packets.tcp(data, src=80, dst=5000, flags=packets.ACK | packets.PSH | CWR)
    pseudo = (
        IPv4Address(FAR).packed + first.pod_address.packed + struct.pack("!HH", 6, len(segment))
    )
    segment = segment[:16] + (~packets.checksum(pseudo) & 0xFFFF).to_bytes(2) + segment[18:]
    whole = packets.ipv4(
        segment, src=FAR, dst=str(first.pod_address), protocol=packets.TCP, fragment=DF
    )
    with first.pod_frames() as frames:
        peer.send(whole)

        def pieces() -> list[bytes]:
            return [f.raw[14:] for f in frames.frames if f.outgoing and f.raw[23] == packets.TCP]

        wait_until(lambda: len(pieces()) == 3, timeout=5, what="the pieces")
    assert b"".join(piece[40:] for piece in pieces()) == data
    assert [len(piece) for piece in pieces()] == [1480, 1480, 1160]
    assert [piece[33] & 0x88 for piece in pieces()] == [CWR, 0, packets.PSH]
    for piece in pieces():
        pseudo = piece[12:20] + struct.pack("!HH", 6, len(piece) - 20)
        assert packets.checksum(pseudo + piece[20:]) == 0


def test_what_may_be_fragmented_is_and_what_may_not_is_told(
    foreign: tuple[Node, IpipPeer],
) -> None:
    first, peer = foreign
    first.set_up_device(mtu=1500)
    with udp_socket(first.pod) as sender:
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # no DF
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xBA)
        sender.sendto(bytes(1472), (FAR, 5001))
    outer, inner = peer.receive()
    assert len(inner) == 1500
    assert (outer[1], outer[6] & 0x40, outer[8]) == (2, 0, 63)
    command = ["ping", "-n", "-c", "1", "-w", "5", "-s", "1472", "-M", "do", FAR]
    said = first.pod.run(*command, check=False).stdout
    assert "From 10.244.1.0 icmp_seq=1 Frag needed and DF set (mtu = 1480)" in said


def test_a_narrow_way_is_told_to_the_sender(tunnel: Pair) -> None:
    first, second = tunnel
    first.namespace.ip("route add 198.18.0.2/32 dev eth0 mtu 1300")
    command = ["ping", "-n", "-c", "1", "-w", "5", str(second.pod_address), "-s", "1400"]
    said = first.pod.run(*command, "-M", "do", check=False).stdout
    assert "From 10.244.1.0 icmp_seq=1 Frag needed and DF set (mtu = 1280)" in said
    assert ping(first.pod, second.pod_address, "-s", "1252", "-M", "do") is not None
    first.pod.ip("route flush cache")
    assert ping(first.pod, second.pod_address, "-s", "1400", "-M", "dont") is not None


@pytest.mark.parametrize(
    ("src", "reason"),
    [
        ("10.244.3.9", Drop.FOREIGN_SOURCE),
        ("10.244.1.2", Drop.FOREIGN_SOURCE),
        ("192.0.2.1", Drop.OUTSIDE_SOURCE),
    ],
)
def test_forged_inner_sources_are_dropped(
    foreign: tuple[Node, IpipPeer], src: str, reason: Drop
) -> None:
    first, peer = foreign
    peer.send(to_pod(first, src=src))
    wait_until(lambda: first.running.counters.dropped == {reason: 1}, timeout=5, what="the drop")
    assert first.running.counters.received_packets == 0


def test_a_stranger_is_dropped(nodes: Pair) -> None:
    first, second = nodes
    second.namespace.ip("address add 198.18.0.77/24 dev eth0")
    first.start(second.peer(), kind="ipip", mtu=MTU)
    with IpipPeer(second, first.address, IPv4Address("198.18.0.77")) as stranger:
        stranger.send(to_pod(first))
        wait_until(
            lambda: first.running.counters.dropped == {Drop.UNKNOWN_NODE: 1},
            timeout=5,
            what="the drop",
        )


def test_a_mark_on_a_packet_without_room_for_it_drops_the_packet(
    foreign: tuple[Node, IpipPeer],
) -> None:
    first, peer = foreign
    with udp_socket(first.pod, 5000) as receiver:
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        peer.send(to_pod(first, b"lost", tos=0), tos=3)
        peer.send(to_pod(first, b"marked", tos=1), tos=3)
        payload, notes, _, _ = receiver.recvmsg(100, 100)
    assert (payload, notes[0][2]) == (b"marked", b"\3")
    assert first.running.counters.dropped == {Drop.CONGESTION: 1}


def test_every_hop_of_a_trace_but_the_tunnel_answers(tunnel: Pair) -> None:
    first, second = tunnel
    command = ["ping", "-n", "-c", "1", "-w", "5", "-t", "2", str(second.pod_address)]
    assert "From 10.244.2.0 icmp_seq=1 Time to live" in first.pod.run(*command, check=False).stdout
    command[7] = "3"
    assert "bytes from" in first.pod.run(*command, check=False).stdout
