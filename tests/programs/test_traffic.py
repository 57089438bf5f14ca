"""The programs under real traffic between two nodes: fast, equal to the slow path, never lossy."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bpf_pair import (
    Echo,
    Pair,
    ask,
    client,
    exchange_while,
    open_pair,
    stream,
    wait_until,
)
from kersey_loader.layout import Admission, Program, Verdict
from kersey_loader.probe import probe


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = probe(tmp_path)
    if not found.available:
        pytest.skip(f"missing: {'; '.join(found.missing)}")
    with open_pair(tmp_path) as opened:
        yield opened


def fast(pair: Pair) -> tuple[int, int]:
    """Return how many packets the near node sent and the far node received fast."""
    return (
        pair.near.counted(Program.FROM_POD, Verdict.FAST),
        pair.far.counted(Program.FROM_UPLINK, Verdict.FAST),
    )


def test_datagrams_are_the_same_on_both_paths(pair: Pair) -> None:
    with (
        Echo(pair.far.pod, pair.far.address) as echo,
        client(pair.near.pod, pair.far.address) as opened,
    ):
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8 | 1)
        ask(opened, b"by the stack")
        pair.start()
        for number in range(20):
            assert ask(opened, b"%d" % number) == b"%d" % number
        assert min(fast(pair)) >= 15
        assert {(ttl, tos) for _, ttl, tos in echo.seen} == {(62, 0xB8 | 1)}


@pytest.mark.parametrize("admission", [Admission.STRICT, Admission.DIRECT])
def test_tcp_super_packets_cross_whole_and_arrive_intact(pair: Pair, admission: Admission) -> None:
    pair.start(admission=admission)
    size = 32 << 20
    assert stream(pair.near.pod, pair.far.pod, address=pair.far.address, size=size)
    sent, received = fast(pair)
    assert sent == received
    (traffic,) = pair.near.loaded().traffic().values()
    assert traffic.fast_sent.bytes > 0.98 * size
    # Whole: an skb of a GSO packet is counted once as a verdict, by segment as traffic.
    assert traffic.fast_sent.packets > 4 * sent
    assert pair.near.counted(Program.FROM_POD, Verdict.ROOM) == 0


@pytest.mark.parametrize(
    "features",
    [
        pytest.param("tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off", id="no-tnl"),
        pytest.param("gso off tso off", id="no-gso"),
        pytest.param("tx off", id="no-checksum"),
    ],
)
def test_tcp_arrives_intact_whatever_the_uplink_cannot_offload(
    pair: Pair, requires: Callable[..., None], features: str
) -> None:
    requires("ethtool")
    pair.near.node.run("ethtool", "-K", "wire", *features.split())
    pair.start()
    assert stream(pair.near.pod, pair.far.pod, address=pair.far.address, size=8 << 20)
    assert min(fast(pair)) > 0


def test_our_encapsulation_is_the_kernels_and_the_other_way_round(pair: Pair) -> None:
    pair.start()
    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:
        for number in range(10):
            ask(opened, b"%d" % number)
        pair.far.detach()
        before = fast(pair)
        for number in range(10):
            assert ask(opened, b"%d" % number) == b"%d" % number
        sent, received = fast(pair)
        assert (sent - before[0], received - before[1]) == (10, 0)


def flood(pair: Pair, disturb: Callable[[], None]) -> None:
    exchange_while(pair, disturb)
    assert min(fast(pair)) > 100


def test_flush_under_traffic_loses_nothing(pair: Pair) -> None:
    pair.start()

    def flush() -> None:
        for side in (pair.near, pair.far):
            side.loaded().flush()

    flood(pair, flush)


def test_replacing_every_program_under_traffic_loses_nothing(pair: Pair) -> None:
    pair.start()

    def replace() -> None:
        for side in (pair.near, pair.far):
            side.attach()

    flood(pair, replace)


def test_detaching_every_program_by_hand_under_traffic_loses_nothing(pair: Pair) -> None:
    pair.start()

    def toggle() -> None:
        for side in (pair.near, pair.far):
            assert side.detach()
            side.attach()

    flood(pair, toggle)


def test_admitted_flow_goes_through_the_stack_now_and_then(pair: Pair) -> None:
    pair.start(max_age=0.1)
    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:

        def revalidated() -> bool:
            for number in range(100):
                assert ask(opened, b"%d" % number) == b"%d" % number
            return pair.near.counted(Program.FROM_POD, Verdict.STALE) > 3

        wait_until(revalidated)
    stale = pair.near.counted(Program.FROM_POD, Verdict.STALE)
    assert fast(pair)[0] > 10 * stale


def test_address_of_a_deleted_pod_reaches_the_new_pod_with_the_next_packet(pair: Pair) -> None:
    pair.start()
    asking = client(pair.near.pod, pair.far.address, source_port=40000)
    with Echo(pair.far.pod, pair.far.address), asking:
        for number in range(10):
            ask(asking, b"%d" % number)
        before = fast(pair)[1]
        assert before > 0
        # No word to the datapath: the kernel itself takes the port out of the map.
        pair.far.node.ip("link del pod0")
        new = pair.namespace(f"{pair.far.pod.name}-new")
        pair.far.plug(new, port="pod1")
        subprocess.run(
            new.command("ping", "-c1", "-W2", f"10.244.{pair.far.number}.1"),
            check=True,
            capture_output=True,
        )
        with Echo(new, pair.far.address) as echo:
            assert ask(asking, b"to whoever is there") == b"to whoever is there"
            assert [data for data, _, _ in echo.seen] == [b"to whoever is there"]
        assert fast(pair)[1] == before
        assert pair.far.counted(Program.FROM_UPLINK, Verdict.PORT_GONE) >= 1


def test_rule_that_drops_a_pair_takes_effect_for_an_admitted_flow_with_a_flush(pair: Pair) -> None:
    pair.start()
    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:
        for number in range(10):
            ask(opened, b"%d" % number)
        drop = "{ type filter hook forward priority 0; udp dport 5001 drop; }"
        pair.near.node.run("nft", f"table ip t {{ chain f {drop}; }}")
        assert ask(opened, b"still admitted") == b"still admitted"
        pair.near.loaded().flush()
        opened.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ask(opened, b"no more")


def test_translated_flow_is_never_fast_and_works(pair: Pair) -> None:
    pair.start()
    rules = (
        "table ip t { chain d { type nat hook prerouting priority -100; "
        f"ip daddr 10.96.0.1 udp dport 5001 dnat to {pair.far.address}; }}; }}"
    )
    pair.near.node.run("nft", rules)
    with (
        Echo(pair.far.pod, pair.far.address),
        client(pair.near.pod, "10.96.0.1") as service,
        client(pair.near.pod, pair.far.address) as direct,
    ):
        for number in range(20):
            assert ask(service, b"%d" % number) == b"%d" % number
        assert fast(pair)[0] == 0
        for number in range(20):
            assert ask(direct, b"%d" % number) == b"%d" % number
        assert fast(pair)[0] >= 15
