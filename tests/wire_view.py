"""What every pod packet on the wire must look like, by backend: field by field, packet by packet.

The formats are written down here a second time, from flannel's and the RFCs' descriptions, and
share no code with what sends them. A packet that is right has no complaints.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from overlay_view import ip_json
from testbed import Backend, Cluster, Form, Node, Pod, WireFormat, WirePacket
from testbed.capture import Frame

SENT_TTL = 64
"""What a pod's own stack puts into its packets."""

HOPS_ON_THE_WIRE = {Form.VXLAN: 1, Form.UDP: 2, Form.IPIP: 1, Form.PLAIN: 1}
"""By how much a packet's TTL is lower on the underlay: flannel's udp proxy takes one more."""

HOPS_DELIVERED = {Form.VXLAN: 2, Form.UDP: 4, Form.IPIP: 2, Form.PLAIN: 2}

_ETHERTYPE_IPV4 = 0x0800
_IPV4, _UDP, _VXLAN, _ETHERNET = 20, 8, 8, 14
_PROTOCOL_IPIP, _PROTOCOL_UDP = 4, 17
_VXLAN_PORT, _UDP_PORT = 8472, 8285
_VXLAN_FLAGS = 0x08000000
_SOURCE_PORTS = range(32768, 61000)  # net.ipv4.ip_local_port_range of a new namespace
_ECN = 0x03


class Fact(NamedTuple):
    """One field: what was seen, and what the format says."""

    field: str
    got: object
    expected: object


@dataclass(frozen=True, slots=True)
class Place:
    """A node as its packets name it. `overlay_mac` is None without a VXLAN device.

    `router_mac` is that of the router on its link.
    """

    name: str
    link: int
    address: IPv4Address
    subnet: IPv4Network
    mac: str
    overlay_mac: str | None
    router_mac: str


@dataclass(frozen=True, slots=True)
class WireView:
    """The right form of every packet between the nodes of one network, as they stand now.

    `routed` are the pairs of sending and receiving node, by name, whose packets go through the
    router although they share a link.
    """

    places: Sequence[Place]
    backend: Backend
    routed: Collection[tuple[str, str]] = ()

    def complaints(self, packet: WirePacket) -> list[str]:
        """Return what is wrong with a pod's packet as it leaves a node, nothing if it is right."""
        source, destination = self._of(packet, "source"), self._of(packet, "destination")
        if source is None or destination is None:
            return [f"{_name(packet)}: not between pods of two nodes"]
        facts = self._facts(packet, source, destination)
        return [
            f"{_name(packet)} {field}: got {got!r}, expected {expected!r}"
            for field, got, expected in facts
            if got != expected
        ]

    def _of(self, packet: WirePacket, end: str) -> Place | None:
        address = getattr(packet.inner, end)
        return next((place for place in self.places if address in place.subnet), None)

    def _facts(self, packet: WirePacket, source: Place, destination: Place) -> Iterator[Fact]:
        form = self.backend.form(same_link=self._is_direct(source, destination))
        yield Fact("form", packet.form, form)
        if packet.form is not form:
            return
        yield from _frame_facts(packet, source, self._next_mac(source, destination))
        yield Fact("inner TTL", packet.inner.ttl, SENT_TTL - HOPS_ON_THE_WIRE[form])
        yield Fact("inner size", packet.inner.present, packet.inner.total_length)
        if form is not Form.PLAIN:
            yield Fact("outer source", packet.outer.source, source.address)
            yield Fact("outer destination", packet.outer.destination, destination.address)
            yield Fact("outer DSCP", packet.outer.tos & ~_ECN, 0)
        if form is Form.VXLAN:
            yield from _vxlan_facts(packet, source, destination)
        elif form is Form.UDP:
            yield from _udp_facts(packet)
        elif form is Form.IPIP:
            yield from _ipip_facts(packet)

    def _next_mac(self, source: Place, destination: Place) -> str:
        return destination.mac if self._is_direct(source, destination) else source.router_mac

    def _is_direct(self, source: Place, destination: Place) -> bool:
        is_routed = (source.name, destination.name) in self.routed
        return source.link == destination.link and not is_routed


def _name(packet: WirePacket) -> str:
    return f"{packet.form} {packet.inner.source} > {packet.inner.destination}"


def _frame_facts(packet: WirePacket, source: Place, next_mac: str) -> Iterator[Fact]:
    yield Fact("frame destination", packet.frame.destination, next_mac)
    yield Fact("frame source", packet.frame.source, source.mac)
    yield Fact("outer header checksum right", packet.outer.intact, True)
    yield Fact("inner header checksum right", packet.inner.intact, True)


def _vxlan_facts(packet: WirePacket, source: Place, destination: Place) -> Iterator[Fact]:
    assert packet.udp is not None
    assert packet.vxlan is not None
    yield from _datagram_facts(packet, headers=_VXLAN + _ETHERNET)
    yield Fact("source port in range", packet.udp.source in _SOURCE_PORTS, True)
    yield Fact("destination port", packet.udp.destination, _VXLAN_PORT)
    yield Fact("outer DF", packet.outer.dont_fragment, False)
    yield Fact("VXLAN flags", packet.vxlan.flags, _VXLAN_FLAGS)
    yield Fact("VNI", packet.vxlan.vni, 1)
    yield Fact("VXLAN reserved", packet.vxlan.reserved, 0)
    yield Fact("inner MAC destination", packet.vxlan.frame.destination, destination.overlay_mac)
    yield Fact("inner MAC source", packet.vxlan.frame.source, source.overlay_mac)
    yield Fact("inner EtherType", packet.vxlan.frame.kind, _ETHERTYPE_IPV4)


def _udp_facts(packet: WirePacket) -> Iterator[Fact]:
    assert packet.udp is not None
    yield from _datagram_facts(packet, headers=0)
    yield Fact("ports", (packet.udp.source, packet.udp.destination), (_UDP_PORT, _UDP_PORT))
    yield Fact("outer DF", packet.outer.dont_fragment, True)


def _datagram_facts(packet: WirePacket, *, headers: int) -> Iterator[Fact]:
    assert packet.udp is not None
    inner = packet.inner.total_length
    yield Fact("outer protocol", packet.outer.protocol, _PROTOCOL_UDP)
    yield Fact("outer TTL", packet.outer.ttl, SENT_TTL)
    yield Fact("UDP length", packet.udp.length, _UDP + headers + inner)
    yield Fact("outer size", packet.outer.total_length, _IPV4 + _UDP + headers + inner)


def _ipip_facts(packet: WirePacket) -> Iterator[Fact]:
    yield Fact("outer protocol", packet.outer.protocol, _PROTOCOL_IPIP)
    yield Fact("outer TTL", packet.outer.ttl, packet.inner.ttl)
    yield Fact("outer DF", packet.outer.dont_fragment, packet.inner.dont_fragment)
    yield Fact("outer size", packet.outer.total_length, _IPV4 + packet.inner.total_length)


def delivered_ttls(pod: Pod, frames: list[Frame]) -> set[int]:
    """Return the TTLs with which packets of pods of other nodes arrived, as its `eth0` saw them."""
    own = pod.node.pod_subnet().gateway.network
    network = WireFormat().network
    return {
        packet.inner.ttl
        for packet in WireFormat().packets(frames)
        if not packet.outgoing and packet.inner.source in network and packet.inner.source not in own
    }


def wire_view(
    cluster: Cluster, backend: Backend, *, routed: Collection[tuple[str, str]] = ()
) -> WireView:
    """Return the view of a running cluster; MACs are as they are now."""
    return WireView([_place(node, cluster) for node in cluster.nodes], backend, routed)


def _place(node: Node, cluster: Cluster) -> Place:
    links = ip_json(node, "link")
    macs = {link["ifname"]: link["address"] for link in links if "address" in link}  # TUN has none
    switch = json.loads(cluster.switch.run("ip", "-json", "link").stdout)
    return Place(
        name=node.name,
        link=node.link.number,
        address=node.address,
        subnet=node.pod_subnet().gateway.network,
        mac=macs["eth0"],
        overlay_mac=macs.get("flannel.1"),
        router_mac=next(link["address"] for link in switch if link["ifname"] == node.link.bridge),
    )
