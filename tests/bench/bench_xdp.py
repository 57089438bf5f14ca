"""What the XDP program on the uplink costs and saves, on veth: no NIC is measured here.

Three parts. The program alone, by test runs of one frame after the other. Pod traffic by each
tunnel, with the TC programs alone and with XDP in native mode in front of them; and what both
programs then cost a run, which for from_uplink is a packet that GRO merged. And a flood of forged
tunnel packets, that XDP, TC or a rule of the stack drops: how many in a second, and what is left of
the CPU for round trips between pods while 300,000 come in a second.

The flood's frames are the kernel's own (as xdp-trafficgen's), so that no packet is made of them
before the node's uplink, as it is with a NIC. For that GRO is on at every uplink here. Run it as
root in namespaces of its own: `scripts/bench xdp`.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import packets as p
from bpf_lab import NODE, STRANGER, UPLINK_MAC, VTEP, WIRE_MAC, open_lab
from datapath_bench.figures import STRICT, VXLAN, Carrier, Load, Mode, Table, Variant, rotated
from datapath_bench.loads import Loads
from datapath_bench.programs import program_costs
from datapath_bench.report import Report, as_text
from datapath_bench.run import begin, measure_mode, parser, say, setting, warm_up
from datapath_bench.variants import WIRE, Layout, Site
from kersey_loader import bpf
from kersey_loader.layout import Program, Verdict
from overlay_view import ip_json
from testbed import Process, wait_until
from testbed.signals import undisturbed_afterwards

_TUNNELS = ("vxlan", "udp", "ipip")
_XDP = Variant("vxlan", Carrier.BPF_XDP)
_FAST = tuple(
    Variant(backend, carrier) for backend in _TUNNELS for carrier in (Carrier.BPF, Carrier.BPF_XDP)
)
_LOADS = (Load.TCP_RR, Load.UDP_RR, Load.TCP_STREAM)
_RUNS = 1_000_000
_RATE = 300_000
_ENDLESS = 3600.0
"""Seconds of a flood that is ended by hand."""
_FORGER = "198.18.1.99"
_RULE = f"-p udp --dport 8472 -s {_FORGER} -j DROP"


def frames(*, node: str, mac: str, stranger: str) -> dict[str, bytes]:
    """Return forged frames by their size on an Ethernet: a stub, and a whole VXLAN packet."""
    inner = p.ethernet(
        p.ipv4(p.udp(bytes(32), src=1, dst=2), src="10.244.9.9", dst="10.244.1.2"),
        dst=VTEP,
        src="0e:00:00:00:00:09",
    )
    bodies = {"64 bytes": bytes(18), "128 bytes": p.vxlan(inner)[: 124 - 42]}
    return {
        size: p.ethernet(
            p.ipv4(p.udp(body, src=50000, dst=8472), src=stranger, dst=node), dst=mac, src=WIRE_MAC
        )
        for size, body in bodies.items()
    }


def alone() -> Iterator[str]:
    """Yield what one run of the program takes, by what the frame is."""
    forged = frames(node=NODE, mac=UPLINK_MAC, stranger=STRANGER)
    passed = p.ipv4(p.tcp(bytes(6), src=1, dst=22), src="198.18.0.9", dst=NODE, protocol=p.TCP)
    cases = {
        "pass: ARP": p.ethernet(bytes(46), dst=UPLINK_MAC, src=WIRE_MAC, kind=0x806),
        "pass: TCP to the node": p.ethernet(passed, dst=UPLINK_MAC, src=WIRE_MAC),
        **{f"drop: forged VXLAN, {size}": frame for size, frame in forged.items()},
    }
    with tempfile.TemporaryDirectory(prefix="kersey-bench-") as name, open_lab(Path(name)) as lab:
        lab.reset()
        program = lab.datapath.program_fd(Program.WIRE)
        for case, frame in cases.items():
            times = [bpf.time_runs(program, frame, _RUNS) for _ in range(5)]
            yield f"  {case:<34}{statistics.median(times):5} ns  ({min(times)}-{max(times)})"


def _dropped(site: Site) -> Callable[[], int]:
    """Return how to read how many forged packets the far node has dropped."""
    if not site.datapaths:
        return lambda: _by_rule(site)
    program = Program.WIRE if site.variant == _XDP else Program.FROM_UPLINK
    return lambda: site.datapaths[1].counters()[program, Verdict.UNKNOWN_NODE]


def _by_rule(site: Site) -> int:
    shown = site.nodes[1].namespace.run("iptables", "-w", "-nvxL", "INPUT").stdout
    found = re.search(rf"^\s*(\d+)\s.*{re.escape(_FORGER)}", shown, re.MULTILINE)
    return int(found[1]) if found else 0


def _flood(
    arguments: argparse.Namespace, frame: bytes, seconds: float, rate: int = 0
) -> list[str | Path]:
    command = ["nice", "-n", "-10", "taskset", "-c", str(arguments.cpu), sys.executable]
    return [*command, "-m", "datapath_bench.flood", WIRE, frame.hex(), str(seconds), str(rate)]


def floods(sites: Mapping[str, Site], arguments: argparse.Namespace) -> Iterator[str]:
    """Yield how many forged frames a second are dropped by each, on one CPU with their sender."""
    for size in frames(node=NODE, mac=UPLINK_MAC, stranger=STRANGER):
        taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for number in range(arguments.rounds):
            for who in rotated(list(sites), number):
                taken[who].append(_withstand(sites[who], size, arguments))
        first = taken[next(iter(sites))]
        for who in sites:
            rates, costs = zip(*taken[who], strict=True)
            span = f"{min(rates):,.0f}-{max(rates):,.0f}"
            ratio = _ratio(rates, [rate for rate, _ in first])
            yield (
                f"  {size:<11}{who:<8}{statistics.median(rates):>12,.0f} frames/s  ({span})"
                f"  {ratio:.2f} of the stack's, {statistics.median(costs):,.0f} ns CPU a frame"
            )


def _withstand(site: Site, size: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return frames dropped a second, and the nanoseconds of CPU that each took."""
    dropped = _dropped(site)
    before = dropped()
    command = _flood(arguments, _frame(site, size), arguments.seconds)
    done = json.loads(site.nodes[0].namespace.run(*command, timeout=60).stdout)
    return (dropped() - before) / done["seconds"], 1e9 * done["cpu"] / done["sent"]


def _ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the ratios of each round."""
    return statistics.median(mine / other for mine, other in zip(values, base, strict=True))


def _frame(site: Site, size: str) -> bytes:
    (link,) = ip_json(site.nodes[1], "addr", "show", "dev", WIRE)
    (address,) = (each["local"] for each in link["addr_info"] if each["family"] == "inet")
    return frames(node=address, mac=link["address"], stranger=_FORGER)[size]


def left_over(
    sites: Mapping[str, Site], loads: Loads, arguments: argparse.Namespace
) -> Iterator[str]:
    """Yield the round trips between pods without the flood and with it, on the same CPU."""
    calm: dict[str, list[float]] = defaultdict(list)
    flooded: dict[str, list[float]] = defaultdict(list)
    for number in range(arguments.rounds):
        for who in rotated(list(sites), number):
            calm[who].append(_round_trips(sites[who], loads, arguments))
            with _under_flood(sites[who], arguments):
                flooded[who].append(_round_trips(sites[who], loads, arguments))
    for who in sites:
        yield (
            f"  {who:<8}{statistics.median(calm[who]):>10,.0f} round trips/s,"
            f" {statistics.median(flooded[who]):>10,.0f} under the flood:"
            f" {_ratio(flooded[who], calm[who]):.0%}"
        )


def _round_trips(site: Site, loads: Loads, arguments: argparse.Namespace) -> float:
    return loads.measure(site.variant, Load.TCP_RR, seconds=arguments.seconds).value


@contextmanager
def _under_flood(site: Site, arguments: argparse.Namespace) -> Iterator[None]:
    """Have the flood from its first dropped frame to the end of the block."""
    command = _flood(arguments, _frame(site, "64 bytes"), _ENDLESS, _RATE)
    dropped = _dropped(site)
    before = dropped()
    with (
        tempfile.TemporaryDirectory(prefix="kersey-bench-") as logs,
        Process(site.nodes[0].namespace, command, log=Path(logs) / "flood"),
    ):
        wait_until(lambda: dropped() > before, timeout=30, what="the flood")
        yield


def costs(loads: Loads, layout: Layout, arguments: argparse.Namespace) -> Iterator[str]:
    """Yield what the uplink's programs cost a run, by tunnel."""
    for variant, site in layout.sites.items():
        if variant in _FAST:
            for cost in program_costs(
                loads, site, rounds=arguments.rounds, seconds=arguments.seconds
            ):
                if cost.program in ("wire", "from_uplink"):
                    yield (
                        f"  {variant.name:<16}{cost.load:<34}{cost.program:<12}"
                        f"{cost.nanoseconds:5.0f} ns {cost.runs:>10,} runs"
                    )


def prepare_uplinks(layout: Layout) -> None:
    """Have GRO on every uplink, and a rule against the forger where no programs are."""
    for variant, site in layout.sites.items():
        for node in site.nodes:
            node.namespace.run("ethtool", "-K", WIRE, "gro", "on")
            if variant == VXLAN:
                node.namespace.run("iptables", "-w", "-A", "INPUT", *_RULE.split())


def main() -> int:
    """Measure and print; return the process's exit status."""
    arguments = begin(parser("xdp", __doc__), quick=0.5)
    say("the program alone")
    print("wire alone, ns a frame (test runs)", *alone(), sep="\n", flush=True)
    say("starting two nodes for each variant")
    with (
        Layout((VXLAN, *_FAST)) as layout,
        Loads(layout.ways(), cpu=arguments.cpu, patience=arguments.patience, kinds=_LOADS) as loads,
        undisturbed_afterwards(),
    ):
        prepare_uplinks(layout)
        warm_up(loads)
        rounds, seconds = arguments.rounds, arguments.seconds
        series = measure_mode(loads, Mode.PLAIN, rounds=rounds, seconds=seconds)
        print(as_text(Report(setting(arguments), Table(tuple(series)), ())), flush=True)
        say("run time of the programs")
        print("\nprograms under traffic", *costs(loads, layout, arguments), sep="\n", flush=True)
        sites = {
            "stack": layout.sites[VXLAN],
            "TC": layout.sites[STRICT],
            "XDP": layout.sites[_XDP],
        }
        say("forged packets")
        print("\nforged packets dropped", *floods(sites, arguments), sep="\n", flush=True)
        say("round trips under forged packets")
        heading = f"\nround trips between pods while {_RATE:,} forged frames/s come in"
        print(heading, *left_over(sites, loads, arguments), sep="\n", flush=True)
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
