"""Single peers as text in Prometheus' format: traffic of the busiest, probes of the worst.

Written by hand: eight series a peer through the library's objects would take three times the CPU.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network

from kersey_loader.peers import Sums

from kersey_control.reach import Answering, Reach

_WAYS = (("sent", "fast"), ("sent", "slow"), ("received", "fast"), ("received", "slow"))


def busiest(peers: Mapping[str, Sums], most: int) -> list[tuple[str, Sums]]:
    """Return the `most` peers with the most bytes, the busiest first."""
    return heapq.nlargest(most, peers.items(), key=lambda item: (item[1].bytes, item[0]))


def peer_text(peers: Mapping[str, Sums], most: int) -> str:
    """Return two counters by peer, direction and path, and how many peers they leave out."""
    listed = [(_labels(subnet), traffic) for subnet, traffic in busiest(peers, most)]
    packets = _family(
        "kersey_peer_packets_total",
        "Tunnel packets to and from one peer, as on the wire, by its subnet",
        listed,
        lambda traffic: traffic[::2],
    )
    size = _family(
        "kersey_peer_bytes_total",
        "Bytes of IP packets to and from one peer, without the tunnel's headers, by its subnet",
        listed,
        lambda traffic: traffic[1::2],
    )
    return packets + size + _unlisted(len(peers) - len(listed))


def worst(reaches: Mapping[IPv4Network, Reach], most: int) -> list[tuple[IPv4Network, Reach]]:
    """Return `most` peers: silent ones first, then those with the greatest loss."""
    return heapq.nsmallest(most, reaches.items(), key=_badness)


def _badness(item: tuple[IPv4Network, Reach]) -> tuple[bool, float, IPv4Network]:
    subnet, reach = item
    return reach.answering is not Answering.SILENT, -(reach.loss or 0.0), subnet


def reach_text(reaches: Mapping[IPv4Network, Reach], most: int) -> str:
    """Return three gauges by peer, as far as they are known."""
    answering, trips, losses = [], [], []
    for subnet, reach in worst(reaches, most):
        peer = f'peer="{subnet}"'
        if reach.answering is not Answering.UNKNOWN:
            answering.append((peer, int(reach.answering is Answering.ANSWERS)))
        trips.append((peer, reach.round_trip))
        losses.append((f'{peer},direction="out"', reach.loss_out))
        losses.append((f'{peer},direction="in"', reach.loss_in))
        losses.append((f'{peer},direction="both"', reach.loss))
    return (
        _gauge("kersey_peer_answering", "1 for a peer that answers probes, else 0", answering)
        + _gauge(
            "kersey_peer_round_trip_seconds", "Smoothed time until a peer's answer comes", trips
        )
        + _gauge(
            "kersey_peer_loss_ratio",
            "Share of a peer's last 32 probes that was lost; both is of whole round trips",
            losses,
        )
    )


def _gauge(name: str, documentation: str, samples: Iterable[tuple[str, float | None]]) -> str:
    lines = [f"{name}{{{labels}}} {value}\n" for labels, value in samples if value is not None]
    return f"# HELP {name} {documentation}\n# TYPE {name} gauge\n{''.join(lines)}"


def _unlisted(count: int) -> str:
    name = "kersey_peers_unlisted"
    documentation = "Peers without counters of their own, since others carry more traffic"
    return f"# HELP {name} {documentation}\n# TYPE {name} gauge\n{name} {count}\n"


def _labels(peer: str) -> tuple[str, ...]:
    return tuple(
        f'{{peer="{peer}",direction="{direction}",path="{path}"}}' for direction, path in _WAYS
    )


def _family(
    name: str,
    documentation: str,
    peers: list[tuple[tuple[str, ...], Sums]],
    counts: Callable[[Sums], tuple[int, ...]],
) -> str:
    lines = [
        f"{name}{labels} {count}\n"
        for all_labels, traffic in peers
        for labels, count in zip(all_labels, counts(traffic), strict=True)
    ]
    return f"# HELP {name} {documentation}\n# TYPE {name} counter\n{''.join(lines)}"
