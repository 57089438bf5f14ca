"""What a running network looks like from outside: devices, routes and leases of a node."""

import json
from typing import Any

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
