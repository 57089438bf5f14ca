"""One packet's way through the proxy, both directions: read, judge, change, hand on, count.

Promises: one packet in is one packet out, or one counted reason; whole batches per turn; memory
that does not grow. It decides by an immutable table, and leaves to the kernel what is for pods
here.
"""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Protocol

from kersey_control.allowance import Allowance
from kersey_control.carriers import Arrival, Carrier
from kersey_control.icmp import Complaint, deserves_answer, error_about
from kersey_control.ipv4 import (
    DONT_FRAGMENT,
    ECN,
    LONGEST,
    Drop,
    Header,
    merged_ecn,
    outer_ecn,
    read_header,
    set_tos,
    take_hops,
)
from kersey_control.node_table import Table
from kersey_control.options import SpoofCheck
from kersey_control.transport import finish, is_unfinished, tcp_segments

BATCH = 64
"""Packets of one direction until the other one has its turn."""

_SEND_LIMIT = LONGEST - 28  # what one datagram can carry, segmented or not
_ARENA = 4 * (LONGEST + 1)
_ERRORS_PER_SECOND, _ERRORS_AT_ONCE = 100, 50  # of each kind
_LEAST_MTU = 68  # RFC 791
_BUSY = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
_NO_WAY = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN))


class Device(Protocol):
    """What the proxy needs of a TUN device; all but `fileno` raise TunGoneError."""

    @property
    def mtu(self) -> int:
        """The MTU in bytes as of now."""

    def fileno(self) -> int:
        """Return the descriptor, for poll."""

    def read_into(self, room: memoryview) -> int | None:
        """Read one packet, None if there is none."""

    def write(self, packet: memoryview) -> bool:
        """Give one packet to the stack; return whether it was taken."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What a proxy did since it was made: inner packets, and their bytes.

    `answered` are ICMP errors sent; `failures` are faults of ours, each with a traceback in the
    log. With the check on `count`, forged packets are in `dropped` although they went on.
    """

    sent_packets: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    received_bytes: int = 0
    answered: int = 0
    failures: int = 0
    dropped: Mapping[Drop, int] = field(default_factory=dict)


class Tally:
    """Counters being counted: written by the proxy's thread, read by any."""

    def __init__(self) -> None:
        self.sent_packets = self.sent_bytes = 0
        self.received_packets = self.received_bytes = 0
        self.answered = self.failures = 0
        self.dropped = dict.fromkeys(Drop, 0)

    def drop(self, reason: Drop) -> None:
        """Count one packet that goes no further."""
        self.dropped[reason] += 1

    def snapshot(self) -> Counters:
        """Return the counts as of now."""
        return Counters(
            sent_packets=self.sent_packets,
            sent_bytes=self.sent_bytes,
            received_packets=self.received_packets,
            received_bytes=self.received_bytes,
            answered=self.answered,
            failures=self.failures,
            dropped={reason: count for reason, count in self.dropped.items() if count},
        )


def judge_sender(table: Table, *, node: int, source: int) -> Drop | None:
    """Return why `node` may not send a packet from `source`, None if it may."""
    if table.node_of(source) == node:
        return None
    if not table.is_node(node):
        return Drop.UNKNOWN_NODE
    if source == node:
        return None
    return Drop.FOREIGN_SOURCE if table.is_pod(source) else Drop.OUTSIDE_SOURCE


class Answers:
    """ICMP errors to senders, of each kind so many a second and no more.

    `send` sends one IPv4 packet and raises OSError; `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        address: IPv4Address,
        tally: Tally,
        *,
        send: Callable[[bytes], object],
        clock: Callable[[], float],
    ) -> None:
        self._address = int(address)
        self._tally = tally
        self._send = send
        self._clock = clock
        # Apart, so that a flood of one kind does not silence the one that says which MTU fits.
        self._allowances = {
            kind: Allowance(rate=_ERRORS_PER_SECOND, burst=_ERRORS_AT_ONCE) for kind in Complaint
        }

    def send(
        self, packet: memoryview, header: Header, complaint: Complaint, *, mtu: int = 0
    ) -> None:
        """Send an error to the source of `packet`, if one is due and there is allowance left."""
        if not deserves_answer(packet, header):
            return
        if not self._allowances[complaint].take(self._clock()):
            return
        message = error_about(packet, header, complaint, source=self._address, mtu=mtu)
        try:
            self._send(message)
        except OSError:  # no way back to a source that may not even exist
            return
        self._tally.answered += 1


@dataclass(frozen=True, slots=True)
class Ends:
    """What both directions share. `hops` is what each end of the tunnel takes from the TTL."""

    tun: Device
    carrier: Carrier
    hops: int
    answers: Answers
    tally: Tally


class Outgoing:
    """TUN to nodes, in runs: consecutive packets of one length for one node.

    They are read one behind the other into one room, and leave it in one call, without a copy.
    """

    def __init__(self, ends: Ends) -> None:
        self._tun, self._carrier, self._hops = ends.tun, ends.carrier, ends.hops
        self._answers, self._tally = ends.answers, ends.tally
        self._room = memoryview(bytearray(_ARENA))
        self._start = self._end = 0  # the run, in the room
        self._size = 0
        self._way = (0, 0)  # node and ECN

    def carry(self, table: Table) -> bool:
        """Carry up to a batch; return whether there may be more."""
        for _ in range(BATCH):
            if self._end > _ARENA - LONGEST:
                self._send_run()
                self._start = self._end = 0
            length = self._tun.read_into(self._room[self._end :])
            if length is None:
                self._send_run()
                return False
            self._take(table, self._room[self._end : self._end + length])
        self._send_run()
        return True

    def _take(self, table: Table, packet: memoryview) -> None:
        header = read_header(packet)
        if isinstance(header, Drop):
            self._tally.drop(header)
            return
        node = table.node_of(header.destination)
        if node is None:
            self._tally.drop(Drop.NO_PEER)
            self._answers.send(packet, header, Complaint.NET_UNREACHABLE)
        elif header.ttl <= self._hops:
            self._tally.drop(Drop.TTL)
            self._answers.send(packet, header, Complaint.TTL_EXCEEDED)
        else:
            if self._hops:
                take_hops(packet, header, self._hops)
            ecn = outer_ecn(header.tos) if self._carrier.carries_ecn else 0
            self._append(header.total, (node, ecn))

    def _append(self, length: int, way: tuple[int, int]) -> None:
        """Make the packet behind the run a part of it, or the beginning of the next."""
        if not self._fits_run(length, way):
            self._send_run()
        if self._start == self._end:
            self._way, self._size = way, length
        self._end += length

    def _fits_run(self, length: int, way: tuple[int, int]) -> bool:
        count, rest = divmod(self._end - self._start, self._size or 1)
        return (
            way == self._way
            and length <= self._size
            and rest == 0  # after a shorter one nothing can follow
            and count < self._carrier.most
            and (count + 1) * self._size <= _SEND_LIMIT
        )

    def _send_run(self) -> None:
        run, size = self._room[self._start : self._end], self._size
        self._start = self._end
        if not run:
            return
        node, ecn = self._way
        try:
            self._carrier.send(run, size=size, node=node, ecn=ecn)
        except OSError as error:
            if len(run) <= size:
                self._refused(run, error.errno or 0)
                return
            for offset in range(0, len(run), size):  # one of them may be at fault, or none
                self._send_one(run[offset : offset + size])
        else:
            self._count(packets=-(-len(run) // size), length=len(run))

    def _send_one(self, packet: memoryview) -> None:
        node, ecn = self._way
        try:
            self._carrier.send(packet, size=len(packet), node=node, ecn=ecn)
        except OSError as error:
            self._refused(packet, error.errno or 0)
        else:
            self._count(packets=1, length=len(packet))

    def _refused(self, packet: memoryview, code: int) -> None:
        header = Header.of(packet)
        if code == errno.EMSGSIZE:
            self._too_big(packet, header)
        elif code in _BUSY:
            self._tally.drop(Drop.UPLINK_BUSY)
        else:
            self._tally.drop(Drop.UPLINK_REFUSED)
            if code in _NO_WAY:
                self._answers.send(packet, header, Complaint.HOST_UNREACHABLE)

    def _too_big(self, packet: memoryview, header: Header) -> None:
        """Say which MTU fits, or let the outer packet be fragmented where the inner one may be."""
        node, ecn = self._way
        try:
            if not header.fragment & DONT_FRAGMENT:
                self._carrier.send_in_fragments(packet, node=node, ecn=ecn)
                self._count(packets=1, length=len(packet))
                return
            mtu = self._carrier.mtu_to(node)
        except OSError:
            self._tally.drop(Drop.UPLINK_REFUSED)
            return
        self._tally.drop(Drop.TOO_BIG)
        if _LEAST_MTU <= mtu < header.total:
            self._answers.send(packet, header, Complaint.FRAGMENTATION_NEEDED, mtu=mtu)

    def _count(self, *, packets: int, length: int) -> None:
        self._tally.sent_packets += packets
        self._tally.sent_bytes += length


class Incoming:
    """Nodes to TUN: the sender is checked, then the kernel's routing decides."""

    def __init__(self, ends: Ends, check: SpoofCheck) -> None:
        self._tun, self._carrier, self._hops = ends.tun, ends.carrier, ends.hops
        self._answers, self._tally = ends.answers, ends.tally
        self._check = check
        self._room = memoryview(bytearray(LONGEST + 1))

    def carry(self, table: Table) -> bool:
        """Carry about a batch; return whether there may be more."""
        count = 0
        while count < BATCH:
            try:
                arrival = self._carrier.receive(self._room)
            except OSError:  # an error that waited on the socket; reading took it away
                self._tally.drop(Drop.UPLINK_REFUSED)
                return True
            if arrival is None:
                return False
            count += self._unpack(table, arrival)
        return True

    def _unpack(self, table: Table, arrival: Arrival) -> int:
        """Take each packet of an arrival; return how many, at least 1."""
        node, packets, size, tos = arrival
        if not packets or size <= 0:
            self._tally.drop(Drop.TRUNCATED)
            return 1
        for offset in range(0, len(packets), size):
            self._take(table, packets[offset : offset + size], node, tos)
        return -(-len(packets) // size)

    def _take(self, table: Table, packet: memoryview, node: int, outer_tos: int) -> None:
        header = read_header(packet)
        if isinstance(header, Drop):
            self._tally.drop(header)
            return
        if self._check is not SpoofCheck.OFF and not self._may_send(table, node, header.source):
            return
        ecn = merged_ecn(outer=outer_tos, inner=header.tos)
        if ecn is None:
            self._tally.drop(Drop.CONGESTION)
        elif header.ttl <= self._hops:
            self._tally.drop(Drop.TTL)
            self._answers.send(packet, header, Complaint.TTL_EXCEEDED)
        else:
            if self._hops:
                take_hops(packet, header, self._hops)
            if ecn != header.tos & ECN:
                set_tos(packet, header.tos & ~ECN | ecn)
            self._deliver(packet, header)

    def _may_send(self, table: Table, node: int, source: int) -> bool:
        reason = judge_sender(table, node=node, source=source)
        if reason is None:
            return True
        self._tally.drop(reason)
        return self._check is SpoofCheck.COUNT

    def _deliver(self, packet: memoryview, header: Header) -> None:
        if not is_unfinished(packet, header):
            self._write(packet)
        elif header.total > (mtu := self._tun.mtu):
            for piece in tcp_segments(packet, header, mtu=mtu):
                self._write(piece)
        else:
            finish(packet, header)
            self._write(packet)

    def _write(self, packet: memoryview) -> None:
        if self._tun.write(packet):
            self._tally.received_packets += 1
            self._tally.received_bytes += len(packet)
        else:
            self._tally.drop(Drop.DEVICE_REFUSED)
