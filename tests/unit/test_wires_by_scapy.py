"""The packets that all program tests compare with, byte for byte, are scapy's packets too."""

import packets as p
import pytest
from bpf_lab import NODE, PEER_NODE, POD, REMOTE
from kersey_loader.tunnel import VxlanTunnel
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from wires import IPIP_WIRE, NOWHERE, UDP_WIRE, VNI, VXLAN_PORT, VXLAN_WIRE, Wire

assert isinstance(VXLAN_WIRE.tunnel, VxlanTunnel)
VTEP = VXLAN_WIRE.tunnel.mac.hex(":")


def inner() -> tuple[bytes, Packet]:
    ours = p.ipv4(
        p.tcp(b"data", src=40000, dst=80, flags=p.ACK), src=POD, dst=REMOTE, protocol=p.TCP
    )
    return ours, IP(ours)


def in_vxlan(packet: Packet, outer: Packet) -> Packet:
    frame = Ether(dst=NOWHERE, src=VTEP, type=0x0800) / packet
    return outer / UDP(sport=50000, dport=VXLAN_PORT, chksum=0) / VXLAN(flags=8, vni=VNI) / frame


def in_udp(packet: Packet, outer: Packet) -> Packet:
    return outer / UDP(sport=8285, dport=8285, chksum=0) / Raw(bytes(packet))


def in_ipip(packet: Packet, outer: Packet) -> Packet:
    outer.ttl, outer.flags = packet.ttl, packet.flags
    return outer / packet


@pytest.mark.parametrize(
    ("wire", "by_scapy"),
    [(VXLAN_WIRE, in_vxlan), (UDP_WIRE, in_udp), (IPIP_WIRE, in_ipip)],
    ids=["vxlan", "udp", "ipip"],
)
def test_the_outer_headers_are_scapys(wire: Wire, by_scapy: object) -> None:
    ours, packet = inner()
    built = IP(wire.encapsulate(ours, src=NODE, dst=PEER_NODE))
    outer = IP(src=NODE, dst=PEER_NODE, id=built.id, ttl=64, flags=built.flags, tos=0)
    assert callable(by_scapy)
    assert bytes(built) == bytes(by_scapy(packet, outer))


def test_the_inner_packet_is_scapys() -> None:
    ours, packet = inner()
    del packet.chksum, packet.len, packet[TCP].dataofs
    assert bytes(packet) == ours
