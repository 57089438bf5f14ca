"""Both directions of the proxy, packet in, packet out; device and wire are queues."""

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.carriers import Arrival
from kersey_control.icmp import Complaint, error_about
from kersey_control.ipv4 import LONGEST, Drop, Header
from kersey_control.node_table import NodeTable
from kersey_control.options import SpoofCheck
from kersey_control.peer import Peer, Via
from kersey_control.pump import BATCH, Answers, Counters, Ends, Incoming, Outgoing, Tally
from kersey_control.tun import TunGoneError

NODE_2, NODE_3, STRANGER = (int(IPv4Address(f"198.18.0.{n}")) for n in (2, 3, 9))
OWN = IPv4Address("10.244.1.0")
TABLE = NodeTable.of(
    [
        Peer(IPv4Network("10.244.2.0/24"), IPv4Address(NODE_2), Via.UDP),
        Peer(IPv4Network("10.244.3.0/24"), IPv4Address(NODE_3), Via.UDP),
    ],
    network=IPv4Network("10.244.0.0/16"),
)
DF = packets.DONT_FRAGMENT


@dataclass
class Queue:
    """A TUN device whose stack is the test."""

    waiting: deque[bytes] = field(default_factory=deque)
    taken: list[bytes] = field(default_factory=list)
    mtu: int = 1472
    up: bool = True

    def fileno(self) -> int:
        return -1

    def read_into(self, room: memoryview) -> int | None:
        assert len(room) >= LONGEST
        if not self.waiting:
            return None
        packet = self.waiting.popleft()
        room[: len(packet)] = packet
        return len(packet)

    def write(self, packet: memoryview) -> bool:
        if self.up:
            self.taken.append(bytes(packet))
        return self.up


@dataclass
class Wire:
    """A carrier whose other end is the test; `trouble` is asked before anything is sent."""

    arriving: deque[tuple[int, bytes, int, int]] = field(default_factory=deque)
    sent: list[tuple[int, list[bytes], int]] = field(default_factory=list)
    in_fragments: list[bytes] = field(default_factory=list)
    trouble: Callable[[int, int], int] = lambda _node, _size: 0
    overhead: int = 28
    most: int = 64
    carries_ecn: bool = False
    mtu: int = 1372

    def fileno(self) -> int:
        return -1

    def send(self, packets: memoryview, *, size: int, node: int, ecn: int) -> None:
        assert len(packets) <= max(size, LONGEST - 28)
        if code := self.trouble(node, size):
            raise OSError(code, "trouble")
        self.sent.append((node, pieces(bytes(packets), size), ecn))

    def send_in_fragments(self, packet: memoryview, *, node: int, ecn: int) -> None:
        assert (node in (NODE_2, NODE_3), ecn) == (True, 0)
        self.in_fragments.append(bytes(packet))

    def receive(self, room: memoryview) -> Arrival | None:
        if not self.arriving:
            return None
        node, data, size, tos = self.arriving.popleft()
        room[: len(data)] = data
        return Arrival(node, room[: len(data)], size, tos)

    def close(self) -> None:
        """Nothing to close."""

    def mtu_to(self, node: int) -> int:
        assert node in (NODE_2, NODE_3)
        return self.mtu


@dataclass
class Bench:
    """Everything around one direction."""

    hops: int = 1
    check: SpoofCheck = SpoofCheck.DROP
    tun: Queue = field(default_factory=Queue)
    wire: Wire = field(default_factory=Wire)
    answered: list[bytes] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    now: float = 0.0

    def ends(self) -> Ends:
        answers = Answers(OWN, self.tally, send=self.answered.append, clock=lambda: self.now)
        return Ends(self.tun, self.wire, self.hops, answers, self.tally)

    def out(self, *sent: bytes) -> list[tuple[int, list[bytes], int]]:
        """Return what leaves when the stack sends these packets."""
        self.tun.waiting.extend(sent)
        outgoing = Outgoing(self.ends())
        while outgoing.carry(TABLE):
            pass
        return self.wire.sent

    def come(self, data: bytes, *, node: int = NODE_2, size: int = 0, tos: int = 0) -> list[bytes]:
        """Return what the stack gets when this arrives."""
        self.wire.arriving.append((node, data, size or len(data), tos))
        incoming = Incoming(self.ends(), self.check)
        while incoming.carry(TABLE):
            pass
        return self.tun.taken

    @property
    def counters(self) -> Counters:
        return self.tally.snapshot()

    def dropped(self) -> dict[Drop, int]:
        return dict(self.counters.dropped)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def to_pod(
    size: int = 100, *, dst: str = "10.244.2.2", ttl: int = 64, fragment: int = 0, tos: int = 0
) -> bytes:
    """Return a packet of `size` bytes from our pod."""
    data = bytes(size - 20)
    return packets.ipv4(data, src="10.244.1.2", dst=dst, ttl=ttl, fragment=fragment, tos=tos)


def from_pod(
    data: bytes = b"data", *, src: str = "10.244.2.2", ttl: int = 64, tos: int = 0
) -> bytes:
    """Return a packet for our pod."""
    return packets.ipv4(data, src=src, dst="10.244.1.2", ttl=ttl, tos=tos)


def complaint(about: bytes, kind: Complaint, *, mtu: int = 0) -> bytes:
    view = memoryview(about)
    return error_about(view, Header.of(view), kind, source=int(OWN), mtu=mtu)


def test_a_packet_leaves_for_its_node_one_hop_older() -> None:
    bench = Bench()
    assert bench.out(to_pod()) == [(NODE_2, [packets.hop(to_pod())], 0)]
    assert bench.counters == Counters(sent_packets=1, sent_bytes=100)


def test_without_hops_a_packet_leaves_as_it_is() -> None:
    assert Bench(hops=0).out(to_pod(ttl=1)) == [(NODE_2, [to_pod(ttl=1)], 0)]


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        pytest.param([100] * 3, [[100] * 3], id="equal ones together"),
        pytest.param([100, 100, 60, 100], [[100, 100, 60], [100]], id="a shorter one ends the run"),
        pytest.param([100, 101], [[100], [101]], id="a longer one begins another"),
        pytest.param([100, 60, 60], [[100, 60], [60]], id="nothing behind a shorter one"),
        pytest.param([40] * 65, [[40] * 64, [40]], id="as many as the kernel takes"),
        pytest.param([1472] * 46, [[1472] * 44, [1472] * 2], id="as much as a datagram takes"),
        pytest.param([65500] * 6, [[65500]] * 6, id="the longest ones alone"),
        pytest.param([65535, 65535], [[65535]] * 2, id="longer than a datagram can be"),
    ],
)
def test_runs_are_what_one_call_can_send(sizes: list[int], runs: list[list[int]]) -> None:
    bench = Bench()
    bench.wire.trouble = lambda _node, size: 0 if size <= 65507 else errno.EMSGSIZE
    found = bench.out(*map(to_pod, sizes))
    lengths = [[len(packet) for packet in run] for _, run, _ in found]
    lengths += [[len(packet)] for packet in bench.wire.in_fragments]
    assert lengths == runs
    assert bench.counters.sent_packets == len(sizes)
    assert bench.counters.sent_bytes == sum(sizes)


def test_each_node_has_its_own_run_and_order_is_kept() -> None:
    two, three = to_pod(), to_pod(dst="10.244.3.2")
    found = Bench().out(two, two, three, two)
    assert [(node, len(run)) for node, run, _ in found] == [(NODE_2, 2), (NODE_3, 1), (NODE_2, 1)]


def test_dropped_packets_do_not_break_a_run() -> None:
    bench = Bench()
    found = bench.out(to_pod(), b"\x60" + bytes(50), to_pod(dst="10.244.9.9"), to_pod())
    assert found == [(NODE_2, [packets.hop(to_pod())] * 2, 0)]
    assert bench.dropped() == {Drop.NOT_IPV4: 1, Drop.NO_PEER: 1}


def test_more_packets_than_a_batch_are_left_for_the_next_turn() -> None:
    bench = Bench()
    bench.tun.waiting.extend([to_pod()] * (BATCH + 1))
    outgoing = Outgoing(bench.ends())
    assert outgoing.carry(TABLE)
    assert len(bench.tun.waiting) == 1
    assert not outgoing.carry(TABLE)
    assert bench.counters.sent_packets == BATCH + 1


@pytest.mark.parametrize("carries", [True, False])
def test_ecn_goes_outside_where_the_carrier_carries_it(carries: bool) -> None:  # noqa: FBT001
    bench = Bench()
    bench.wire.carries_ecn = carries
    found = bench.out(*(to_pod(tos=0xB8 | ecn) for ecn in range(4)))
    assert [(len(run), ecn) for _, run, ecn in found] == (
        [(1, 0), (1, 1), (2, 2)] if carries else [(4, 0)]
    )


def test_a_kernel_that_cannot_segment_gets_packets_one_by_one() -> None:
    bench = Bench()
    calls: list[int] = []

    def trouble(_node: int, size: int) -> int:
        calls.append(size)
        return errno.EIO if len(calls) == 1 else 0

    bench.wire.trouble = trouble
    assert bench.out(to_pod(), to_pod()) == [(NODE_2, [packets.hop(to_pod())], 0)] * 2
    assert bench.counters == Counters(sent_packets=2, sent_bytes=200)


@pytest.mark.parametrize(
    ("packet", "reason", "kind"),
    [
        (to_pod(dst="10.244.9.9"), Drop.NO_PEER, Complaint.NET_UNREACHABLE),
        (to_pod(dst="192.0.2.1"), Drop.NO_PEER, Complaint.NET_UNREACHABLE),
        (to_pod(ttl=1), Drop.TTL, Complaint.TTL_EXCEEDED),
        (to_pod(ttl=0), Drop.TTL, Complaint.TTL_EXCEEDED),
        (to_pod(dst="224.0.0.1"), Drop.NO_PEER, None),
        (to_pod(dst="10.244.9.9", fragment=8), Drop.NO_PEER, None),
    ],
)
def test_a_packet_that_goes_no_further_is_counted_and_answered(
    packet: bytes, reason: Drop, kind: Complaint | None
) -> None:
    bench = Bench()
    assert bench.out(packet) == []
    assert bench.answered == ([complaint(packet, kind)] if kind else [])
    assert bench.counters == Counters(answered=1 if kind else 0, dropped={reason: 1})


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (errno.EAGAIN, Drop.UPLINK_BUSY, None),
        (errno.ENOBUFS, Drop.UPLINK_BUSY, None),
        (errno.EPERM, Drop.UPLINK_REFUSED, None),
        (errno.ENETUNREACH, Drop.UPLINK_REFUSED, Complaint.HOST_UNREACHABLE),
        (errno.EHOSTUNREACH, Drop.UPLINK_REFUSED, Complaint.HOST_UNREACHABLE),
    ],
)
def test_what_the_uplink_refuses_is_counted(
    code: int, reason: Drop, kind: Complaint | None
) -> None:
    bench = Bench()
    bench.wire.trouble = lambda node, _size: code if node == NODE_2 else 0
    assert bench.out(to_pod(), to_pod(), to_pod(dst="10.244.3.2")) == [
        (NODE_3, [packets.hop(to_pod(dst="10.244.3.2"))], 0)
    ]
    assert bench.dropped() == {reason: 2}
    assert bench.answered == ([complaint(packets.hop(to_pod()), kind)] * 2 if kind else [])


def test_one_too_long_for_the_way_is_answered_with_the_mtu_that_fits() -> None:
    bench = Bench()
    bench.wire.trouble = lambda _node, size: errno.EMSGSIZE if size > 1372 else 0
    long, fitting = to_pod(1400, fragment=DF), to_pod(1372, fragment=DF)
    assert bench.out(long, fitting) == [(NODE_2, [packets.hop(fitting)], 0)]
    expected = complaint(packets.hop(long), Complaint.FRAGMENTATION_NEEDED, mtu=1372)
    assert bench.answered == [expected]
    assert bench.dropped() == {Drop.TOO_BIG: 1}


def test_one_that_may_be_fragmented_is() -> None:
    bench = Bench()
    bench.wire.trouble = lambda _node, _size: errno.EMSGSIZE
    bench.out(to_pod(1400))
    assert bench.wire.in_fragments == [packets.hop(to_pod(1400))]
    assert bench.counters == Counters(sent_packets=1, sent_bytes=1400)


@pytest.mark.parametrize("mtu", [1400, 67, -28])
def test_an_mtu_that_makes_no_sense_is_not_told(mtu: int) -> None:
    bench = Bench()
    bench.wire.mtu = mtu
    bench.wire.trouble = lambda _node, _size: errno.EMSGSIZE
    bench.out(to_pod(1400, fragment=DF))
    assert bench.answered == []
    assert bench.dropped() == {Drop.TOO_BIG: 1}


def test_errors_are_limited_each_kind_apart() -> None:
    bench = Bench()
    bench.out(*[to_pod(dst="10.244.9.9")] * 200, to_pod(ttl=1))
    assert bench.counters.answered == 51
    assert bench.dropped() == {Drop.NO_PEER: 200, Drop.TTL: 1}


def test_a_packet_reaches_the_stack_one_hop_older() -> None:
    bench = Bench()
    assert bench.come(from_pod()) == [packets.hop(from_pod())]
    assert bench.counters == Counters(received_packets=1, received_bytes=24)


def test_merged_packets_are_taken_apart() -> None:
    first, second, last = from_pod(b"1234"), from_pod(b"5678"), from_pod(b"9")
    found = Bench(hops=0).come(first + second + last, size=24)
    assert found == [first, second, last]


SENDERS = [
    pytest.param(NODE_2, "10.244.2.2", None, id="of its lease"),
    pytest.param(NODE_2, "198.18.0.2", None, id="the node itself"),
    pytest.param(NODE_2, "10.244.3.2", Drop.FOREIGN_SOURCE, id="of another lease"),
    pytest.param(NODE_2, "10.244.1.2", Drop.FOREIGN_SOURCE, id="of our own lease"),
    pytest.param(NODE_2, "10.244.77.1", Drop.FOREIGN_SOURCE, id="of no lease"),
    pytest.param(NODE_2, "198.18.0.3", Drop.OUTSIDE_SOURCE, id="another node"),
    pytest.param(NODE_2, "8.8.8.8", Drop.OUTSIDE_SOURCE, id="of the world"),
    pytest.param(STRANGER, "10.244.2.2", Drop.UNKNOWN_NODE, id="a stranger"),
    pytest.param(STRANGER, "198.18.0.9", Drop.UNKNOWN_NODE, id="a stranger itself"),
]


@pytest.mark.parametrize("check", SpoofCheck)
@pytest.mark.parametrize(("node", "src", "reason"), SENDERS)
def test_senders_are_checked(node: int, src: str, reason: Drop | None, check: SpoofCheck) -> None:
    bench = Bench(check=check)
    packet = from_pod(src=src)
    arrives = reason is None or check is not SpoofCheck.DROP
    assert bench.come(packet, node=node) == ([packets.hop(packet)] if arrives else [])
    counted = reason is not None and check is not SpoofCheck.OFF
    assert bench.dropped() == ({reason: 1} if counted and reason else {})


def test_an_expired_packet_is_answered() -> None:
    bench = Bench()
    packet = from_pod(ttl=1)
    assert bench.come(packet) == []
    assert bench.answered == [complaint(packet, Complaint.TTL_EXCEEDED)]
    assert bench.dropped() == {Drop.TTL: 1}


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [(0xB8, 0x03, None), (0xBA, 0x03, 0xBB), (0xBA, 0x01, 0xB9), (0xB8, 0x02, 0xB8)],
)
def test_marks_of_the_way_are_honoured(inner: int, outer: int, expected: int | None) -> None:
    bench = Bench()
    found = bench.come(from_pod(tos=inner), tos=outer)
    if expected is None:
        assert found == []
        assert bench.dropped() == {Drop.CONGESTION: 1}
    else:
        assert found == [packets.hop(from_pod(tos=expected))]


def test_unsound_arrivals_are_counted() -> None:
    bench = Bench()
    for data in (b"", b"\x45", from_pod() + b"x", from_pod()[:-1]):
        bench.come(data)
    assert bench.tun.taken == []
    assert bench.dropped() == {Drop.TRUNCATED: 3, Drop.LENGTH: 1}


def test_an_unfinished_long_tcp_packet_arrives_in_pieces_that_fit() -> None:
    bench = Bench(hops=0)
    bench.tun.mtu = 140
    segment = packets.tcp(bytes(250), src=80, dst=81)
    pseudo = IPv4Address("10.244.2.2").packed + IPv4Address("10.244.1.2").packed
    pseudo += bytes([0, 6]) + len(segment).to_bytes(2)
    unfinished = segment[:16] + (~packets.checksum(pseudo) & 0xFFFF).to_bytes(2) + segment[18:]
    packet = packets.ipv4(unfinished, src="10.244.2.2", dst="10.244.1.2", protocol=packets.TCP)
    assert [len(piece) for piece in bench.come(packet)] == [140, 140, 90]
    bench.tun.mtu = 1472
    assert len(bench.come(packet)) == 4
    assert packets.checksum(pseudo + bench.tun.taken[-1][20:]) == 0


def test_what_the_device_refuses_is_counted() -> None:
    bench = Bench()
    bench.tun.up = False
    bench.come(from_pod())
    assert bench.counters == Counters(dropped={Drop.DEVICE_REFUSED: 1})


def test_an_error_on_the_socket_costs_one_look() -> None:
    bench = Bench()
    errors = [OSError(errno.EHOSTUNREACH, "soft error")]
    receive = bench.wire.receive

    def failing(room: memoryview) -> Arrival | None:
        if errors:
            raise errors.pop()
        return receive(room)

    bench.wire.receive = failing  # type: ignore[method-assign]
    assert bench.come(from_pod()) == [packets.hop(from_pod())]


def test_a_deleted_device_is_no_packets_fault() -> None:
    class Gone(Queue):
        def read_into(self, room: memoryview) -> int | None:
            raise TunGoneError(str(len(room)))

    with pytest.raises(TunGoneError):
        Outgoing(Bench(tun=Gone()).ends()).carry(TABLE)


NOISE = st.one_of(
    st.binary(max_size=120),
    st.builds(
        packets.ipv4,
        st.binary(max_size=80),
        src=st.sampled_from(["10.244.2.2", "10.244.3.2", "198.18.0.2", "8.8.8.8"]),
        dst=st.sampled_from(["10.244.2.2", "10.244.3.2", "10.244.1.2", "224.0.0.1"]),
        protocol=st.sampled_from([1, 6, 17, 99]),
        ttl=st.integers(0, 3),
        tos=st.integers(0, 255),
        fragment=st.integers(0, 0xFFFF),
        options=st.sampled_from([b"", b"\1\1\1\0"]),
    ),
)
CODES = st.sampled_from([0, errno.EMSGSIZE, errno.EAGAIN, errno.ENETUNREACH, errno.EINVAL])


@given(st.lists(NOISE, max_size=12), CODES, st.integers(0, 1))
def test_each_outgoing_packet_is_sent_or_counted(sent: list[bytes], code: int, hops: int) -> None:
    bench = Bench(hops=hops)
    bench.wire.trouble = lambda _node, size: code if size % 2 else 0
    bench.out(*(packet for packet in sent if packet))
    counters = bench.counters
    assert counters.sent_packets + sum(counters.dropped.values()) == len([p for p in sent if p])


@given(NOISE, st.sampled_from([NODE_2, NODE_3, STRANGER]), st.integers(0, 255), st.integers(0, 60))
def test_each_incoming_packet_is_taken_or_counted(
    data: bytes, node: int, tos: int, size: int
) -> None:
    bench = Bench()
    bench.come(data, node=node, tos=tos, size=size)
    counters = bench.counters
    expected = len(pieces(data, size or len(data) or 1)) or 1
    assert counters.received_packets + sum(counters.dropped.values()) == expected
    for packet in bench.tun.taken:
        assert packets.checksum(packet[: (packet[0] & 15) * 4]) == 0
