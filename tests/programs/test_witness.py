"""to_overlay and to_pod: what they take for a witness, and what a flow becomes by it.

Each packet is first noted by from_pod or from_uplink, as on its way through a real stack.
"""

import packets as p
import pytest
from bpf_lab import (
    GATEWAY_MAC,
    NODE,
    OTHER,
    OTHER_VTEP,
    PEER,
    PEER_NODE,
    PEER_VTEP,
    POD,
    POD_MAC,
    REMOTE,
    UPLINK_MAC,
    VTEP,
    WIRE_MAC,
    Action,
    Lab,
    Outcome,
    Tuple5,
)
from kersey_loader.layout import Admission, Program, Verdict

FLOW = Tuple5()
TCP_FLOW = Tuple5(protocol=p.TCP)


def sent(payload: bytes = b"ping", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": POD, "dst": REMOTE, **ip}
    return p.ipv4(p.udp(payload, src=40000, dst=80), **fields)  # type: ignore[arg-type]


def received(payload: bytes = b"pong", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": REMOTE, "dst": POD, **ip}
    return p.ipv4(p.udp(payload, src=80, dst=40000), **fields)  # type: ignore[arg-type]


def segment(flags: int, *, outward: bool) -> bytes:
    src, dst, ports = (POD, REMOTE, (40000, 80)) if outward else (REMOTE, POD, (80, 40000))
    body = p.tcp(b"", src=ports[0], dst=ports[1], flags=flags)
    return p.ipv4(body, src=src, dst=dst, protocol=p.TCP)


def from_pod(lab: Lab, packet: bytes, *, port: int | None = None) -> Outcome:
    frame = p.ethernet(packet, dst=GATEWAY_MAC, src=POD_MAC)
    return lab.run(Program.FROM_POD, frame, device=port or lab.port)


def from_uplink(lab: Lab, packet: bytes) -> Outcome:
    inner = p.ethernet(packet, dst=VTEP, src=PEER_VTEP)
    outer = p.ipv4(p.udp(p.vxlan(inner), src=50000, dst=8472), src=PEER_NODE, dst=NODE)
    return lab.run(
        Program.FROM_UPLINK, p.ethernet(outer, dst=UPLINK_MAC, src=WIRE_MAC), device=lab.uplink
    )


def to_overlay(lab: Lab, packet: bytes, *, gateway: str = PEER_VTEP) -> Verdict:
    frame = p.ethernet(packet, dst=gateway, src=VTEP)
    return only(lab.run(Program.TO_OVERLAY, frame, device=lab.uplink), frame)


def to_pod(lab: Lab, packet: bytes, *, port: int | None = None, dst: str = POD_MAC) -> Verdict:
    frame = p.ethernet(packet, dst=dst, src=GATEWAY_MAC)
    return only(lab.run(Program.TO_POD, frame, device=port or lab.port), frame)


def only(outcome: Outcome, frame: bytes) -> Verdict:
    """Return the one verdict of a program that changes nothing and drops nothing."""
    assert outcome.action is Action.TO_STACK
    assert outcome.packet == frame
    assert len(outcome.counted) == 1
    return outcome.counted[0]


def cross(lab: Lab) -> None:
    """Send one packet each way through the whole stack."""
    from_pod(lab, sent())
    assert to_overlay(lab, p.hop(sent())) is Verdict.WITNESSED
    from_uplink(lab, received())
    assert to_pod(lab, p.hop(received())) is Verdict.WITNESSED


def test_flow_is_fast_both_ways_after_one_packet_each_way(lab: Lab) -> None:
    assert from_pod(lab, sent()).counted == (Verdict.NOT_ADMITTED,)
    assert from_uplink(lab, received()).counted == (Verdict.NOT_ADMITTED,)
    cross(lab)
    assert from_pod(lab, sent()).counted == (Verdict.FAST,)
    assert from_uplink(lab, received()).counted == (Verdict.FAST,)


def test_ingress_alone_does_not_admit(lab: Lab) -> None:
    from_uplink(lab, received())
    assert to_pod(lab, p.hop(received())) is Verdict.WITNESSED
    assert from_uplink(lab, received()).counted == (Verdict.NOT_ADMITTED,)
    assert from_pod(lab, sent()).counted == (Verdict.NOT_ADMITTED,)


def test_witnessed_header_is_the_one_that_the_pod_gets(lab: Lab) -> None:
    cross(lab)
    outcome = from_uplink(lab, received())
    assert outcome.packet == p.ethernet(p.hop(received()), dst=POD_MAC, src=GATEWAY_MAC)


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        pytest.param(sent(), Verdict.CHANGED, id="ttl-not-decremented"),
        pytest.param(p.hop(p.hop(sent())), Verdict.CHANGED, id="ttl-decremented-twice"),
        pytest.param(p.hop(sent(tos=0x2E)), Verdict.CHANGED, id="tos-rewritten"),
        pytest.param(p.hop(sent(src="10.244.1.11")), Verdict.UNSEEN, id="source-translated"),
        pytest.param(p.hop(sent(dst="10.244.2.11")), Verdict.UNSEEN, id="destination-translated"),
        pytest.param(p.hop(sent(dst="192.0.2.1")), Verdict.UNRELATED, id="to-the-world"),
        pytest.param(p.hop(sent(fragment=0x2000)), Verdict.FRAGMENT, id="fragmented-by-the-stack"),
        pytest.param(p.hop(sent(options=bytes(4))), Verdict.IP_OPTIONS, id="options-added"),
        pytest.param(p.hop(sent(protocol=1)), Verdict.PROTOCOL, id="icmp"),
    ],
)
def test_packet_that_leaves_otherwise_than_it_came_is_no_egress_witness(
    lab: Lab, packet: bytes, verdict: Verdict
) -> None:
    from_pod(lab, sent())
    assert to_overlay(lab, packet) is verdict
    assert lab.flow(FLOW) is None


def test_packet_towards_another_node_than_the_leases_is_no_witness(lab: Lab) -> None:
    from_pod(lab, sent())
    assert to_overlay(lab, p.hop(sent()), gateway=OTHER_VTEP) is Verdict.OTHER_GATEWAY
    assert lab.flow(FLOW) is None


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        pytest.param(received(), Verdict.CHANGED, id="ttl-not-decremented"),
        pytest.param(p.hop(received(tos=0x2E)), Verdict.CHANGED, id="tos-rewritten"),
        pytest.param(p.hop(received(src="10.244.2.11")), Verdict.UNSEEN, id="source-translated"),
        pytest.param(p.hop(received(dst="10.244.1.11")), Verdict.UNSEEN, id="to-another-pod"),
        pytest.param(p.hop(received(src="10.244.1.12")), Verdict.UNRELATED, id="from-a-pod-here"),
        pytest.param(p.hop(received(src="192.0.2.1")), Verdict.UNRELATED, id="from-the-world"),
        pytest.param(p.hop(received(fragment=3)), Verdict.FRAGMENT, id="fragment"),
    ],
)
def test_packet_that_leaves_otherwise_than_it_came_is_no_ingress_witness(
    lab: Lab, packet: bytes, verdict: Verdict
) -> None:
    from_uplink(lab, received())
    assert to_pod(lab, packet) is verdict
    assert lab.flow(FLOW) is None


def test_sighting_of_one_direction_is_no_witness_of_the_other(lab: Lab) -> None:
    from_pod(lab, sent())
    assert to_pod(lab, p.hop(received())) is Verdict.UNSEEN
    from_uplink(lab, received())
    assert to_overlay(lab, p.hop(sent(ttl=32))) is Verdict.CHANGED


def test_sighting_before_a_flush_is_no_witness_after_it(lab: Lab) -> None:
    from_pod(lab, sent())
    lab.datapath.flush()
    assert to_overlay(lab, p.hop(sent())) is Verdict.FLUSHED
    assert lab.flow(FLOW) is None


def test_old_sighting_is_no_witness(lab: Lab) -> None:
    from_pod(lab, sent())
    seen = lab.sighting(FLOW, 0)
    assert seen is not None
    clock = lab.datapath.clock()
    ago = (clock.jiffies - clock.hertz) & 0xFFFFFFFF
    seen.fact = ago << 32 | seen.fact & 0xFFFFFFFF
    lab.datapath.maps["sightings"].update(FLOW.key(0), bytes(seen))
    assert to_overlay(lab, p.hop(sent())) is Verdict.UNSEEN


def test_flow_that_went_stale_is_fast_again_after_one_packet_through_the_stack(lab: Lab) -> None:
    lab.admit(FLOW, egress_age=60)
    assert from_pod(lab, sent()).counted == (Verdict.STALE,)
    assert to_overlay(lab, p.hop(sent())) is Verdict.WITNESSED
    assert from_pod(lab, sent()).counted == (Verdict.FAST,)


def test_flushed_flow_needs_both_directions_again(lab: Lab) -> None:
    cross(lab)
    lab.datapath.flush()
    from_pod(lab, sent())
    to_overlay(lab, p.hop(sent()))
    assert from_pod(lab, sent()).counted == (Verdict.FLUSHED,)
    cross(lab)
    assert from_pod(lab, sent()).counted == (Verdict.FAST,)


def test_frame_flooded_to_another_port_takes_the_flow_off_the_fast_path(lab: Lab) -> None:
    cross(lab)
    lab.admit(FLOW, ingress_age=60)
    from_uplink(lab, received())
    to_pod(lab, p.hop(received()), port=lab.other_port)
    assert from_uplink(lab, received()).counted == (Verdict.OTHER_PORT,)
    assert from_pod(lab, sent()).counted == (Verdict.OTHER_PORT,)


def test_forged_source_at_another_port_takes_the_flow_off_the_fast_path(lab: Lab) -> None:
    cross(lab)
    from_pod(lab, sent(), port=lab.other_port)
    to_overlay(lab, p.hop(sent()))
    assert from_uplink(lab, received()).counted == (Verdict.OTHER_PORT,)


def test_port_that_is_not_a_live_pod_port_witnesses_nothing(lab: Lab) -> None:
    lab.datapath.maps["pod_ports"].delete(lab.port.to_bytes(4, "little"))
    from_uplink(lab, received())
    assert to_pod(lab, p.hop(received())) is Verdict.PORT_GONE
    assert lab.flow(FLOW) is None


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        (p.SYN, Verdict.CONTROL),
        (p.SYN | p.ACK, Verdict.UNSEEN),
        (p.FIN | p.ACK, Verdict.CONTROL),
        (p.RST, Verdict.CONTROL),
        (p.SYN | p.FIN | p.ACK, Verdict.CONTROL),
    ],
)
def test_control_flag_at_either_witness_ends_the_admission(
    lab: Lab, flags: int, verdict: Verdict
) -> None:
    lab.admit(TCP_FLOW)
    assert to_overlay(lab, segment(flags, outward=True)) is verdict
    assert from_pod(lab, segment(p.ACK, outward=True)).counted == (Verdict.NOT_ADMITTED,)
    lab.admit(TCP_FLOW)
    assert to_pod(lab, segment(flags, outward=False)) is verdict
    assert from_pod(lab, segment(p.ACK, outward=True)).counted == (Verdict.NOT_ADMITTED,)


def through_the_stack(lab: Lab, flags: int, *, outward: bool) -> tuple[Verdict, Verdict]:
    """Have a segment cross the stack; return the verdicts where it enters and where it leaves."""
    packet = segment(flags, outward=outward)
    if outward:
        return from_pod(lab, packet).counted[0], to_overlay(lab, p.hop(packet))
    return from_uplink(lab, packet).counted[0], to_pod(lab, p.hop(packet))


@pytest.mark.parametrize("outward", [True, False])
def test_after_the_handshake_the_first_data_is_fast(lab: Lab, *, outward: bool) -> None:
    syn = (Verdict.CONTROL, Verdict.CONTROL)
    assert through_the_stack(lab, p.SYN, outward=outward) == syn
    answer = (Verdict.CONTROL, Verdict.WITNESSED)
    assert through_the_stack(lab, p.SYN | p.ACK, outward=not outward) == answer
    ack = (Verdict.NOT_ADMITTED, Verdict.WITNESSED)
    assert through_the_stack(lab, p.ACK, outward=outward) == ack
    assert from_pod(lab, segment(p.ACK, outward=True)).counted == (Verdict.FAST,)
    assert from_uplink(lab, segment(p.ACK, outward=False)).counted == (Verdict.FAST,)


def test_the_ack_of_a_handshake_always_takes_the_stack(lab: Lab) -> None:
    lab.admit(TCP_FLOW)  # of a connection before, with the same ports
    through_the_stack(lab, p.SYN, outward=True)
    through_the_stack(lab, p.SYN | p.ACK, outward=False)
    assert from_pod(lab, segment(p.ACK, outward=True)).counted == (Verdict.NOT_ADMITTED,)


def test_admission_off_witnesses_nothing_but_counts_the_traffic(lab: Lab) -> None:
    lab.configure(admission=Admission.OFF)
    before = lab.datapath.traffic()[PEER].slow_sent
    from_pod(lab, sent())
    assert to_overlay(lab, p.hop(sent())) is Verdict.ADMISSION_OFF
    assert to_pod(lab, p.hop(received())) is Verdict.ADMISSION_OFF
    after = lab.datapath.traffic()[PEER].slow_sent
    assert (after.packets - before.packets, after.bytes - before.bytes) == (1, len(sent()))
    assert lab.flow(FLOW) is None


def test_slow_traffic_is_counted_for_the_peer_that_it_goes_to(lab: Lab) -> None:
    before = lab.datapath.traffic()
    to_overlay(lab, p.hop(sent()))
    after = lab.datapath.traffic()
    assert after[PEER].slow_sent.packets - before[PEER].slow_sent.packets == 1
    assert after[OTHER] == before[OTHER]


def test_endpoint_is_learned_from_both_sides_under_direct_admission(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT)
    to_pod(lab, p.hop(received(src="192.0.2.1")))
    endpoint = lab.endpoint(POD)
    assert endpoint is not None
    assert (endpoint.delivered_port, endpoint.sent_port) == (lab.port, 0)
    assert bytes(endpoint.pod_mac) == p.mac(POD_MAC)
    from_pod(lab, sent())
    endpoint = lab.endpoint(POD)
    assert endpoint is not None
    assert endpoint.sent_port == lab.port


def test_endpoint_that_moves_must_send_from_its_new_port(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT)
    to_pod(lab, p.hop(received()))
    from_pod(lab, sent())
    to_pod(lab, p.hop(received()), port=lab.other_port)
    endpoint = lab.endpoint(POD)
    assert endpoint is not None
    assert (endpoint.delivered_port, endpoint.sent_port) == (lab.other_port, 0)


def test_strict_admission_learns_no_endpoints(lab: Lab) -> None:
    to_pod(lab, p.hop(received()))
    assert lab.endpoint(POD) is None


def test_direct_flow_that_the_stack_carried_is_revalidated_from_then_on(lab: Lab) -> None:
    lab.configure(admission=Admission.DIRECT)
    to_pod(lab, p.hop(received()))
    from_pod(lab, sent())
    assert from_pod(lab, segment(p.SYN, outward=True)).counted == (Verdict.FAST,)
    entry = lab.flow(TCP_FLOW)
    assert entry is not None
    assert entry.direct == 1
    lab.datapath.flush()
    from_pod(lab, segment(p.ACK, outward=True))
    assert to_overlay(lab, p.hop(segment(p.ACK, outward=True))) is Verdict.WITNESSED
    entry = lab.flow(TCP_FLOW)
    assert entry is not None
    assert entry.direct == 0
