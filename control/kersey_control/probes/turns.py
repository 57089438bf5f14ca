"""Whose turn it is to be looked at, and how often a peer is asked. Pure; time is given."""

import heapq
import random
from ipaddress import IPv4Network

_SPREAD = 0.2
"""By how much of itself a pause is shorter or longer, so that nodes do not ask in step."""

_ROOM = 0.9
"""The part of the budget that the regular questions may take; the rest is for asking again."""


def period(questions: float, *, interval: float, rate: float) -> float:
    """Return the seconds from asking a peer to asking it again: more where there are many.

    `questions` is how many it takes to ask all peers once.
    """
    return max(interval, questions / (rate * _ROOM))


def spread(pause: float, rng: random.Random) -> float:
    """Return the pause, a little shorter or longer."""
    return pause * rng.uniform(1 - _SPREAD, 1 + _SPREAD)


class Turns:
    """When each peer is due, the earliest first."""

    def __init__(self) -> None:
        self._due: dict[IPv4Network, float] = {}
        self._heap: list[tuple[float, IPv4Network]] = []

    def put(self, subnet: IPv4Network, due: float) -> None:
        """Have a peer's turn at that time, and not at another."""
        self._due[subnet] = due
        heapq.heappush(self._heap, (due, subnet))

    def remove(self, subnet: IPv4Network) -> None:
        """Forget a peer."""
        self._due.pop(subnet, None)

    def first(self) -> tuple[float, IPv4Network] | None:
        """Return who is due first, and when; None where there is nobody."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None
