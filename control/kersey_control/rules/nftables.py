"""The rules as nftables holds them: table `ip flannel-ipv4` with the chains postrtg and forward.

The table is replaced in one `nft -f -` transaction. It is wholly ours, and nothing outside of it is
touched. Names are flannel's, the meaning of the rules is that of its iptables rules. An accept here
ends only this table's chain: another base chain may still drop, which is reported as a hazard.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from kersey_control.errors import KernelError
from kersey_control.rules.base import (
    FORWARD_COMMENT,
    IPTABLES_FORWARD_CHAIN,
    KUBE_PROXY_MARK,
    MASQUERADE_COMMENT,
    Hazard,
    Rule,
    RuleSet,
    Side,
    Verdict,
    describe_differences,
)
from kersey_control.rules.process import ask, is_installed, run

TABLE = "flannel-ipv4"
_TABLE_V6 = "flannel-ipv6"

_Object: TypeAlias = dict[str, Any]
"""One object of nft's JSON output (libnftables-json(5)); it never leaves this module."""


@dataclass(frozen=True, slots=True)
class BaseChain:
    """One of our chains: where it is hooked, and at which priority (numeric, and nft's name)."""

    name: str
    kind: str
    hook: str
    priority: int
    priority_name: str
    comment: str


POSTRTG = BaseChain("postrtg", "nat", "postrouting", 100, "srcnat", MASQUERADE_COMMENT)
FORWARD = BaseChain("forward", "filter", "forward", 0, "filter", FORWARD_COMMENT)


def render(desired: RuleSet) -> str:
    """Return the `nft -f` text of one transaction that makes our table `desired`, or removes it."""
    # Deleting a table that is not there fails; adding one that is there does not.
    lines = [f"add table ip {TABLE}", f"delete table ip {TABLE}"]
    if parts := _parts(desired):
        lines.append(f"table ip {TABLE} {{")
        for chain, rules in parts:
            lines += _render_chain(chain, rules, random_fully=desired.random_fully)
        lines.append("}")
    return "\n".join([*lines, ""])


def differs(desired: RuleSet, document: str | None) -> tuple[str, ...]:
    """Return how `nft -j list table ip flannel-ipv4` differs; None: there is no such table."""
    parts = _parts(desired)
    if document is None:
        return (f"table {TABLE}: missing",) if parts else ()
    objects = _objects(document)
    if not parts:
        return (f"table {TABLE}: must not exist",)
    reasons = [f"table {TABLE}: foreign {kind}" for kind in _foreign_kinds(objects)]
    reasons += _flag_reasons(objects)
    reasons += describe_differences(
        sorted(_chain_text(chain) for chain, _ in parts), sorted(_held_chains(objects))
    )
    for chain, rules in parts:
        wanted = [_canonical(_expressions(r, random_fully=desired.random_fully)) for r in rules]
        held = [_canonical(rule["expr"]) for rule in _rules_of(objects, chain.name)]
        reasons += [f"chain {chain.name}: {text}" for text in describe_differences(wanted, held)]
    return tuple(reasons)


def foreign_forward_chains(document: str) -> list[tuple[str, str, str]]:
    """Return family, table and name of others' base chains that forwarded IPv4 packets meet."""
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in _of_kind(_objects(document), "chain")
        if chain.get("hook") == "forward"
        and chain["family"] in ("ip", "inet")
        and chain["table"] != TABLE
    ]


def chain_hazards(document: str) -> tuple[Hazard, ...]:
    """Return what stops all packets in the one chain that `nft -j list chain` printed.

    Only this chain is judged, not chains that it jumps to. A chain that jumps to our iptables chain
    is not foreign.
    """
    objects = _objects(document)
    (chain,) = _of_kind(objects, "chain")
    where = f"{chain['family']} {chain['table']} {chain['name']}"
    rules = [rule["expr"] for rule in _of_kind(objects, "rule")]
    if any({"jump": {"target": IPTABLES_FORWARD_CHAIN}} in rule for rule in rules):
        return ()
    stops = [verdict for rule in rules if (verdict := _unconditional_stop(rule))]
    if chain.get("policy") == "drop":
        stops.append("policy drop")
    why = "an accept in another base chain cannot override it"
    return tuple(Hazard(f"nft {where}: {stop}", why) for stop in stops)


def foreign_hazards() -> tuple[Hazard, ...]:
    """Return what stops forwarding in base chains of others, if the host has nft."""
    if not is_installed("nft"):
        return ()
    found: list[Hazard] = []
    for family, table, name in foreign_forward_chains(_nft("-j", "list", "chains")):
        answer = ask(["nft", "-j", "list", "chain", family, table, name], package="nftables")
        if answer.status == 0:  # otherwise it went away since, and is no hazard
            found += chain_hazards(answer.output)
    return tuple(found)


class Nftables:
    """The engine that calls nft. A check is one program."""

    name = "nftables"

    def supports_random_fully(self) -> bool:
        """Return true: every nft with JSON output knows `fully-random`."""
        return True

    def differences(self, desired: RuleSet) -> tuple[str, ...]:
        """Return how our table differs from `desired`."""
        return differs(desired, _list_table())

    def apply(self, desired: RuleSet) -> None:
        """Replace our table in one transaction."""
        _nft("-f", "-", stdin=render(desired))

    def hazards(self) -> tuple[Hazard, ...]:
        """Return nothing: our chains are shared with nobody."""
        return ()

    def remove(self) -> None:
        """Take our table out, in whatever state it is."""
        _nft("-f", "-", stdin=f"add table ip {TABLE}\ndelete table ip {TABLE}\n")

    def remove_v6(self) -> None:
        """Take out the IPv6 table that flannel always makes beside its IPv4 one."""
        _nft("-f", "-", stdin=f"add table ip6 {_TABLE_V6}\ndelete table ip6 {_TABLE_V6}\n")


def _nft(*arguments: str, stdin: str = "") -> str:
    return run(["nft", *arguments], package="nftables", stdin=stdin)


def _list_table() -> str | None:
    argv = ["nft", "-j", "list", "table", "ip", TABLE]
    answer = ask(argv, package="nftables")
    if answer.status == 0:
        return answer.output
    if "No such file or directory" in answer.error:  # strerror(ENOENT), under LC_ALL=C
        return None
    return run(argv, package="nftables")


def _parts(desired: RuleSet) -> list[tuple[BaseChain, tuple[Rule, ...]]]:
    parts = ((POSTRTG, desired.masquerade), (FORWARD, desired.forward))
    return [(chain, rules) for chain, rules in parts if rules]


def _render_chain(chain: BaseChain, rules: Iterable[Rule], *, random_fully: bool) -> list[str]:
    head = f"type {chain.kind} hook {chain.hook} priority {chain.priority_name}; policy accept;"
    body = [
        f'\t\t{_statement(rule, random_fully=random_fully)} comment "{chain.comment}"'
        for rule in rules
    ]
    return [f"\tchain {chain.name} {{", f"\t\t{head}", *body, "\t}"]


def _statement(rule: Rule, *, random_fully: bool) -> str:
    mark = f"{KUBE_PROXY_MARK:#x}"
    parts = [f"meta mark & {mark} == {mark}"] if rule.marked else []
    parts += [_side_text("saddr", rule.source), _side_text("daddr", rule.destination)]
    parts.append(rule.verdict)
    if rule.verdict is Verdict.MASQUERADE and random_fully:
        parts.append("fully-random")
    return " ".join(filter(None, parts))


def _side_text(which: str, side: Side | None) -> str:
    if side is None:
        return ""
    return f"ip {which} {'' if side.inside else '!= '}{side.network}"


def _expressions(rule: Rule, *, random_fully: bool) -> list[_Object]:
    """Return the rule as nft's JSON prints it."""
    found: list[_Object] = []
    if rule.marked:
        masked = {"&": [{"meta": {"key": "mark"}}, KUBE_PROXY_MARK]}
        found.append({"match": {"op": "==", "left": masked, "right": KUBE_PROXY_MARK}})
    sides = (("saddr", rule.source), ("daddr", rule.destination))
    found += [_match(which, side) for which, side in sides if side is not None]
    masquerade = rule.verdict is Verdict.MASQUERADE and random_fully
    found.append({rule.verdict.value: {"flags": ["fully-random"]} if masquerade else None})
    return found


def _match(which: str, side: Side) -> _Object:
    address = str(side.network.network_address)
    whole: object = {"prefix": {"addr": address, "len": side.network.prefixlen}}
    return {
        "match": {
            "op": "==" if side.inside else "!=",
            "left": {"payload": {"protocol": "ip", "field": which}},
            "right": address if side.network.prefixlen == side.network.max_prefixlen else whole,
        }
    }


def _canonical(expressions: Iterable[_Object]) -> str:
    """Return one text per meaning: nft prints a single flag bare or as a list, by version."""
    return json.dumps([_with_flag_list(item) for item in expressions], sort_keys=True)


def _with_flag_list(item: _Object) -> _Object:
    match item:
        case {"masquerade": {"flags": str(flag)}}:
            return {"masquerade": {"flags": [flag]}}
    return item


def _objects(document: str) -> list[_Object]:
    try:
        found: list[_Object] = json.loads(document)["nftables"]
    except (ValueError, KeyError) as error:
        raise KernelError(f"nft -j: not the JSON that was expected: {error!r}") from error
    return found


def _of_kind(objects: Iterable[_Object], kind: str) -> list[_Object]:
    return [item[kind] for item in objects if kind in item]


def _rules_of(objects: Iterable[_Object], chain: str) -> list[_Object]:
    return [rule for rule in _of_kind(objects, "rule") if rule["chain"] == chain]


def _foreign_kinds(objects: Iterable[_Object]) -> list[str]:
    return [kind for item in objects for kind in item if kind not in _OUR_KINDS]


_OUR_KINDS = ("metainfo", "table", "chain", "rule")


def _flag_reasons(objects: Iterable[_Object]) -> list[str]:
    """Return a reason for each table flag: a dormant table lists well and does nothing."""
    tables = _of_kind(objects, "table")
    return [f"table {TABLE}: flags {table['flags']}" for table in tables if table.get("flags")]


def _chain_text(chain: BaseChain) -> str:
    return f"chain {chain.name} {chain.kind} {chain.hook} {chain.priority} accept"


def _held_chains(objects: Iterable[_Object]) -> list[str]:
    fields = ("name", "type", "hook", "prio", "policy")
    return [
        "chain " + " ".join(str(chain.get(name)) for name in fields)
        for chain in _of_kind(objects, "chain")
    ]


def _unconditional_stop(expressions: Iterable[_Object]) -> str | None:
    """Return the verdict of a rule that stops every packet, None for any other rule."""
    for item in expressions:
        match item:
            case {"drop": _}:
                return "drop"
            case {"reject": _} | {"xt": {"type": "target", "name": "REJECT"}}:
                return "reject"
            case {"counter": _} | {"log": _} | {"xt": {"type": "match", "name": "comment"}}:
                continue
        return None
    return None
