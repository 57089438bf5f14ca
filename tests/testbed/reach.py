"""Who reaches whom, by ICMP echo from inside the pods."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import permutations

from testbed.namespace import Namespace
from testbed.node import Pod

_AT_ONCE = 8
_ROUND_TRIP = re.compile(r"time=([\d.]+) ms")


@dataclass(frozen=True, slots=True)
class Reach:
    """What one ordered pair answered: the round trip in milliseconds, None for no answer."""

    source: Pod
    destination: Pod
    rtt_ms: float | None


def ordered_pairs(pods: Sequence[Pod]) -> list[tuple[Pod, Pod]]:
    """Return each pod with each other one, in both directions."""
    return list(permutations(pods, 2))


def ping(
    namespace: Namespace, address: IPv4Address, *options: str, timeout: int = 2
) -> float | None:
    """Return the round trip of the first answered echo in ms, None if `timeout` seconds pass.

    It asks five times a second, so that one lost packet does not decide. `options` go to ping.
    """
    command = ["ping", "-n", "-c", "1", "-i", "0.2", "-w", str(timeout), *options, str(address)]
    done = namespace.run(*command, check=False, timeout=timeout + 10)
    found = _ROUND_TRIP.search(done.stdout)
    return float(found[1]) if found and done.returncode == 0 else None


def reachability(pairs: Iterable[tuple[Pod, Pod]], *, timeout: int = 5) -> list[Reach]:
    """Ping all `pairs`, some at a time, and return one result for each, in their order."""

    def probe(pair: tuple[Pod, Pod]) -> Reach:
        source, destination = pair
        rtt = ping(source.namespace, destination.address, timeout=timeout)
        return Reach(source, destination, rtt)

    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        return list(pool.map(probe, pairs))
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted, it waits only for pings under way
