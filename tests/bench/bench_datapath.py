"""How fast pods on two nodes reach each other: bare, by the kernel's VXLAN, by routes, by Kersey.

All variants are up at once and measured in turn, each time another one first, so that whatever
else the machine does meets all alike; both ends of a load share one CPU. Run it as root in
namespaces of its own: `scripts/bench datapath`. Exits 1 if what should be fast was not.
"""

import argparse
import sys

from datapath_bench.figures import (
    BARE,
    DIRECT,
    HOST_GW,
    STRICT,
    VXLAN,
    Comparison,
    Load,
    Mode,
    Table,
)
from datapath_bench.loads import Loads
from datapath_bench.programs import FLOW_LOAD, flow_sizes, program_costs
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

_OVERLAYS = (VXLAN, HOST_GW, STRICT, DIRECT)
_LOADS = {load.name.lower().replace("_", "-"): load for load in Load}
_COMPARISONS = (
    Comparison("bare", dict.fromkeys((BARE, *_OVERLAYS), BARE)),
    Comparison("vxlan", dict.fromkeys((BARE, *_OVERLAYS), VXLAN)),
)


def run(arguments: argparse.Namespace) -> Report:
    """Measure everything, from nothing to nothing."""
    rounds, seconds = arguments.rounds, arguments.seconds
    say("starting two nodes for each variant")
    with (
        Layout(_OVERLAYS) as layout,
        Loads(
            layout.ways(), cpu=arguments.cpu, patience=arguments.patience, kinds=arguments.loads
        ) as loads,
        undisturbed_afterwards(),
    ):
        warm_up(loads)
        strict = layout.sites[STRICT]
        series = measure_mode(loads, Mode.PLAIN, rounds=rounds, seconds=seconds)
        say("run time of the programs")
        costs = program_costs(loads, strict, rounds=rounds, seconds=seconds)
        say("restarting all daemons with rules")
        layout.set_mode(Mode.RULES)
        warm_up(loads)
        series += measure_mode(loads, Mode.RULES, rounds=rounds, seconds=seconds)
        flows = []
        if FLOW_LOAD in loads.kinds:
            say("entries in the flow map")
            flows = list(flow_sizes(loads, strict, rounds=min(rounds, 3), seconds=seconds))
    say("done")
    return Report(setting(arguments), Table(tuple(series)), _COMPARISONS, costs, flows)


def main() -> int:
    """Measure and print; return the process's exit status."""
    options = parser("datapath", __doc__)
    options.add_argument(
        "--load",
        dest="loads",
        action="append",
        choices=_LOADS,
        help="one load; again for another; all without it",
    )
    arguments = begin(options, quick=1.0)
    arguments.loads = tuple(_LOADS[name] for name in arguments.loads or _LOADS)
    return publish(run(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
