"""The peers in the maps: slots are written once, rest, and are found again after a restart."""

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import islice

import packets as p
import pytest
from bpf_lab import NODE, OTHER, PEER, PEER_NODE, PEER_VTEP, VTEP, Lab
from kersey_loader import peers
from kersey_loader.datapath import PeerEntry
from kersey_loader.layout import Peer

ENTRY = PeerEntry(PEER, IPv4Address(PEER_NODE), p.mac(PEER_VTEP))


class Clock:
    """A clock that only moves when told to, or when someone sleeps."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(peers, "time", clock)
    return clock


def slot_of(lab: Lab, subnet: IPv4Network) -> int:
    index = (int(subnet.network_address) >> 8) & 0xFF
    value = lab.datapath.maps["peer_index"].lookup(index.to_bytes(4, "little"))
    assert value is not None
    return int.from_bytes(value, "little")


def peer_in(lab: Lab, slot: int) -> Peer:
    value = lab.datapath.maps["peers"].lookup(slot.to_bytes(4, "little"))
    assert value is not None
    return Peer.from_buffer_copy(value)


def node_count(lab: Lab, node: str) -> int:
    value = lab.datapath.maps["nodes"].lookup(IPv4Address(node).packed)
    return 0 if value is None else int.from_bytes(value, "little")


def test_template_is_every_header_in_front_of_the_inner_packet(lab: Lab) -> None:
    peer = peer_in(lab, slot_of(lab, PEER))
    inner = p.ethernet(b"", dst=PEER_VTEP, src=VTEP)
    body = p.udp(p.vxlan(inner), src=0, dst=8472, length=0)
    outer = bytearray(p.ipv4(body, src=NODE, dst=PEER_NODE, length=0, ident=0))
    outer[10:12] = b"\0\0"
    zero = "00:00:00:00:00:00"
    assert bytes(peer.template) == p.ethernet(bytes(outer), dst=zero, src=zero)
    assert ~_fold(peer.partial_sum) & 0xFFFF == int.from_bytes(
        p.checksum(bytes(outer[:20])).to_bytes(2, "big"), "little"
    )


def test_next_hop_of_a_direct_peer_is_its_node_whatever_is_told(lab: Lab) -> None:
    for nexthop in (None, IPv4Address("198.18.0.254")):
        lab.datapath.put_peer(replace(ENTRY, direct=True, nexthop=nexthop))
        peer = peer_in(lab, slot_of(lab, PEER))
        assert (peer.direct, bytes(peer.nexthop)) == (1, IPv4Address(PEER_NODE).packed)


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_changed_peer_gets_another_slot_and_the_old_one_stays_as_it_was(
    lab: Lab, clock: Clock
) -> None:
    del clock
    old = slot_of(lab, PEER)
    before = bytes(peer_in(lab, old).template)
    lab.datapath.put_peer(replace(ENTRY, vtep_mac=p.mac("0e:00:00:00:00:22")))
    assert slot_of(lab, PEER) != old
    assert bytes(peer_in(lab, old).template) == before


def test_unchanged_peer_is_not_written_again(lab: Lab, clock: Clock) -> None:
    del clock
    lab.datapath.put_peer(ENTRY)
    slot = slot_of(lab, PEER)
    lab.datapath.put_peer(ENTRY)
    assert slot_of(lab, PEER) == slot


def test_moved_node_is_known_by_both_addresses_until_it_has_rested(lab: Lab, clock: Clock) -> None:
    lab.datapath.put_peer(replace(ENTRY, node=IPv4Address("198.18.0.77")))
    slot = slot_of(lab, PEER)
    assert bytes(peer_in(lab, slot).previous_node) == IPv4Address(PEER_NODE).packed
    assert (node_count(lab, PEER_NODE), node_count(lab, "198.18.0.77")) == (0, 1)
    lab.datapath.settle()
    assert bytes(peer_in(lab, slot).previous_node) != bytes(4)
    clock.now += peers.REST
    lab.datapath.settle()
    assert bytes(peer_in(lab, slot).previous_node) == bytes(4)
    assert slot_of(lab, PEER) == slot


def test_removed_peer_is_unknown_at_once_and_its_slot_rests(lab: Lab, clock: Clock) -> None:
    del clock
    slot = slot_of(lab, PEER)
    lab.datapath.remove_peer(PEER)
    assert slot_of(lab, PEER) == 0
    assert node_count(lab, PEER_NODE) == 0
    assert bytes(peer_in(lab, slot).node) == IPv4Address(PEER_NODE).packed


def test_node_of_two_leases_is_known_until_both_are_gone(lab: Lab, clock: Clock) -> None:
    del clock
    lab.datapath.put_peer(replace(ENTRY, subnet=OTHER))
    assert node_count(lab, PEER_NODE) == 2
    lab.datapath.remove_peer(OTHER)
    assert node_count(lab, PEER_NODE) == 1
    lab.datapath.remove_peer(PEER)
    assert node_count(lab, PEER_NODE) == 0


def many() -> Iterator[PeerEntry]:
    subnets = IPv4Network("10.244.0.0/16").subnets(new_prefix=24)
    for number, subnet in enumerate(islice(subnets, 2, None)):
        yield PeerEntry(subnet, IPv4Address("198.19.0.0") + number, p.mac(PEER_VTEP))


def test_all_subnets_of_a_network_fit_and_can_all_change_at_once(lab: Lab, clock: Clock) -> None:
    began = clock.now
    entries = list(many())
    lab.datapath.replace_peers(entries)
    for mac in ("0e:00:00:00:01:01", "0e:00:00:00:01:02", "0e:00:00:00:01:03"):
        lab.datapath.replace_peers(replace(entry, vtep_mac=p.mac(mac)) for entry in entries)
    for entry in entries:
        peer = peer_in(lab, slot_of(lab, entry.subnet))
        assert bytes(peer.vtep_mac) == p.mac("0e:00:00:00:01:03")
        assert bytes(peer.node) == entry.node.packed
    assert clock.now > began, "a slot was written again without rest"
    assert len(lab.datapath.traffic()) == len(entries)


def test_peers_that_stay_are_untouched_by_a_replacement(lab: Lab, clock: Clock) -> None:
    del clock
    lab.datapath.replace_peers([ENTRY])
    slot = slot_of(lab, PEER)
    lab.datapath.replace_peers([ENTRY, replace(ENTRY, subnet=OTHER)])
    assert slot_of(lab, PEER) == slot
    assert slot_of(lab, OTHER) != 0
