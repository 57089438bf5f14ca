"""Direct peers: packets that go and come without a tunnel, beside VXLAN and without any tunnel."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

import packets as p
import pytest
from bpf_lab import (
    DIRECT,
    DIRECT_MAC,
    DIRECT_NODE,
    DIRECT_POD,
    GATEWAY_MAC,
    NODE,
    PEER,
    PEER_NODE,
    PEER_VTEP,
    POD,
    POD_MAC,
    REMOTE,
    STRANGER,
    UPLINK_MAC,
    VTEP,
    WIRE_MAC,
    Action,
    Lab,
    Outcome,
    Tuple5,
)
from kersey_loader.datapath import PeerEntry
from kersey_loader.errors import LoaderError
from kersey_loader.layout import Admission, Program, Verdict
from kersey_loader.tunnel import TunnelKind
from wires import NO_WIRE, VXLAN_WIRE

pytestmark = pytest.mark.parametrize(
    "loaded_lab",
    [pytest.param(wire, id=wire.kind) for wire in (VXLAN_WIRE, NO_WIRE)],
    indirect=True,
)

UDP_FLOW = Tuple5(remote=DIRECT_POD)
TCP_FLOW = Tuple5(remote=DIRECT_POD, protocol=p.TCP)
BROADCAST = "ff:ff:ff:ff:ff:ff"
GATEWAY = "198.18.0.254"


def sent(payload: bytes = b"ping", *, port: int = 80, **ip: object) -> bytes:
    fields: dict[str, object] = {"src": POD, "dst": DIRECT_POD, **ip}
    return p.ipv4(p.udp(payload, src=40000, dst=port), **fields)  # type: ignore[arg-type]


def received(payload: bytes = b"pong, and long enough", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": DIRECT_POD, "dst": POD, "ttl": 63, **ip}
    return p.ipv4(p.udp(payload, src=80, dst=40000), **fields)  # type: ignore[arg-type]


def segment(flags: int = p.ACK, *, outward: bool = True, payload: bytes = b"data") -> bytes:
    src, dst, ports = (POD, DIRECT_POD, (40000, 80)) if outward else (DIRECT_POD, POD, (80, 40000))
    body = p.tcp(payload, src=ports[0], dst=ports[1], flags=flags)
    return p.ipv4(body, src=src, dst=dst, protocol=p.TCP, ttl=64 if outward else 63)


def frame(packet: bytes) -> bytes:
    return p.ethernet(packet, dst=GATEWAY_MAC, src=POD_MAC)


def wire(packet: bytes, *, dst: str = UPLINK_MAC) -> bytes:
    return p.ethernet(packet, dst=dst, src=DIRECT_MAC)


def from_pod(lab: Lab, packet: bytes, *, gso_size: int = 0) -> Outcome:
    return lab.run(Program.FROM_POD, frame(packet), device=lab.port, gso_size=gso_size)


def from_uplink(lab: Lab, on_wire: bytes, *, gso_size: int = 0) -> Outcome:
    return lab.run(Program.FROM_UPLINK, on_wire, device=lab.uplink, gso_size=gso_size)


def to_uplink(
    lab: Lab, packet: bytes, *, dst: str = DIRECT_MAC, device: int | None = None
) -> tuple[Verdict, ...]:
    """Return what is counted for a packet that the stack sends; it must go on as it is."""
    out = p.ethernet(packet, dst=dst, src=UPLINK_MAC)
    outcome = lab.run(Program.TO_UPLINK, out, device=device or lab.uplink)
    assert (outcome.action, outcome.packet) == (Action.TO_STACK, out)
    return outcome.counted


def to_pod(lab: Lab, packet: bytes) -> tuple[Verdict, ...]:
    arrived = p.ethernet(packet, dst=POD_MAC, src=GATEWAY_MAC)
    return lab.run(Program.TO_POD, arrived, device=lab.port).counted


def cross(lab: Lab) -> None:
    """Send one packet each way through the whole stack."""
    from_pod(lab, sent())
    assert to_uplink(lab, p.hop(sent())) == (Verdict.WITNESSED,)
    from_uplink(lab, wire(received()))
    assert to_pod(lab, p.hop(received())) == (Verdict.WITNESSED,)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(sent(), id="udp"),
        pytest.param(segment(), id="tcp"),
        pytest.param(sent(bytes(1422)), id="exactly-the-mtu"),
        pytest.param(sent(fragment=p.DONT_FRAGMENT), id="dont-fragment"),
        pytest.param(sent(tos=0xB8 | 3), id="dscp-and-ce"),
        pytest.param(sent(ttl=2), id="ttl-2-becomes-1"),
    ],
)
def test_admitted_packet_leaves_as_a_router_sends_it(lab: Lab, packet: bytes) -> None:
    for flow in (UDP_FLOW, TCP_FLOW):
        lab.admit(flow, egress_kind=p.kind_of(packet))
    outcome = from_pod(lab, packet)
    assert (outcome.action, outcome.counted) == (Action.REDIRECT, (Verdict.FAST,))
    # The neighbour's Ethernet header is put on after the program.
    assert outcome.packet == frame(p.hop(packet))


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(received(), id="udp"),
        pytest.param(segment(outward=False), id="tcp"),
        pytest.param(received(b""), id="shorter-than-any-frame"),
        pytest.param(received(bytes(1422)), id="exactly-the-mtu"),
        pytest.param(received(tos=3), id="ce"),
        pytest.param(received(tos=0xB8), id="dscp"),
        pytest.param(received(ttl=2), id="ttl-2-becomes-1"),
    ],
)
@pytest.mark.parametrize("shortest", [0, 60, 64])
def test_admitted_packet_reaches_the_pod_padded_or_not(
    lab: Lab, packet: bytes, shortest: int
) -> None:
    for flow in (UDP_FLOW, TCP_FLOW):
        lab.admit(flow, ingress_kind=p.kind_of(packet))
    padding = bytes(max(0, shortest - len(wire(packet))))
    outcome = from_uplink(lab, wire(packet) + padding)
    assert (outcome.action, outcome.counted) == (Action.REDIRECT, (Verdict.FAST,))
    expected = p.ethernet(p.hop(packet), dst=POD_MAC, src=GATEWAY_MAC)
    assert outcome.packet == expected + padding


def admit(lab: Lab) -> None:
    lab.admit(UDP_FLOW)
    lab.admit(TCP_FLOW)


@dataclass(frozen=True)
class Row:
    id: str
    packet: bytes
    verdict: Verdict | None
    prepare: Callable[[Lab], None] = admit
    gso_size: int = 0


def nothing(_lab: Lab) -> None:
    pass


def _without_port(lab: Lab) -> None:
    admit(lab)
    lab.datapath.maps["pod_ports"].delete(lab.port.to_bytes(4, "little"))


def _without_admission(lab: Lab) -> None:
    admit(lab)
    lab.configure(admission=Admission.OFF)


SENT = [
    Row("unknown-flow", sent(), Verdict.NOT_ADMITTED, nothing),
    Row("ttl-1", sent(ttl=1), Verdict.TTL),
    Row("one-over-the-mtu", sent(bytes(1423)), Verdict.TOO_BIG),
    Row("syn", segment(p.SYN), Verdict.CONTROL),
    Row("fragment", sent(fragment=0x2000), Verdict.FRAGMENT),
    Row("trailing-bytes", sent() + b"x", Verdict.LENGTH),
    Row("admission-off", sent(), Verdict.ADMISSION_OFF, _without_admission),
]

RECEIVED = [
    Row("unknown-flow", wire(received()), Verdict.NOT_ADMITTED, nothing),
    Row("ttl-1", wire(received(ttl=1)), Verdict.TTL),
    Row("one-over-the-mtu", wire(received(bytes(1423))), Verdict.TOO_BIG),
    Row("gro-over-the-mtu", wire(segment(outward=False, payload=bytes(3000))), Verdict.TOO_BIG,
        gso_size=1411),
    Row("syn", wire(segment(p.SYN, outward=False)), Verdict.CONTROL),
    Row("rst", wire(segment(p.RST, outward=False)), Verdict.CONTROL),
    Row("first-fragment", wire(received(fragment=0x2000)), Verdict.FRAGMENT),
    Row("later-fragment", wire(received(fragment=9)), Verdict.FRAGMENT),
    Row("ip-options", wire(received(options=bytes(4))), Verdict.IP_OPTIONS),
    Row("icmp", wire(received(protocol=1)), Verdict.PROTOCOL),
    Row("padded-too-far", wire(received()) + bytes(3), Verdict.LENGTH),
    Row("padded-beyond-any-padding", wire(received(b"")) + bytes(23), Verdict.LENGTH),
    Row("cut-short", wire(received())[:-1], Verdict.LENGTH),
    Row("other-dscp", wire(received(tos=0xB8)), Verdict.OTHER_KIND),
    Row("port-gone", wire(received()), Verdict.PORT_GONE, _without_port),
    Row("broadcast-frame", wire(received(), dst=BROADCAST), Verdict.NOT_HOST),
    Row("admission-off", wire(received()), Verdict.ADMISSION_OFF, _without_admission),
    Row("to-the-node", wire(received(dst=NODE)), None),
    Row("to-another-subnet", wire(received(dst="10.244.9.9")), None),
    Row("from-the-world", wire(received(src="192.0.2.1")), None),
    Row("from-the-peers-node", wire(received(src=DIRECT_NODE)), None),
    Row("from-an-unleased-subnet", wire(received(src="10.244.9.9")), None),
    Row("from-our-own-subnet", wire(received(src="10.244.1.11")), None),
    Row("not-for-our-mac", wire(received(), dst="0e:bb:00:00:00:77"), None),
]  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in SENT])
def test_any_other_packet_of_a_pod_goes_as_it_came(lab: Lab, row: Row) -> None:
    row.prepare(lab)
    outcome = from_pod(lab, row.packet)
    counted = () if row.verdict is None else (row.verdict,)
    assert outcome == Outcome(Action.TO_STACK, frame(row.packet), counted)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in RECEIVED])
def test_any_other_packet_of_the_wire_goes_as_it_came(lab: Lab, row: Row) -> None:
    row.prepare(lab)
    outcome = from_uplink(lab, row.packet, gso_size=row.gso_size)
    counted = () if row.verdict is None else (row.verdict,)
    assert outcome == Outcome(Action.TO_STACK, row.packet, counted)


def test_flow_is_fast_both_ways_after_one_packet_each_way(lab: Lab) -> None:
    assert from_pod(lab, sent()).counted == (Verdict.NOT_ADMITTED,)
    cross(lab)
    assert from_pod(lab, sent()).counted == (Verdict.FAST,)
    assert from_uplink(lab, wire(received())).counted == (Verdict.FAST,)


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        pytest.param(sent(), Verdict.CHANGED, id="ttl-not-decremented"),
        pytest.param(p.hop(sent(tos=0x2E)), Verdict.CHANGED, id="tos-rewritten"),
        pytest.param(p.hop(sent(src=NODE)), Verdict.UNSEEN, id="masqueraded"),
        pytest.param(p.hop(sent(fragment=0x2000)), Verdict.FRAGMENT, id="fragmented"),
        pytest.param(p.hop(sent(protocol=1)), Verdict.PROTOCOL, id="icmp"),
        pytest.param(p.hop(sent(dst="192.0.2.1")), None, id="to-the-world"),
        pytest.param(p.hop(sent(dst=DIRECT_NODE)), None, id="to-the-node"),
        pytest.param(p.hop(sent(dst=REMOTE)), None, id="to-a-peer-with-a-tunnel"),
    ],
)
def test_packet_that_leaves_otherwise_than_it_came_is_no_witness(
    lab: Lab, packet: bytes, verdict: Verdict | None
) -> None:
    from_pod(lab, sent())
    assert to_uplink(lab, packet) == (() if verdict is None else (verdict,))
    assert lab.flow(UDP_FLOW) is None


def test_frame_to_another_mac_than_the_nodes_is_no_witness(lab: Lab) -> None:
    from_pod(lab, sent())
    assert to_uplink(lab, p.hop(sent()), dst=WIRE_MAC) == (Verdict.OTHER_GATEWAY,)
    assert to_uplink(lab, p.hop(sent()), device=lab.port) == (Verdict.OTHER_GATEWAY,)
    assert lab.flow(UDP_FLOW) is None


@contextmanager
def changed(add: str, remove: str) -> Iterator[None]:
    subprocess.run(["ip", *add.split()], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", *remove.split()], check=True)


def test_node_without_a_neighbour_entry_gives_no_witness(lab: Lab) -> None:
    from_pod(lab, sent())
    entry = f"{DIRECT_NODE} lladdr {DIRECT_MAC} dev up0"
    with changed(f"neigh del {entry}", f"neigh add {entry} nud permanent"):
        assert to_uplink(lab, p.hop(sent())) == (Verdict.OTHER_GATEWAY,)
    assert to_uplink(lab, p.hop(sent())) == (Verdict.WITNESSED,)


def test_node_behind_a_gateway_gives_no_witness_though_the_mac_is_the_same(lab: Lab) -> None:
    from_pod(lab, sent())
    entry = f"{GATEWAY} lladdr {DIRECT_MAC} dev up0"
    route = f"{DIRECT_NODE}/32 via {GATEWAY} dev up0"
    with (
        changed(f"neigh replace {entry} nud permanent", f"neigh del {entry}"),
        changed(f"route add {route}", f"route del {route}"),
    ):
        assert to_uplink(lab, p.hop(sent())) == (Verdict.OTHER_GATEWAY,)


def test_node_on_the_link_of_another_device_gives_no_witness_there(lab: Lab) -> None:
    """Fast packets leave by the configured uplink, so only what leaves there is a witness."""
    from_pod(lab, sent())
    entry, route = f"{DIRECT_NODE} lladdr {DIRECT_MAC} dev pod1", f"{DIRECT_NODE}/32 dev pod1"
    with (
        changed(f"neigh add {entry} nud permanent", f"neigh del {entry}"),
        changed(f"route add {route}", f"route del {route}"),
    ):
        counted = to_uplink(lab, p.hop(sent()), device=lab.other_port)
    assert counted == (Verdict.OTHER_GATEWAY,)


def test_control_flag_at_the_witness_ends_the_admission(lab: Lab) -> None:
    lab.admit(TCP_FLOW)
    assert to_uplink(lab, segment(p.RST)) == (Verdict.CONTROL,)
    assert from_pod(lab, segment()).counted == (Verdict.NOT_ADMITTED,)


def test_traffic_of_a_direct_peer_is_counted_by_path(lab: Lab) -> None:
    before = lab.datapath.traffic()[DIRECT]
    cross(lab)
    from_pod(lab, sent())
    from_uplink(lab, wire(received(b"")) + bytes(18))
    after = lab.datapath.traffic()[DIRECT]
    counts = [
        (getattr(after, way).packets - getattr(before, way).packets,
         getattr(after, way).bytes - getattr(before, way).bytes)
        for way in ("slow_sent", "fast_sent", "slow_received", "fast_received")
    ]  # fmt: skip
    out, back, padded = len(sent()), len(received()), len(received(b""))
    assert counts == [(1, out), (1, out), (1, back), (1, padded)]


def test_direct_admission_carries_a_connection_of_a_direct_peer_too(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT)
    to_pod(lab, p.hop(received()))
    from_pod(lab, sent())
    for flags in (p.SYN, p.ACK, p.FIN | p.ACK):
        assert from_pod(lab, segment(flags)).counted == (Verdict.FAST,)
        answer = wire(segment(flags, outward=False))
        assert from_uplink(lab, answer).counted == (Verdict.FAST,)


def only_with(lab: Lab, kind: TunnelKind) -> bool:
    """Return whether this lab has the tunnel that a test is about; the other one has none."""
    return lab.wire.kind is kind


def test_plain_packet_of_a_peer_behind_the_tunnel_is_never_fast_nor_noted(lab: Lab) -> None:
    packet = received(src=REMOTE)
    flow = Tuple5(remote=REMOTE)
    lab.admit(flow)
    outcome = from_uplink(lab, wire(packet))
    known = only_with(lab, TunnelKind.VXLAN)
    assert outcome.counted == ((Verdict.NOT_TUNNELLED,) if known else ())
    assert (outcome.action, outcome.packet) == (Action.TO_STACK, wire(packet))
    assert lab.sighting(flow, 1) is None


def in_tunnel(packet: bytes, *, src: str = DIRECT_NODE, dst: str = NODE) -> bytes:
    inner = p.ethernet(packet, dst=VTEP, src=PEER_VTEP)
    outer = p.udp(p.vxlan(inner), src=50000, dst=8472)
    return p.ethernet(p.ipv4(outer, src=src, dst=dst), dst=UPLINK_MAC, src=WIRE_MAC)


def test_tunnel_packet_of_a_direct_peer_is_never_fast_nor_noted(lab: Lab) -> None:
    admit(lab)
    outcome = from_uplink(lab, in_tunnel(received()))
    known = only_with(lab, TunnelKind.VXLAN)
    assert outcome.counted == ((Verdict.TUNNELLED,) if known else ())
    assert (outcome.action, outcome.packet) == (Action.TO_STACK, in_tunnel(received()))
    assert lab.sighting(UDP_FLOW, 1) is None


def test_sender_check_holds_for_tunnel_packets_that_name_a_direct_peers_pod(lab: Lab) -> None:
    """Also where the outer packet itself claims to be of a direct peer's pod, to a pod address."""
    known = only_with(lab, TunnelKind.VXLAN)
    outcome = from_uplink(lab, in_tunnel(received(), src=STRANGER))
    assert outcome.counted == ((Verdict.UNKNOWN_NODE,) if known else ())
    with changed("addr add 10.244.1.1/32 dev up0", "addr del 10.244.1.1/32 dev up0"):
        outcome = from_uplink(lab, in_tunnel(received(), src=DIRECT_POD, dst="10.244.1.1"))
    assert outcome.action is (Action.DROP if known else Action.TO_STACK)


def test_datagram_between_pods_to_the_tunnels_port_is_no_tunnel_packet(lab: Lab) -> None:
    flow = Tuple5(remote=DIRECT_POD, local_port=8472)
    lab.admit(flow)
    packet = p.ipv4(p.udp(bytes(60), src=80, dst=8472), src=DIRECT_POD, dst=POD, ttl=63)
    assert from_uplink(lab, wire(packet)).counted == (Verdict.FAST,)


def test_packet_in_the_overlay_device_is_no_witness_for_a_direct_peer(lab: Lab) -> None:
    from_pod(lab, sent())
    out = p.ethernet(p.hop(sent()), dst="00:00:00:00:00:00", src=VTEP)
    outcome = lab.run(Program.TO_OVERLAY, out, device=lab.uplink)
    assert outcome.counted == (Verdict.OTHER_GATEWAY,)
    assert lab.flow(UDP_FLOW) is None


@pytest.mark.parametrize("gone_between", [False, True])
def test_peer_that_turns_direct_or_back_must_be_witnessed_anew(
    lab: Lab, *, gone_between: bool
) -> None:
    if not only_with(lab, TunnelKind.VXLAN):
        return
    tunnelled = PeerEntry(PEER, IPv4Address(PEER_NODE), p.mac(PEER_VTEP))
    direct = PeerEntry(PEER, IPv4Address(PEER_NODE), p.mac(PEER_VTEP), direct=True)
    for entry in (direct, tunnelled):
        lab.admit(Tuple5())
        if gone_between:
            lab.datapath.remove_peer(PEER)
        lab.datapath.put_peer(entry)
        packet = p.ipv4(p.udp(b"ping", src=40000, dst=80), src=POD, dst=REMOTE)
        assert from_pod(lab, packet).counted == (Verdict.FLUSHED,)


def test_peer_that_stays_as_it_is_keeps_all_flows_admitted(lab: Lab) -> None:
    lab.admit(UDP_FLOW)
    lab.datapath.put_peer(PeerEntry(DIRECT, IPv4Address("198.18.0.44"), direct=True))
    assert from_pod(lab, sent()).counted == (Verdict.FAST,)


def test_peer_that_needs_a_tunnel_is_refused_where_there_is_none(lab: Lab) -> None:
    entry = PeerEntry(PEER, IPv4Address(PEER_NODE))
    if only_with(lab, TunnelKind.NONE):
        with pytest.raises(LoaderError, match=r"10\.244\.2\.0/24: not direct"):
            lab.datapath.put_peer(entry)
    else:
        lab.datapath.put_peer(entry)


def test_pod_may_send_what_looks_like_a_tunnel_where_there_is_none(lab: Lab) -> None:
    body = p.udp(p.vxlan(frame(sent())), src=40000, dst=8472)
    outcome = from_pod(lab, p.ipv4(body, src=POD, dst=NODE))
    forged = only_with(lab, TunnelKind.VXLAN)
    assert outcome.counted == ((Verdict.POD_TUNNEL,) if forged else (Verdict.UNRELATED,))
