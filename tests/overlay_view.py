"""What a running network looks like from outside: devices, routes and leases of a node."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tcx_view import HOOKS, programs_on
from testbed import Cluster, Node

SUBNETS = "/coreos.com/network/subnets/"


def ready(
    cluster: Cluster,
    *options: str,
    nodes: int,
    pods: int = 1,
    config: dict[str, object] | None = None,
) -> Cluster:
    """Start daemons with `options` and return once each has its first snapshot in the kernel."""
    wanted = config or {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
    cluster.start(nodes=nodes, pods=pods, options=options, config=wanted)
    for node in cluster.nodes:
        node.daemon.wait_ready()
    return cluster


def ip_json(node: Node, *arguments: str) -> list[dict[str, Any]]:
    """Return what `ip -json` prints in a node."""
    answer: list[dict[str, Any]] = json.loads(
        node.namespace.run("ip", "-json", "-details", *arguments).stdout or "[]"
    )
    return answer


def overlay_link(node: Node) -> dict[str, Any] | None:
    """Return flannel.1 as `ip` shows it, None where there is none."""
    return next((link for link in ip_json(node, "link") if link["ifname"] == "flannel.1"), None)


def peer_routes(node: Node) -> set[str]:
    """Return the destinations that are routed into the tunnel."""
    done = node.namespace.run("ip", "-json", "route", "show", "dev", "flannel.1", check=False)
    return {route["dst"] for route in json.loads(done.stdout or "[]")}


def subnet_of(node: Node) -> str:
    """Return the node's subnet as subnet.env has it, e.g. `10.244.5.0/24`."""
    return str(node.pod_subnet().gateway.network)


def lease_key(node: Node) -> str:
    """Return the key of the node's lease."""
    return SUBNETS + subnet_of(node).replace("/", "-")


NodeState = dict[str, list[str]]
"""Every kind of thing that a daemon may leave on a node, as lines without those numbers that differ
from run to run."""


def node_state(node: Node) -> NodeState:
    """Return what the kernel of a node holds: the same after equal work, however it came about."""
    return {
        "devices": [_device_line(link) for link in ip_json(node, "addr")],
        "programs": attached_programs(node),
        "pins": list(_pins(node, _device_names(node))),
        **{what: _listing(node, command) for what, command in _LISTINGS.items()},
    }


def attached_programs(node: Node) -> list[str]:
    """Return device, hook and name of every program at a hook of a node, whoever put it there."""
    names = _device_names(node)
    return node.namespace.call(lambda: _attached(names))


def _device_names(node: Node) -> dict[int, str]:
    return {link["ifindex"]: link["ifname"] for link in ip_json(node, "link")}


def _listing(node: Node, command: str) -> list[str]:
    lines = node.namespace.run(*command.split()).stdout.splitlines()
    return [re.sub(r" refcnt \d+", "", line.strip()) for line in lines if line.strip()]


_LISTINGS = {
    "routes": "ip route show table all",
    "policy rules": "ip rule",
    "nexthops": "ip nexthop",
    "neighbours": "ip neigh show nud permanent",
    "forwarding entries": "bridge fdb show state permanent",
    "packet filter": "nft -s list ruleset",
    "queueing disciplines": "tc qdisc show",
}
_DETAILS = ("id", "local", "link", "port", "learning", "gbp", "type", "mode", "ttl")
"""What of a tunnel device's own attributes is compared; `type` is a TUN's, `mode` is ipip's."""


def _device_line(link: dict[str, Any]) -> str:
    info = link.get("linkinfo", {})
    kind = info.get("info_kind", "")
    data = {} if kind == "bridge" else info.get("info_data", {})
    return json.dumps(
        {
            **{name: link.get(name) for name in ("ifname", "address", "mtu", "master", "ifalias")},
            "kind": kind,
            "up": "UP" in link["flags"],
            "details": {name: data[name] for name in _DETAILS if name in data},
            "addresses": [(a["local"], a["prefixlen"], a["scope"]) for a in link["addr_info"]],
        }
    )


def _attached(names: dict[int, str]) -> list[str]:
    """Return every program on a hook of the calling thread's namespace, whoever put it there."""
    return [
        f"{name} {hook} {program}"
        for ifindex, name in names.items()
        for hook in HOOKS
        for program in programs_on(ifindex, hook)
    ]


def _pins(node: Node, names: dict[int, str]) -> Iterator[str]:
    for path in node.bpf_dir.rglob("*/*"):  # what is right below is the kernel's own
        relative = str(path.relative_to(node.bpf_dir))
        yield re.sub(r"links/(\d+)-", lambda found: f"links/{names.get(int(found[1]))}-", relative)


def difference(got: NodeState, expected: NodeState) -> dict[str, list[str]]:
    """Return by kind the lines that one of two states has more often, with + and -."""
    found = {what: _differing(got[what], expected[what]) for what in expected}
    return {what: lines for what, lines in found.items() if lines}


def _differing(got: list[str], expected: list[str]) -> list[str]:
    more, less = Counter(got) - Counter(expected), Counter(expected) - Counter(got)
    return [f"+ {line}" for line in more.elements()] + [f"- {line}" for line in less.elements()]
