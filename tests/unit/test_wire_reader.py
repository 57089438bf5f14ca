"""What the testbed's wire reader sees in a frame; the frames are built by other code."""

import re
import struct
from ipaddress import IPv4Address

import packets
import pytest
from testbed.backend import Backend
from testbed.capture import Frame
from testbed.wire import Ethernet, Form, Udp, Vxlan, WireError, WireFormat, WirePacket

NODE1, NODE2 = "198.18.0.11", "198.18.0.12"
POD1, POD2 = "10.244.1.2", "10.244.2.2"
MAC1, MAC2 = "0e:00:00:00:00:01", "0e:00:00:00:00:02"
VTEP1, VTEP2 = "0e:00:00:00:01:01", "0e:00:00:00:01:02"

INNER = packets.ipv4(packets.udp(b"x" * 10, src=1, dst=2), src=POD1, dst=POD2, ttl=63, tos=0x08)


def frame(packet: bytes) -> Frame:
    return Frame(1.0, outgoing=True, raw=packets.ethernet(packet, dst=MAC2, src=MAC1))


def outer(payload: bytes, *, protocol: int = packets.UDP, fragment: int = 0) -> bytes:
    return packets.ipv4(payload, src=NODE1, dst=NODE2, protocol=protocol, fragment=fragment)


def in_vxlan(inner: bytes = INNER, *, kind: int = 0x0800, vni: int = 1) -> bytes:
    ethernet = packets.ethernet(inner, dst=VTEP2, src=VTEP1, kind=kind)
    return packets.udp(packets.vxlan(ethernet, vni=vni), src=40000, dst=8472)


def read(packet: bytes) -> WirePacket:
    (found,) = WireFormat().packets([frame(packet)])
    return found


def test_vxlan_is_read_field_by_field() -> None:
    packet = read(outer(in_vxlan(vni=0x010203)))
    assert packet.form is Form.VXLAN
    assert packet.frame == Ethernet(MAC2, MAC1, 0x0800)
    assert packet.udp == Udp(40000, 8472, 8 + 8 + 14 + len(INNER), 0)
    assert packet.vxlan == Vxlan(0x08000000, 0x010203, 0, Ethernet(VTEP2, VTEP1, 0x0800))
    assert (str(packet.outer.source), str(packet.outer.destination)) == (NODE1, NODE2)
    assert (packet.outer.ttl, packet.outer.dont_fragment, packet.outer.intact) == (64, False, True)


def test_the_inner_header_is_read_field_by_field() -> None:
    inner = read(outer(in_vxlan())).inner
    assert (inner.source, inner.destination) == (IPv4Address(POD1), IPv4Address(POD2))
    assert (inner.protocol, inner.ttl, inner.tos) == (packets.UDP, 63, 0x08)
    assert (inner.total_length, inner.present, inner.identification) == (38, 38, 0x1234)
    assert inner.payload == packets.udp(b"x" * 10, src=1, dst=2)
    assert inner.intact
    assert not inner.is_fragment


def test_udp_holds_the_inner_packet_without_a_header_between() -> None:
    packet = read(outer(packets.udp(INNER, src=8285, dst=8285), fragment=packets.DONT_FRAGMENT))
    assert packet.form is Form.UDP
    assert packet.udp == Udp(8285, 8285, 8 + len(INNER), 0)
    assert packet.vxlan is None
    assert packet.outer.dont_fragment
    assert packet.inner == read(outer(in_vxlan())).inner


def test_a_super_packet_of_udp_is_read_as_the_datagrams_that_it_becomes() -> None:
    last = packets.ipv4(b"end", src=POD1, dst=POD2, ttl=62)
    joined = packets.udp(INNER + INNER + last, src=8285, dst=8285)
    found = WireFormat().packets([frame(outer(joined, fragment=packets.DONT_FRAGMENT))])
    alone = read(outer(packets.udp(INNER, src=8285, dst=8285), fragment=packets.DONT_FRAGMENT))
    assert [packet.inner for packet in found[:2]] == [alone.inner] * 2
    assert [packet.udp for packet in found[:2]] == [alone.udp] * 2
    assert [packet.outer.total_length for packet in found] == [66, 66, 20 + 8 + len(last)]
    assert found[2].inner.payload == b"end"


def test_a_datagram_with_something_behind_its_packet_is_an_error() -> None:
    with pytest.raises(WireError, match="IPv4 header"):
        WireFormat().packets([frame(outer(packets.udp(INNER + b"more", src=8285, dst=8285)))])


def test_ipip_holds_the_inner_packet_at_once() -> None:
    packet = read(outer(INNER, protocol=4))
    assert packet.form is Form.IPIP
    assert (packet.udp, packet.vxlan) == (None, None)
    assert packet.inner == read(outer(in_vxlan())).inner


def test_a_plain_pod_packet_is_its_own_outer_packet() -> None:
    packet = read(INNER)
    assert packet.form is Form.PLAIN
    assert packet.outer is packet.inner


def test_padding_behind_a_short_packet_is_present_and_no_payload() -> None:
    inner = read(INNER + bytes(22)).inner
    assert (inner.total_length, inner.present, len(inner.payload)) == (38, 60, 18)


def test_a_pod_that_speaks_the_tunnels_protocol_sends_a_plain_packet() -> None:
    spoken = packets.ipv4(in_vxlan(), src=POD1, dst=NODE2)
    assert read(spoken).form is Form.PLAIN


@pytest.mark.parametrize(
    "packet",
    [
        outer(packets.udp(b"x", src=8472, dst=2379)),
        outer(packets.tcp(b"", src=1, dst=8472), protocol=packets.TCP),
        outer(b"y" * 8, fragment=1),
    ],
    ids=["another port", "TCP", "later fragment"],
)
def test_what_is_in_none_of_the_forms_is_no_pod_packet(packet: bytes) -> None:
    assert WireFormat().packets([frame(packet)]) == []


def test_another_ethertype_is_no_pod_packet() -> None:
    arp = packets.ethernet(INNER, dst=MAC2, src=MAC1, kind=0x0806)
    found = WireFormat().packets([Frame(1.0, outgoing=True, raw=arp), frame(INNER)])
    assert found == [read(INNER)]


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (outer(in_vxlan(kind=0x0806)), "inner EtherType: got 0x0806"),
        (outer(in_vxlan(b"\x45")), "IPv4 header: got 1 bytes"),
        (outer(packets.udp(INNER[:30], src=8285, dst=8285)), "expected v4"),
        (outer(packets.udp(b"\x60" + INNER[1:], src=8285, dst=8285)), "expected v4"),
        (outer(packets.udp(b"", src=8285, dst=8472)), "VXLAN header: got 0 bytes"),
        (outer(INNER, protocol=4, fragment=packets.MORE_FRAGMENTS), "got a fragment"),
    ],
    ids=["not IPv4", "stub", "cut short", "version 6", "no header", "fragment"],
)
def test_a_damaged_tunnel_packet_is_an_error_with_its_reason(packet: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        WireFormat().packets([frame(packet)])


def test_a_wrong_header_checksum_is_seen() -> None:
    damaged = bytearray(INNER)
    damaged[8] -= 1
    assert not read(bytes(damaged)).inner.intact


def test_fragment_fields_are_in_bytes() -> None:
    packet = packets.ipv4(b"z" * 16, src=POD1, dst=POD2, fragment=packets.MORE_FRAGMENTS | 3)
    inner = read(packet).inner
    assert (inner.offset, inner.more_fragments, inner.is_fragment) == (24, True, True)


def test_other_ports_are_told_to_the_reader() -> None:
    moved = WireFormat(vxlan_port=4789)
    datagram = struct.pack("!HH", 1, 4789) + in_vxlan()[4:]
    (packet,) = moved.packets([frame(outer(datagram))])
    assert packet.form is Form.VXLAN
    assert moved.packets([frame(outer(in_vxlan()))]) == []


@pytest.mark.parametrize(
    ("backend", "direct_routing", "links", "reason"),
    [
        ("vxlan", True, 2, None),
        ("ipip", True, 1, None),
        ("udp", False, 3, None),
        ("host-gw", False, 1, None),
        ("udp", True, 1, "--direct-routing: got backend udp .*, expected vxlan or ipip"),
        ("host-gw", True, 1, "it is direct already"),
        ("host-gw", False, 2, "--links: got 2, expected 1 with backend host-gw"),
    ],
)
def test_options_that_contradict_each_other_are_refused_in_words(
    backend: str, reason: str | None, links: int, *, direct_routing: bool
) -> None:
    said = Backend(backend, direct_routing).objection(links=links)
    assert said == reason or (reason and said and re.search(reason, said))


def test_direct_routing_is_for_nodes_of_one_link_only() -> None:
    backend = Backend("ipip", direct_routing=True)
    assert backend.form(same_link=True) is Form.PLAIN
    assert backend.form(same_link=False) is Form.IPIP
    assert Backend("ipip").form(same_link=True) is Form.IPIP
    assert backend.network_config["Backend"] == {"Type": "ipip", "DirectRouting": True}
