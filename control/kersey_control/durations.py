"""How long things took, as Prometheus counts it: by kind, in buckets. No library, no locks.

One thread writes; others read, and see each kind as it was before or after an observation, never
half of one.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets in seconds, each included in its own; one more is beyond them."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What was observed of one kind: how often, by bucket, and how many seconds together."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    seconds: float = 0.0

    def plus(self, seconds: float) -> "Tally":
        """Return the tally with one more observation."""
        at = bisect_left(BOUNDS, seconds)
        counts = (*self.counts[:at], self.counts[at] + 1, *self.counts[at + 1 :])
        return Tally(counts, self.seconds + seconds)


class Durations:
    """Tallies by kind."""

    def __init__(self) -> None:
        self._tallies: Mapping[str, Tally] = MappingProxyType({})

    @property
    def tallies(self) -> Mapping[str, Tally]:
        """Return the tallies as of now; they do not change afterwards."""
        return self._tallies

    def observe(self, kind: str, seconds: float) -> None:
        """Count one that took so long."""
        tally = self._tallies.get(kind, Tally()).plus(seconds)
        self._tallies = MappingProxyType({**self._tallies, kind: tally})
