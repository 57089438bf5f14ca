"""Pods that come and go on nodes, and what they may leave behind: nothing."""

import json
import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from cni_lab import CniNode, name_told
from cni_runtime import Container
from fast_view import fast_path_of, pins_of
from overlay_view import attached_programs

_ALIVE = 4
_WEB = 80
_MAPS = ("pod_ports", "endpoints", "nodes")
"""The maps whose entries come and go with what they stand for; flows stay until they are old."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Everything that a pod adds to on its node, counted; the daemon's open files among it."""

    veths: int
    addresses: int
    programs: int
    pins: int
    pod_ports: int
    endpoints: int
    nodes: int
    queues: int
    nat_rules: int
    routes: int
    neighbours: int
    daemon_files: int
    daemon_threads: int

    @classmethod
    def of(cls, each: CniNode) -> "Footprint":
        """Count."""
        space, process = each.node.namespace, Path(f"/proc/{each.node.daemon.process.pid}")
        with fast_path_of(each.node) as datapath:
            entries = {name: len(list(datapath.maps[name])) for name in _MAPS}
        return cls(
            veths=len(each.veths),
            addresses=len(each.runtime.reserved),
            pins=sum(1 for _ in pins_of(each.node).rglob("*")),
            **entries,
            programs=len(attached_programs(each.node)),
            queues=len(space.run("tc", "qdisc", "show").stdout.splitlines()),
            nat_rules=len(space.run("iptables", "-t", "nat", "-S").stdout.splitlines()),
            routes=len(json.loads(space.run("ip", "-json", "route", "show").stdout)),
            neighbours=len(_pods_known(space.run("ip", "neigh", "show").stdout)),
            daemon_files=len(os.listdir(process / "fd")),  # noqa: PTH208  # links that may vanish
            daemon_threads=len(list((process / "task").iterdir())),
        )


def _pods_known(text: str) -> list[str]:
    """Return the neighbours on devices of pods; the kernel keeps those of a bridge for a while."""
    return [line for line in text.splitlines() if " dev veth" in line]


def resident_kb(each: CniNode) -> int:
    """Return the daemon's resident memory in KiB."""
    status = Path(f"/proc/{each.node.daemon.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1])


def churn(each: CniNode, target: Container, count: int, *, first: int = 0) -> None:
    """Add and delete `count` pods, a few alive at a time; each talks to `target`, some have a port.

    The target must be telling names on port 80.
    """
    alive: deque[Container] = deque()
    for number in range(first, first + count):
        ports = {"hostPort": 20000 + number, "containerPort": _WEB, "protocol": "tcp"}
        wanted = {"portMappings": [ports]} if number % 5 == 0 else {}
        alive.append(each.add(f"churn{each.node.index}-{number}", **wanted))
        assert name_told(alive[-1].namespace, target.address, _WEB)[0] == target.name
        if len(alive) > _ALIVE:
            each.remove(alive.popleft())
    while alive:
        each.remove(alive.popleft())
