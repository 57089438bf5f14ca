"""What a testbed that was left running consists of, on disk, so that another process can end it.

It ends only recorded processes, known by pid and start time, and removes only recorded names.
"""

import json
import os
import shutil
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from testbed.cluster import Cluster
from testbed.errors import ClusterError
from testbed.namespace import remove_namespace, run_here
from testbed.process import Process
from testbed.waiting import wait_until

STATE_DIR = Path("/run/kersey-testbed")
_FILE = "record.json"
_STOP_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process: its pid, and its start in clock ticks since boot, so a reused pid is not it."""

    what: str
    pid: int
    started: int

    @property
    def is_running(self) -> bool:
        return _start_time(self.pid) == self.started

    def end(self) -> None:
        """End it by SIGTERM, then by SIGKILL; return once it is gone."""
        if not self._signalled_and_gone(signal.SIGTERM):
            self._signalled_and_gone(signal.SIGKILL)

    def _signalled_and_gone(self, number: signal.Signals) -> bool:
        if not self.is_running:
            return True
        os.kill(self.pid, number)
        os.kill(self.pid, signal.SIGCONT)
        try:
            return wait_until(
                lambda: not self.is_running, timeout=_STOP_TIMEOUT, what=f"{self.what} ends"
            )
        except TimeoutError:
            return False


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node for `status`: pods by name with their addresses."""

    name: str
    address: str
    subnet: str
    pods: dict[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """A whole testbed that runs on its own."""

    prefix: str
    backend: str
    state_dir: str
    namespaces: tuple[str, ...]
    processes: tuple[ProcessRecord, ...]
    nodes: tuple[NodeRecord, ...]

    @classmethod
    def of(cls, cluster: Cluster, *, backend: str) -> Self:
        """Return the record of a running cluster."""
        return cls(
            prefix=cluster.prefix,
            backend=backend,
            state_dir=str(cluster.state_dir),
            namespaces=tuple(space.name for space in cluster.namespaces),
            processes=tuple(_process_record(process) for process in cluster.processes),
            nodes=tuple(
                NodeRecord(
                    node.name,
                    str(node.address),
                    str(node.pod_subnet().gateway.network),
                    {pod.name: str(pod.address) for pod in node.pods},
                )
                for node in cluster.nodes
            ),
        )

    @classmethod
    def load(cls, state_dir: Path = STATE_DIR) -> Self:
        """Return the record of the testbed that runs; ClusterError where none does."""
        try:
            raw = json.loads((state_dir / _FILE).read_text())
        except FileNotFoundError:
            raise ClusterError("no testbed is up; start one with `scripts/testbed up`") from None
        return cls(
            prefix=raw["prefix"],
            backend=raw["backend"],
            state_dir=raw["state_dir"],
            namespaces=tuple(raw["namespaces"]),
            processes=tuple(ProcessRecord(**process) for process in raw["processes"]),
            nodes=tuple(NodeRecord(**node) for node in raw["nodes"]),
        )

    def save(self) -> None:
        """Write the record into the testbed's own state directory."""
        (Path(self.state_dir) / _FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")

    def namespace_of(self, name: str) -> str:
        """Return the namespace behind a name such as `node1`; ClusterError lists all names."""
        namespace = self.prefix + name
        if namespace not in self.namespaces:
            known = ", ".join(sorted(space.removeprefix(self.prefix) for space in self.namespaces))
            raise ClusterError(f"{name}: no such place in the testbed (there are: {known})")
        return namespace

    def tear_down(self) -> None:
        """End the processes, then remove the namespaces and the state directory."""
        for process in self.processes:
            process.end()
        for namespace in self.namespaces:
            remove_namespace(namespace)
        for mounted in Path(self.state_dir).glob("*/bpf"):
            if mounted.is_mount():
                run_here("umount", mounted)
        shutil.rmtree(self.state_dir)


def leave_running(cluster: Cluster, *, backend: str) -> None:
    """Record `cluster` and let it outlive this process."""
    Record.of(cluster, backend=backend).save()
    cluster.detach()


def _process_record(process: Process) -> ProcessRecord:
    started = _start_time(process.pid)
    if started is None:
        raise ClusterError(f"{process.log.stem} ended just now:\n{process.log_tail()}")
    what = f"{process.log.parent.name}/{process.log.stem}"
    return ProcessRecord(what=what, pid=process.pid, started=started)


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/<pid>/stat (proc(5)), None for a process gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before may contain anything
    return None if fields[0] == "Z" else int(fields[19])
