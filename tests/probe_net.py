"""A network of books of probes: time and loss are given, datagrams are delivered at once."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from kersey_control.echo import Reply
from kersey_control.peer import Peer, Via
from kersey_control.probes.book import Book, Here, Outgoing
from kersey_control.reach import Reach

STEP = 0.05
ROUND_TRIP = 0.002
_numbers = random.Random(1)

Link = tuple[int, int]
"""From which node to which."""


def subnet_of(number: int) -> IPv4Network:
    return IPv4Network((int(IPv4Address("10.244.0.0")) + (number << 8), 24))


def node_of(number: int) -> IPv4Address:
    return IPv4Address("198.18.0.0") + number


def peer_of(number: int, via: Via = Via.VXLAN) -> Peer:
    return Peer(subnet_of(number), node_of(number), via)


def new_book(
    number: int, *, interval: float = 5.0, rate: float = 20.0, has_overlay: bool = True
) -> Book:
    here = Here(subnet_of(number), has_overlay=has_overlay, token=_numbers.getrandbits(64) | 1)
    return Book(here, interval=interval, rate=rate, rng=random.Random(number))


@dataclass
class Net:
    """Nodes by number: those with a book run a daemon, all others have a kernel alone."""

    books: dict[int, Book]
    nodes: set[int] = field(default_factory=set)
    """All; the kernels of those that are up answer echo."""
    down: set[int] = field(default_factory=set)
    tunnel: Callable[[Link], bool] = lambda _link: True
    """Whether the tunnel carries packets."""
    plain: Callable[[Link], bool] = lambda _link: True
    """Whether nodes reach each other's probe port past it."""
    now: float = 1000.0
    carried: Counter[Link] = field(default_factory=Counter)

    def meet(self) -> None:
        """Have every book follow all other nodes."""
        self.nodes |= set(self.books)
        for number, book in self.books.items():
            book.follow([peer_of(other) for other in self.nodes if other != number], self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for number, book in self.books.items():
                for question in list(book.due(self.now)):
                    self._carry(number, question)
            self.now += STEP

    def reach(self, number: int, other: int) -> Reach:
        return self.books[number].reaches(self.now)[subnet_of(other)]

    def _carry(self, source: int, sent: Outgoing) -> None:
        inside = int(sent.to) - int(subnet_of(0)[0])
        target = inside >> 8 if inside < 1 << 20 else int(sent.to) - int(node_of(0))
        by = self.plain if sent.is_plain else self.tunnel
        self.carried[source, target] += 1
        if not by((source, target)) or self.down & {source, target}:
            return
        if sent.echo is not None:
            if by((target, source)):
                reply = Reply(sent.to, 1, sent.echo, sent.data)
                self.books[source].echoed(reply, self.now + ROUND_TRIP)
        elif target in self.books:
            sender = node_of(source) if sent.is_plain else subnet_of(source)[0]
            answer = self.books[target].receive(sent.data, sender, self.now + ROUND_TRIP)
            if answer is not None:
                assert len(answer.data) == len(sent.data)
                self._carry(target, answer)
