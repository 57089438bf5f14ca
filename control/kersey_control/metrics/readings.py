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
from typing import NamedTuple, TypeVar

from kersey_loader.datapath import PeerTraffic
from kersey_loader.errors import LoaderError
from kersey_loader.occupancy import Occupancy

from kersey_control.status import Status

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class Traffic(NamedTuple):
    """Packets as on the wire and bytes of inner packets, by direction and path."""

    fast_sent_packets: int = 0
    fast_sent_bytes: int = 0
    slow_sent_packets: int = 0
    slow_sent_bytes: int = 0
    fast_received_packets: int = 0
    fast_received_bytes: int = 0
    slow_received_packets: int = 0
    slow_received_bytes: int = 0

    @classmethod
    def of(cls, peer: PeerTraffic) -> "Traffic":
        """Return a peer's counts side by side."""
        return cls(
            *(peer.fast_sent.packets, peer.fast_sent.bytes),
            *(peer.slow_sent.packets, peer.slow_sent.bytes),
            *(peer.fast_received.packets, peer.fast_received.bytes),
            *(peer.slow_received.packets, peer.slow_received.bytes),
        )

    @property
    def packets(self) -> int:
        """Return all packets, whatever their way."""
        return sum(self[::2])

    @property
    def bytes(self) -> int:
        """Return all bytes, whatever their way."""
        return sum(self[1::2])


@dataclass(frozen=True, slots=True)
class Readings:
    """What one scrape found. None: no fast path, or a map that could not be read."""

    verdicts: Mapping[tuple[str, str], int] | None = None
    peers: Mapping[IPv4Network, Traffic] | None = None
    total: Traffic | None = None
    occupancy: Occupancy | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    """How often reading each part failed so far."""


class Totals:
    """Add the peers up, from the first look on, so that no peer that goes takes anything away.

    A counter that began again, as that of a peer that went and came back, goes on counting. What a
    peer carried between the last look and its going is lost.
    """

    def __init__(self) -> None:
        self._peers: Mapping[IPv4Network, Traffic] = {}
        self._gone = Traffic()
        self._first: Traffic | None = None

    def update(self, peers: Mapping[IPv4Network, Traffic]) -> Traffic:
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
        return Traffic(*(now - first for now, first in zip(everything, self._first, strict=True)))


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
            traffic = self._attempt("traffic", self._status.traffic)
            peers = None
            if traffic is not None:
                peers = {subnet: Traffic.of(counts) for subnet, counts in traffic.items()}
            return Readings(
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


def _sum(traffics: list[Traffic]) -> Traffic:
    return Traffic(*map(sum, zip(*traffics, strict=True)))
