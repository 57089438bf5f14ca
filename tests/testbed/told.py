"""What the daemons of a cluster say of themselves, by the operator's command."""

import json
from functools import partial
from typing import Any

from testbed.cluster import Cluster
from testbed.node import Node
from testbed.waiting import wait_until

_ACQUAINTED_WITHIN = 30.0


def told_by(node: Node, cluster: Cluster) -> dict[str, Any]:
    """Return what `kersey status --json` prints on a node; ClusterError where no daemon answers."""
    state = f"--state-dir={node.state_dir}"
    told: dict[str, Any] = json.loads(
        node.namespace.run(cluster.kersey, "status", "--json", state).stdout
    )
    return told


def clean(node: Node, cluster: Cluster, *flags: str) -> str:
    """Run `kersey cleanup` on a node, with `flags` besides its folders; return what it printed."""
    folders = (
        f"--subnet-file={node.daemon.subnet_file}",
        f"--state-dir={node.state_dir}",
        f"--bpf-dir={node.bpf_dir}",
        "--cache-dir=",  # of others as well
    )
    return node.namespace.run(cluster.kersey, "cleanup", *folders, *flags).stdout


def wait_acquainted(cluster: Cluster) -> None:
    """Return once every daemon is ready and has a way to every other node.

    Before, a packet to a pod of an unknown node goes where the default route leads, in plain.
    """
    others = len(cluster.nodes) - 1
    for node in cluster.nodes:
        node.daemon.wait_ready()
        wait_until(
            partial(_knows, node, cluster, others=others),
            timeout=_ACQUAINTED_WITHIN,
            what=f"{node.name} has a way to {others} other nodes",
        )


def _knows(node: Node, cluster: Cluster, *, others: int) -> bool:
    return int(told_by(node, cluster)["peers"]["programmed"]) >= others


def fast_packets(node: Node, cluster: Cluster) -> int | None:
    """Return how many packets the node's programs sent or delivered past the stack.

    None where there is no fast path.
    """
    verdicts = _verdicts(node, cluster)
    if verdicts is None:
        return None
    programs = ("from_pod", "from_uplink", "wire")
    return sum(verdicts.get(program, {}).get("fast", 0) for program in programs)


def slow_packets(node: Node, cluster: Cluster) -> int:
    """Return how many packets between nodes the programs left to the stack, or saw it send."""
    verdicts = _verdicts(node, cluster) or {}
    received = verdicts.get("from_uplink", {})
    # A tunnel's own device, and the uplink where the way is direct.
    sent = [verdicts.get(program, {}) for program in ("to_overlay", "to_uplink")]
    return sum(sum(each.values()) for each in (received, *sent)) - received.get("fast", 0)


def _verdicts(node: Node, cluster: Cluster) -> dict[str, dict[str, int]] | None:
    """Return the counts by program and verdict."""
    fast_path = told_by(node, cluster)["fast_path"]
    if fast_path is None:
        return None
    verdicts: dict[str, dict[str, int]] = fast_path["verdicts"]
    return verdicts
