"""from_uplink: what becomes of a packet from the wire, row by row; forged ones above all."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

import packets as p
import pytest
from bpf_lab import (
    GATEWAY_MAC,
    NODE,
    NODE_OTHER_ADDRESS,
    OTHER_NODE,
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
    Tuple5,
)
from kersey_loader.datapath import PeerEntry
from kersey_loader.layout import Admission, Endpoint, Program, SpoofCheck, Verdict

UDP_FLOW = Tuple5()
TCP_FLOW = Tuple5(protocol=p.TCP)
BROADCAST = "ff:ff:ff:ff:ff:ff"


def datagram(payload: bytes = b"pong", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": REMOTE, "dst": POD, "ttl": 63, **ip}
    return p.ipv4(p.udp(payload, src=80, dst=40000), **fields)  # type: ignore[arg-type]


def segment(payload: bytes = b"pong", flags: int = p.ACK, **ip: object) -> bytes:
    fields: dict[str, object] = {"src": REMOTE, "dst": POD, "ttl": 63, "protocol": p.TCP, **ip}
    return p.ipv4(p.tcp(payload, src=80, dst=40000, flags=flags), **fields)  # type: ignore[arg-type]


def overlay(inner: bytes, *, dst: str = VTEP, kind: int = 0x800) -> bytes:
    return p.ethernet(inner, dst=dst, src="0e:00:00:00:00:02", kind=kind)


def wire(
    inner_frame: bytes,
    *,
    vni: int = 1,
    flags: int = 0x08000000,
    port: int = 8472,
    udp_length: int | None = None,
    mac: str = UPLINK_MAC,
    **outer: object,
) -> bytes:
    fields: dict[str, object] = {"src": PEER_NODE, "dst": NODE, **outer}
    body = p.udp(p.vxlan(inner_frame, vni=vni, flags=flags), src=50000, dst=port, length=udp_length)
    return p.ethernet(p.ipv4(body, **fields), dst=mac, src=WIRE_MAC)  # type: ignore[arg-type]


def receive(
    lab: Lab, packet: bytes, *, gso_size: int = 0
) -> tuple[Action, bytes, tuple[Verdict, ...]]:
    outcome = lab.run(Program.FROM_UPLINK, packet, device=lab.uplink, gso_size=gso_size)
    return outcome.action, outcome.packet, outcome.counted


@pytest.mark.parametrize(
    ("inner", "outer_tos"),
    [
        pytest.param(datagram(), 0, id="udp"),
        pytest.param(segment(), 0, id="tcp"),
        pytest.param(datagram(b""), 0, id="empty-datagram"),
        pytest.param(datagram(bytes(1422)), 0, id="exactly-the-mtu"),
        pytest.param(datagram(fragment=p.DONT_FRAGMENT), 0, id="dont-fragment"),
        pytest.param(datagram(tos=0xB8), 0, id="dscp"),
        pytest.param(datagram(tos=1), 1, id="ect1-both"),
        pytest.param(datagram(tos=2), 2, id="ect0-both"),
        pytest.param(datagram(tos=3), 2, id="ce-inside"),
        pytest.param(datagram(tos=2), 0, id="ecn-inside-only"),
        pytest.param(datagram(ttl=2), 0, id="ttl-2-becomes-1"),
    ],
)
def test_packet_of_an_admitted_flow_reaches_the_pod_as_the_stack_would_hand_it_over(
    lab: Lab, inner: bytes, outer_tos: int
) -> None:
    lab.admit(UDP_FLOW, ingress_kind=p.kind_of(inner))
    lab.admit(TCP_FLOW, ingress_kind=p.kind_of(inner))
    action, received, counted = receive(lab, wire(overlay(inner), tos=outer_tos))
    assert (action, counted) == (Action.REDIRECT, (Verdict.FAST,))
    assert received == p.ethernet(p.hop(inner), dst=POD_MAC, src=GATEWAY_MAC)


def test_outer_udp_checksum_does_not_matter(lab: Lab) -> None:
    lab.admit(UDP_FLOW)
    packet = bytearray(wire(overlay(datagram())))
    packet[40:42] = b"\x12\x34"
    assert receive(lab, bytes(packet))[2] == (Verdict.FAST,)


@dataclass(frozen=True)
class Row:
    id: str
    packet: bytes
    verdict: Verdict | None
    prepare: Callable[[Lab], None] = lambda _lab: None
    action: Action = Action.TO_STACK
    gso_size: int = 0


def _admit(**options: float | None) -> Callable[[Lab], None]:
    def prepare(lab: Lab) -> None:
        lab.admit(UDP_FLOW, **options)  # type: ignore[arg-type]
        lab.admit(TCP_FLOW, **options)  # type: ignore[arg-type]

    return prepare


def _without_port(lab: Lab) -> None:
    lab.admit(UDP_FLOW)
    lab.datapath.maps["pod_ports"].delete(lab.port.to_bytes(4, "little"))


def _at_two_ports(lab: Lab) -> None:
    lab.admit(UDP_FLOW, ingress_port=lab.other_port)


def _then_flush(lab: Lab) -> None:
    lab.admit(UDP_FLOW)
    lab.datapath.flush()


def _without_admission(lab: Lab) -> None:
    lab.configure(admission=Admission.OFF)
    lab.admit(UDP_FLOW)


ADMITTED = _admit()
PLAIN = overlay(datagram())

UNTOUCHED = [
    Row("arp", p.ethernet(bytes(28), dst=UPLINK_MAC, src=WIRE_MAC, kind=0x806), None),
    Row("tcp-to-the-node", p.ethernet(segment(dst=NODE), dst=UPLINK_MAC, src=WIRE_MAC), None),
    Row("another-udp-port", wire(PLAIN, port=4789), None, ADMITTED),
    Row("to-someone-elses-address", wire(PLAIN, dst="203.0.113.9"), None, ADMITTED),
    Row("later-outer-fragment", wire(PLAIN, fragment=0x2001), None, ADMITTED),
    Row("not-for-our-mac", wire(PLAIN, mac="0e:bb:00:00:00:77"), None, ADMITTED),
    Row("ip-options-of-a-stranger", wire(PLAIN, port=53, options=bytes(4)), None, ADMITTED),
]

TO_STACK = [
    Row("unknown-flow", wire(PLAIN), Verdict.NOT_ADMITTED),
    Row("only-egress", wire(PLAIN), Verdict.NOT_ADMITTED, _admit(ingress_age=None)),
    Row("only-ingress", wire(PLAIN), Verdict.NOT_ADMITTED, _admit(egress_age=None)),
    Row("other-dscp", wire(overlay(datagram(tos=0xB8))), Verdict.OTHER_KIND, ADMITTED),
    Row("other-ttl", wire(overlay(datagram(ttl=9))), Verdict.OTHER_KIND, ADMITTED),
    Row("tcp-without-flags", wire(overlay(segment(flags=0))), Verdict.MALFORMED, ADMITTED),
    Row("egress-too-old", wire(PLAIN), Verdict.STALE, _admit(egress_age=5.5)),
    Row("ingress-too-old", wire(PLAIN), Verdict.STALE, _admit(ingress_age=5.5)),
    Row("flushed", wire(PLAIN), Verdict.FLUSHED, _then_flush),
    Row("witnessed-at-two-ports", wire(PLAIN), Verdict.OTHER_PORT, _at_two_ports),
    Row("port-gone", wire(PLAIN), Verdict.PORT_GONE, _without_port),
    Row("admission-off", wire(PLAIN), Verdict.ADMISSION_OFF, _without_admission),
    Row("broadcast-frame", wire(PLAIN, mac=BROADCAST), Verdict.NOT_HOST, ADMITTED),
    Row("outer-ce", wire(overlay(datagram(tos=2)), tos=3), Verdict.CONGESTION, ADMITTED),
    Row("outer-ce-inner-none", wire(PLAIN, tos=3), Verdict.CONGESTION, ADMITTED),
    Row("outer-ect1-inner-ect0", wire(overlay(datagram(tos=2)), tos=1), Verdict.CONGESTION,
        ADMITTED),
    Row("wrong-vni", wire(PLAIN, vni=2), Verdict.OTHER_VNI, ADMITTED),
    Row("no-vni-flag", wire(PLAIN, flags=0), Verdict.TUNNEL_FLAGS, ADMITTED),
    Row("reserved-flags", wire(PLAIN, flags=0x88000000), Verdict.TUNNEL_FLAGS, ADMITTED),
    Row("other-vtep", wire(overlay(datagram(), dst=POD_MAC)), Verdict.OTHER_VTEP, ADMITTED),
    Row("inner-broadcast", wire(overlay(datagram(), dst=BROADCAST)), Verdict.OTHER_VTEP, ADMITTED),
    Row("inner-arp", wire(overlay(bytes(28), kind=0x806)), Verdict.NOT_IPV4, ADMITTED),
    Row("inner-ipv6", wire(overlay(bytes(60), kind=0x86DD)), Verdict.NOT_IPV4, ADMITTED),
    Row("to-the-gateway-of-a-peer", wire(overlay(datagram(dst="10.244.3.1"))), Verdict.NOT_POD),
    Row("to-the-world", wire(overlay(datagram(dst="192.0.2.1"))), Verdict.NOT_POD),
    Row("node-for-itself", wire(overlay(datagram(src=PEER_NODE))), Verdict.NODE, ADMITTED),
    Row("inner-options", wire(overlay(datagram(options=bytes(4)))), Verdict.IP_OPTIONS, ADMITTED),
    Row("inner-fragment", wire(overlay(datagram(fragment=0x2000))), Verdict.FRAGMENT, ADMITTED),
    Row("inner-last-fragment", wire(overlay(datagram(fragment=9))), Verdict.FRAGMENT, ADMITTED),
    Row("inner-icmp", wire(overlay(datagram(protocol=1))), Verdict.PROTOCOL, ADMITTED),
    Row("syn", wire(overlay(segment(flags=p.SYN))), Verdict.CONTROL, ADMITTED),
    Row("fin", wire(overlay(segment(flags=p.FIN | p.ACK))), Verdict.CONTROL, ADMITTED),
    Row("rst", wire(overlay(segment(flags=p.RST))), Verdict.CONTROL, ADMITTED),
    Row("ttl-1", wire(overlay(datagram(ttl=1))), Verdict.TTL, ADMITTED),
    Row("ttl-0", wire(overlay(datagram(ttl=0))), Verdict.TTL, ADMITTED),
    Row("too-big", wire(overlay(datagram(bytes(1423)))), Verdict.TOO_BIG, ADMITTED),
    Row("gro-too-big", wire(overlay(segment(bytes(3000)))), Verdict.TOO_BIG, ADMITTED,
        gso_size=1411),
    Row("super-datagram", wire(overlay(datagram(bytes(2000)))), Verdict.DATAGRAMS, ADMITTED,
        gso_size=1000),
    Row("inner-length-short", wire(overlay(datagram(length=30))), Verdict.MALFORMED, ADMITTED),
    Row("inner-length-long", wire(overlay(datagram(length=90))), Verdict.LENGTH, ADMITTED),
    Row("outer-length-short", wire(PLAIN, length=70), Verdict.LENGTH, ADMITTED),
    Row("udp-length-short", wire(PLAIN, udp_length=60), Verdict.LENGTH, ADMITTED),
    Row("trailing-bytes", wire(PLAIN) + b"xx", Verdict.LENGTH, ADMITTED),
    Row("outer-options", wire(PLAIN, options=bytes(8)), Verdict.IP_OPTIONS, ADMITTED),
    Row("outer-first-fragment", wire(PLAIN, fragment=0x2000), Verdict.FRAGMENT, ADMITTED),
    Row("other-address-of-ours", wire(PLAIN, dst=NODE_OTHER_ADDRESS), Verdict.OTHER_ADDRESS,
        ADMITTED),
    Row("nested-tunnel",
        wire(overlay(p.ipv4(p.udp(p.vxlan(PLAIN), src=1, dst=8472), src=REMOTE, dst=POD))),
        Verdict.NOT_ADMITTED, ADMITTED),
]  # fmt: skip

FORGED = [
    Row("stranger", wire(PLAIN, src=STRANGER), Verdict.UNKNOWN_NODE),
    Row("stranger-as-itself", wire(overlay(datagram(src=STRANGER)), src=STRANGER),
        Verdict.UNKNOWN_NODE),
    Row("stranger-with-arp", wire(overlay(bytes(28), kind=0x806), src=STRANGER),
        Verdict.UNKNOWN_NODE),
    Row("stranger-to-another-address", wire(PLAIN, src=STRANGER, dst=NODE_OTHER_ADDRESS),
        Verdict.UNKNOWN_NODE),
    Row("stranger-behind-options", wire(PLAIN, src=STRANGER, options=bytes(4)),
        Verdict.UNKNOWN_NODE),
    Row("stranger-in-fragments", wire(PLAIN, src=STRANGER, fragment=0x2000), Verdict.UNKNOWN_NODE),
    Row("stranger-by-broadcast", wire(PLAIN, src=STRANGER, mac=BROADCAST), Verdict.UNKNOWN_NODE),
    Row("our-own-address", wire(PLAIN, src=NODE), Verdict.UNKNOWN_NODE),
    Row("pod-of-another-node", wire(PLAIN, src=OTHER_NODE), Verdict.FOREIGN_SOURCE),
    Row("pod-of-another-node-behind-options", wire(PLAIN, src=OTHER_NODE, options=bytes(4)),
        Verdict.FOREIGN_SOURCE),
    Row("pod-of-another-node-in-fragments", wire(PLAIN, src=OTHER_NODE, fragment=0x2000),
        Verdict.FOREIGN_SOURCE),
    Row("our-own-pod", wire(overlay(datagram(src="10.244.1.11"))), Verdict.FOREIGN_SOURCE),
    Row("unleased-subnet", wire(overlay(datagram(src="10.244.9.9"))), Verdict.FOREIGN_SOURCE),
    Row("another-nodes-address", wire(overlay(datagram(src=OTHER_NODE))), Verdict.OUTSIDE_SOURCE),
    Row("the-world", wire(overlay(datagram(src="192.0.2.1"))), Verdict.OUTSIDE_SOURCE),
    Row("syn-of-another-nodes-pod", wire(overlay(segment(flags=p.SYN)), src=OTHER_NODE),
        Verdict.FOREIGN_SOURCE),
    Row("vlan-tag-inside", wire(overlay(b"\0\0\x08\0" + datagram(src=POD), kind=0x8100)),
        Verdict.HIDDEN_SOURCE),
    Row("tiny-first-fragment", wire(b"", fragment=0x2000), Verdict.HIDDEN_SOURCE),
]  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in UNTOUCHED])
def test_packet_that_is_not_the_tunnels_is_neither_touched_nor_counted(lab: Lab, row: Row) -> None:
    row.prepare(lab)
    assert receive(lab, row.packet) == (Action.TO_STACK, row.packet, ())


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in TO_STACK])
def test_any_other_tunnel_packet_goes_to_the_stack_for_a_counted_reason(lab: Lab, row: Row) -> None:
    row.prepare(lab)
    action, packet, counted = receive(lab, row.packet, gso_size=row.gso_size)
    assert (action, counted) == (Action.TO_STACK, (row.verdict,))
    assert packet == row.packet


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in FORGED])
@pytest.mark.parametrize(
    ("spoof", "action", "counts"),
    [
        (SpoofCheck.DROP, Action.DROP, True),
        (SpoofCheck.COUNT, Action.TO_STACK, True),
        (SpoofCheck.OFF, Action.TO_STACK, False),
    ],
)
def test_forged_packet_is_treated_as_configured_and_never_fast(
    lab: Lab, row: Row, spoof: SpoofCheck, action: Action, *, counts: bool
) -> None:
    lab.configure(spoof=spoof)
    ADMITTED(lab)
    counted = (row.verdict,) if counts else ()
    assert receive(lab, row.packet) == (action, row.packet, counted)


@pytest.mark.parametrize("length", range(34, len(wire(PLAIN))))
def test_truncated_tunnel_packet_of_a_peer_goes_to_the_stack_whole(lab: Lab, length: int) -> None:
    ADMITTED(lab)
    packet = wire(PLAIN)[:length]
    action, left, counted = receive(lab, packet)
    assert action is Action.TO_STACK
    assert left == packet
    assert counted in ((), (Verdict.TRUNCATED,), (Verdict.LENGTH,))
    assert bool(counted) == (length >= 42)


@pytest.mark.parametrize("length", range(42, len(wire(PLAIN))))
def test_truncated_tunnel_packet_of_a_stranger_is_dropped(lab: Lab, length: int) -> None:
    packet = wire(PLAIN, src=STRANGER)[:length]
    assert receive(lab, packet)[::2] == (Action.DROP, (Verdict.UNKNOWN_NODE,))


def test_former_address_of_a_node_is_accepted_for_a_while(lab: Lab) -> None:
    lab.datapath.put_peer(PeerEntry(PEER, IPv4Address("198.18.0.7"), p.mac(PEER_VTEP)))
    assert receive(lab, wire(PLAIN, src="198.18.0.7"))[2] == (Verdict.NOT_ADMITTED,)
    assert receive(lab, wire(PLAIN, src=PEER_NODE))[2] == (Verdict.NOT_ADMITTED,)
    assert receive(lab, wire(PLAIN, src=STRANGER))[2] == (Verdict.UNKNOWN_NODE,)


@pytest.mark.parametrize("flags", [p.SYN, p.SYN | p.ACK, p.FIN | p.ACK, p.RST])
def test_control_flag_ends_the_admission_of_its_flow(lab: Lab, flags: int) -> None:
    lab.admit(TCP_FLOW)
    receive(lab, wire(overlay(segment(flags=flags))))
    assert receive(lab, wire(overlay(segment())))[2] == (Verdict.NOT_ADMITTED,)


def test_forged_control_flag_leaves_the_flow_alone(lab: Lab) -> None:
    lab.admit(TCP_FLOW)
    receive(lab, wire(overlay(segment(flags=p.RST)), src=OTHER_NODE))
    assert receive(lab, wire(overlay(segment())))[2] == (Verdict.FAST,)


def test_direct_admission_carries_an_incoming_connection_from_its_syn(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT)
    assert receive(lab, wire(overlay(segment(flags=p.SYN))))[2] == (Verdict.CONTROL,)
    endpoint = Endpoint(
        delivered_port=lab.port,
        sent_port=lab.port,
        pod_mac=tuple(p.mac(POD_MAC)),
        gateway_mac=tuple(p.mac(GATEWAY_MAC)),
    )
    lab.datapath.maps["endpoints"].update(bytes([10, 244, 1, 10]), bytes(endpoint))
    for flags in (p.SYN, p.ACK, p.FIN | p.ACK):
        inner = segment(flags=flags)
        action, received, counted = receive(lab, wire(overlay(inner)))
        assert (action, counted) == (Action.REDIRECT, (Verdict.FAST,))
        assert received == p.ethernet(p.hop(inner), dst=POD_MAC, src=GATEWAY_MAC)


def test_traffic_of_a_peer_is_counted_by_path(lab: Lab) -> None:
    before = lab.datapath.traffic()[PEER]
    receive(lab, wire(PLAIN))
    lab.admit(UDP_FLOW)
    receive(lab, wire(PLAIN))
    receive(lab, wire(PLAIN))
    receive(lab, wire(PLAIN, src=STRANGER))
    after = lab.datapath.traffic()[PEER]
    size = len(datagram())
    assert after.slow_received.packets - before.slow_received.packets == 1
    assert after.slow_received.bytes - before.slow_received.bytes == size
    assert after.fast_received.packets - before.fast_received.packets == 2
    assert after.fast_received.bytes - before.fast_received.bytes == 2 * size
