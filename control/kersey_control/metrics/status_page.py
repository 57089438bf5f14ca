"""The status page: what a browser shows of this node, and the JSON that it shows.

Read-only, for as long as `Status` is. Promises: nothing on it comes from another server, nothing in
it can run but its own script, and no secret is in it; whoever reaches the port can read it.
"""

import socket
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import msgspec
from kersey_loader.peers import Sums

from kersey_control.metrics.history import History, Sample
from kersey_control.metrics.readings import Reader
from kersey_control.metrics.resource import Resource
from kersey_control.status import Status
from kersey_control.status_socket import describe, describe_peers
from kersey_control.told import ToldOptions, ToldPeer, ToldStatus, encode
from kersey_control.verdicts import FORGED, SLOW, words_of

_FILES = Path(__file__).parent / "page"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Figures(msgspec.Struct, frozen=True):
    """Packets as on the wire, bytes of inner packets."""

    packets: int
    bytes: int


class PageTraffic(msgspec.Struct, frozen=True):
    """What went to and came from one peer, as `kersey peers --json` tells it."""

    fast_sent: Figures
    slow_sent: Figures
    fast_received: Figures
    slow_received: Figures


class PagePeer(ToldPeer, frozen=True):
    """A peer with its traffic; None where the fast path knows of none."""

    traffic: PageTraffic | None = None


class PageSample(msgspec.Struct, frozen=True):
    """The `seconds` that ended `seconds_ago`: traffic of all peers by path, forged by verdict."""

    seconds_ago: float
    seconds: float
    fast_packets: int
    slow_packets: int
    fast_bytes: int
    slow_bytes: int
    forged: Mapping[str, int]


class PageWords(msgspec.Struct, frozen=True):
    """What verdicts mean, by their names: why packets are slow, and what is wrong with senders."""

    slow: Mapping[str, str]
    forged: Mapping[str, str]


class PageState(msgspec.Struct, frozen=True):
    """All that the page shows; `history` is the last hour, the oldest first."""

    host: str
    status: ToldStatus
    peers: list[PagePeer]
    history: list[PageSample]
    words: PageWords


_WORDS = PageWords(slow=words_of(SLOW), forged=words_of(FORGED))
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}


def page_resources(
    status: Status, options: ToldOptions, reader: Reader, history: History
) -> dict[str, Resource]:
    """Return the page and its JSON by their paths."""
    parts = {f"/page/{file.name}": _constant(file) for file in sorted(_FILES.iterdir())}
    index = parts.pop("/page/index.html")
    state = partial(_state, status, options, reader, history)
    json = Resource(lambda: encode(state()), "application/json", _HEADERS)
    return {"/": index, "/status.json": json, **parts}


def _constant(file: Path) -> Resource:
    """Read a file once: what is served belongs together, also while Kersey is being upgraded."""
    content = file.read_bytes()
    return Resource(lambda: content, f"{_TYPES[file.suffix]}; charset=utf-8", _HEADERS)


def _state(status: Status, options: ToldOptions, reader: Reader, history: History) -> PageState:
    return PageState(
        host=socket.gethostname(),
        status=describe(status, options),
        peers=list(_peers(describe_peers(status), reader.read().peers or {})),
        history=list(_told(history.samples, now=time.monotonic())),
        words=_WORDS,
    )


def _peers(peers: list[ToldPeer], traffic: Mapping[str, Sums]) -> Iterator[PagePeer]:
    for peer in peers:
        sums = traffic.get(peer.subnet)
        yield PagePeer(
            **msgspec.structs.asdict(peer), traffic=None if sums is None else _traffic(sums)
        )


def _traffic(sums: Sums) -> PageTraffic:
    return PageTraffic(
        fast_sent=Figures(sums.fast_sent_packets, sums.fast_sent_bytes),
        slow_sent=Figures(sums.slow_sent_packets, sums.slow_sent_bytes),
        fast_received=Figures(sums.fast_received_packets, sums.fast_received_bytes),
        slow_received=Figures(sums.slow_received_packets, sums.slow_received_bytes),
    )


def _told(samples: tuple[Sample, ...], *, now: float) -> Iterator[PageSample]:
    for sample in samples:
        traffic = sample.traffic
        yield PageSample(
            seconds_ago=round(now - sample.at, 1),
            seconds=round(sample.seconds, 1),
            fast_packets=traffic.fast_sent_packets + traffic.fast_received_packets,
            slow_packets=traffic.slow_sent_packets + traffic.slow_received_packets,
            fast_bytes=traffic.fast_sent_bytes + traffic.fast_received_bytes,
            slow_bytes=traffic.slow_sent_bytes + traffic.slow_received_bytes,
            forged=sample.forged,
        )
