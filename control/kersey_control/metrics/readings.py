"""What a scrape reads from the fast path's maps, and sums over peers that never fall.

Reads beside the control loop and shares no lock with it. A map that cannot be read costs its own
part of a scrape, is counted, and nothing else.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from threading import Lock
from typing import TypeVar

from kersey_loader.errors import LoaderError
from kersey_loader.occupancy import Occupancy
from kersey_loader.peers import Sums

from kersey_control.reach import Reach
from kersey_control.status import Status

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Readings:
    """What one scrape found. None: no fast path, or a map that could not be read."""

    verdicts: Mapping[tuple[str, str], int] | None = None
    peers: Mapping[str, Sums] | None = None
    total: Sums | None = None
    occupancy: Occupancy | None = None
    reaches: Mapping[IPv4Network, Reach] | None = None
    """None: no probes are sent, or they cannot be."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """How often reading each part failed so far."""


class Totals:
    """Add the peers up, from the first look on, so that no peer that goes takes anything away.

    A counter that began again, as that of a peer that went and came back, goes on counting. What a
    peer carried between the last look and its going is lost.
    """

    def __init__(self) -> None:
        self._peers: Mapping[str, Sums] = {}
        self._gone = Sums()
        self._first: Sums | None = None

    def update(self, peers: Mapping[str, Sums]) -> Sums:
        """Return the traffic of all peers there were since the first call."""
        ended = [
            before
            for subnet, before in self._peers.items()
            if (now := peers.get(subnet)) is None or now.packets < before.packets
        ]
        self._peers = peers
        self._gone = _sum([self._gone, *ended])
        everything = _sum([self._gone, *peers.values()])
        if self._first is None:
            self._first = everything
        return Sums(*(now - first for now, first in zip(everything, self._first, strict=True)))


class Reader:
    """Read what `Status` gives access to, for as long as it does. Any number of threads."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._totals = Totals()
        self._failures = Counter({"verdicts": 0, "traffic": 0, "occupancy": 0})
        self._occupancy: Occupancy | None = None
        self._lock = Lock()

    def read(self) -> Readings:
        """Return what the maps say now, and how full they were at the last `count`."""
        with self._lock:
            verdicts = self._attempt("verdicts", self._status.verdicts)
            peers = self._attempt("traffic", self._status.traffic)
            reach = self._status.reach
            return Readings(
                reaches=None if reach is None or self._status.probes_trouble else reach(),
                verdicts=verdicts,
                peers=peers,
                total=None if peers is None else self._totals.update(peers),
                occupancy=self._occupancy,
                failures=dict(self._failures),
            )

    def count(self) -> None:
        """Read the maps through for how full they are; the longer, the fuller. One at a time."""
        self._occupancy = self._attempt("occupancy", self._status.occupancy)

    def _attempt(self, part: str, read: Callable[[], _T] | None) -> _T | None:
        try:
            return None if read is None else read()
        except (LoaderError, OSError) as error:
            self._failures[part] += 1
            logger.debug("map not read", extra={"part": part, "reason": str(error)})
            return None


def _sum(traffics: list[Sums]) -> Sums:
    return Sums(*map(sum, zip(*traffics, strict=True)))
