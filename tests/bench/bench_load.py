"""Print what it takes to have the programs in the kernel: compiled, compiled earlier, adopted.

Run as root: `python tests/bench/bench_load.py`. Works in namespaces of its own. Every round does
all three for each kind of tunnel; figures are medians, ratios medians of the rounds' ratios.
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bpf_lab import NETWORK, private_bpffs, private_network
from kersey_loader.datapath import Settings, load
from kersey_loader.tunnel import TunnelKind

_ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds on the clock, and of CPU in this process and its child."""

    wall: float
    cpu: float


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _cost(settings: Settings) -> Cost:
    wall, cpu = time.perf_counter(), _cpu()
    load(settings).close()
    return Cost(time.perf_counter() - wall, _cpu() - cpu)


def _round(tunnel: TunnelKind) -> Iterator[tuple[str, Cost]]:
    with tempfile.TemporaryDirectory() as name:
        pins = Path(name, "pins")
        settings = Settings(pins, NETWORK, 24, tunnel=tunnel, cache=Path(name, "cache"))
        with private_bpffs(pins):
            yield "compiled", _cost(settings)
            yield "kept", _cost(replace(settings, directory=pins / "later"))
            yield "adopted", _cost(settings)


def main() -> int:
    """Measure and print."""
    with private_network():
        for tunnel in TunnelKind:
            rounds = [dict(_round(tunnel)) for _ in range(_ROUNDS)]
            for name in ("compiled", "kept", "adopted"):
                wall, cpu = (
                    statistics.median(getattr(each[name], what) for each in rounds)
                    for what in ("wall", "cpu")
                )
                part = statistics.median(each[name].cpu / each["compiled"].cpu for each in rounds)
                print(f"{tunnel!s:6} {name:9} {wall:6.3f} s, CPU {cpu:6.3f} s, {part:6.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
