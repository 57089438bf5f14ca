"""What opens or ends a connection of a direct flow, at both hooks where a packet enters."""

from collections.abc import Callable

import packets as p
import pytest
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
from kersey_loader.layout import Admission, Flow, Program, Verdict

Run = Callable[[Lab, int], tuple[Action, tuple[Verdict, ...]]]
FLOW = Tuple5(protocol=p.TCP)
URG = 0x20
VALID = [
    *(p.SYN | p.ACK, p.RST, p.RST | p.ACK, p.RST | p.ACK | p.PSH),
    *(p.FIN | p.ACK, p.FIN | p.ACK | URG),
]
INVALID = [
    *(p.FIN, p.FIN | p.PSH | URG, p.SYN | p.FIN, p.SYN | p.RST, p.FIN | p.RST | p.ACK),
    *(p.SYN | p.ACK | URG, p.RST | URG),
]


def admit(lab: Lab) -> None:
    """Write the entry of a flow that was admitted at its SYN."""
    lab.configure(admission=Admission.DIRECT)
    lab.admit(FLOW)
    entry = lab.flow(FLOW)
    assert entry is not None
    entry.direct = 1
    lab.datapath.maps["flows"].update(FLOW.key(), bytes(entry))


def sent(lab: Lab, flags: int) -> tuple[Action, tuple[Verdict, ...]]:
    segment = p.tcp(b"", src=FLOW.local_port, dst=FLOW.remote_port, flags=flags)
    packet = p.ipv4(segment, src=POD, dst=REMOTE, protocol=p.TCP)
    frame = p.ethernet(packet, dst=GATEWAY_MAC, src=POD_MAC)
    outcome = lab.run(Program.FROM_POD, frame, device=lab.port)
    return outcome.action, outcome.counted


def received(lab: Lab, flags: int) -> tuple[Action, tuple[Verdict, ...]]:
    segment = p.tcp(b"", src=FLOW.remote_port, dst=FLOW.local_port, flags=flags)
    inner = p.ethernet(
        p.ipv4(segment, src=REMOTE, dst=POD, protocol=p.TCP), dst=VTEP, src=PEER_VTEP
    )
    outer = p.ipv4(p.udp(p.vxlan(inner), src=40000, dst=8472), src=PEER_NODE, dst=NODE)
    frame = p.ethernet(outer, dst=UPLINK_MAC, src=WIRE_MAC)
    outcome = lab.run(Program.FROM_UPLINK, frame, device=lab.uplink)
    return outcome.action, outcome.counted


def entry_of(lab: Lab) -> Flow:
    entry = lab.flow(FLOW)
    assert entry is not None
    return entry


@pytest.mark.parametrize("flags", VALID)
@pytest.mark.parametrize("run", [sent, received])
def test_the_end_of_a_direct_connection_is_fast_after_a_flush(
    lab: Lab, run: Run, flags: int
) -> None:
    admit(lab)
    lab.datapath.flush()
    assert run(lab, flags) == (Action.REDIRECT, (Verdict.FAST,))
    assert run(lab, p.ACK) == (Action.TO_STACK, (Verdict.FLUSHED,))


@pytest.mark.parametrize("flags", INVALID)
@pytest.mark.parametrize("run", [sent, received])
def test_flags_that_conntrack_refuses_go_to_the_stack_and_end_nothing(
    lab: Lab, run: Run, flags: int
) -> None:
    admit(lab)
    assert run(lab, flags) == (Action.TO_STACK, (Verdict.MALFORMED,))
    assert entry_of(lab).direct == 1
    assert run(lab, p.ACK) == (Action.REDIRECT, (Verdict.FAST,))


@pytest.mark.parametrize("run", [sent, received])
def test_a_flow_with_different_ports_is_not_fast_for_its_end_either(lab: Lab, run: Run) -> None:
    admit(lab)
    entry = entry_of(lab)
    entry.ingress_port = lab.other_port
    lab.datapath.maps["flows"].update(FLOW.key(), bytes(entry))
    assert run(lab, p.FIN | p.ACK) == (Action.TO_STACK, (Verdict.OTHER_PORT,))


@pytest.mark.parametrize("run", [sent, received])
def test_a_flow_that_was_only_witnessed_ends_in_the_stack(lab: Lab, run: Run) -> None:
    lab.configure(admission=Admission.DIRECT)
    lab.admit(FLOW)
    assert run(lab, p.FIN | p.ACK) == (Action.TO_STACK, (Verdict.CONTROL,))
    assert entry_of(lab).egress == 0
