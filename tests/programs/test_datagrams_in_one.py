"""Several datagrams in one packet (UDP_SEGMENT), as a veth hands them from node to node."""

import packets as p
import pytest
from bpf_lab import (
    NODE,
    PEER_NODE,
    PEER_VTEP,
    POD,
    REMOTE,
    UPLINK_MAC,
    VTEP,
    WIRE_MAC,
    Action,
    Lab,
    Tuple5,
)
from kersey_loader.layout import Program, Verdict

SIZE = 400
INGRESS = 1


def tunnelled(flow: Tuple5) -> bytes:
    kind = p.udp if flow.protocol == p.UDP else p.tcp
    body = kind(bytes(SIZE), src=flow.remote_port, dst=flow.local_port)
    inner = p.ipv4(body, src=REMOTE, dst=POD, protocol=flow.protocol, ttl=63)
    frame = p.ethernet(inner, dst=VTEP, src=PEER_VTEP)
    outer = p.ipv4(p.udp(p.vxlan(frame), src=40000, dst=8472), src=PEER_NODE, dst=NODE)
    return p.ethernet(outer, dst=UPLINK_MAC, src=WIRE_MAC)


@pytest.mark.parametrize(
    ("protocol", "gso_size", "action", "verdict"),
    [
        pytest.param(p.UDP, 0, Action.REDIRECT, Verdict.FAST, id="one datagram"),
        pytest.param(p.UDP, 100, Action.TO_STACK, Verdict.DATAGRAMS, id="datagrams in one"),
    ],
)
def test_datagrams_in_one_packet_are_taken_out_of_the_tunnel_by_the_stack(
    lab: Lab, protocol: int, gso_size: int, action: Action, verdict: Verdict
) -> None:
    flow = Tuple5(protocol=protocol)
    lab.admit(flow)
    outcome = lab.run(Program.FROM_UPLINK, tunnelled(flow), device=lab.uplink, gso_size=gso_size)
    assert (outcome.action, outcome.counted) == (action, (verdict,))
    # Noted, so that it is a witness when it comes out of the stack.
    assert (lab.sighting(flow, INGRESS) is not None) == (verdict is Verdict.DATAGRAMS)
