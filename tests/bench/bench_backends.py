"""How fast pods on two nodes reach each other by each backend, without and with Kersey's programs.

All variants are up at once and measured in turn, each time another one first, so that whatever
else the machine does meets all alike; both ends of a load share one CPU.

vxlan and host-gw without programs are the kernel's. udp without programs is the daemons' pump, and
so is ipip where the kernel has no ipip device; the row's name says which. The pump threads are the
daemons' own, and daemons run on all CPUs but the one that is measured. So a pump row has the work
of two CPUs or more where every other row has one; but where there are only two CPUs, the pumps of
both nodes share the other one. A pump row has no CPU time per packet for that reason.

Run it as root in namespaces of its own: `scripts/bench backends`. Exits 1 if what should be fast
was not; goals that are missed are only told.
"""

import argparse
import sys

from datapath_bench.backends import ASKED_FOR, LOADS, comparisons, goals
from datapath_bench.figures import Carrier, Mode, Table, Variant
from datapath_bench.goals import judge
from datapath_bench.loads import Loads
from datapath_bench.report import Report
from datapath_bench.run import (
    begin,
    measure_mode,
    parser,
    publish,
    say,
    setting,
    warm_up,
)
from datapath_bench.variants import Layout
from testbed.signals import undisturbed_afterwards

_PUMP_NOTE = "pump: the daemons' threads, on the CPUs that are not measured, both nodes' together"


def run(arguments: argparse.Namespace) -> Report:
    """Measure everything, from nothing to nothing."""
    mode = Mode.RULES if arguments.rules else Mode.PLAIN
    say("starting two nodes for each variant")
    with (
        Layout(ASKED_FOR, mode) as layout,
        Loads(layout.ways(), cpu=arguments.cpu, patience=arguments.patience, kinds=LOADS) as loads,
        undisturbed_afterwards(),
    ):
        warm_up(loads)
        series = measure_mode(loads, mode, rounds=arguments.rounds, seconds=arguments.seconds)
        variants = loads.variants
    say("done")
    table = Table(tuple(series))
    return Report(
        setting(arguments),
        table,
        comparisons(variants),
        goals=[judge(goal, table, mode) for goal in goals(variants)],
        notes=_notes(variants),
    )


def _notes(variants: list[Variant]) -> list[str]:
    has_pump = any(variant.carrier is Carrier.PUMP for variant in variants)
    return [_PUMP_NOTE] if has_pump else []


def main() -> int:
    """Measure and print; return the process's exit status."""
    options = parser("backends", __doc__)
    options.add_argument("--rules", action="store_true", help="with flannel's rules on all nodes")
    arguments = begin(options, quick=0.5)
    return publish(run(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
