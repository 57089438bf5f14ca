"""The wire view complains of exactly the field that is wrong; packets are built by other code."""

import struct
from ipaddress import IPv4Address, IPv4Network

import packets
import pytest
from testbed import Backend, WireFormat
from testbed.capture import Frame
from wire_view import Place, WireView

POD1, POD2, POD3 = "10.244.1.2", "10.244.2.2", "10.244.3.2"
ROUTER1, ROUTER2 = "0e:00:00:00:00:f1", "0e:00:00:00:00:f2"


def place(number: int, *, link: int, address: str) -> Place:
    return Place(
        name=f"node{number}",
        link=link,
        address=IPv4Address(address),
        subnet=IPv4Network(f"10.244.{number}.0/24"),
        mac=f"0e:00:00:00:00:{number:02x}",
        overlay_mac=f"0e:00:00:00:01:{number:02x}",
        router_mac=ROUTER1 if link == 1 else ROUTER2,
    )


ONE = place(1, link=1, address="198.18.0.11")
TWO = place(2, link=2, address="198.18.1.12")
THREE = place(3, link=1, address="198.18.0.13")
PLACES = (ONE, TWO, THREE)


def inner(*, dst: str = POD3, ttl: int = 63, fragment: int = packets.DONT_FRAGMENT) -> bytes:
    return packets.ipv4(
        packets.udp(b"data", src=1, dst=2), src=POD1, dst=dst, ttl=ttl, fragment=fragment
    )


def vxlan(
    packet: bytes,
    *,
    vni: int = 1,
    flags: int = 0x08000000,
    sport: int = 40000,
    dst: str = "0e:00:00:00:01:03",
    src: str = "0e:00:00:00:01:01",
) -> bytes:
    frame = packets.ethernet(packet, dst=dst, src=src)
    return packets.udp(packets.vxlan(frame, vni=vni, flags=flags), src=sport, dst=8472)


def udp(packet: bytes, *, sport: int = 8285) -> bytes:
    return packets.udp(packet, src=sport, dst=8285)


def outer(
    payload: bytes,
    *,
    to: Place = THREE,
    ttl: int = 64,
    tos: int = 0,
    fragment: int = 0,
    protocol: int = packets.UDP,
    source: str = "198.18.0.11",
) -> bytes:
    return packets.ipv4(
        payload,
        src=source,
        dst=str(to.address),
        ttl=ttl,
        tos=tos,
        fragment=fragment,
        protocol=protocol,
    )


def udp_outer(payload: bytes) -> bytes:
    return outer(payload, fragment=packets.DONT_FRAGMENT)


def ipip(packet: bytes, *, ttl: int = 63, fragment: int = packets.DONT_FRAGMENT) -> bytes:
    return outer(packet, ttl=ttl, fragment=fragment, protocol=4)


def complaints(
    backend: Backend,
    packet: bytes,
    *,
    mac: str = THREE.mac,
    routed: tuple[tuple[str, str], ...] = (),
) -> list[str]:
    raw = packets.ethernet(packet, dst=mac, src=ONE.mac)
    (found,) = WireFormat().packets([Frame(1.0, outgoing=True, raw=raw)])
    return WireView(PLACES, backend, routed).complaints(found)


VXLAN, UDP, IPIP, HOST_GW = map(Backend, ("vxlan", "udp", "ipip", "host-gw"))
RIGHT = [
    (VXLAN, outer(vxlan(inner()))),
    (UDP, udp_outer(udp(inner(ttl=62)))),
    (IPIP, ipip(inner())),
    (IPIP, ipip(inner(fragment=0), fragment=0)),
    (HOST_GW, inner()),
    (Backend("vxlan", direct_routing=True), inner()),
]


@pytest.mark.parametrize(("backend", "packet"), RIGHT, ids=lambda value: str(value)[:20])
def test_a_right_packet_has_no_complaints(backend: Backend, packet: bytes) -> None:
    assert complaints(backend, packet) == []


WRONG: list[tuple[Backend, bytes, str]] = [
    (VXLAN, outer(vxlan(inner(), vni=2)), "VNI: got 2"),
    (VXLAN, outer(vxlan(inner(), flags=0x88000000)), "VXLAN flags"),
    (VXLAN, outer(vxlan(inner(), sport=8472)), "source port in range"),
    (VXLAN, outer(vxlan(inner(), dst="0e:00:00:00:01:02")), "inner MAC destination"),
    (VXLAN, outer(vxlan(inner(), src="0e:00:00:00:01:02")), "inner MAC source"),
    (VXLAN, outer(vxlan(inner(ttl=64))), "inner TTL: got 64, expected 63"),
    (VXLAN, outer(vxlan(inner()), fragment=packets.DONT_FRAGMENT), "outer DF"),
    (VXLAN, outer(vxlan(inner()), ttl=63), "outer TTL: got 63"),
    (VXLAN, outer(vxlan(inner()), tos=0x08), "outer DSCP: got 8"),
    (VXLAN, outer(vxlan(inner()), source="198.18.0.99"), "outer source"),
    (VXLAN, outer(vxlan(inner()), to=TWO), "outer destination"),
    (VXLAN, inner(), "form: got"),
    (UDP, outer(udp(inner(ttl=62))), "outer DF: got False"),
    (UDP, udp_outer(udp(inner(ttl=63))), "inner TTL: got 63, expected 62"),
    (UDP, udp_outer(udp(inner(ttl=62), sport=40000)), "ports"),
    (IPIP, ipip(inner(), ttl=64), "outer TTL: got 64, expected 63"),
    (IPIP, ipip(inner(), fragment=0), "outer DF: got False"),
    (IPIP, ipip(inner() + b"behind"), "inner size"),
    (HOST_GW, inner(ttl=62), "inner TTL: got 62, expected 63"),
    (HOST_GW, outer(vxlan(inner())), "form: got"),
]


@pytest.mark.parametrize(("backend", "packet", "complaint"), WRONG, ids=[w[2] for w in WRONG])
def test_each_wrong_field_is_named(backend: Backend, packet: bytes, complaint: str) -> None:
    found = complaints(backend, packet)
    assert found
    assert complaint in found[0]


@pytest.mark.parametrize(("backend", "packet"), RIGHT, ids=lambda value: str(value)[:20])
def test_a_frame_for_another_host_is_named(backend: Backend, packet: bytes) -> None:
    (found,) = complaints(backend, packet, mac=TWO.mac)
    assert "frame destination" in found


def test_a_damaged_checksum_is_named() -> None:
    packet = bytearray(outer(vxlan(inner())))
    packet[4] ^= 0xFF  # the identification, which nothing else looks at
    assert ["outer header checksum" in line for line in complaints(VXLAN, bytes(packet))] == [True]


def test_a_udp_length_that_is_not_the_packets_is_named() -> None:
    datagram = vxlan(inner())
    longer = datagram[:4] + struct.pack("!H", len(datagram) + 1) + datagram[6:]
    assert "UDP length" in complaints(VXLAN, outer(longer))[0]


def test_to_another_link_the_frame_is_for_the_router() -> None:
    packet = outer(vxlan(inner(dst=POD2), dst="0e:00:00:00:01:02"), to=TWO)
    assert complaints(VXLAN, packet, mac=ROUTER1) == []
    assert "frame destination" in complaints(VXLAN, packet, mac=TWO.mac)[0]


def test_routed_neighbours_are_tunnelled_and_reached_through_the_router() -> None:
    direct = Backend("vxlan", direct_routing=True)
    packet, routed = outer(vxlan(inner())), (("node1", "node3"),)
    assert complaints(direct, packet, mac=ROUTER1, routed=routed) == []
    assert "form" in complaints(direct, packet)[0]
    assert "form" in complaints(direct, inner(), routed=routed)[0]


def test_a_packet_to_no_node_is_named() -> None:
    assert "not between pods" in complaints(HOST_GW, inner(dst="10.244.9.9"))[0]
