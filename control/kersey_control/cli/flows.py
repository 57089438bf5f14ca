"""`kersey flows` and `kersey flush flows`: what is on the fast path, what is not, and why.

Both work on the programs' maps, so that they do without a daemon; with one, a flush is its task.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from kersey_loader.errors import LoaderError
from kersey_loader.layout import Verdict
from kersey_loader.view import View, ViewedFlow

from kersey_control.cli.command import FileFlags
from kersey_control.cli.schema import FlowsFlags, protocol_name
from kersey_control.cli.text import age, print_json, table
from kersey_control.errors import UnavailableError
from kersey_control.lock import sole_user
from kersey_control.node_view import open_pins, pins_of, view_node
from kersey_control.route_lookup import device_name
from kersey_control.status_socket import NoDaemonError, ask_flush
from kersey_control.verdicts import WORDS

_HEADER = ("POD", "REMOTE", "PROTO", "DEVICE", "PEER", "OUT", "IN", "STATE")
_CLEAR = "\x1b[H\x1b[2J"
_PERCENT = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which flows to show; what is None fits every flow. `port` is either side's."""

    pod: IPv4Address | None = None
    peer: IPv4Address | IPv4Network | None = None
    port: int | None = None
    protocol: int | None = None

    def fits(self, flow: ViewedFlow, peer: IPv4Address | None) -> bool:
        """Return whether to show a flow whose remote pod is on the node `peer`."""
        return (
            self.pod in (None, flow.local)
            and self.port in (None, flow.local_port, flow.remote_port)
            and self.protocol in (None, flow.protocol)
            and self._fits_peer(flow, peer)
        )

    def _fits_peer(self, flow: ViewedFlow, peer: IPv4Address | None) -> bool:
        if isinstance(self.peer, IPv4Network):
            return flow.remote in self.peer
        return self.peer in (None, flow.remote, peer)


def run(flags: FlowsFlags) -> int:
    """Print the flows, again and again if asked to."""
    wanted = Wanted(flags.pod, flags.peer, flags.port, flags.protocol)
    pins = view_node(flags).pins
    while True:
        with open_pins(pins) as view:
            _show(view, wanted, flags)
        if not flags.watch:
            return 0
        sys.stdout.flush()
        time.sleep(flags.interval)


def run_flush(flags: FileFlags) -> int:
    """Void every admitted flow: by the daemon, or in its maps where none runs."""
    try:
        ask_flush(flags.state_dir)
    except NoDaemonError:
        # With the lock, since no daemon may start while we write for it.
        with sole_user(flags.subnet_file), open_pins(pins_of(flags)) as view:
            view.flush()
    print("every flow is witnessed anew by its next packets")
    return 0


def _show(view: View, wanted: Wanted, flags: FlowsFlags) -> None:
    try:
        flows = list(view.flows())
        nodes = {each.subnet: each.node for each in view.peers().values()}
    except LoaderError as error:
        raise UnavailableError(str(error)) from None
    length = view.config.subnet.prefixlen if view.config else 32
    shown = []
    for flow in sorted(flows, key=lambda flow: (not flow.is_fast, flow.age)):
        node = nodes.get(IPv4Network((int(flow.remote), length), strict=False))
        if wanted.fits(flow, node):
            shown.append(_row(flow, node))
    summary = {"flows": len(flows), "fast": sum(f.is_fast for f in flows), "room": view.max_flows}
    if flags.json:
        print_json({**summary, "shown": shown})
    else:
        _print(shown, summary, clear=flags.watch and sys.stdout.isatty())


def _row(flow: ViewedFlow, node: IPv4Address | None) -> dict[str, Any]:
    return {
        "pod": str(flow.local),
        "pod_port": flow.local_port,
        "remote": str(flow.remote),
        "remote_port": flow.remote_port,
        "protocol": protocol_name(flow.protocol),
        "device": device_name(flow.port),
        "peer": str(node) if node else "",
        "egress_age": flow.egress_age,
        "ingress_age": flow.ingress_age,
        "fast": flow.is_fast,
        "direct": flow.direct,
        "reason": "" if flow.is_fast else reason(flow),
    }


def reason(flow: ViewedFlow) -> str:
    """Return why a flow is not fast."""
    if flow.verdict is Verdict.NOT_ADMITTED:
        missing = [
            way
            for way, seen in (("out", flow.egress_age), ("in", flow.ingress_age))
            if seen is None
        ]
        return f"not seen going {' or '.join(missing)} through the stack unchanged"
    return WORDS[flow.verdict]


def _print(rows: list[dict[str, Any]], summary: Mapping[str, int], *, clear: bool) -> None:
    if clear:
        print(_CLEAR, end="")
    for line in table(_HEADER, list(_cells(rows))):
        print(line)
    used = _PERCENT * summary["flows"] / summary["room"]
    print(
        f"{summary['flows']:,} flows, {summary['fast']:,} of them fast, {len(rows):,} shown;"
        f" {used:.0f} % of --max-flows {summary['room']:,}"
    )


def _cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        fast = "fast (direct)" if row["direct"] else "fast"
        yield [
            f"{row['pod']}:{row['pod_port']}",
            f"{row['remote']}:{row['remote_port']}",
            row["protocol"],
            row["device"] or "-",
            row["peer"] or "-",
            age(row["egress_age"]),
            age(row["ingress_age"]),
            fast if row["fast"] else f"slow: {row['reason']}",
        ]
