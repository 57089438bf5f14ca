"""udp and ipip: what the wire carries, byte for byte, and what becomes of what comes from it.

What does not depend on the tunnel is in test_from_pod.py and test_from_uplink.py, for VXLAN.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import packets as p
import pytest
from bpf_lab import (
    DIRECT_MAC,
    DIRECT_POD,
    GATEWAY_MAC,
    NODE,
    NODE_OTHER_ADDRESS,
    OTHER_NODE,
    PEER,
    PEER_NODE,
    POD,
    POD_MAC,
    REMOTE,
    STRANGER,
    UPLINK_MAC,
    WIRE_MAC,
    Action,
    Lab,
    Outcome,
    Tuple5,
)
from kersey_loader.layout import Admission, Program, SpoofCheck, Verdict
from wires import IPIP_WIRE, NOWHERE, UDP_WIRE

pytestmark = pytest.mark.parametrize(
    "loaded_lab",
    [pytest.param(wire, id=wire.kind) for wire in (UDP_WIRE, IPIP_WIRE)],
    indirect=True,
)

UDP_FLOW = Tuple5()
TCP_FLOW = Tuple5(protocol=p.TCP)
BROADCAST = "ff:ff:ff:ff:ff:ff"


def sent(payload: bytes = b"ping", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": POD, "dst": REMOTE, **ip}
    return p.ipv4(p.udp(payload, src=40000, dst=80), **fields)  # type: ignore[arg-type]


def received(payload: bytes = b"pong", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": REMOTE, "dst": POD, "ttl": 63, **ip}
    return p.ipv4(p.udp(payload, src=80, dst=40000), **fields)  # type: ignore[arg-type]


def segment(
    flags: int = p.ACK, *, outward: bool = False, payload: bytes = b"data", ttl: int = 63
) -> bytes:
    src, dst, ports = (POD, REMOTE, (40000, 80)) if outward else (REMOTE, POD, (80, 40000))
    body = p.tcp(payload, src=ports[0], dst=ports[1], flags=flags)
    return p.ipv4(body, src=src, dst=dst, protocol=p.TCP, ttl=64 if outward else ttl)


def frame(packet: bytes) -> bytes:
    return p.ethernet(packet, dst=GATEWAY_MAC, src=POD_MAC)


def wire(lab: Lab, inner: bytes, *, mac: str = UPLINK_MAC, **outer: object) -> bytes:
    fields: dict[str, object] = {"src": PEER_NODE, "dst": NODE, **outer}
    return p.ethernet(lab.wire.encapsulate(inner, **fields), dst=mac, src=WIRE_MAC)


def from_pod(lab: Lab, packet: bytes, **options: int) -> Outcome:
    return lab.run(Program.FROM_POD, frame(packet), device=lab.port, **options)


def from_uplink(lab: Lab, on_wire: bytes, **options: int) -> Outcome:
    return lab.run(Program.FROM_UPLINK, on_wire, device=lab.uplink, **options)


def kind_inside(lab: Lab, packet: bytes) -> int:
    """Return what a flow remembers of a received packet: as it enters the stack."""
    return p.kind_of(lab.wire.cross(packet))


def admit(lab: Lab, packet: bytes | None = None, **options: int) -> None:
    kind = kind_inside(lab, packet or received())
    for flow in (UDP_FLOW, TCP_FLOW):
        lab.admit(flow, **{"ingress_kind": kind, **options})


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(sent(), id="udp"),
        pytest.param(segment(outward=True), id="tcp"),
        pytest.param(sent(b""), id="empty-datagram"),
        pytest.param(sent(bytes(1422)), id="exactly-the-mtu"),
        pytest.param(sent(fragment=p.DONT_FRAGMENT), id="dont-fragment"),
        pytest.param(sent(tos=0xB8), id="dscp-stays-inside"),
        pytest.param(sent(tos=1), id="ect1-is-copied"),
        pytest.param(sent(tos=0xB8 | 2), id="ect0-is-copied"),
        pytest.param(sent(tos=3), id="ce-becomes-ect0"),
        pytest.param(sent(ttl=255), id="ttl-255"),
        pytest.param(sent(ttl=3), id="ttl-3"),
    ],
)
def test_packet_of_an_admitted_flow_leaves_in_a_tunnel_header(lab: Lab, inner: bytes) -> None:
    for flow in (UDP_FLOW, TCP_FLOW):
        lab.admit(flow, egress_kind=p.kind_of(inner))
    outcome = from_pod(lab, inner)
    assert (outcome.action, outcome.counted) == (Action.REDIRECT, (Verdict.FAST,))
    ident = struct.unpack_from("!H", outcome.packet, 18)[0]
    outer = lab.wire.encapsulate(lab.wire.leave(inner), src=NODE, dst=PEER_NODE, ident=ident)
    assert outcome.packet == p.ethernet(outer, dst=NOWHERE, src=NOWHERE)


def test_identification_does_not_repeat(lab: Lab) -> None:
    idents = set()
    for _ in range(100):
        lab.admit(UDP_FLOW)  # an admission ends within seconds, which an emulated machine needs
        idents.add(from_pod(lab, sent()).packet[18:20])
    assert len(idents) == 100


@pytest.mark.parametrize(
    ("inner", "outer_tos"),
    [
        pytest.param(received(), 0, id="udp"),
        pytest.param(segment(), 0, id="tcp"),
        pytest.param(received(b""), 0, id="empty-datagram"),
        pytest.param(received(bytes(1422)), 0, id="exactly-the-mtu"),
        pytest.param(received(fragment=p.DONT_FRAGMENT), 0, id="dont-fragment"),
        pytest.param(received(tos=0xB8), 0, id="dscp"),
        pytest.param(received(tos=1), 1, id="ect1-both"),
        pytest.param(received(tos=3), 2, id="ce-inside"),
        pytest.param(received(tos=2), 0, id="ecn-inside-only"),
        pytest.param(received(ttl=3), 0, id="ttl-3"),
    ],
)
def test_packet_of_an_admitted_flow_reaches_the_pod_as_the_stack_would_hand_it_over(
    lab: Lab, inner: bytes, outer_tos: int
) -> None:
    admit(lab, inner)
    outcome = from_uplink(lab, wire(lab, inner, tos=outer_tos))
    assert (outcome.action, outcome.counted) == (Action.REDIRECT, (Verdict.FAST,))
    assert outcome.packet == p.ethernet(lab.wire.leave(inner), dst=POD_MAC, src=GATEWAY_MAC)


@pytest.mark.parametrize("carrier", [False, True])
def test_flow_is_fast_both_ways_after_one_packet_each_way(lab: Lab, *, carrier: bool) -> None:
    """What comes out of the stack has lost what the proxy, or the program for it, takes."""
    lab.configure(carrier=lab.other_port if carrier else 0)
    assert from_uplink(lab, wire(lab, received())).counted == (Verdict.NOT_ADMITTED,)
    out = p.ethernet(lab.wire.leave(received()), dst=POD_MAC, src=GATEWAY_MAC)
    assert lab.run(Program.TO_POD, out, device=lab.port).counted == (Verdict.WITNESSED,)
    entry = lab.flow(UDP_FLOW)
    assert entry is not None
    assert entry.ingress_kind == kind_inside(lab, received())
    # The other witness needs a device without Ethernet header; see test_carrier.py.
    entry.egress, entry.egress_port, entry.egress_kind = entry.ingress, lab.port, p.kind_of(sent())
    lab.datapath.maps["flows"].update(UDP_FLOW.key(), bytes(entry))
    assert from_uplink(lab, wire(lab, received())).counted == (Verdict.FAST,)
    assert from_pod(lab, sent()).counted == (Verdict.FAST,)


@dataclass(frozen=True)
class Row:
    """`packet` makes the packet for a lab; `whole` says that a proxy's device could take it."""

    id: str
    packet: Callable[[Lab], bytes]
    verdict: Verdict | None
    whole: bool = True
    gso_size: int = 0

    @property
    def counted(self) -> tuple[Verdict, ...]:
        return () if self.verdict is None else (self.verdict,)


def _inner(packet: bytes, **outer: object) -> Callable[[Lab], bytes]:
    return lambda lab: wire(lab, packet, **outer)  # type: ignore[arg-type]


def _merged(lab: Lab) -> bytes:
    """Return two datagrams as a NIC that merges the outer ones hands them over."""
    return wire(lab, received() + received())


def _cut(lab: Lab) -> bytes:
    return wire(lab, received())[:-1]


def _trailed(lab: Lab) -> bytes:
    return wire(lab, received()) + b"x"


def _inner_checksum_wrong(packet: bytes) -> bytes:
    return packet[:10] + bytes([packet[10] ^ 0xFF]) + packet[11:]


ICMP = p.ipv4(bytes(8), src=REMOTE, dst=POD, protocol=1, ttl=63)
IPV6 = b"\x60" + bytes(59)

ROWS = [
    Row("other-dscp", _inner(received(tos=0xB8)), Verdict.OTHER_KIND),
    Row("other-ttl", _inner(received(ttl=9)), Verdict.OTHER_KIND),
    Row("syn", _inner(segment(p.SYN)), Verdict.CONTROL),
    Row("fin", _inner(segment(p.FIN | p.ACK)), Verdict.CONTROL),
    Row("inner-icmp", _inner(ICMP), Verdict.PROTOCOL),
    Row("inner-options", _inner(received(options=bytes(4))), Verdict.IP_OPTIONS),
    Row("inner-fragment", _inner(received(fragment=0x2000)), Verdict.FRAGMENT),
    Row("inner-last-fragment", _inner(received(fragment=9)), Verdict.FRAGMENT),
    Row("inner-checksum", _inner(_inner_checksum_wrong(received())), Verdict.MALFORMED),
    Row("ttl-0", _inner(received(ttl=0)), Verdict.TTL, whole=False),
    Row("to-the-world", _inner(received(dst="192.0.2.1")), Verdict.NOT_POD),
    Row("node-for-itself", _inner(received(src=PEER_NODE)), Verdict.NODE),
    Row("direct-peers-pod", _inner(received(src=DIRECT_POD), src="198.18.0.4"), Verdict.TUNNELLED),
    Row("inner-ipv6", _inner(IPV6), Verdict.NOT_IPV4, whole=False),
    Row("too-big", _inner(received(bytes(1423))), Verdict.TOO_BIG, whole=False),
    # A test run cannot say that a GSO packet is TCP's, so the kernel refuses to shorten it.
    Row("gro-too-big", _inner(segment(payload=bytes(3000))), Verdict.TOO_BIG, whole=False,
        gso_size=1411),
    Row("merged-datagrams", _merged, Verdict.LENGTH, whole=False, gso_size=100),
    Row("merged-datagrams-unmarked", _merged, Verdict.LENGTH, whole=False),
    Row("trailing-bytes", _trailed, Verdict.LENGTH, whole=False),
    Row("outer-length-short", _inner(received(), length=40), Verdict.LENGTH, whole=False),
    Row("outer-ce", _inner(received(tos=2), tos=3), Verdict.CONGESTION, whole=False),
    Row("broadcast-frame", _inner(received(), mac=BROADCAST), Verdict.NOT_HOST, whole=False),
    Row("outer-options", _inner(received(), options=bytes(8)), Verdict.IP_OPTIONS, whole=False),
    Row("outer-first-fragment", _inner(received(), fragment=0x2000), Verdict.FRAGMENT, whole=False),
    Row("other-address-of-ours", _inner(received(), dst=NODE_OTHER_ADDRESS), Verdict.OTHER_ADDRESS,
        whole=False),
    Row("later-outer-fragment", _inner(received(), fragment=0x2001), None, whole=False),
    Row("to-someone-elses-address", _inner(received(), dst="203.0.113.9"), None, whole=False),
    Row("not-for-our-mac", _inner(received(), mac="0e:bb:00:00:00:77"), None, whole=False),
]  # fmt: skip


def stripped(lab: Lab, packet: bytes) -> bytes:
    """Return what enters the stack by the proxy's device, behind an Ethernet header that goes."""
    return packet[:14] + lab.wire.cross(packet[14 + lab.wire.room :])


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
@pytest.mark.parametrize("carrier", [False, True])
def test_any_other_tunnel_packet_enters_the_stack_by_the_proxys_device_if_it_can(
    lab: Lab, row: Row, *, carrier: bool
) -> None:
    lab.configure(carrier=lab.other_port if carrier else 0)
    admit(lab)
    packet = row.packet(lab)
    outcome = from_uplink(lab, packet, gso_size=row.gso_size)
    if carrier and row.whole:
        # With options the header is longer than what `hop` knows; with a wrong sum it stays wrong.
        if row.id not in ("inner-options", "inner-checksum"):
            assert outcome == Outcome(Action.REDIRECT, stripped(lab, packet), row.counted)
        assert outcome.action is Action.REDIRECT
        assert len(outcome.packet) == len(packet) - lab.wire.room
    else:
        assert outcome == Outcome(Action.TO_STACK, packet, row.counted)


@pytest.mark.parametrize("carrier", [False, True])
def test_packet_with_too_few_hops_left_is_not_fast(lab: Lab, *, carrier: bool) -> None:
    """The router answers for the last hop; what the proxy would let expire stays with it."""
    lab.configure(carrier=lab.other_port if carrier else 0)
    for ttl in range(lab.wire.hops + 1):
        packet = wire(lab, received(ttl=ttl))
        admit(lab, ingress_kind=max(0, ttl - lab.wire.hops + 1))
        outcome = from_uplink(lab, packet)
        assert outcome.counted == (Verdict.TTL,)
        carried = carrier and ttl >= lab.wire.hops
        assert outcome.packet == (stripped(lab, packet) if carried else packet)
        lab.admit(UDP_FLOW, egress_kind=ttl)
        assert from_pod(lab, sent(ttl=ttl)).counted == (Verdict.TTL,)


def test_admission_off_still_takes_packets_to_the_proxys_device(lab: Lab) -> None:
    lab.configure(admission=Admission.OFF, carrier=lab.other_port)
    outcome = from_uplink(lab, wire(lab, received()))
    assert outcome.counted == (Verdict.ADMISSION_OFF,)
    assert outcome.packet == stripped(lab, wire(lab, received()))


FORGED = [
    Row("stranger", _inner(received(), src=STRANGER), Verdict.UNKNOWN_NODE),
    Row("stranger-as-itself", _inner(received(src=STRANGER), src=STRANGER), Verdict.UNKNOWN_NODE),
    Row("stranger-with-ipv6", _inner(IPV6, src=STRANGER), Verdict.UNKNOWN_NODE),
    Row("stranger-to-another-address", _inner(received(), src=STRANGER, dst=NODE_OTHER_ADDRESS),
        Verdict.UNKNOWN_NODE),
    Row("stranger-behind-options", _inner(received(), src=STRANGER, options=bytes(4)),
        Verdict.UNKNOWN_NODE),
    Row("stranger-in-fragments", _inner(received(), src=STRANGER, fragment=0x2000),
        Verdict.UNKNOWN_NODE),
    Row("pod-of-another-node", _inner(received(), src=OTHER_NODE), Verdict.FOREIGN_SOURCE),
    Row("pod-of-another-node-in-fragments", _inner(received(), src=OTHER_NODE, fragment=0x2000),
        Verdict.FOREIGN_SOURCE),
    Row("our-own-pod", _inner(received(src="10.244.1.11")), Verdict.FOREIGN_SOURCE),
    Row("the-world", _inner(received(src="192.0.2.1")), Verdict.OUTSIDE_SOURCE),
    Row("tiny-first-fragment", _inner(b"\x45" + bytes(15), fragment=0x2000),
        Verdict.HIDDEN_SOURCE),
]  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in FORGED])
@pytest.mark.parametrize(
    ("spoof", "action", "counts"),
    [
        (SpoofCheck.DROP, Action.DROP, True),
        (SpoofCheck.COUNT, Action.TO_STACK, True),
        (SpoofCheck.OFF, Action.TO_STACK, False),
    ],
)
@pytest.mark.parametrize("carrier", [False, True])
def test_forged_packet_is_treated_as_configured_and_never_carried(
    lab: Lab, row: Row, spoof: SpoofCheck, action: Action, *, counts: bool, carrier: bool
) -> None:
    lab.configure(spoof=spoof, carrier=lab.other_port if carrier else 0)
    admit(lab)
    packet = row.packet(lab)
    counted = row.counted if counts else ()
    assert from_uplink(lab, packet) == Outcome(action, packet, counted)


def test_truncated_tunnel_packet_of_a_peer_goes_to_the_stack_whole(lab: Lab) -> None:
    lab.configure(carrier=lab.other_port)
    admit(lab)
    packet = wire(lab, received())
    for length in range(34, len(packet)):
        outcome = from_uplink(lab, packet[:length])
        assert (outcome.action, outcome.packet) == (Action.TO_STACK, packet[:length])
        assert outcome.counted in ((), (Verdict.TRUNCATED,), (Verdict.LENGTH,))


def test_udp_length_must_agree(lab: Lab) -> None:
    lab.configure(carrier=lab.other_port)
    admit(lab)
    if lab.wire is UDP_WIRE:
        packet = wire(lab, received(), udp_length=30)
        assert from_uplink(lab, packet) == Outcome(Action.TO_STACK, packet, (Verdict.LENGTH,))


def test_datagram_of_a_peer_is_taken_from_any_port(lab: Lab) -> None:
    """A proxy may choose it by flow; flannel's has its own port, and does not look at it."""
    admit(lab)
    if lab.wire is UDP_WIRE:
        assert from_uplink(lab, wire(lab, received(), sport=50000)).counted == (Verdict.FAST,)


def test_packet_of_another_tunnel_is_not_ours(lab: Lab) -> None:
    admit(lab)
    other = IPIP_WIRE if lab.wire is UDP_WIRE else UDP_WIRE
    packet = p.ethernet(
        other.encapsulate(received(), src=PEER_NODE, dst=NODE), dst=UPLINK_MAC, src=WIRE_MAC
    )
    assert from_uplink(lab, packet) == Outcome(Action.TO_STACK, packet, ())


@pytest.mark.parametrize("dst", [NODE, PEER_NODE, NODE_OTHER_ADDRESS, STRANGER])
@pytest.mark.parametrize("options", [b"", bytes(4)])
def test_pod_that_speaks_the_tunnels_protocol_to_a_node_is_dropped(
    lab: Lab, dst: str, options: bytes
) -> None:
    packet = lab.wire.encapsulate(sent(), src=POD, dst=dst, options=options)
    forged = dst != STRANGER
    verdict = Verdict.POD_TUNNEL if forged else Verdict.UNRELATED
    action = Action.DROP if forged else Action.TO_STACK
    assert from_pod(lab, packet) == Outcome(action, frame(packet), (verdict,))


def test_plain_packet_of_a_direct_peer_is_fast_and_loses_one_hop(lab: Lab) -> None:
    lab.configure(carrier=lab.other_port)
    lab.admit(Tuple5(remote=DIRECT_POD), ingress_kind=63)
    packet = received(src=DIRECT_POD)
    outcome = from_uplink(lab, p.ethernet(packet, dst=UPLINK_MAC, src=DIRECT_MAC))
    assert outcome.counted == (Verdict.FAST,)
    assert outcome.packet == p.ethernet(p.hop(packet), dst=POD_MAC, src=GATEWAY_MAC)


def test_plain_packet_of_a_peer_with_a_tunnel_is_left_alone(lab: Lab) -> None:
    lab.configure(carrier=lab.other_port)
    admit(lab)
    packet = p.ethernet(received(), dst=UPLINK_MAC, src=WIRE_MAC)
    assert from_uplink(lab, packet) == Outcome(Action.TO_STACK, packet, (Verdict.NOT_TUNNELLED,))


def test_direct_peer_loses_one_hop_on_the_way_out(lab: Lab) -> None:
    lab.admit(Tuple5(remote=DIRECT_POD), egress_kind=2)
    packet = sent(dst=DIRECT_POD, ttl=2)
    assert from_pod(lab, packet).packet == frame(p.hop(packet))


def test_carried_packets_count_as_slow(lab: Lab) -> None:
    lab.configure(carrier=lab.other_port)
    before = lab.datapath.traffic()[PEER].slow_received
    from_uplink(lab, wire(lab, received()))
    after = lab.datapath.traffic()[PEER].slow_received
    assert (after.packets - before.packets, after.bytes - before.bytes) == (1, len(received()))


def test_datagrams_in_one_packet_are_not_put_into_a_udp_tunnel_nor_taken_out_of_it(
    lab: Lab,
) -> None:
    """With ipip they may, but a test run cannot say of what kind they are: the kernel refuses."""
    lab.configure(carrier=lab.other_port)
    admit(lab)
    verdict = Verdict.DATAGRAMS if lab.wire is UDP_WIRE else Verdict.ROOM
    packet = sent(bytes(2000))
    assert from_pod(lab, packet, gso_size=1000) == Outcome(
        Action.TO_STACK, frame(packet), (verdict,)
    )
    on_wire = wire(lab, received(bytes(2000)))
    assert from_uplink(lab, on_wire, gso_size=1000) == Outcome(Action.TO_STACK, on_wire, (verdict,))
    assert lab.sighting(UDP_FLOW, 1) is not None or verdict is Verdict.ROOM
