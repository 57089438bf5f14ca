"""The last hour of the fast path: what went by it, what did not, and whose senders were refused.

Bounded, whatever happens. Keeps differences of what `Readings` say, so that a reading that failed
makes one sample longer and none wrong.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from kersey_loader.peers import Sums

from kersey_control.metrics.readings import Readings
from kersey_control.verdicts import FORGED, name_of

MOST = 360
"""Samples; an hour of them, as the maps are looked at every ten seconds."""

_SHORTEST = 5.0
"""Seconds: looks that follow each other faster are one sample."""

_FORGED = frozenset(map(name_of, FORGED))


@dataclass(frozen=True, slots=True)
class Sample:
    """What went to and came from all peers in the `seconds` before `at`, both monotonic.

    `forged` are packets by the sender check's verdict, whether dropped or only counted.
    """

    at: float
    seconds: float
    traffic: Sums
    forged: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    total: Sums
    forged: Counter[str]


class History:
    """Gather samples. One thread adds, any number read."""

    def __init__(self) -> None:
        self._last: _Look | None = None
        self._samples: tuple[Sample, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Return what there is, the oldest first."""
        return self._samples

    def add(self, readings: Readings, now: float) -> None:
        """Take note of one reading at `now`, monotonic; of none where a map could not be read."""
        if readings.total is None or readings.verdicts is None:
            return
        last = self._last
        if last is not None and now - last.at < _SHORTEST:
            return
        self._last = _Look(now, readings.total, _forged(readings.verdicts))
        if last is not None:
            sample = _between(last, self._last)
            self._samples = (*self._samples[1 - MOST :], sample)


def _forged(verdicts: Mapping[tuple[str, str], int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (_, verdict), count in verdicts.items():
        if verdict in _FORGED:
            counts[verdict] += count
    return counts


def _between(before: _Look, after: _Look) -> Sample:
    pairs = zip(after.total, before.total, strict=True)
    return Sample(
        at=after.at,
        seconds=after.at - before.at,
        traffic=Sums(*(now - was for now, was in pairs)),
        forged=dict(after.forged - before.forged),  # a Counter's difference has no negative counts
    )
