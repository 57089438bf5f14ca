"""One run of a benchmark: its command line, its rounds, and what is printed at the end.

Promises: another variant comes first in each round; only the loads run on the measured CPU, as far
as there is another one for everything else.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from testbed.signals import exit_on_signals

from datapath_bench.figures import Load, Mode, Sample, Series, Variant, rotated
from datapath_bench.loads import Loads
from datapath_bench.report import Report, as_object, as_svg, as_text

_PATIENCE, _QUICK_PATIENCE = 2.0, 0.5
"""Seconds that a measurement waits for a quiet machine."""

_BEGAN = time.monotonic()


def say(what: str) -> None:
    """Tell on stderr how far it is."""
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {what}", file=sys.stderr, flush=True)


def measure_mode(loads: Loads, mode: Mode, *, rounds: int, seconds: float) -> list[Series]:
    """Return the samples of all loads over all variants in one mode."""
    samples: dict[tuple[Load, Variant], list[Sample]] = defaultdict(list)
    for number in range(rounds):
        for load in loads.kinds:
            say(f"{mode}, round {number + 1} of {rounds}: {load}")
            for variant in rotated(loads.variants, number):
                samples[load, variant].append(loads.measure(variant, load, seconds=seconds))
    return [Series(mode, load, variant, tuple(taken)) for (load, variant), taken in samples.items()]


def warm_up(loads: Loads) -> None:
    """Have every variant carry a little of everything."""
    for variant in loads.variants:
        loads.warm_up(variant)


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the command line that all datapath benchmarks have."""
    options = argparse.ArgumentParser(
        prog=f"scripts/bench {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--rounds", type=int, default=5, help="default: 5")
    options.add_argument("--seconds", type=float, default=1.0, help="of each load; default: 1")
    options.add_argument("--quick", action="store_true", help="one round, rough figures")
    options.add_argument("--json", action="store_true", help="print a JSON object, not tables")
    options.add_argument("--svg", type=Path, metavar="FILE", help="write a plot, too")
    last = max(os.sched_getaffinity(0))
    options.add_argument("--cpu", type=int, default=last, help="for both ends; default: the last")
    return options


def begin(options: argparse.ArgumentParser, *, quick: float) -> argparse.Namespace:
    """Read the command line and make this process ready; `quick` is --quick's --seconds."""
    arguments = options.parse_args()
    arguments.patience = _PATIENCE
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.patience = 1, quick, _QUICK_PATIENCE
    exit_on_signals()
    _leave_alone(arguments.cpu)
    return arguments


def _leave_alone(cpu: int) -> None:
    """Keep this process and the daemons that it starts off the CPU that is measured."""
    others = os.sched_getaffinity(0) - {cpu}
    if others:
        os.sched_setaffinity(0, others)


def setting(arguments: argparse.Namespace) -> Mapping[str, object]:
    """Return what a reader must know of machine and command line."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": arguments.cpu,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    }


def publish(report: Report, arguments: argparse.Namespace) -> int:
    """Print the report, plot it if asked to; return the process's exit status."""
    print(json.dumps(as_object(report)) if arguments.json else as_text(report))
    if arguments.svg:
        arguments.svg.write_text(as_svg(report))
    for series in report.table.unproven:
        say(f"NOT FAST: {series.variant.name}, {series.load}, {series.mode}: {series.fast:.1%}")
    return 1 if report.table.unproven else 0
