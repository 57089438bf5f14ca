"""With programs and without: whatever a pod sends, the same comes of it, under anybody's rules.

The oracle is a second testbed that is the same but for the programs. Each test also asks the
counters whether what should be fast was: equal results of two slow paths would prove nothing.
"""

import hashlib
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kersey_loader.layout import Program
from oracle import CLIENT, SERVER, End, Lane, Pair, RuleSet, Shot, shots, side_by_side
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
from oracle.shots import Checksum, Flow
from oracle.side import pins_of, programs_of
from packets import TCP, UDP
from testbed import Pod

BATCHES = 30
PLAIN = [Shot(sender=end, protocol=kind) for end in End for kind in (TCP, UDP)] * 2
"""What has to be fast in any flow that may be."""

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


def agree(pair: Pair) -> None:
    """Fail with each packet that fared differently."""
    differences = pair.differences()
    assert not differences, "\n".join(differences)


class FastCount:
    """How many packets were fast since it was made, by node and program."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._before = self._now()

    def _now(self) -> dict[tuple[End, Program], int]:
        return {(end, key): n for end in End for key, n in self._pair.fast.fast(end).items()}

    def __call__(self) -> dict[tuple[End, Program], int]:
        """Return the counts."""
        return {key: count - self._before[key] for key, count in self._now().items()}


def expected(rules: RuleSet, lane: Lane, batch: list[Shot], node: End, program: Program) -> range:
    """Return the counts that are right: none where a rule rewrites, or a service translates."""
    if not rules.fast or (lane is not Lane.DIRECT and node is CLIENT):
        return range(1)
    if program is Program.FROM_POD:
        most = sum(shot.may_leave_fast for shot in batch if shot.sender is node)
    else:
        most = sum(shot.may_arrive_fast for shot in batch if shot.sender is not node)
    return range(len(PLAIN) // len(End), most + 1)


def test_the_testbeds_differ_in_the_programs_and_in_nothing_else(pair: Pair) -> None:
    plain, fast = (side.nodes for side in pair.sides)
    assert programs_of(plain) == []
    assert all(pins_of(node) for node in fast)
    assert [node.pod_subnet() for node in plain] == [node.pod_subnet() for node in fast]
    addresses = [[pod.address for pod in side.cluster.pods] for side in pair.sides]
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize(("rules", "lane"), CASES)
def test_random_packets_fare_the_same(pair: Pair, rules: RuleSet, lane: Lane) -> None:
    @settings(
        max_examples=BATCHES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # a difference names its packet: nothing to shrink
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(shots(), min_size=20, max_size=40))
    def check(drawn: list[Shot]) -> None:
        # First: a packet from a foreign port has the flow's next one judged by the stack.
        batch = [*PLAIN, *(rules.comparable(shot, lane) for shot in drawn)]
        flows = pair.flows(lane)
        pair.prime(flows.udp, flows.tcp, flows.doomed)
        fast = FastCount(pair)
        pair.fire(*((shot, flows.of(shot)) for shot in batch))
        agree(pair)
        for (node, program), number in fast().items():
            right = expected(rules, lane, batch, node, program)
            assert number in right, f"{program.name} of {node.name}: {number} fast, not in {right}"

    with pair.under(rules):
        if rules.fast:
            pair.wait_fast()
        check()


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


def received(pair: Pair) -> list[int]:
    """Return how many packets came of shots since the last comparison, in each testbed."""
    return [sum(map(len, side.arrivals().values())) for side in pair.sides]


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


PAYLOAD = random.Random(1).randbytes(16 << 20)
UPLINK_FEATURES = {
    "all on": (),
    "no tunnel segmentation": ("tx-udp_tnl-segmentation", "off"),
    "no segmentation": ("gso", "off", "tso", "off"),
    "no checksums": ("tx", "off"),
}


@pytest.fixture(scope="module")
def talkers(pair: Pair) -> tuple[Pod, Pod]:
    """Give two pods of the testbed with programs whose stacks speak."""
    one, two = (node.add_pod() for node in pair.fast.nodes)
    return one, two


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
    pair: Pair, talkers: tuple[Pod, Pod], sender: End
) -> None:
    source, destination = talkers if sender is CLIENT else talkers[::-1]
    sent = pair.fast.fast_bytes(sender)
    digest = transfer(source, destination)
    assert digest == hashlib.sha256(PAYLOAD).digest()
    assert checksum_errors(talkers) == ["0"] * 4
    # Handshake, end and first packets go through the stack.
    assert pair.fast.fast_bytes(sender) - sent > 0.9 * len(PAYLOAD)


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


def checksum_errors(pods: tuple[Pod, Pod]) -> list[str]:
    """Return what each pod counted as wrong, TCP and UDP."""
    shown = [
        pod.namespace.run("nstat", "-asz", "TcpInCsumErrors", "UdpInCsumErrors") for pod in pods
    ]
    return [line.split()[1] for one in shown for line in one.stdout.splitlines()[1:]]
