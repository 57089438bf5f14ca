"""from_pod: what becomes of a packet that a pod sends, row by row."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import packets as p
import pytest
from bpf_lab import (
    GATEWAY_MAC,
    NODE,
    NODE_OTHER_ADDRESS,
    PEER_NODE,
    PEER_VTEP,
    POD,
    POD_MAC,
    REMOTE,
    STRANGER,
    VTEP,
    Action,
    Lab,
    Tuple5,
)
from kersey_loader.layout import Admission, Endpoint, Program, SpoofCheck, Verdict

UDP_FLOW = Tuple5()
TCP_FLOW = Tuple5(protocol=p.TCP)
NONE = "00:00:00:00:00:00"


def frame(packet: bytes, *, dst: str = GATEWAY_MAC, src: str = POD_MAC, kind: int = 0x800) -> bytes:
    return p.ethernet(packet, dst=dst, src=src, kind=kind)


def datagram(payload: bytes = b"ping", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": POD, "dst": REMOTE, **ip}
    return p.ipv4(p.udp(payload, src=40000, dst=80), **fields)  # type: ignore[arg-type]


def segment(payload: bytes = b"ping", flags: int = p.ACK, **ip: object) -> bytes:
    fields: dict[str, object] = {"src": POD, "dst": REMOTE, "protocol": p.TCP, **ip}
    return p.ipv4(p.tcp(payload, src=40000, dst=80, flags=flags), **fields)  # type: ignore[arg-type]


def _broken(packet: bytes, at: int) -> bytes:
    """Return the packet with one byte another."""
    return packet[:at] + bytes([packet[at] ^ 0xFF]) + packet[at + 1 :]


def _udp_length(length: int) -> bytes:
    """Return a datagram that says another length than it has."""
    return p.ipv4(p.udp(b"ping", src=40000, dst=80, length=length), src=POD, dst=REMOTE)


def _data_offset(words: int) -> bytes:
    """Return a segment that says that its header has so many words."""
    packet = segment()
    return packet[:32] + bytes([words << 4]) + packet[33:]


def tunnel(inner: bytes, *, tos: int, ident: int, source_port: int) -> bytes:
    """Return what the wire is to carry for `inner`, which a pod sent."""
    overlay = p.ethernet(p.hop(inner), dst=PEER_VTEP, src=VTEP)
    outer = p.udp(p.vxlan(overlay), src=source_port, dst=8472)
    return p.ethernet(
        p.ipv4(outer, src=NODE, dst=PEER_NODE, tos=tos, ident=ident), dst=NONE, src=NONE
    )


def send(lab: Lab, packet: bytes, **options: int) -> tuple[Action, bytes, tuple[Verdict, ...]]:
    options.setdefault("device", lab.port)
    outcome = lab.run(Program.FROM_POD, packet, **options)
    return outcome.action, outcome.packet, outcome.counted


@pytest.mark.parametrize(
    ("inner", "outer_tos"),
    [
        pytest.param(datagram(), 0, id="udp"),
        pytest.param(segment(), 0, id="tcp"),
        pytest.param(segment(flags=p.ACK | p.PSH), 0, id="tcp-push"),
        pytest.param(datagram(b""), 0, id="empty-datagram"),
        pytest.param(datagram(bytes(1422)), 0, id="exactly-the-mtu"),
        pytest.param(datagram(fragment=p.DONT_FRAGMENT), 0, id="dont-fragment-stays-inside"),
        pytest.param(datagram(tos=0xB8), 0, id="dscp-stays-inside"),
        pytest.param(datagram(tos=1), 1, id="ect1-is-copied"),
        pytest.param(datagram(tos=0xB8 | 2), 2, id="ect0-is-copied"),
        pytest.param(datagram(tos=3), 2, id="ce-becomes-ect0"),
        pytest.param(datagram(ttl=2), 0, id="ttl-2-becomes-1"),
    ],
)
def test_packet_of_an_admitted_flow_leaves_in_a_tunnel_header(
    lab: Lab, inner: bytes, outer_tos: int
) -> None:
    lab.admit(UDP_FLOW, egress_kind=p.kind_of(inner))
    lab.admit(TCP_FLOW, egress_kind=p.kind_of(inner))
    action, sent, counted = send(lab, frame(inner))
    assert (action, counted) == (Action.REDIRECT, (Verdict.FAST,))
    ident, source_port = _free_choices(sent)
    assert 32768 <= source_port < 60999
    assert sent == tunnel(inner, tos=outer_tos, ident=ident, source_port=source_port)


def test_source_port_is_one_for_a_flow_and_identification_is_not(lab: Lab) -> None:
    lab.admit(UDP_FLOW)
    choices = {_free_choices(send(lab, frame(datagram()))[1]) for _ in range(100)}
    assert len({ident for ident, _ in choices}) == 100
    assert len({port for _, port in choices}) == 1


def _free_choices(sent: bytes) -> tuple[int, int]:
    """Return identification and source port, which are the program's to choose."""
    return struct.unpack_from("!H", sent, 18)[0], struct.unpack_from("!H", sent, 34)[0]


@dataclass(frozen=True)
class Row:
    id: str
    packet: bytes
    verdict: Verdict
    prepare: Callable[[Lab], None] = lambda _lab: None
    action: Action = Action.TO_STACK
    gso_size: int = 0


def _admit(**options: float | None) -> Callable[[Lab], None]:
    def prepare(lab: Lab) -> None:
        lab.admit(UDP_FLOW, **options)  # type: ignore[arg-type]
        lab.admit(TCP_FLOW, **options)  # type: ignore[arg-type]

    return prepare


def _port(**options: str) -> Callable[[Lab], None]:
    return lambda lab: lab.admit(
        UDP_FLOW, **{name: getattr(lab, port) for name, port in options.items()}
    )


def _then_flush(lab: Lab) -> None:
    lab.admit(UDP_FLOW)
    lab.datapath.flush()


def _without_admission(lab: Lab) -> None:
    lab.configure(admission=Admission.OFF)
    lab.admit(UDP_FLOW)


ADMITTED = _admit()
NESTED = p.vxlan(frame(datagram()))

ROWS = [
    Row("arp", frame(bytes(28), kind=0x806), Verdict.UNRELATED, ADMITTED),
    Row("ipv6", frame(bytes(60), kind=0x86DD), Verdict.UNRELATED, ADMITTED),
    # The kernel refuses a test run of less than an IPv4 header.
    Row("half-a-udp-header", frame(datagram())[:38], Verdict.TRUNCATED, ADMITTED),
    Row("tcp-without-flags", frame(segment())[:46], Verdict.TRUNCATED, ADMITTED),
    Row("to-the-world", frame(datagram(dst="192.0.2.1")), Verdict.UNRELATED, ADMITTED),
    Row("to-a-pod-here", frame(datagram(dst="10.244.1.11")), Verdict.UNRELATED, ADMITTED),
    Row("to-an-unleased-subnet", frame(datagram(dst="10.244.9.9")), Verdict.UNRELATED, ADMITTED),
    Row("below-the-network", frame(datagram(dst="10.243.255.1")), Verdict.UNRELATED, ADMITTED),
    Row("above-the-network", frame(datagram(dst="10.245.2.10")), Verdict.UNRELATED, ADMITTED),
    Row("ip-options", frame(datagram(options=bytes(4))), Verdict.IP_OPTIONS, ADMITTED),
    Row("first-fragment", frame(datagram(fragment=0x2000)), Verdict.FRAGMENT, ADMITTED),
    Row("later-fragment", frame(datagram(fragment=10)), Verdict.FRAGMENT, ADMITTED),
    Row("icmp", frame(datagram(protocol=1)), Verdict.PROTOCOL, ADMITTED),
    Row("sctp", frame(datagram(protocol=132)), Verdict.PROTOCOL, ADMITTED),
    Row("syn", frame(segment(flags=p.SYN)), Verdict.CONTROL, ADMITTED),
    Row("syn-ack", frame(segment(flags=p.SYN | p.ACK)), Verdict.CONTROL, ADMITTED),
    Row("fin", frame(segment(flags=p.FIN | p.ACK)), Verdict.CONTROL, ADMITTED),
    Row("rst", frame(segment(flags=p.RST)), Verdict.CONTROL, ADMITTED),
    Row("ttl-1", frame(datagram(ttl=1)), Verdict.TTL, ADMITTED),
    Row("ttl-0", frame(datagram(ttl=0)), Verdict.TTL, ADMITTED),
    Row("trailing-bytes", frame(datagram()) + b"xx", Verdict.LENGTH, ADMITTED),
    Row("length-beyond-the-end", frame(datagram(length=1000)), Verdict.LENGTH, ADMITTED),
    Row("one-over-the-mtu", frame(datagram(bytes(1423))), Verdict.TOO_BIG, ADMITTED),
    Row("gso-over-the-mtu", frame(segment(bytes(3000))), Verdict.TOO_BIG, ADMITTED, gso_size=1411),
    # A test run cannot say that a GSO packet is TCP's, so the kernel refuses the room for it.
    Row("gso-of-no-kind", frame(segment(bytes(3000))), Verdict.ROOM, ADMITTED, gso_size=1410),
    Row("unknown-flow", frame(datagram()), Verdict.NOT_ADMITTED),
    Row("only-egress", frame(datagram()), Verdict.NOT_ADMITTED, _admit(ingress_age=None)),
    Row("only-ingress", frame(datagram()), Verdict.NOT_ADMITTED, _admit(egress_age=None)),
    Row("egress-too-old", frame(datagram()), Verdict.STALE, _admit(egress_age=5.5)),
    Row("ingress-too-old", frame(datagram()), Verdict.STALE, _admit(ingress_age=5.5)),
    Row("other-dscp", frame(datagram(tos=0xB8)), Verdict.OTHER_KIND, ADMITTED),
    Row("other-ttl", frame(datagram(ttl=63)), Verdict.OTHER_KIND, ADMITTED),
    Row("wrong-header-checksum", frame(_broken(datagram(), 10)), Verdict.MALFORMED, ADMITTED),
    Row("udp-longer-than-ip", frame(_udp_length(13)), Verdict.MALFORMED, ADMITTED),
    Row("udp-shorter-than-its-header", frame(_udp_length(7)), Verdict.MALFORMED, ADMITTED),
    Row("tcp-without-flags", frame(segment(flags=0)), Verdict.MALFORMED, ADMITTED),
    Row("tcp-push-without-ack", frame(segment(flags=p.PSH)), Verdict.MALFORMED, ADMITTED),
    Row("tcp-offset-4", frame(_data_offset(4)), Verdict.MALFORMED, ADMITTED),
    Row("tcp-offset-beyond-the-packet", frame(_data_offset(15)), Verdict.MALFORMED, ADMITTED),
    Row("old-generation", frame(datagram()), Verdict.FLUSHED, _admit(generation=0xFFFF)),
    Row("flushed", frame(datagram()), Verdict.FLUSHED, _then_flush),
    Row(
        "witnessed-at-two-ports",
        frame(datagram()),
        Verdict.OTHER_PORT,
        _port(ingress_port="other_port"),
    ),
    Row(
        "sent-by-another-port",
        frame(datagram()),
        Verdict.OTHER_PORT,
        _port(egress_port="other_port", ingress_port="other_port"),
    ),
    Row("forged-mac", frame(datagram(), src="0e:aa:00:00:00:66"), Verdict.OTHER_PORT, ADMITTED),
    Row("to-a-neighbour", frame(datagram(), dst="0e:aa:00:00:00:66"), Verdict.OTHER_PORT, ADMITTED),
    Row("admission-off", frame(datagram()), Verdict.ADMISSION_OFF, _without_admission),
]

_TO_TUNNEL = p.udp(NESTED, src=40000, dst=8472)


def _to_tunnel(dst: str, **ip: object) -> bytes:
    return frame(p.ipv4(_TO_TUNNEL, src=POD, dst=dst, **ip))  # type: ignore[arg-type]


FORGED = [
    Row("tunnel-to-own-node", _to_tunnel(NODE), Verdict.POD_TUNNEL, action=Action.DROP),
    Row("tunnel-to-a-peers-node", _to_tunnel(PEER_NODE), Verdict.POD_TUNNEL, action=Action.DROP),
    Row(
        "tunnel-to-another-address-of-the-node",
        _to_tunnel(NODE_OTHER_ADDRESS),
        Verdict.POD_TUNNEL,
        action=Action.DROP,
    ),
    Row(
        "tunnel-behind-ip-options",
        _to_tunnel(NODE, options=bytes(4)),
        Verdict.POD_TUNNEL,
        action=Action.DROP,
    ),
    Row(
        "tunnel-in-fragments",
        _to_tunnel(NODE, fragment=0x2000),
        Verdict.POD_TUNNEL,
        action=Action.DROP,
    ),
    Row(
        "tunnel-only-counted",
        _to_tunnel(NODE),
        Verdict.POD_TUNNEL,
        lambda lab: lab.configure(spoof=SpoofCheck.COUNT),
    ),
    Row("tunnel-to-a-stranger", _to_tunnel(STRANGER), Verdict.UNRELATED),
    Row("overlay-inside-the-overlay", _to_tunnel(REMOTE), Verdict.NOT_ADMITTED),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS + FORGED])
def test_any_other_packet_goes_as_it_came_for_a_counted_reason(lab: Lab, row: Row) -> None:
    row.prepare(lab)
    action, packet, counted = send(lab, row.packet, gso_size=row.gso_size)
    assert (action, counted) == (row.action, (row.verdict,))
    assert packet == row.packet


@pytest.mark.parametrize("flags", [p.SYN, p.SYN | p.ACK, p.FIN | p.ACK, p.RST, p.RST | p.ACK])
def test_control_flag_ends_the_admission_of_its_flow(lab: Lab, flags: int) -> None:
    lab.admit(TCP_FLOW)
    send(lab, frame(segment(flags=flags)))
    assert send(lab, frame(segment()))[2] == (Verdict.NOT_ADMITTED,)


def test_packet_that_goes_to_the_stack_is_noted_with_its_port_tos_and_ttl(lab: Lab) -> None:
    send(lab, frame(datagram(tos=0x2E, ttl=33)))
    seen = lab.sighting(UDP_FLOW, 0)
    assert seen is not None
    assert seen.port == lab.port
    assert seen.fact & 0xFFFF == 0x2E << 8 | 33
    assert seen.fact >> 16 & 0xFFFF == lab.datapath.generation
    send(lab, frame(datagram(tos=0, ttl=64)), device=lab.other_port)
    seen = lab.sighting(UDP_FLOW, 0)
    assert seen is not None
    assert (seen.port, seen.fact & 0xFFFF) == (lab.other_port, 64)


def test_unconfigured_datapath_leaves_everything_alone(lab: Lab) -> None:
    lab.admit(UDP_FLOW)
    cfg = lab.datapath.maps["cfg"]
    kept = cfg.lookup(bytes(4))
    assert kept is not None
    cfg.update(bytes(4), bytes(len(kept)))
    try:
        outcome = send(lab, frame(datagram()))
    finally:
        cfg.update(bytes(4), kept)
    assert outcome == (Action.TO_STACK, frame(datagram()), (Verdict.UNCONFIGURED,))


def _known_endpoint(lab: Lab, *, sent_port: int | None = None) -> None:
    endpoint = Endpoint(
        delivered_port=lab.port,
        sent_port=lab.port if sent_port is None else sent_port,
        pod_mac=tuple(p.mac(POD_MAC)),
        gateway_mac=tuple(p.mac(GATEWAY_MAC)),
    )
    lab.datapath.maps["endpoints"].update(bytes([10, 244, 1, 10]), bytes(endpoint))


def test_direct_admission_carries_a_connection_from_its_syn_to_its_fin(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT)
    _known_endpoint(lab)
    for flags in (p.SYN, p.ACK, p.PSH | p.ACK, p.FIN | p.ACK, p.RST):
        assert send(lab, frame(segment(flags=flags)))[2] == (Verdict.FAST,)


def test_direct_admission_does_not_age_but_obeys_a_flush(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT, max_age=0.0)
    _known_endpoint(lab)
    send(lab, frame(segment(flags=p.SYN)))
    assert send(lab, frame(segment()))[2] == (Verdict.FAST,)
    lab.datapath.flush()
    assert send(lab, frame(segment()))[2] == (Verdict.FLUSHED,)


def test_direct_admission_needs_both_sides_of_the_endpoint(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT)
    assert send(lab, frame(segment(flags=p.SYN)))[2] == (Verdict.CONTROL,)
    _known_endpoint(lab, sent_port=lab.other_port)
    assert send(lab, frame(segment(flags=p.SYN)))[2] == (Verdict.CONTROL,)
    # That SYN came from the port that the stack delivers to: now both halves agree.
    assert send(lab, frame(segment(flags=p.SYN)))[2] == (Verdict.FAST,)


def test_direct_admission_is_not_for_a_syn_from_another_port(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT)
    _known_endpoint(lab)
    outcome = send(lab, frame(segment(flags=p.SYN)), device=lab.other_port)
    assert outcome[2] == (Verdict.OTHER_PORT,)


def test_strict_admission_ignores_endpoints(lab: Lab) -> None:
    _known_endpoint(lab)
    assert send(lab, frame(segment(flags=p.SYN)))[2] == (Verdict.CONTROL,)
