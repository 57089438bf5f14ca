"""The peers in the maps: which lease is in which slot, changed so that no packet sees half of it.

A slot is written before its number is published and rests for `REST` seconds after it was
withdrawn. Does not know how peers are found, nor the kernel's routes.
"""

import ctypes
import struct
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import NamedTuple

from kersey_loader.bpf import Map
from kersey_loader.errors import PeersFullError
from kersey_loader.layout import Address, Mac, Peer, Traffic
from kersey_loader.tunnel import Tunnel, partial_sum

REST = 1.0
"""Seconds that a withdrawn slot, and a changed node's former address, stay as they are."""

_NOBODY = bytes(4)
_Template = ctypes.c_uint64 * 8
_WAYS = len(Traffic._fields_)  # and of Sums


class Sums(NamedTuple):
    """struct traffic over all CPUs: packets as on the wire, bytes of inner packets."""

    fast_sent_packets: int = 0
    fast_sent_bytes: int = 0
    slow_sent_packets: int = 0
    slow_sent_bytes: int = 0
    fast_received_packets: int = 0
    fast_received_bytes: int = 0
    slow_received_packets: int = 0
    slow_received_bytes: int = 0

    @property
    def packets(self) -> int:
        """Return all packets, whatever their way."""
        return sum(self[::2])

    @property
    def bytes(self) -> int:
        """Return all bytes, whatever their way."""
        return sum(self[1::2])


@dataclass(frozen=True, slots=True)
class Record:
    """What a slot says of a peer, apart from what is ours in every template."""

    node: IPv4Address
    vtep_mac: bytes
    direct: bool
    nexthop: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Underlay:
    """What is ours in every outer header; without a tunnel there is none."""

    node: IPv4Address
    tunnel: Tunnel | None

    def template(self, record: Record) -> bytes:
        """Return the headers in front of a packet to a peer."""
        if self.tunnel is None:
            return b""
        return self.tunnel.template(source=self.node, destination=record.node, mac=record.vtep_mac)


def encode(record: Record, underlay: Underlay, *, previous_node: bytes, counter: int) -> Peer:
    """Return the slot of a peer: its header template and the sum of what never changes in it."""
    template = underlay.template(record)
    return Peer(
        node=Address(*record.node.packed),
        previous_node=Address(*previous_node),
        nexthop=Address(*(record.nexthop.packed if record.nexthop else _NOBODY)),
        partial_sum=partial_sum(template),
        counter=counter,
        vtep_mac=Mac(*record.vtep_mac),
        direct=record.direct,
        template=_Template.from_buffer_copy(template.ljust(ctypes.sizeof(_Template), b"\0")),
    )


def decode(value: bytes) -> Record:
    """Return what a slot says."""
    peer = Peer.from_buffer_copy(value)
    nexthop = bytes(peer.nexthop)
    return Record(
        node=IPv4Address(bytes(peer.node)),
        vtep_mac=bytes(peer.vtep_mac),
        direct=bool(peer.direct),
        nexthop=IPv4Address(nexthop) if nexthop != _NOBODY else None,
    )


class PeerTable:
    """The peers by subnet index. Begins with what the maps hold, so that a restart changes nothing.

    `time.monotonic` decides when a slot has rested.
    """

    def __init__(self, *, index: Map, slots: Map, nodes: Map, counters: Map) -> None:
        self._index, self._slots, self._nodes, self._counters = index, slots, nodes, counters
        self._slot_of: dict[int, int] = {}
        self._value_of: dict[int, Peer] = {}
        self._record_of: dict[int, Record] = {}
        self._was_direct: dict[int, bool] = {}
        self._resting: deque[tuple[float, int]] = deque()
        self._moved: deque[tuple[float, int]] = deque()
        self._adopt()
        self._leases = Counter(record.node for record in self._record_of.values())
        self._repair_nodes()
        used = set(self._slot_of.values())
        self._free = deque(n for n in range(1, slots.spec.max_entries) if n not in used)
        counted = {peer.counter for peer in self._value_of.values()}
        self._free_counters = deque(
            n for n in range(1, counters.spec.max_entries) if n not in counted
        )

    @property
    def records(self) -> Mapping[int, Record]:
        """Return the peers as they are published, by subnet index."""
        return MappingProxyType(self._record_of)

    def turns(self, changes: Mapping[int, Record | None]) -> bool:
        """Return whether any peer, or one that comes back, goes from direct to tunnel or back."""
        return any(
            record.direct is not self._was_direct.get(index, record.direct)
            for index, record in changes.items()
            if record is not None
        )

    def apply(self, changes: Mapping[int, Record | None], underlay: Underlay) -> None:
        """Publish peers, and withdraw those that are None.

        A new sender is known before it is published and forgotten after it is withdrawn; a node
        that changes its address is accepted under both for `REST` seconds. Raises PeersFullError
        after all that fit are in, BpfError if the maps cannot be written.
        """
        self.settle()
        self._free_counters.extend(self._counters_of_removed(changes))
        wanted = [index for index, record in changes.items() if record is not None]
        room = self._room(len(wanted))
        placed = {index: self._free.popleft() for index in wanted[:room]}
        values = {
            index: self._encode(index, record, underlay)
            for index in placed
            if (record := changes[index]) is not None
        }
        before = self._leases_of_nodes(changes)
        old = {index: self._slot_of[index] for index in changes if index in self._slot_of}
        self._slots.update_all((_u32(placed[i]), bytes(values[i])) for i in placed)
        self._remember(placed, values, changes)
        after = self._leases_of_nodes(changes)
        self._leases.update(after)
        self._leases.subtract(before)
        touched = before.keys() | after.keys()
        known = [node for node in touched if self._leases[node]]
        self._nodes.update_all((node.packed, _u32(self._leases[node])) for node in known)
        published = {index: placed.get(index, 0) for index in changes}
        self._index.update_all((_u32(index), _u32(slot)) for index, slot in published.items())
        for node in touched:
            if not self._leases[node]:
                del self._leases[node]
                self._nodes.delete(node.packed)
        until = time.monotonic() + REST
        self._resting.extend((until, slot) for slot in old.values())
        if len(placed) < len(wanted):
            raise PeersFullError(f"{len(wanted) - len(placed)} peers do not fit into the maps")

    def settle(self) -> None:
        """Take back what has rested; call it now and then, at least a second after a change."""
        now = time.monotonic()
        while self._resting and self._resting[0][0] <= now:
            self._free.append(self._resting.popleft()[1])
        while self._moved and self._moved[0][0] <= now:
            self._forget_previous(self._moved.popleft()[1])

    def traffic(self) -> dict[int, Sums]:
        """Return the traffic of each peer that has a counter, by subnet index. From any thread."""
        peers = self._value_of.copy()  # in one step: another thread may be changing the peers
        counter_of = {index: peer.counter for index, peer in peers.items() if peer.counter}
        values = self._counters.values(max(counter_of.values(), default=0) + 1)
        cells = struct.Struct(f"={self._counters.cpus * _WAYS}Q")
        return {
            index: _sum_cpus(cells.unpack_from(values, counter * cells.size))
            for index, counter in counter_of.items()
        }

    def _adopt(self) -> None:
        numbers, slots = self._index.values(), self._slots.values()
        size = self._slots.spec.value_size
        for index in range(self._index.spec.max_entries):
            slot = int.from_bytes(numbers[4 * index : 4 * index + 4], "little")
            if slot:
                value = slots[slot * size : (slot + 1) * size]
                self._slot_of[index] = slot
                self._value_of[index] = Peer.from_buffer_copy(value)
                self._record_of[index] = record = decode(value)
                self._was_direct[index] = record.direct
                self._note_move(index)

    def _repair_nodes(self) -> None:
        """Make the known senders those of the published peers, whatever an abrupt end left."""
        known = {node.packed: _u32(count) for node, count in self._leases.items()}
        self._nodes.update_all(known.items())
        for node in [node for node in self._nodes if node not in known]:
            self._nodes.delete(node)

    def _leases_of_nodes(self, indexes: Iterable[int]) -> Counter[IPv4Address]:
        records = (self._record_of.get(index) for index in indexes)
        return Counter(record.node for record in records if record is not None)

    def _encode(self, index: int, record: Record, underlay: Underlay) -> Peer:
        known = self._value_of.get(index)
        return encode(
            record,
            underlay,
            previous_node=_former(known, record),
            counter=known.counter if known else self._take_counter(),
        )

    def _remember(
        self,
        placed: Mapping[int, int],
        values: Mapping[int, Peer],
        changes: Mapping[int, Record | None],
    ) -> None:
        for index, record in changes.items():
            if record is not None and index in placed:
                self._slot_of[index] = placed[index]
                self._value_of[index] = values[index]
                self._record_of[index] = record
                self._was_direct[index] = record.direct
                self._note_move(index)
            else:
                self._slot_of.pop(index, None)
                self._record_of.pop(index, None)

    def _counters_of_removed(self, changes: Mapping[int, Record | None]) -> Iterator[int]:
        # No rest: a packet on its way may still count for the removed one, and no more.
        for index, record in changes.items():
            known = self._value_of.pop(index, None) if record is None else None
            if known is not None and known.counter:
                yield known.counter

    def _note_move(self, index: int) -> None:
        if bytes(self._value_of[index].previous_node) != _NOBODY:
            self._moved.append((time.monotonic() + REST, index))

    def _forget_previous(self, index: int) -> None:
        # One aligned word in place: the only thing in a published slot that ever changes.
        peer = self._value_of.get(index)
        if peer is not None and index in self._slot_of:
            peer.previous_node = Address()
            self._slots.update(_u32(self._slot_of[index]), bytes(peer))

    def _room(self, wanted: int) -> int:
        """Return how many slots can be taken, after waiting for those at rest if too few are."""
        while len(self._free) < wanted and self._resting:
            time.sleep(max(0.0, self._resting[0][0] - time.monotonic()))
            self.settle()
        return len(self._free)

    def _take_counter(self) -> int:
        """Return a zeroed counter, or 0, which is nobody's, when all are in use."""
        if not self._free_counters:
            return 0
        counter = self._free_counters.popleft()
        empty = bytes(len(bytes(Traffic())) * self._counters.cpus)
        self._counters.update(_u32(counter), empty)
        return counter


def _former(known: Peer | None, record: Record) -> bytes:
    if known is None:
        return _NOBODY
    node = bytes(known.node)
    return node if node != record.node.packed else bytes(known.previous_node)


def _sum_cpus(cells: tuple[int, ...]) -> Sums:
    """Add up the copies of struct traffic, one behind the other, field by field."""
    copies = (cells[at : at + _WAYS] for at in range(0, len(cells), _WAYS))
    return Sums(*map(sum, zip(*copies, strict=True)))


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")
