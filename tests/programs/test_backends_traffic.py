"""Every backend but VXLAN under real traffic between two nodes; VXLAN's is in test_traffic.py."""

import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from itertools import cycle
from pathlib import Path

import pytest
from bpf_pair import (
    DIRECT_ROUTING,
    HOST_GW,
    IPIP,
    NETWORK,
    UDP,
    VXLAN,
    Backend,
    Echo,
    Pair,
    Side,
    ask,
    client,
    exchange_while,
    open_pair,
    stream,
    wait_until,
)
from kersey_loader.datapath import PeerEntry, Settings, load
from kersey_loader.layout import Admission, Program, Verdict
from kersey_loader.probe import probe
from tun_proxy import let_go
from wires import IPIP_WIRE, NO_WIRE, UDP_WIRE

_UDP_SEGMENT = 103  # include/uapi/linux/udp.h; not in the socket module
ALL = (UDP, IPIP, HOST_GW, DIRECT_ROUTING)
PROXIED = (UDP, IPIP)
DIRECT = (HOST_GW, DIRECT_ROUTING)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    found = probe(tmp_path)
    if not found.available:
        pytest.skip(f"missing: {'; '.join(found.missing)}")
    with open_pair(tmp_path, request.param) as opened:
        yield opened


def over(*backends: Backend) -> pytest.MarkDecorator:
    params = [pytest.param(backend, id=backend.name) for backend in backends]
    return pytest.mark.parametrize("pair", params, indirect=True)


def fast(pair: Pair) -> tuple[int, int]:
    """Return how many packets the near node sent and the far node received fast."""
    return (
        pair.near.counted(Program.FROM_POD, Verdict.FAST),
        pair.far.counted(Program.FROM_UPLINK, Verdict.FAST),
    )


def by_proxy(pair: Pair) -> int:
    """Return how many packets had to go through a proxy."""
    proxies = [side.proxy for side in (pair.near, pair.far) if side.proxy is not None]
    return sum(proxy.sent + proxy.received for proxy in proxies)


@over(*ALL)
def test_datagrams_are_the_same_on_both_paths(pair: Pair) -> None:
    hops = 2 * pair.near.backend.wire.hops
    with (
        Echo(pair.far.pod, pair.far.address) as echo,
        client(pair.near.pod, pair.far.address) as opened,
    ):
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8 | 1)
        ask(opened, b"by the stack")
        before = by_proxy(pair)
        assert (before > 0) is pair.near.backend.has_proxy
        pair.start()
        for number in range(20):
            assert ask(opened, b"%d" % number) == b"%d" % number
        assert min(fast(pair)) >= 15
        assert {(ttl, tos) for _, ttl, tos in echo.seen} == {(64 - hops, 0xB8 | 1)}
        assert by_proxy(pair) == before


@over(UDP, IPIP, HOST_GW)
@pytest.mark.parametrize("admission", [Admission.STRICT, Admission.DIRECT])
def test_tcp_super_packets_cross_whole_and_arrive_intact(pair: Pair, admission: Admission) -> None:
    pair.start(admission=admission)
    size = 32 << 20
    assert stream(pair.near.pod, pair.far.pod, address=pair.far.address, size=size)
    sent, received = fast(pair)
    assert sent == received
    (traffic,) = pair.near.loaded().traffic().values()
    assert traffic.fast_sent.bytes > 0.98 * size
    assert traffic.fast_sent.packets > 4 * sent
    assert pair.near.counted(Program.FROM_POD, Verdict.ROOM) == 0
    assert by_proxy(pair) == 0


@over(UDP, IPIP, HOST_GW)
@pytest.mark.parametrize(
    "features",
    [
        pytest.param("tx-udp_tnl-segmentation off tx-ipxip4-segmentation off", id="no-tunnel"),
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
    assert by_proxy(pair) == 0


@over(VXLAN, *ALL)
def test_segmented_datagrams_cross_whole_and_arrive_one_by_one(pair: Pair) -> None:
    pair.start()
    parts = [bytes([number]) * 1000 for number in range(10)] + [b"last and shorter"]
    with (
        Echo(pair.far.pod, pair.far.address) as echo,
        client(pair.near.pod, pair.far.address) as opened,
    ):
        for _ in range(5):
            ask(opened, b"admit")
        known, (sent, received) = len(echo.seen), fast(pair)
        size = struct.pack("=H", 1000)
        opened.sendmsg([b"".join(parts)], [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)])
        assert [opened.recv(2048) for _ in parts] == parts
        assert [data for data, _, _ in echo.seen[known:]] == parts
        # One packet where it can be. Before a udp tunnel the stack segments it; what comes out of a
        # VXLAN header is left to the kernel's device.
        expected = {UDP: (0, len(parts)), VXLAN: (1, 0)}.get(pair.near.backend, (1, 1))
        assert (fast(pair)[0] - sent, fast(pair)[1] - received) == expected


@over(*ALL)
def test_slow_path_understands_the_fast_one_and_the_other_way_round(
    pair: Pair, requires: Callable[..., None]
) -> None:
    pair.start()
    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:
        for number in range(10):
            ask(opened, b"%d" % number)
        # As a NIC does: on a veth, the inner checksum would stay for the receiver's kernel to
        # ignore, and a proxy hands it on as it is.
        if pair.near.backend.has_proxy:
            requires("ethtool")
            pair.near.node.run("ethtool", "-K", "wire", "tx", "off")
        pair.far.detach()
        before, carried = fast(pair), by_proxy(pair)
        for number in range(10):
            assert ask(opened, b"%d" % number) == b"%d" % number
        sent, received = fast(pair)
        assert (sent - before[0], received - before[1]) == (10, 0)
        # One proxy for each question and each answer: the far one.
        assert by_proxy(pair) - carried == (20 if pair.near.backend.has_proxy else 0)


def _services(pair: Pair) -> None:
    """Have the near node translate a service's address to the far pod's."""
    rules = (
        "table ip t { chain d { type nat hook prerouting priority -100; "
        f"ip daddr 10.96.0.1 dnat to {pair.far.address}; }}; }}"
    )
    pair.near.node.run("nft", rules)


@over(UDP, IPIP, HOST_GW)
def test_translated_flow_is_never_fast_and_works(pair: Pair) -> None:
    pair.start()
    _services(pair)
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
    assert by_proxy(pair) == 0


@over(*PROXIED)
@pytest.mark.parametrize("offload", ["on", "off"])
def test_translated_stream_keeps_off_the_proxy_and_arrives_intact(
    pair: Pair, requires: Callable[..., None], offload: str
) -> None:
    requires("ethtool")
    # Off: what came out of the tunnel whole is segmented on its way to the pod.
    pair.far.node.run("ethtool", "-K", "pod0", "gso", offload, "tso", offload)
    pair.start()
    _services(pair)
    assert stream(
        pair.near.pod, pair.far.pod, address=pair.far.address, size=4 << 20, asked="10.96.0.1"
    )
    assert fast(pair)[0] == 0
    assert by_proxy(pair) == 0


@over(UDP, IPIP, HOST_GW)
@pytest.mark.parametrize("size", [56, 4000])
def test_ping_works_whole_and_in_fragments_without_the_proxy(pair: Pair, size: int) -> None:
    pair.start()
    command = pair.near.pod.command(
        "ping", "-c3", "-i0.1", "-W2", "-s", str(size), pair.far.address
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert " 0% packet loss" in done.stdout, done.stdout
    assert f"ttl={64 - 2 * pair.near.backend.wire.hops}" in done.stdout
    assert by_proxy(pair) == 0


@over(*PROXIED)
def test_packet_that_is_too_long_for_the_tunnel_is_answered_by_the_stack(pair: Pair) -> None:
    pair.start()
    pair.near.node.ip("link set pod0 mtu 1500", "link set cni0 mtu 1500")
    pair.near.pod.ip("link set eth0 mtu 1500")
    mtu = pair.near.backend.mtu
    command = pair.near.pod.command("ping", "-c1", "-W2", "-Mdo", "-s1460", pair.far.address)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"mtu = {mtu}" in done.stdout, done.stdout
    assert stream(pair.near.pod, pair.far.pod, address=pair.far.address, size=1 << 20)
    assert by_proxy(pair) == 0


@over(*DIRECT)
def test_each_packet_to_a_direct_peer_is_counted_once(pair: Pair) -> None:
    pair.start()
    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:
        for number in range(50):
            ask(opened, b"%d" % number)
    for side in (pair.near, pair.far):
        (traffic,) = side.loaded().traffic().values()
        assert traffic.fast_sent.packets + traffic.slow_sent.packets == 50
        assert traffic.fast_received.packets + traffic.slow_received.packets == 50
        assert traffic.fast_sent.packets >= 45
        # A fast packet passes the hook of the witness, and is none.
        assert side.counted(Program.TO_UPLINK, Verdict.WITNESSED) == traffic.slow_sent.packets
        assert side.counted(Program.TO_UPLINK, Verdict.UNSEEN) == 0


@over(DIRECT_ROUTING)
def test_peer_that_turns_direct_and_back_under_traffic_loses_nothing(pair: Pair) -> None:
    pair.start()

    def turn(side: Side, *, direct: bool) -> None:
        side.put_peer(direct=direct)
        n = side.other
        way = f"via {side.their_node} dev wire" if direct else f"via 10.244.{n}.0 dev flannel.1"
        side.node.ip(f"route replace 10.244.{n}.0/24 {way}{'' if direct else ' onlink'}")

    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:
        for direct in (False, True, False, True):
            for side in (pair.near, pair.far):
                turn(side, direct=direct)
                for number in range(20):
                    assert ask(opened, b"%d" % number) == b"%d" % number
            before = fast(pair)
            for number in range(20):
                ask(opened, b"%d" % number)
            assert [after - was for after, was in zip(fast(pair), before, strict=True)] == [20, 20]


@over(*PROXIED)
def test_packets_of_new_flows_too_go_on_while_no_process_has_the_device(pair: Pair) -> None:
    """What the programs carry needs the device, not the proxy, and not its carrier."""
    pair.start()
    for side in (pair.near, pair.far):
        assert side.proxy is not None
        side.proxy.stop()
        let_go(side.tun)
        shown = side.node.run("ip", "link", "show", "flannel0").stdout
        assert "NO-CARRIER" in shown
    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:
        for number in range(20):
            assert ask(opened, b"%d" % number) == b"%d" % number
    assert min(fast(pair)) >= 15
    _services(pair)
    assert stream(
        pair.near.pod, pair.far.pod, address=pair.far.address, size=1 << 20, asked="10.96.0.1"
    )


@over(UDP)
def test_flow_is_admitted_anew_now_and_then(pair: Pair) -> None:
    pair.start(max_age=0.1)
    with Echo(pair.far.pod, pair.far.address), client(pair.near.pod, pair.far.address) as opened:

        def revalidated() -> bool:
            for number in range(100):
                assert ask(opened, b"%d" % number) == b"%d" % number
            return pair.near.counted(Program.FROM_POD, Verdict.STALE) > 3

        wait_until(revalidated)
    assert fast(pair)[0] > 10 * pair.near.counted(Program.FROM_POD, Verdict.STALE)


@over(VXLAN)
def test_programs_of_every_tunnel_take_turns_under_traffic_and_lose_nothing(pair: Pair) -> None:
    """On a slow path that is VXLAN's all the time: there, those of another tunnel only watch."""
    pair.start()
    side = pair.near
    own, ports = side.loaded(), [side.ifindex(name) for name in ("wire", "flannel.1", "pod0")]
    with ExitStack() as stack:
        settings = Settings(side.directory, network=NETWORK, subnet_len=24)
        turns = [own]
        for wire in (UDP_WIRE, IPIP_WIRE, NO_WIRE):
            kind = replace(settings, tunnel=wire.kind)
            other = stack.enter_context(side.node.call(partial(load, kind)))
            other.configure(replace(side.config(), tunnel=wire.tunnel, carrier=0))
            peer = PeerEntry(
                side.their_subnet, IPv4Address(side.their_node), direct=wire is NO_WIRE
            )
            other.put_peer(peer)
            turns += [other, own]
        endless = cycle(turns)

        def switch() -> None:
            datapath = next(endless)
            side.node.call(lambda: datapath.attach_uplink(ports[0], direct=datapath is not own))
            side.node.call(lambda: datapath.attach_overlay(ports[1]))
            side.node.call(lambda: datapath.put_pod_port(ports[2]))

        def all_had_a_turn() -> bool:
            exchange_while(pair, switch)
            seen = [each.counters()[Program.FROM_POD, Verdict.NOT_ADMITTED] for each in turns]
            return min(seen) > 0

        assert any(all_had_a_turn() for _ in range(10))
    assert min(fast(pair)) > 100
