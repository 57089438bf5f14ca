"""`kersey drops`: packets that the programs drop, as they come; any other reason where asked for.

Read from the programs' ring buffer, so that it does without a daemon. They tell of no more packets
than --rate; how many more there were is said.
"""

import math
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from kersey_loader.errors import LoaderError
from kersey_loader.layout import SpoofCheck, Verdict
from kersey_loader.view import View
from kersey_loader.watch import ANYWHERE, Told, Wanted, Watch, open_watch

from kersey_control.cli.schema import DropsFlags, protocol_name
from kersey_control.cli.text import print_json, row
from kersey_control.errors import UnavailableError
from kersey_control.node_view import open_pins, view_node
from kersey_control.route_lookup import device_name
from kersey_control.verdicts import FORGED, SLOW, WORDS, name_of

_HEADER = ("TIME", "REASON", "FATE", "DEVICE", "TUNNEL", "PACKET", "PROTO", "BYTES")
_WIDTHS = (12, 14, 7, 9, 25, 37, 5, 5)
_NOTICE = 1.0
"""Seconds between two lines that say how many packets were not shown."""


def run(flags: DropsFlags) -> int:
    """Print packets until there were enough, time is up, or the operator ends it."""
    with open_pins(view_node(flags).pins) as view:
        if view.config is None:
            raise UnavailableError(f"the programs in {view.home} have not been told anything yet")
        if view.config.spoof is SpoofCheck.OFF:
            print("kersey: with --spoof-check=off no sender is checked", file=sys.stderr)
        _run(view, flags)
    return 0


def wanted_of(flags: DropsFlags) -> Wanted:
    """Return which packets the flags ask for.

    Without --reason those that end in a program, and those that would but for --spoof-check.
    """
    dropped: frozenset[Verdict] = frozenset(Verdict)
    passed = FORGED | SLOW if flags.slow else FORGED
    if flags.reason:
        dropped = frozenset(flags.reason)
        passed = dropped | SLOW if flags.slow else dropped
    within = IPv4Network(flags.peer) if flags.peer is not None else ANYWHERE
    return Wanted(dropped=dropped, passed=passed, within=within, rate=flags.rate)


def row_of(packet: Told) -> dict[str, Any]:
    """Return a packet as JSON has it."""
    return {
        "time": round(packet.time, 6),
        "reason": name_of(packet.verdict),
        "why": WORDS[packet.verdict],
        "dropped": packet.dropped,
        "program": packet.program.function,
        "device": device_name(packet.device),
        "outer_source": _text(packet.outer_source),
        "outer_destination": _text(packet.outer_destination),
        "source": _text(packet.source),
        "destination": _text(packet.destination),
        "protocol": None if packet.protocol is None else protocol_name(packet.protocol),
        "source_port": packet.source_port,
        "destination_port": packet.destination_port,
        "bytes": packet.length,
    }


class Table:
    """A table that grows. Each reason is explained once, in front of its first packet."""

    def __init__(self, rate: int) -> None:
        self._limit = f"(--rate {rate:,} a second on each CPU)"
        self._explained: set[Verdict] = set()
        self._said = 0
        self._shown = 0

    def begin(self) -> None:
        """Print the header: from now on packets are told of."""
        print(row(_HEADER, _WIDTHS))

    def packet(self, packet: Told) -> None:
        """Print a packet."""
        if packet.verdict not in self._explained:
            self._explained.add(packet.verdict)
            print(f"  {name_of(packet.verdict)}: {WORDS[packet.verdict]}")
        print(row(_cells(packet), _WIDTHS))
        self._shown += 1

    def hidden(self, count: int) -> None:
        """Say how many packets were not told of, where there are more than were said."""
        if count > self._said:
            print(f"  + {count - self._said:,} more not shown {self._limit}")
        self._said = count

    def end(self, hidden: int) -> None:
        """Print the sums."""
        rest = f", {hidden:,} more not shown {self._limit}" if hidden else ""
        print(f"{self._shown:,} {'packet' if self._shown == 1 else 'packets'}{rest}")


class Lines:
    """A JSON object a packet, and one with the sums."""

    def __init__(self) -> None:
        self._shown = 0

    def begin(self) -> None:
        """Print nothing: there is no header."""

    def packet(self, packet: Told) -> None:
        """Print a packet."""
        print_json(row_of(packet))
        self._shown += 1

    def hidden(self, count: int) -> None:
        """Print nothing: the sums have it."""

    def end(self, hidden: int) -> None:
        """Print the sums."""
        print_json({"shown": self._shown, "not_shown": hidden})


def _run(view: View, flags: DropsFlags) -> None:
    output = Lines() if flags.json else Table(flags.rate)
    try:
        with open_watch(view, wanted_of(flags)) as watch:
            with suppress(KeyboardInterrupt):  # the usual end
                _follow(watch, flags, output)
            output.end(watch.hidden)
    except LoaderError as error:
        raise UnavailableError(str(error)) from None


def _follow(watch: Watch, flags: DropsFlags, output: Lines | Table) -> None:
    output.begin()
    shown, said = 0, time.monotonic()
    end = said + (flags.seconds or math.inf)
    while (left := end - time.monotonic()) > 0:
        sys.stdout.flush()
        for packet in watch.packets(left):
            output.packet(packet)
            shown += 1
            if shown == flags.count:
                return
        if time.monotonic() - said >= _NOTICE:
            output.hidden(watch.hidden)
            said = time.monotonic()


def _cells(packet: Told) -> list[str]:
    at = datetime.fromtimestamp(packet.time, tz=UTC).astimezone()
    return [
        at.strftime("%H:%M:%S.%f")[:-3],
        name_of(packet.verdict),
        "dropped" if packet.dropped else "passed",
        device_name(packet.device),
        _way(_text(packet.outer_source), _text(packet.outer_destination)),
        _way(
            _end(packet.source, packet.source_port),
            _end(packet.destination, packet.destination_port),
        ),
        "-" if packet.protocol is None else protocol_name(packet.protocol),
        str(packet.length),
    ]


def _way(source: str | None, destination: str | None) -> str:
    return "-" if source is None and destination is None else f"{source} > {destination}"


def _end(address: IPv4Address | None, port: int | None) -> str | None:
    return f"{address}:{port}" if address is not None and port is not None else _text(address)


def _text(address: IPv4Address | None) -> str | None:
    return None if address is None else str(address)
