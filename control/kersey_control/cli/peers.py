"""`kersey peers`: every other node, whether packets to it have a way, and which way they took."""

import sys
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from kersey_loader.datapath import Count, PeerTraffic
from kersey_loader.view import ViewedPeer

from kersey_control.cli.command import NodeFlags
from kersey_control.cli.text import amount, print_json, table
from kersey_control.errors import UnavailableError
from kersey_control.node_view import NodeView, open_pins, read_peers, view_node
from kersey_control.reach import Answering, Means
from kersey_control.route_lookup import look_up, open_lookup
from kersey_control.told import ToldPeer, builtins

_HEADER = (
    *("SUBNET", "NODE", "VIA", "STATE"),
    *("ASKED", "ANSWERS", "ROUND TRIP", "LOSS OUT", "LOSS IN"),
    *("FAST SENT", "SLOW SENT", "FAST RECEIVED", "SLOW RECEIVED"),
    "NEXT HOP",
)
_ANSWERS = {Answering.UNKNOWN: "?", Answering.ANSWERS: "yes", Answering.SILENT: "NO"}


def run(flags: NodeFlags) -> int:
    """Print all peers; 1 if one of them is not programmed or does not answer."""
    view = view_node(flags)
    traffic, trouble = _traffic(view)
    rows = list(_rows(read_peers(view), traffic))
    if flags.json:
        source = "daemon" if view.told else "kernel"
        print_json({"source": source, "traffic_trouble": trouble, "peers": rows})
    else:
        _print(rows)
        for remark in filter(None, (view.silence, trouble and f"no traffic figures: {trouble}")):
            print(f"kersey: {remark}", file=sys.stderr)
    return 0 if all(map(_is_well, rows)) else 1


def _is_well(row: Mapping[str, Any]) -> bool:
    silent = row["reach"] is not None and row["reach"]["answering"] == Answering.SILENT
    return row["condition"] == "programmed" and not silent


def _traffic(view: NodeView) -> tuple[Mapping[IPv4Network, ViewedPeer], str]:
    """Return the peers as the programs know them, or why they cannot be read."""
    try:
        with open_pins(view.pins) as pins:
            return (pins.peers(), "") if view.programs else ({}, view.pins_trouble)
    except UnavailableError as error:
        return {}, str(error)


def _rows(
    peers: list[ToldPeer], viewed: Mapping[IPv4Network, ViewedPeer]
) -> Iterator[dict[str, Any]]:
    with open_lookup() as netlink:
        for peer in peers:
            known = viewed.get(IPv4Network(peer.subnet))
            yield {
                "subnet": peer.subnet,
                "node": peer.node,
                "via": peer.via,
                "condition": peer.condition,
                "reason": peer.reason,
                "mac": peer.mac,
                "reach": builtins(peer.reach),
                "next_hop": str(look_up(netlink, IPv4Address(peer.node))) if peer.node else "",
                "fast_path": known is not None,
                "traffic": _figures(known.traffic) if known else None,
            }


def _figures(traffic: PeerTraffic) -> dict[str, dict[str, int]]:
    def figures(count: Count) -> dict[str, int]:
        return {"packets": count.packets, "bytes": count.bytes}

    return {
        "fast_sent": figures(traffic.fast_sent),
        "slow_sent": figures(traffic.slow_sent),
        "fast_received": figures(traffic.fast_received),
        "slow_received": figures(traffic.slow_received),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print("no peers")
        return
    for line in table(_HEADER, [_cells(row) for row in rows]):
        print(line)
    for row in rows:
        if row["reason"]:
            print(f"{row['subnet']}: {row['reason']}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    traffic = row["traffic"]
    ways = ("fast_sent", "slow_sent", "fast_received", "slow_received")
    counts = [
        f"{traffic[way]['packets']:,} / {amount(traffic[way]['bytes'])}" if traffic else "-"
        for way in ways
    ]
    known = [str(row[name] or "-") for name in ("subnet", "node", "via", "condition")]
    return [*known, *reach_cells(row["reach"]), *counts, row["next_hop"] or "-"]


def reach_cells(reach: Mapping[str, Any] | None) -> list[str]:
    """Return what probes found: the address with `ping` where only the kernel there answers."""
    if reach is None:
        return ["-"] * 5
    trip = reach["round_trip_seconds"]
    ping = " ping" if reach["means"] == Means.ECHO else ""
    return [
        reach["asked"] + ping,
        _ANSWERS[reach["answering"]],
        "-" if trip is None else f"{1000 * trip:.2f} ms",
        *("-" if share is None else f"{100 * share:.0f} %" for share in _losses(reach)),
    ]


def _losses(reach: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return reach["loss_out"], reach["loss_in"]
