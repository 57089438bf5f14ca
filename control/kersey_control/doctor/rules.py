"""Packet filter rules of others that stop pods' packets, or the tunnel's own."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, TypeAlias

from kersey_control.doctor.finding import Finding, error, warning
from kersey_control.doctor.host import Host
from kersey_control.node_view import NodeView
from kersey_control.rules.base import Hazard
from kersey_control.rules.iptables import Iptables, legacy_hazards
from kersey_control.rules.nftables import foreign_hazards
from kersey_control.rules.process import is_installed

_Object: TypeAlias = dict[str, Any]
"""One object of nft's JSON output (libnftables-json(5)); it never leaves this module."""

_FAMILIES = frozenset({"ip", "inet"})
_SEEN_BY_TUNNEL = frozenset({"prerouting", "input", "output", "postrouting"})
_STOPS = frozenset({"drop", "reject"})


@dataclass(frozen=True, slots=True)
class Stop:
    """A rule that drops or rejects: where it stands, what it matches, and how to delete it."""

    where: str
    hook: str
    matches: tuple[_Object, ...]
    shown: str
    cure: str


def check(host: Host, view: NodeView) -> Iterator[Finding]:
    """Look for rules that stop forwarded pod traffic, and for rules on the tunnel's port."""
    yield from judge_hazards(_hazards())
    stops = list(stops_of(host.ruleset))
    if view.network is not None:
        yield from judge_pod_stops(stops, view.network)
    if view.port:
        yield from judge_port_stops(stops, view.port)


def judge_hazards(hazards: Iterable[Hazard]) -> Iterator[Finding]:
    """Say which rule or policy stops everything that is forwarded."""
    for hazard in dict.fromkeys(hazards):
        yield error(
            f"a rule stops all forwarded packets: {hazard.rule}",
            f"pods reach no other node; {hazard.why}",
            _removal(hazard.rule),
        )


def judge_pod_stops(stops: Iterable[Stop], network: IPv4Network) -> Iterator[Finding]:
    """Say which rules on forwarded packets name pods' addresses, unless a policy engine's."""
    for stop in stops:
        sides = [side for side in map(_side, stop.matches) if side is not None]
        if stop.hook == "forward" and any(side.overlaps(network) for side in sides):
            yield warning(
                f"a rule stops packets of pods: {stop.where}: {stop.shown}",
                f"forwarded packets that it matches never arrive, and {network} is the pod network",
                stop.cure,
            )


def judge_port_stops(stops: Iterable[Stop], port: int) -> Iterator[Finding]:
    """Say which rules stop the tunnel's own packets."""
    for stop in stops:
        on_port = any(_is_udp_port(match, port) for match in stop.matches)
        if stop.hook in _SEEN_BY_TUNNEL and on_port:
            yield error(
                f"a rule stops tunnel packets: {stop.where}: {stop.shown}",
                f"the tunnel's UDP port {port} is closed for what it matches: pods of other nodes"
                " cannot be reached",
                stop.cure,
            )


def stops_of(document: str) -> Iterator[Stop]:
    """Yield the rules that drop or reject in base chains of IPv4; `nft -j -a list ruleset`.

    Rules in chains that are jumped to are a policy engine's as a rule, and meant.
    """
    objects: list[_Object] = json.loads(document)["nftables"] if document else []
    hooks = {
        (chain["family"], chain["table"], chain["name"]): chain["hook"]
        for item in objects
        if (chain := item.get("chain")) and "hook" in chain
    }
    for item in objects:
        rule = item.get("rule")
        hook = rule and hooks.get((rule["family"], rule["table"], rule["chain"]))
        if rule and hook and rule["family"] in _FAMILIES and _stops(rule["expr"]):
            yield _stop(rule, hook)


def _stop(rule: _Object, hook: str) -> Stop:
    place = f"{rule['family']} {rule['table']} {rule['chain']}"
    matches = tuple(each["match"] for each in rule["expr"] if "match" in each)
    verdict = next(name for each in rule["expr"] for name in _verdict(each))
    return Stop(
        where=f"nft {place}",
        hook=hook,
        matches=matches,
        shown=" ".join([*map(_text, matches), verdict]),
        cure=f"nft delete rule {place} handle {rule['handle']}",
    )


def _stops(expressions: Iterable[_Object]) -> bool:
    return any(_verdict(each) for each in expressions)


def _verdict(expression: _Object) -> list[str]:
    """Return the verdict if this expression stops a packet."""
    if expression.get("xt", {}).get("name") == "REJECT":
        return ["reject"]
    return [name for name in _STOPS if name in expression]


def _side(match: _Object) -> IPv4Network | None:
    """Return the network that a match on source or destination address names."""
    match match:
        case {"op": "==", "left": {"payload": {"field": "saddr" | "daddr"}}, "right": right}:
            return _network(right)
    return None


def _network(right: object) -> IPv4Network | None:
    match right:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            text = f"{address}/{length}"
        case str(address):
            text = address
        case _:
            return None
    try:
        return IPv4Network(text, strict=False)
    except ValueError:
        return None


def _is_udp_port(match: _Object, port: int) -> bool:
    match match:
        case {
            "op": "==",
            "left": {"payload": {"protocol": "udp" | "th", "field": "dport" | "sport"}},
            "right": right,
        }:
            return _contains(right, port)
    return False


def _contains(right: object, port: int) -> bool:
    match right:
        case int(number):
            return number == port
        case {"set": list(members)}:
            return any(_contains(member, port) for member in members)
        case {"range": [int(first), int(last)]}:
            return first <= port <= last
    return False


def _text(match: _Object) -> str:
    """Return a match about as nft prints it."""
    left, right = match.get("left"), match.get("right")
    if isinstance(left, dict) and "payload" in left:
        payload = left["payload"]
        name = f"{payload.get('protocol', '')} {payload.get('field', '')}".strip()
    elif isinstance(left, dict) and "meta" in left:
        name = str(left["meta"].get("key", "meta"))
    else:
        name = json.dumps(left)
    sign = "" if match.get("op") in ("==", "in") else f"{match.get('op')} "
    network = _network(right)
    return f"{name} {sign}{network if network is not None else _plain(right)}"


def _plain(right: object) -> str:
    return str(right) if isinstance(right, str | int) else json.dumps(right)


def _hazards() -> Iterator[Hazard]:
    if is_installed("iptables"):
        yield from Iptables().hazards()
    yield from foreign_hazards()
    yield from legacy_hazards()


def _removal(rule: str) -> str:
    """Return how to take out what a hazard names: `iptables -A FORWARD ...`, or a chain of nft."""
    command, _, rest = rule.partition(" ")
    if command.startswith("iptables"):
        if rest.startswith("-P"):
            return f"{command} -P FORWARD ACCEPT, or start kerseyd with --iptables-forward-rules"
        return f"{command} {rest.replace('-A', '-D', 1)}"
    chain = rest.partition(":")[0]
    return f"nft -a list chain {chain}, then delete that rule, or accept the pod network before it"
