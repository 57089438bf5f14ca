"""How fast pods on two nodes reach each other: bare, by the kernel's VXLAN, by routes, by Kersey.

All variants are up at once and measured in turn, each time another one first, so that whatever
else the machine does meets all alike; both ends of a load share one CPU. Run it as root in
namespaces of its own: `scripts/bench datapath`. Exits 1 if what should be fast was not.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from datapath_bench.figures import Load, Mode, Sample, Series, Table, Variant, rotated
from datapath_bench.loads import Loads
from datapath_bench.programs import flow_sizes, program_costs
from datapath_bench.report import Report, as_object, as_svg, as_text
from datapath_bench.variants import Layout
from testbed.signals import exit_on_signals, undisturbed_afterwards

_BEGAN = time.monotonic()
_Samples = Mapping[tuple[Load, Variant], Sequence[Sample]]


def say(what: str) -> None:
    """Tell on stderr how far it is."""
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {what}", file=sys.stderr, flush=True)


def measure_mode(loads: Loads, mode: Mode, *, rounds: int, seconds: float) -> list[Series]:
    """Return the samples of all loads over all variants in one mode."""
    samples: dict[tuple[Load, Variant], list[Sample]] = defaultdict(list)
    for number in range(rounds):
        for load in Load:
            say(f"{mode}, round {number + 1} of {rounds}: {load}")
            for variant in rotated(list(Variant), number):
                samples[load, variant].append(loads.measure(variant, load, seconds=seconds))
    return [Series(mode, load, variant, tuple(taken)) for (load, variant), taken in samples.items()]


def warm_up(loads: Loads) -> None:
    for variant in Variant:
        loads.warm_up(variant)


def run(*, cpu: int, rounds: int, seconds: float) -> Report:
    """Measure everything, from nothing to nothing."""
    say("starting two nodes for each variant")
    with Layout() as layout, Loads(layout.ways(), cpu=cpu) as loads, undisturbed_afterwards():
        warm_up(loads)
        strict = layout.sites[Variant.STRICT]
        series = measure_mode(loads, Mode.PLAIN, rounds=rounds, seconds=seconds)
        say("run time of the programs")
        costs = program_costs(loads, strict, seconds=seconds)
        say("restarting all daemons with rules")
        layout.set_mode(Mode.RULES)
        warm_up(loads)
        series += measure_mode(loads, Mode.RULES, rounds=rounds, seconds=seconds)
        say("entries in the flow map")
        flows = list(flow_sizes(loads, strict, rounds=min(rounds, 3), seconds=seconds))
    say("done")
    setting = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu,
        "rounds": rounds,
        "seconds": seconds,
    }
    return Report(setting, Table(tuple(series)), costs, flows)


def leave_alone(cpu: int) -> None:
    """Keep this process and the daemons that it starts off the CPU that is measured."""
    others = os.sched_getaffinity(0) - {cpu}
    if others:
        os.sched_setaffinity(0, others)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(prog="scripts/bench datapath", description=__doc__)
    options.add_argument("--rounds", type=int, default=5, help="default: 5")
    options.add_argument("--seconds", type=float, default=1.0, help="of each load; default: 1")
    options.add_argument("--quick", action="store_true", help="one round of one second")
    options.add_argument("--json", action="store_true", help="print a JSON object, not tables")
    options.add_argument("--svg", type=Path, metavar="FILE", help="write a plot, too")
    last = max(os.sched_getaffinity(0))
    options.add_argument("--cpu", type=int, default=last, help="for both ends; default: the last")
    return options


def main() -> int:
    """Measure and print; return the process's exit status."""
    arguments = parser().parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1.0
    exit_on_signals()
    leave_alone(arguments.cpu)
    report = run(cpu=arguments.cpu, rounds=arguments.rounds, seconds=arguments.seconds)
    print(json.dumps(as_object(report)) if arguments.json else as_text(report))
    if arguments.svg:
        arguments.svg.write_text(as_svg(report))
    for series in report.table.unproven:
        say(f"NOT FAST: {series.variant}, {series.load}, {series.mode}: {series.fast:.1%}")
    return 1 if report.table.unproven else 0


if __name__ == "__main__":
    sys.exit(main())
