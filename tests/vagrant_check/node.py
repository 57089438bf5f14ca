"""A machine as a node of the network: what its daemon says, and its pods."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vagrant_check.machine import Machine, MachineError
from vagrant_check.row import Row

Verdicts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod: a network namespace of that name on its machine."""

    machine: Machine
    name: str
    address: str

    def __str__(self) -> str:
        """Return the name among all machines."""
        return f"{self.machine.name}/{self.name}"


@dataclass(frozen=True, slots=True)
class Node:
    """What a machine said when it was asked last; `status` is that of `kersey status --json`."""

    machine: Machine
    status: Mapping[str, Any]
    pods: tuple[Pod, ...]

    @property
    def address(self) -> str:
        """Return the node's own address."""
        return str(self.status["uplink"]["address"])

    @property
    def verdicts(self) -> Verdicts | None:
        """Return packets by program and verdict, None where there is no fast path."""
        fast_path = self.status["fast_path"]
        if fast_path is None:
            return None
        verdicts: Verdicts = fast_path["verdicts"]
        return verdicts


def ask(machine: Machine) -> Node:
    """Ask a machine for its state. Raises MachineError."""
    answer = machine.run("set -e; kersey status --json; pod list --json")
    lines = [line for line in answer.splitlines() if line.startswith("{")]
    try:
        status, pods = map(json.loads, lines)
        found = tuple(Pod(machine, name, address) for name, address in pods.items())
        return Node(machine, status, found)
    except (ValueError, AttributeError) as error:
        raise MachineError(f"{machine.name}: cannot read its answer: {answer!r}") from error


def ready_row(node: Node, *, nodes: int) -> Row:
    """Return whether a node has a way to all others, and by what."""
    status = node.status
    peers = status["peers"]["programmed"]
    well = bool(status["ready"]) and peers >= nodes - 1 and len(node.pods) > 0
    uplink = f"{status['uplink']['interface']} {node.address}" if status["uplink"] else "not chosen"
    words = (
        f"{'ready' if status['ready'] else 'not ready'}, {status['backend']},"
        f" {status['datapath']['mode']} ({status['datapath']['reason']}), uplink {uplink},"
        f" {status['subnet']}, {peers} peers, {len(node.pods)} pods"
    )
    return Row("ready", node.machine.name, well, words, {"peers": peers, "pods": len(node.pods)})


def first_pods(nodes: Sequence[Node]) -> list[Pod]:
    """Return a pod of each node that has one."""
    return [node.pods[0] for node in nodes if node.pods]
