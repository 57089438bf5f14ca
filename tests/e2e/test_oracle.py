"""With programs and without: whatever a pod sends, the same comes of it, under anybody's rules.

The oracle is a second testbed that is the same but for the programs. Each test also asks the
counters whether what should be fast was: equal results of two slow paths would prove nothing.
"""

import errno
import hashlib
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
from kersey_loader.layout import Program
from oracle import CLIENT, SERVER, End, Lane, Pair, RuleSet, Shot, side_by_side
from oracle.judgement import FastCount, agree, compare_random, received
from oracle.rules import (
    ANY_OTHER,
    BURST,
    DROP,
    DSCP,
    DSCP_MANGLE,
    INVALID_DROP,
    NO_RULES,
    RATE_LIMIT,
    RULE_SETS,
    TTL,
    TTL_MANGLE,
)
from oracle.shots import MTU, Checksum, Flow
from oracle.side import WIDE, pins_of, programs_of
from packets import TCP, UDP
from testbed import Pod, wait_until

CASES = [
    pytest.param(rules, lane, id=f"{rules}-{lane.name.lower()}")
    for rules in RULE_SETS
    for lane in rules.lanes
]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Give the module's tests both testbeds."""
    for program in ("ip", "etcd", "etcdctl", "nft", "tc"):
        if shutil.which(program) is None:
            pytest.skip(f"missing: {program}")
    with side_by_side() as both:
        yield both


def test_the_testbeds_differ_in_the_programs_and_in_nothing_else(pair: Pair) -> None:
    plain, fast = (side.nodes for side in pair.sides)
    assert programs_of(plain) == []
    assert all(pins_of(node) for node in fast)
    assert [node.pod_subnet() for node in plain] == [node.pod_subnet() for node in fast]
    addresses = [[pod.address for pod in side.cluster.pods] for side in pair.sides]
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize(("rules", "lane"), CASES)
def test_random_packets_fare_the_same(pair: Pair, rules: RuleSet, lane: Lane) -> None:
    with pair.under(rules):
        if rules.fast:
            pair.wait_fast()
        compare_random(pair, rules, lane)


def primed(pair: Pair, protocol: int) -> Flow:
    """Return a flow that both testbeds have seen in both directions."""
    flow = pair.flow(protocol)
    pair.prime(flow)
    return flow


MALFORMED = {
    "udp longer than the packet": (INVALID_DROP, Shot(udp_length_error=8)),
    "udp shorter than its header": (INVALID_DROP, Shot(udp_length_error=-33)),
    "tcp header shorter than any": (INVALID_DROP, Shot(protocol=TCP, data_offset=4)),
    "tcp header longer than the packet": (INVALID_DROP, Shot(protocol=TCP, data_offset=15)),
    "tcp without flags": (INVALID_DROP, Shot(protocol=TCP, flags=0)),
    "ip header with a wrong checksum": (NO_RULES, Shot(ip_checksum=Checksum.WRONG)),
}


@pytest.mark.parametrize(("rules", "shot"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_packet_of_an_admitted_flow_fares_as_any(
    pair: Pair, rules: RuleSet, shot: Shot
) -> None:
    with pair.under(rules):
        pair.wait_fast()
        pair.fire((shot, primed(pair, shot.protocol)))
        agree(pair)


SPARED = {
    "dscp": (DSCP_MANGLE, Shot(tos=DSCP << 2)),
    "ttl": (TTL_MANGLE, Shot(ttl=TTL + 1)),
}


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize(("rules", "spared"), SPARED.values(), ids=SPARED.keys())
def test_a_packet_that_a_rule_happens_to_leave_alone_admits_none_that_it_rewrites(
    pair: Pair, rules: RuleSet, spared: Shot, protocol: int
) -> None:
    with pair.under(rules):
        flow = primed(pair, protocol)
        for end in End:
            pair.fire((replace(spared, sender=end, protocol=protocol), flow))
        pair.fire(*((Shot(sender=end, protocol=protocol), flow) for end in End))
        agree(pair)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_wrong_payload_checksum_is_left_to_the_pod_where_a_node_would_have_dropped_it(
    pair: Pair, protocol: int
) -> None:
    # Stated inequivalence: verifying it would cost more than the rest of a program.
    with pair.under(INVALID_DROP):
        pair.wait_fast()
        agree(pair)
        flow = primed(pair, protocol)
        agree(pair)
        fast = FastCount(pair)
        pair.fire((Shot(protocol=protocol, checksum=Checksum.WRONG), flow))
        (difference,) = pair.differences()
        assert "without programs: nothing" in difference
        assert fast()[SERVER, Program.FROM_UPLINK] == 1


def test_a_rate_limit_holds_alike_for_a_flow_that_is_not_admitted(pair: Pair) -> None:
    with pair.under(RATE_LIMIT):
        flow, fast = pair.flow(UDP), FastCount(pair)
        pair.fire(*[(Shot(), flow)] * (3 * BURST))
        assert received(pair) == [BURST, BURST]
        agree(pair)
        assert not any(fast().values())


def test_a_rate_limit_does_not_count_an_admitted_flow_until_it_is_flushed(pair: Pair) -> None:
    """State the inequivalence: fast packets take nothing from the limit, and are whole."""
    with pair.under(RATE_LIMIT):
        pair.wait_fast()
        agree(pair)
        flow = primed(pair, UDP)
        agree(pair)
        pair.fire(*[(Shot(), flow)] * (3 * BURST))
        assert received(pair) == [BURST - 1, 3 * BURST]
        plain, fast = (side.arrivals() for side in pair.sides)
        assert plain.items() <= fast.items()
        pair.differences()
        with pair.under(ANY_OTHER):
            pair.fire(*[(Shot(), flow)] * (3 * BURST))
            assert received(pair) == [0, BURST - 1]
            pair.differences()
            pair.fire(*[(Shot(), flow)] * BURST)
            assert received(pair) == [0, 0]
            agree(pair)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_rule_added_under_an_admitted_flow_stops_it(pair: Pair, protocol: int) -> None:
    pair.wait_fast()
    flow, fast = primed(pair, protocol), FastCount(pair)
    both = [(Shot(sender=end, protocol=protocol), flow) for end in End] * 5
    agree(pair)
    pair.fire(*both)
    assert received(pair) == [10, 10]
    assert set(fast().values()) == {5}
    agree(pair)
    with pair.under(DROP):
        fast = FastCount(pair)
        pair.fire(*both)
        assert received(pair) == [0, 0]
        assert not any(fast().values())
        agree(pair)


UDP_SEGMENT, IP_MTU_DISCOVER = 103, 10  # missing from the socket module
PMTUDISC_PROBE, PMTUDISC_INTERFACE = 3, 4
"""Whatever fits the pod's own device is sent: not to be fragmented, or as it comes."""

LARGEST = MTU - 28
"""Payload bytes of the longest datagram that the overlay takes."""

PAYLOAD = random.Random(1).randbytes(16 << 20)
UPLINK_FEATURES = {
    "all on": (),
    "no tunnel segmentation": ("tx-udp_tnl-segmentation", "off"),
    "no segmentation": ("gso", "off", "tso", "off"),
    "no checksums": ("tx", "off"),
}


Talkers = tuple[Pod, Pod]
"""Two pods of one testbed whose stacks speak."""


@pytest.fixture(scope="module")
def both_talkers(pair: Pair) -> tuple[Talkers, Talkers]:
    """Give pods that speak in both testbeds, without programs and with them."""
    plain, fast = (
        (one.add_pod(), two.add_pod()) for one, two in (side.nodes for side in pair.sides)
    )
    for end in End:
        wait_until(partial(serves_all, pair, end), timeout=5, what="pods served")
    return plain, fast


def serves_all(pair: Pair, end: End) -> bool:
    return pair.fast.ports_served(end) == len(pair.fast.nodes[end.value - 1].pods)


@pytest.fixture
def talkers(both_talkers: tuple[Talkers, Talkers]) -> Talkers:
    """Give those of the testbed with programs."""
    return both_talkers[1]


@pytest.fixture(params=list(UPLINK_FEATURES.values()), ids=list(UPLINK_FEATURES))
def uplinks(
    request: pytest.FixtureRequest, pair: Pair, requires: Callable[..., None]
) -> Iterator[None]:
    """Have the uplinks of the testbed with programs do less than they can."""
    requires("ethtool", "nstat")
    features: tuple[str, ...] = request.param
    names = features[::2]
    nodes = [node.namespace for node in pair.fast.nodes]
    if features:
        for node in nodes:
            node.run("ethtool", "-K", "eth0", *features)
    yield
    if features:
        back = [word for name in names for word in (name, "on")]
        for node in nodes:
            node.run("ethtool", "-K", "eth0", *back)


@pytest.mark.usefixtures("uplinks")
@pytest.mark.parametrize("sender", End)
def test_a_tcp_stream_is_bit_exact_and_fast_whatever_the_uplink_can(
    pair: Pair, talkers: Talkers, sender: End
) -> None:
    source, destination = talkers if sender is CLIENT else talkers[::-1]
    sent = pair.fast.fast_sent(sender).bytes
    digest = transfer(source, destination)
    assert digest == hashlib.sha256(PAYLOAD).digest()
    assert checksum_errors(talkers) == ["0"] * 4
    # Handshake, end and first packets go through the stack.
    assert pair.fast.fast_sent(sender).bytes - sent > 0.9 * len(PAYLOAD)


def transfer(source: Pod, destination: Pod) -> bytes:
    """Send the payload over one connection, and return the digest of what arrives."""
    address = (str(destination.address), 0)
    listener = destination.namespace.call(lambda: socket.create_server(address))
    client = source.namespace.call(socket.socket)
    with listener, client, ThreadPoolExecutor(1) as pool:
        for each in (listener, client):
            each.settimeout(20)
        digest = pool.submit(digest_of_one, listener)
        client.connect(listener.getsockname())
        client.sendall(PAYLOAD)
        client.shutdown(socket.SHUT_WR)
        return digest.result()


def digest_of_one(listener: socket.socket) -> bytes:
    """Accept one connection and return the digest of all that comes."""
    connection, _ = listener.accept()
    digest = hashlib.sha256()
    with connection:
        while received := connection.recv(1 << 18):
            digest.update(received)
    return digest.digest()


def checksum_errors(pods: Talkers) -> list[str]:
    """Return what each pod counted as wrong, TCP and UDP."""
    shown = [
        pod.namespace.run("nstat", "-asz", "TcpInCsumErrors", "UdpInCsumErrors") for pod in pods
    ]
    return [line.split()[1] for one in shown for line in one.stdout.splitlines()[1:]]


SEGMENTED = {
    "one byte each": (1, 64),
    "no rest": (100, 1000),
    "a shorter last one": (100, 1001),
    "as long as the overlay takes": (LARGEST, 10 * LARGEST),
    "as long as the overlay takes, and a rest": (LARGEST, 20000),
    "64 kB": (1400, 64000),
}


@pytest.mark.usefixtures("uplinks")
@pytest.mark.parametrize(("segment", "size"), SEGMENTED.values(), ids=SEGMENTED.keys())
def test_datagrams_that_a_pod_sends_in_one_arrive_alike_whatever_the_uplink_can(
    pair: Pair, both_talkers: tuple[Talkers, Talkers], segment: int, size: int
) -> None:
    payload = PAYLOAD[:size]
    datagrams = [payload[at : at + segment] for at in range(0, size, segment)]
    for pods in both_talkers:
        with conversation(pods) as (client, server):
            packets, fast = pair.fast.fast_sent(CLIENT).packets, FastCount(pair)
            send_segmented(client, payload, segment)
            assert [server.recv(1 << 16) for _ in datagrams] == datagrams
    sent = pair.fast.fast_sent(CLIENT).packets - packets
    assert (sent, fast()[CLIENT, Program.FROM_POD]) == (len(datagrams), 1)
    # What reaches the other node in one is taken apart by its stack, and is never lost.
    assert fast()[SERVER, Program.FROM_UPLINK] in (0, len(datagrams))
    assert checksum_errors(both_talkers[1]) == ["0"] * 4


@pytest.mark.parametrize("segment", [LARGEST + 1, 1600])
def test_segments_beyond_the_overlay_s_mtu_are_refused_alike(
    pair: Pair, both_talkers: tuple[Talkers, Talkers], segment: int
) -> None:
    fast = FastCount(pair)
    for pods in both_talkers:
        with wide(pods[0]), conversation(pods) as (client, _):
            client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
            before = fast()
            send_segmented(client, PAYLOAD[: 3 * segment], segment)
            refused = partial(client.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
            assert wait_until(refused, timeout=5, what="refusal") == errno.EMSGSIZE
            assert fast() == before


@pytest.mark.parametrize("segment", [LARGEST + 1, 1600])
def test_segments_beyond_the_overlay_s_mtu_that_may_be_fragmented_arrive_alike(
    pair: Pair, both_talkers: tuple[Talkers, Talkers], segment: int
) -> None:
    payload = PAYLOAD[: 3 * segment]
    datagrams = [payload[at : at + segment] for at in range(0, len(payload), segment)]
    fast = FastCount(pair)
    for pods in both_talkers:
        with wide(pods[0]), conversation(pods) as (client, server):
            client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_INTERFACE)
            before = fast()
            send_segmented(client, payload, segment)
            assert [server.recv(1 << 16) for _ in datagrams] == datagrams
            assert fast() == before


@contextmanager
def conversation(pods: Talkers) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the sockets of two pods that have exchanged datagrams: a flow that may be fast."""
    client, server = (pod.namespace.call(partial(udp_socket, str(pod.address))) for pod in pods)
    with client, server:
        client.connect(server.getsockname())
        server.connect(client.getsockname())
        for sender, receiver in ((client, server), (server, client)) * 2:
            sender.send(b"before")
            assert receiver.recv(100) == b"before"
        yield client, server


def udp_socket(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 0))
    made.settimeout(5)
    return made


def send_segmented(client: socket.socket, payload: bytes, segment: int) -> None:
    """Send datagrams of `segment` bytes each in one call."""
    ancillary = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", segment))]
    assert client.sendmsg([payload], ancillary) == len(payload)


@contextmanager
def wide(pod: Pod) -> Iterator[None]:
    """Have a pod believe meanwhile that more fits than the overlay takes."""
    ends = ((pod.node.namespace, pod.port), (pod.namespace, "eth0"))
    for namespace, name in ends:
        namespace.ip(f"link set {name} mtu {WIDE}")
    yield
    for namespace, name in ends:
        namespace.ip(f"link set {name} mtu {MTU}")
