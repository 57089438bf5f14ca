"""Print how long peers take to reach the kernel: all at once, one by one, and to be audited.

Run as root: `python tests/bench/bench_bulk.py`. Works in a namespace of its own; exits 1 if a
figure is beyond its limit. Single events are the median of 200.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vxlan_lab import Lab, open_lab, peer

_LIMITS = {
    "1000 peers, first snapshot": 0.1,
    "10000 peers, first snapshot": 0.5,
    "10000 peers, one event": 0.002,
}
_EVENTS = 200


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _single_put(lab: Lab, count: int) -> float:
    """Return the median of putting a peer anew, each with another MAC."""
    changed = [peer(number, mac=peer(count + number).mac) for number in range(1, _EVENTS + 1)]
    return statistics.median(_seconds(partial(lab.forwarding.put, each, 0.0)) for each in changed)


def _measure(count: int) -> dict[str, float]:
    peers = [peer(number) for number in range(1, count + 1)]
    with open_lab() as lab:
        lab.ready()
        forwarding = lab.forwarding
        figures = {
            f"{count} peers, first snapshot": _seconds(lambda: forwarding.set_peers(peers, 0.0)),
            f"{count} peers, audit": _seconds(lambda: forwarding.audit(0.0)),
            f"{count} peers, one event": _single_put(lab, count),
        }
        lab.restart()
        lab.ready()
        restarted = lab.forwarding
        figures[f"{count} peers, after restart"] = _seconds(lambda: restarted.set_peers(peers, 0.0))
        figures[f"{count} peers, all removed"] = _seconds(lambda: restarted.set_peers([], 0.0))
    return figures


def main() -> int:
    """Measure and print; return the process's exit status."""
    figures = {**_measure(1_000), **_measure(10_000)}
    for name, seconds in figures.items():
        limit = _LIMITS.get(name)
        note = f"  (limit {limit * 1e3:g} ms)" if limit else ""
        print(f"{name:30} {seconds * 1e3:9.2f} ms{note}")
    late = [name for name, limit in _LIMITS.items() if figures[name] > limit]
    for name in late:
        print(f"beyond its limit: {name}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
