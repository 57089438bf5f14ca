"""Random packets against every program: no verdict is ever out of bounds, nothing is half done."""

import packets as p
from bpf_lab import (
    GATEWAY_MAC,
    NODE,
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
    Tuple5,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kersey_loader.layout import Program, Verdict

RUNS = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

INNER_OUT = p.ipv4(p.udp(b"ping", src=40000, dst=80), src=POD, dst=REMOTE)
INNER_IN = p.ipv4(p.udp(b"pong", src=80, dst=40000), src=REMOTE, dst=POD)
SENT = p.ethernet(INNER_OUT, dst=GATEWAY_MAC, src=POD_MAC)
RECEIVED = p.ethernet(
    p.ipv4(
        p.udp(p.vxlan(p.ethernet(INNER_IN, dst=VTEP, src=PEER_VTEP)), src=50000, dst=8472),
        src=PEER_NODE,
        dst=NODE,
    ),
    dst=UPLINK_MAC,
    src=WIRE_MAC,
)
ROOM = 50
SHORTEST = 34
"""An Ethernet and an IPv4 header: the kernel refuses a test run of less."""


@st.composite
def damaged(draw: st.DrawFn, packet: bytes) -> bytes:
    """Draw `packet` with some bytes changed, a part cut off or something behind it."""
    data = bytearray(packet)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(12, len(data) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.one_of(st.just(len(data)), st.integers(SHORTEST, len(data))))
    return bytes(data[:cut]) + draw(st.one_of(st.just(b""), st.binary(max_size=40)))


def check(lab: Lab, program: Program, packet: bytes, *, device: int, grows: int) -> None:
    outcome = lab.run(program, packet, device=device)
    assert len(outcome.counted) <= 1
    if outcome.action is Action.REDIRECT:
        assert outcome.counted == (Verdict.FAST,)
        assert len(outcome.packet) == len(packet) + grows
    else:
        assert Verdict.FAST not in outcome.counted
        assert outcome.packet == packet
    if outcome.action is Action.DROP:
        assert outcome.counted[0].forged


@RUNS
@given(packet=damaged(SENT))
def test_no_damaged_packet_of_a_pod_is_half_handled(lab: Lab, packet: bytes) -> None:
    lab.admit(Tuple5())
    check(lab, Program.FROM_POD, packet, device=lab.port, grows=ROOM)


@RUNS
@given(packet=damaged(RECEIVED))
def test_no_damaged_packet_of_the_wire_is_half_handled(lab: Lab, packet: bytes) -> None:
    lab.admit(Tuple5())
    check(lab, Program.FROM_UPLINK, packet, device=lab.uplink, grows=-ROOM)


@RUNS
@given(packet=damaged(p.ethernet(p.hop(INNER_OUT), dst=PEER_VTEP, src=VTEP)))
def test_no_damaged_packet_of_the_stack_is_changed_on_its_way_out(lab: Lab, packet: bytes) -> None:
    check(lab, Program.TO_OVERLAY, packet, device=lab.uplink, grows=0)


@RUNS
@given(packet=damaged(p.ethernet(p.hop(INNER_IN), dst=POD_MAC, src=GATEWAY_MAC)))
def test_no_damaged_packet_of_the_stack_is_changed_on_its_way_in(lab: Lab, packet: bytes) -> None:
    check(lab, Program.TO_POD, packet, device=lab.port, grows=0)


@RUNS
@given(
    program=st.sampled_from(Program),
    head=st.sampled_from([SENT[:14], RECEIVED[:14], RECEIVED[:42], RECEIVED[:64]]),
    tail=st.binary(min_size=SHORTEST, max_size=120),
)
def test_garbage_reaches_no_pod_and_no_wire(
    lab: Lab, program: Program, head: bytes, tail: bytes
) -> None:
    outcome = lab.run(program, head + tail, device=lab.port)
    assert outcome.action is not Action.REDIRECT
    assert outcome.packet == head + tail


@RUNS
@given(source=st.ip_addresses(v=4), inner=st.ip_addresses(v=4))
def test_only_the_node_of_a_lease_speaks_for_it(lab: Lab, source: object, inner: object) -> None:
    body = p.ipv4(p.udp(b"", src=80, dst=40000), src=str(inner), dst=POD)
    outer = p.udp(p.vxlan(p.ethernet(body, dst=VTEP, src=PEER_VTEP)), src=5, dst=8472)
    packet = p.ethernet(p.ipv4(outer, src=str(source), dst=NODE), dst=UPLINK_MAC, src=WIRE_MAC)
    outcome = lab.run(Program.FROM_UPLINK, packet, device=lab.uplink)
    leased = str(inner).startswith("10.244.2.") and str(source) == PEER_NODE
    assert (outcome.action is Action.DROP) != leased
