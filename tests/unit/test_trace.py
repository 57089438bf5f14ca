"""What a trace makes of addresses, flows and steps, without a network."""

from ipaddress import IPv4Address

import pytest
from kersey_control.told import ToldPeer
from kersey_control.trace import Kind, Packet, Step, conclude, fits, spot_of
from kersey_loader.layout import Verdict
from operator_values import NETWORK, SUBNET, flow

PEER = ToldPeer("10.244.2.0/24", "198.18.0.12", "vxlan", "programmed")
OWN = frozenset({IPv4Address("198.18.0.11"), IPv4Address("10.244.1.1")})


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("10.244.1.2", Kind.OWN_POD),
        ("10.244.1.1", Kind.NODE),
        ("198.18.0.11", Kind.NODE),
        ("10.244.2.9", Kind.PEER_POD),
        ("198.18.0.12", Kind.PEER_NODE),
        ("10.244.3.1", Kind.UNLEASED),
        ("192.0.2.1", Kind.OUTSIDE),
    ],
)
def test_an_address_is_what_the_leases_make_of_it(address: str, kind: Kind) -> None:
    spot = spot_of(IPv4Address(address), network=NETWORK, subnet=SUBNET, own=OWN, peers=[PEER])
    assert spot.kind is kind
    assert (spot.peer is PEER) is (kind in (Kind.PEER_POD, Kind.PEER_NODE))


POD, REMOTE = IPv4Address("10.244.1.2"), IPv4Address("10.244.2.2")


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (Packet(POD, REMOTE), True),
        (Packet(REMOTE, POD), True),
        (Packet(POD, IPv4Address("10.244.2.3")), False),
        (Packet(POD, REMOTE, port=80), True),
        (Packet(POD, REMOTE, port=40000), False),
        (Packet(REMOTE, POD, port=40000), True),
        (Packet(REMOTE, POD, port=80), False),
        (Packet(POD, REMOTE, protocol=6), True),
        (Packet(POD, REMOTE, protocol=17), False),
    ],
)
def test_a_packet_belongs_to_a_flow_by_addresses_and_destination_port(
    packet: Packet, *, expected: bool
) -> None:
    assert fits(flow(), packet) is expected


POSSIBLE = Step("fast path", "possible")
NEVER = Step("fast path", "never", ok=None)
BROKEN = Step("route", "no route", ok=False)


@pytest.mark.parametrize(
    ("steps", "flows", "says", "ok"),
    [
        ([POSSIBLE], [flow()], "by the fast path", True),
        ([POSSIBLE], [], "by the kernel's own path, and fast once", True),
        ([POSSIBLE], [flow(verdict=Verdict.STALE)], "by the kernel's own path, and fast", True),
        ([NEVER], [], "by the kernel's own path", True),
        ([], [], "by the kernel's own path", True),
        ([BROKEN, POSSIBLE], [flow()], "does not arrive: route: no route", False),
    ],
)
def test_all_steps_come_to_one_verdict(
    steps: list[Step], flows: list[object], says: str, *, ok: bool
) -> None:
    verdict = conclude(steps, flows)  # type: ignore[arg-type]
    assert verdict.says.startswith(says)
    assert verdict.ok is ok
    assert ("once both" in verdict.says) is ("fast once" in says or says.endswith("and fast"))
