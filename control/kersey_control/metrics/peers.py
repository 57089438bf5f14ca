"""The traffic of single peers as text in Prometheus' format, for the peers with most of it.

Written by hand: eight series a peer through the library's objects would take three times the CPU.
"""

import heapq
from collections.abc import Callable, Mapping

from kersey_loader.peers import Sums

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
