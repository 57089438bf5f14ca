"""The flags of the subcommands that have flags of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

from kersey_loader.layout import Verdict

from kersey_control.cli.command import (
    FILES,
    OUTPUT,
    PACKET,
    SELECTION,
    FileFlags,
    JsonFlag,
    NodeFlags,
)
from kersey_control.flags import BOOLEAN, Kind, flag, integer, repeatable_flag
from kersey_control.options import OPTIONAL_PATH, PATH, EtcdFlags, KubeFlags
from kersey_control.verdicts import name_of

_T = TypeVar("_T")

PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}
REASONS = {name_of(each): each for each in Verdict if each is not Verdict.FAST}
"""Every reason that a program can be done with a packet for, and tell so."""

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def _optional(parse: Callable[[str], _T]) -> Callable[[str], _T | None]:
    return lambda text: parse(text) if text else None


def _node_or_subnet(text: str) -> IPv4Address | IPv4Network:
    return IPv4Network(text) if "/" in text else IPv4Address(text)


def _protocol(text: str) -> int:
    if text not in PROTOCOLS:
        raise ValueError
    return PROTOCOLS[text]


def _reason(text: str) -> Verdict:
    name = text.replace("-", "_")
    if name not in REASONS:
        raise ValueError
    return REASONS[name]


def protocol_name(number: int) -> str:
    """Return an IP protocol in words, by its number where it has none here."""
    return _PROTOCOL_NAMES.get(number, str(number))


_ADDRESS = Kind(_optional(IPv4Address), "an IPv4 address", "IP")
_PEER = Kind(_optional(_node_or_subnet), "an IPv4 address, or a subnet", "IP|SUBNET")
_PROTOCOL = Kind(_optional(_protocol), f"one of {', '.join(PROTOCOLS)}", "|".join(PROTOCOLS))
_PORT = Kind(_optional(integer(1, 65535).parse), "an integer from 1 to 65535", "PORT")
_REASON = Kind(_reason, f"one of {', '.join(REASONS)}", "REASON", tuple(REASONS))
_COUNT = Kind(_optional(integer(1, 1_000_000_000).parse), "an integer above 0", "N")
_TIME = Kind(_optional(integer(1, 86400).parse), "an integer from 1 to 86400", "SECONDS")
_SECONDS = integer(1, 3600, placeholder="SECONDS")


@dataclass(frozen=True, kw_only=True)
class LeasesFlags(JsonFlag, KubeFlags, EtcdFlags):
    """What `kersey leases` can be told."""


@dataclass(frozen=True, kw_only=True)
class FlowsFlags(NodeFlags):
    """What `kersey flows` can be told."""

    pod: IPv4Address | None = flag(
        _ADDRESS, default="", group=SELECTION, help="flows of this pod of ours", own=True
    )
    peer: IPv4Address | IPv4Network | None = flag(
        _PEER,
        default="",
        group=SELECTION,
        help="flows with this node, this remote pod or this subnet",
        own=True,
    )
    port: int | None = flag(
        _PORT, default="", group=SELECTION, help="flows with this port at either end", own=True
    )
    protocol: int | None = flag(
        _PROTOCOL, default="", group=SELECTION, help="flows of this protocol", own=True
    )
    watch: bool = flag(
        BOOLEAN, default="false", group=OUTPUT, help="show them again and again", own=True
    )
    interval: int = flag(
        _SECONDS, default="2", group=OUTPUT, help="seconds between two looks", own=True
    )


@dataclass(frozen=True, kw_only=True)
class DropsFlags(NodeFlags):
    """What `kersey drops` can be told."""

    reason: tuple[Verdict, ...] = repeatable_flag(
        _REASON,
        group=SELECTION,
        help="packets of this reason alone, dropped or not; as the metrics name it",
        own=True,
    )
    slow: bool = flag(
        BOOLEAN,
        default="false",
        group=SELECTION,
        help="also pods' packets that are left to the kernel's stack",
        own=True,
    )
    peer: IPv4Address | IPv4Network | None = flag(
        _PEER,
        default="",
        group=SELECTION,
        help="packets from or to this node, this pod or this subnet",
        own=True,
    )
    rate: int = flag(
        integer(1, 100_000),
        default="20",
        group=OUTPUT,
        help="packets a second on each CPU, the rest is only counted",
        own=True,
    )
    count: int | None = flag(
        _COUNT, default="", group=OUTPUT, help="end after so many packets", own=True
    )
    seconds: int | None = flag(
        _TIME, default="", group=OUTPUT, help="end after this time", own=True
    )


@dataclass(frozen=True, kw_only=True)
class TraceFlags(NodeFlags):
    """What `kersey trace` can be told."""

    port: int | None = flag(
        _PORT, default="", group=PACKET, help="destination port, to find its flows", own=True
    )
    protocol: int | None = flag(
        _PROTOCOL, default="", group=PACKET, help="protocol of the packet", own=True
    )


@dataclass(frozen=True, kw_only=True)
class DoctorFlags(NodeFlags, EtcdFlags):
    """What `kersey doctor` can be told."""

    probe: bool = flag(
        BOOLEAN,
        default="true",
        group=SELECTION,
        help="send packets to peers: some pings and one datagram to each",
        own=True,
    )


@dataclass(frozen=True, kw_only=True)
class CleanupFlags(FileFlags):
    """What `kersey cleanup` can be told."""

    cache_dir: Path | None = flag(
        OPTIONAL_PATH,
        default="/var/cache/kersey",
        group=FILES,
        help="the daemon's --cache-dir",
        own=True,
    )
    cni_conf_dir: Path = flag(
        PATH, default="/etc/cni/net.d", group=FILES, help="the daemon's --cni-conf-dir", own=True
    )
    keep_network: bool = flag(
        BOOLEAN,
        default="false",
        group=SELECTION,
        help="take only the programs off: devices, routes, rules and files stay for flannel",
        own=True,
    )
