"""Single packets as the programs tell of them, live: which they are, what became of them, and why.

One watcher at a time for a network's maps. The programs tell nothing beyond a rate, and forget the
watcher five seconds after its last sign of life, however it ended. Changes no packet's fate.
"""

import ctypes
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from kersey_loader import layout
from kersey_loader.errors import LoaderError
from kersey_loader.layout import Budget, Event, Program, Verdict
from kersey_loader.ring import Ring
from kersey_loader.view import View

ANYWHERE = IPv4Network("0.0.0.0/0")

_LIFE = 5.0
_SIGN_OF_LIFE = 1.0
_NANO = 1_000_000_000
_KEY = bytes(4)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which packets to be told of: those that end in a program, and those that go on.

    One of a packet's addresses, of the tunnel's or the inner ones, is in `within`. `rate` is in
    packets a second on each CPU; so many may come at once.
    """

    dropped: frozenset[Verdict]
    passed: frozenset[Verdict]
    within: IPv4Network = ANYWHERE
    rate: int = 20


@dataclass(frozen=True, slots=True)
class Told:
    """One packet; `time` in seconds since the epoch, `length` in bytes with its link header.

    `source` and `destination` are the inner packet's, the outer ones those of its tunnel. What is
    not known is None: a tunnel that there is none of, addresses that a fragment hides, ports of
    other than TCP and UDP. `device` is the ifindex of where it was seen.
    """

    time: float
    program: Program
    verdict: Verdict
    dropped: bool
    outer_source: IPv4Address | None
    outer_destination: IPv4Address | None
    source: IPv4Address | None
    destination: IPv4Address | None
    protocol: int | None
    source_port: int | None
    destination_port: int | None
    length: int
    device: int


@contextmanager
def open_watch(view: View, wanted: Wanted) -> Iterator["Watch"]:
    """Watch what is pinned. Raises LoaderError if somebody does already; BpfError."""
    with _alone(view), Ring(view.maps["events"]) as ring:
        ring.clear()  # what a watcher that was killed did not take
        watch = Watch(view, ring, wanted)
        try:
            watch.sign()
            yield watch
        finally:
            view.maps["watches"].update(_KEY, bytes(layout.Watch()))


class Watch:
    """What the programs tell, until the context ends."""

    def __init__(self, view: View, ring: Ring, wanted: Wanted) -> None:
        self._view = view
        self._ring = ring
        self._wanted = wanted
        self._signed = 0.0
        budgets = view.maps["budgets"]
        budgets.update(_KEY, bytes(Budget()) * budgets.cpus)

    @property
    def hidden(self) -> int:
        """Return how many packets the programs have not told of, beyond the rate or for room."""
        cells = self._view.maps["budgets"].lookup(_KEY) or b""
        starts = range(0, len(cells), ctypes.sizeof(Budget))
        return sum(Budget.from_buffer_copy(cells, start).hidden for start in starts)

    def sign(self) -> None:
        """Have the programs go on telling. Raises LoaderError once the maps are not in use."""
        if not self._view.home.exists():
            raise LoaderError(f"{self._view.home} is gone: the programs were replaced or removed")
        wanted, clock = self._wanted, self._view.clock()
        entry = layout.Watch(
            until=clock.jiffies + round(_LIFE * clock.hertz),
            dropped=_bits(wanted.dropped),
            passed=_bits(wanted.passed),
            interval=_NANO // wanted.rate,
            network=int(wanted.within.network_address),
            mask=int(wanted.within.netmask),
            watcher=os.getpid(),
        )
        self._view.maps["watches"].update(_KEY, bytes(entry))
        self._signed = time.monotonic()

    def packets(self, seconds: float) -> Iterator[Told]:
        """Yield what was told, waiting up to `seconds` and no longer than a second for the first.

        Raises LoaderError once the maps are not in use, BpfError.
        """
        if time.monotonic() - self._signed >= _SIGN_OF_LIFE:
            self.sign()
        self._ring.wait(min(seconds, _SIGN_OF_LIFE))
        boot = time.time() - time.monotonic()
        for record in self._ring.take():
            yield _told(Event.from_buffer_copy(record), boot)


@contextmanager
def _alone(view: View) -> Iterator[None]:
    """Hold the maps' directory, which goes with the process however it ends."""
    lock = _lock(view.home)
    if lock is None:
        entry = layout.Watch.from_buffer_copy(view.maps["watches"].lookup(_KEY) or b"")
        raise LoaderError(f"process {entry.watcher} is watching already, and only one can")
    try:
        yield
    finally:
        os.close(lock)


def _lock(directory: Path) -> int | None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _bits(verdicts: Iterable[Verdict]) -> int:
    return sum(1 << verdict for verdict in verdicts)


def _told(event: Event, boot: float) -> Told:
    return Told(
        time=boot + event.time / _NANO,
        program=Program(event.program),
        verdict=Verdict(event.verdict),
        dropped=bool(event.dropped),
        outer_source=_address(event.outer_src),
        outer_destination=_address(event.outer_dst),
        source=_address(event.src),
        destination=_address(event.dst),
        protocol=event.protocol or None,
        source_port=int.from_bytes(bytes(event.src_port), "big") or None,
        destination_port=int.from_bytes(bytes(event.dst_port), "big") or None,
        length=int(event.length),
        device=int(event.ifindex),
    )


def _address(raw: Iterable[int]) -> IPv4Address | None:
    packed = bytes(raw)
    return IPv4Address(packed) if any(packed) else None
