"""Print what pods leave behind that CNI plugins add and delete, 500 in each mode by default.

Run as root: `scripts/bench pods [COUNT]`. Real plugins and daemons, two nodes as namespaces; each
pod opens a connection to a pod of the other node. Exits 1 if anything but memory has grown, or the
daemon's memory by more than 4 MiB.
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cni_churn import Footprint, churn, resident_kb
from cni_lab import CniNode, cni_nodes, names_told
from testbed import Cluster, wait_until

_WARM_UP = 20
_MEMORY_LIMIT_KIB = 4096
_DEFAULT_COUNT = 500


def _footprint(each: CniNode) -> Footprint:
    wait_until(lambda: not each.dead_links, timeout=10, what="links of gone ports are removed")
    return Footprint.of(each)


def _measure(mode: str, count: int) -> bool:
    """Print the figures of one mode; return whether nothing was left behind."""
    with (
        Cluster(prefix=f"pods{mode[0]}-") as cluster,
        cni_nodes(cluster, f"--cni-mode={mode}") as (one, two),
    ):
        target = two.add("target")
        with names_told(target, 80):
            churn(one, target, _WARM_UP)
            before, memory = _footprint(one), resident_kb(one)
            start = time.monotonic()
            churn(one, target, count, first=_WARM_UP)
            seconds = time.monotonic() - start
        after, grown = _footprint(one), resident_kb(one) - memory
    print(f"{mode}: {count} pods in {seconds:.0f} s; daemon {memory} KiB, grown by {grown} KiB")
    left = {name: (old, new) for name, old, new in _pairs(before, after) if old != new}
    print(f"  left behind: {left or 'nothing'}")
    return not left and grown <= _MEMORY_LIMIT_KIB


def _pairs(before: Footprint, after: Footprint) -> list[tuple[str, int, int]]:
    return [(name, value, asdict(after)[name]) for name, value in asdict(before).items()]


def main() -> int:
    """Measure and print; return the process's exit status."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else _DEFAULT_COUNT
    results = [_measure(mode, count) for mode in ("bridge", "routed")]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
