"""`kersey config check`: whether a network config can be used, before a cluster meets it."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from kersey_control.cli.command import JsonFlag
from kersey_control.cli.text import print_json
from kersey_control.errors import InvalidInputError, KerseyError
from kersey_control.netconfig import NetworkConfig, parse_network_config
from kersey_control.node_view import OVERHEADS

_TOP = (
    *("Network", "SubnetLen", "SubnetMin", "SubnetMax", "Backend"),
    *("EnableIPv4", "EnableIPv6", "EnableNFTables"),
    *("IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"),
)
_BACKEND = (
    *("Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting", "MacPrefix"),
    *("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand"),
    *("ShutdownCommand", "PSK", "PersistentKeepaliveInterval", "Mode", "ListenPort"),
)
_RESERVED = 3
"""Of a subnet's addresses: base, bridge, broadcast."""


def run(flags: JsonFlag, path: str) -> int:
    """Print what a config means; raises KerseyError naming the field that makes it unusable."""
    text = _read(path)
    try:
        config = parse_network_config(text)
    except InvalidInputError as error:
        # Not the command line was wrong: the status is that of a check that failed.
        raise KerseyError(f"{path}: {error}") from None
    values = dict(meaning(config))
    ignored = list(unknown_names(json.loads(text)))
    if flags.json:
        print_json({"config": values, "ignored": ignored})
        return 0
    for name, value in values.items():
        print(f"{name:14} {value}")
    for name in ignored:
        print(f"kersey: {path}: {name}: no such field, it is ignored", file=sys.stderr)
    return 0


def meaning(config: NetworkConfig) -> Iterator[tuple[str, str | int | bool]]:
    """Yield what a config comes to, defaults filled in."""
    count = 1 + (int(config.subnet_max) - int(config.subnet_min) >> (32 - config.subnet_len))
    yield "network", str(config.network)
    yield "subnets", f"/{config.subnet_len} from {config.subnet_min} to {config.subnet_max}"
    yield "nodes", count
    yield "pods a node", (1 << (32 - config.subnet_len)) - _RESERVED
    kind = type(config.backend).__name__.removesuffix("Config").lower()
    name = {"hostgw": "host-gw"}.get(kind, kind)
    yield "backend", name
    for field in fields(config.backend):
        value = getattr(config.backend, field.name)
        shown = " ".join(value) if isinstance(value, tuple) else value
        yield field.name.replace("_", " "), "the uplink's" if shown is None else shown
    yield "overhead", f"{OVERHEADS.get(name, 0)} bytes a packet"
    yield "rules", "nftables" if config.enable_nftables else "iptables"
    if config.network_v6 is not None:
        yield "IPv6", f"{config.network_v6}, read but not carried by this version"


def unknown_names(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields that nobody reads; names match in any case, as flannel matches them."""
    known = {name.casefold() for name in _TOP}
    yield from (name for name in document if name.casefold() not in known)
    for name, value in document.items():
        if name.casefold() == "backend" and isinstance(value, dict):
            inner = {each.casefold() for each in _BACKEND}
            yield from (f"{name}.{each}" for each in value if each.casefold() not in inner)


def _read(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise KerseyError(f"{path}: {error.strerror}") from None
