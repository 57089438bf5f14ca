"""Random packets against every program of every tunnel: nothing is half done, no verdict is odd."""

import packets as p
import pytest
from bpf_lab import (
    DIRECT_MAC,
    DIRECT_POD,
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
    XdpAction,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kersey_loader.layout import Program, Verdict, WireDuty
from wires import IPIP_WIRE, NO_WIRE, UDP_WIRE, VXLAN_WIRE, Wire

pytestmark = pytest.mark.parametrize(
    "loaded_lab",
    [pytest.param(wire, id=wire.kind) for wire in (VXLAN_WIRE, UDP_WIRE, IPIP_WIRE, NO_WIRE)],
    indirect=True,
)
RUNS = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SHORTEST = 34
"""An Ethernet and an IPv4 header: the kernel refuses a test run of less."""


def inner_out(remote: str) -> bytes:
    return p.ipv4(p.udp(b"ping", src=40000, dst=80), src=POD, dst=remote)


def inner_in(remote: str) -> bytes:
    return p.ipv4(p.udp(b"pong", src=80, dst=40000), src=remote, dst=POD)


def sent(wire: Wire, *, direct: bool) -> bytes:
    """Return what a pod sends to a peer that this lab has."""
    remote = DIRECT_POD if direct or wire.tunnel is None else REMOTE
    return p.ethernet(inner_out(remote), dst=GATEWAY_MAC, src=POD_MAC)


def received(wire: Wire, *, direct: bool) -> bytes:
    """Return what comes from the wire for the pod."""
    if direct or wire.tunnel is None:
        return p.ethernet(inner_in(DIRECT_POD), dst=UPLINK_MAC, src=DIRECT_MAC)
    vtep = {"dst_vtep": VTEP} if wire is VXLAN_WIRE else {}
    outer = wire.encapsulate(inner_in(REMOTE), src=PEER_NODE, dst=NODE, **vtep)
    return p.ethernet(outer, dst=UPLINK_MAC, src=WIRE_MAC)


@st.composite
def damaged(draw: st.DrawFn, packet: bytes) -> bytes:
    """Draw `packet` with some bytes changed, a part cut off or something behind it."""
    data = bytearray(packet)
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(12, len(data) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.one_of(st.just(len(data)), st.integers(SHORTEST, len(data))))
    return bytes(data[:cut]) + draw(st.one_of(st.just(b""), st.binary(max_size=40)))


def prepare(lab: Lab, *, carrier: bool) -> None:
    """Admit what these packets are of; tell of a proxy's device where there can be one."""
    lab.configure(carrier=lab.other_port if carrier and lab.wire in (UDP_WIRE, IPIP_WIRE) else 0)
    for remote in (REMOTE, DIRECT_POD):
        lab.admit(Tuple5(remote=remote), ingress_kind=64)


def check(lab: Lab, program: Program, packet: bytes, *, device: int, grows: int) -> None:
    outcome = lab.run(program, packet, device=device)
    assert len(outcome.counted) <= 1
    if outcome.counted == (Verdict.FAST,):
        assert outcome.action is Action.REDIRECT
        assert len(outcome.packet) in (len(packet), len(packet) + grows)
    elif outcome.action is Action.REDIRECT:  # into the proxy's device
        assert program is Program.FROM_UPLINK
        assert len(outcome.packet) == len(packet) + grows
        assert not outcome.counted[0].forged
    else:
        assert outcome.packet == packet
    if outcome.action is Action.DROP:
        assert outcome.counted[0].forged


@RUNS
@given(data=st.data(), direct=st.booleans())
def test_no_damaged_packet_of_a_pod_is_half_handled(
    lab: Lab, data: st.DataObject, *, direct: bool
) -> None:
    prepare(lab, carrier=False)
    packet = data.draw(damaged(sent(lab.wire, direct=direct)))
    check(lab, Program.FROM_POD, packet, device=lab.port, grows=lab.wire.room)


@RUNS
@given(data=st.data(), direct=st.booleans(), carrier=st.booleans())
def test_no_damaged_packet_of_the_wire_is_half_handled(
    lab: Lab, data: st.DataObject, *, direct: bool, carrier: bool
) -> None:
    prepare(lab, carrier=carrier)
    packet = data.draw(damaged(received(lab.wire, direct=direct)))
    check(lab, Program.FROM_UPLINK, packet, device=lab.uplink, grows=-lab.wire.room)


@RUNS
@given(
    program=st.sampled_from([Program.TO_OVERLAY, Program.TO_UPLINK]),
    remote=st.sampled_from([REMOTE, DIRECT_POD]),
    data=st.data(),
)
def test_no_damaged_packet_of_the_stack_is_changed_on_its_way_out(
    lab: Lab, program: Program, remote: str, data: st.DataObject
) -> None:
    dst = DIRECT_MAC if remote == DIRECT_POD else PEER_VTEP
    packet = data.draw(damaged(p.ethernet(p.hop(inner_out(remote)), dst=dst, src=VTEP)))
    outcome = lab.run(program, packet, device=lab.uplink)
    assert (outcome.action, outcome.packet) == (Action.TO_STACK, packet)
    assert len(outcome.counted) <= 1


@RUNS
@given(data=st.data(), remote=st.sampled_from([REMOTE, DIRECT_POD]))
def test_no_damaged_packet_of_the_stack_is_changed_on_its_way_in(
    lab: Lab, data: st.DataObject, remote: str
) -> None:
    packet = data.draw(damaged(p.ethernet(p.hop(inner_in(remote)), dst=POD_MAC, src=GATEWAY_MAC)))
    outcome = lab.run(Program.TO_POD, packet, device=lab.port)
    assert (outcome.action, outcome.packet) == (Action.TO_STACK, packet)


@RUNS
@given(data=st.data(), direct=st.booleans())
def test_no_damaged_frame_is_half_handled_before_it_is_a_packet(
    lab: Lab, data: st.DataObject, *, direct: bool
) -> None:
    prepare(lab, carrier=False)
    lab.charge(WireDuty.ATTACHED | WireDuty.DECAPSULATES | WireDuty.REDIRECTS)
    frame = data.draw(damaged(received(lab.wire, direct=direct)))
    outcome = lab.run_wire(frame)
    assert len(outcome.counted) <= 1
    if outcome.counted == (Verdict.DECAPSULATED,):
        assert outcome.action is XdpAction.PASS
        assert len(outcome.packet) == len(frame) - lab.wire.room
    elif outcome.counted == (Verdict.FAST,):
        assert outcome.action is XdpAction.REDIRECT
        assert len(outcome.packet) == len(frame)
    else:
        is_forged = bool(outcome.counted)
        assert outcome.action is (XdpAction.DROP if is_forged else XdpAction.PASS)
        assert outcome.packet == frame


TC = [program for program in Program if program is not Program.WIRE]


@RUNS
@given(program=st.sampled_from(TC), tail=st.binary(min_size=SHORTEST, max_size=120))
@pytest.mark.parametrize("size", [14, 34, 42, 64])
def test_garbage_reaches_no_pod_and_no_wire(
    lab: Lab, program: Program, size: int, tail: bytes
) -> None:
    packet = received(lab.wire, direct=False)[:size] + tail
    outcome = lab.run(program, packet, device=lab.port)
    assert outcome.action is not Action.REDIRECT
    assert outcome.packet == packet


@RUNS
@given(source=st.ip_addresses(v=4), inner=st.ip_addresses(v=4))
def test_only_the_node_of_a_lease_speaks_for_it(lab: Lab, source: object, inner: object) -> None:
    if lab.wire.tunnel is None:
        return
    body = p.ipv4(p.udp(b"", src=80, dst=40000), src=str(inner), dst=POD)
    outer = lab.wire.encapsulate(body, src=str(source), dst=NODE)
    packet = p.ethernet(outer, dst=UPLINK_MAC, src=WIRE_MAC)
    outcome = lab.run(Program.FROM_UPLINK, packet, device=lab.uplink)
    leased = str(inner).startswith("10.244.2.") and str(source) == PEER_NODE
    assert (outcome.action is Action.DROP) != leased
