"""`scripts/demo`: bring up a cluster, let every pod ping every pod, say what answered.

And in which form the packets crossed the underlay, as captured there. The result goes to stdout, a
table or one JSON object; progress and errors go to stderr. It leaves nothing behind unless asked
to.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from testbed.backend import Backend
from testbed.cli import look_around, refuse_second
from testbed.cluster import Cluster
from testbed.errors import ClusterError
from testbed.node import Node
from testbed.options import add_cluster_options, chosen_backend, objection
from testbed.probe import udp_probe
from testbed.reach import Reach, ordered_pairs, reachability
from testbed.record import STATE_DIR, leave_running
from testbed.signals import exit_on_signals, undisturbed_afterwards
from testbed.told import fast_packets, slow_packets, wait_acquainted
from testbed.wire import Form
from testbed.wire_watch import WireTally, WireWatch, tally

_ANSWER_WITHIN = 15  # seconds for a pair's first answer
_LOG_LINES = 15
_DATAGRAMS = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found."""

    cluster: Cluster
    backend: Backend
    traffic: "Traffic"
    wire: WireTally
    results: list[Reach]

    @property
    def failed(self) -> list[Reach]:
        return [result for result in self.results if result.rtt_ms is None]

    @property
    def problem(self) -> str | None:
        """What did not go as it should, None if all did."""
        if self.failed:
            return f"{len(self.failed)} pairs got no answer"
        if self.wire.complaint is not None:
            return self.wire.complaint
        between = any(r.source.node is not r.destination.node for r in self.results)
        if between and not self.wire.total:
            return "nothing was seen on the wire"
        return None

    def as_json(self) -> str:
        """Return one JSON object on one line."""
        return json.dumps(
            {
                "nodes": len(self.cluster.nodes),
                "pods": len(self.cluster.pods),
                "pairs": len(self.results),
                "reachable": len(self.results) - len(self.failed),
                "backend": self.backend.type,
                "direct_routing": self.backend.direct_routing,
                "links": len({node.link for node in self.cluster.nodes}),
                "datapath": self.traffic.datapath,
                "fast_packets": self.traffic.fast,
                "slow_packets": self.traffic.slow,
                "wire": {str(form): self.wire.counts[form] for form in Form},
                "wire_unexpected": len(self.wire.unexpected),
                "results": [
                    {"from": r.source.name, "to": r.destination.name, "rtt_ms": r.rtt_ms}
                    for r in self.results
                ],
            }
        )

    def as_table(self) -> str:
        """Return nodes, and round trips in ms with a row for each sender."""
        nodes = "\n".join(_node_line(node) for node in self.cluster.nodes)
        answered = len(self.results) - len(self.failed)
        return (
            f"backend {self.backend}, datapath {self.traffic.datapath}\n\n{nodes}\n\n"
            f"round trip in ms, from the row's pod to the column's\n{self._matrix()}\n\n"
            f"{answered} of {len(self.results)} ordered pod pairs answer"
            f"{self._share()}\n{self.wire}"
        )

    def _share(self) -> str:
        return f"; {self.traffic.share}" if self.traffic.fast else ""

    def _matrix(self) -> str:
        pods = self.cluster.pods
        cells = {(r.source, r.destination): _cell(r.rtt_ms) for r in self.results}
        head = " " * 10 + "".join(f"{pod.name:>10}" for pod in pods)
        rows = [
            f"{row.name:<10}" + "".join(f"{cells.get((row, column), '-'):>10}" for column in pods)
            for row in pods
        ]
        return "\n".join([head, *rows])


def _cell(rtt_ms: float | None) -> str:
    return "none" if rtt_ms is None else f"{rtt_ms:.3f}"


def _node_line(node: Node) -> str:
    pods = ", ".join(f"{pod.name} {pod.address}" for pod in node.pods)
    return f"{node.name:<8}{node.address!s:<14}{node.pod_subnet().gateway.network!s:<18}{pods}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the daemons say of the packets between nodes."""

    fast: int
    slow: int

    @property
    def datapath(self) -> str:
        """Return `bpf` where packets were seen to take the fast path, else `netlink`."""
        return "bpf" if self.fast else "netlink"

    @property
    def share(self) -> str:
        """Return in words which part of the packets took the fast path."""
        total = self.fast + self.slow
        return f"the fast path carried {self.fast:,} of {total:,} packets between nodes"


def exchange_datagrams(cluster: Cluster) -> None:
    """Have the first pods of the nodes talk in a ring: pings never leave the kernel's own path.

    The ring is closed, since on two links no two nodes that follow each other share one.
    """
    first = [node.pods[0] for node in cluster.nodes if node.pods]
    ring = pairwise([*first, first[0]] if len(first) > 2 else first)
    for source, destination in ring:
        with udp_probe(
            source.namespace, destination.namespace, destination.address, rate=_DATAGRAMS
        ) as probe:
            probe.wait_flowing(_DATAGRAMS // 2)


def observed_traffic(cluster: Cluster) -> Traffic:
    """Return the sum of what all nodes counted."""
    return Traffic(
        fast=sum(fast_packets(node, cluster) or 0 for node in cluster.nodes),
        slow=sum(slow_packets(node, cluster) for node in cluster.nodes),
    )


def run(arguments: argparse.Namespace) -> int:
    """Build, ping, report; return the exit code."""
    if arguments.keep:
        refuse_second()
    state_dir = STATE_DIR if arguments.keep else None
    with Cluster(state_dir=state_dir) as cluster, undisturbed_afterwards():
        try:
            outcome = build_and_ping(cluster, arguments)
        except (ClusterError, TimeoutError) as error:
            return complain(f"{error}", cluster)
        print(outcome.as_json() if arguments.json else outcome.as_table(), flush=True)
        if outcome.problem is not None:
            return complain(outcome.problem, cluster)
        if arguments.keep:
            leave_running(cluster, backend=str(outcome.backend))
            say(look_around())
    return 0


def build_and_ping(cluster: Cluster, arguments: argparse.Namespace) -> Outcome:
    """Return what the pings of all ordered pairs brought."""
    backend = chosen_backend(arguments)
    on_links = f" on {arguments.links} links" if arguments.links > 1 else ""
    say(f"starting etcd, {arguments.nodes} nodes{on_links} and {arguments.pods} pods on each")
    cluster.start(
        nodes=arguments.nodes,
        pods=arguments.pods,
        config=backend.network_config,
        options=[f"--datapath={arguments.datapath}"],
        links=arguments.links,
    )
    wait_acquainted(cluster)
    with WireWatch(cluster.nodes) as watch:
        results = send_traffic(cluster)
        wire = tally(watch.stop(), backend)
    return Outcome(cluster, backend, observed_traffic(cluster), wire, results)


def send_traffic(cluster: Cluster) -> list[Reach]:
    """Ping all ordered pairs, exchange datagrams; return what the pings brought."""
    pairs = ordered_pairs(cluster.pods)
    say(f"every node knows the others; pinging {len(pairs)} ordered pod pairs")
    results = reachability(pairs, timeout=_ANSWER_WITHIN)
    say("sending datagrams between the nodes")
    exchange_datagrams(cluster)
    return results


def complain(problem: str, cluster: Cluster) -> int:
    """Say what went wrong, with the daemons' last words; return the exit code."""
    for node in cluster.nodes:
        if node.daemon.log.exists():
            say(f"last lines of {node.name}'s kerseyd:\n{node.daemon.log_tail(_LOG_LINES)}\n")
    say(f"FAILED: {problem}")
    return 1


def say(message: str) -> None:
    """Print progress, which never mixes with the result."""
    print(f"demo: {message}", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Start a cluster in namespaces and show that every pod reaches every pod.",
        allow_abbrev=False,  # scripts/demo looks for --keep too
    )
    add_cluster_options(made)
    made.add_argument("--json", action="store_true", help="print one JSON object, no table")
    made.add_argument("--keep", action="store_true", help="leave the testbed up to look around")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo: 0 if every pair answered, 1 if not, 2 for a wrong call."""
    made = parser()
    arguments = made.parse_args(argv)
    wrong = objection(arguments)
    if wrong is not None:
        made.error(wrong)
    if os.geteuid() != 0:
        say("must be root: run with sudo")
        return 2
    exit_on_signals()
    try:
        return run(arguments)
    except ClusterError as error:
        say(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted, cleaned up")
        return 130


if __name__ == "__main__":
    sys.exit(main())
