"""wire: what becomes of a frame before the kernel makes a packet of it, for every tunnel.

And what from_uplink does with a packet that wire took the headers off.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

import packets as p
import pytest
from bpf_lab import (
    DIRECT,
    DIRECT_NODE,
    GATEWAY_MAC,
    NODE,
    NODE_OTHER_ADDRESS,
    OPENED_MAC,
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
    XdpAction,
)
from kersey_loader.datapath import PeerEntry
from kersey_loader.layout import Admission, Program, SpoofCheck, Verdict, WireDuty
from wires import IPIP_WIRE, UDP_WIRE, VXLAN_WIRE

pytestmark = pytest.mark.parametrize(
    "loaded_lab",
    [pytest.param(wire, id=wire.kind) for wire in (VXLAN_WIRE, UDP_WIRE, IPIP_WIRE)],
    indirect=True,
)

UDP_FLOW = Tuple5()
TCP_FLOW = Tuple5(protocol=p.TCP)
BROADCAST = "ff:ff:ff:ff:ff:ff"
OPENS = WireDuty.ATTACHED | WireDuty.DECAPSULATES
VLAN_TAGS = {
    "802.1Q": (0x8100, b"\0\x05"),
    "802.1ad": (0x88A8, b"\0\x05"),
    "priority": (0x8100, b"\xe0\0"),
}


def datagram(payload: bytes = b"pong", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": REMOTE, "dst": POD, "ttl": 63, **ip}
    return p.ipv4(p.udp(payload, src=80, dst=40000), **fields)  # type: ignore[arg-type]


def segment(flags: int = p.ACK, payload: bytes = b"data") -> bytes:
    body = p.tcp(payload, src=80, dst=40000, flags=flags)
    return p.ipv4(body, src=REMOTE, dst=POD, protocol=p.TCP, ttl=63)


def tagged(frame: bytes, tag: str = "802.1Q") -> bytes:
    kind, control = VLAN_TAGS[tag]
    return frame[:12] + kind.to_bytes(2, "big") + control + frame[12:]


def outer(lab: Lab, inner: bytes, *, mac: str = UPLINK_MAC, **ip: object) -> bytes:
    """Return a frame with a packet in the lab's tunnel, from the peer unless said otherwise."""
    fields: dict[str, object] = {"src": PEER_NODE, "dst": NODE, **ip}
    if lab.wire is VXLAN_WIRE:
        fields = {"dst_vtep": VTEP, **fields}
    return p.ethernet(lab.wire.encapsulate(inner, **fields), dst=mac, src=WIRE_MAC)


def opened(inner: bytes, *, mac: str = UPLINK_MAC) -> bytes:
    return p.ethernet(inner, dst=mac, src=OPENED_MAC)


def admit(lab: Lab, inner: bytes | None = None, **options: float | None) -> None:
    kind = p.kind_of(lab.wire.cross(inner or datagram()))
    for flow in (UDP_FLOW, TCP_FLOW):
        lab.admit(flow, ingress_kind=kind, **options)  # type: ignore[arg-type]


Frame = Callable[[Lab], bytes]


@dataclass(frozen=True)
class Forged:
    id: str
    frame: Frame
    verdict: Verdict


FORGED = [
    Forged("stranger", lambda lab: outer(lab, datagram(), src=STRANGER), Verdict.UNKNOWN_NODE),
    Forged("our-own-address", lambda lab: outer(lab, datagram(), src=NODE), Verdict.UNKNOWN_NODE),
    Forged(
        "stranger-by-broadcast",
        lambda lab: outer(lab, datagram(), src=STRANGER, mac=BROADCAST),
        Verdict.UNKNOWN_NODE,
    ),
    *(
        Forged(
            f"stranger-with-tag-{tag}",
            lambda lab, tag=tag: tagged(outer(lab, datagram(), src=STRANGER), tag),  # type: ignore[misc]
            Verdict.UNKNOWN_NODE,
        )
        for tag in VLAN_TAGS
    ),
    Forged(
        "pod-of-another-node",
        lambda lab: outer(lab, datagram(), src=OTHER_NODE),
        Verdict.FOREIGN_SOURCE,
    ),
    Forged(
        "our-own-pod",
        lambda lab: outer(lab, datagram(src="10.244.1.11")),
        Verdict.FOREIGN_SOURCE,
    ),
    Forged(
        "unleased-subnet",
        lambda lab: outer(lab, datagram(src="10.244.9.9")),
        Verdict.FOREIGN_SOURCE,
    ),
    Forged(
        "another-nodes-address",
        lambda lab: outer(lab, datagram(src=OTHER_NODE)),
        Verdict.OUTSIDE_SOURCE,
    ),
    Forged("the-world", lambda lab: outer(lab, datagram(src="192.0.2.1")), Verdict.OUTSIDE_SOURCE),
]


def _untagged(frame: bytes) -> bytes:
    return frame if frame[12:14] == b"\x08\x00" else frame[:12] + frame[16:]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in FORGED])
@pytest.mark.parametrize("spoof", SpoofCheck)
def test_forged_packet_is_dropped_as_from_uplink_would(
    lab: Lab, row: Forged, spoof: SpoofCheck
) -> None:
    lab.configure(spoof=spoof)
    lab.charge(OPENS)
    admit(lab)
    frame = row.frame(lab)
    # A test run of TC does not take tags off, as the kernel has done before TC.
    behind = lab.run(Program.FROM_UPLINK, _untagged(frame), device=lab.uplink)
    found = lab.run_wire(frame)
    if spoof is SpoofCheck.DROP:
        assert (behind.action, behind.counted) == (Action.DROP, (row.verdict,))
        assert (found.action, found.counted) == (XdpAction.DROP, (row.verdict,))
    else:
        assert (found.action, found.packet, found.counted) == (XdpAction.PASS, frame, ())


def test_whoever_watches_is_told_of_what_is_dropped(lab: Lab) -> None:
    frame = outer(lab, datagram(), src=OTHER_NODE)
    with lab.watched() as (_, watch):
        lab.run_wire(frame)
        lab.run_wire(outer(lab, datagram()))
        (found,) = watch.packets(0)
    assert (found.program, found.verdict) == (Program.WIRE, Verdict.FOREIGN_SOURCE)
    assert (found.dropped, found.length) == (True, len(frame))
    assert (found.outer_source, found.outer_destination) == (
        IPv4Address(OTHER_NODE),
        IPv4Address(NODE),
    )
    assert (found.source, found.destination) == (IPv4Address(REMOTE), IPv4Address(POD))
    assert (found.protocol, found.source_port, found.destination_port) == (p.UDP, 80, 40000)


@pytest.mark.parametrize("spoof", SpoofCheck)
def test_frame_that_claims_to_be_opened_already_is_always_dropped(
    lab: Lab, spoof: SpoofCheck
) -> None:
    lab.configure(spoof=spoof)
    admit(lab)
    for frame in (opened(datagram()), tagged(opened(datagram())), opened(datagram(dst=NODE))):
        found = lab.run_wire(frame)
        assert (found.action, found.counted) == (XdpAction.DROP, (Verdict.HIDDEN_SOURCE,))


def test_a_packet_of_a_stranger_is_dropped_however_short_it_is(lab: Lab) -> None:
    whole = outer(lab, datagram(), src=STRANGER)
    shortest = 34 if lab.wire is IPIP_WIRE else 42
    for length in range(34, len(whole)):
        found = lab.run_wire(whole[:length])
        expected = XdpAction.DROP if length >= shortest else XdpAction.PASS
        assert (found.action, bool(found.counted)) == (expected, length >= shortest), length


UNTOUCHED: dict[str, Frame] = {
    "arp": lambda _lab: p.ethernet(bytes(28), dst=UPLINK_MAC, src=WIRE_MAC, kind=0x806),
    "ipv6": lambda _lab: p.ethernet(bytes(60), dst=UPLINK_MAC, src=WIRE_MAC, kind=0x86DD),
    "14-bytes": lambda _lab: p.ethernet(b"", dst=UPLINK_MAC, src=WIRE_MAC),
    "tag-and-nothing": lambda _lab: tagged(p.ethernet(bytes(18), dst=UPLINK_MAC, src=WIRE_MAC)),
    "tcp-to-the-node": lambda _lab: p.ethernet(segment(), dst=UPLINK_MAC, src=WIRE_MAC),
    "two-tags": lambda lab: tagged(tagged(outer(lab, datagram(), src=STRANGER))),
    "other-address-of-ours": lambda lab: outer(
        lab, datagram(), src=STRANGER, dst=NODE_OTHER_ADDRESS
    ),
    "outer-options": lambda lab: outer(lab, datagram(), src=STRANGER, options=bytes(8)),
    "outer-fragment": lambda lab: outer(lab, datagram(), src=STRANGER, fragment=0x2000),
    "later-fragment": lambda lab: outer(lab, datagram(), src=STRANGER, fragment=0x2001),
    "plain-of-a-tunnelled-peer": lambda _lab: p.ethernet(
        datagram(), dst=UPLINK_MAC, src=WIRE_MAC
    ),
    "stub-of-a-peer": lambda lab: outer(lab, datagram())[: 34 + lab.wire.room - 1],
}  # fmt: skip


@pytest.mark.parametrize("name", UNTOUCHED)
def test_any_other_packet_goes_on_as_it_is(lab: Lab, name: str) -> None:
    lab.charge(OPENS)
    admit(lab)
    frame = UNTOUCHED[name](lab)
    found = lab.run_wire(frame)
    assert (found.action, found.packet, found.counted) == (XdpAction.PASS, frame, ())


def test_vxlan_packet_with_something_unusual_is_left_to_from_uplink(lab: Lab) -> None:
    if lab.wire is not VXLAN_WIRE:
        return
    lab.charge(OPENS)
    admit(lab)
    body = p.ethernet(datagram(), dst=VTEP, src=PEER_VTEP)
    tunnelled: Callable[..., bytes] = lambda frame, **fields: p.ethernet(  # noqa: E731
        p.ipv4(p.udp(p.vxlan(frame, **fields), src=50000, dst=8472), src=PEER_NODE, dst=NODE),
        dst=UPLINK_MAC,
        src=WIRE_MAC,
    )
    other_port = p.udp(p.vxlan(body), src=50000, dst=4789)
    for frame in (
        tunnelled(body, vni=2),
        tunnelled(body, flags=0),
        tunnelled(p.ethernet(datagram(), dst=POD_MAC, src=PEER_VTEP)),
        tunnelled(p.ethernet(bytes(28), dst=VTEP, src=PEER_VTEP, kind=0x806)),
        p.ethernet(p.ipv4(other_port, src=STRANGER, dst=NODE), dst=UPLINK_MAC, src=WIRE_MAC),
    ):
        found = lab.run_wire(frame)
        assert (found.action, found.packet, found.counted) == (XdpAction.PASS, frame, ())
    hidden = tunnelled(p.ethernet(b"\0\0\x08\0" + datagram(), dst=VTEP, src=PEER_VTEP, kind=0x8100))
    assert lab.run_wire(hidden).counted == (Verdict.HIDDEN_SOURCE,)


@pytest.mark.parametrize(
    ("inner", "tos"),
    [
        pytest.param(datagram(), 0, id="udp"),
        pytest.param(segment(), 0, id="tcp"),
        pytest.param(datagram(b""), 0, id="empty-datagram"),
        pytest.param(datagram(bytes(1422)), 0, id="exactly-the-mtu"),
        pytest.param(datagram(tos=0xB8), 0, id="dscp"),
        pytest.param(datagram(tos=2), 2, id="ect0-both"),
        pytest.param(datagram(tos=3), 2, id="ce-inside"),
    ],
)
def test_packet_of_a_fast_flow_is_opened_and_reaches_the_pod(
    lab: Lab, inner: bytes, tos: int
) -> None:
    lab.charge(OPENS)
    admit(lab, inner)
    before = lab.datapath.traffic()[PEER].fast_received
    at_once = lab.run(Program.FROM_UPLINK, outer(lab, inner, tos=tos), device=lab.uplink)
    found = lab.run_wire(outer(lab, inner, tos=tos))
    assert (found.action, found.counted) == (XdpAction.PASS, (Verdict.DECAPSULATED,))
    assert found.packet == opened(inner)
    delivered = lab.run(Program.FROM_UPLINK, found.packet, device=lab.uplink)
    assert (delivered.action, delivered.counted) == (Action.REDIRECT, (Verdict.FAST,))
    assert delivered.packet == p.ethernet(lab.wire.leave(inner), dst=POD_MAC, src=GATEWAY_MAC)
    assert delivered.packet == at_once.packet
    after = lab.datapath.traffic()[PEER].fast_received
    assert (after.packets - before.packets, after.bytes - before.bytes) == (2, 2 * len(inner))


def _without_port(lab: Lab) -> None:
    admit(lab)
    lab.datapath.maps["pod_ports"].delete(lab.port.to_bytes(4, "little"))


def _admission_off(lab: Lab) -> None:
    lab.configure(admission=Admission.OFF)
    lab.charge(OPENS)
    admit(lab)


def _flushed(lab: Lab) -> None:
    admit(lab)
    lab.datapath.flush()
    lab.charge(OPENS)


def _only_attached(lab: Lab) -> None:
    admit(lab)
    lab.charge(WireDuty.ATTACHED)


def _peer_is_direct(lab: Lab) -> None:
    lab.datapath.put_peer(PeerEntry(PEER, IPv4Address(PEER_NODE), direct=True))
    lab.charge(OPENS)
    admit(lab)


CLOSED: dict[str, tuple[Callable[[Lab], object], Frame]] = {
    "unknown-flow": (lambda _lab: None, lambda lab: outer(lab, datagram())),
    "too-old": (lambda lab: admit(lab, ingress_age=5.5), lambda lab: outer(lab, datagram())),
    "one-way": (lambda lab: admit(lab, egress_age=None), lambda lab: outer(lab, datagram())),
    "flushed": (_flushed, lambda lab: outer(lab, datagram())),
    "port-gone": (_without_port, lambda lab: outer(lab, datagram())),
    "admission-off": (_admission_off, lambda lab: outer(lab, datagram())),
    "not-asked-to": (_only_attached, lambda lab: outer(lab, datagram())),
    "direct-peer": (_peer_is_direct, lambda lab: outer(lab, datagram())),
    "other-dscp": (admit, lambda lab: outer(lab, datagram(tos=0xB8))),
    "vlan-tag": (admit, lambda lab: tagged(outer(lab, datagram()))),
    "broadcast": (admit, lambda lab: outer(lab, datagram(), mac=BROADCAST)),
    "for-another-mac": (admit, lambda lab: outer(lab, datagram(), mac=WIRE_MAC)),
    "multicast": (admit, lambda lab: outer(lab, datagram(), mac="01:00:5e:00:00:01")),
    "syn": (admit, lambda lab: outer(lab, segment(p.SYN))),
    "fin": (admit, lambda lab: outer(lab, segment(p.FIN | p.ACK))),
    "rst": (admit, lambda lab: outer(lab, segment(p.RST))),
    "icmp": (admit, lambda lab: outer(lab, datagram(protocol=1))),
    "inner-options": (admit, lambda lab: outer(lab, datagram(options=bytes(4)))),
    "inner-fragment": (admit, lambda lab: outer(lab, datagram(fragment=0x2000))),
    "not-a-pod-of-ours": (admit, lambda lab: outer(lab, datagram(dst="192.0.2.1"))),
    "node-for-itself": (admit, lambda lab: outer(lab, datagram(src=PEER_NODE))),
    "outer-ce": (admit, lambda lab: outer(lab, datagram(), tos=3)),
    "too-big": (admit, lambda lab: outer(lab, datagram(bytes(1423)))),
    "inner-length-long": (admit, lambda lab: outer(lab, datagram(length=90))),
    "outer-length-short": (admit, lambda lab: outer(lab, datagram(), length=50)),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_packet_that_is_not_fast_stays_in_its_headers(lab: Lab, name: str) -> None:
    lab.charge(OPENS)
    prepare, frame_of = CLOSED[name]
    prepare(lab)
    frame = frame_of(lab)
    found = lab.run_wire(frame)
    assert (found.action, found.packet, found.counted) == (XdpAction.PASS, frame, ())


@pytest.mark.parametrize("ttl", [1, 2, 3])
def test_packet_that_expires_on_the_way_stays_in_its_headers(lab: Lab, ttl: int) -> None:
    lab.charge(OPENS)
    inner = datagram(ttl=ttl)
    for flow in (UDP_FLOW, TCP_FLOW):
        lab.admit(flow, ingress_kind=ttl - lab.wire.hops + 1 if ttl >= lab.wire.hops else 0)
    found = lab.run_wire(outer(lab, inner))
    assert bool(found.counted) == (ttl > lab.wire.hops)


def test_udp_length_that_disagrees_keeps_a_packet_in_its_headers(lab: Lab) -> None:
    if lab.wire is IPIP_WIRE:
        return
    lab.charge(OPENS)
    admit(lab)
    frame = bytearray(outer(lab, datagram()))
    frame[38:40] = (int.from_bytes(frame[38:40]) - 1).to_bytes(2)
    assert lab.run_wire(bytes(frame)).packet == frame


NOT_FAST_ANY_MORE: dict[str, tuple[Callable[[Lab], object], Verdict]] = {
    "unknown-flow": (lambda _lab: None, Verdict.NOT_ADMITTED),
    "too-old": (lambda lab: admit(lab, ingress_age=5.5), Verdict.STALE),
    "flushed": (_flushed, Verdict.FLUSHED),
    "port-gone": (_without_port, Verdict.PORT_GONE),
    "peer-gone": (lambda lab: lab.datapath.remove_peer(PEER), Verdict.UNRELATED),
}


@pytest.mark.parametrize("name", NOT_FAST_ANY_MORE)
def test_opened_packet_that_is_not_fast_any_more_enters_by_the_overlay_device(
    lab: Lab, name: str
) -> None:
    prepare, verdict = NOT_FAST_ANY_MORE[name]
    prepare(lab)
    lab.charge(WireDuty.ATTACHED)
    inner = datagram()
    found = lab.run(Program.FROM_UPLINK, opened(inner), device=lab.uplink)
    assert (found.action, found.counted) == (Action.REDIRECT, (verdict,))
    assert found.packet[12:] == p.ethernet(lab.wire.cross(inner), dst=VTEP, src=OPENED_MAC)[12:]
    if lab.wire is VXLAN_WIRE:
        assert found.packet[:6] == p.mac(VTEP)
    known = lab.sighting(UDP_FLOW, 1)
    assert (known is None) == (verdict is Verdict.UNRELATED)


def test_opened_packets_inside_is_never_a_tunnel_packet_again(lab: Lab) -> None:
    lab.charge(OPENS)
    nested = lab.wire.encapsulate(datagram(), src=REMOTE, dst=POD, ttl=63)
    admit(lab, nested)
    found = lab.run(Program.FROM_UPLINK, opened(nested), device=lab.uplink)
    assert found.counted in ((Verdict.NOT_ADMITTED,), (Verdict.PROTOCOL,))


def test_the_mark_is_believed_on_the_uplink_alone_and_only_while_wire_is_there(lab: Lab) -> None:
    admit(lab)
    plain = opened(datagram())
    assert lab.run(Program.FROM_UPLINK, plain, device=lab.uplink).counted == (
        Verdict.NOT_TUNNELLED,
    )
    lab.charge(OPENS)
    assert lab.run(Program.FROM_UPLINK, plain, device=lab.uplink).counted == (Verdict.FAST,)
    elsewhere = opened(datagram(), mac=GATEWAY_MAC)
    assert lab.run(Program.FROM_UPLINK, elsewhere, device=lab.port).counted == (
        Verdict.NOT_TUNNELLED,
    )


def test_merged_packets_are_counted_as_they_were_on_the_wire(lab: Lab) -> None:
    lab.charge(OPENS)
    merged = segment(payload=bytes(2800))
    admit(lab, merged)
    before = lab.datapath.traffic()[PEER].fast_received
    found = lab.run(Program.FROM_UPLINK, opened(merged), device=lab.uplink, gso_size=1400)
    assert found.counted == (Verdict.FAST,)
    after = lab.datapath.traffic()[PEER].fast_received
    assert (after.packets - before.packets, after.bytes - before.bytes) == (3, len(merged))


DIRECT_FLOW = Tuple5(remote="10.244.4.10")


def from_direct(**ip: object) -> bytes:
    return p.ethernet(
        datagram(b"pong, and long enough", src="10.244.4.10", **ip), dst=UPLINK_MAC, src=WIRE_MAC
    )


def _redirecting(lab: Lab) -> None:
    lab.charge(WireDuty.ATTACHED | WireDuty.REDIRECTS)
    lab.admit(DIRECT_FLOW)
    lab.take_frames(lab.port)


def test_direct_peers_packet_goes_straight_to_a_pod_that_takes_frames(lab: Lab) -> None:
    _redirecting(lab)
    before = lab.datapath.traffic()[DIRECT].fast_received
    frame = from_direct()
    found = lab.run_wire(frame)
    assert (found.action, found.counted) == (XdpAction.REDIRECT, (Verdict.FAST,))
    assert found.packet == p.ethernet(p.hop(frame[14:]), dst=POD_MAC, src=GATEWAY_MAC)
    after = lab.datapath.traffic()[DIRECT].fast_received
    assert (after.packets - before.packets, after.bytes - before.bytes) == (1, len(frame) - 14)


def test_padding_of_a_direct_peers_frame_does_not_matter_but_more_does(lab: Lab) -> None:
    _redirecting(lab)
    short = p.ethernet(datagram(b"", src="10.244.4.10"), dst=UPLINK_MAC, src=WIRE_MAC)
    assert lab.run_wire(short + bytes(64 - len(short))).counted == (Verdict.FAST,)
    assert lab.run_wire(short + bytes(65 - len(short))).counted == ()
    assert lab.run_wire(from_direct(length=80)).counted == ()


def _peer_has_a_tunnel(lab: Lab) -> None:
    peer = PeerEntry(DIRECT, IPv4Address(DIRECT_NODE), p.mac(PEER_VTEP))
    lab.datapath.put_peer(peer)  # which voids flows
    _redirecting(lab)


LEFT_TO_TC: dict[str, tuple[Callable[[Lab], object], Callable[[], bytes]]] = {
    "no-frames-taken": (
        lambda lab: lab.datapath.maps["redirect_ports"].delete(lab.port.to_bytes(4, "little")),
        from_direct,
    ),
    "not-asked-to": (lambda lab: lab.charge(OPENS), from_direct),
    "unknown-flow": (lambda lab: lab.datapath.maps["flows"].delete(DIRECT_FLOW.key()), from_direct),
    "ttl-1": (lambda _lab: None, lambda: from_direct(ttl=1)),
    "vlan-tag": (lambda _lab: None, lambda: tagged(from_direct())),
    "broadcast": (lambda _lab: None, lambda: p.mac(BROADCAST) + from_direct()[6:]),
    "for-another-mac": (lambda _lab: None, lambda: p.mac(WIRE_MAC) + from_direct()[6:]),
    "not-to-a-pod": (lambda _lab: None, lambda: from_direct(dst="192.0.2.1")),
    "peer-with-a-tunnel": (_peer_has_a_tunnel, from_direct),
}


@pytest.mark.parametrize("name", LEFT_TO_TC)
def test_any_other_packet_of_a_direct_peer_is_left_to_from_uplink(lab: Lab, name: str) -> None:
    _redirecting(lab)
    prepare, frame_of = LEFT_TO_TC[name]
    prepare(lab)
    frame = frame_of()
    found = lab.run_wire(frame)
    assert (found.action, found.packet, found.counted) == (XdpAction.PASS, frame, ())
