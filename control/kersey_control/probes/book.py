"""All peers and their probes: what to send when, what to answer, and what is known of each. Pure.

Whoever may send is known beforehand: a message is of a peer if it names the peer's subnet and comes
from that peer's address in the overlay or from its node. Nothing is kept of anybody else. An answer
is as long as its question, and a peer gets so many a second.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from kersey_control.addresses import gateway_of
from kersey_control.allowance import Allowance
from kersey_control.echo import Reply
from kersey_control.peer import Peer
from kersey_control.probes.message import Message, decode, decode_echo, encode, encode_echo
from kersey_control.probes.record import TIMEOUT, Record
from kersey_control.probes.turns import Turns, period, spread
from kersey_control.reach import Means, Reach

_LATENESS = 0.1
"""Seconds by which we may come late without a loss of budget."""

_COST_SMOOTHING = 1 / 32
_ANSWERS_PER_SECOND, _ANSWERS_AT_ONCE = 4.0, 8.0


class Refusal(StrEnum):
    """Why a datagram was not taken."""

    MALFORMED = "malformed"
    UNKNOWN_SENDER = "unknown_sender"
    """No peer has that subnet and address."""
    OTHER_PORT = "other_port"
    """Not from the port that daemons ask and answer by."""
    TOO_MANY = "too_many"
    """More questions than a peer gets answers to."""


@dataclass(frozen=True, slots=True)
class Here:
    """This node: its subnet, whether it has an address in the overlay, and its run's token."""

    subnet: IPv4Network
    has_overlay: bool
    token: int


class Outgoing(NamedTuple):
    """A datagram, or the body of an echo request numbered `echo`, to an address.

    A plain one goes from node to node past the tunnel, others come from our overlay address.
    """

    to: IPv4Address
    data: bytes
    is_plain: bool
    echo: int | None = None


class Book:
    """Every peer's record. `rate` is probes a second to all together, `interval` seconds."""

    def __init__(self, here: Here, *, interval: float, rate: float, rng: random.Random) -> None:
        self._here = here
        self._interval = interval
        self._rate = rate
        self._rng = rng
        self._records: dict[IPv4Network, Record] = {}
        self._turns = Turns()
        self._budget = Allowance(rate=rate, burst=1 + _LATENESS * rate)
        self._cost = 2.0  # questions that a round takes: two at first, later one for most peers
        self.sent = 0
        """Questions so far."""
        self.refused: Counter[Refusal] = Counter()

    def follow(self, peers: Iterable[Peer], now: float) -> None:
        """Ask these peers from now on, and no others; what is known of those that stay, stays."""
        wanted = {peer.subnet: peer for peer in peers}
        for subnet in self._records.keys() - wanted.keys():
            del self._records[subnet]
            self._turns.remove(subnet)
        new = [
            peer
            for peer in wanted.values()
            if (record := self._records.get(peer.subnet)) is None or record.peer != peer
        ]
        for peer in new:
            self._records[peer.subnet] = Record(
                peer, self._address(peer), Allowance(_ANSWERS_PER_SECOND, _ANSWERS_AT_ONCE)
            )
        pause = self._period
        for peer in new:  # not all at once
            self._turns.put(peer.subnet, now + self._rng.uniform(0, pause))

    def due(self, now: float) -> Iterator[Outgoing]:
        """Yield the questions whose time has come, as far as the budget goes."""
        while (first := self._turns.first()) is not None and first[0] <= now:
            subnet = first[1]
            record = self._records[subnet]
            record.settle(now)
            if record.pending:
                self._turns.put(subnet, record.asked_at + TIMEOUT)
            elif not record.wants_haste and now < record.next_at:
                self._turns.put(subnet, record.next_at)
            elif self._budget.wait(now) > 0:
                return
            else:
                questions = list(self._ask(record, now))
                self._pay(len(questions), now)
                self._turns.put(subnet, now + TIMEOUT + self._rng.uniform(0, TIMEOUT / 4))
                yield from questions

    def wait(self, now: float) -> float:
        """Return the seconds until `due` has something to do."""
        first = self._turns.first()
        if first is None:
            return self._interval
        return max(0.0, first[0] - now, self._budget.wait(now) if first[0] <= now else 0.0)

    def receive(self, data: bytes, sender: IPv4Address, now: float) -> Outgoing | None:
        """Take a datagram in, and return what to answer."""
        message = decode(data)
        if message is None:
            self.refused[Refusal.MALFORMED] += 1
            return None
        record = self._records.get(message.subnet)
        if record is None or sender not in {record.address, record.peer.node}:
            self.refused[Refusal.UNKNOWN_SENDER] += 1
            return None
        is_plain = sender != record.address
        if message.answers:
            record.hear(message, ours=self._here.token, is_plain=is_plain, now=now)
            return None
        if not record.answers.take(now):
            self.refused[Refusal.TOO_MANY] += 1
            return None
        record.hear(message, ours=self._here.token, is_plain=is_plain, now=now)
        answer = encode(self._message(record, answers=message.asked))
        return Outgoing(sender, answer, is_plain or not self._here.has_overlay)

    def echoed(self, reply: Reply, now: float) -> None:
        """Take the reply to an echo request in; those of others are not ours to judge.

        Who was asked once can send for another what it was sent, but not from its address.
        """
        token, subnet = decode_echo(reply.body) or (0, None)
        if token != self._here.token or subnet not in self._records:
            return
        record = self._records[subnet]
        if reply.sender == record.address:
            record.echoed(reply.number, now)
        else:
            self.refused[Refusal.UNKNOWN_SENDER] += 1

    def reaches(self, now: float) -> dict[IPv4Network, Reach]:
        """Return what is known of every peer."""
        pause = self._period
        return {subnet: record.reach(now, period=pause) for subnet, record in self._records.items()}

    @property
    def silent(self) -> frozenset[IPv4Network]:
        """Return the peers that do not answer."""
        return frozenset(subnet for subnet, record in self._records.items() if record.is_silent)

    @property
    def _period(self) -> float:
        questions = self._cost * len(self._records)
        return period(questions, interval=self._interval, rate=self._rate)

    def _pay(self, questions: int, now: float) -> None:
        self._budget.take(now, questions)
        self._cost += _COST_SMOOTHING * (questions - self._cost)
        self.sent += questions

    def _address(self, peer: Peer) -> IPv4Address:
        """Return where a peer is asked: in the overlay, if there is a device that has addresses."""
        return gateway_of(peer.subnet) if self._here.has_overlay else peer.node

    def _ask(self, record: Record, now: float) -> Iterator[Outgoing]:
        """Yield what begins a round: a silent peer's node is asked in plain besides."""
        pause = self._period
        record.next_at = now + spread(pause, self._rng)
        means = record.ask(now, period=pause)
        is_plain = not self._here.has_overlay
        if Means.PROBE in means:
            question = encode(self._message(record, answers=0))
            yield Outgoing(record.address, question, is_plain)
            if record.is_silent and not is_plain:
                yield Outgoing(record.peer.node, question, is_plain=True)
        if Means.ECHO in means:
            body = encode_echo(self._here.token, record.peer.subnet)
            yield Outgoing(record.address, body, is_plain, echo=record.rounds & 0xFFFF)

    def _message(self, record: Record, *, answers: int) -> Message:
        return Message(
            subnet=self._here.subnet,
            token=self._here.token,
            asked=record.asked,
            heard_token=record.token,
            newest=record.came.newest,
            came=record.came.bits,
            answers=answers,
        )
