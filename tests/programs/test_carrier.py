"""A proxy's TUN device that the programs take packets past, on real devices.

A test run cannot give what the device's hooks see: packets without an Ethernet header. The row's
packet is put on the device as the stack would; it comes out of the uplink in the tunnel, or is
there for the proxy to read. The same the other way round.
"""

import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import packets as p
import pytest
from bpf_lab import (
    DIRECT_MAC,
    DIRECT_NODE,
    DIRECT_POD,
    GATEWAY_MAC,
    NODE,
    OTHER_NODE,
    PEER,
    PEER_NODE,
    POD,
    POD_MAC,
    REMOTE,
    STRANGER,
    UPLINK_MAC,
    WIRE_MAC,
    Lab,
    Tuple5,
)
from kersey_loader.layout import Admission, Program, Verdict
from tun_proxy import open_tun
from wires import IPIP, IPIP_WIRE, UDP_PORT, UDP_WIRE

pytestmark = pytest.mark.parametrize(
    "loaded_lab",
    [pytest.param(wire, id=wire.kind) for wire in (UDP_WIRE, IPIP_WIRE)],
    indirect=True,
)

_SOL_PACKET, _VNET_HEADER, _IGNORE_OUTGOING = 263, 15, 23
_ETH_P_IP, _ETH_P_ALL = 0x0800, 0x0003
_NEEDS_CSUM, _GSO_TCPV4 = 1, 1
_SOON = 5.0
_numbers = count(1)


@dataclass(frozen=True)
class Device:
    """The proxy's side of the device, and both ends of what leads to the wire."""

    lab: Lab
    ifindex: int
    tun: int
    overlay: socket.socket
    wire: socket.socket
    proxy: socket.socket

    def put(self, packet: bytes) -> None:
        """Have the stack send an IP packet by the device."""
        self.overlay.sendto(packet, ("flannel0", _ETH_P_IP))

    def send(self, packet: bytes) -> tuple[bytes | None, bytes | None, tuple[Verdict, ...]]:
        """Return what the wire got, what was left to the proxy, and what was counted."""
        before = self.lab.datapath.counters()
        self.put(packet)
        carried, left = self._first(self.wire.fileno(), self.tun)
        return carried, left, self._counted(before, Program.TO_OVERLAY)

    def receive(self, frame: bytes) -> tuple[bytes | None, bytes | None, tuple[Verdict, ...]]:
        """Return what came out of the device, what the proxy's socket got, and what was counted."""
        before = self.lab.datapath.counters()
        self.wire.send(frame)
        handed, left = self._first(self.overlay.fileno(), self.proxy.fileno())
        return handed, left, self._counted(before, Program.FROM_UPLINK)

    def _first(self, one: int, other: int) -> tuple[bytes | None, bytes | None]:
        """Return the IPv4 packet that arrives at either, behind an Ethernet header or not."""
        while True:
            ready, _, _ = select.select([one, other], [], [], _SOON)
            assert ready, "the packet is nowhere"
            data = os.read(ready[0], 1 << 16)
            if data[0] >> 4 == 4 or data[12:14] == b"\x08\x00":
                return (data, None) if ready[0] == one else (None, data)

    def _counted(
        self, before: dict[tuple[Program, Verdict], int], program: Program
    ) -> tuple[Verdict, ...]:
        after = self.lab.datapath.counters()
        return tuple(
            verdict
            for verdict in Verdict
            for _ in range(after[program, verdict] - before[program, verdict])
        )


@pytest.fixture(scope="module")
def made_device(loaded_lab: Lab) -> Iterator[Device]:
    tun = open_tun("flannel0")
    for line in (
        # Without addresses of its own, nothing but a test's packets is there.
        "link set flannel0 addrgenmode none mtu 1500 up",
        "link set wire0 addrgenmode none up",
        f"neigh replace {PEER_NODE} lladdr {WIRE_MAC} dev up0 nud permanent",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    ifindex = socket.if_nametoindex("flannel0")
    loaded_lab.datapath.attach_overlay(ifindex)
    loaded_lab.datapath.attach_uplink(loaded_lab.uplink, direct=False)
    kind = socket.SOCK_DGRAM if loaded_lab.wire is UDP_WIRE else socket.SOCK_RAW
    with (
        _packet_socket("flannel0", socket.SOCK_DGRAM) as overlay,
        _packet_socket("wire0", socket.SOCK_RAW) as wire,
        socket.socket(socket.AF_INET, kind, 0 if loaded_lab.wire is UDP_WIRE else IPIP) as proxy,
    ):
        proxy.bind((NODE, UDP_PORT))
        yield Device(loaded_lab, ifindex, tun, overlay, wire, proxy)
    os.close(tun)


@pytest.fixture
def device(lab: Lab, made_device: Device) -> Device:
    lab.configure(carrier=made_device.ifindex)
    return made_device


def _packet_socket(name: str, kind: int) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, kind, 0)
    made.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    made.bind((name, _ETH_P_ALL))
    return made


def routed(payload: bytes = b"ping", *, protocol: int = p.UDP, **ip: object) -> bytes:
    """Return a pod's packet after the router; numbered, so that none is taken for another."""
    fields: dict[str, object] = {
        "src": POD,
        "dst": REMOTE,
        "ttl": 63,
        "ident": next(_numbers) & 0xFFFF,
        **ip,
    }
    body = p.udp(payload, src=40000, dst=80) if protocol == p.UDP else payload
    return p.ipv4(body, protocol=protocol, **fields)  # type: ignore[arg-type]


def tunnelled(lab: Lab, packet: bytes, got: bytes, *, node: str = PEER_NODE) -> bytes:
    """Return what the wire is to carry; identification is the program's to choose."""
    ident = struct.unpack_from("!H", got, 18)[0]
    outer = lab.wire.encapsulate(lab.wire.cross(packet), src=NODE, dst=node, ident=ident)
    mac = DIRECT_MAC if node == DIRECT_NODE else WIRE_MAC
    return p.ethernet(outer, dst=mac, src=UPLINK_MAC)


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        pytest.param(routed(), Verdict.UNSEEN, id="udp"),
        pytest.param(routed(p.tcp(b"data", src=1, dst=2), protocol=p.TCP), Verdict.UNSEEN,
                     id="tcp"),
        pytest.param(routed(p.tcp(b"", src=1, dst=2, flags=p.SYN), protocol=p.TCP),
                     Verdict.CONTROL, id="syn"),
        pytest.param(routed(bytes(8), protocol=1), Verdict.PROTOCOL, id="icmp"),
        pytest.param(routed(bytes(40), protocol=132), Verdict.PROTOCOL, id="sctp"),
        pytest.param(routed(fragment=0x2000), Verdict.FRAGMENT, id="first-fragment"),
        pytest.param(routed(fragment=9), Verdict.FRAGMENT, id="last-fragment"),
        pytest.param(routed(fragment=p.DONT_FRAGMENT), Verdict.UNSEEN, id="dont-fragment"),
        pytest.param(routed(bytes(1422)), Verdict.UNSEEN, id="exactly-the-mtu"),
        pytest.param(routed(tos=0xB8 | 3), Verdict.UNSEEN, id="dscp-and-ce"),
        pytest.param(routed(ttl=2), Verdict.UNSEEN, id="ttl-2"),
    ],
)  # fmt: skip
def test_packet_on_the_device_leaves_in_the_tunnel_whatever_it_is(
    device: Device, packet: bytes, verdict: Verdict
) -> None:
    carried, _, counted = device.send(packet)
    assert carried is not None
    assert carried == tunnelled(device.lab, packet, carried)
    assert counted == (verdict,)


def test_packet_with_options_leaves_in_the_tunnel(device: Device) -> None:
    packet = routed(options=b"\x01\x01\x01\x00")
    carried, _, counted = device.send(packet)
    assert carried is not None
    assert len(carried) == 14 + device.lab.wire.room + len(packet)
    inner = carried[14 + device.lab.wire.room :]
    assert p.checksum(inner[:24]) == 0
    assert inner[12:] == packet[12:]
    assert counted == (Verdict.IP_OPTIONS,)


def test_direct_peers_packet_on_the_device_goes_into_the_tunnel_but_is_no_witness(
    device: Device,
) -> None:
    packet = routed(dst=DIRECT_POD)
    carried, _, counted = device.send(packet)
    assert carried is not None
    assert carried == tunnelled(device.lab, packet, carried, node=DIRECT_NODE)
    assert counted == (Verdict.OTHER_GATEWAY,)


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        pytest.param(routed(dst="10.244.9.9"), Verdict.UNRELATED, id="no-peer"),
        pytest.param(routed(dst="192.0.2.1"), Verdict.UNRELATED, id="to-the-world"),
        pytest.param(routed(ttl=0), Verdict.UNSEEN, id="no-hop-left"),
        pytest.param(routed(bytes(1423)), Verdict.UNSEEN, id="too-long"),
        pytest.param(routed(length=31), Verdict.MALFORMED, id="length-too-short"),
        pytest.param(routed(length=33), Verdict.UNSEEN, id="length-too-long"),
    ],
)
def test_what_addresses_alone_cannot_decide_is_left_to_the_proxy(
    device: Device, packet: bytes, verdict: Verdict
) -> None:
    _, left, counted = device.send(packet)
    assert (left, counted) == (packet, (verdict,))


def test_hop_that_the_proxy_would_take_is_taken_only_where_one_is_left(device: Device) -> None:
    packet = routed(ttl=1)
    carried, left, _ = device.send(packet)
    if device.lab.wire.hops > 1:
        assert left == packet
    else:
        assert carried is not None


def test_device_that_is_no_proxys_keeps_every_packet(device: Device) -> None:
    device.lab.configure(carrier=0)
    packet = routed()
    assert device.send(packet)[1:] == (packet, (Verdict.UNSEEN,))


def test_admission_off_still_carries(device: Device) -> None:
    device.lab.configure(admission=Admission.OFF, carrier=device.ifindex)
    carried, _, counted = device.send(routed())
    assert carried is not None
    assert counted == (Verdict.ADMISSION_OFF,)


def test_carried_packets_are_witnesses_of_the_egress_direction(device: Device) -> None:
    lab = device.lab
    packet = routed()
    sent = packet[:8] + bytes([64]) + packet[9:10] + b"\0\0" + packet[12:]
    sent = sent[:10] + struct.pack("!H", p.checksum(sent[:20])) + sent[12:]
    frame = p.ethernet(sent, dst=GATEWAY_MAC, src=POD_MAC)
    lab.run(Program.FROM_POD, frame, device=lab.port)
    assert device.send(packet)[2] == (Verdict.WITNESSED,)
    entry = lab.flow(Tuple5())
    assert entry is not None
    assert (entry.egress_port, entry.egress_kind) == (lab.port, 64)


def test_identifications_of_fast_and_carried_packets_do_not_repeat(device: Device) -> None:
    lab = device.lab
    lab.admit(Tuple5())
    # One processor: another one has identifications of its own.
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        idents = []
        for _ in range(20):
            carried, _, _ = device.send(routed())
            assert carried is not None
            fast = p.ethernet(p.ipv4(p.udp(b"", src=40000, dst=80), src=POD, dst=REMOTE),
                              dst=GATEWAY_MAC, src=POD_MAC)  # fmt: skip
            outcome = lab.run(Program.FROM_POD, fast, device=lab.port)
            assert outcome.counted == (Verdict.FAST,)
            idents += [carried[18:20], outcome.packet[18:20]]
    finally:
        os.sched_setaffinity(0, before)
    assert len(set(idents)) == len(idents)


def test_super_packet_leaves_whole(device: Device) -> None:
    header = p.tcp(b"", src=40000, dst=80)
    packet = routed(header + bytes(5000), protocol=p.TCP)
    virtio = struct.pack("=BBHHHH", _NEEDS_CSUM, _GSO_TCPV4, 40, 1000, 20, 16)
    before = device.lab.datapath.traffic()[PEER].slow_sent.bytes
    with _packet_socket("flannel0", socket.SOCK_RAW) as opened:
        opened.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
        opened.sendto(virtio + packet, ("flannel0", _ETH_P_IP))
        carried = device.wire.recv(1 << 16)
    outer_len, = struct.unpack_from("!H", carried, 16)  # fmt: skip
    assert len(carried) == 14 + outer_len == 14 + device.lab.wire.room + len(packet)
    assert carried == tunnelled(device.lab, packet, carried)
    assert device.lab.datapath.traffic()[PEER].slow_sent.bytes - before == len(packet)


def arrived(payload: bytes = b"pong", **ip: object) -> bytes:
    fields: dict[str, object] = {"src": REMOTE, "dst": POD, "ttl": 63, **ip}
    return p.ipv4(p.udp(payload, src=80, dst=40000), **fields)  # type: ignore[arg-type]


def on_wire(lab: Lab, inner: bytes, **outer: object) -> bytes:
    fields: dict[str, object] = {"src": PEER_NODE, "dst": NODE, **outer}
    return p.ethernet(lab.wire.encapsulate(inner, **fields), dst=UPLINK_MAC, src=WIRE_MAC)


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(arrived(), id="udp"),
        pytest.param(arrived(bytes(1422)), id="exactly-the-mtu"),
        pytest.param(arrived(fragment=0x2000), id="inner-fragment"),
        pytest.param(p.ipv4(bytes(8), src=REMOTE, dst=POD, protocol=1), id="icmp"),
        pytest.param(arrived(src=PEER_NODE), id="node-for-itself"),
        pytest.param(arrived(ttl=2), id="ttl-2"),
    ],
)
def test_slow_packet_enters_the_stack_by_the_device(device: Device, inner: bytes) -> None:
    handed, _, _ = device.receive(on_wire(device.lab, inner))
    assert handed == device.lab.wire.cross(inner)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        pytest.param(arrived(), {"options": bytes(4)}, id="outer-options"),
        pytest.param(arrived() + arrived(), {}, id="merged-datagrams"),
        pytest.param(arrived(tos=2), {"tos": 3}, id="outer-ce"),
        pytest.param(arrived(bytes(1423)), {}, id="longer-than-the-mtu"),
    ],
)
def test_what_cannot_be_taken_out_of_the_tunnel_is_left_to_the_proxys_socket(
    device: Device, inner: bytes, outer: dict[str, object]
) -> None:
    _, left, _ = device.receive(on_wire(device.lab, inner, **outer))
    assert left is not None
    assert left.endswith(inner)


@pytest.mark.parametrize("outer", [{"src": STRANGER}, {"src": OTHER_NODE}])
def test_forged_packet_reaches_neither_device_nor_proxy(
    device: Device, outer: dict[str, object]
) -> None:
    before = device.lab.datapath.counters()
    device.wire.send(on_wire(device.lab, arrived(), **outer))
    marker = arrived(b"after it")
    handed, left, _ = device.receive(on_wire(device.lab, marker))
    assert (handed, left) == (device.lab.wire.cross(marker), None)
    after = device.lab.datapath.counters()
    forged = [v for (program, v), n in after.items() if v.forged and n != before[program, v]]
    assert len(forged) == 1


def test_packets_past_the_proxy_are_told_of_as_they_came(device: Device) -> None:
    lab = device.lab
    with lab.watched(passed=(Verdict.UNSEEN, Verdict.NOT_ADMITTED)) as (_, watch):
        packet = routed()
        device.send(packet)
        (sent,) = watch.packets(0)
        device.receive(on_wire(lab, arrived()))
        (received,) = watch.packets(0)
    assert (sent.program, sent.verdict) == (Program.TO_OVERLAY, Verdict.UNSEEN)
    assert (sent.outer_source, sent.device) == (None, device.ifindex)
    assert (str(sent.source), str(sent.destination)) == (POD, REMOTE)
    assert (sent.source_port, sent.destination_port, sent.length) == (40000, 80, len(packet))
    assert received.verdict is Verdict.NOT_ADMITTED
    assert (str(received.outer_source), str(received.outer_destination)) == (PEER_NODE, NODE)
    assert (str(received.source), str(received.destination)) == (REMOTE, POD)
    assert received.device == lab.uplink
